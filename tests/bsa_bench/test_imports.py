"""Result files of other tools become published figures; each layout, and each file that is not as it ought to be."""

from __future__ import annotations

import hashlib
import json

import published_factory as files
import pytest
import report_factory as made
from published_factory import DEVICE, cudnn_row, nvbench_state, trace

from bsa_bench.errors import EXIT_NOTHING_MEASURED, EXIT_USAGE, StoreError, UsageError
from bsa_bench.exports import export_run
from bsa_bench.imports import FORMATS, NothingPublishedError, import_file
from bsa_bench.imports.record import SI_UNITS, Published, read_published


@pytest.fixture
def imported(tmp_path):
    """Write a text to a file and import it."""

    def run(text, **given):
        path = tmp_path / "theirs.txt"
        path.write_text(text, encoding="utf-8", newline="")
        return import_file(path, out=tmp_path / "out.jsonl", **given)

    return run


def axes_of(figure):
    return {name: value for name, value in figure.axes.model_dump().items() if value not in (None, {})}


# What is read of each format


def test_a_row_of_cudnn_frontend_is_a_latency_and_a_throughput_in_si_units(imported):
    latency, throughput = imported(files.cudnn()).figures
    assert (latency.metric, latency.value, latency.unit, latency.statistic) == ("latency", 0.00025, "ms", "median")
    assert (throughput.metric, throughput.value, throughput.unit) == ("throughput", 700e12, "TFLOP/s")
    assert (latency.tool, latency.implementation, latency.device) == ("cudnn-frontend", "cudnn", DEVICE)
    assert latency.axes == throughput.axes
    assert axes_of(latency) == {
        "length": 1024,
        "length_kv": 1024,
        "batch": 1,
        "heads": 4,
        "heads_kv": 4,
        "head_dim": 64,
        "dtype": "bfloat16",
        "passes": "forward",
        "mask": "none",
        "other": {"model": "made-up-model", "cudnn": "90000"},
    }


def test_the_wide_table_of_cudnn_frontend_is_both_passes(imported):
    row = cudnn_row("0.250,0.500,700.000,800.000", passes="both", deterministic=True)
    figures = imported(files.cudnn(row, header=files.CUDNN_WIDE)).figures
    assert [(f.axes.passes, f.metric, f.value) for f in figures] == [
        ("forward", "latency", 0.00025),
        ("forward", "throughput", 700e12),
        ("backward", "latency", 0.0005),
        ("backward", "throughput", 800e12),
    ]
    assert [f.axes.other.get("deterministic") for f in figures] == [None, None, "True", "True"]


def test_a_pass_that_the_wide_table_did_not_run_is_neither_imported_nor_counted(imported):
    done = imported(files.cudnn(cudnn_row("0.250,0.000,700.000,0.000"), header=files.CUDNN_WIDE))
    assert {f.axes.passes for f in done.figures} == {"forward"}
    assert done.left_out == {}


@pytest.mark.parametrize(
    ("fields", "mask"),
    [
        ({"mask": "no_mask"}, "none"),
        ({"mask": "top_left"}, "causal"),
        ({"mask": "bottom_right"}, "causal"),
        ({"mask": "top_left", "kv": 2048}, "top_left"),
        ({"mask": "top_left", "window": "128.000"}, "sliding window"),
    ],
)
def test_a_mask_is_called_causal_only_where_it_is_the_causal_square(fields, mask, imported):
    assert imported(files.cudnn(cudnn_row("1,2", **fields))).figures[0].axes.mask == mask


def test_tritonbench_has_a_figure_for_each_provider_and_metric(imported):
    text = files.tritonbench("(2, 4, 1024, 512, 64);0.5;300.5;0.25", "average;0.5;300.5;0.25")
    figures = imported(text, device=DEVICE, passes="backward").figures
    assert [(f.implementation, f.metric, f.value) for f in figures] == [
        ("sdpa", "latency", 0.0005),
        ("sdpa", "throughput", 300.5e12),
        ("fast-2", "latency", 0.00025),
    ]
    assert axes_of(figures[0]) == {
        "length": 1024,
        "length_kv": 512,
        "batch": 2,
        "heads": 4,
        "head_dim": 64,
        "passes": "backward",
    }


