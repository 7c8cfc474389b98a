"""The columns of a run's flat table: dtype and meaning of each."""

from __future__ import annotations

import re

from bsa_bench.catalog import METHODS, load_method

PHASES = (
    "permute",
    "select",
    "plan",
    "attend",
    "fill",
    "restore",
    "restore_backward",
    "fill_backward",
    "attend_backward",
    "permute_backward",
)
OPTION = "option_"
#: Columns with a list in each cell, and of what.
LISTS = {"samples": "float64", "samples_per_process": "int64", "process_medians_s": "float64"}
#: Columns of hexadecimal digits, and what precedes them in a CSV, for one of digits alone is no number.
DIGESTS = {
    "case_hash": "sha256:",
    "env_hash": "sha256:",
    "workload_digest": "sha256:",
    "plan_digest": "sha256:",
    "git_commit": "git:",
}


def _option_columns() -> dict[str, tuple[str, str]]:
    """A column for each option of the methods that come with the bench; numbers where it holds nothing else."""
    found: dict[str, list[bool]] = {}
    owners: dict[str, list[str]] = {}
    for method in METHODS:
        for name, about in load_method(method).Options.model_fields.items():
            words = set(re.findall(r"\w+", str(about.annotation).replace("Annotated", "")))
            found.setdefault(name, []).append(bool(words & {"int", "float"}) and not words & {"tuple", "str", "bool"})
            owners.setdefault(name, []).append(method)
    return {
        f"{OPTION}{name}": ("float64" if all(found[name]) else "object", f"option of {', '.join(owners[name])}")
        for name in sorted(found)
    }


