"""What each plot shows, by its artists: series, labels, limits, marks; and what is said where data is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import report_factory as made

from bsa_bench.errors import UsageError
from bsa_bench.report import phases, plan_plot, style
from bsa_bench.report.page import COLUMN_INCHES, Page
from bsa_bench.report.plots import KINDS, draw_kind
from bsa_bench.result import Ceiling, DeviceState, Status
from bsa_bench.store.reader import read_run

CEILINGS = [
    Ceiling(name="GEMM float32", value=2e11, unit="FLOP/s", detail="scripted"),
    Ceiling(name="copy", value=1e10, unit="B/s", detail="scripted"),
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, by their names; laid out, not rendered."""
    figures = {}

    def save(figure, folder, name, formats):
        figure.draw_without_rendering()
        figures[name] = figure
        return tuple(folder / f"{name}.{each}" for each in formats)

    monkeypatch.setattr(style, "save", save)
    return figures


@pytest.fixture
def draw(drawn, tmp_path):
    """Draw a kind of plot of made-up results; returns the figures."""

    def run(name, results, page=None, case=None, **fields):
        run = read_run(made.write_run(tmp_path / "run", made.renumber(results), **fields))
        draw_kind(name, [run], tmp_path / "out", page=page or Page(), case=case)
        return drawn

    return run


def two_lengths(slow_at=1024):
    """A sparse row that is slower at the first length and faster at the second."""
    results = []
    for tokens, sparse_s in ((1024, 2.0 if slow_at else 0.5), (2048, 0.5)):
        results += [made.measured(made.case("full@sdpa-flash", tokens), median=1.0)]
        results += [made.measured(made.case("bsa@gather", tokens), median=sparse_s)]
    return results


def disturbed(result, share=0.43):
    return result.model_copy(update={"state": DeviceState(other_cpu_share=share)})


def texts(figure):
    """All texts of a figure, legends and axes included."""
    import matplotlib.text

    return [found.get_text() for found in figure.findobj(matplotlib.text.Text) if found.get_text()]


def legend(figure):
    return [text.get_text().replace("\n", " ") for each in figure.legends for text in each.get_texts()]


def line_of(axes, label):
    """x and y of the line or errorbar with a label."""
    handles, labels = axes.get_legend_handles_labels()
    handle = handles[labels.index(label)]
    line = handle.lines[0] if hasattr(handle, "has_yerr") else handle
    return list(line.get_xdata()), list(line.get_ydata())


def bars_of(axes, label):
    """Both ends of the interval bars of a series, one pair of points a bar."""
    handles, labels = axes.get_legend_handles_labels()
    (bars,) = handles[labels.index(label)].lines[2]
    return bars.get_segments()


# Speed-up


def test_speedup_is_drawn_with_its_interval_the_ideal_and_the_break_even(draw):
    figure = draw("speedup", two_lengths())["speedup-forward"]
    (axes,) = figure.axes
    assert line_of(axes, "bsa@gather") == ([1024, 2048], pytest.approx([0.5, 2.0]))
    assert [len(bar) for bar in bars_of(axes, "bsa@gather")] == [2, 2]
    xs, ideal = line_of(axes, "ideal, 1/density")
    assert xs == [1024, 2048]
    assert ideal == pytest.approx([1 / (0.1 * 0.5 * 1.02)] * 2)
    (mark,) = [line for line in axes.lines if line.get_marker() == "|"]
    assert list(mark.get_xdata()) == pytest.approx([1024 * 2**0.5])
    assert "1,400" in texts(figure)
    assert "break-even, interpolated" in legend(figure)
    low, high = axes.get_ylim()
    assert low < 0.5
    assert high > max(ideal)


def test_a_speedup_that_never_crosses_says_that_there_is_no_break_even(draw):
    figure = draw("speedup", two_lengths(slow_at=None))["speedup-forward"]
    assert "no break-even within these lengths" in legend(figure)


def test_the_break_even_text_is_not_crossed_by_the_line_of_the_dense_row(draw):
    figure = draw("speedup", two_lengths())["speedup-forward"]
    (axes,) = figure.axes
    (text,) = [each for each in axes.texts if each.get_text() == "1,400"]
    box, (_, at) = text.get_window_extent(), axes.transData.transform((1024, 1.0))
    assert not box.y0 < at < box.y1


