import io

import pytest
from rich.console import Console
from run_factory import case, worker_result

from bsa_bench.result import Status
from bsa_bench.run.progress import PlainProgress, RichProgress, describe, make_progress


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
        "[ 2/40] full@sdpa-flash/256-4x8x8/1x32-float32/smooth forward: OK 52.0 ms",
        "a [note]",
    ]


@pytest.mark.parametrize("width", [40, 160])
def test_a_terminal_shows_the_same_lines_and_the_current_case(width):
    stream = io.StringIO()
    play(RichProgress(Console(file=stream, force_terminal=True, width=width)))
    shown = stream.getvalue()
    assert "[ 2/40] full@sdpa-flash/256-4x8x8/1x32-float32/smooth forward: OK 52.0 ms" in shown
    assert "a [note]" in shown
    if width == 160:
        assert "2/40" in shown
        assert "2 min 50 s left" in shown


def test_of_several_processes_measurements_are_counted_and_the_total_falls_with_what_is_not_repeated():
    stream = io.StringIO()
    with PlainProgress(stream) as progress:
        progress.start(num_measurements=10, num_done=0, num_processes=5, left_s=200.0)
        progress.finish(worker_result(case(), status=Status.WRONG), left_s=90.0, num_dropped=4)
        progress.finish(worker_result(case()).model_copy(update={"process_index": 1}), left_s=80.0)
    name = "full@sdpa-flash/256-4x8x8/1x32-float32/smooth forward"
    assert stream.getvalue().splitlines() == [
        "10 measurements, 5 processes a case, about 3 min 20 s",
        f"[1/6] {name}, process 1 of 5: WRONG (scripted)",
        f"[2/6] {name}, process 2 of 5: OK 52.0 ms",
    ]


def test_a_case_without_a_time_says_why():
    result = worker_result(case(), status=Status.CRASHED)
    assert describe(result).endswith("forward: CRASHED (scripted)")


def test_what_is_no_terminal_gets_plain_lines():
    assert type(make_progress(stream=io.StringIO())) is PlainProgress