# Name -> (dtype, meaning). Missing values are NaN, <NA> or None, never 0.
COLUMNS: dict[str, tuple[str, str]] = {
    "run_id": ("object", "the run"),
    "seq": ("Int64", "order of execution in the run"),
    "utc": ("object", "when the case ended"),
    "suite": ("object", "the suite that asked for the case"),
    "case_id": ("object", "readable name of the case"),
    "case_hash": ("object", "digest of what is measured; the resume key"),
    "env_hash": ("object", "digest of the environment; timings compare only within one"),
    "model": ("object", "model preset, if any"),
    "tokens": ("Int64", "length of the attention"),
    "grid": ("object", "tokens along time x height x width"),
    "frames": ("Int64", "video frames; missing where the length was given otherwise"),
    "height": ("Int64", "video height in pixels"),
    "width": ("Int64", "video width in pixels"),
    "batch": ("Int64", "batch"),
    "heads": ("Int64", "attention heads"),
    "head_dim": ("Int64", "elements a head"),
    "dtype": ("object", "number format of q, k, v"),
    "input": ("object", "where q, k, v come from"),
    "workload_digest": ("object", "digest of the whole workload, its input included"),
    "implementation": ("object", "method@engine"),
    "method": ("object", "what is attended"),
    "engine": ("object", "who computes it"),
    "variant": ("object", "the suite's name for this set of options, if any"),
    "pass": ("object", "forward, backward or forward+backward"),
    "options": ("object", "the method's options as JSON"),
    **_option_columns(),
    "is_dense": ("boolean", "dense attention, which the others are compared with"),
    "is_causal": ("boolean", "a query sees no later key; compared with causal dense attention"),
    "is_adapted": ("boolean", "run otherwise than its authors do"),
    "approximates_dense": ("boolean", "its output is meant to be dense attention's"),
    "status": ("object", "how the case ended"),
    "reason": ("object", "why, in a sentence, where it is not OK"),
    "is_correct": ("boolean", "measured, and verified within its error budget"),
    "is_unverified": ("boolean", "measured, and never compared with an oracle"),
    "is_baseline": ("boolean", "the dense row that the others of its workload and pass are compared with"),
    "is_disturbed": ("boolean", "others took the processor while it was timed; missing where nobody looked"),
    "is_throttled": ("boolean", "the device throttled while it was timed; missing where the platform does not say"),
    "is_interval_short": ("boolean", "too few samples or processes: the interval covers less than 90%"),
    "is_bimodal": ("boolean", "its processes fall into two groups; missing where there is but one process"),
    "timers_disagree": ("boolean", "another timer's median is too far off; missing where none was compared"),
    "host_gaps": ("boolean", "the device waited for the host in most samples; missing where the timer cannot tell"),
    "backend": ("object", "the backend that ran"),
    "engine_version": ("object", "version of the engine"),
    "timer": ("object", "host, event, device-span or graph"),
    "cache": ("object", "cold or warm L2"),
    "num_processes": ("Int64", "processes that measured it"),
    "num_samples": ("Int64", "latency samples of the whole operator, in all processes"),
    "median_s": ("float64", "latency of the whole operator, the median of the processes' medians"),
    "low_s": ("float64", "lower end of the median's interval"),
    "high_s": ("float64", "upper end of the median's interval"),
    "interval_level": ("float64", "coverage that the interval reaches"),
    "q1_s": ("float64", "first quartile"),
    "q3_s": ("float64", "third quartile"),
    "p95_s": ("float64", "95th percentile"),
    "min_s": ("float64", "fastest sample"),
    "variation": ("float64", "standard deviation / mean of all samples"),
    "variation_within": ("float64", "the same of the samples in a process, the median over processes"),
    "variation_between": ("float64", "the same of the processes' medians; missing where there is but one"),
    "samples": ("object", "all samples in seconds, process after process, in order (a list; JSON text in a CSV)"),
    "samples_per_process": ("object", "how many of them are of each process (a list; JSON text in a CSV)"),
    "process_medians_s": ("object", "the median of each process (a list; JSON text in a CSV)"),
    "warm_median_s": ("float64", "the median with a warm L2, where both cache states were measured"),
    "host_s": ("float64", "until a call had enqueued its work, in the first process; missing where unknown"),
    "timer_disagreement": ("float64", "another timer's median over median_s, minus 1, in the first process"),
    "joules_per_call": ("float64", "energy of a call in the first process; missing without a counter"),
    "above_idle_joules_per_call": ("float64", "the same without what the device takes at rest"),
    "first_call_s": ("float64", "the first call in the first process, compilation included"),
    "warmup_s": ("float64", "time spent warming up in the first process"),
    "settled": ("boolean", "whether the warm-up settled before its cap, in all processes"),
    "other_cpu_share": ("float64", "share of processor time that others took, in the process where it was largest"),
    "attend_only_s": ("float64", "median of the attend phase"),
    "attend_select_s": ("float64", "median of attend + select"),
    **{f"phase_{name}_s": ("float64", f"median of the {name} phase") for name in PHASES},
    "phases": ("object", "the medians of all phases in seconds, of a third party's method too, as JSON"),
    "peak_above_inputs_bytes": ("Int64", "peak memory above the inputs"),
    "peak_bytes": ("Int64", "absolute peak memory"),
    "inputs_bytes": ("Int64", "bytes of the inputs"),
    "predicted_bytes": ("Int64", "peak memory predicted before the start"),
    "flops_executed": ("float64", "FLOP of the matrix products as executed, padding included"),
    "flops_nominal": ("float64", "FLOP of the unmasked pairs"),
    "flops_dense_equiv": ("float64", "FLOP of the dense attention that it is compared with"),
    "flops_selection": ("float64", "FLOP of the selection"),
    "executed_flop_per_s": ("float64", "flops_executed / median_s"),
    "sparsity_nominal": ("float64", "sparsity asked for"),
    "density_realised": ("float64", "the work of the method over that of dense attention"),
    "kv_density_realised": ("float64", "key/value density of the plan in use"),
    "query_keep_realised": ("float64", "share of queries computed"),
    "row_imbalance": ("float64", "longest list / mean list"),
    "head_imbalance": ("float64", "busiest head / mean head"),
    "union_efficiency": ("float64", "share of the work of groups that share lists that their members asked for"),
    "list_mean": ("float64", "mean KV blocks of the lists that the engine walks, shared by groups or not"),
    "list_max": ("Int64", "the longest of them"),
    "num_dead_blocks": ("Int64", "key/value blocks that no query block chose"),
    "plan_digest": ("object", "digest of the plan in use"),
    "counters": ("object", "what the method counts besides, as JSON"),
    "error_relative_l2": ("float64", "error against the masked oracle, of the output nearest to its budget"),
    "error_budget": ("float64", "what that error may be"),
    "dense_error_relative_l2": ("float64", "error of the output against dense attention"),
    "dense_error_cosine": ("float64", "cosine similarity of the output to dense attention"),
    "mass_kept": ("float64", "share of the dense attention mass that the plan kept"),
    "rows_checked": ("Int64", "query rows of each head that were compared"),
    "repeat_identical": ("boolean", "a second call gave the same bits"),
    "inputs_unchanged": ("boolean", "the call left its inputs alone"),
    "dense_baseline": ("object", "fastest correct dense implementation of the same workload and pass"),
    "speedup_over_dense": ("float64", "of the whole operator over dense_baseline"),
    "speedup_low": ("float64", "its interval over processes; of one process from the far ends of both intervals"),
    "speedup_high": ("float64", "the upper end of the same"),
    "speedup_level": ("float64", "coverage that the interval reaches; missing where there is but one process"),
    "speedup_attend_only": ("float64", "of the attend phase over dense_baseline"),
    "speedup_attend_select": ("float64", "of attend + select over dense_baseline"),
    "ideal_speedup": ("float64", "1 / density_realised"),
    "achieved_share": ("float64", "speedup_over_dense / ideal_speedup"),
    "paper_speedup": ("float64", "a paper's figure for this row; not measured here"),
    "paper_standing": ("object", "P the paper, N second-hand notes, D our derivation"),
    "wall_s": ("float64", "time that the case took in all"),
    "git_commit": ("object", "commit of the checkout that bsa-bench ran from, if any"),
    "git_dirty": ("boolean", "whether that checkout differed from its commit"),
}
