import ast
import shutil
import textwrap

import pytest
from compile_cache import cache_folder
from git_factory import Repository
from jitted_factory import BROKEN, COMMENTED, HOST, RENAMED, SLOWER, TOY, UNSEEN, write_revision
from pair_factory import Workers, some_cases
from run_factory import case, environment

from bsa_bench.catalog import make_case
from bsa_bench.errors import UsageError
from bsa_bench.gate import bisect
from bsa_bench.gate.bisect import BAD, GOOD, State, find_slower_revision, judge_here
from bsa_bench.gate.machine_code import Target, host_digest, runs_jitted, same_machine_code, target_of
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.run.jitted import jitted_code, jitted_functions
from bsa_bench.run.sources import jitted_sources, sources_digest
from bsa_bench.workload import Workload

CASE = some_cases(64)["64"]


@pytest.mark.parametrize(
    ("text", "is_jitted"),
    [
        ("import triton\n@triton.jit\ndef f(x): x", True),
        ("import triton\n@triton.jit(do_not_specialize=['x'])\ndef f(x): x", True),
        ("import triton\n@triton.autotune([], key=[])\n@triton.jit\ndef f(x): x", True),
        ("import triton as t\n@t.jit\ndef f(x): x", True),
        ("from triton import jit as compiled\n@compiled\ndef f(x): x", True),
        ("from triton.experimental import gluon\n@gluon.jit\ndef f(x): x", True),
        ("import triton.experimental.gluon\n@triton.experimental.gluon.jit\ndef f(x): x", True),
        ("import torch\n@torch.jit.script\ndef f(x): x", False),
        ("from numba import jit\n@jit\ndef f(x): x", False),
        ("from .triton import jit\n@jit\ndef f(x): x", False),
        ("import triton\n@triton.heuristics({})\ndef f(x): x", False),
        ("import triton\n@(lambda f: f)\ndef f(x): x", False),
        ("@triton.jit\ndef f(x): x", False),
        ("import triton\ntriton = fake\n@triton.jit\ndef f(x): x", False),
        ("from triton import jit\ndef jit(f): return f\n@jit\ndef f(x): x", False),
    ],
)
def test_what_triton_compiles_is_known_by_what_the_decorator_was_imported_as(text, is_jitted):
    assert [function.name for function in jitted_functions(ast.parse(text))] == ["f"] * is_jitted


def test_what_a_jitted_function_uses_is_found_in_its_module_or_where_that_imports_it_from():
    text = """
        import triton
        from package.common import load as load_rows, store

        @triton.jit
        def helper(store):
            store(1)

        @triton.jit
        def kernel(x, combine):
            combine(load_rows(x), helper)
    """
    found = jitted_code(ast.parse(textwrap.dedent(text)), "package.kernels")
    assert found["helper"].uses == frozenset()  # its own argument
    assert found["kernel"].uses == {("package.common", "load"), ("package.kernels", "helper")}


def test_the_digest_of_host_code_has_all_but_the_bodies_of_jitted_functions(tmp_path):
    def host(name, toy, **files):
        return host_digest(write_revision(tmp_path / name, toy, **files))

    start = host("start", TOY)
    for name, toy in {"renamed": RENAMED, "slower": SLOWER, "commented": COMMENTED}.items():
        assert host(name, toy) == start
    for name, toy in {
        "constant": HOST,
        "signature": TOY.replace("scaled(value):", "scaled(value, more=1):"),
        "decorator": TOY.replace("@triton.jit\ndef scale(", "@triton.jit(debug=True)\ndef scale("),
        "launch": TOY.replace("(1,)", "(2,)"),
    }.items():
        assert host(name, toy) != start
    assert host("table", TOY, tiles__toml="rows = 64\n") != start
    package = tmp_path / "start" / "kernels" / "bsa_kernels"
    assert sources_digest(package) != sources_digest(tmp_path / "renamed" / "kernels" / "bsa_kernels")
    assert list(jitted_sources(package)) == [("bsa_kernels.toy", name) for name in ("scaled", "scale", "uncompiled")]


def test_a_case_runs_jitted_functions_unless_its_engine_is_known_not_to():
    assert not runs_jitted(case("bsa@gather"), "cpu")
    assert not runs_jitted(case("full@sdpa-flash"), "cpu")
    assert runs_jitted(case("bsa@gather"), "cuda")
    for implementation in ("bsa@triton", "bsa@triton:quad", "bsa@gluon"):
        assert runs_jitted(case(implementation), "cpu")
    assert runs_jitted(case("bsa@gather").model_copy(update={"implementation": "bsa@theirs"}), "cpu")


def test_shipped_configurations_tell_of_a_case_only_if_it_runs_no_others(tmp_path):
    def target(implementation="bsa@triton", capability="9.0", grid=(8, 16, 16), head_dim=64, **fields):
        options = BsaOptions(**fields) if implementation.startswith("bsa") else {}
        workload = Workload(model="cpu-2x64", grid=grid, heads=2, head_dim=head_dim, dtype="bfloat16")
        made = make_case(suite="s", workload=workload, implementation=implementation, passes="forward", options=options)
        about = environment().model_copy(update={"device_details": {"compute_capability": capability}})
        return target_of(made, about, tmp_path)

    expected = Target(arch="sm_90", dtype="bf16", tokens=2048, heads=2, cache=tmp_path)
    assert target() == target("bsa@gluon", kv_density=0.3) == expected
    assert target(capability="10.0").arch == "sm_100"
    assert target(capability="8.0").arch == "sm_80"
    for other in (
        target("bsa@triton:quad"),
        target("bsa@triton-tiled"),
        target("bsa@gather"),
        target("vsa@triton"),
        target(capability="8.6"),
        target(capability=None),
        target(grid=(8, 16, 15)),
        target(head_dim=32),
        target(block=(2, 4, 4)),
        target(query_keep=1.0),
        target(fill="zero"),
    ):
        assert other is None