def test_a_disturbed_dense_row_makes_the_speedup_hollow_and_the_legend_says_so(draw):
    results = two_lengths()
    results[0] = disturbed(results[0])
    page = Page()
    figure = draw("speedup", results, page)["speedup-forward"]
    (axes,) = figure.axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == page.background]
    assert [list(line.get_xdata()) for line in hollow] == [[1024]]
    assert "hollow: disturbed" in legend(figure)


def test_density_has_the_realised_densities_in_order_and_a_break_even(draw):
    figure = draw("density", made.sparsity_results())["density-forward"]
    (axes,) = figure.axes
    xs, ys = line_of(axes, "bsa@gather")
    assert xs == pytest.approx([0.51 * d for d in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)])
    assert ys == sorted(ys, reverse=True)
    assert "break-even, interpolated" in legend(figure)


# Levels


def test_latency_is_log_log_and_an_unverified_row_is_drawn_hollow(draw):
    page = Page()
    figure = draw("latency", made.quick_results((1024, 2048)), page)["latency-forward"]
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    (hollow,) = [line for line in axes.lines if line.get_markerfacecolor() == page.background]
    assert list(hollow.get_xdata()) == [1024]
    assert "hollow: unverified" in legend(figure)


def test_one_length_lists_its_latencies_and_writes_each_figure(draw):
    results = [made.measured(made.case(name), median=m) for name, m in (("full@sdpa-flash", 0.25), ("bsa@gather", 0.5))]
    (axes,) = draw("latency", results)["latency-forward"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bsa@gather", "full@sdpa-flash"]
    assert {"250", "500"} <= {text.get_text() for text in axes.texts}


def test_memory_draws_the_peak_above_the_inputs_in_its_unit(draw):
    (axes,) = draw("memory", two_lengths())["memory-forward"].axes
    _, ys = line_of(axes, "bsa@gather")
    peak = int(made.workload(1024).tensor_bytes * 1.9)
    assert ys[0] == pytest.approx(peak / 2**20)
    assert "[MiB]" in axes.get_ylabel()


# Throughput


def test_tflops_stand_under_the_ceilings_that_the_run_measured(draw):
    figures = draw("tflops", two_lengths(), ceilings=CEILINGS)
    (axes,) = figures["tflops-forward"].axes
    assert line_of(axes, "GEMM float32, measured")[1] == pytest.approx([0.2, 0.2])
    assert "copy, measured" not in legend(figures["tflops-forward"])
    assert axes.get_ylim()[1] > 0.2


def test_a_roofline_has_the_slope_of_the_copy_up_to_the_matrix_product(draw):
    (axes,) = draw("tflops", two_lengths(), ceilings=CEILINGS)["roofline-forward"].axes
    (left, ridge), (low, high) = line_of(axes, "copy, measured")
    assert (low / left, high / ridge) == pytest.approx((0.01, 0.01))
    assert (ridge, high) == pytest.approx((20.0, 0.2))
    workload = made.workload(1024)
    xs, _ = line_of(axes, "full@sdpa-flash")
    assert xs[0] == pytest.approx(workload.dense_flop / (4 * workload.tensor_bytes))


def test_a_run_without_ceilings_says_so_and_has_no_roofline(draw):
    figures = draw("tflops", two_lengths())
    assert set(figures) == {"tflops-forward"}
    assert "no ceiling: the run measured none" in legend(figures["tflops-forward"])


def test_a_known_gpu_has_its_datasheet_as_a_ceiling(draw, tmp_path):
    environment = made.run_line(1).environment.model_copy(update={"device_name": "NVIDIA H100 80GB HBM3"})
    figures = draw("tflops", made.paper_results(), environment=environment)
    axes = figures["tflops-forward"].axes[0]
    assert line_of(axes, "H100 datasheet, bfloat16 dense")[1] == pytest.approx([989, 989])


# Phases, Pareto, lists


def test_each_phase_has_a_colour_of_its_own_in_both_themes():
    for theme in ("light", "dark"):
        colours = [style.themed(colour, theme).lower() for colour in phases.COLOURS.values()]
        assert len(set(colours)) == len(colours)
    assert len({phases.phase_colours(["coarse", "combine", "mix"])[name] for name in ("coarse", "combine", "mix")}) == 3


def test_a_phase_of_a_third_party_has_a_colour_that_no_shown_phase_has():
    found = phases.phase_colours(["select", "theirs", "theirs_backward", "others"])
    assert found["theirs"] == found["theirs_backward"]
    assert len({found["select"], found["theirs"], found["others"]}) == 3


def test_phases_are_shares_that_sum_to_100_and_a_disturbed_bar_says_so(draw):
    results = two_lengths()
    results[1] = disturbed(results[1])
    (axes,) = draw("phases", results)["phases-forward"].axes
    ends = [container[0].get_x() + container[0].get_width() for container in axes.containers]
    assert max(ends) == pytest.approx(100)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "bsa@gather  1,024 (disturbed)",
        "bsa@gather  2,048",
    ]


