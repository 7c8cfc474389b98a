"""Time over executed FLOP and peak memory of the engine `cpu` by length, for one head of 64 in float32, sparse.

`python tests/benchmarks/cpu_lengths.py [--threads N] [--rounds N] [TOKENS]...`: attention by a plan of BSA made before,
the lengths in turn in one process, so that what the machine does meanwhile meets all of them; then the memory of each
in a process of its own. Flat times over FLOP and a linear memory are what is expected.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch

GRIDS = {
    4096: (8, 16, 32),
    8192: (16, 16, 32),
    16384: (16, 32, 32),
    32768: (32, 32, 32),
    65536: (32, 32, 64),
    131072: (32, 64, 64),
}
_HEAD_DIM = 64


def main():
    """Times of all lengths in turn, and the memory of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--memory", action="store_true", help="of one length, in this process")
    parser.add_argument("tokens", type=int, nargs="*", help=f"of {[*GRIDS]}")
    arguments = parser.parse_args()
    if unknown := {*arguments.tokens} - {*GRIDS}:
        parser.error(f"tokens: expected some of {[*GRIDS]}, got {sorted(unknown)}")
    chosen = arguments.tokens or list(GRIDS)
    if arguments.memory:
        Case(chosen[0], arguments.threads).call()
        sys.stdout.write(f"{chosen[0]:8} tokens: {_peak_mib():6.0f} MiB at most, torch and inputs among them\n")
        return
    cases = [Case(tokens, arguments.threads) for tokens in chosen]
    taken = {case.tokens: [] for case in cases}
    for case in cases:
        case.call()  # the first is not counted
    for _ in range(arguments.rounds):
        for case in cases:
            # Short ones more often, for a median as steady.
            taken[case.tokens] += [case.call() for _ in range(max(1, min(8, 131072 // 8 // case.tokens)))]
    sys.stdout.write(f"{'tokens':>8} {'pass':>8} calls  median ms  ps/FLOP  least\n")
    for case in cases:
        for which, times in zip(case.flop, zip(*taken[case.tokens], strict=True), strict=True):
            rate, median = 1e12 * arguments.threads / case.flop[which], statistics.median(times)
            figures = f"{1e3 * median:10.1f} {median * rate:8.2f} {min(times) * rate:6.2f}"
            sys.stdout.write(f"{case.tokens:8} {which:>8} {len(times):5} {figures}\n")
    sys.stdout.flush()
    for tokens in chosen:
        command = [sys.executable, __file__, "--memory", "--threads", str(arguments.threads), str(tokens)]
        subprocess.run(command, check=True)


class Case:
    """Attention over the plan that BSA selects on random tokens of a length."""

    def __init__(self, tokens, threads):
        from bsa_kernels import make_bsa_plan
        from bsa_kernels.engines.cpu.engine import CPU

        torch.set_num_threads(threads)
        make = torch.Generator().manual_seed(0)
        q, k, v, self.grad = (torch.randn(1, 1, tokens, _HEAD_DIM, generator=make) for _ in range(4))
        self.tokens, self.plan = tokens, make_bsa_plan(q, k, grid=GRIDS[tokens])
        self.leaves = [x.requires_grad_() for x in (q, k, v)]
        self.flop = {w: CPU.executed_flop(self.plan, _HEAD_DIM, w, dtype=q.dtype) for w in ("forward", "backward")}

    def call(self):
        """Seconds forward and backward."""
        from bsa_kernels import block_sparse_attention

        start = time.perf_counter()
        o = block_sparse_attention(*self.leaves, self.plan, engine="cpu")
        middle = time.perf_counter()
        torch.autograd.grad(o, self.leaves, self.grad)
        return middle - start, time.perf_counter() - middle


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
