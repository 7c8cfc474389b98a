"""Time over executed FLOP and peak memory of the engine `cpu` by length, for one head of 64 in float32, sparse.

`python tests/benchmarks/cpu_lengths.py [--threads N] [TOKENS]...`, each length in a process of its own; selection,
attention and fill forward, and the backward. Flat times over FLOP and a linear memory are what is expected.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

GRIDS = {
    4096: (8, 16, 32),
    8192: (16, 16, 32),
    16384: (16, 32, 32),
    32768: (32, 32, 32),
    65536: (32, 32, 64),
    131072: (32, 64, 64),
}
_HEAD_DIM = 64
_FLOP_A_LENGTH = 2e11


def main():
    """Measure each length, or the one of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument("tokens", type=int, nargs="*", help=f"of {[*GRIDS]}")
    arguments = parser.parse_args()
    if unknown := {*arguments.tokens} - {*GRIDS}:
        parser.error(f"tokens: expected some of {[*GRIDS]}, got {sorted(unknown)}")
    if arguments.here:
        sys.stdout.write(measure(arguments.tokens[0], arguments.threads) + "\n")
        return
    sys.stdout.write(f"{'tokens':>8} {'pass':>8} calls  median ms  ps/FLOP  least  peak MiB above inputs\n")
    sys.stdout.flush()
    for tokens in arguments.tokens or GRIDS:
        command = [sys.executable, __file__, "--here", "--threads", str(arguments.threads), str(tokens)]
        subprocess.run(command, check=True)


def measure(tokens, threads):
    """The rows of a length; a picosecond is one of all threads together."""
    import torch

    from bsa_kernels import bsa_attention, make_bsa_plan
    from bsa_kernels.engines.cpu.engine import CPU

    torch.set_num_threads(threads)
    make = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, 1, tokens, _HEAD_DIM, generator=make) for _ in range(4))
    grid = GRIDS[tokens]
    plan = make_bsa_plan(q, k, grid=grid)
    flop = {which: CPU.executed_flop(plan, _HEAD_DIM, which, dtype=q.dtype) for which in ("forward", "backward")}
    leaves = [x.requires_grad_() for x in (q, k, v)]
    before = _peak_mib()
    times = {"forward": [], "backward": []}
    for _ in range(1 + max(2, min(12, int(_FLOP_A_LENGTH / sum(flop.values()))))):
        start = time.perf_counter()
        o = bsa_attention(*leaves, grid=grid, engine="cpu")
        middle = time.perf_counter()
        torch.autograd.grad(o, leaves, grad)
        times["forward"].append(middle - start)
        times["backward"].append(time.perf_counter() - middle)
    peak = _peak_mib() - before
    rows = []
    for which, (_, *taken) in times.items():  # the first call is not counted
        median, rate = statistics.median(taken), 1e12 * threads / flop[which]
        rows.append(
            f"{tokens:8} {which:>8} {len(taken):5} {1e3 * median:10.1f} {median * rate:8.2f} {min(taken) * rate:6.2f}"
            f" {peak:22.0f}"
        )
    return "\n".join(rows)


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
