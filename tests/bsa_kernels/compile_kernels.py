"""Compile the block-sparse kernels for GPUs that need not be here; run as a program, prints one JSON line a kernel.

A program of its own, since a process whose kernels run in Triton's interpreter cannot compile them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
INTEGERS = {"slots_ptr", "counts_ptr", "lists_ptr", "real_ptr"}
SINGLES = {"lse_ptr", "delta_ptr"}


def compile_all(capabilities, head_dims, rows, dtypes):
    """Run this file in a process for each capability; one record for each combination and kernel."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    env["PYTHONPATH"] = os.pathsep.join([str(root / "kernels"), env.get("PYTHONPATH", "")])
    lists = {"--head-dim": head_dims, "--rows": rows, "--dtype": dtypes}
    options = [text for name, values in lists.items() for text in (name, *map(str, values))]

    def compile_for(capability):
        command = [sys.executable, __file__, "--capability", str(capability), *options]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [record for records in pool.map(compile_for, capabilities) for record in records]


def main():
    import torch

    from bsa_kernels import BlockGrid, full_plan
    from bsa_kernels.block_sparse import triton_backward, triton_forward
    from bsa_kernels.block_sparse.tiles import launch_options

    parser = argparse.ArgumentParser()
    parser.add_argument("--capability", type=int)
    parser.add_argument("--head-dim", type=int, nargs="+")
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--dtype", nargs="+", choices=TYPES)
    args = parser.parse_args()
    kernels = {
        "forward": triton_forward.forward_kernel,
        "grad_q": triton_backward.grad_q_kernel,
        "grad_kv": triton_backward.grad_kv_kernel,
    }
    for dtype in args.dtype:
        for head_dim in args.head_dim:
            for rows in args.rows:
                grid = BlockGrid((5, 8, 8), (4, 4, 4))  # padded along t, as real clips are
                plan = full_plan(1, 1, grid, device=torch.device("cpu"))
                plan = replace(plan, kept_slots=torch.zeros(*plan.shape[:3], rows, dtype=torch.int64))
                for name, kernel in kernels.items():
                    options = launch_options(name, plan, head_dim, getattr(torch, TYPES[dtype]))
                    record = compile_one(kernel, dtype, options, args.capability)
                    record = {"kernel": name, "dtype": dtype, "D": head_dim, "K": rows, **record}
                    sys.stdout.write(json.dumps(record) + "\n")


def compile_one(kernel, dtype, options, capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    compiler = {name: options[name] for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in constants else argument_type(name, dtype) for name in kernel.arg_names}
    # torch allocates in multiples of 16 bytes and more.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name.endswith("_ptr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compiler)
    ptx = compiled.asm["ptx"]
    return {
        "capability": capability,
        "shared_bytes": compiled.metadata.shared,
        "has_wgmma": "wgmma.mma_async" in ptx,
        "has_mma": "mma.sync" in ptx,
        **resources(compiled.asm["cubin"]),
    }


def argument_type(name, dtype):
    if name.endswith("_ptr"):
        return "*i32" if name in INTEGERS else "*fp32" if name in SINGLES else f"*{dtype}"
    return "fp32" if name.endswith("scale") else "i32"


def resources(cubin):
    """Registers a thread and bytes of stack, where spilled registers lie."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", text))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"])}


if __name__ == "__main__":
    main()
