"""Suite files: what they come to, and what is said of those that are wrong."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsa_bench.catalog import check_implementations
from bsa_bench.errors import EXIT_USAGE, SuiteError
from bsa_bench.result import PASSES, Case
from bsa_bench.run import DeviceModel, plan_run
from bsa_bench.suite import Suite, list_suites, load_suite

HEAD = 'title = "T"\nimplementations = ["full@sdpa-flash", "bsa@gather"]\n'
BUILT_IN = ["frames", "kernel-first", "long-video", "methods", "paper", "quick", "resolution", "sparsity"]


@pytest.fixture
def load(tmp_path):
    def load(body: str, *, head: str = HEAD, device_kind="cpu") -> Suite:
        path = tmp_path / "mine.toml"
        path.write_text(head + body)
        return load_suite(str(path), device_kind=device_kind)

    return load


def says(load, body: str, head: str = HEAD) -> str:
    with pytest.raises(SuiteError) as caught:
        load(body, head=head)
    assert caught.value.exit_code == EXIT_USAGE
    text = str(caught.value)
    assert "mine.toml" in text
    return text.partition("mine.toml: ")[2]


@pytest.mark.parametrize("device_kind", ["cpu", "cuda"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_suite_loads_and_each_case_survives_json(name, device_kind):
    suite = load_suite(name, device_kind=device_kind)
    cases = suite.cases()
    assert suite.title
    assert suite.description
    assert len({case.case_hash for case in cases}) == len(cases) > 0
    assert {case.suite for case in cases} == {name}
    assert all(Case.model_validate_json(case.model_dump_json()) == case for case in cases)
    is_first = name == "kernel-first"  # it is for minutes, and on a CPU for the tiles that half precision has
    expected = {"kernel-first": PASSES[:2], "methods": PASSES[::2]}.get(name, PASSES)
    assert {case.passes for case in cases} == set(expected)
    assert not any(case.options for case in cases if case.claims.is_dense)
    assert [c.workload.num_tokens for c in cases] == sorted(c.workload.num_tokens for c in cases)
    on_cpu = "float16" if is_first else "float32"
    assert {case.workload.dtype for case in cases} == {on_cpu if device_kind == "cpu" else "bfloat16"}
    # The sample clip has 250 frames.
    assert all(case.workload.video_size[0] <= 250 for case in cases)


@pytest.mark.slow
def test_the_list_names_every_built_in_suite_with_its_size():
    suites = list_suites("cuda")
    assert [info.name for info in suites] == BUILT_IN
    assert all(info.num_cases == len(load_suite(info.name, device_kind="cuda").cases()) for info in suites)


def test_quick_on_a_cpu_reaches_32768_tokens_of_the_real_clip_with_the_fastest_engines():
    suite = load_suite("quick", device_kind="cpu")
    assert sorted({case.workload.num_tokens for case in suite.cases()}) == [2048, 4096, 8192, 16384, 32768]
    longest = {case.implementation for case in suite.cases() if case.workload.num_tokens == 32768}
    assert {"bsa@cpu", "full@cpu", "full@sdpa-flash"} <= longest
    assert not longest & {"bsa@gather", "bsa@flex", "full@flex", "bsa@triton", "full@sdpa-math"}
    assert {case.workload.input.label for case in suite.cases()} == {"video:bikes"}
    assert {"full@sdpa-flash", "full@flex", "bsa@gather", "bsa@flex"} <= set(suite.implementations)
    left_out = [item for item in suite.dropped if item.what.startswith("full@sdpa-math")]
    assert len(left_out) == 3
    assert "the suite's limit is 4,096 tokens (it holds all scores" in left_out[0].reason


def test_paper_has_the_two_lengths_and_claims_beside_forward_backward_only():
    cases = load_suite("paper", device_kind="cuda").cases()
    claims = {(c.workload.num_tokens, c.variant, c.paper.speedup, c.paper.standing) for c in cases if c.paper}
    assert claims == {
        (23296, "query only (no window)", 1.96, "N"),
        (23296, "query only (window)", 1.98, "N"),
        (23296, "KV only (fixed)", 6.05, "N"),
        (23296, "KV only (dynamic)", 6.12, "N"),
        (23296, "both (0.93)", 12.85, "N"),
        (153600, "both (0.95)", 17.79, "P"),
    }
    assert {c.passes for c in cases if c.paper} == {"forward+backward"}
    assert all(c.method == "bsa" for c in cases if c.paper or c.variant)
    asked = {c.variant: 1 - c.options["query_keep"] * c.options["kv_density"] for c in cases if c.options}
    assert asked == pytest.approx(
        {
            "query only (no window)": 0.5,
            "query only (window)": 0.5,
            "KV only (fixed)": 0.86,
            "KV only (dynamic)": 0.89,
            "both (0.93)": 0.93,
            "both (0.95)": 0.95,
        }
    )
    on_cpu = load_suite("paper", device_kind="cpu")
    assert {c.workload.num_tokens for c in on_cpu.cases()} == {23296}
    assert next(str(item) for item in on_cpu.dropped if "0.95" in item.what).endswith("only when tokens = 153600")


def test_kernel_first_puts_a_budget_on_dense_attention_then_our_kernels_then_their_forms():
    suite = load_suite("kernel-first", device_kind="cuda")
    device = DeviceModel.cuda(name="NVIDIA H200", memory_bytes=141 * 10**9)
    rows = plan_run(suite.cases(), device=device, budget_s=1e6, left_s=1e6, priority=suite.priority)
    names = list(dict.fromkeys(row.case.implementation for row in rows))
    assert names[:3] == ["full@sdpa-cudnn", "full@sdpa-flash", "bsa@triton"]
    assert names == list(suite.implementations)
    check_implementations(names)
    cases = [row.case for row in rows]
    lengths = {(c.workload.num_tokens, c.workload.head_dim) for c in cases if c.implementation == names[0]}
    alone = {(n, d) for n in (8192, 32768, 131072) for d in (64, 128)}
    assert lengths == alone | {(23296, 128), (153600, 128)}
    ours = [(c.workload.num_tokens, c.options["query_keep"]) for c in cases if c.implementation == "bsa@triton"]
    assert list(dict.fromkeys(ours)) == [(23296, 0.5), (23296, 1.0), (153600, 0.5), (153600, 1.0)]
    within = [row.case.implementation for row, s in zip(rows, running_sum(rows), strict=True) if s <= 540]
    assert {"bsa@triton", "bsa@gluon", "bsa@triton:quad", "bsa@triton:fused"} <= set(within)
    assert {c.passes for c in cases if c.implementation == "bsa@gluon"} == {"forward"}
    assert {c.passes for c in cases if c.implementation == "bsa@triton:pack"} == {"backward"}


def running_sum(rows):
    return itertools.accumulate(row.seconds for row in rows)


def test_kernel_first_verifies_every_form_on_a_cpu():
    on_cpu, on_cuda = (set(load_suite("kernel-first", device_kind=kind).implementations) for kind in ("cpu", "cuda"))
    assert {name for name in on_cuda if name.startswith("bsa@")} - {"bsa@gluon"} <= on_cpu  # no interpreter runs that


def test_listed_order_is_that_of_the_implementations_and_else_there_is_none(load):
    body = "[workload]\ntokens = 64\n"
    assert load(f'order = "listed"\n{body}').priority == ("full@sdpa-flash", "bsa@gather")
    assert load(f'order = "informative"\n{body}').priority == load(body).priority == ()
    assert "order: got 'first', expected 'informative' or 'listed'" in says(load, f'order = "first"\n{body}')


def test_a_limit_is_told_only_of_what_a_workload_would_have(load):
    suite = load(
        '[axes]\ntokens = [64, 128, 256]\n[[variant]]\nname = "a"\nwhen = { tokens = [64, 256] }\n'
        '[limit."bsa@gather"]\nmax_tokens = 64\n'
    )
    assert [item.what.split(" = ")[1].split(" ")[0] for item in suite.dropped if item.what.startswith("bsa@")] == [
        "256"
    ]


def test_a_path_in_a_file_starts_at_the_file(load, tmp_path):
    suite = load('[workload]\ntokens = 64\n[input]\nkind = "video"\npath = "clips/a.mp4"\n')
    assert {case.workload.input.path for case in suite.cases()} == {str(tmp_path / "clips" / "a.mp4")}
    assert suite.name == "mine"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "[workload]\ntokens = [4096]",
            "workload.tokens: got [4096], expected an integer (a list or range of values belon",
        ),
        ("[workload]\ntokens = true", "workload.tokens: got True, expected an integer"),
        ("[workload]\ntokens = '64'", "workload.tokens: got '64', expected an integer"),
        ("[workload]\nkv_density = 0.1", "workload.kv_density: unknown key; kv_density belongs in [bsa]"),
        ("[axes]\ntoknes = [4]", "; did you mean 'tokens'?"),
        ("[axs]\ntokens = [4]", "axs: unknown key, expected one of axes, bitstopper, bsa,"),
        ("[axes]\ntokens = 4", "axes.tokens: got 4, expected a list"),
        ("[axes]\ntokens = []", "axes.tokens: got [], expected at least one value"),
        ("[axes]\ntokens = [1, true]", "axes.tokens[1]: got True, expected an integer"),
        ("[axes]\nkv_density = [0.1, 1.5]", "axes.kv_density[1]: got 1.5, expected a number less than or equal to 1"),
        ("[axes]\nkv_density = [nan]", "axes.kv_density[0]: got nan, expected a number"),
        ("[axes]\ngrid = [[4, 4]]", "axes.grid[0]: got [4, 4], expected exactly three integers"),
        ("[axes]\ntokens = {start = 4, stop = 2, step = 1}", "axes.tokens: stop: got 2, expected at least start = 4"),
        ("[axes]\ntokens = {start = 0, stop = 2, step = 1}", "axes.tokens[0]: got 0, expected a number greater than 0"),
        ("[axes]\ntokens = {start = 1, stop = 2}", "axes.tokens: expected either step or num"),
        ("[axes]\ntokens = {start = 1, stop = 2, step = 0}", "axes.tokens: step: got 0, expected a number above 0"),
        ("[axes]\ntokens = {start = 1, stop = 2, num = 1}", "axes.tokens.num: got 1, expected a number greater than"),
        ("[axes]\ntokens = {start = 1, stop = 2, stp = 1}", "axes.tokens.stp: unknown key, expected one of num, scale"),
        ("[axes]\ntokens = {start = true, stop = 2, num = 2}", "axes.tokens.start: got True, expected a number"),
        ("[axes]\ntokens = {start = 1, stop = 1e9, step = 1}", "axes.tokens: expected at most 10,000 values"),
        ("[axes]\nfill = {start = 1, stop = 2, step = 1}", "axes.fill: got a range, expected a list"),
        (
            "[bsa]\nkv_rule = 'topq'",
            "bsa.kv_rule: got 'topq', expected 'statistical', 'topk', 'mass' or 'softmax_stat'; did",
        ),
        ("[workload]\nmodel = 'wan2.1'", "did you mean 'wan2.1-14b'?"),
        (
            "[workload]\ntokens = 8\ngrid = [1, 2, 3]",
            "two kinds of length, grid (at workload.grid) and tokens (at workloa",
        ),
        (
            "[workload]\ntokens = 8\n[axes]\ntokens = [8]",
            "tokens is given twice, at workload.tokens and at axes.tokens",
        ),
        ("[[zip]]\nframes = [1, 2]\nheight = [1]", "zip[0]: frames has 2, height has 1; expected lists of one length"),
        ("[[zip]]", "zip[0]: the table is empty; expected lists of one length"),
        ("", "workload: expected exactly one of (frames, height, width), grid or tokens"),
        ("[workload]\nframes = 1", "workload: a video needs frames, height and width, got (1, None, None)"),
        ("[input]\nclip = 'bikes'", "input.clip: got 'bikes' with kind = 'smooth', expected kind = 'video' with it"),
        ("[workload]\ntokens = 1\n[input]\nkind = 'video'", "input video: expected either `clip`"),
        ("[[variant]]\nname = 'a'\n[[variant]]\nname = 'a'", "variant[1].name: 'a' is given twice"),
        ("[[variant]]\nfil = 'zero'", "variant[0].name: is missing"),
        ("[[variant]]\nname = 'a'\nwhen = {token = 3}", "variant[0].when.token: unknown key"),
        ("[[variant]]\nname = 'a'\nimplementations = ['bsa@gathr']", "did you mean 'bsa@gather'?"),
        (
            "[[variant]]\nname = 'a'\npaper = {speedup = 1, standing = 'P', src = 'x'}",
            "variant[0].paper.source: is missing",
        ),
        (
            "[limit.'full@sdpaflash']\nmax_tokens = 3",
            "limit.\"full@sdpaflash\": 'full@sdpaflash' fits none of the suite's",
        ),
        ("[limit.'full@*']\nreason = 'x'", 'limit."full@*": expected max_tokens, passes or both'),
        (
            "[workload]\ntokens = 64\n[limit.'*']\nmax_tokens = 3\nreason = 'slow'",
            "no case is left, expected at least one:",
        ),
        ("[workload]\ntokens = 64\n[cuda.workload]\nheds = 3", "cuda.workload.heds: unknown key"),
        (
            "[axes]\nseed = {start = 1, stop = 999, step = 1}\ntokens = {start = 1, stop = 999, step = 1}",
            "expected at most 100,000",
        ),
        ("workload = 3", "workload: got 3, expected a table"),
    ],
)
def test_a_mistake_is_named_with_its_key_value_and_expectation(load, body, message):
    assert message in says(load, body)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ('title = "T"', "implementations: is missing"),
        ('implementations = ["a@b"]\n[workload]\ntokens = 1', "title: is missing"),
        ('titel = "T"', "titel: unknown key, expected one of axes, "),
        ('titel = "T"', "; did you mean 'title'?"),
        ("implementations = []", "implementations: got [], expected at least one value"),
        (
            'implementations = ["bsa:gather"]',
            "implementations[0]: got 'bsa:gather', expected method@engine such as bsa@gat",
        ),
        ('implementations = ["bsa-gather"]', "; did you mean 'bsa@gather'?"),
        (
            'passes = ["foward"]',
            "passes[0]: got 'foward', expected 'forward', 'backward' or 'forward+backward'; did you mean",
        ),
        ('title = "T"\nbad = = 3', "not valid TOML: Invalid value (at line 2, column 7)"),
    ],
)
def test_a_mistake_in_the_head_is_named(load, head, message):
    assert message in says(load, "", head)


def test_five_mistakes_are_told_at_once_and_the_rest_counted(load):
    text = says(load, "[axes]\ntokens = [0, -1, -2, -3, -4, -5, -6]")
    assert text.count("axes.tokens[") == 5
    assert text.endswith("... and 2 more")


def test_an_unknown_name_lists_the_built_in_suites_and_a_missing_file_its_neighbour(tmp_path):
    with pytest.raises(SuiteError, match=r"suite: got 'qick', expected one of frames, .*; did you mean 'quick'\?"):
        load_suite("qick", device_kind="cpu")
    (tmp_path / "mine.toml").write_text(HEAD)
    with pytest.raises(SuiteError, match=r"no file at .*min\.toml.*; did you mean 'mine\.toml'\?"):
        load_suite(str(tmp_path / "min.toml"), device_kind="cpu")
    with pytest.raises(SuiteError, match=r"is a folder, expected a file, a suite in TOML"):
        load_suite(f"{tmp_path}/", device_kind="cpu")
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(SuiteError, match=r"latin\.toml: not valid TOML"):
        load_suite(str(tmp_path / "latin.toml"), device_kind="cpu")


@pytest.mark.parametrize("device_kind", ["cpu", "cuda"])
def test_the_examples_of_the_guide_load(load, device_kind):
    guide = (Path(__file__).parents[2] / "docs" / "suites.md").read_text()
    examples = [part.partition("```")[0] for part in guide.split("```toml")[1:]]
    suite = load(examples[0], head="", device_kind=device_kind)
    assert suite.title == "Our 720p model"
    assert len(suite.cases()) == (2 * 2 + 2 * 2 * 3) * 2 - 2  # full@flex is left out at 720p
    with_variant = HEAD.replace("bsa@gather", "bsa@triton") + "[workload]\ntokens = 23296\n" + examples[1]
    (claimed,) = [case for case in load(with_variant, head="", device_kind=device_kind).cases() if case.paper]
    assert claimed.paper.speedup == 6.05


@pytest.mark.slow
def test_a_big_suite_is_read_quickly(load):
    start = time.process_time()
    cases = load(
        "[axes]\nseed = {start = 0, stop = 59, step = 1}\ntokens = {start = 64, stop = 1920, step = 64}\n"
    ).cases()
    assert len(cases) == 60 * 30 * 2 * 3
    assert time.process_time() - start < 3


@pytest.mark.slow
def test_suites_load_neither_torch_nor_pandas_and_work_from_any_folder(tmp_path):
    code = (
        "import sys; from bsa_bench.suite import load_suite; load_suite('quick', device_kind='cpu'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'triton', 'pandas', 'matplotlib')))"
    )
    root = Path(__file__).parents[2]
    env = {"PYTHONPATH": f"{root}:{root / 'suites'}"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, timeout=60)
