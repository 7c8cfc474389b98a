"""The report on disk: its words, its tables and which plots it draws."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import report_factory as made

from bsa_bench.errors import StoreError
from bsa_bench.report import write_report
from bsa_bench.result import CrossCheck, Status

WITHOUT = {"union_efficiency": None, "list_mean": None, "list_max": None}


def report_of(tmp_path, results, **run_fields):
    files = write_report(made.write_run(tmp_path / "run", results, **run_fields), tmp_path / "report")
    return files, files.markdown.read_text(encoding="utf-8")


def section(text, heading):
    """The lines under a heading, up to the next one of any level."""
    match = re.search(rf"^#+ {re.escape(heading)}$\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, heading
    return match.group(1)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return report_of(folder, made.quick_results())


@pytest.mark.slow
def test_the_first_line_names_the_inputs_and_not_the_machine(quick, tmp_path):
    _, text = quick
    first = text.splitlines()[0]
    assert "run/results.jsonl` by bsa-bench" in first
    assert str(tmp_path.parent.parent) not in text


@pytest.mark.slow
def test_every_plot_is_a_png_and_an_svg_that_the_text_links(quick):
    files, text = quick
    assert {path.suffix for path in files.plots} == {".png", ".svg"}
    for path in files.plots:
        assert path.stat().st_size > 1000
        assert f"]({path.name})" in text


@pytest.mark.slow
def test_a_run_over_lengths_has_a_plot_of_each_kind_for_each_measured_pass(quick):
    kinds = ("speedup", "latency", "memory", "pareto", "phases", "tflops", "samples")
    expected = {f"{kind}-{passes}" for kind in kinds for passes in ("forward", "forward-backward")}
    assert {path.stem for path in quick[0].plots} == expected


@pytest.mark.slow
def test_the_findings_name_the_fastest_correct_row_and_the_ideal(quick):
    _, text = quick
    assert "forward, 16,384 tokens (2 heads x 64, float32, video:testclip): **`bsa@gather`**" in text
    assert re.search(
        r"`bsa@gather` as a whole operator is \*\*[\d.]+x faster than\*\* `full@sdpa-flash` \(one process\); ideal",
        text,
    )
    assert re.search(r"Attend only [\d.]+x and attend \+ select [\d.]+x", text)


@pytest.mark.slow
def test_an_interpolated_break_even_length_says_so_and_an_early_one_too(quick):
    body = section(quick[1], "Break-even length")
    assert "interpolated between 1,024 (slower) and 2,048 (faster from there on" in body
    assert "already faster at the shortest measured length, 1,024 tokens" in body


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_break_even_beyond_the_measured_range_is_said(tmp_path):
    results = []
    for tokens in (1024, 2048):
        results += [measured_at("full@sdpa-flash", tokens, 1.0), measured_at("bsa@gather", tokens, 2.0)]
    body = section(report_of(tmp_path, made.renumber(results))[1], "Break-even length")
    assert "not reached in the measured range (1,024 to 2,048 tokens)" in body


def measured_at(implementation, tokens, median):
    return made.measured(made.case(implementation, tokens), median=median)


@pytest.mark.slow
def test_rows_without_a_figure_are_listed_by_status_and_reason(quick):
    body = section(quick[1], "Unverified, wrong or not run")
    for status in Status:
        if status not in {Status.OK, Status.COUNTED, Status.IMPLAUSIBLE}:  # the last has a test of its own
            assert f"**{status}**" in body
    assert "**unverified**" in body
    assert "predicted 9.2 GiB, 6.1 GiB are free. `full@sdpa-math` (forward+backward) at 16,384 tokens." in body
    assert "not reached" in body


@pytest.mark.slow
def test_a_time_that_cannot_be_true_is_listed_with_its_reason(tmp_path):
    too_fast = made.result(made.case("full@cpu", 16384), Status.IMPLAUSIBLE, reason="a median of 1 us")
    run = made.write_run(tmp_path / "run", made.renumber([*made.quick_results(), too_fast]))
    body = section(write_report(run, tmp_path / "out").markdown.read_text(), "Unverified, wrong or not run")
    assert "**IMPLAUSIBLE**" in body
    assert "a median of 1 us. `full@cpu` (forward) at 16,384 tokens." in body


@pytest.mark.slow
def test_what_is_counted_has_counters_and_no_latency(quick):
    body = section(quick[1], "Counters")
    assert "- bsa@reference at 16,384 tokens: planes per pair 4.25" in body
    row = next(line for line in quick[1].splitlines() if "`bsa@reference`" in line and "COUNTED" in line)
    assert row.split("|")[3].strip() == "-"


@pytest.mark.slow
def test_unavailable_engines_are_listed_with_their_reasons(quick):
    assert "`sdpa-cudnn`: cuDNN attention needs a CUDA device" in section(quick[1], "Unavailable here")


@pytest.mark.slow
def test_no_cell_breaks_its_table_and_no_bare_tflops_stand_in_one(quick):
    _, text = quick
    widths = [line.replace("\\|", "").count("|") for line in text.splitlines()]
    for above, below in itertools.pairwise(widths):
        assert not above or not below or above == below
    assert "TFLOP/s exec" in text
    assert "TFLOPS" not in text


@pytest.mark.slow
def test_wrong_and_unverified_rows_have_no_speed_up(quick):
    _, text = quick
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `full@sdpa-efficient` | unverified")]
    assert [row[4] for row in rows] == ["-"]
    assert "| `bsa@triton` | WRONG | - | - | - |" in text


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_one_length_with_several_densities_is_drawn_against_density(tmp_path):
    files, text = report_of(tmp_path, made.sparsity_results())
    names = {path.stem for path in files.plots}
    assert "density-forward" in names
    assert "speedup-forward" not in names
    assert "faster below a realised density of about" in section(text, "Break-even density")
    assert "### Break-even length" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_claims_of_a_paper_are_marked_as_such_and_quoted_to_the_digit(tmp_path):
    body = section(report_of(tmp_path, made.paper_results()[2:5])[1], "Beside the paper")
    assert "12.85x (paper's figure, N)" in body
    assert "second-hand notes" in body


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = made.write_run(tmp_path / "run", made.sparsity_results())
    first, second = (write_report(run, tmp_path / name) for name in ("a", "b"))
    for one, two in zip(first.plots, second.plots, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    assert first.markdown.read_text() == second.markdown.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([], "0 cases (none)"),
        ([made.measured()], "No dense row was measured and proved correct"),
        ([made.measured(made.case("full@sdpa-flash"))], "compares dense engines only"),
        ([made.result(status=Status.NOT_MEASURED)], "Nothing was measured and proved correct"),
        ([made.result(status=Status.CRASHED, reason="a | b\nc")], "a | b c. `bsa@gather` (forward) at 1,024 tokens."),
        ([made.measured(timing=made.timing(1.0, samples=[1.0]))], "1.00 s †"),
        ([made.measured(timing=made.timing(1.0, settled=False))], "did not settle before its cap: `bsa@gather`"),
        ([made.measured(memory=None, work=None)], "| **`bsa@gather`** | OK |"),
    ],
)
def test_a_report_holds_whatever_a_run_lacks(tmp_path, results, says):
    _, text = report_of(tmp_path, results)
    assert says in text


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_cases_whose_timers_disagree_are_named_and_no_others(tmp_path):
    def timed(implementation, checked_s):
        check = CrossCheck(timer="device-span", median_s=checked_s, num_samples=20)
        timing = made.timing(1.0, timer="event", cache="cold", cross_check=check)
        return made.measured(made.case(implementation), timing=timing)

    results = made.renumber([timed("bsa@gather", 0.99), timed("bsa@flex", 0.9)])
    body = section(report_of(tmp_path, results)[1], "To keep in mind")
    (line,) = [line for line in body.splitlines() if "two timers" in line]
    assert line.endswith(
        "3.00% apart, so that one of them measures something else: `bsa@flex` (forward) at 1,024 tokens."
    )


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_an_interrupted_run_says_how_many_cases_are_left(tmp_path):
    _, text = report_of(tmp_path, [made.measured()], num_cases=5)
    assert "**Unfinished**, cases left: 4 of 5; --resume goes on." in text
    assert "4 of 5 cases have no line" in text


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_two_environments_are_never_compared(tmp_path):
    dense = made.measured(made.case("full@sdpa-flash"), median=1.0)
    sparse = made.measured(median=0.1, env_hash="f" * 12)
    _, text = report_of(tmp_path, made.renumber([dense, sparse]))
    assert "2 different environments" in text
    assert "faster than" not in text


def test_the_default_folder_is_named_after_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made.write_run(tmp_path / "results" / "made-up-run", [made.result(status=Status.OOM)])
    files = write_report(Path("results/made-up-run"))
    assert files.markdown == Path("reports/made-up-run/report.md")
    assert files.markdown.read_text().startswith("Made from `results/made-up-run/results.jsonl`")


def test_an_unwritable_folder_is_an_error_that_names_it(tmp_path):
    run = made.write_run(tmp_path / "run", [made.measured()])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.report: the report cannot be written"):
        write_report(run, tmp_path / "file" / "report")


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_lists_that_are_walked_have_a_line_for_each_sparse_implementation(quick, tmp_path):
    _, text = report_of(tmp_path / "ours", [made.measured(made.case("bsa@triton", 1024))])
    assert "- `bsa@triton`: 45.2 KV blocks in the mean, at most 1,234; union efficiency 75.5%" in text
    _, text = quick
    assert "- `bsa@gather`: 45.2 KV blocks in the mean, at most 1,234; union efficiency 100%" in text
    assert "`full@sdpa-flash`: 45" not in text
    results = [
        r.model_copy(update={"work": r.work and r.work.model_copy(update=WITHOUT)}) for r in made.quick_results()
    ]
    assert "**Lists that are walked**\n" not in report_of(tmp_path, results)[1]


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_forms_of_an_engine_stand_beside_it_and_need_no_file_names_of_their_own(tmp_path):
    names = ("full@sdpa-flash", "bsa@triton", "bsa@triton:quad", "bsa@triton:fused+pack")
    results = [made.measured(made.case(name, tokens)) for tokens in (1024, 2048) for name in names]
    files, text = report_of(tmp_path, results)
    assert "| `bsa@triton:fused+pack` |" in text or "| **`bsa@triton:fused+pack`** |" in text
    assert all(re.fullmatch(r"[a-z0-9-]+", path.stem) for path in files.plots)
