import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import third_party
from cli_factory import TINY, command, needs_no_gpu
from profile_factory import CEILINGS, case_of
from report_factory import measured, write_run
from run_factory import environment

from bsa_bench import catalog
from bsa_bench.cli import main, profile_command
from bsa_bench.profiling.choose import choose_case
from bsa_bench.run.probe import Probe
from bsa_bench.suite import load_suite

RUN = ["profile", "--suite", "./tiny.toml", "--device", "cpu", "--threads", "1", "--calls", "2"]
FORWARD = ["permute", "select", "plan", "attend", "fill"]


def events_of(folder):
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


def durations(events, name):
    return [e["dur"] for e in events if e.get("cat") == "user_annotation" and e["name"] == f"bsa-bench: {name}"]


def undisturbed(where):
    """Profile into `bsa`, again where another job took the processor between two phases, at most three times."""
    for _ in range(3):
        shutil.rmtree(where / "bsa", ignore_errors=True)
        done = command(*RUN, "bsa@gather", "passes=forward+backward", "--out", "bsa", cwd=where)
        if done.returncode == 0:
            made = json.loads((where / "bsa/profile.json").read_text())
            if abs(made["phases_s"] / made["profiled_s"] - 1) < 0.04:
                break
    return done


@pytest.fixture(scope="module")
def profiles(tmp_path_factory):
    """Real profiles of a sparse and of a dense case on this CPU; tests only read them."""
    where = tmp_path_factory.mktemp("profiles")
    # So long that opening the ranges, some tens of microseconds, is little of a call.
    suite = TINY.replace('["forward"]', '["forward", "forward+backward"]').replace("[4, 8, 8]", "[8, 16, 16]")
    (where / "tiny.toml").write_text(suite)
    done = {
        "bsa": undisturbed(where),
        "dense": command(*RUN, "full@sdpa-flash", "passes=forward", "--json", cwd=where),
    }
    for each in done.values():
        assert each.returncode == 0, each.stderr
    return where, done


@needs_no_gpu
@pytest.mark.slow
def test_the_trace_has_a_range_of_each_phase_and_they_add_up_to_the_call(profiles):
    where, _ = profiles
    events = events_of(where / "bsa")
    calls = durations(events, "call")
    assert len(calls) == 2
    phases = [*FORWARD, "fill_backward", "attend_backward", "permute_backward"]
    by_phase = {name: durations(events, name) for name in phases}
    assert all(len(each) == 2 for each in by_phase.values())
    assert sum(map(sum, by_phase.values())) == pytest.approx(sum(calls), rel=0.05)
    made = json.loads((where / "bsa/profile.json").read_text())
    assert [phase["name"] for phase in made["phases"]] == phases
    assert made["phases_s"] == pytest.approx(made["profiled_s"], rel=0.05)
    assert sum(phase["share"] for phase in made["phases"]) == pytest.approx(1, rel=0.05)
    own = sum(o["self_s"] for o in made["operators"])
    assert own + made["host_share"] * made["profiled_s"] == pytest.approx(made["profiled_s"], rel=0.05)


@needs_no_gpu
@pytest.mark.slow
def test_the_summary_and_the_files_of_a_profile_are_there(profiles):
    where, done = profiles
    text = done["bsa"].stdout
    for words in ("Where the time goes", "Work against the ceilings", "Top operators", "Against the prediction"):
        assert words in text
    assert "GEMM float32" in text
    assert text.endswith("profile: bsa\n")
    assert "profile: tracing by torch.profiler" in done["bsa"].stderr
    there = {path.name for path in (where / "bsa").iterdir()}
    files = {"trace.json.gz", "operators.csv", "memory.csv", "memory.png", "memory.svg", "worker.log"}
    assert files | {"summary.md", "profile.json"} <= there
    assert (where / "bsa/summary.md").read_text().startswith("# Profile of bsa@gather/8x16x16/")
    assert (where / "bsa/memory.png").stat().st_size > 5000
    assert not {"findings.json", "memory-trace.json.gz"} & there


@needs_no_gpu
@pytest.mark.slow
def test_json_is_the_document_alone_and_dense_attention_is_one_phase(profiles):
    where, done = profiles
    made = json.loads(done["dense"].stdout)
    (attend,) = made["phases"]
    assert attend["name"] == "attend"
    assert attend["flop"] == 4 * 2048**2 * 32
    assert attend["profiled_s"] == pytest.approx(made["profiled_s"], rel=0.05)
    assert attend["floor_s"] > 0
    assert "_scaled_dot_product_flash_attention" in " ".join(o["name"] for o in made["operators"])
    assert made["peak_bytes"] > 0
    (folder,) = (where / "results/profiles").iterdir()
    assert done["dense"].stderr.endswith(f"profile: {folder.relative_to(where)}\n")
    assert folder.name.startswith("full-sdpa-flash-8x16x16")
    (call,) = {len(durations(events_of(folder), name)) for name in ("call", "attend")}
    assert call == 2


