"""A tiny suite, and the command in a process of its own."""

import os
import subprocess
import sys

import pytest
import torch

TINY = """
title = "Tiny"
implementations = ["full@sdpa-flash", "bsa@gather", "full@sdpa-cudnn"]
passes = ["forward"]
time_limit_s = 120

[workload]
model = "cpu-1x32"
grid = [4, 8, 8]

[input]
kind = "gaussian"

[bsa]
kv_density = 0.4
"""

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")


def command(*arguments, cwd, path=None, **more):
    """Run the command in a process of its own."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path or sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "bsa_bench", *map(str, arguments)],
        cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300, **more,
    )  # fmt: skip