def test_pareto_has_time_along_x_error_along_y_and_the_frontier_of_the_best(draw):
    figure = draw("pareto", made.sparsity_results())["pareto-forward"]
    (axes,) = figure.axes
    xs, ys = line_of(axes, "bsa@gather")
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    steps_x, steps_y = line_of(axes, "frontier: none is better in both")
    assert steps_y == sorted(steps_y, reverse=True)
    assert set(xs) <= set(steps_x)
    assert "fastest dense (full@sdpa-flash), error 0" in legend(figure)


def with_lists(result, **fields):
    lists = {"list_length_min": 2, "list_length_mean": 7.5, "list_length_max": 30, "row_imbalance": 4.0}
    return result.model_copy(update={"work": result.work.model_copy(update=lists | fields)})


def test_lists_show_shortest_mean_longest_eta_and_imbalance(draw):
    results = [with_lists(made.measured(made.case("bsa@triton"))), with_lists(made.measured(made.case("bsa@gather")))]
    lengths, shares, imbalances = draw("lists", results)["lists-forward"].axes
    assert {tuple(line.get_xdata()) for line in lengths.lines} >= {(2, 30), (7.5,), (45.25,)}
    assert {tuple(line.get_xdata()) for line in shares.lines} >= {(0.755,), (1.0,)}
    assert {tuple(line.get_xdata()) for line in imbalances.lines} >= {(1.0, 4.0)}
    assert "eta" in shares.get_xlabel()


def test_a_list_without_a_recorded_eta_says_so(draw):
    _, shares, _ = draw("lists", [with_lists(made.measured(), union_efficiency=None)])["lists-forward"].axes
    assert [text.get_text().strip() for text in shares.texts] == ["not recorded"]


# Samples


def test_samples_stand_in_order_process_by_process_with_the_disturbed_one_marked(draw):
    first, second = made.repeated(made.case(), medians=[1.0, 2.0])
    page = Page()
    figure = draw("samples", [first, disturbed(second)], page, num_processes=2)["samples-forward"]
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [list(range(1, 22)), list(range(22, 43))]
    assert list(dots[0].get_ydata()) == pytest.approx([1e3 * s for s in first.timing.samples])
    assert {text.get_text() for text in axes.texts} == {"1", "2", "43%"}
    (span,) = [patch for patch in axes.patches if patch.get_hatch() == "///"]
    assert (span.get_x(), span.get_width()) == (21.5, 21)
    said = legend(figure)
    assert "disturbed: others took this share of the processor" in said
    assert "no clock was recorded" in said


def test_a_recorded_clock_is_drawn_over_the_samples(draw):
    gpu = made.timing(1.0, timer="event")
    state = DeviceState(sm_clock_hz=[1.2e9, 1.5e9, 1.8e9], throttle_ns={"power": 250_000_000})
    figure = draw("samples", [made.measured(timing=gpu, state=state)])["samples-forward"]
    _, clock = figure.axes
    assert list(clock.lines[0].get_ydata()) == [1.5, 1.5]
    assert clock.get_ylabel() == "SM clock [GHz]"
    assert {"SM clock, median", "throttled for so long"} <= set(legend(figure))
    assert "0.25 s" in texts(figure)


def test_rows_without_a_panel_are_counted_in_the_title_and_case_chooses_others(draw):
    results = made.quick_results()
    figure = draw("samples", results)["samples-forward"]
    assert re.search(r"\(12 of \d\d rows; --case shows others\)", figure.get_suptitle())
    figure = draw("samples", results, case="*/1024-8x8x16/*forward")["samples-forward"]
    assert all("1,024 tokens" in axes.get_title(loc="left") for axes in figure.axes)


