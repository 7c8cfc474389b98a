import errno
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime

import pytest
from run_factory import case, environment, worker_result

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.result import RunLine
from bsa_bench.store.find import latest_run
from bsa_bench.store.reader import read_run
from bsa_bench.store.writer import RunWriter, check_writable, default_run_id

RESULT = worker_result(case())


def run_line(suite="made-up"):
    return RunLine(
        run_id="r",
        utc="now",
        suite=suite,
        suite_title="",
        profile="quick",
        command=[],
        environment=environment(),
        num_cases=1,
    )


def started(root, run_id="r", suite="made-up"):
    writer = RunWriter.create(root, run_id)
    writer.append(run_line(suite))
    return writer


def test_what_is_appended_can_be_read_back_at_once(tmp_path):
    with started(tmp_path) as writer:
        writer.append(RESULT)
        assert read_run(writer.folder).results == [RESULT]


def test_creating_over_a_run_is_refused_and_leaves_it_alone(tmp_path):
    started(tmp_path).close()
    before = (tmp_path / "r" / "results.jsonl").read_bytes()
    with pytest.raises(UsageError, match="exists; go on with it by --resume"):
        RunWriter.create(tmp_path, "r")
    assert (tmp_path / "r" / "results.jsonl").read_bytes() == before


def test_resuming_nothing_is_refused_and_makes_nothing(tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        RunWriter.resume(tmp_path, "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "a b"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, run_id):
    with pytest.raises(UsageError, match="run name"):
        RunWriter.create(tmp_path, run_id)


@pytest.mark.parametrize("torn", [b'{"kind":"resu', b"\x00\x00\x00\n"])
def test_a_torn_last_line_is_cut_off_and_said(tmp_path, torn):
    with started(tmp_path) as writer:
        writer.append(RESULT)
    path = tmp_path / "r" / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with RunWriter.resume(tmp_path, "r") as writer:
        assert path.read_bytes() == whole
        assert f"its {len(torn)} bytes are cut off" in writer.messages[0]
        assert writer.next_seq == RESULT.seq + 1
        writer.append(RESULT)
    assert len(read_run(path).results) == 2


def test_a_run_killed_before_its_first_line_resumes_as_a_new_one(tmp_path):
    RunWriter.create(tmp_path, "r").close()
    with RunWriter.resume(tmp_path, "r") as writer:
        assert writer.previous is None
        assert writer.next_seq == 0


def test_a_second_process_cannot_write_the_same_run(tmp_path):
    with started(tmp_path), pytest.raises(StoreError, match="another process is writing this run"):
        RunWriter.resume(tmp_path, "r")
    RunWriter.resume(tmp_path, "r").close()


def test_a_full_disk_takes_the_partial_line_back_and_names_the_remedy(tmp_path, monkeypatch):
    writer = started(tmp_path)
    before = writer.path.read_bytes()
    real, calls = os.write, []

    def nearly_full(fd, data):
        calls.append(len(data))
        if len(calls) == 1:
            return real(fd, data[:50])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(StoreError, match=r"results\.jsonl: cannot append .*No space left.*free some disk space"):
        writer.append(RESULT)
    monkeypatch.undo()
    assert writer.path.read_bytes() == before
    writer.append(RESULT)
    assert read_run(writer.folder).results == [RESULT]
    writer.close()


@pytest.mark.slow
def test_a_real_limit_of_the_file_size_leaves_a_file_that_loads(tmp_path):
    program = textwrap.dedent(f"""
        import resource, sys
        from test_store_writer import RESULT, started
        from bsa_bench.errors import StoreError
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        writer = started({str(tmp_path)!r})
        try:
            for _ in range(1000):
                writer.append(RESULT)
        except StoreError as error:
            sys.exit(str(error))
    """)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    run = read_run(tmp_path / "r")
    assert run.torn_line is None
    assert len(run.results) > 1


def test_a_results_folder_below_a_file_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(StoreError, match="a file stands where a folder is needed"):
            check_writable(root)
        with pytest.raises(StoreError, match="a file stands where a folder is needed"):
            RunWriter.create(root, "r")


def test_an_unwritable_results_folder_is_refused_before_anything_runs():
    with pytest.raises(StoreError, match="choose another results folder"):
        check_writable("/proc/results")


def test_the_preflight_leaves_only_the_folder(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_preflight_notices_a_full_disk(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="free some disk space"):
        check_writable(tmp_path)


def test_a_default_name_is_the_suite_and_the_time_in_utc():
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert default_run_id("quick", now) == "quick-20260304-050607"
    assert default_run_id("/home/me/my suite.toml", now) == "my-suite-20260304-050607"


def test_the_latest_run_is_the_one_written_last_of_the_suite(tmp_path):
    assert latest_run(tmp_path) is None
    for at, (run_id, suite) in enumerate([("b", "quick"), ("a", "quick"), ("c", "paper")]):
        started(tmp_path, run_id, suite).close()
        os.utime(tmp_path / run_id / "results.jsonl", (at, at))
    assert latest_run(tmp_path).name == "c"
    assert latest_run(tmp_path, "quick").name == "a"
    assert latest_run(tmp_path, "frames") is None
