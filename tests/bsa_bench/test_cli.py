import json
import os
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from cli_factory import TINY, needs_no_gpu
from run_factory import DEVICE
from safetensors.numpy import save_file

import bsa_bench
from bsa_bench.cli import commands
from bsa_bench.errors import EXIT_CODES, StoreError
from bsa_bench.result import Status
from bsa_bench.run import DeviceModel
from bsa_bench.run.probe import probe
from bsa_bench.store import read_run

HEAVY = {"torch", "triton", "pandas", "matplotlib", "av", "numpy", "rich"}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["import", "--help"], ["--version"], ["list"]])
def test_help_and_lists_are_instant_and_load_nothing_heavy(arguments, folder):
    allowed = {"numpy", "rich"} if arguments == ["list"] else set()
    code = f"""
import sys, time
start = time.process_time()
from bsa_bench.cli import main
sys.argv = ["bsa-bench", *{arguments!r}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
sys.exit(" ".join(sorted({HEAVY - allowed!r} & set(sys.modules))) or int(time.process_time() - start > 1.0))
"""
    for attempt in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or (not done.stderr and attempt < 2), done.stderr
        if done.returncode == 0:
            break
    assert done.stdout


def test_help_documents_every_exit_code(bench):
    code, out, _ = bench("--help")
    assert code == 0
    for number in EXIT_CODES:
        assert f"\n  {number}: " in out


def test_the_version_is_that_of_the_package(bench):
    assert bench("--version") == (0, f"bsa-bench {bsa_bench.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing option '--suite'"),
        (["run", "--suite", "quick", "--colour"], "No such option: --colour"),
        (["run", "--suite", "quick", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["run", "--suite", "quick", "--threads", "0"], "--threads"),
        (["run", "--suite", "quick", "--processes", "0"], "--processes"),
        (["run", "--suite", "quick", "--seed", "-1"], "--seed"),
        (["run", "--suite", "quick", "processes=two"], "override: processes: got 'two'"),
        (["export", "--to", "xlsx"], "'xlsx' is not one of 'csv', 'parquet'"),
        (["list", "everything"], "'everything' is not one of"),
        (["measure"], "No such command 'measure'"),
        (["run", "--suite", "quik"], "suite: got 'quik', expected one of frames, "),
        (["run", "--suite", "gone.toml"], "suite: no file at gone.toml"),
        (["run", "--suite", "quick", "tokns=64"], "unknown key 'tokns'"),
        (["run", "--suite", "quick", "tokens=many"], "tokens"),
        (["run", "--suite", "quick", "tokens"], "expected key=value such as tokens=4096,16384"),
        (["run", "--suite", "quick", "implementation=bsa@gathr"], "did you mean 'bsa@gather'?"),
        (["run", "--suite", "quick", "implementation=bsa@sdpa-flash"], "bsa needs an engine that offers blocks"),
        (["run", "--suite", "quick", "--budget", "soon"], "expected a time above zero such as 90s, 9m or 1h30m"),
        (["run", "--suite", "quick", "--time-limit", "0"], "expected a time above zero"),
        (["report", "yesterday"], "run 'yesterday': not found under results nor as a path; there are: none"),
        (["export"], "there is no run in results; make one with: bsa-bench run --suite quick"),
    ],
)
def test_what_is_asked_wrongly_ends_with_2_and_says_what_there_is(arguments, message, bench, folder):
    code, out, err = bench(*arguments)
    assert code == 2
    assert message in " ".join(err.split())
    assert out == ""
    assert not Path("results").exists()


def test_a_typo_in_a_suite_names_the_file_the_key_and_the_nearest_one(bench, folder):
    Path("tiny.toml").write_text(TINY.replace("kv_density", "kv_densty"))
    code, _, err = bench("run", "--suite", "tiny.toml")
    assert code == 2
    assert err.startswith("bsa-bench: tiny.toml: bsa.kv_densty: ")
    assert "kv_density" in err


