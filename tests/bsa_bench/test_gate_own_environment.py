import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from environment_factory import Builds
from git_factory import Repository
from packaging.requirements import Requirement
from pair_factory import all_gone
from test_gate_cli import Place

from bsa_bench.errors import MachineError, StoreError, UsageError
from bsa_bench.gate import own_environment, side_environment
from bsa_bench.gate.dependencies import differences, own_dependencies, stated_dependencies
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.gate.own_environment import environments_folder, make_environment, versions_here, versions_of
from bsa_bench.gate.pair_job import Reply
from bsa_bench.gate.side_environment import EnvironmentChoice, with_environments
from bsa_bench.gate.sides import ROOT, open_pair_side, run_the_same
from bsa_bench.gate.verdict import Check, GateResult, TierResult, Verdict


@pytest.fixture
def builds(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Builds(tmp_path)


def project(*dependencies):
    return f"[project]\nname = 'x'\nversion = '1'\ndependencies = {list(dependencies)!r}\n"


def test_dependencies_are_those_of_the_project_table(tmp_path):
    (tmp_path / "pyproject.toml").write_text(project("numpy>=1.26", "Torch ; sys_platform == 'linux'"))
    assert [each.name for each in stated_dependencies(tmp_path, label="HEAD")] == ["numpy", "Torch"]
    (tmp_path / "pyproject.toml").write_text(project())
    assert stated_dependencies(tmp_path, label="HEAD") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"HEAD: pyproject\.toml: No such file or directory"),
        ("[project", r"HEAD: pyproject\.toml is no TOML: "),
        ("project = 3", r"HEAD: pyproject\.toml states no list of dependencies under \[project\]"),
        ("[project]\ndynamic = ['dependencies']", r"HEAD: pyproject\.toml states no list of dependencies"),
        ("[project]\ndependencies = [3]", r"HEAD: pyproject\.toml states no list of dependencies"),
        (project("numpy", "-e ."), r"HEAD: pyproject\.toml: got the dependency '-e \.': "),
    ],
)
def test_dependencies_that_cannot_be_read_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        stated_dependencies(tmp_path, label="HEAD")


def test_dependencies_differ_by_package_and_not_in_how_they_are_written():
    def differ(theirs, ours):
        return differences(*([Requirement(each) for each in side] for side in (theirs, ours)))

    assert (
        differ(["a>=1,<2", "B_c", "d; sys_platform == 'linux'"], ['d ; sys_platform=="linux"', "b-c", "A <2, >=1"])
        == []
    )
    assert differ(["a>=1", "b"], ["a>=2", "c"]) == ["a>=1 (here a>=2)", "b (here no b)", "no c (here c)"]
    assert differ(["a<2; python_version < '3.12'", "a"], ["a"]) == ['a and a<2; python_version < "3.12" (here a)']


def test_the_code_that_runs_depends_on_what_its_checkout_or_its_installation_says(tmp_path, monkeypatch):
    assert {each.name for each in own_dependencies(ROOT)} >= {"torch", "triton", "numpy"}
    monkeypatch.setattr(
        "bsa_bench.gate.dependencies.requires",
        lambda _: ["torch>=2", 'mypy; extra == "dev"', "a; python_version > '3'"],
    )
    assert [each.name for each in own_dependencies(tmp_path)] == ["torch", "a"]


