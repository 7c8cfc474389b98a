"""Names, titles and paths of the user's are text in figures, Markdown and terminals, whatever is in them."""

import itertools
import os
import subprocess
import sys
import warnings
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
import report_factory as made
from markdown_it import MarkdownIt
from rich.console import Console

from bsa_bench.console import plain_console
from bsa_bench.errors import SuiteError
from bsa_bench.report import print_table, write_report
from bsa_bench.report.markdown import code, words
from bsa_bench.report.page import TITLE_LETTERS, Page
from bsa_bench.store import read_run
from bsa_bench.store.writer import default_run_id
from bsa_bench.suite import load_suite, override
from bsa_bench.text import num_cells, shortened, visible, wrapped

NAMES = (
    "$0.5_$ an hour",
    "\\frac{1}{2} $x$",
    "a_b_ *c* `d`` <i>e</i> [f](g) &lt; ~~h~~ # i |",
    "[red]j[/red] [/] :smile:",
    "视频注意力" * 9,
    "n" * 300,
    "\x1b[31mred\x07\u202e\x00",
    "two\nlines\tand a tab",
)


def results_of(*names):
    """A run at two lengths whose sparse rows have these names, the first is its input's too."""
    path = made.InputSpec(kind="video", path=f"/clips/{names[0].replace('/', '')}.mp4")
    rows = []
    for tokens in (1024, 4096):
        rows += [made.measured(made.case("full@sdpa-flash", tokens, input=path))]
        for index, name in enumerate((*names, "other")):
            options = made.BsaOptions(kv_density=0.1 + 0.05 * index)
            rows.append(made.measured(made.case("bsa@gather", tokens, variant=name, options=options, input=path)))
    return made.renumber(rows)


@pytest.mark.slow
def test_names_are_text_in_every_figure_and_in_the_markdown_of_a_report(tmp_path):
    title = " ".join(NAMES)
    run = made.write_run(tmp_path / "run", results_of(*NAMES), suite_title=title, command=["bsa-bench", "run", *NAMES])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = write_report(run, tmp_path / "report")
    texts = []
    for svg in (path for path in files.plots if path.suffix == ".svg"):
        root = ET.fromstring(svg.read_bytes())
        assert root.find("{http://www.w3.org/2000/svg}title").text.strip()
        texts += ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]
    tokens = MarkdownIt("commonmark").enable("table").parse(files.markdown.read_text(encoding="utf-8"))
    spans = [child for token in tokens for child in token.children or []]
    codes = [span.content for span in spans if span.type == "code_inline"]
    heading = next(token for before, token in itertools.pairwise(tokens) if before.tag == "h1")
    for name in NAMES:
        shown = visible(f"bsa@gather {name}")
        for line in wrapped(shortened(shown, TITLE_LETTERS), 36).split("\n"):  # of the legend
            assert line in texts
        assert any(shown in each for each in codes)
        assert visible(name).strip() in heading.children[0].content
    assert not [token for token in tokens if token.type == "html_block"]
    assert {span.type for span in spans}.isdisjoint({"html_inline", "em_open", "s_open"})
    assert [s.attrs["src"] for s in spans if s.type == "image"] == [p.name for p in files.plots if p.suffix == ".png"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("colours", [False, True])
def test_a_name_is_text_on_a_terminal_and_in_a_pipe(tmp_path, monkeypatch, name, colours):
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
    run = read_run(made.write_run(tmp_path / "run", results_of(name)))
    out = StringIO()
    print_table(run, plain_console(file=out))
    lines = "".join(line.rstrip() for line in out.getvalue().splitlines())
    assert visible(name)[:40] in lines
    assert colours == ("\x1b[" in out.getvalue())
    assert "\x1b[31mred" not in out.getvalue()
    assert "\x00" not in out.getvalue()


def test_a_console_of_somebody_elses_reads_no_markup_either(tmp_path):
    out = StringIO()
    print_table(read_run(made.write_run(tmp_path / "run", results_of(NAMES[3]))), Console(file=out, width=200))
    assert NAMES[3] in out.getvalue()


@pytest.mark.parametrize("text", [*NAMES, "`", "``a``", " ", "", "a `b` c", "\\"], ids=lambda name: ascii(name)[:20])
def test_markdown_shows_code_and_words_as_they_are(text):
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough", "linkify"][:2])
    (span,) = parser.parseInline(code(text))[0].children
    assert (span.type, span.content) == ("code_inline", visible(text) or " ")
    children = parser.parseInline(words(text))[0].children
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children).strip() == visible(text).strip()


