import csv
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from profile_factory import case_of, launched, memory, ranges, settings_of, write_trace
from rich.console import Console
from run_factory import environment

from bsa_bench.errors import BenchError, StoreError, UsageError
from bsa_bench.profiling import tools
from bsa_bench.profiling.drive import NotProfiledError, profile_case
from bsa_bench.profiling.folder import check_folder, default_folder, whole_folder
from bsa_bench.profiling.job import Findings, PhaseWork
from bsa_bench.profiling.summary import markdown, print_summary
from bsa_bench.result import Status, Timing, Work

FAKE_WORKER = Path(__file__).with_name("fake_profile_worker.py")
CUDA = environment().model_copy(update={"device_kind": "cuda", "device_name": "a GPU"})


@pytest.fixture
def made_before(tmp_path):
    """The files of a GPU worker: 1 ms of selection and 3 ms of attention, a tenth without a kernel."""
    torch_part = tmp_path / "made/torch"
    torch_part.mkdir(parents=True)
    phases = ranges(("select", 0, 100), ("attend", 100, 200))
    kernels = [*launched("scores", 5, 1000, 2000, 1), *launched("attention", 150, 2400, 5000, 2)]
    write_trace(torch_part / "trace.json.gz", [*phases, *kernels])
    write_trace(
        torch_part / "memory-trace.json.gz",
        [*phases, memory(10, 4096, device_type=1), memory(120, 8192, device_type=1)],
    )
    found = Findings(
        status=Status.OK,
        engine_version="1.0",
        timing=Timing(
            timer="event",
            cache="cold",
            first_call_s=1.0,
            warmup_s=0.1,
            settled=True,
            samples=[0.0035],
            phases={"select": [0.001], "attend": [0.0025]},
        ),
        work=Work(flops_executed=1e8, flops_nominal=1e8, flops_dense_equiv=2e8, flops_selection=1e6),
        phase_work={"select": PhaseWork(flop=1e6, bytes=1_000_000), "attend": PhaseWork(flop=1e8, bytes=2_000_000)},
        inputs_bytes=1000,
    )
    (torch_part / "findings.json").write_text(found.model_dump_json())
    proton = tmp_path / "made/proton"
    proton.mkdir()
    (proton / "proton.hatchet").write_text("{}")
    (proton / "findings.json").write_text(Findings(status=Status.OK).model_dump_json())
    return tmp_path / "made"


