"""Each named table from made-up runs: its cells, marks, footnotes and notes."""

import pytest
import report_factory as made
import table_factory as tables
from table_factory import BSA, DENSE, cells, failed, marks, processes, table

from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.report.named_tables import TABLE_NAMES
from bsa_bench.report.named_tables.fields import EmptyTableError
from bsa_bench.report.named_tables.published import NVIDIA_RATES
from bsa_bench.result import Status


def notes_of(one):
    return "\n".join(one.notes)


def footnotes_of(one, first, *, group=0):
    """All footnotes of the row whose first cell holds these words."""
    row = next(row for row in one.groups[group].rows if row[0].words == first)
    return [note for cell in row for note in cell.footnotes]


def titles(one):
    return [group.title for group in one.groups]


# main


def test_main_has_a_row_for_each_method_with_its_speed_up_over_the_fastest_dense(tmp_path):
    slow_dense = processes(made.case("full@sdpa-math"), 0.030)
    one = table(tmp_path, "main", [*tables.both_passes(), *slow_dense])
    dense, sparse = cells(one)
    assert (dense["method"], dense["engine"], dense["speedup_forward"]) == ("full", "sdpa-flash", "1")
    assert (sparse["method"], sparse["engine"]) == ("bsa", "gather")
    assert (sparse["sparsity"], sparse["flop_ratio"]) == ("94.9", "20.0")
    assert (sparse["latency_forward_s"], sparse["speedup_forward"]) == ("2.00", "5.00")
    assert sparse["speedup_forward_backward"] == "5.00"
    assert "Fastest dense here: `full@sdpa-flash`." in notes_of(one)


def test_main_takes_each_method_on_its_fastest_engine(tmp_path):
    flex = processes(made.case("bsa@flex", options=BsaOptions()), 0.001)
    one = table(tmp_path, "main", [*tables.one_length(), *flex])
    assert [(row["method"], row["engine"]) for row in cells(one)] == [("full", "sdpa-flash"), ("bsa", "flex")]


def test_main_has_the_papers_rows_behind_the_measured_ones_of_their_length_and_says_whose_they_are(tmp_path):
    one = table(tmp_path, "main", [*tables.both_passes(1024), *tables.both_passes(23_296)])
    assert titles(one) == ["1,024 tokens", "23,296 tokens", "23,296 tokens: paper, H100", "153,600 tokens: paper, H100"]
    rows = {row["method"]: row for row in cells(one, group=2)}
    assert rows["BSA (paper, H100)"]["speedup_forward_backward"] == "12.85"
    assert rows["BSA (paper, H100)"]["sparsity"] == "93"
    assert rows["BSA (paper, H100)"]["latency_forward_backward_s"] == "-"
    assert rows["BSA (paper, H100)"]["speedup_forward"] == "-"
    last = {row["method"]: row for row in cells(one, group=3)}
    assert last["BSA (paper, H100)"]["speedup_forward_backward"] == "17.79"
    assert any("second-hand notes" in note for note in footnotes_of(one, "MoBA (paper, H100)", group=3))
    assert any("the paper itself" in note for note in footnotes_of(one, "BSA (paper, H100)", group=3))
    assert "No run here has the paper's 153,600 tokens" in notes_of(one)
    assert "--suite paper" in notes_of(one)


def test_main_never_marks_a_figure_of_the_paper(tmp_path):
    one = table(tmp_path, "main", tables.both_passes(23_296))
    assert marks(one, "speedup_forward_backward") == {"full": "", "bsa": "best"}
    assert set(marks(one, "speedup_forward_backward", group=1).values()) == {""}


def test_main_without_forward_and_backward_says_how_to_measure_it(tmp_path):
    one = table(tmp_path, "main", tables.one_length())
    assert cells(one)[1]["speedup_forward_backward"] == "-"
    assert "'passes=forward,forward+backward'" in notes_of(one)


def test_main_leaves_the_flash_attention_column_empty_with_the_reason_where_it_did_not_run(tmp_path):
    one = table(tmp_path, "main", tables.one_length())
    assert cells(one)[1]["speedup_over_fa2_forward"] == "-"
    assert any("FlashAttention-2 did not run: flash-attn needs a CUDA device" in n for n in footnotes_of(one, "bsa"))