def test_what_cannot_be_seen_is_named_and_what_is_long_is_shortened_in_the_middle():
    assert visible("a\x1b\x00\udcff\ud800\u202e\u2028") == "a\\x1b\\x00\\xff\\ud800\\u202e\\u2028"
    assert visible("a \n\t b  c") == "a b  c"
    assert shortened("a" * 50 + "end", 20) == "a" * 13 + "…aaaend"
    assert num_cells(shortened("视频" * 30, 21)) <= 21
    assert shortened("short", 5) == "short"
    assert max(map(num_cells, wrapped("视频" * 30, 20).split("\n"))) <= 20


@pytest.mark.slow
def test_the_users_settings_of_matplotlib_change_no_figure(tmp_path):
    def drawn(folder):
        page, folder = Page(), tmp_path / folder
        folder.mkdir()
        with page.settings():
            figure, (axes,) = page.figure(1, title="A title")
            axes.plot([1, 2], [1, 2], label="$x$")
            page.panel_title(axes, "$y_$")
            page.legend(figure, [axes])
            return [path.read_bytes() for path in page.save(figure, folder, "plot")]

    plain = drawn("plain")
    theirs = {
        "text.usetex": True, "font.size": 30, "savefig.dpi": 20, "savefig.bbox": "tight", "axes.facecolor": "red",
        "svg.fonttype": "path", "lines.linestyle": ":", "xtick.bottom": False, "figure.dpi": 300,
    }  # fmt: skip
    with mpl.rc_context(theirs):
        assert drawn("theirs") == plain
        assert mpl.rcParams["font.size"] == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"MPLBACKEND": "module://no.such.backend", "MATPLOTLIBRC": "/nowhere/matplotlibrc"},
        {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": "theirs"},
    ],
    ids=str,
)
def test_backend_and_settings_file_of_another_program_do_not_matter(tmp_path, variables):
    (tmp_path / "theirs").write_bytes(b"font.family: \xff\xfe\nbackend: nonsense\n")
    script = """
import os
from bsa_bench.report.page import Page
before = dict(os.environ)
page = Page(formats=("svg",))
with page.settings():
    figure, _ = page.figure(1, title="A title")
    page.save(figure, __import__("pathlib").Path("."), "plot")
assert dict(os.environ) == before
"""
    env = os.environ | variables | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"A title" in Path(tmp_path / "plot.svg").read_bytes()


UNDECODABLE = os.fsdecode(b"caf\xe9")
SUITE = (
    'title = "T"\nimplementations = ["bsa@gather"]\n[workload]\n{shape}\nheads = 1\nhead_dim = 32\n[input]\n{input}\n'
)


def test_a_suite_whose_name_is_no_utf_8_runs_and_an_input_is_refused_in_a_sentence(tmp_path):
    folder = tmp_path / UNDECODABLE
    folder.mkdir()
    suite = folder / f"{UNDECODABLE}.toml"
    suite.write_text(SUITE.format(shape="tokens = 64", input=""))
    loaded = load_suite(str(suite), device_kind="cpu")
    assert loaded.name == "caf\\xe9"
    assert loaded.cases()[0].model_dump_json()
    assert default_run_id(loaded.name).startswith("caf-xe9-")
    assert len(default_run_id("n" * 250)) < 130
    suite.write_text(SUITE.format(shape="frames = 5\nheight = 64\nwidth = 64", input='kind = "video"\npath = "a.mp4"'))
    with pytest.raises(SuiteError, match=r"caf\\xe9/a\.mp4 has bytes that are no UTF-8; rename it, or link to it"):
        load_suite(str(suite), device_kind="cpu").cases()
    with pytest.raises(SuiteError, match=r"video=.*caf\\xe9.*: bytes that are no UTF-8; rename the file"):
        override(loaded, [f'video=["/{UNDECODABLE}.mp4"]'])
