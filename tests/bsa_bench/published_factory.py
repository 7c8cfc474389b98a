"""Result files of other tools, made up in their layouts: no figure in them was measured."""

from __future__ import annotations

import json

CUDNN_HEADER = (
    "config_name,model_name,backend,data_type,attn_mask,batch_size,q_seqlen,kv_seqlen,num_q_heads,num_kv_heads,"
    "head_dim_qk,head_dim_vo,profile_pass,deterministic_bwd,{times},max_diff,num_iterations,sliding_window_size,"
    "success,error_message,gpu_name,cudnn_version,cudnn_backend_version"
)
CUDNN_LONG = CUDNN_HEADER.format(times="time_ms,tflops")
CUDNN_WIDE = CUDNN_HEADER.format(times="fwd_time_ms,bwd_time_ms,fwd_tflops,bwd_tflops")
DEVICE = "NVIDIA X100"


def cudnn_row(
    times,
    *,
    passes="fwd",
    length=1024,
    kv=None,
    heads=4,
    head_dim=64,
    mask="no_mask",
    window="",
    success=True,
    error="",
    gpu=DEVICE,
    dtype="bfloat16",
    deterministic=False,
):
    return (
        f"made-up,made-up-model,cudnn,{dtype},{mask},1,{length},{kv or length},{heads},{heads},{head_dim},{head_dim},"
        f"{passes},{deterministic},{times},0.000,10,{window},{success},{error},{gpu},1.0.0,90000.000"
    )


def cudnn(*rows, header=CUDNN_LONG):
    return "\n".join([header, *(rows or [cudnn_row("0.250,700.000")])]) + "\n"


def tritonbench(*rows, header="(Batch, Heads, SeqLen, SeqLen_KV, Dhead);sdpa-latency;sdpa-tflops;fast-2-latency"):
    return "\r\n".join([header, *(rows or ["(2, 4, 1024, 1024, 64);0.5;300.5;0.25"])]) + "\r\n"


def nvbench(*states, devices=((0, DEVICE),), major=1):
    return json.dumps(
        {
            "meta": {"argv": ["./bench"], "version": {"json": {"major": major}, "nvbench": {"major": 0}}},
            "devices": [{"id": number, "name": name, "sm_version": 900} for number, name in devices],
            "benchmarks": [{"name": "attention", "index": 0, "axes": [], "states": list(states or [nvbench_state()])}],
        }
    )


def nvbench_state(times=(("nv/cold/time/gpu/mean", "0.0025"),), *, device=0, skipped=False, axes=None):
    axes = {"SeqLen": "4096", "Num_Heads": "8", "T": "F16"} if axes is None else axes
    summaries = [{"tag": tag, "data": [{"name": "value", "type": "float64", "value": value}]} for tag, value in times]
    return {
        "name": f"Device={device}",
        "device": device,
        "axis_values": [{"name": name, "type": "int64", "value": value} for name, value in axes.items()] or None,
        "summaries": [{"tag": "nv/cold/sample_size", "data": [{"name": "value", "value": "9"}]}, *summaries],
        "is_skipped": skipped,
        "skip_reason": "made up" if skipped else None,
    }


def trace(
    *, latency=2.5, status="PASSED", definition="gqa_ragged_prefill_causal_h8_kv2_d128", axes=None, solution="fast"
):
    passed = status == "PASSED"
    performance = {"latency_ms": latency, "reference_latency_ms": 90.0, "speedup_factor": 36.0} if passed else None
    evaluation = {
        "status": status,
        "log": "",
        "environment": {"hardware": "NVIDIA_X100", "libs": {}},
        "timestamp": "2026-01-01",
        "correctness": {"max_relative_error": 0.0, "max_absolute_error": 0.0} if passed else None,
        "performance": performance,
    }
    workload = {"uuid": "0001", "axes": axes or {"total_q": 2048, "total_kv": 2048, "len_indptr": 2}, "inputs": {}}
    return json.dumps(
        {
            "definition": definition,
            "workload": workload,
            "solution": solution,
            "evaluation": evaluation if solution else None,
        }
    )


def pytest_benchmark(*benchmarks, **machine):
    default = {"name": "test_attention[1024]", "params": {"seq_len": 1024, "dtype": "bf16"}, "stats": {"median": 0.004}}
    return json.dumps(
        {
            "machine_info": {"cpu": {"brand_raw": "a processor"}, **machine},
            "benchmarks": list(benchmarks or [default]),
            "version": "5.0.0",
        }
    )