@needs_no_gpu
@pytest.mark.slow
def test_ctrl_c_leaves_nothing_under_the_results_folder_and_no_process(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "bsa_bench", *RUN, "bsa@gather"], stderr=subprocess.PIPE, text=True
    )
    profiles = folder / "results/profiles"
    deadline = time.monotonic() + 120
    while not list(profiles.glob(".*/worker.log")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "bsa-bench: interrupted" in err
    assert "Traceback" not in err
    assert not list(profiles.iterdir())
    workers = subprocess.run(["pgrep", "-f", f"profiling.worker.*{folder}"], check=False, capture_output=True)
    assert workers.stdout == b""


@pytest.fixture
def answered(monkeypatch):
    """The question what this machine is, answered without a process; `reasons` are those of implementations."""
    reasons = {}

    def probe(questions, **_):
        here = environment().model_copy(update={"cpu": {"threads": 1}})
        return Probe(here, {q: reasons.get(q[0]) for q in questions["cpu"]}, ceilings=CEILINGS)

    monkeypatch.setattr(profile_command, "probe", probe)
    return reasons


@pytest.mark.slow
def test_an_engine_that_raises_is_told_with_its_traceback_and_leaves_no_folder(folder, monkeypatch, answered, capsys):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(third_party.install(folder / "site")))
    monkeypatch.setattr(catalog, "entry_points", third_party.entry_points)
    (folder / "tiny.toml").write_text(TINY.replace("full@sdpa-flash", "full@crash"))
    monkeypatch.setattr(sys, "argv", ["bsa-bench", *RUN, "full@crash", "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 8
    err = capsys.readouterr().err
    assert "/forward is not profiled, CRASHED: RuntimeError: an illegal memory access was encountered" in err
    assert err.count("Traceback") == 1
    assert "in stage attend" in err
    assert sorted(p.name for p in folder.iterdir()) == ["site", "tiny.toml"]


def test_an_engine_that_cannot_run_here_is_told_with_the_reason(bench, folder, answered):
    answered["bsa@gather"] = "it needs a GPU."
    code, out, err = bench(*RUN, "bsa@gather", "--out", "out")
    assert (code, out) == (4, "")
    assert "is not profiled, UNSUPPORTED: it needs a GPU." in err
    assert not (folder / "out").exists()


def test_a_case_that_does_not_fit_is_not_started(bench, folder, answered):
    (folder / "tiny.toml").write_text(TINY.replace("sdpa-flash", "sdpa-math").replace("[4, 8, 8]", "[512, 512, 512]"))
    code, _, err = bench(*RUN, "full@sdpa-math", "--out", "out")
    assert code == 4
    assert "is not profiled, SKIPPED_OOM: predicted to need" in err


@needs_no_gpu
@pytest.mark.slow
def test_times_of_the_interpreter_are_not_profiled(bench, folder, answered):
    (folder / "tiny.toml").write_text(TINY.replace("full@sdpa-flash", "bsa@triton"))
    code, out, err = bench(*RUN, "bsa@triton")
    assert (code, out) == (4, "")
    assert "is not profiled, VERIFIED_ONLY: " in err
    assert not list((folder / "results/profiles").iterdir())


@pytest.mark.slow
def test_the_command_loads_neither_torch_nor_what_plots():
    heavy = "{'torch', 'triton', 'matplotlib', 'pandas'}"
    code = f"import sys, bsa_bench.cli.profile_command; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                          check=False, capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_case_id_is_refused_with_the_likely_one(bench, folder):
    code, _, err = bench(*RUN, "bsa@gater")
    assert code == 2
    assert "case 'bsa@gater': suite ./tiny.toml on cpu has none of this id or implementation" in err
    assert "did you mean 'bsa@gather'?" in err
    assert not (folder / "results").exists()


def test_an_implementation_of_several_cases_lists_them(bench, folder):
    code, _, err = bench(*RUN, "bsa@gather", "kv_density=0.2,0.4")
    assert code == 2
    assert "suite ./tiny.toml on cpu has 2 of these, expected one; give an id, or overrides such as" in err
    assert err.count("\n  bsa@gather/4x8x8/") == 2


def test_a_case_is_chosen_by_its_id_or_by_a_part_before_a_slash(folder):
    cases = load_suite("./tiny.toml", device_kind="cpu").cases()
    dense, sparse, _ = cases
    for asked in (sparse.case_id, "bsa@gather", "bsa@gather/", sparse.case_id.rpartition("/")[0]):
        assert choose_case(asked, cases, where="here") == sparse
    assert choose_case("full@sdpa-flash", cases, where="here") == dense


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bsa@gather", "--out", "."], 2, "--out: . exists, expected a folder that is yet to be made"),
        (["bsa@gather", "--out", "tiny.toml/x"], 5, "cannot write in the results folder"),
        (["bsa@gather", "--run", "latest"], 2, "leave --suite and the overrides out"),
        (["bsa@gather", "--time-limit", "soon"], 2, "duration: got 'soon'"),
        (["bsa@gather", "kv_densit=0.1"], 2, "kv_densit"),
        (["bsa@gather", "--calls", "0"], 2, "--calls"),
        ([], 2, "Missing argument 'CASE'"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_anything_runs(bench, folder, arguments, code, words):
    ended, out, err = bench(*RUN, *arguments)
    assert (ended, out) == (code, "")
    assert words in err
    assert not (folder / "results").exists()


def test_a_run_that_is_not_there_is_named(bench, folder):
    code, _, err = bench("profile", "bsa@gather", "--run", "r")
    assert code == 2
    assert "run 'r': not found under results" in err


def test_a_case_of_a_stored_run_is_profiled_as_it_was_measured(bench, folder, answered):
    case = case_of("full@sdpa-flash")
    write_run(folder / "results/r", [measured(case)])
    answered[case.implementation] = "not today."
    code, _, err = bench("profile", "full@sdpa-flash", "--run", "r")
    assert code == 4
    assert f"{case.case_id} is not profiled, UNSUPPORTED: not today." in err
    code, _, err = bench("profile", "full@sdpa-math", "--run", "latest")
    assert code == 2
    assert "run r has none of this id or implementation; did you mean 'full@sdpa-flash'?" in err
