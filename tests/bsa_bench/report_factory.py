"""Made-up runs for tests of the readers: every figure is scripted, none was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsa_bench.catalog import make_case
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import (
    Case,
    Correctness,
    Environment,
    ErrorFigures,
    Memory,
    PaperClaim,
    Result,
    RunLine,
    Status,
    Timing,
    Work,
)
from bsa_bench.workload import InputSpec, Workload

PASS_FACTOR = {"forward": 1.0, "backward": 2.5, "forward+backward": 3.5}
VIDEO = InputSpec(kind="video", clip="testclip")
# FLOP/s of made-up engines; one that is not named here runs at 60 GFLOP/s.
SPEED = {"sdpa-flash": 110e9, "sdpa-math": 42e9, "sdpa-efficient": 96e9, "flex": 71e9, "gather": 88e9}
SELECTION_S_PER_TOKEN = 6e-6


def workload(tokens: int = 1024, **fields: Any) -> Workload:
    return Workload(**({"tokens": tokens, "heads": 2, "head_dim": 64, "input": VIDEO} | fields))


def case(
    implementation: str = "bsa@gather",
    tokens: int = 1024,
    passes: str = "forward",
    *,
    options: BsaOptions | None = None,
    variant: str | None = None,
    paper: PaperClaim | None = None,
    **fields: Any,
) -> Case:
    return make_case(
        suite="made-up",
        workload=workload(tokens, **fields),
        implementation=implementation,
        passes=passes,
        options=options,
        variant=variant,
        paper=paper,
    )


def jitter(median: float, num: int = 21, spread: float = 0.02) -> list[float]:
    """Samples whose median is exact, in an order that is not sorted."""
    return [median * (1 + spread * math.sin(2.4 * i) * ((i * 7) % num) / num) if i else median for i in range(num)]


def result(of: Case | None = None, status: Status = Status.OK, *, seq: int = 0, **fields: Any) -> Result:
    """A result with nothing measured."""
    of = of or case()
    base: dict[str, Any] = {
        "run_id": "made-up-run",
        "seq": seq,
        "utc": "2025-01-02T03:04:05+00:00",
        "case": of,
        "case_id": of.case_id,
        "case_hash": of.case_hash,
        "env_hash": "e" * 12,
        "status": status,
    }
    return Result(**(base | fields))


def timing(median: float, **fields: Any) -> Timing:
    base: dict[str, Any] = {
        "timer": "host",
        "cache": "warm",
        "first_call_s": 3 * median,
        "warmup_s": 0.3,
        "settled": True,
        "samples": jitter(median),
    }
    return Timing(**(base | fields))


def measured(of: Case | None = None, *, median: float | None = None, seq: int = 0, **fields: Any) -> Result:
    """An OK result; without `median` the latency follows from the FLOP and a made-up engine's speed."""
    of = of or case()
    factor, dense_flop, tokens = PASS_FACTOR[of.passes], of.workload.dense_flop, of.workload.num_tokens
    # Of methods whose options are others a quarter.
    asked_for = (of.options.get("kv_density") or 0.25) * of.options.get("query_keep", 1.0) if of.options else 1.0
    density = min(asked_for * 1.02, 1.0) if of.options else 1.0
    flop = factor * dense_flop * density
    attend = flop / SPEED.get(of.engine, 60e9) + 2e-5 * factor
    selection = SELECTION_S_PER_TOKEN * tokens if of.options else 0.0
    whole = median if median is not None else attend + 1.35 * selection
    phases, attend_only, attend_select = {}, None, None
    if of.options:
        split = {"permute": 0.15, "select": 0.7, "plan": 0.3, "fill": 0.2}
        phases = {name: jitter(share * selection, 9) for name, share in split.items()}
        phases["attend"] = jitter(attend / factor, 9)
        if of.passes != "forward":
            phases["attend_backward"] = jitter(attend - attend / factor, 9)
            phases["fill_backward"] = jitter(0.1 * selection, 9)
            phases["permute_backward"] = jitter(0.15 * selection, 9)
        attend_only, attend_select = jitter(attend, 9), jitter(attend + 0.7 * selection, 9)
    outputs = ["output"] if of.passes == "forward" else ["output", "grad_q", "grad_k", "grad_v"]
    error = ErrorFigures(max_abs=3e-6, relative_l2=4.1e-7, cosine=1.0)
    lost = 0.06 * math.log(1 / density)
    base: dict[str, Any] = {
        "backend": of.engine,
        "timing": timing(whole, phases=phases, attend_only=attend_only, attend_select=attend_select),
        "memory": Memory(
            peak_above_inputs_bytes=int(of.workload.tensor_bytes * (1.1 if not of.options else 1.9) * factor),
            inputs_bytes=3 * of.workload.tensor_bytes,
            how="scripted",
        ),
        "work": Work(
            flops_executed=flop,
            flops_nominal=flop * 0.98,
            flops_dense_equiv=factor * dense_flop,
            flops_selection=6.0 * tokens if of.options else 0.0,
            sparsity_nominal=1 - asked_for,
            density_realised=density,
            plan_digest="abc123" if of.options else None,
            union_efficiency=0.755 if of.engine == "triton" else 1.0 if of.options else None,
            list_mean=45.25 if of.options else None,
            list_max=1234 if of.options else None,
        ),
        "correctness": Correctness(
            oracle="reference, float64",
            checked=dict.fromkeys(outputs, error),
            budget=dict.fromkeys(outputs, 1.2e-6),
            rows=tokens,
            passed=True,
            dense=ErrorFigures(max_abs=0.4, relative_l2=lost + 3e-7, cosine=1 - lost**2 / 2),
            mass_kept=1 - 0.8 * lost if of.options else 1.0,
        ),
        "wall_s": 4.0,
    }
    return result(of, seq=seq, **(base | fields))


