import pytest
from report_factory import case, jitter, measured, timing, write_run

from bsa_bench.exports.rows import measured_rows
from bsa_bench.report.build import write_report
from bsa_bench.report.device_tables import HEAD
from bsa_bench.result import Ceiling, CrossCheck, Energy
from bsa_bench.store.frame import load_frame
from bsa_bench.store.reader import read_run

PLAIN, RICH = case("full@sdpa-flash"), case("bsa@gather")
CEILINGS = [
    Ceiling(name="GEMM float32", value=123e9, unit="FLOP/s", detail="2048 x 2048, 2 threads"),
    Ceiling(name="copy", value=12 * 2**30, unit="B/s", detail="512 MiB"),
]


def rich_result(**fields):
    """A row by a GPU's timer with all that the profile `report` measures besides."""
    figures = {
        "timer": "event",
        "cache": "cold",
        "host_s": 0.0004,
        "host_gaps": False,
        "warm": jitter(0.018),
        "cross_check": CrossCheck(timer="device-span", median_s=0.0204, num_samples=20),
    }
    made = measured(RICH, median=0.02)
    energy = Energy(joules_per_call=1.5, above_idle_joules_per_call=1.25, num_calls=100, seconds=2.0, how="NVML")
    return made.model_copy(update={"timing": timing(0.02, **(figures | fields)), "energy": energy})


def device_section(folder, results, **fields):
    """The lines of the section `Device`, or None where there is none."""
    text = write_report(write_run(folder / "run", results, **fields), folder / "report").markdown.read_text()
    return text.partition("\n## Device\n")[2].partition("\n## ")[0].strip().splitlines() or None


def cells(section):
    """The cells of the one row of the section's table, by the head's names."""
    rows = [line for line in section if line.startswith("| `")]
    assert len(rows) == 1, section
    return dict(zip(HEAD, [cell.strip() for cell in rows[0].strip("|").split("|")], strict=True))


def test_what_was_measured_besides_latencies_is_shown_by_row(tmp_path):
    section = device_section(tmp_path, [measured(PLAIN), rich_result()], ceilings=CEILINGS)
    assert section[0] == (
        "Measured on this device before the first case: GEMM float32 123 GFLOP/s (2048 x 2048, 2 threads); "
        "copy 12.0 GiB/s (512 MiB)."
    )
    found = cells(section)
    assert found.pop("Case").startswith("`bsa@gather` forward, 8x8x16 = 1,024 tokens")
    assert found == {
        "Median": "20.0 ms",
        "Enqueued in": "400 us",
        "Device waited": "no",
        "Warm": "18.0 ms",
        "Other timer": "device-span 20.4 ms (+2.00%)",
        "Energy per call": "1.5 J",
        "Above idle": "1.25 J",
    }


def test_a_run_that_measured_nothing_of_it_has_no_such_section(tmp_path):
    assert device_section(tmp_path, [measured(PLAIN), measured(RICH)]) is None


def test_ceilings_stand_alone_where_no_row_has_more(tmp_path):
    section = device_section(tmp_path, [measured(PLAIN)], ceilings=CEILINGS)
    assert len(section) == 1


def test_the_flat_table_has_a_column_for_each(tmp_path):
    folder = write_run(tmp_path / "run", [measured(PLAIN), rich_result(host_gaps=True)])
    plain, rich = (
        load_frame(folder).set_index("implementation").loc[name] for name in ("full@sdpa-flash", "bsa@gather")
    )
    assert rich.warm_median_s == pytest.approx(0.018)
    assert rich.host_s == 0.0004
    assert rich.host_gaps
    assert rich.timer_disagreement == pytest.approx(0.02, abs=0.001)
    assert not rich.timers_disagree
    assert (rich.joules_per_call, rich.above_idle_joules_per_call) == (1.5, 1.25)
    names = ("warm_median_s", "host_s", "host_gaps", "timer_disagreement", "timers_disagree", "joules_per_call")
    assert plain[list(names)].isna().all()


def test_two_timers_that_disagree_are_a_doubt_of_the_row_in_every_export(tmp_path):
    apart = CrossCheck(timer="device-span", median_s=0.03, num_samples=20)
    run = read_run(write_run(tmp_path / "run", [measured(PLAIN), rich_result(cross_check=apart)]))
    doubts = {row.case.implementation: row.doubts for row in measured_rows(run)}
    assert doubts == {"full@sdpa-flash": [], "bsa@gather": ["two timers disagree"]}