def test_main_divides_by_flash_attention_where_it_ran_and_by_pytorchs_on_a_gpu_where_it_did_not(tmp_path):
    gpu = tables.on_gpu()
    results = tables.in_environment(tables.one_length(), gpu.hash)
    package = tables.in_environment(processes(made.case("full@flash-attn"), 0.040), gpu.hash)
    one = table(tmp_path / "package", "main", [*results, *package], environment=gpu)
    assert cells(one)[1]["speedup_over_fa2_forward"] == "20.0"
    assert cells(one)[1]["speedup_forward"] == "5.00"
    assert any("the package `flash-attn`" in note for note in footnotes_of(one, "bsa"))
    other = table(tmp_path / "torch", "main", results, environment=gpu)
    assert cells(other)[1]["speedup_over_fa2_forward"] == "5.00"
    assert any("PyTorch's, `sdpa-flash`" in note for note in footnotes_of(other, "bsa"))


# marks and doubts


def test_the_best_of_several_processes_is_marked_where_the_intervals_are_separate(tmp_path):
    vsa = made.case("vsa@gather")
    slow = processes(made.case(BSA, options=BsaOptions(kv_density=0.3)), 0.0021)
    one = table(tmp_path, "systems", [*tables.one_length(), *slow, *tables.with_work(processes(vsa, 0.004))])
    by_row = marks(one, "latency_forward_s")
    assert by_row["bsa@gather kv 0.1"] == "best"
    assert by_row["bsa@gather kv 0.3"] == "second"
    assert by_row["vsa@gather"] == by_row[DENSE] == ""


def test_nothing_is_marked_where_the_processes_overlap(tmp_path):
    wide = (0.8, 0.9, 1.0, 1.1, 1.2)
    results = tables.one_length()
    results += processes(made.case(BSA, options=BsaOptions(kv_density=0.3)), 0.0021, spread=wide)
    one = table(tmp_path, "systems", results)
    assert set(marks(one, "latency_forward_s").values()) == {""}
    assert "No figure is marked as best" in notes_of(one)


def test_nothing_is_marked_in_a_run_of_one_process_and_a_note_says_why(tmp_path):
    one = table(
        tmp_path, "systems", [made.measured(made.case(DENSE)), made.measured(made.case(BSA, options=BsaOptions()))]
    )
    assert set(marks(one, "latency_forward_s").values()) == {""}
    assert "Measured in one process" in notes_of(one)
    assert "one process per case" in notes_of(one)


@pytest.mark.parametrize(
    ("doubt", "words"),
    [
        (tables.disturbed, "disturbed: others took more than 5.00% of the CPU time"),
        (tables.throttled, "throttled: the device lowered its clocks"),
        (tables.unverified, "unverified: never compared with an oracle"),
    ],
)
def test_a_row_in_doubt_is_marked_as_such_and_never_as_best(tmp_path, doubt, words):
    dense, sparse = tables.one_length()[:5], tables.one_length()[5:]
    one = table(tmp_path, "systems", [*dense, *doubt(sparse)])
    assert any(words in note for note in footnotes_of(one, BSA))
    assert marks(one, "latency_forward_s")[BSA] == ""
    assert table(tmp_path / "sound", "systems", tables.one_length()).has_marks


def test_an_unverified_row_has_a_latency_and_no_speed_up(tmp_path):
    results = tables.one_length()
    one = table(tmp_path, "systems", [*results[:5], *tables.unverified(results[5:])])
    sparse = cells(one)[1]
    assert (sparse["latency_forward_s"], sparse["speedup_forward"]) == ("2.00", "-")


def test_figures_print_fewer_digits_where_their_processes_scatter(tmp_path):
    wide = (0.8, 0.9, 1.0, 1.1, 1.2)
    results = [*tables.one_length()[:5], *processes(made.case(BSA, options=BsaOptions()), 0.002, spread=wide)]
    sparse = cells(table(tmp_path, "systems", results))[1]
    assert (sparse["latency_forward_s"], sparse["speedup_forward"]) == ("2.0", "5")


# notes


def test_notes_name_run_suite_device_processes_timer_cache_and_commit(tmp_path):
    text = notes_of(table(tmp_path, "main", tables.one_length()))
    assert "Run `run-0`: suite `made-up`, 2025-01-02" in text
    assert "Made-up CPU, 2 threads" in text
    assert "commit `0123456789ab`" in text
    assert "5 processes per case; host timer, cache warm." in text
    assert "a multiply-add is 2, softmax is not counted, backward is 2.5x forward" in text


