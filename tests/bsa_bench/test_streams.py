"""Standard streams that are closed, of another encoding, or whose reader goes: a run goes on and is whole."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bsa_bench.cli import main
from bsa_bench.cli.output import progress
from bsa_bench.cli.streams import LastingStream, lasting_streams, print_error, settle_streams
from bsa_bench.store import read_run

SETTLED = """
import json, os, sys
from bsa_bench.cli.streams import settle_streams
settle_streams()
with open("first", "w") as file:
    print("\\xb1 \\udcff \\xfc", sys.stdin.read(), file=sys.stdout, flush=True)
    print("\\xb1 \\udcff \\xfc", file=sys.stderr, flush=True)
    file.write(json.dumps([file.fileno() > 2, sys.stdout.isatty()]))
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nothing_and_their_numbers_go_to_no_file(tmp_path, closed):
    given = "" if "<" in closed else "</dev/null"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {given} {closed}', sys.executable, SETTLED],
        cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, check=False,
    )  # fmt: skip
    assert (tmp_path / "first").read_text() == "[true, false]"
    assert done.returncode == 0
    assert done.stderr.strip() in {b"", "± \\udcff ü".encode()}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"\\xb1 \\udcff \\xfc"),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xb1 \\udcff \xfc"),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, b"\\xb1 \\udcff \\xfc"),
    ],
    ids=str,
)
def test_what_an_encoding_lacks_is_named(tmp_path, variables, said):
    done = subprocess.run(
        [sys.executable, "-c", SETTLED], cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join(sys.path)} | variables,
        stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == done.stderr.strip() == said


def unread():
    """A stream whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


def test_a_stream_whose_reader_went_takes_everything_and_says_why(monkeypatch):
    stream = LastingStream(unread())
    stream.write("a")
    stream.flush()
    assert isinstance(stream.lost, BrokenPipeError)
    print("more", file=stream, flush=True)
    stream.close()  # what was left in its buffer goes nowhere
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with lasting_streams():
            sys.stdout.write("a line\n")
            sys.stdout.flush()
    assert errors.getvalue() == "bsa-bench: output could not be written: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("lost", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_a_run_whose_readers_go_is_measured_stored_and_reported(scripted, monkeypatch, lost, flags):
    scripted()
    for name in lost:
        monkeypatch.setattr(sys, name, unread())
    monkeypatch.setattr(sys, "argv", ["bsa-bench", "run", "--suite", "tiny.toml", "--run-id", "r", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert len(read_run("results/r").results) == 3
    assert Path("reports/r/report.html").is_file()


@pytest.mark.slow
def test_a_run_on_ascii_streams_with_forced_colours_is_whole(scripted, monkeypatch):
    scripted()
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "0", "TERM": "no-such-terminal", "TTY_COMPATIBLE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["bsa-bench", "run", "--suite", "tiny.toml", "--run-id", "r"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out, err = (stream.buffer.getvalue().decode("ascii") for stream in streams.values())
    assert "error vs dense" in out  # as wide as a file, so that no column is left out
    assert out.endswith("report: reports/r/report.html\n")
    assert "\x1b" not in err


def test_progress_in_a_pipe_is_plain_lines_whatever_colours_are_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as tell:
        tell("pair [red]1\x1b[31m")
        tell("no milestone")
    assert capsys.readouterr().err == "pair [red]1\\x1b[31m\n"


def test_an_error_is_bounded_and_acts_on_no_terminal(capsys):
    settle_streams()
    print_error("a" * 100_000 + "\n" + "\n".join(f"line {i} \x1b[2J" for i in range(500)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 40
    assert max(map(len, lines)) < 2100
    assert lines[1] == "line 0 \\x1b[2J"
    assert lines[-1] == "... and 462 more lines"