def repeated(of: Case | None = None, *, medians: Sequence[float], **fields: Any) -> list[Result]:
    """An OK result for each process, with these medians in seconds."""
    return [measured(of, median=median, process_index=index, **fields) for index, median in enumerate(medians)]


def counted(of: Case, **counters: float) -> Result:
    """A result that is verified and has counters in place of a latency."""
    whole = measured(of)
    work = whole.work.model_copy(update={"counters": counters})
    return result(of, Status.COUNTED, correctness=whole.correctness, work=work)


def wrong(of: Case, *, seq: int = 0) -> Result:
    bad = ErrorFigures(max_abs=1.9, relative_l2=0.31, cosine=0.8)
    checks = Correctness(
        oracle="reference, float64", checked={"grad_k": bad}, budget={"grad_k": 1e-6}, rows=64, passed=False
    )
    return result(of, Status.WRONG, seq=seq, correctness=checks, reason="grad_k: 0.31 against a budget of 1e-06")


def run_line(num_cases: int, **fields: Any) -> RunLine:
    base: dict[str, Any] = {
        "run_id": "made-up-run",
        "utc": "2025-01-02T03:04:05+00:00",
        "suite": "made-up",
        "suite_title": "Scripted figures for tests",
        "profile": "quick",
        "command": ["bsa-bench", "run", "--suite", "made-up"],
        "environment": Environment(
            hash="e" * 12,
            device_kind="cpu",
            device_name="Made-up CPU, 2 threads",
            device_details={"threads": 2, "l2_bytes": 2097152},
            cpu={"model": "Made-up CPU", "cores": 2, "governor": None},
            os="Linux 6.1",
            python="3.12.1",
            packages={"torch": "2.13.0", "flash-attn": None},
            variables={"OMP_NUM_THREADS": "2"},
            git_commit="0123456789abcdef",
            git_dirty=False,
        ),
        "num_cases": num_cases,
        "unavailable": {
            "flash-attn": "flash-attn needs a CUDA device; on one, pip install 'bsa-bench[cuda]'",
            "sdpa-cudnn": "cuDNN attention needs a CUDA device",
        },
    }
    return RunLine(**(base | fields))


