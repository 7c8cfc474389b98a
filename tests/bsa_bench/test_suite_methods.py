"""Options of several methods in one suite: bare keys, keys of one method, tables, variants."""

import pytest

from bsa_bench.errors import SuiteError
from bsa_bench.suite import load_suite, override

IMPLEMENTATIONS = ["full@sdpa-flash", "bsa@gather", "vsa@gather", "moba@gather", "sliding-tile@gather"]
HEAD = f'title = "T"\nimplementations = {IMPLEMENTATIONS}\n'


def make(folder, body):
    path = folder / "mine.toml"
    path.write_text(HEAD + body)
    return load_suite(str(path), device_kind="cpu")


def options_of(suite, method):
    return [case.options for case in suite.cases() if case.method == method and case.passes == "forward"]


def test_a_bare_option_reaches_every_method_that_has_it_and_no_other(tmp_path):
    body = "[workload]\ntokens = 4096\n[axes]\nkv_density = [0.1, 0.2]\n"
    suite = make(tmp_path, body)
    for method in ("bsa", "vsa", "moba"):
        assert [o["kv_density"] for o in options_of(suite, method)] == [0.1, 0.2]
    assert len(options_of(suite, "sliding-tile")) == len(options_of(suite, "full")) == 1


@pytest.mark.parametrize(
    "axis",
    ["vsa.topk = [4, 8]", '"vsa.topk" = [4, 8]', "vsa = {topk = [4, 8]}", "vsa.topk = {start=4, stop=8, step=4}"],
)
def test_an_option_with_its_method_reaches_that_method_alone(tmp_path, axis):
    suite = make(tmp_path, f"[workload]\ntokens = 4096\n[axes]\n{axis}\n")
    assert [o["topk"] for o in options_of(suite, "vsa")] == [4, 8]
    assert [o["topk"] for o in options_of(suite, "moba")] == [None]


def test_an_option_of_one_method_stands_above_that_for_all(tmp_path):
    body = "[workload]\ntokens = 4096\n[axes]\nkv_density = [0.1, 0.2]\n"
    suite = override(make(tmp_path, body), ["vsa.kv_density=0.5"])
    assert [o["kv_density"] for o in options_of(suite, "vsa")] == [0.5]
    assert [o["kv_density"] for o in options_of(suite, "bsa")] == [0.1, 0.2]
    everywhere = override(suite, ["kv_density=0.3"])
    assert {o["kv_density"] for m in ("bsa", "vsa", "moba") for o in options_of(everywhere, m)} == {0.3}


def test_each_method_has_its_table_and_each_variant_reaches_whom_its_options_are_of(tmp_path):
    body = """
        [workload]
        tokens = 4096
        [sliding-tile]
        tile_window = [1, 3, 3]
        [[variant]]
        name = "sparse"
        kv_density = 0.05
        [[variant]]
        name = "few"
        vsa = { topk = 2 }
    """
    cases = make(tmp_path, body).cases()
    found = {(c.method, c.variant) for c in cases}
    assert {("bsa", "sparse"), ("vsa", "sparse"), ("vsa", "few"), ("moba", "sparse")} <= found
    assert {v for m, v in found if m in {"full", "sliding-tile"}} == {None}
    assert not {("bsa", "few"), ("moba", "few")} & found
    assert {str(c.options["tile_window"]) for c in cases if c.method == "sliding-tile"} == {"[1, 3, 3]"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[vsa]\ntopk = 2\n[axes]\nvsa.topk = [4]", "vsa.topk is given twice, at vsa.topk and at axes.vsa.topk"),
        ("[bsa]\nkv_density = 0.2\n[axes]\nkv_density = [0.1]", "kv_density is given twice, at bsa.kv_density and at"),
        ("[vsa]\nchunk = 2", "vsa.chunk: unknown key; chunk belongs in [moba]"),
        ("[axes]\nvsa.topk = [0]", "axes.vsa.topk[0]: got 0, expected a number greater than 0"),
        ("[vsaa]\ntopk = 2", "vsaa: unknown key, expected one of axes, bitstopper, "),
        ("[vsa]\ntopk = 2\nkv_density = 0.1", "vsa: expected topk or kv_density, got both: 2 and 0.1"),
    ],
)
def test_a_wrong_option_of_a_method_is_named(tmp_path, body, message):
    with pytest.raises(SuiteError) as caught:
        make(tmp_path, f"{body}\n[workload]\ntokens = 4096\n")
    assert message in str(caught.value)


def test_a_variant_stays_with_its_method_when_an_override_takes_its_last_option(tmp_path):
    body = '[workload]\ntokens = 4096\n[[variant]]\nname = "few"\nvsa = { topk = 2 }\n'
    suite = override(make(tmp_path, body), ["vsa.topk=4"])
    assert {(c.method, c.variant) for c in suite.cases() if c.variant} == {("vsa", "few (changed)")}
    assert [o["topk"] for o in options_of(suite, "vsa")] == [4]
