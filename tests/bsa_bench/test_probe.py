import os
import sys

import pytest
import third_party
from cli_factory import needs_no_gpu
from run_factory import case

from bsa_bench.catalog import implementations
from bsa_bench.child_process import PACKAGE
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.measure.process_start import ProcessStart
from bsa_bench.run.probe import Probe, probe, question_of


@pytest.fixture(autouse=True)
def python_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture(scope="module")
def found():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    asked = [(name, "float32", 32, backward) for name in implementations() for backward in (False, True)]
    try:
        return probe({"cpu": [*asked, asked[0]], "cuda": []}, device="cpu", threads=1)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.mark.slow
def test_every_implementation_has_an_answer_for_each_direction(found):
    assert {(q[0], q[3]) for q in found.reasons} == {(n, b) for n in implementations() for b in (False, True)}
    assert found.environment.device_kind == "cpu"
    assert found.environment.cpu["threads"] == 1


@pytest.mark.slow
def test_what_needs_no_gpu_runs_on_a_cpu(found):
    usable = {q[0] for q, reason in found.reasons.items() if reason is None and not q[3]}
    assert {"full@sdpa-math", "full@sdpa-flash", "full@gather", "bsa@gather"} <= usable
    trains = {q[0] for q, reason in found.reasons.items() if reason is None and q[3]}
    assert {"full@sdpa-flash", "bsa@gather"} <= trains


@pytest.mark.slow
def test_every_other_one_says_why_in_a_sentence_with_a_remedy(found):
    reasons = {q[0]: reason for q, reason in found.reasons.items() if reason is not None}
    assert {"full@sdpa-efficient", "full@sdpa-cudnn", "full@flash-attn", "full@xformers"} <= reasons.keys()
    for name, reason in reasons.items():
        assert len(reason) > 20, name
        assert reason.endswith("."), name
        assert any(word in reason for word in ("use ", "install", "run it", "set ", "Try ", "take ")), reason


@pytest.mark.slow
def test_the_environment_is_the_one_that_the_worker_was_started_with_whatever_it_was_asked(found):
    """Asking sets TRITON_INTERPRET, setting up OMP_NUM_THREADS and the cores, torch's compiler its cache folder."""
    here = ProcessStart.now()
    assert found.environment.variables == here.variables
    assert found.environment.cpu["usable_cores"] == here.usable_cores


def test_a_case_is_looked_up_by_what_its_engine_has_to_know():
    one = case("bsa@gather", passes="backward")
    question = question_of(one)
    assert question == ("bsa@gather", "float32", 32, True)
    assert Probe.unavailable(Probe(None, {question: "no."}), one) == "no."


@pytest.mark.slow
@needs_no_gpu
def test_asking_for_a_gpu_where_there_is_none_is_a_usage_error_with_the_remedy():
    with pytest.raises(UsageError, match="there is no CUDA device that torch can use here; use --device cpu"):
        probe({"cpu": [], "cuda": []}, device="cuda", threads=None)


@pytest.mark.slow
def test_an_engine_of_a_third_party_is_asked_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(third_party.install(tmp_path)))
    answers = probe({"cpu": [("full@exact", "float32", size, False) for size in (8, 16)]}, device="cpu", threads=1)
    assert answers.reasons == {
        ("full@exact", "float32", 8, False): "needs heads [of 16], not 8.",
        ("full@exact", "float32", 16, False): None,
    }


def scripted(code):
    return (sys.executable, "-S", "-c", code)


def test_a_probe_that_dies_ends_with_its_last_words():
    code = "import sys; [print(i, file=sys.stderr) for i in range(9)]; sys.exit('libcudart.so.13: not found')"
    with pytest.raises(StoreError) as caught:
        probe({}, device=None, threads=None, command=scripted(code))
    assert str(caught.value) == (
        "the probe of this machine failed with exit code 1:\n5\n6\n7\n8\nlibcudart.so.13: not found"
    )


@pytest.mark.slow
def test_a_probe_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr("bsa_bench.run.probe.PROBE_LIMIT_S", 0.5)
    with pytest.raises(StoreError, match=r"did not answer within 0.5 s"):
        probe({}, device=None, threads=None, command=scripted("import time; time.sleep(60)"))


def test_a_probe_that_answers_nothing_or_no_json_is_an_error_that_shows_it():
    for code in ("pass", "print('hello')"):
        with pytest.raises(StoreError, match="the probe of this machine gave no answer"):
            probe({}, device=None, threads=None, command=scripted(code))


@pytest.mark.slow
def test_what_a_library_prints_before_the_answer_does_no_harm(found):
    nothing = {name: [] for name in ("reasons", "troubles", "notes", "ceilings")}
    answer = {"package": str(PACKAGE), "environment": found.environment.model_dump(mode="json"), **nothing}
    code = f"import json; print('welcome to some library'); print(json.dumps({answer!r}))"
    assert probe({}, device=None, threads=None, command=scripted(code)).environment == found.environment