def test_captured_tensors_that_are_not_finite_end_a_run_once_before_any_worker(bench, folder, scripted):
    tensors = {name: np.zeros((1, 1, 256, 32), np.float32) for name in "qkv"}
    tensors["q"][0, 0, 3, 3] = np.nan
    save_file(tensors, "x.safetensors")
    Path("tiny.toml").write_text(TINY.replace('kind = "gaussian"', 'kind = "captured"\npath = "x.safetensors"'))
    there = scripted()
    code, out, err = bench("run", "--suite", "tiny.toml", "--run-id", "r")
    assert (code, out, there.pids) == (2, "", [])
    assert err.startswith("bsa-bench: suite tiny: captured ")
    assert "x.safetensors: q has values that are not finite in float32" in err
    assert err.count("\n") == 1
    assert not Path("results/r").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actions", "code"),
    [
        ({}, 0),
        ({"bsa@gather": Status.WRONG}, 3),
        ({"bsa@gather": Status.OOM}, 8),
        ({"bsa@gather": "raise:boom", "full@sdpa-flash": Status.WRONG}, 3),
        ({"bsa@gather": "signal:SIGSEGV"}, 8),
        ({"full@sdpa-flash": "raise:a", "bsa@gather": "raise:b", "full@sdpa-cudnn": "raise:c"}, 4),
    ],
    ids=str,
)
def test_a_run_ends_with_the_code_of_the_worst_that_happened_and_loses_nothing(actions, code, bench, scripted):
    scripted(actions)
    found, out, _ = bench("run", "--suite", "tiny.toml", "--run-id", "r")
    assert found == code
    assert len(read_run("results/r").results) == 3
    assert Path("reports/r/report.md").is_file()
    assert out.endswith("results: results/r\nreport: reports/r/report.md\nreport: reports/r/report.html\n")


def test_nothing_that_can_run_here_ends_with_4_and_the_reasons(bench, scripted):
    names = ("full@sdpa-flash", "bsa@gather", "full@sdpa-cudnn")
    scripted(unavailable=dict.fromkeys(names, "needs a [GPU]; buy one."))
    code, out, err = bench("run", "--suite", "tiny.toml", "--run-id", "r")
    assert code == 4
    assert "needs a [GPU]; buy one" in out
    assert "needs a [GPU]; buy one." in err
    assert {r.status for r in read_run("results/r").results} == {Status.UNSUPPORTED}


@pytest.mark.slow
def test_a_reason_with_brackets_is_shown_as_it_is_on_a_terminal_too(bench, scripted):
    from rich.console import Console

    from bsa_bench.report import print_table

    scripted(unavailable={"full@sdpa-cudnn": "needs a [GPU], [red]or two[/red] [/]."})
    bench("run", "--suite", "tiny.toml", "--run-id", "r", "--no-report")
    console = Console(force_terminal=True, width=300, file=StringIO())
    print_table(read_run("results/r"), console)
    assert "needs a [GPU], [red]or two[/red] [/]" in console.file.getvalue()


@pytest.mark.slow
def test_a_case_too_big_for_this_machine_is_skipped_with_its_need_and_the_rest_is_measured(
    bench, scripted, monkeypatch
):
    scripted()
    small = DeviceModel("cpu", 1e12, 1e11, memory_bytes=300_000, start_s=0.0)
    monkeypatch.setattr(DeviceModel, "of", lambda *_, **__: small)
    code, out, _ = bench("run", "--suite", "tiny.toml", "--run-id", "r")
    assert code == 0
    by_status = {r.case.implementation: r for r in read_run("results/r").results}
    skipped = by_status["bsa@gather"]
    assert skipped.status is Status.SKIPPED_OOM
    assert skipped.reason.startswith("predicted to need 456 KiB, 293 KiB can be used; take fewer tokens or heads")
    assert skipped.memory.predicted_bytes > 300_000
    assert by_status["full@sdpa-flash"].status is Status.OK
    assert "predicted to need 456 KiB" in out