def test_on_paper_the_legend_says_that_not_all_rows_are_drawn(draw):
    figure = draw("samples", made.quick_results((1024,)), Page("paper"))["samples-forward-paper"]
    assert "4 of 6 rows are drawn" in legend(figure)


# The plan


def picture(**fields):
    """Two latent frames of 4 x 4 tokens in blocks of 2 x 2; the query block 1 sees blocks 0 and 1 of frame 1."""
    t, y, x = np.indices((2, 4, 4))
    block = t * 4 + (y // 2) * 2 + x // 2
    base = {
        "case_id": "a", "label": "bsa@gather", "grid": (2, 4, 4), "head": 0, "query_block": 1, "num_query_blocks": 8,
        "num_seen": 2, "num_kv_blocks": 8, "seen": block < 2, "kv_block": block, "in_block": block == 1,
        "kept": (block == 1) & (x == 2), "frames": np.full((2, 8, 8, 3), 77, np.uint8), "source": "video:bikes",
        "is_cut": False, "is_measured": True,
    }  # fmt: skip
    return plan_plot.PlanPicture(**(base | fields))


def test_a_plan_shows_what_is_seen_and_which_tokens_are_computed(drawn, tmp_path):
    plan_plot.draw_plan(picture(), tmp_path, Page())
    figure = drawn["plan"]
    first, second, close_up = figure.axes
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["latent frame 1", "latent frame 2", "latent frame 1"]
    frame, veil = (image.get_array() for image in first.images)
    assert (frame == 77).all()
    assert (veil[..., 3] > 0).sum() == 8
    assert (second.images[1].get_array()[..., 3] > 0).all()
    (dots,) = close_up.lines
    assert sorted(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [(2.5, 0.5), (2.5, 1.5)]
    said = texts(figure)
    assert "head 0, query block 1 of 8: 2 of 8 KV blocks seen" in said
    assert "2 of 4 query tokens computed" in said
    assert "the plan that was measured" in said


def test_a_plan_of_an_input_without_frames_says_so(drawn, tmp_path):
    plan_plot.draw_plan(picture(frames=None, source="smooth", is_measured=None), tmp_path, Page())
    assert "input smooth has no frames" in texts(drawn["plan"])


# Pages


@pytest.mark.parametrize("name", sorted(KINDS))
def test_paper_is_a_column_of_8_pt_without_a_title_and_with_labels_of_one_line(name, draw):
    results = [with_lists(r) if r.work and r.case.options else r for r in made.sparsity_results()]
    results += [with_lists(made.measured(made.case(e, 1024))) for e in ("bsa@gather", "bsa@flex")]
    results += [made.measured(made.case("full@sdpa-flash", 1024))]
    figures = draw(name, results, Page("paper", "dark"), ceilings=CEILINGS)
    assert figures
    for file, figure in figures.items():
        assert file.endswith("-paper-dark")
        assert figure.get_figwidth() == COLUMN_INCHES
        assert figure.get_suptitle() == ""
        assert not [text for text in texts(figure) if "\n" in text]
        assert {round(text.get_fontsize(), 1) for each in figure.legends for text in each.get_texts()} == {8.0}
        assert figure.get_facecolor()[:3] == pytest.approx((0x15 / 255, 0x18 / 255, 0x1C / 255))


@pytest.mark.parametrize("kind", ["speedup", "latency", "phases", "memory", "pareto", "tflops", "samples"])
def test_no_text_of_a_screen_plot_leaves_the_page(kind, draw):
    for figure in draw(kind, made.quick_results((1024, 2048))).values():
        page = figure.get_window_extent()
        for axes in figure.axes:
            box = axes.get_tightbbox()
            assert page.x0 - 1 <= box.x0
            assert box.x1 <= page.x1 + 1


@pytest.mark.slow
def test_each_format_is_written_as_itself_and_the_same_bytes_again(tmp_path):
    run = read_run(made.write_run(tmp_path / "run", two_lengths()))
    page = Page("paper", "light", ("png", "svg", "pdf"))
    (plot,) = draw_kind("latency", [run], tmp_path / "a", page=page)
    (again,) = draw_kind("latency", [run], tmp_path / "b", page=page)
    heads = {path.suffix: path.read_bytes()[:5] for path in plot.files}
    assert heads[".png"][1:4] == b"PNG"
    assert heads[".svg"] == b"<?xml"
    assert heads[".pdf"] == b"%PDF-"
    assert [path.read_bytes() for path in plot.files] == [path.read_bytes() for path in again.files]


# Missing data


LACKS = {
    "speedup": "at two lengths or more. To make it: bsa-bench run --suite quick",
    "density": "at two densities or more of one workload, and a dense one. To make it: bsa-bench run --suite sparsity",
    "latency": "a case with a latency. To make it: bsa-bench run --suite quick",
    "tflops": "a count of executed FLOP. To make it: bsa-bench run --suite quick",
    "phases": "a sparse case with timed phases. To make it: bsa-bench run --suite quick",
    "memory": "a case with a measured peak of memory. To make it: bsa-bench run --suite quick",
    "pareto": "compared with dense attention's output. To make it: bsa-bench run --suite sparsity",
    "lists": "a case with a block plan whose lists were counted. To make it: bsa-bench run --suite quick",
    "samples": "a case with samples. To make it: bsa-bench run --suite quick --processes 5",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_plot_without_its_data_says_what_it_lacks_and_writes_nothing(name, draw, tmp_path):
    with pytest.raises(UsageError) as error:
        draw(name, [made.result(made.case("full@sdpa-flash"), Status.OOM)])
    text = str(error.value)
    assert text.startswith(f"plot {name}: run made-up-run has 1 case (1 OOM); expected ")
    assert text.endswith(LACKS[name])
    assert not list(tmp_path.glob("out/*"))


def test_several_runs_are_drawn_together_and_their_labels_name_them(drawn, tmp_path):
    runs = []
    for name in ("one", "two"):
        results = [r.model_copy(update={"run_id": name}) for r in made.renumber(two_lengths())]
        runs.append(read_run(made.write_run(tmp_path / name, results, run_id=name)))
    draw_kind("latency", runs, tmp_path / "out", page=Page())
    (axes,) = drawn["latency-forward"].axes
    assert {"bsa@gather (one)", "bsa@gather (two)"} <= set(axes.get_legend_handles_labels()[1])
    with pytest.raises(UsageError, match="got 'one' twice"):
        draw_kind("latency", [runs[0], runs[0]], tmp_path / "out", page=Page())


# The command


@pytest.fixture
def stored(folder):
    made.write_run(folder / "results" / "made-up-run", made.renumber(two_lengths()))
    return folder


def test_plot_prints_the_files_that_it_wrote(bench, stored):
    code, out, err = bench("plot", "latency", "made-up-run", "--out", "here", "--format", "svg,pdf", "--theme", "dark")
    assert (code, err) == (0, "")
    assert out.split() == ["here/latency-forward-dark.svg", "here/latency-forward-dark.pdf"]
    assert all(Path(line).stat().st_size > 1000 for line in out.split())


@pytest.mark.usefixtures("unrendered")
def test_plot_as_json_is_one_document_with_titles(bench, stored):
    code, out, _ = bench("plot", "memory", "latest", "--json")
    (plot,) = json.loads(out)["plots"]
    assert (code, plot) == (0, {"title": "Peak memory, forward", "files": ["plots/memory-forward.png"]})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["speedups", "latest"], "got 'speedups', expected one of speedup, density, .*; did you mean 'speedup'"),
        (["latency", "latest", "--format", "png,gif"], "--format: got 'png,gif', expected some of png,svg,pdf"),
        (["latency", "other"], "run 'other': not found"),
        (["latency", "latest", "--case", "nowhere"], "--case 'nowhere': no case of made-up-run has that in its id"),
        (["latency", "latest", "--head", "1"], "they choose what `plot plan` shows, got them with 'latency'"),
        (["lists", "latest"], "expected a case with a block plan whose lists were counted. To make it: bsa-bench run"),
        (["plan", "latest", "--case", "full@"], "none has a block plan; expected a case of a block method"),
        (["plan", "latest", "--head", "2"], "--head: got 2, expected 0 to 1"),
    ],
)
def test_what_cannot_be_drawn_is_a_usage_error(arguments, says, bench, stored):
    code, out, err = bench("plot", *arguments)
    assert (code, out) == (2, "")
    assert re.search(says, err.replace("\n", " "))
    assert not Path("plots").exists() or not list(Path("plots").iterdir())


def test_plot_needs_a_run(bench, stored):
    code, _, err = bench("plot", "latency")
    assert code == 2
    assert "RUN" in err