def quick_results(lengths: Sequence[int] = (1024, 2048, 4096, 8192, 16384)) -> list[Result]:
    """Several lengths and passes, with a failure of every kind."""
    results: list[Result] = []
    for tokens in lengths:
        for passes in ("forward", "forward+backward"):
            dense = ("full@sdpa-flash", "full@sdpa-math", "full@sdpa-efficient", "full@flex")
            results += [measured(case(name, tokens, passes)) for name in (*dense, "bsa@gather", "bsa@flex")]
    long = lengths[-1]
    by_id = {r.case_id: i for i, r in enumerate(results)}

    def replace(of: Case, new: Result) -> None:
        results[by_id[of.case_id]] = new

    math_case = case("full@sdpa-math", long, "forward+backward")
    replace(math_case, result(math_case, Status.SKIPPED_OOM, reason="predicted 9.2 GiB, 6.1 GiB are free"))
    flex_case = case("full@flex", long, "forward+backward")
    replace(flex_case, result(flex_case, Status.TIMEOUT, reason="not done after 120 s"))
    other = case("full@sdpa-efficient", lengths[0])
    replace(other, measured(other, correctness=None))
    triton = [case("bsa@triton", lengths[0], passes) for passes in ("forward", "backward")]
    results += [
        result(triton[0], Status.VERIFIED_ONLY, reason="checked by Triton's interpreter; there is no GPU here"),
        wrong(triton[1]),
        result(case("bsa@triton", long), Status.CRASHED, reason="worker killed by signal 11 | segmentation fault"),
        result(case("full@xformers", long), Status.FELL_BACK, reason="ran the math backend\nnot its own"),
        counted(case("bsa@reference", long), planes_per_pair=4.25),
        result(case("full@flash-attn", long), Status.UNSUPPORTED, reason="flash-attn needs a CUDA device"),
        result(case("bsa@flex", long, "backward"), Status.OOM, reason="out of memory at 7.9 GiB"),
        result(case("bsa@gather", long, "backward"), Status.NOT_MEASURED),
    ]
    return renumber(results)


def sparsity_results(tokens: int = 4096) -> list[Result]:
    """One length, several densities."""
    results = [measured(case("full@sdpa-flash", tokens))]
    for density in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0):
        options = BsaOptions(kv_density=density)
        results += [measured(case(name, tokens, options=options)) for name in ("bsa@gather", "bsa@flex")]
    return renumber(results)


def renumber(results: Sequence[Result]) -> list[Result]:
    return [r.model_copy(update={"seq": i}) for i, r in enumerate(results)]


def write_run(folder: Path, results: Sequence[Result], **run_fields: Any) -> Path:
    """Store a made-up run; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [run_line(run_fields.pop("num_cases", len(results)), **run_fields), *results]
    (folder / "results.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    return folder


def paper_results() -> list[Result]:
    """Two lengths whose densities differ, ablation rows, claims of a paper, a GPU's timer, two shapes."""
    results = []
    claim = PaperClaim(speedup=12.85, standing="N", source="table of the method at 23K")
    gpu = {"heads": 12, "head_dim": 128, "dtype": "bfloat16", "model": "wan2.1-1.3b"}
    rows = {
        "query only": BsaOptions(kv_density=1.0, query_keep=0.5),
        "kv only": BsaOptions(kv_density=0.11, query_keep=1.0),
        "both": BsaOptions(kv_density=0.14, query_keep=0.5),
    }
    for passes in ("forward", "backward"):
        for tokens in (23296, 153600):
            results += [measured(case(f"full@{e}", tokens, passes, **gpu)) for e in ("sdpa-flash", "sdpa-cudnn")]
            for variant, options in rows.items():
                paper = claim if variant == "both" else None
                of = case("bsa@triton", tokens, passes, options=options, variant=variant, paper=paper, **gpu)
                results.append(measured(of))
        wan = gpu | {"model": "wan2.1-14b", "heads": 40}
        results += [measured(case("full@sdpa-cudnn", n, passes, **wan)) for n in (32760, 75600)]
        results += [measured(case("bsa@triton", n, passes, options=rows["both"], **wan)) for n in (32760, 75600)]
    event = [
        r.model_copy(update={"timing": r.timing.model_copy(update={"timer": "event", "cache": "cold"})})
        for r in results
    ]
    return renumber(event)
