"""The process that measures: one request a line from stdin, one JSON answer a line to stdout.

A process of its own, because a kernel that goes wrong may take the GPU's context with it, and so that one that hangs
can be ended.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from bsa_bench.child_process import PACKAGE


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed must not break the protocol
    import torch

    from bsa_bench.engines.torch_cache import set_up_torch_cache
    from bsa_bench.measure.timer import make_timer
    from bsa_bench.tune.bench import Bench

    set_up_torch_cache()
    device = torch.device("cuda")
    bench = Bench(device, make_timer(device))
    for line in sys.stdin:
        answer = {"package": str(PACKAGE)} | answer_to(bench, json.loads(line))
        if answer["status"] == "FAILED":
            answer["is_over"] = not _is_alive()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer.get("is_over"):
            return


def answer_to(bench: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Verify, then time at each length; a wrong result is never timed."""
    from bsa_bench.tune.candidates import Question
    from bsa_kernels.block_sparse.tile_table import Tile

    question, tile = Question(**request["question"]), Tile(**request["tile"])
    try:
        if fault := bench.fault(question, tile):
            return {"status": "WRONG", "reason": fault}
        return {"status": "OK", "seconds": {n: bench.seconds(question, tile, n) for n in request["tokens"]}}
    except Exception as error:  # noqa: BLE001  # the one boundary of a candidate: recorded with its traceback
        traceback.print_exc()
        return {"status": "FAILED", "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _is_alive() -> bool:
    """Whether the GPU's context still works."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()