@pytest.mark.parametrize(
    ("shape", "cell", "axes"),
    [
        ("SeqLen", "4096", {"length": 4096}),
        ("(Batch, Heads, SeqLen, Dhead", "(1, 8, 512, 64)", {"batch": 1, "heads": 8, "length": 512, "head_dim": 64}),
        (
            "(B, Hq, M, Hkv, N, D) | Mask Type",
            "  (1, 8, 512, 2, 1024, 64) |     noop",
            {
                "batch": 1,
                "heads": 8,
                "length": 512,
                "heads_kv": 2,
                "length_kv": 1024,
                "head_dim": 64,
                "mask": "none",
            },
        ),
        (
            "(Batch, SeqLenQ, SeqLenKV, MaxLenKV, HeadQ, HeadKV, HeadD)",
            "(3, 1, 4096, 8192, 8, 1, 128)",
            {"batch": 3, "length": 1, "length_kv": 4096, "heads": 8, "heads_kv": 1, "head_dim": 128},
        ),
    ],
)
def test_each_shape_of_an_attention_operator_of_tritonbench_is_read(shape, cell, axes, imported):
    (figure,) = imported(files.tritonbench(f"{cell};1.5", header=f"{shape};sdpa-latency"), device=DEVICE).figures
    assert axes_of(figure) == axes


def test_metrics_of_tritonbench_that_are_no_speed_are_passed_over_and_memory_is_in_bytes(imported):
    header = "SeqLen;flops;sdpa-speedup;sdpa-accuracy;sdpa-gpu_peak_mem"
    done = imported(files.tritonbench("64;12.0;1.5;1.0;0.5", header=header), device=DEVICE)
    assert [(f.metric, f.value, f.unit) for f in done.figures] == [("memory", 5e8, "GB")]
    assert done.left_out == {}


def test_nvbench_gives_the_median_of_isolated_runs_or_else_the_mean(imported):
    mean, batch, median = (
        f"nv/{name}" for name in ("cold/time/gpu/mean", "batch/time/gpu/mean", "cold/time/gpu/median")
    )
    old = nvbench_state(((mean, "0.0025"), (batch, "0.0009")))
    new = nvbench_state(((mean, "0.0025"), (median, "0.0024")), device=1)
    host = nvbench_state((("nv/cpu_only/time/cpu/median", "0.1"),))
    figures = imported(files.nvbench(old, new, host, devices=((0, "A"), (1, "B")))).figures
    assert [(f.value, f.statistic, f.device) for f in figures] == [
        (0.0025, "mean", "A"),
        (0.0024, "median", "B"),
        (0.1, "median", "A"),
    ]
    assert axes_of(figures[0]) == {"length": 4096, "heads": 8, "other": {"T": "F16"}}


def test_a_passed_trace_of_flashinfer_bench_is_its_mean_latency(imported):
    (figure,) = imported(trace() + "\n").figures
    assert (figure.value, figure.unit, figure.statistic, figure.device) == (0.0025, "ms", "mean", "NVIDIA_X100")
    assert figure.implementation == "fast"
    assert axes_of(figure) == {
        "length": 2048,
        "length_kv": 2048,
        "batch": 1,
        "heads": 8,
        "heads_kv": 2,
        "head_dim": 128,
        "passes": "forward",
        "mask": "causal",
        "other": {"definition": "gqa_ragged_prefill_causal_h8_kv2_d128", "workload": "0001", "len_indptr": "2"},
    }


def test_the_tokens_of_a_ragged_batch_are_no_length(imported):
    (figure,) = imported(trace(axes={"total_q": 2048, "total_kv": 2048, "len_indptr": 5})).figures
    assert figure.axes.length is None
    assert figure.axes.other["total_q"] == "2048"


def test_pytest_benchmark_gives_medians_and_the_axes_that_its_parameters_name(imported):
    (figure,) = imported(files.pytest_benchmark(), device=DEVICE).figures
    assert (figure.implementation, figure.value, figure.unit) == ("test_attention", 0.004, "s")
    assert axes_of(figure) == {"length": 1024, "dtype": "bfloat16"}


def test_our_own_export_can_be_imported(tmp_path):
    run = made.write_run(tmp_path / "run", [made.measured()], num_cases=1)
    exported = export_run(run, to="pytest-benchmark", out=tmp_path / "run.json").target
    done = import_file(exported, out=tmp_path / "out.jsonl")
    result = made.measured()
    latency, throughput, memory = done.figures
    assert latency.value == pytest.approx(sorted(result.timing.samples)[len(result.timing.samples) // 2])
    assert throughput.value == pytest.approx(result.work.flops_executed / latency.value)
    assert memory.value == result.memory.peak_above_inputs_bytes
    assert latency.implementation == "bsa@gather"
    assert (latency.axes.length, latency.axes.passes, latency.axes.head_dim) == (1024, "forward", 64)
    assert latency.axes.density == result.work.density_realised


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (files.cudnn(), "cudnn-frontend"),
        (files.tritonbench(), "tritonbench"),
        (files.nvbench(), "nvbench"),
        (trace(), "flashinfer-bench"),
        (files.pytest_benchmark(), "pytest-benchmark"),
        ("\ufeff" + files.cudnn(), "cudnn-frontend"),
    ],
)
def test_the_format_is_guessed_from_the_content(text, name, imported):
    device = DEVICE if name in {"tritonbench", "pytest-benchmark"} else None
    assert imported(text, device=device).format_name == name
    assert imported(text, device=device, source_format=name).format_name == name