@pytest.mark.slow
def test_results_that_cannot_be_written_end_with_5_before_anything_runs(bench, folder):
    Path("file").write_text("")
    code, out, err = bench("run", "--suite", "tiny.toml", "--results", "file/results")
    assert code == 5
    assert out == ""
    assert err.startswith("bsa-bench: file")
    assert "choose another results folder" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (None, "file/reports/r: the report cannot be written: Not a directory"),
        (RuntimeError("a defect\nof two lines"), "RuntimeError: a defect of two lines"),
        (StoreError("matplotlib does not load"), "matplotlib does not load"),
    ],
    ids=str,
)
def test_a_report_that_fails_is_one_line_after_the_table_and_a_code_of_its_own(
    trouble, said, bench, scripted, monkeypatch
):
    def fail(*_, **__):
        raise trouble

    scripted()
    Path("file").write_text("")
    with monkeypatch.context() as patch:
        if trouble:
            patch.setattr("bsa_bench.report.build.write_reports", fail)
        code, out, err = bench("run", "--suite", "tiny.toml", "--run-id", "r", "--reports", "file/reports")
    assert code == 9
    assert out.endswith("results: results/r\n")
    assert "bsa@gather" in out
    (line,) = (line for line in err.splitlines() if line.startswith("bsa-bench:"))
    assert line.startswith(f"bsa-bench: the report failed: {said}; the results are kept, `bsa-bench report results/r`")
    assert len(read_run("results/r").results) == 3
    assert bench("report", "r", "--out", "elsewhere")[0] == 0
    assert Path("elsewhere/report.md").is_file()


