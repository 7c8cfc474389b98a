import itertools
import json
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from static_examples import NO_LOOP, WIDTHS, compile_examples

from bsa_bench.static.analyse import analyse, devices_for
from bsa_bench.static.compile import Failure, Settings
from bsa_bench.static.document import document
from bsa_bench.static.figures import design_figures
from bsa_bench.static.tables import grouped_findings, markdown, print_tables
from bsa_bench.units import three_digits

pytest.importorskip("triton")
SETTINGS = Settings(Path("cache"))


@pytest.fixture(scope="module")
def compiled():
    return compile_examples()


@pytest.fixture(scope="module")
def content(compiled):
    """The document of a dense forward on two architectures, a kernel without a loop, and a failure."""
    failure = Failure(NO_LOOP, "sm_80", "compiler", "CompilationError: at 2:4:\n    x = [y]\n        ^\nno y", "a log")
    devices = devices_for(["sm_80", "sm_90"], [])
    return document([*analyse(compiled, devices), failure], SETTINGS, devices, design_figures())


def changed(content, **fields):
    """The document with the fields of its sm_90 forward changed, and nothing else in it."""
    row = next(each for each in content["configurations"] if each["arch"] == "sm_90" and each["loops"])
    return content | {"configurations": [row | fields], "failures": []}


def ceiling_of(content):
    return three_digits(content["configurations"][1]["ceilings"][0]["overlapped_flop_per_s"] / 1e12)


def shown(content, width=200):
    console = Console(file=StringIO(), width=width)
    print_tables(content, console)
    return console.file.getvalue()


# The document


@pytest.mark.slow
def test_the_document_is_json_and_holds_what_was_read(content):
    assert json.loads(json.dumps(content)) == content
    assert [each["target"] for each in content["configurations"]] == ["sm_80", "sm_90a", "sm_90a"]
    row = content["configurations"][1]
    assert (row["name"], row["arch"], row["target"]) == ("dense-d64-128x64", "sm_90", "sm_90a")
    assert row["registers"] > 64
    assert row["occupancy"]["ctas"] == 2
    (main,) = [loop for loop in row["loops"] if loop["is_main"]]
    assert (main["loop"], main["tensor"][0]["class"]) == (row["main_loop"], "wgmma")
    assert sum(line["count"] for line in main["lines"]) == main["num_instructions"]
    assert row["pipeline"]["depth"] == row["pipeline"]["wanted_depth"] == 3
    (ceiling,) = row["ceilings"]
    assert ceiling["device"] == "H200-SXM"
    assert ceiling["limited_by"] == max(ceiling["resources"], key=lambda each: each["clocks"])["name"]
    assert 0 < ceiling["in_order_flop_per_s"] < ceiling["overlapped_flop_per_s"] < 990e12
    without_loop = content["configurations"][2]
    assert (without_loop["main_loop"], without_loop["ceilings"]) == (None, [])
    assert without_loop["no_ceiling"] == "no dots in a loop"
    assert content["failures"] == [
        {"name": "scale", "arch": "sm_80", "kind": "compiler", "message": "CompilationError: at 2:4:\n    x = [y]\n"
         "        ^\nno y", "log": "a log"}
    ]  # fmt: skip


def test_every_figure_has_a_source_and_says_whether_it_was_measured(content):
    figures = []

    def walk(value):
        if isinstance(value, dict) and "value" in value:
            figures.append(value)
        elif isinstance(value, dict):
            list(map(walk, value.values()))

    walk(content["architectures"])
    walk(content["devices"])
    assert content["architectures"].keys() == {"sm_80", "sm_90"}
    assert content["devices"].keys() == {"A100-SXM-80GB", "H200-SXM"}
    assert len(figures) > 30
    assert all(len(each["source"]) > 10 and isinstance(each["measured"], bool) for each in figures)
    assert {each["measured"] for each in figures} == {True, False}
    assert content["assumptions"]
    assert content["left_out"]


def test_design_figures_are_of_configurations_that_there_are():
    from bsa_kernels.configurations import candidates

    figures = design_figures()
    assert figures.by_name.keys() <= {each.name for each in candidates()}
    known = {"registers", "shared_kb", "ctas", "spill_bytes", "tensor", "buffers"}
    for name, archs in figures.by_name.items():
        assert archs.keys() <= {"sm_80", "sm_90", "sm_100"}, name
        assert all(each.keys() <= known for each in archs.values()), name
    assert figures.of("attend-bf16-d128-k64-g1-64x64-w4-s2", "sm_90")["registers"] == 138
    assert figures.of("attend-bf16-d128-k64-g1-64x64-w4-s2", "sm_100") is None