def test_notes_say_what_was_left_out_and_why(tmp_path):
    results = [*tables.one_length(), failed(made.case(BSA, 4096)), made.wrong(made.case("bsa@flex"))]
    results += [made.result(made.case(BSA, 8192), Status.NOT_MEASURED, reason="the budget was spent before its turn")]
    results += [made.counted(made.case("bsa@reference"), planes=2.0)]
    (left_out,) = [
        note
        for note in table(tmp_path, "systems", [*results, *processes(made.case("vsa@gather"), 0.1)]).notes
        if note.startswith("Left out")
    ]
    assert "`bsa@gather` (forward) at 4,096 tokens: OOM (out of memory at 7.9 GiB)" in left_out
    assert "`bsa@flex` (forward) at 1,024 tokens: WRONG (grad_k: 0.31" in left_out
    assert "at 8,192 tokens: NOT_MEASURED (not reached" in left_out
    assert "`bsa@reference` (forward) at 1,024 tokens: counted, never timed" in left_out
    assert "`flash-attn`: not available there (flash-attn needs a CUDA device" in left_out


def test_a_case_that_failed_in_one_pass_has_its_status_there_with_the_reason(tmp_path):
    results = [*tables.both_passes()[:10], failed(made.case(BSA, 1024, "backward", options=BsaOptions()))]
    results += processes(made.case(DENSE, 1024, "backward"), 0.02)
    one = table(tmp_path, "systems", results)
    assert cells(one)[1]["latency_backward_s"] == "OOM"
    assert "out of memory at 7.9 GiB" in footnotes_of(one, BSA)


def test_an_unfinished_run_says_how_many_cases_it_did_not_reach(tmp_path):
    one = table(tmp_path, "main", tables.one_length(), num_cases=9)
    assert "7 of 9 cases were not reached" in notes_of(one)


# several runs


def test_runs_of_two_devices_are_groups_of_their_own_and_ratios_stay_within_each(tmp_path):
    gpu = tables.on_gpu()
    fast = tables.in_environment(tables.one_length(dense=1.0, bsa=0.1), gpu.hash)
    one = table(tmp_path, "systems", tables.one_length(), (fast, {"environment": gpu}))
    assert titles(one) == ["1,024 tokens; Made-up CPU, 2 threads", f"1,024 tokens; {gpu.device_name}"]
    assert [cells(one, group=i)[1]["speedup_forward"] for i in (0, 1)] == ["5.00", "10.0"]
    assert [marks(one, "latency_forward_s", group=i)[BSA] for i in (0, 1)] == ["best", "best"]
    assert "Run `run-1`" in notes_of(one)
    assert "Left out of `run-0` and `run-1`: `flash-attn`" in notes_of(one)


def test_two_runs_of_one_device_are_told_apart_by_their_names(tmp_path):
    one = table(tmp_path, "systems", tables.one_length(), tables.one_length())
    assert titles(one) == [f"1,024 tokens; Made-up CPU, 2 threads, run run-{i}" for i in (0, 1)]


def test_a_run_that_was_resumed_elsewhere_is_compared_within_each_environment(tmp_path):
    here, there = tables.one_length(), tables.in_environment(tables.one_length(4096, dense=3.0, bsa=1.0), "o" * 12)
    one = table(tmp_path, "systems", [*here, *there])
    assert titles(one) == [
        f"{tokens} tokens; Made-up CPU, 2 threads, run run-0, environment {letter * 12}"
        for tokens, letter in (("1,024", "e"), ("4,096", "o"))
    ]
    assert [cells(one, group=i)[1]["speedup_forward"] for i in (0, 1)] == ["5.00", "3.00"]


def test_a_run_that_is_given_twice_counts_once(tmp_path):
    from bsa_bench.report.named_tables import make_table

    run = made.write_run(tmp_path / "run", made.renumber(tables.one_length()))
    assert len(make_table("systems", [run, run]).groups) == 1


def test_workloads_that_differ_in_shape_say_so_in_their_titles(tmp_path):
    one = table(tmp_path, "systems", [*tables.one_length(), *tables.one_length(heads=4)])
    assert titles(one) == [f"1,024 tokens, {heads} heads x 64, float32, video:testclip" for heads in (2, 4)]