@pytest.fixture
def profile(made_before, tmp_path, monkeypatch, unrendered):
    """Profile on a GPU that is not there, by a worker with files made before; Nsight tools are those in `bin`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    told = []

    def run(**more):
        settings = settings_of(
            sys.executable, str(FAKE_WORKER), str(made_before), device="cuda", environment=CUDA, **more
        )
        return profile_case(case_of("bsa@gather"), settings, tmp_path / "out", told.append)

    run.told = told
    return run


def install(folder, program, script):
    path = folder / "bin" / program
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_profile_of_a_gpu_names_kernels_waiting_rates_and_what_is_not_installed(profile, tmp_path):
    made = profile()
    select, attend = made.phases
    assert (select.profiled_s, attend.profiled_s) == pytest.approx((1e-3, 3e-3))
    assert made.profiled_s == pytest.approx(4e-3)
    assert made.host_share == pytest.approx(0.1)
    assert attend.flop_per_s == pytest.approx(1e8 / 2.5e-3)
    assert attend.floor_s == pytest.approx(1e-3)  # FLOP take longer than bytes
    assert select.floor_s == pytest.approx(1e-4)  # bytes take longer than FLOP
    assert made.slowdown == pytest.approx(4 / 3.5)
    assert (made.peak_bytes, made.peak_phase) == (12288, "attend")
    assert made.prediction.here_peak_bytes == 13288
    assert made.prediction.here_flop == 1.01e8
    assert [o.name for o in made.operators] == ["attention", "scores"]
    assert made.tools == [
        "Nsight Systems: nsys is not on PATH, so nothing of it is here",
        "Nsight Compute: ncu is not on PATH, so nothing of it is here",
    ]
    assert "proton.hatchet" in made.files
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == {*made.files, "profile.json"}
    assert profile.told[0] == "working"


def test_the_summary_says_all_of_it_once_as_markdown_and_in_a_pipe(profile, capsys):
    made = profile()
    text = markdown(made)
    assert text.count("never a result") == 1
    assert "| attend | 75.0% | 3.00 ms | 2.50 ms | 13.3% |" in text
    assert "| all phases | 100.0% | 4.00 ms | 3.50 ms | 10.0% |" in text
    assert (
        "One call takes 3.50 ms without a profiler, 3.50 ms phase by phase; 4.00 ms under torch.profiler, 1.14x" in text
    )
    assert "10.0% of the traced call is without a kernel running (waiting for the host)." in text
    assert "| attend | 100 MFLOP | 40.0 GFLOP/s | 40.0% | 1.91 MiB | 800 MB/s | 8.0% | 1.00 ms | 40.0% |" in text
    assert "GEMM float32 100 GFLOP/s (made up); copy 10.0 GB/s (made up)" in text
    assert "| attend | attention | 1 | 2.60 ms | 65.0% |" in text
    print_summary(made, Console(width=160))
    out = capsys.readouterr().out
    assert "attend 75.0% 3.00 ms 2.50 ms 13.3%" in " ".join(out.split())
    assert "Left out: Nsight Systems: nsys is not on PATH" in out


def test_nsight_tools_record_the_worker_with_their_clock_control_off(profile, tmp_path):
    record = f'echo "$@" >> {tmp_path}/commands'
    install(tmp_path, "nsys", f"{record}\n: > {tmp_path}/out/nsys.nsys-rep")
    num_calls = f"grep -o '\"num_calls\":[0-9]*' {tmp_path}/out/ncu-job.json >> {tmp_path}/commands"
    install(tmp_path, "ncu", f"{record}\n{num_calls}\n: > {tmp_path}/out/ncu.ncu-rep")
    made = profile(num_calls=5)
    assert made.tools == []
    assert {"nsys.nsys-rep", "ncu.ncu-rep"} <= made.files.keys()
    nsys, ncu, calls = (tmp_path / "commands").read_text().splitlines()
    out = tmp_path / "out"
    worker = f"{sys.executable} {FAKE_WORKER} {tmp_path / 'made'} --job {out}"
    assert nsys.startswith(
        "profile --trace=cuda,nvtx --sample=none --cpuctxsw=none --capture-range=cudaProfilerApi "
        f"--capture-range-end=stop --output={out}/nsys {worker}/nsys-job.json --events-fd "
    )
    assert ncu.startswith(
        f"--profile-from-start off --clock-control none --nvtx --set detailed --export {out}/ncu {worker}/ncu-job.json "
    )
    assert calls == '"num_calls":1'
    assert not list(out.glob("*-job.json"))


def test_a_tool_that_fails_costs_only_its_own_part_and_its_last_words_are_told(profile, tmp_path, made_before):
    install(tmp_path, "ncu", "echo '==ERROR== ERR_NVGPUCTRPERM' >&2; exit 1")
    (made_before / "proton/die").write_text("SIGSEGV")
    made = profile()
    assert "Nsight Compute: left no file, it ended with exit code 1: ==ERROR== ERR_NVGPUCTRPERM" in made.tools
    assert "Triton Proton: left no file, it ended with SIGSEGV: hello from proton" in made.tools
    assert "proton.hatchet" not in made.files


def test_proton_without_triton_is_left_out(monkeypatch):
    assert tools.missing_proton() is None
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    assert tools.missing_proton() == "Triton Proton: triton is not installed, so nothing of it is here"


def test_a_worker_that_dies_is_told_with_its_last_words(profile, made_before):
    (made_before / "torch/die").write_text("SIGSEGV")
    with pytest.raises(NotProfiledError, match=r"is not profiled, CRASHED: .*SIGSEGV\nhello from torch$") as raised:
        profile()
    assert raised.value.status is Status.CRASHED


@pytest.mark.parametrize("status", [Status.WRONG, Status.OOM, Status.UNSUPPORTED])
def test_a_case_that_came_to_something_else_is_not_profiled(profile, made_before, status):
    found = Findings(status=status, reason="a reason")
    (made_before / "torch/findings.json").write_text(found.model_dump_json())
    with pytest.raises(NotProfiledError, match=rf"is not profiled, {status}: a reason$"):
        profile()


def test_a_worker_that_leaves_no_findings_is_refused(profile, made_before):
    (made_before / "torch/findings.json").write_text("{")
    with pytest.raises(BenchError, match=r"left no findings in findings\.json"):
        profile()


def test_a_worker_that_hangs_is_ended_by_the_time_limit(made_before, tmp_path):
    (tmp_path / "out").mkdir()
    settings = settings_of(sys.executable, "-c", "import time; time.sleep(60)", limit_s=0.3)
    with pytest.raises(NotProfiledError, match="TIMEOUT: not done within the time limit of a case, 300 ms"):
        profile_case(case_of("bsa@gather"), settings, tmp_path / "out", lambda _: None)


def test_operators_and_allocations_are_tables(profile, tmp_path):
    profile()
    with (tmp_path / "out/operators.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["phase"], r["kind"], r["name"], r["calls"]) for r in rows] == [
        ("attend", "kernel", "attention", "1"),
        ("select", "kernel", "scores", "1"),
    ]
    assert float(rows[0]["self_s"]) == pytest.approx(2.6e-3)
    with (tmp_path / "out/memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["phase"], r["change_bytes"], r["allocated_bytes"]) for r in rows] == [
        ("select", "4096", "4096"),
        ("attend", "8192", "12288"),
    ]


def test_a_folder_gets_its_name_when_all_is_there(tmp_path):
    final = tmp_path / "a/profile"
    with whole_folder(final) as part:
        (part / "file").write_text("x")
        assert not final.exists()
    assert (final / "file").read_text() == "x"
    assert list((tmp_path / "a").iterdir()) == [final]


@pytest.mark.parametrize("error", [KeyboardInterrupt, BenchError, SystemExit])
def test_a_folder_of_what_was_broken_off_is_removed(tmp_path, error):
    def break_off():
        with whole_folder(tmp_path / "profile") as part:
            (part / "file").write_text("x")
            raise error

    with pytest.raises(error):
        break_off()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_or_cannot_be_made_is_refused_before_anything_is_profiled(tmp_path):
    with pytest.raises(UsageError, match=r"--out: .* exists, expected a folder that is yet to be made"):
        check_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write in the results folder"):
        check_folder(tmp_path / "file/profile")


def test_the_default_folder_names_the_case_and_the_time(tmp_path):
    name = default_folder(tmp_path, case_of("bsa@gather"), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert name.parent == tmp_path / "profiles"
    assert name.name.startswith("bsa-gather-")
    assert name.name.endswith("-forward-20260102-030405")