# Tables


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("names", [["attend-bf16-d64-k64"], ["attend-bf16-d128-k64-g1-64x128-w4-s2", "x"]])
def test_a_table_fits_its_width_with_every_configuration_on_one_line(content, width, names):
    row = changed(content)["configurations"][0]
    figures = {"registers": [154, 158], "shared_kb": 82, "ctas": 1}
    rows = [row | {"name": name, "design_figures": figures} for name in names]
    text = shown(content | {"configurations": rows}, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name in names:
        ours, beside = [line for line in text.splitlines() if line.startswith(name)]
        assert f" {row['registers']} " in ours
        assert f" {ceiling_of(content)} " in ours
        assert row["ceilings"][0]["limited_by"] in ours
        assert f"{row['registers']} | 154-158" in beside
    assert "overlapped" in text


def test_a_wider_terminal_shows_more_columns_and_the_most_telling_first(content):
    headers = []
    for width in WIDTHS:
        lines = shown(changed(content), width).splitlines()
        rule = next(number for number, line in enumerate(lines) if line.startswith("─"))
        headers.append(set(" ".join(lines[1:rule]).split()))
    assert all(narrow < wide for narrow, wide in itertools.pairwise(headers))
    assert {"overlapped", "registers", "set"} <= headers[0]
    assert {"stack", "order", "buffers", "instructions"} <= headers[-1]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_name_longer_than_half_a_line_is_folded_and_the_ceiling_still_shown(content, width):
    name = "a" * (width // 2) + "-end"
    text = shown(changed(content, name=name), width)
    assert max(map(len, text.splitlines())) <= width
    rows = text[text.index("─") :].splitlines()[1:3]
    assert rows[0].strip() == "a" * (width // 2)
    assert rows[1].startswith("-end  ")
    assert f" {ceiling_of(content)} " in rows[1]


def test_what_looks_like_markup_is_shown_as_it_is(content):
    text = shown(changed(content, name="a[bold]b[/]", findings=["[red]slow[/red]"]))
    assert re.search(r"^a\[bold\]b\[/\] +\d", text, re.MULTILINE)
    assert "- sm_90: [red]slow[/red] [a[bold]b[/]]" in text


def test_each_device_has_its_own_columns(compiled):
    devices = devices_for(["sm_90"], ["H100-SXM", "H200-SXM"])
    text = shown(document(analyse(compiled[1:2], devices), SETTINGS, devices, design_figures()), 300)
    title, *rest = text.splitlines()
    assert title == (
        "sm_90, ceilings on H100-SXM and H200-SXM (largest matrix product measured: 788 TFLOP/s)"
    )  # the bound is the same: both have the same SMs
    header = " ".join(rest[:3])
    assert (header.count("overlapped"), header.count("(H100-SXM)"), header.count("(H200-SXM)")) == (2, 3, 3)


def test_a_finding_is_said_once_with_its_configurations(content):
    row = changed(content, findings=["slow"])["configurations"][0]
    rows = [row | {"name": f"c{i}"} for i in range(5)] + [row | {"name": "other", "findings": []}]
    assert grouped_findings({"configurations": rows}) == [("sm_90: slow", [f"c{i}" for i in range(5)])]
    assert "- sm_90: slow [c0, c1, c2 and 2 more]\n" in shown(content | {"configurations": rows})


def test_without_a_ceiling_the_reason_is_said_and_no_assumption(content):
    row = content["configurations"][2]
    text = shown(content | {"configurations": [row], "failures": []})
    assert "- sm_90: no ceiling: no dots in a loop [scale]\n" in text
    assert "assume" not in text
    assert "Ceilings assume:\n- Each resource runs at the peak" in shown(changed(content))


def test_a_failure_is_shown_in_the_compilers_words_with_its_columns(content):
    text = shown(content, 80)
    assert "- not compiled: scale, sm_80 (compiler):\n  CompilationError: at 2:4:\n      x = [y]\n          ^\n" in text
    assert "a log" not in text


def test_measured_rates_stand_beside_the_ceiling_of_their_device_only(content):
    rates = [{"device": "H200-SXM", "flop_per_s": 412e12}, {"device": "H100-SXM", "flop_per_s": 99e12}]
    text = shown(changed(content, measured=rates), 80)
    assert "measured" in text
    (row,) = [line for line in text.splitlines() if line.startswith("dense-d64")]
    assert "412" in row
    assert "99" not in row
    assert "measured\n" not in shown(changed(content)).split("─")[0]


# Markdown


def cells(line):
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


def tables_of(text):
    """The tables of a Markdown text: lists of rows of cells."""
    return [[cells(row) for row in table.splitlines()] for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)]


def test_markdown_tables_have_the_same_number_of_cells_in_every_row(content):
    figures = {"registers": [154, 158], "tensor": "wgmma"}
    rows = [{**row, "name": f"a|b\n{i}", "design_figures": figures} for i, row in enumerate(content["configurations"])]
    tables = tables_of(markdown(content | {"configurations": rows}))
    assert [len(table) for table in tables] == [3, 4, 3, 4]  # two architectures, then their design figures
    for header, rule, *body in tables:
        assert all(re.fullmatch(r"---:?", cell) for cell in rule)
        assert {len(header), len(rule)} == {len(row) for row in body} | {len(header)}
        assert all(cell.strip() for row in body for cell in row)
    assert tables[0][2][0] == r" a\|b 0 "


def test_markdown_has_every_column_every_source_and_the_assumptions(content):
    text = markdown(content)
    header = next(table for table in tables_of(text))[0]
    assert " tensor instructions a trip " in header
    assert " loads a trip " in header
    assert " tensor cores " not in header
    for expected in (
        f"Compiled by Triton {content['configurations'][0]['triton']} (floating-point fusion on, line info on).",
        "wgmma 16 x m64n64k16",
        "8 x cp.async 16 B",
        "- Left out: power",
        "- H200-SXM: hbm_bytes_per_s 4.8e+12 (NVIDIA H200 datasheet)",
        "- sm_90: tensor_flop_per_clock mma.sync 16-bit 2576.38",
        "(measured; ",
        "- sm_90: no ceiling: no dots in a loop — `scale`",
    ):
        assert expected in text
    assert all(f"- {each}\n" in text for each in content["assumptions"])


def test_markdown_quotes_the_compilers_words_as_a_block(content):
    words = "CompilationError: at 2:4:\n      x = [y]\n          ^\n  no y"
    assert f"- `scale`, sm_80: compiler\n\n  ```text\n  {words}\n  ```\n" in markdown(content)