# the other tables


def test_ablation_tells_query_sparsity_kv_sparsity_and_both_apart(tmp_path):
    one = table(tmp_path, "ablation", tables.ablation_results())
    rows = {row["part"]: row for row in cells(one)}
    assert list(rows) == ["query only", "KV only", "both"]
    assert (rows["query only"]["query_keep"], rows["query only"]["kv_density"]) == ("50.0", "100")
    assert (rows["KV only"]["query_keep"], rows["KV only"]["kv_density"]) == ("100", "10.0")
    assert [rows[part]["speedup_forward"] for part in rows] == ["1.67", "5.00", "10.0"]
    assert rows["both"]["achieved"] == "51.0"
    assert rows["both"]["paper_speedup"] == "12.85"
    assert rows["KV only"]["paper_speedup"] == "-"
    assert any("second-hand notes" in note for note in footnotes_of(one, "both"))
    assert marks(one, "speedup_forward") == {"query only": "second", "KV only": "", "both": "best"} or marks(
        one, "speedup_forward"
    ) == {"query only": "", "KV only": "second", "both": "best"}


def test_ablation_names_the_parts_that_the_run_lacks(tmp_path):
    results = [r for r in tables.ablation_results() if r.work.kv_density_realised != 1.0]
    assert "No run here has a correct row of: query only" in notes_of(table(tmp_path, "ablation", results))


def test_engines_groups_the_rows_of_one_method_with_the_same_options(tmp_path):
    flex = processes(made.case("bsa@flex", options=BsaOptions()), 0.001)
    alone = processes(made.case("vsa@gather"), 0.005)
    one = table(tmp_path, "engines", [*tables.one_length(), *flex, *alone])
    assert titles(one) == ["bsa d0.1-k0.5, 1,024 tokens"]
    assert {row["implementation"]: row["latency_forward_s"] for row in cells(one)} == {BSA: "2.00", "bsa@flex": "1.00"}
    assert marks(one, "latency_forward_s") == {BSA: "", "bsa@flex": "best"}
    assert cells(one)[0]["peak_above_inputs_bytes"] != "-"


def test_systems_says_what_a_method_is_and_shows_no_rank_of_one_that_approximates_nothing(tmp_path):
    causal = [
        *processes(made.case("full-causal@sdpa-flash"), 0.02),
        *processes(made.case("swa@gather"), 0.01),
        *processes(made.case("gated-delta-rule@chunked"), 0.001),
    ]
    one = table(tmp_path, "systems", [*tables.one_length(), *causal])
    assert titles(one)[1].endswith("causal")
    assert "causal: compared with causal dense attention" in footnotes_of(one, "swa@gather", group=1)
    assert "does not approximate dense attention" in footnotes_of(one, "gated-delta-rule@chunked", group=1)
    assert marks(one, "speedup_forward", group=1)["swa@gather"] == "best"
    assert {row["implementation"]: row["speedup_forward"] for row in cells(one, group=1)}["swa@gather"] == "2.00"


def test_phases_shows_each_phase_its_sum_and_the_whole(tmp_path):
    one = table(tmp_path, "phases", tables.one_length(16_384))
    (row,) = cells(one)
    assert titles(one) == ["16,384 tokens, forward"]
    assert row["implementation"] == BSA
    figures = [float(row[f"phase_{name}_s"]) for name in ("permute", "select", "plan", "attend", "fill")]
    assert float(row["phases_sum_s"]) == pytest.approx(sum(figures), rel=0.02)
    assert row["whole_s"] == "2.00"


def test_scaling_shows_the_speed_up_of_each_length_and_where_it_breaks_even(tmp_path):
    results = [*tables.one_length(1024, dense=1.0, bsa=2.0), *tables.one_length(4096, dense=16.0, bsa=4.0)]
    (row,) = cells(table(tmp_path, "scaling", results))
    assert row["speedup_1024_tokens"] == "0.500"
    assert row["speedup_4096_tokens"] == "4.00"
    assert row["sparsity_nominal"] == "95.0"
    assert 1024 < float(row["break_even_tokens"]) < 4096


