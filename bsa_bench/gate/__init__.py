"""The gate: is this revision slower, wrong, or compiled to worse code than the one before?

Four tiers, of which three need no GPU: 0 compiled code, 1 deterministic counters, 2 execution on the CPU, 3 timing on a
GPU. `verdict` has the words and the documents, `two_stage` the decision by pairs of processes.
"""
