"""The table that ends a run, on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest
import report_factory as made
from rich.console import Console

from bsa_bench.report.terminal import print_table
from bsa_bench.result import DeviceState, Status
from bsa_bench.store import read_run


def printed(tmp_path, results, *, width=80, terminal=False, **run_fields):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    print_table(read_run(made.write_run(tmp_path, results, **run_fields)), console)
    return out.getvalue()


def test_a_pipe_gets_whole_lines_however_narrow_it_claims_to_be(tmp_path):
    text = printed(tmp_path, made.paper_results(), width=20)
    line = next(line for line in text.splitlines() if line.startswith("bsa@triton both"))
    assert line.split()[-1] == "OK"
    assert "…" not in text
    assert "forward: 26x28x32 = 23,296 tokens, 12x128 bfloat16, video:testclip" in text


def test_rows_stand_fastest_first_with_speed_up_and_ideal(tmp_path):
    text = printed(tmp_path, made.quick_results())
    block = text.split("forward: 16x32x32")[1].split("\n\n")[0].splitlines()
    assert block[2].startswith("bsa@gather")
    assert "19.6x" in block[2]
    assert "baseline" in next(line for line in block if line.startswith("full@sdpa-flash"))
    assert block[-1].endswith("UNSUPPORTED")


def test_reasons_and_unavailable_engines_follow_the_table(tmp_path):
    text = printed(tmp_path, made.quick_results())
    assert "SKIPPED_OOM (1 row): predicted 9.2 GiB, 6.1 GiB are free" in text
    assert "FELL_BACK (1 row): ran the math backend not its own" in text
    assert "sdpa-cudnn: cuDNN attention needs a CUDA device" in text
    assert "Cases left: 1 of" in text
    assert "Largest speed-up: bsa@" in text


@pytest.mark.parametrize("width", [40, 200])
def test_a_terminal_of_any_width_shows_every_status(tmp_path, width):
    implausible = made.result(made.case("full@sdpa-math", 8192), Status.IMPLAUSIBLE, reason="too fast for this device")
    results = made.renumber([*made.quick_results(), implausible])
    text = printed(tmp_path, results, width=width, terminal=True)
    squeezed = "".join(text.split())
    for status in Status:
        assert status.value in squeezed
    assert max(len(line) for line in text.splitlines() if "bsa@gather" in line) <= width


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([], "No case has a result."),
        ([made.measured()], "bsa@gather"),
        ([made.measured(made.case("full@flex"))], "baseline"),
        ([made.result(status=Status.NOT_MEASURED)], "NOT_MEASURED (1 row): no reason recorded"),
        ([made.measured(correctness=None)], "unverified (1 row): never compared with an oracle"),
    ],
)
def test_whatever_a_run_lacks_it_is_printed(tmp_path, results, says):
    assert says in printed(tmp_path, results)
    assert says in printed(tmp_path, results, terminal=True)


def test_markup_in_a_reason_is_printed_as_it_is(tmp_path):
    crashed = made.result(status=Status.CRASHED, reason="failed at [bold]x[/bold] in a[0]")
    assert "failed at [bold]x[/bold] in a[0]" in printed(tmp_path, [crashed])
    assert "failed at [bold]x[/bold] in a[0]" in printed(tmp_path, [crashed], terminal=True)


def test_a_disturbed_row_is_marked_and_never_the_headline(tmp_path):
    calm = [made.measured(made.case("full@sdpa-flash"), median=1.0), made.measured(made.case(), median=0.5)]
    slow = made.measured(made.case("full@sdpa-flash", 4096), median=9.0, state=DeviceState(other_cpu_share=0.4))
    fast = made.measured(made.case("bsa@gather", 4096), median=0.5)
    text = printed(tmp_path, made.renumber([*calm, slow, fast]))
    assert "OK, disturbed" in text
    assert "Disturbed: other processes took the processor while 1 of these were timed." in text
    assert "Largest speed-up: bsa@gather, forward at 1,024 tokens" in text