def test_the_file_holds_every_figure_with_the_digest_of_what_it_is_from(imported, tmp_path):
    done = imported(files.cudnn(), label="the table of an article")
    assert read_published(done.target) == done.figures
    digest = hashlib.sha256((tmp_path / "theirs.txt").read_bytes()).hexdigest()
    assert {(f.source_file, f.source_sha256, f.label) for f in done.figures} == {
        ("theirs.txt", digest, "the table of an article")
    }
    assert set(SI_UNITS) >= {f.metric for f in done.figures}


# What is left out


def test_rows_that_failed_are_left_out_and_counted(imported):
    done = imported(
        files.cudnn(
            cudnn_row("0.25,700"),
            cudnn_row("inf,0.000", success=False, error='"two\nlines"'),
            cudnn_row("inf,0.000", passes="bwd"),
            cudnn_row("nan,"),
        )
    )
    assert len(done.figures) == 2
    assert done.left_out == {"failed": 2, "not finite": 2, "zero or below": 1, "missing": 1}
    counts = "2 failed, 2 not finite, 1 zero or below, 1 missing"
    assert done.note == f"2 figures from cudnn-frontend, measured on {DEVICE}; left out: {counts}"


def test_a_provider_that_ran_out_of_memory_is_left_out_and_counted(imported):
    done = imported(files.tritonbench("(1, 1, 64, 64, 64);CUDA OOM;;0.25"), device=DEVICE)
    assert [f.implementation for f in done.figures] == ["fast-2"]
    assert done.left_out == {"not a number": 1, "missing": 1}


def test_states_that_nvbench_skipped_or_did_not_time_are_counted(imported):
    done = imported(files.nvbench(nvbench_state(), nvbench_state(skipped=True), nvbench_state(())))
    assert (len(done.figures), done.left_out) == (1, {"skipped": 1, "missing": 1})


def test_traces_that_did_not_pass_are_counted_by_their_status(imported):
    lines = [
        trace(),
        trace(latency=0.0),
        trace(status="RUNTIME_ERROR"),
        trace(solution=None),
        trace(definition="gemm_n128_k4096"),
    ]
    done = imported("\n".join(lines))
    assert len(done.figures) == 1
    assert done.left_out == {"zero or below": 1, "RUNTIME_ERROR": 1, "workload only": 1, "not attention": 1}


def test_a_file_of_failures_only_ends_with_the_code_of_nothing_measured(imported, tmp_path):
    with pytest.raises(NothingPublishedError, match=r"no figure to import from cudnn-frontend \(2 failed\)") as caught:
        imported(files.cudnn(cudnn_row("inf,inf", success=False)))
    assert caught.value.exit_code == EXIT_NOTHING_MEASURED
    assert not (tmp_path / "out.jsonl").exists()