@pytest.fixture
def target():
    pytest.importorskip("triton")
    return Target(arch="sm_90", dtype="fp32", tokens=64, heads=1, cache=cache_folder())


@pytest.mark.slow
def test_a_renamed_local_is_the_same_machine_code_and_another_function_is_not(tmp_path, target):
    def is_same(toy, base=TOY, **files):
        sides = [write_revision(tmp_path / name, text, **files) for name, text in (("base", base), ("head", toy))]
        return same_machine_code(*sides, target)

    assert is_same(TOY)
    assert is_same(COMMENTED)
    assert is_same(RENAMED)
    assert not is_same(SLOWER)
    assert not is_same(UNSEEN)  # no configuration has that function, so that nothing was compared
    assert not is_same(BROKEN, BROKEN)  # what does not compile is like nothing
    two = TOY + "\n\n@triton.jit\ndef other(x_ptr):\n    tl.store(x_ptr, uncompiled(x_ptr))\n"
    assert not is_same(two.replace("tl.store(x_ptr, 1)", "tl.store(x_ptr, 2)"), two)
    shutil.rmtree(tmp_path / "base")
    assert not is_same(RENAMED, configurations__py="")  # a revision that declares none


@pytest.fixture
def workers(tmp_path):
    return Workers(tmp_path, call_s=0.3, noise=0.003)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repository")
    monkeypatch.chdir(made.folder)
    write_revision(made.folder)
    made.commit("start", SPEED="1")
    yield made
    assert made.leftovers == []


@pytest.fixture
def judge(tmp_path, repository, workers):
    """Judge what is checked out; returns the exit code, the step, and whether a worker was asked for it."""
    good = write_revision(tmp_path / "good", SPEED="1")
    bad = write_revision(tmp_path / "bad", HOST, SPEED="2")
    state = State(
        case=CASE,
        good_kernels=str(good / "kernels"),
        bad_kernels=str(bad / "kernels"),
        runs_jitted=True,
        target=None,
        device="cpu",
        threads=1,
        limit=0.1,
        logs=str(tmp_path / "logs"),
        worker_command=workers.command,
    )
    place = tmp_path / "state.json"

    def judge(**fields):
        steps = State.model_validate_json(place.read_text()).steps if place.exists() else ()
        place.write_text(state.model_copy(update={"steps": steps, **fields}).model_dump_json())
        num_asked = len(workers.asked)
        code = judge_here(place)
        return code, State.model_validate_json(place.read_text()).steps[-1], len(workers.asked) > num_asked

    return judge


@pytest.mark.slow
def test_a_step_measures_no_revision_of_the_same_machine_code(judge, repository, target, tmp_path):
    repository.commit("a comment", toy__py=COMMENTED)
    code, step, was_measured = judge(target=target)
    assert (code, step.reason, was_measured) == (GOOD, "its sources are those of the good one", False)
    repository.commit("a renamed local", toy__py=RENAMED)
    code, step, was_measured = judge(target=target)
    assert (code, step.reason, was_measured) == (GOOD, "the same machine code as the good one", False)
    other = repository.commit("other instructions", toy__py=SLOWER, SPEED="1.5")
    code, step, was_measured = judge(target=target)
    assert (code, step.reason, was_measured) == (BAD, None, True)
    repository.commit("other instructions, a renamed local", toy__py=SLOWER.replace("product", "result"))
    code, again, was_measured = judge(target=target)
    assert (code, again.reason, was_measured) == (BAD, f"the same machine code as {other[:12]}", False)
    assert again.ratio == step.ratio == pytest.approx(1.5, abs=0.02)
    repository.commit("the host", toy__py=HOST, SPEED="1")
    code, step, was_measured = judge(target=target)
    assert (code, step.reason, was_measured) == (GOOD, None, True)


@pytest.mark.slow
def test_a_step_compiles_nothing_where_the_case_runs_no_jitted_function_or_it_would_tell_nothing(
    judge, repository, monkeypatch
):
    monkeypatch.setattr(bisect, "same_machine_code", lambda *_: pytest.fail("compiled"))
    repository.commit("other instructions", toy__py=SLOWER)
    code, step, was_measured = judge(runs_jitted=False)
    why = "differs from the good one in jitted functions alone, which the case does not run"
    assert (code, step.reason, was_measured) == (GOOD, why, False)
    repository.commit("the host", toy__py=HOST)
    assert judge(runs_jitted=False)[2]
    repository.commit("other instructions again", toy__py=SLOWER.replace("exp2", "exp"))
    assert judge(runs_jitted=True)[2]


@pytest.mark.slow
def test_ends_that_run_the_same_are_refused_before_anything_is_measured(repository, workers):
    repository.commit("other instructions", toy__py=SLOWER)
    about = {"good": "HEAD~1", "bad": "HEAD", "threads": 1, "limit": 0.05, "worker_command": workers.command}
    with pytest.raises(UsageError, match="HEAD against HEAD~1: differs from HEAD~1 in jitted functions alone"):
        find_slower_revision(CASE, device="cpu", **about)
    assert not workers.asked