def test_scaling_says_on_which_side_a_break_even_that_was_not_seen_lies(tmp_path):
    faster = [*tables.one_length(1024), *tables.one_length(4096)]
    slower = [*tables.one_length(1024, bsa=20.0), *tables.one_length(4096, bsa=20.0)]
    assert cells(table(tmp_path / "f", "scaling", faster))[0]["break_even_tokens"] == "< 1,024"
    assert cells(table(tmp_path / "s", "scaling", slower))[0]["break_even_tokens"] == "> 4,096"


def test_scaling_leaves_a_length_without_a_dense_row_empty(tmp_path):
    results = [*tables.one_length(1024), *tables.one_length(4096)]
    results += processes(made.case(BSA, 8192, options=BsaOptions()), 0.008)
    columns = [column.key for column in table(tmp_path, "scaling", results).columns]
    assert "speedup_8192_tokens" not in columns


def test_memory_takes_the_largest_reading_of_all_processes_and_marks_nothing(tmp_path):
    dense, sparse = tables.one_length()[:5], tables.one_length()[5:]
    readings = [50 << 20, 60 << 20, 55 << 20, 52 << 20, 51 << 20]
    sparse = [
        result.model_copy(update={"memory": result.memory.model_copy(update={"peak_above_inputs_bytes": reading})})
        for result, reading in zip(sparse, readings, strict=True)
    ]
    one = table(
        tmp_path,
        "memory",
        [*dense, *sparse, failed(made.case(BSA, 4096, options=BsaOptions())), *processes(made.case(DENSE, 4096), 0.1)],
    )
    rows = {row["implementation"]: row for row in cells(one)}
    assert one.columns[1].unit == "MiB"
    assert rows[BSA]["peak_bytes_1024_tokens"] == "60.0"
    assert rows[BSA]["peak_bytes_4096_tokens"] == "OOM"
    assert not one.has_marks


def test_accuracy_shows_error_and_budget_of_the_output_nearest_to_it(tmp_path):
    one = table(tmp_path, "accuracy", tables.both_passes())
    dense, sparse = cells(one)
    assert (sparse["oracle_error_relative_l2"], sparse["oracle_error_budget"]) == ("4.1e-07", "1.2e-06")
    assert (sparse["dense_error_relative_l2"], dense["dense_error_relative_l2"]) == ("0.179", "-")
    assert sparse["mass_kept"] == "85.7"
    assert "in doubt" not in notes_of(one)


def test_retention_is_the_effective_over_the_dense_rate(tmp_path):
    results = tables.one_length()
    dense = results[0].work.flops_dense_equiv
    results = [*results[:5], *tables.with_work(results[5:], flops_nominal=0.1 * dense, density_realised=0.1)]
    one = table(tmp_path, "retention", results)
    (row,) = cells(one)
    assert row["whole_retention"] == "50.0"  # a tenth of the work in a fifth of the time
    assert float(row["dense_flop_per_s"]) == pytest.approx(dense / 0.010 / 1e12, rel=0.01)
    assert float(row["whole_flop_per_s"]) == pytest.approx(0.1 * dense / 0.002 / 1e12, rel=0.01)


def test_retention_labels_nvidias_figures_as_published_and_never_marks_them(tmp_path):
    one = table(tmp_path, "retention", tables.one_length())
    (group,) = [i for i, title in enumerate(titles(one)) if "wan14b-720p" in title and "forward" in title]
    rows = {row["implementation"]: row for row in cells(one, group=group)}
    assert rows["cuDNN, 64-token blocks"]["attend_retention"] == "55.5"
    assert rows["cuDNN, 64-token blocks"]["attend_flop_per_s"] == "472"
    assert any("not measured here" in note for note in footnotes_of(one, "cuDNN, 64-token blocks", group=group))
    assert set(marks(one, "attend_retention", group=group).values()) == {""}
    assert len(NVIDIA_RATES) == 12


# what they lack


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_a_run_without_any_figure_gives_no_table_and_names_a_suite(tmp_path, name):
    with pytest.raises(EmptyTableError, match=rf"table {name}: expected .* bsa-bench run --suite \w+"):
        table(tmp_path, name, [failed(made.case(BSA))])


@pytest.mark.parametrize("name", ["main", "ablation", "engines", "systems", "phases", "scaling", "retention"])
def test_a_run_of_dense_attention_alone_gives_no_table_of_sparse_attention(tmp_path, name):
    with pytest.raises(EmptyTableError, match="run-0"):
        table(tmp_path, name, processes(made.case(DENSE), 0.010))