# What is refused


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("", {}, "the file is empty"),
        (" \n\n", {}, "the file is empty"),
        ("a\0b", {}, "a binary file, expected text in UTF-8"),
        ("a,b\n1,2\n", {}, "no known format.* one of tritonbench, cudnn-frontend, nvbench, flashinfer-bench, pytest-b"),
        ('{"context": {}, "benchmarks": []}', {}, "no known format"),
        (files.nvbench()[:-40], {}, "no known format, or a truncated file"),
        (files.nvbench()[:-40], {"source_format": "nvbench"}, "not a JSON document, or a truncated one"),
        (files.nvbench(major=2), {}, "version 2 of nvbench's JSON, expected 1"),
        (files.nvbench(), {"source_format": "tritonbench"}, "this is a file of nvbench, not of tritonbench"),
        (files.cudnn(), {"source_format": "xlsx"}, "got 'xlsx', expected one of tritonbench, "),
        (files.cudnn()[:-1], {}, "truncated: the last line has no end"),
        (files.cudnn("made-up,made-up-model,cudnn"), {}, "line 2: 3 cells, expected 24; truncated?"),
        (files.cudnn(cudnn_row('1,2,"')), {}, "truncated or no CSV"),
        (files.cudnn().replace(",tflops", ",speed"), {}, "columns tflops are missing"),
        (files.cudnn().replace("max_diff", "paged"), {}, "unknown columns paged; rows may differ in them"),
        (files.cudnn().replace("max_diff", "config_name"), {}, "a column stands twice"),
        (files.cudnn(cudnn_row("1,2", length="many")), {}, "line 2: q_seqlen: got 'many', expected a whole number"),
        (files.cudnn(cudnn_row("1,2", passes="both")), {}, "profile_pass: got 'both', expected fwd or bwd"),
        (files.tritonbench(header="(M, N, K);a-latency"), {}, r"first column '\(M, N, K\)', expected the shape of an"),
        (
            files.tritonbench("64;1", header="SeqLen;a-colour"),
            {},
            "unknown column 'a-colour', expected PROVIDER-METRIC",
        ),
        (files.tritonbench("(1, 2, 64);1;2;3"), {}, r"line 2: shape '\(1, 2, 64\)', expected 5 numbers"),
        (files.tritonbench("(1, 1, 64, 64, 64);1;2"), {}, "line 2: 3 cells, expected 4"),
        (trace() + "\n" + trace()[:-9], {}, "line 2: not a JSON document, or a truncated one"),
        (trace().replace('"uuid"', '"id"'), {}, "line 1: workload.uuid: Field required"),
        (json.dumps({"machine_info": {}, "benchmarks": [{"name": "a"}]}), {}, "benchmarks.0.stats: Field required"),
        (files.tritonbench(), {}, "does not say on which device sdpa was measured; name it with --device"),
        (files.nvbench(devices=()), {}, "does not say on which device attention was measured"),
        (files.cudnn(), {"device": "NVIDIA Y200"}, "--device: got 'NVIDIA Y200', but .* says 'NVIDIA X100'"),
        (files.cudnn(), {"passes": "backward"}, "--pass: got backward, but .* says forward"),
        (files.cudnn(), {"label": " "}, "--label: got ' ', expected a name"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_and_nothing_is_written(text, given, message, imported, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        imported(text, **given)
    assert caught.value.exit_code == EXIT_USAGE
    assert not (tmp_path / "out.jsonl").exists()


def test_bytes_that_are_no_text_a_missing_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "blob").write_bytes(b"\xff\xfe\x80")
    for name, message in (("blob", "a binary file"), ("gone", "No such file"), (".", "Is a directory")):
        with pytest.raises(UsageError, match=message):
            import_file(tmp_path / name, out=tmp_path / "out.jsonl")


def test_the_source_is_never_written_over_and_an_unwritable_place_is_an_error(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text(files.cudnn())
    with pytest.raises(UsageError, match="expected another file than the one that is read"):
        import_file(path, out=tmp_path / "." / "theirs.csv")
    assert path.read_text() == files.cudnn()
    with pytest.raises(StoreError, match="--out"):
        import_file(path, out=tmp_path / "no" / "folder" / "out.jsonl")


def test_a_file_of_published_figures_with_a_bad_line_names_it_and_what_was_expected(imported, tmp_path):
    good = imported(files.cudnn()).target.read_text()
    bad = tmp_path / "bad.jsonl"
    for text, message in (
        ("", "no published figures in it; expected a file that bsa-bench import wrote"),
        (files.cudnn(), "line 1: not JSON; expected a file that bsa-bench import wrote"),
        (good + good.splitlines()[0][:80], "line 3: not JSON"),
        (good.replace('"value":0.00025', '"value":0.0'), "line 1: value: Input should be greater than 0"),
        (good.replace('"schema_version":1', '"schema_version":2'), "use a newer bsa-bench"),
        ("[]\n", "line 1: the line: Input should be"),
    ):
        bad.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_published(bad)
    with pytest.raises(UsageError, match=r"gone\.jsonl: No such file"):
        read_published(tmp_path / "gone.jsonl")


def test_every_format_has_a_module_with_both_functions():
    for each in FORMATS.values():
        assert callable(each.module.recognises)
        assert callable(each.module.read)


def test_text_from_a_file_stays_on_one_line_without_control_characters(imported):
    done = imported(files.cudnn(cudnn_row("1,2", gpu='"NVIDIA\n\x1b[31m X100"')))
    assert done.figures[0].device == "NVIDIA [31m X100"
    assert isinstance(done.figures[0], Published)
