"""Every named table compiles, where a LaTeX is installed."""

import shutil
import subprocess

import pytest
import report_factory as made
import table_factory as tables

from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.report.named_tables import TABLE_NAMES
from bsa_bench.report.table_latex import latex
from bsa_bench.report.table_model import Cell, Column, RowGroup, Table

ENGINES = {
    "pdflatex": ("-interaction=nonstopmode", "-halt-on-error"),
    "lualatex": ("-interaction=nonstopmode", "-halt-on-error"),
    "tectonic": (),
}
PAGE = r"""\documentclass{article}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


@pytest.fixture(scope="module")
def compile_tex(tmp_path_factory):
    """Compile fragments on a page each; returns the log and the number of bytes of the PDF."""
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        pytest.skip("no pdflatex, lualatex or tectonic here; Debian: texlive-latex-base texlive-latex-recommended")

    def compile_(*fragments):
        folder = tmp_path_factory.mktemp("tex")
        (folder / "page.tex").write_text(PAGE % "\n\\clearpage\n".join(fragments), encoding="utf-8")
        command = [engine, *ENGINES[engine], "page.tex"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        log = ended.stdout + ended.stderr
        assert ended.returncode == 0, log[-2000:]
        return log, (folder / "page.pdf").stat().st_size

    return compile_


def everything(tmp_path, name):
    """A table with marks, doubts, failures and two devices."""
    gpu = tables.on_gpu()
    results = [result for tokens in (1024, 23_296) for result in tables.both_passes(tokens)]
    results += tables.processes(made.case("bsa@flex", options=BsaOptions()), 0.003)
    results += tables.disturbed(tables.processes(made.case("vsa@gather"), 0.004))
    results += [
        tables.failed(made.case("bsa@flex", 23_296, options=BsaOptions()), reason=r"50% of a_b & c\d {#1} ~ ^ $")
    ]
    if name == "ablation":
        results = tables.ablation_results()
    other = tables.in_environment(results, gpu.hash)
    return tables.table(tmp_path, name, results, (other, {"environment": gpu}))


@pytest.mark.slow
def test_every_table_compiles_within_the_margins(tmp_path, compile_tex):
    made_tables = [everything(tmp_path / name, name) for name in TABLE_NAMES]
    log, num_bytes = compile_tex(*map(latex, made_tables))
    assert num_bytes > 10_000
    too_wide = [line for line in log.splitlines() if line.startswith("Overfull \\hbox") and "alignment" in line]
    assert too_wide == []


@pytest.mark.slow
def test_words_of_any_letters_compile(compile_tex):
    nasty = (
        "".join(map(chr, range(33, 127))).replace("`", "")
        + " \N{CJK UNIFIED IDEOGRAPH-4E2D} \N{MICRO SIGN} \xe9 \N{EN DASH}"
    )
    cell = Cell(f"[{nasty} `{nasty}`", footnotes=(nasty,))
    column = Column("n", nasty, "%_[", group=nasty, align="left")
    compile_tex(latex(Table("t", nasty, (column,), (RowGroup(nasty, ((cell,), (Cell("[x]"),))),), (nasty,))))