@pytest.mark.slow
def test_an_environment_is_made_once_for_a_list_in_any_order(builds, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    told = []
    python = make_environment(["b", "a"], label="git:A", tell=told.append, builder=builds.builder)
    folder = python.parents[1]
    assert python == environments_folder() / folder.name / "bin" / "python"
    assert (folder / "installed").read_text() == (folder / "dependencies.txt").read_text() == "a\nb\n"
    assert [call[:3] for call in builds.calls] == [["venv", [], None], ["install", ["a", "b"], None]]
    assert told == [
        f"environment of git:A: 2 dependencies, installed once into {folder}",
        "git:A: Collecting a",
        "git:A: Collecting b",
    ]
    assert make_environment(["a", "b", "a"], label="git:B", tell=told.append, builder=builds.builder) == python
    assert len(told) == 3
    assert make_environment([], label="git:C", builder=builds.builder) != python
    assert builds.actions == ["venv", "install", "venv"]


@pytest.mark.slow
def test_an_environment_is_not_that_of_another_python_and_does_not_outlive_its_own(builds, monkeypatch):
    python = make_environment(["a"], label="git:A", builder=builds.builder)
    python.unlink()
    python.symlink_to("/no/such/python")
    assert make_environment(["a"], label="git:A", builder=builds.builder) == python
    assert python.exists()
    monkeypatch.setattr(sys, "version", "3.99")
    assert make_environment(["a"], label="git:A", builder=builds.builder) != python
    assert builds.actions == ["venv", "install"] * 3


def test_what_cannot_be_installed_is_told_in_pips_last_words_and_leaves_nothing(builds, tmp_path):
    said = r"it said:\nCollecting a\nCollecting broken\nERROR: No matching"
    message = rf"the environment of git:A cannot be made: .* ended with 1; {said}"
    with pytest.raises(MachineError, match=message):
        make_environment(["a", "broken"], label="git:A", builder=builds.builder)
    assert list(environments_folder().iterdir()) == []
    nowhere = own_environment.Builder(venv=("/no/such/python",))
    with pytest.raises(MachineError, match="cannot be made: /no/such/python: No such file or directory"):
        make_environment(["a"], label="git:A", builder=nowhere)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    with pytest.raises(StoreError, match=r"cache folder .*/bsa-bench/environments: Not a directory"):
        make_environment(["a"], label="git:A", builder=builds.builder)


def test_an_interrupted_build_is_never_used_and_leaves_no_process(builds):
    def interrupt():
        deadline = time.monotonic() + 30
        while builds.actions != ["venv", "install"] and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        make_environment(["slow"], label="git:A", builder=builds.builder)
    thread.join()
    assert list(environments_folder().iterdir()) == []
    assert all_gone([builds.calls[-1][3]]) is True


@pytest.mark.slow
def test_a_build_that_was_killed_is_never_used(builds):
    python = make_environment(["a"], label="git:A", builder=builds.builder)
    python.parents[1].rename(environments_folder() / ".new-killed")
    assert make_environment(["a"], label="git:A", builder=builds.builder) == python
    assert builds.actions == ["venv", "install"] * 2


@pytest.mark.slow
def test_of_two_builds_at_once_the_first_is_used(builds):
    winner = []

    def meanwhile(text):
        if "Collecting" in text and not winner:
            winner.append(None)
            winner.append(make_environment(["a"], label="git:B", builder=builds.builder))
            (winner[1].parents[1] / "first").write_text("")

    python = make_environment(["a"], label="git:A", tell=meanwhile, builder=builds.builder)
    assert python == winner[1]
    assert (python.parents[1] / "first").exists()
    assert [path.name for path in environments_folder().iterdir()] == [python.parents[1].name]


def test_what_is_no_python_of_ours_is_named(tmp_path):
    python = tmp_path / "python"
    for text, said in (
        ("#!/bin/sh\necho unknown option -P >&2; exit 2\n", "unknown option -P"),
        ("#!/bin/sh\n", "nothing"),
    ):
        python.write_text(text)
        python.chmod(0o755)
        message = f"--base-python {python}: expected a Python of 3.11 or later that starts, got: {said}"
        with pytest.raises(UsageError, match=re.escape(message)):
            versions_of(python, flag="--base-python ")
    with pytest.raises(UsageError, match="--base-python /nowhere: No such file or directory, expected a Python"):
        versions_of(Path("/nowhere"), flag="--base-python ")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repository")
    monkeypatch.chdir(made.folder)
    made.commit("start", a__py="x = 1\n")
    return made


def test_a_shared_environment_is_told_with_what_differs(repository):
    def note(text=None):
        if text is not None:
            (repository.folder / "pyproject.toml").write_text(text)
            repository.commit("dependencies")
        with open_pair_side("git:HEAD") as side:
            assert side.command == PairSide(label="x").command
            (found,) = side.notes
        return found

    assert note() == "git:HEAD: pyproject.toml: No such file or directory; it ran in this environment"
    ours = (ROOT / "pyproject.toml").read_text()
    assert note(ours) == "git:HEAD asks for the same packages as the code here, and ran in this environment"
    other = ours.replace('"numpy>=1.26"', '"numpy>=1.20"').replace('  "scipy>=1.11",\n', "")
    assert note(other) == (
        "git:HEAD asks for other packages: numpy>=1.20 (here numpy>=1.26), no scipy (here scipy>=1.11); it ran in this "
        "environment all the same (--own-environment or --base-python give it another)"
    )
    with open_pair_side(".") as side:
        assert side.notes == ()


def test_a_revision_of_another_repository_is_compared_with_its_work_tree(repository):
    (repository.folder / "src").mkdir()
    (repository.folder / "src" / "mine.py").write_text("")
    (repository.folder / "pyproject.toml").write_text(project("torch>=2"))
    repository.commit("mine")
    for dependency, words in (("torch>=2", "asks for the same packages"), ("torch>=3", "torch>=2 (here torch>=3)")):
        (repository.folder / "pyproject.toml").write_text(project(dependency))
        with open_pair_side("HEAD", paths=[Path("src")]) as side:
            assert words in side.notes[0]
    with (
        pytest.raises(UsageError, match=r"--own-environment: got --path too, .* name it with --base-python"),
        open_pair_side("HEAD", paths=[Path("src")], environment=EnvironmentChoice(own=True)),
    ):
        pass


@pytest.mark.slow
def test_a_git_side_gets_its_own_environment_and_the_work_tree_none(repository, builds):
    (repository.folder / "pyproject.toml").write_text(project("torch==2.0"))
    repository.commit("dependencies")
    choice = EnvironmentChoice(own=True, builder=builds.builder)
    with open_pair_side("HEAD", environment=choice) as side:
        python = Path(side.command[0])
        assert python.is_relative_to(environments_folder())
        assert side.command[1:] == PairSide(label="x").command[1:]
        assert re.match(rf"HEAD ran in an environment of its own, {python.parents[1]}: ", side.notes[0])
    assert builds.calls[1][1] == ["torch==2.0"]
    with open_pair_side(".", environment=choice) as side:
        assert (side.command, side.packages) == (PairSide(label="x").command, None)
    with pytest.raises(UsageError, match=r"HEAD~1: pyproject\.toml: No such file"):
        open_pair_side("HEAD~1", environment=choice).__enter__()
    with pytest.raises(UsageError, match="--base-python: got --own-environment too, expected one of them"):
        open_pair_side("HEAD", environment=EnvironmentChoice(own=True, python=Path("python"))).__enter__()


@pytest.mark.slow
def test_an_installed_benchmark_is_found_by_another_python_too(repository, monkeypatch):
    monkeypatch.setattr(side_environment, "own_paths", list)
    with open_pair_side(".", environment=EnvironmentChoice(python=Path(sys.executable))) as side:
        (folder,) = side.last_paths
        assert (folder / "bsa_bench" / "__init__.py").is_file()
        assert side.environment()["PYTHONPATH"].split(os.pathsep)[-1] == str(folder)
        assert side.first_paths == ()
    assert not folder.exists()


def test_sides_on_two_pythons_are_not_the_same():
    told = Reply(sources="x"), Reply(sources="x")
    side = PairSide(label="a")
    assert run_the_same((side, side), told)
    assert not run_the_same((side, PairSide(label="b", command=("/other/python", *side.command[1:]))), told)


@pytest.mark.slow
def test_checks_say_where_the_toolchain_differs_and_keep_their_verdicts():
    checks = (
        Check(tier=2, name="a", verdict=Verdict.SLOWER),
        Check(tier=2, name="b", verdict=Verdict.AMBIGUOUS, reason="no time"),
    )
    result = TierResult(tier=2, checks=checks, notes=("first",))
    ours = versions_here()
    head = PairSide(label="head")

    def told(**packages):
        base = PairSide(label="base", packages=ours | packages, notes=("of the base",))
        return with_environments(result, base, head)

    assert told().checks == told(numpy="0.1").checks == checks
    assert told().notes == ("first", "of the base")
    why = f"the toolchain differs: torch 0.1 -> {ours['torch']}, triton none -> {ours['triton']}"
    found = told(torch="0.1", triton=None)
    assert [check.reason for check in found.checks] == [why, f"no time; {why}"]
    assert [check.verdict for check in found.checks] == [Verdict.SLOWER, Verdict.AMBIGUOUS]
    shared = PairSide(label="base", notes=("shared",))
    assert with_environments(result, shared, head) == result.model_copy(update={"notes": ("first", "shared")})


@pytest.fixture
def place(tmp_path, monkeypatch, capsys, builds):
    made = Place(tmp_path, monkeypatch, capsys)
    (made.repository.folder / "pyproject.toml").write_text(project("torch==0.1", "numpy==0.2"))
    made.repository.commit("dependencies")
    yield made
    assert all_gone(made.workers.pids) is True


@pytest.mark.slow
def test_a_base_in_a_virtual_environment_of_its_own_is_measured_and_told(place, builds, monkeypatch):
    monkeypatch.setattr(own_environment, "Builder", lambda: builds.real_venv)
    asked = ["--suite", "s.toml", "passes=forward", "implementation=bsa@gather"]
    code, out, err = place.run("compare", "git:HEAD", ".", *asked, "--own-environment", "--json")
    assert code == 0
    assert err.startswith("environment of git:HEAD: 2 dependencies, installed once into ")
    (tier,) = GateResult.model_validate_json(out).tiers
    (check,) = tier.checks
    ours = versions_here()["torch"]
    assert check.verdict is Verdict.SAME
    assert check.reason.startswith(f"the toolchain differs: torch 0.1 -> {ours}, triton none -> ")
    assert f": torch 0.1, no triton, numpy 0.2; here: torch {ours}, " in tier.notes[-1]
    code, out, err = place.run("gate", "--tier", 2, "--base", "HEAD", *asked, "--own-environment", "--verbose")
    assert code == 0
    assert "environment of" not in err
    assert "the toolchain differs: torch 0.1" in out
    assert builds.actions == ["install"]


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_is_the_machines_fault_and_ends_its_tier_alone(place, builds, monkeypatch):
    monkeypatch.setattr(own_environment, "Builder", lambda: builds.builder)
    (place.repository.folder / "pyproject.toml").write_text(project("broken"))
    place.repository.commit("broken")
    code, _, err = place.run("compare", "git:HEAD", ".", "--suite", "s.toml", "--own-environment")
    assert code == 5
    assert "ERROR: No matching distribution found for broken" in err
    code, result = place.gate("--own-environment")
    assert code == 5
    assert "No matching distribution found for broken" in result.tiers[0].reason
    assert not place.workers.asked


@pytest.mark.slow
def test_a_base_on_a_given_python_is_measured_although_the_sources_are_the_same(place, tmp_path):
    python = tmp_path / "other-python"
    python.symlink_to(sys.executable)
    asked = ["--suite", "s.toml", "passes=forward", "implementation=bsa@gather", "--base-python", python]
    code, result = place.gate(*asked[2:])
    assert (code, result.tiers[0].checks[0].verdict) == (0, Verdict.SAME)
    assert any(note.startswith(f"HEAD ran on {python}: ") for note in result.tiers[0].notes)
    code, out, _ = place.run("compare", ".", ".", *asked)
    assert code == 0
    assert f"the work tree ran on {python}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate", "--tier", "0", "--own-environment"], "--own-environment: only tiers 2 and 3 run the base"),
        (["gate", "--tier", "1", "--base-python", "x"], "--base-python: only tiers 2 and 3 run the base"),
        (["compare", ".", ".", "--own-environment"], "--own-environment: is for git revisions"),
        (["compare", "run-1", "run-2", "--own-environment"], "--own-environment: is for revisions"),
        (["compare", "run-1", "run-2", "--base-python", "x"], "--base-python x: is for revisions"),
        (["compare", "git:HEAD~1", ".", "--own-environment"], "git:HEAD~1: pyproject.toml: No such file or directory"),
        (
            ["compare", "git:HEAD", ".", "--base-python", "/nowhere"],
            "--base-python /nowhere: No such file or directory",
        ),
        (["compare", "git:HEAD", ".", "--base-python", "x", "--own-environment"], "expected one of them"),
    ],
)
def test_wrong_flags_of_environments_are_named_before_anything_is_measured(place, arguments, message):
    code, out, err = place.run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not place.workers.asked
