"""`latest`, and names of runs, whatever else lies in the results folder."""

import os
import subprocess
import sys

import pytest
from test_store_writer import RESULT, run_line

from bsa_bench.store.find import latest_run, results_files
from bsa_bench.store.writer import RunWriter

NEIGHBOURS = {
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "nested": lambda path: path.write_text("[" * 200_000 + "\n"),
    "deep": lambda path: path.write_text('{"a":' * 100_000 + "\n"),
    "digits": lambda path: path.write_text("9" * 100_000 + "\n"),
    "long-name": lambda path: path.write_text('{"kind": "run", "suite": ' + "9" * 100_000 + "}\n"),
    "empty": lambda path: path.write_text(""),
    "one-line": lambda path: path.write_text("x" * 20_000_000),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 100),
    "other": lambda path: path.write_text('{"suite": "quick"}\n'),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "number": lambda path: path.write_text('{"kind": "run", "suite": 3}\n'),
    "unreadable": lambda path: path.symlink_to("/proc/1/mem"),
}


@pytest.fixture
def results(folder):
    """A folder with a run, and later neighbours of every kind, as runs and instead of one."""
    root = folder / "results"
    with RunWriter.create(root, "good") as writer:
        writer.append(run_line("quick").model_copy(update={"utc": RESULT.utc}), RESULT)
    os.utime(root / "good" / "results.jsonl", (1, 1))
    for name, make in NEIGHBOURS.items():
        (root / name).mkdir()
        make(root / name / "results.jsonl")
        if name != "folder":
            make(root / f"bare-{name}")
    return root


def test_the_latest_run_is_found_beside_anything(results):
    assert latest_run(results) == results / "good"
    assert latest_run(results, "quick") == results / "good"
    assert latest_run(results, "paper") is None


def test_only_what_ends_is_listed(results):
    listed = {file.parent.name for file in results_files(results)}
    assert not listed & {"pipe", "endless", "terminal", "folder", "loop", "dangling"}
    assert "good" in listed


def test_a_folder_that_is_none_has_no_runs(tmp_path):
    (tmp_path / "file").write_text("")
    assert list(results_files(tmp_path / "nothing")) == []
    assert latest_run(tmp_path / "nothing") is None


@pytest.mark.slow
@pytest.mark.parametrize("verb", [("export", "latest", "--out", "x.csv"), ("report", "latest", "--format", "md")])
def test_a_command_reads_the_latest_run_in_little_memory(results, verb):
    """In a process with a limit: one that reads a device fills the memory of the machine."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
        "sys.argv = ['bsa-bench', *sys.argv[1:]]; from bsa_bench.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *verb], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name in NEIGHBOURS if name not in {"one-line", "terminal"}])
@pytest.mark.parametrize("verb", ["export", "report"])
def test_a_neighbour_that_is_named_is_an_error_in_a_sentence(results, bench, name, verb):
    code, _, err = bench(verb, name)
    assert code in {2, 5}
    assert 20 < len(err) < 2500


@pytest.mark.parametrize("name", ["a" * 5000, "a/" * 5000, "../" * 2000, "~nouser/x", "", "/", "."])
def test_a_name_that_no_run_can_have_is_a_usage_error(results, bench, name):
    code, _, err = bench("report", name)
    assert code == 2
    assert len(err) < 2500
