"""What a process of ours imports: what the process that starts it does, whatever lies in the working folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pair_factory import Workers, some_cases
from run_factory import Bench, case

from bsa_bench import child_process
from bsa_bench.child_process import PACKAGE, check_package, child_environment, module_command, own_paths
from bsa_bench.errors import UsageError
from bsa_bench.gate.lockstep import PairSide
from bsa_bench.run.probe import probe
from bsa_bench.tune.process import Worker

ROOT = PACKAGE.parent
SHADOWS = ("queue.py", "numbers.py", "torch.py", "bsa_kernels/__init__.py", "bsa_bench/__init__.py")


@pytest.fixture
def shadowed(tmp_path, monkeypatch):
    """A working folder whose files have the names of modules that our processes import."""
    for name in SHADOWS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise ImportError('a script of mine')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # of these tests it may be relative
    return tmp_path


@pytest.mark.parametrize("inherited", ["", ":", ":/somewhere", None])
def test_a_child_finds_no_module_in_the_working_folder(shadowed, monkeypatch, inherited):
    if inherited is not None:
        monkeypatch.setenv("PYTHONPATH", inherited)
    names = [name.partition(".")[0].partition("/")[0] for name in SHADOWS]
    code = f"import importlib.util as u; print([u.find_spec(n).origin for n in {names}])"
    done = subprocess.run(
        [*module_command("unused")[:2], "-c", code],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(shadowed) not in done.stdout
    assert str(PACKAGE / "__init__.py") in done.stdout


def test_a_child_of_a_child_does_not_look_there_either(shadowed):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'queue'], check=True)"
    done = subprocess.run([sys.executable, "-c", code], env=child_environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_path_is_absolute_and_holds_this_package_before_what_was_inherited(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"mine::/other:{ROOT}")
    paths = child_environment(first=[Path("/side")], last=[Path("/end")])["PYTHONPATH"].split(os.pathsep)
    assert paths == ["/side", str(ROOT), str(tmp_path / "mine"), "/other", *map(str, own_paths()[1:]), "/end"]


def test_an_installed_package_adds_nothing_to_the_module_path(monkeypatch, tmp_path):
    monkeypatch.setattr(child_process, "_ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":")
    assert "PYTHONPATH" not in child_environment()
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert child_environment()["PYTHONPATH"] == "/mine"


def test_no_process_is_started_in_another_way():
    """`-m` by hand would put the working folder first again."""
    sources = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if path.name != "child_process.py"}
    assert [str(path) for path, text in sources.items() if re.search(r'"-m"', text)] == []


def test_the_main_module_of_an_installed_package_leaves_the_working_folder_out(shadowed):
    (shadowed / "bsa_bench/__init__.py").unlink()
    (shadowed / "bsa_bench").rmdir()
    done = subprocess.run(
        [sys.executable, "-m", "bsa_bench", "--version"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, own_paths()))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_another_package_is_named_with_what_was_expected(tmp_path):
    check_package(str(PACKAGE), who="it")
    check_package(None, who="it", expected=tmp_path / "bsa_bench")  # of a version that does not say
    with pytest.raises(UsageError, match=f"^the worker imports bsa_bench from {tmp_path}, expected {PACKAGE}; take"):
        check_package(str(tmp_path), who="the worker")
    with pytest.raises(UsageError, match="from a place that it does not name, expected"):
        check_package(None, who="the worker")


@pytest.mark.parametrize(
    "hello", ['{"event": "hello", "package": "/old/bsa_bench"}', '{"event": "progress", "text": ""}']
)
def test_a_worker_of_another_package_ends_the_run(tmp_path, hello):
    code = f"import os, sys; os.write(int(sys.argv[-1]), b'{hello}\\n')"
    with pytest.raises(UsageError, match="the worker imports bsa_bench from "):
        Bench(tmp_path).run([case()], worker_command=(sys.executable, "-S", "-c", code))


def test_a_probe_of_another_package_is_refused():
    answer = {"package": "/old/bsa_bench", "error": "no matter"}
    command = (sys.executable, "-S", "-c", f"print({json.dumps(json.dumps(answer))})")
    with pytest.raises(UsageError, match="the probe of this machine imports bsa_bench from /old/bsa_bench"):
        probe({}, device="cpu", threads=1, command=command)


def test_a_tuning_worker_of_another_package_is_refused(tmp_path):
    code = 'print(\'{"package": "/old/bsa_bench", "status": "OK"}\')'
    with (
        Worker([64], tmp_path / "log", command=(sys.executable, "-S", "-c", code)) as worker,
        pytest.raises(UsageError, match="the tuning worker imports bsa_bench from /old"),
    ):
        worker._ask({}, 20.0)


def test_a_side_of_a_pair_proves_that_it_runs_its_own_benchmark(tmp_path):
    script, cases = Workers(tmp_path), some_cases(64)
    revision = tmp_path / "revision"
    (revision / "bsa_bench").mkdir(parents=True)
    side = script.side("head", first_paths=(revision,))
    assert side.package == revision / "bsa_bench"
    assert PairSide(label="here").package == PACKAGE
    script.bench(cases, head=side).probe()
    (tmp_path / "other" / "bsa_bench").mkdir(parents=True)
    elsewhere = script.side("head", variables={"FAKE_ROLE": "head", "PYTHONPATH": str(tmp_path / "other")})
    with pytest.raises(UsageError, match=f"the worker of head imports bsa_bench from {tmp_path}/other/bsa_bench"):
        script.bench(cases, head=elsewhere).probe()