@pytest.mark.slow
def test_json_of_a_run_says_that_the_report_failed_and_a_wrong_result_outranks_it(bench, scripted):
    scripted({"bsa@gather": Status.WRONG})
    Path("file").write_text("")
    code, out, _ = bench("run", "--suite", "tiny.toml", "--run-id", "r", "--reports", "file/reports", "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 3
    assert (document["report"], document["report_html"]) == (None, None)
    assert document["report_error"].startswith("file/reports/r: the report cannot be written")


@pytest.mark.slow
def test_a_run_name_that_is_taken_or_no_name_is_refused(bench, scripted):
    scripted()
    assert bench("run", "--suite", "tiny.toml", "--run-id", "r", "--no-report")[0] == 0
    code, _, err = bench("run", "--suite", "tiny.toml", "--run-id", "r")
    assert code == 2
    assert "--resume" in err
    assert bench("run", "--suite", "tiny.toml", "--run-id", "../up")[0] == 2
    assert bench("run", "--suite", "tiny.toml", "--run-id", "other", "--resume")[0] == 2


def test_resume_without_a_run_of_the_suite_says_so(bench, scripted):
    scripted()
    code, _, err = bench("run", "--suite", "tiny.toml", "--resume")
    assert code == 2
    assert "--resume: there is no run of suite tiny in results; start without it" in err


@pytest.mark.slow
def test_a_budget_that_is_spent_lists_what_is_left_and_how_to_go_on(bench, scripted):
    scripted({"full@sdpa-flash": "hang"}, device=DEVICE)
    code, out, _ = bench("run", "--suite", "tiny.toml", "--run-id", "r", "--budget", "4", "--no-report")
    assert code == 4
    assert "the budget is spent; what was measured is stored, 3 cases are left:" in out
    resume = "go on with: bsa-bench run --suite tiny.toml --run-id r --budget 4 --no-report --resume"
    assert resume in out
    scripted()
    assert bench("run", "--suite", "tiny.toml", "--run-id", "r", "--resume", "--no-report")[0] == 0


def test_a_budget_in_which_no_pair_fits_is_refused_with_the_smallest_useful_one_and_nothing_is_run(bench, scripted):
    scripted()
    code, out, err = bench("run", "--suite", "tiny.toml", "--run-id", "r", "--budget", "2")
    assert (code, out) == (2, "")
    named = re.search(r"budget: got 2.00 s, expected at least about (\d+)s here: start and report take ", err)
    assert named
    assert "the cheapest comparison of suite tiny another" in err
    assert not Path("results/r").exists()
    code, _, _ = bench("run", "--suite", "tiny.toml", "--run-id", "r", "--budget", f"{named[1]}s", "--no-report")
    assert code == 0
    measured = {r.case.implementation for r in read_run("results/r").results if r.status is Status.OK}
    assert {"full@sdpa-flash", "bsa@gather"} <= measured


def test_a_dry_run_leaves_out_what_a_run_to_resume_has_and_what_a_budget_has_no_room_for(bench, scripted):
    scripted(unavailable={"full@sdpa-cudnn": "needs a GPU."})
    assert bench("run", "--suite", "tiny.toml", "--run-id", "r", "--no-report")[0] == 0
    again = ("run", "--suite", "tiny.toml", "--dry-run")
    code, out, _ = bench(*again, "--resume")
    assert code == 0
    assert (
        "no: it is done: OK: full@sdpa-flash (forward) at 256 tokens; bsa@gather (forward) at 256 tokens"
        in " ".join(out.split())
    )
    assert out.splitlines()[-1].startswith("0 of 3 cases would run, about 0 ")
    assert bench(*again, "--resume", "--processes", "3")[1].splitlines()[-1].startswith("2 of 3 cases would run in 3 ")
    out = bench(*again, "--budget", "9", "tokens=256,512")[1]
    assert "no: it does not fit in the budget of 9.00 s: full@sdpa-flash (forward) at 512 tokens; bsa@gather" in (
        " ".join(out.split())
    )
    assert out.splitlines()[-1].startswith("2 of 6 cases would run, as far as they fit in 9.00 s, about ")
    assert bench(*again, "--resume", "--run-id", "none")[0] == 2


@pytest.mark.slow
def test_json_of_a_run_is_one_document_and_progress_goes_to_stderr(bench, scripted):
    scripted({"bsa@gather": Status.WRONG})
    code, out, err = bench("run", "--suite", "tiny.toml", "--run-id", "r", "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 3
    assert document["counts"] == {"OK": 2, "WRONG": 1}
    assert document["report"] == "reports/r/report.md"
    assert document["report_html"] == "reports/r/report.html"
    assert document["remaining"] == []
    assert "[3/3]" in err


@pytest.mark.slow
def test_a_dry_run_lists_the_cases_and_touches_nothing(bench, scripted, folder):
    scripted(unavailable={"full@sdpa-cudnn": "needs a GPU."})
    before = sorted(folder.iterdir())
    code, out, _ = bench("run", "--suite", "tiny.toml", "--dry-run", "tokens=256,512")
    assert code == 0
    assert sorted(folder.iterdir()) == before
    lines = out.splitlines()
    workload, dense, sparse = lines[:3]
    assert workload == "4x8x8 = 256 tokens, 1x32 float32, gaussian"
    assert re.fullmatch(r"  full@sdpa-flash +forward +\S+ MFLOP +\S+ KiB +\S+ m?s", dense)
    assert sparse.startswith("  bsa@gather ")
    assert lines[-1].startswith("4 of 6 cases would run, about ")
    assert lines[-1].endswith("(predicted, not measured)")
    assert "no: needs a GPU: full@sdpa-cudnn (forward) at 256 and 512 tokens" in " ".join(out.split())
    assert max(map(len, lines)) <= 80
    document = json.loads(bench("run", "--suite", "tiny.toml", "--dry-run", "--json")[1])
    assert [case["runs"] for case in document["cases"]] == [True, True, False]
    assert document["seconds"] > 0


@pytest.mark.slow
def test_a_dry_run_of_several_processes_predicts_all_of_them(bench, scripted):
    scripted()
    once = json.loads(bench("run", "--suite", "tiny.toml", "--dry-run", "--json")[1])
    thrice = json.loads(bench("run", "--suite", "tiny.toml", "--dry-run", "--json", "--processes", "3")[1])
    assert (once["num_processes"], thrice["num_processes"]) == (1, 3)
    assert thrice["seconds"] == pytest.approx(3 * once["seconds"])
    out = bench("run", "--suite", "tiny.toml", "--dry-run", "--processes", "3")[1]
    assert "3 of 3 cases would run in 3 processes each, about " in out


@pytest.mark.parametrize(
    ("arguments", "line", "number"),
    [
        ([], "", 1),
        (["--profile", "report"], "", 5),
        (["--profile", "report"], "processes = 2", 2),
        (["processes=3"], "processes = 2", 3),
        (["--processes", "4", "processes=3"], "processes = 2", 4),
    ],
)
def test_the_flag_stands_above_the_suite_and_the_suite_above_the_profile(arguments, line, number, bench, scripted):
    Path("tiny.toml").write_text(f"{line}\n{TINY}")
    scripted()
    document = json.loads(bench("run", "--suite", "tiny.toml", "--dry-run", "--json", *arguments)[1])
    assert document["num_processes"] == number


@pytest.mark.slow
def test_a_run_of_several_processes_is_stored_printed_and_counted_as_cases(bench, scripted):
    scripted({"bsa@gather": Status.WRONG})
    code, out, err = bench("run", "--suite", "tiny.toml", "--run-id", "r", "--processes", "2", "--seed", "9", "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 3
    assert document["counts"] == {"OK": 2, "WRONG": 1}
    assert document["num_processes"] == 2
    assert "[5/5]" in err
    run = read_run("results/r")
    assert (run.run_lines[0].num_processes, run.run_lines[0].seed) == (2, 9)
    assert sorted(r.process_index for r in run.results) == [0, 0, 0, 1, 1]
    assert "to be measured in 2 processes each" in Path("reports/r/report.md").read_text()


@pytest.mark.slow
@needs_no_gpu
def test_asking_for_a_gpu_where_there_is_none_ends_with_2(bench, folder):
    code, _, err = bench("run", "--suite", "tiny.toml", "--device", "cuda")
    assert code == 2
    assert err == "bsa-bench: there is no CUDA device that torch can use here; use --device cpu\n"


def test_a_missing_video_ends_with_2_and_nothing_is_written(bench, scripted):
    scripted()
    code, _, err = bench("run", "--suite", "tiny.toml", "--video", "holiday.mp4")
    assert code == 2
    assert "suite tiny: " in err
    assert "holiday.mp4" in err
    assert not list(Path("results").glob("*"))


@pytest.mark.slow
def test_a_comma_or_a_quote_in_a_videos_name_is_part_of_it(bench, scripted):
    scripted()
    for name in ("a,b.mp4", 'the "best" one.mp4'):
        code, _, err = bench("run", "--suite", "tiny.toml", "--video", name)
        assert code == 2
        assert err.endswith(f"no such file: {Path(name).absolute()}\n")


@pytest.mark.slow
def test_latest_is_the_run_written_last_and_passes_over_one_that_never_began(bench, scripted):
    scripted()
    for name in ("one", "two"):
        bench("run", "--suite", "tiny.toml", "--run-id", name, "--no-report")
    (Path("results") / "dead").mkdir()
    (Path("results") / "dead" / "results.jsonl").touch()
    os.utime("results/one/results.jsonl")
    assert bench("export")[1] == "one.csv\n"
    code, _, err = bench("export", "three")
    assert code == 2
    assert "there are: dead, one, two" in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r", "results/r", "results/r/results.jsonl"])
def test_a_run_goes_by_its_name_its_folder_or_its_file(name, bench, scripted):
    scripted()
    bench("run", "--suite", "tiny.toml", "--run-id", "r", "--no-report")
    assert bench("export", name)[1] == "r.csv\n"


@pytest.mark.slow
def test_the_results_folder_comes_from_the_environment_too(bench, scripted, monkeypatch, tmp_path):
    scripted()
    monkeypatch.setenv("BSA_BENCH_RESULTS", str(tmp_path / "there"))
    assert bench("run", "--suite", "tiny.toml", "--run-id", "r", "--no-report")[0] == 0
    assert (tmp_path / "there" / "r" / "results.jsonl").is_file()


def test_the_report_of_a_run_that_was_interrupted_says_so_and_lists_what_is_left(bench, scripted):
    scripted({"full@sdpa-flash": "hang"}, device=DEVICE)
    bench("run", "--suite", "tiny.toml", "--run-id", "r", "--budget", "4", "--no-report")
    assert bench("report", "r") == (0, "report: reports/r/report.md\nreport: reports/r/report.html\n", "")
    text = Path("reports/r/report.md").read_text()
    assert "**Unfinished**, cases left: 3 of 3; --resume goes on." in text


@pytest.fixture(scope="module")
def answered():
    """What `doctor` asked of this machine, and the answers: each comes from a process that loads torch."""
    return {}


@pytest.fixture
def asked_once(answered, monkeypatch):
    """Have `doctor` ask this machine once; the same questions have the same answer."""

    def ask(questions, **more):
        key = json.dumps([questions, more], sort_keys=True)
        if key not in answered:
            answered[key] = probe(questions, **more)
        return answered[key]

    monkeypatch.setattr(commands, "probe", ask)


@pytest.mark.slow
@needs_no_gpu
@pytest.mark.usefixtures("asked_once")
def test_doctor_says_what_runs_and_for_the_rest_what_to_do(bench, folder):
    code, out, _ = bench("doctor")
    assert code == 0
    assert "\n  yes  bsa@gather\n" in out
    assert "\n  no   full@sdpa-cudnn        torch has its cuDNN SDPA backend on NVIDIA GPUs only" in out
    assert "\n  yes  results folder\n" in out
    assert not Path("results").exists()


@pytest.mark.slow
@needs_no_gpu
@pytest.mark.usefixtures("asked_once")
def test_doctor_as_json_is_one_document(bench, folder):
    code, out, _ = bench("doctor", "--json", "--results", "tiny.toml")
    document = json.loads(out)
    assert code == 0
    assert document["environment"]["device_kind"] == "cpu"
    assert document["checks"]["results folder"].startswith("tiny.toml")
    answers = {(a["implementation"], a["backward"]): a["reason"] for a in document["implementations"]}
    assert answers["bsa@gather", True] is None
    assert answers["full@xformers", False]


@pytest.mark.slow
def test_list_names_every_suite_implementation_and_model(bench, folder):
    code, out, _ = bench("list")
    assert code == 0
    for word in ("quick", "paper", "bsa@gather", "full@sdpa-flash", "wan2.1-14b", "40 heads x 128"):
        assert word in out
    assert bench("list", "models")[1].splitlines()[0].startswith("model  wan2.1-1.3b")
    document = json.loads(bench("list", "--json")[1])
    assert document.keys() == {"suites", "implementations", "forms", "models"}
    assert all(suite["cpu_cases"] > 0 for suite in document["suites"])
    assert json.loads(bench("list", "suites", "--json")[1]).keys() == {"suites"}


@pytest.mark.slow
def test_a_closed_pipe_and_an_interrupt_end_quietly(folder):
    start = [sys.executable, "-m", "bsa_bench"]
    process = subprocess.Popen([*start, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()
    process = subprocess.Popen(
        [*start, "doctor"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    time.sleep(0.8)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"")
