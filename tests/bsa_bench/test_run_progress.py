import io

import pytest
from rich.console import Console
from run_factory import case, worker_result

from bsa_bench.result import DeviceState, Status
from bsa_bench.run.live import LiveProgress, device_text
from bsa_bench.run.progress import PlainProgress, describe, make_progress


def play(progress):
    with progress:
        progress.start(num_measurements=40, num_done=1, num_processes=1, left_s=200.0)
        progress.begin(case(), left_s=180.0)
        progress.doing("verifying [1/2]")
        progress.finish(worker_result(case()), left_s=170.0)
        progress.note("a [note]")


def test_plain_lines_name_the_case_its_status_and_its_median():
    stream = io.StringIO()
    play(PlainProgress(stream))
    assert stream.getvalue().splitlines() == [
        "40 cases, 1 of them already done, about 3 min 20 s",
        "[ 2/40] full@sdpa-flash, forward, 256 tokens: OK 52.0 ms",
        "a [note]",
    ]


@pytest.mark.parametrize("width", [40, 160])
def test_a_terminal_shows_the_same_lines_and_the_current_case(width):
    stream = io.StringIO()
    play(LiveProgress(Console(file=stream, force_terminal=True, width=width)))
    shown = stream.getvalue()
    assert "[ 2/40] full@sdpa-flash, forward, 256 tokens: OK 52.0 ms" in shown
    assert "a [note]" in shown
    if width == 160:
        assert "2/40" in shown
        assert "2 min 50 s left" in shown
        assert "load average" in shown


def test_of_several_processes_measurements_are_counted_and_the_total_falls_with_what_is_not_repeated():
    stream = io.StringIO()
    with PlainProgress(stream) as progress:
        progress.start(num_measurements=10, num_done=0, num_processes=5, left_s=200.0)
        progress.finish(worker_result(case(), status=Status.WRONG), left_s=90.0, num_dropped=4)
        progress.finish(worker_result(case()).model_copy(update={"process_index": 1}), left_s=80.0)
    name = "full@sdpa-flash, forward, 256 tokens"
    assert stream.getvalue().splitlines() == [
        "10 measurements, 5 processes a case, about 3 min 20 s",
        f"[1/6] {name}, process 1 of 5: WRONG (scripted)",
        f"[2/6] {name}, process 2 of 5: OK 52.0 ms",
    ]


def test_a_case_without_a_time_says_why():
    result = worker_result(case(), status=Status.CRASHED)
    assert describe(result).endswith("forward, 256 tokens: CRASHED (scripted)")


def test_what_is_no_terminal_gets_plain_lines():
    assert type(make_progress(stream=io.StringIO())) is PlainProgress


def test_a_sparse_case_is_told_over_the_fastest_dense_one_of_its_pass_and_process():
    stream = io.StringIO()
    dense, other, sparse = case(), case("full@flex"), case("bsa@gather")
    with PlainProgress(stream, name=lambda one: f"<{one.implementation}>") as progress:
        progress.start(num_measurements=4, num_done=0, num_processes=1, left_s=9.0)
        for one, call_s in ((sparse, 0.02), (dense, 0.1), (other, 0.05), (sparse, 0.02), (case("bsa@flex", 512), 0.02)):
            result = worker_result(one)
            timing = result.timing.model_copy(update={"samples": [call_s]})
            progress.finish(result.model_copy(update={"timing": timing}), left_s=5.0)
    endings = [line.partition(" tokens: ")[2] for line in stream.getvalue().splitlines()[1:]]
    assert endings == ["OK 20.0 ms", "OK 100 ms", "OK 50.0 ms", "OK 20.0 ms, 2.50x over <full@flex>", "OK 20.0 ms"]


def test_the_live_view_shows_what_runs_and_how_the_device_was_and_no_colour_where_none_is_wanted(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    progress = LiveProgress(Console(file=stream, force_terminal=True, width=80))
    with progress:
        progress.start(num_measurements=4, num_done=0, num_processes=1, left_s=90.0)
        state = DeviceState(other_cpu_share=0.123)
        progress.finish(worker_result(case()).model_copy(update={"state": state}), left_s=60.0)
        progress.begin(case("bsa@gather"), left_s=50.0)
        progress.doing("forward: 12 samples")
    shown = stream.getvalue()
    assert "bsa@gather, forward, 256 tokens: forward: 12 samples" in shown
    assert "others took 12.3% of the CPU" in shown
    assert "50.0 s left" in shown
    assert "\x1b[3" not in shown.replace("\x1b[3;", "").replace("\x1b[3A", "").replace("\x1b[3B", "")


def test_a_gpu_is_described_by_clock_temperature_power_and_throttling():
    state = DeviceState(
        sm_clock_hz=[1.98e9, 1.755e9], temperature_c=[60.0, 64.0], power_w=[512.0], throttle_ns={"hw_slowdown": 5}
    )
    result = worker_result(case()).model_copy(update={"state": state})
    assert device_text(result) == "1.75 GHz, 64 C, 512 W, throttled"
    assert device_text(worker_result(case())) == ""
