"""A run whose results are deleted, cut off or replaced while it is going on: it stops, and keeps what it has."""

import os
import re
import shutil
import threading
import time

import pytest
from run_factory import Bench, case, worker_result
from test_run_execute import is_gone
from test_store_writer import RESULT, run_line, started

from bsa_bench.errors import StoreError
from bsa_bench.result import Status
from bsa_bench.run import worker_process
from bsa_bench.store.reader import read_run
from bsa_bench.store.writer import RunWriter

CASES = [case(tokens=256), case(tokens=512), case(tokens=1024)]


def replace(folder):
    (folder / "other").write_text("{}\n")
    (folder / "other").replace(folder / "results.jsonl")


def append(folder):
    with (folder / "results.jsonl").open("a") as file:
        file.write("{}\n")


LOSSES = {
    "was deleted": lambda folder: (folder / "results.jsonl").unlink(),
    "was deleted or moved": shutil.rmtree,
    "deleted or moved": lambda folder: shutil.rmtree(folder.parent),
    "or moved while": lambda folder: folder.rename(folder.with_name("elsewhere")),
    r"was changed, from [\d,]+ to 0 bytes,": lambda folder: os.truncate(folder / "results.jsonl", 0),
    r"was changed, from [\d,]+ to 100 bytes,": lambda folder: os.truncate(folder / "results.jsonl", 100),
    "was changed, from": append,
    "was replaced by another file": replace,
}


def kept(error):
    """The run that an error says is kept."""
    folder = re.search(r"is kept in (.*?); go on with --results (.*) --run-id (\S+) --resume", str(error))
    assert folder.group(1) == f"{folder.group(2)}/{folder.group(3)}"
    return folder.group(2), folder.group(3)


@pytest.mark.slow
@pytest.mark.parametrize("what", LOSSES)
def test_a_run_stops_at_once_and_keeps_what_it_measured_where_it_says(tmp_path, what):
    bench = Bench(tmp_path)

    def lose():
        while CASES[1].case_id not in bench.begun:
            time.sleep(0.02)
        LOSSES[what](bench.results / "r")

    thread = threading.Thread(target=lose)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(StoreError, match=f"results.jsonl: .*{what}.* the run stops") as ended:
        bench.run(CASES, {CASES[1]: "hang"}, case_limit_s=60.0)
    assert time.monotonic() - begun < 10
    thread.join()
    assert ended.value.exit_code == 5
    assert all(is_gone(pid) for pid in bench.pids)
    root, name = kept(ended.value)
    assert [r.case_id for r in read_run(f"{root}/{name}").results] == [CASES[0].case_id]
    with RunWriter.resume(root, name) as writer:
        assert [r.case_id for r in writer.previous.results] == [CASES[0].case_id]


@pytest.mark.parametrize("what", LOSSES)
def test_the_line_that_could_not_be_stored_is_in_the_copy(tmp_path, what):
    writer = started(tmp_path / "results")
    writer.append(RESULT)
    LOSSES[what](writer.folder)
    second = worker_result(case(tokens=512))
    with pytest.raises(StoreError, match=what) as ended:
        writer.append(second)
    root, name = kept(ended.value)
    assert read_run(f"{root}/{name}").results == [RESULT, second]


def test_a_resumed_run_keeps_what_it_held_before_too(tmp_path):
    with started(tmp_path) as writer:
        writer.append(RESULT)
    with RunWriter.resume(tmp_path, "r") as writer:
        writer.append(run_line())
        writer.path.unlink()
        with pytest.raises(StoreError) as ended:
            writer.check()
    root, name = kept(ended.value)
    run = read_run(f"{root}/{name}")
    assert (len(run.run_lines), run.results) == (2, [RESULT])


def test_a_place_that_cannot_be_written_is_passed_over_for_the_folder_of_temporary_files(tmp_path, monkeypatch):
    writer = started(tmp_path / "results")
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "results").write_text("a file now")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with pytest.raises(StoreError) as ended:
        writer.append(RESULT)
    root, name = kept(ended.value)
    assert root == str(tmp_path / "temporary")
    assert read_run(f"{root}/{name}").results == [RESULT]
    shutil.rmtree(tmp_path / "temporary")
    (tmp_path / "temporary").write_text("a file too")
    with pytest.raises(StoreError, match=r"the run stops, it could not be kept in .*temporary"):
        writer.append(RESULT)


def test_what_is_untouched_is_found_untouched(tmp_path):
    with started(tmp_path) as writer:
        for _ in range(3):
            writer.append(RESULT)
            writer.check()


@pytest.mark.slow
def test_a_log_that_is_deleted_meanwhile_ends_no_run(tmp_path):
    bench = Bench(tmp_path)

    def lose():
        while CASES[1].case_id not in bench.begun:
            time.sleep(0.02)
        shutil.rmtree(bench.results / "r" / "logs")

    thread = threading.Thread(target=lose)
    thread.start()
    outcome = bench.run(CASES, {CASES[1]: "slow:0.5"})
    thread.join()
    assert outcome.counts == {Status.OK: 3}


def test_two_runs_of_a_second_get_two_names(tmp_path, monkeypatch):
    monkeypatch.setattr("bsa_bench.store.writer.default_run_id", lambda suite: f"{suite}-20260101-000000")
    names = []
    for _ in range(3):
        with RunWriter.begin(tmp_path, "quick") as writer:
            names.append(writer.run_id)
    assert names == ["quick-20260101-000000", "quick-20260101-000000-2", "quick-20260101-000000-3"]


@pytest.mark.slow
def test_of_a_worker_that_writes_without_end_the_first_and_the_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_process, "MOST_LOG_BYTES", 80_000)
    bench = Bench(tmp_path)
    outcome = bench.run(CASES[:1], {CASES[0]: "chatter:1.5"})
    assert outcome.counts == {Status.OK: 1}
    (log,) = (bench.results / "r" / "logs").iterdir()
    text = log.read_text()
    assert len(text) < 90_000
    assert "\nline 0\n" in text
    assert text.endswith("\nthe last line\n")
    assert text.count("# a log has at most 78.1 KiB of a worker; cut here: ") == 1
