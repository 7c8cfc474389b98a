"""Put the page together: what is told in words as HTML, the rows as data, the libraries as they are shipped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from bsa_bench import __version__
from bsa_bench.report import style
from bsa_bench.report.answer import answer
from bsa_bench.report.findings import NOT_RUN, UNAVAILABLE, failures, findings, groups, unavailable
from bsa_bench.report.html.behind import behind
from bsa_bench.report.html.bundles import DATATABLES, DATATABLES_STYLE, PLOTLY, packed_bundle, packed_json
from bsa_bench.report.html.prose import phrase, prose
from bsa_bench.report.html.records import COLUMNS, cells, figures, marks, shape
from bsa_bench.report.labels import Labels, describe_cases
from bsa_bench.report.phases import COLOURS
from bsa_bench.report.tables import environment_facts
from bsa_bench.report.verdicts import Verdicts
from bsa_bench.report.words import NOTES, shown_path, status_lines, summary, title
from bsa_bench.result import PASSES
from bsa_bench.store.derive import Row, derive
from bsa_bench.store.frame import PHASES
from bsa_bench.store.reader import Run

#: Samples that a page holds; of runs with more, each row keeps every second, third, ... and says so.
MAX_SAMPLES = 300_000
MAX_REASONS = 200
SCRIPTS = ("helpers.js", "theme.js", "charts.js", "panels.js", "behind.js", "table.js", "main.js")
_SYMBOLS = dict(
    zip(
        style.MARKERS,
        (
            "circle",
            "square",
            "diamond",
            "triangle-up",
            "triangle-down",
            "cross",
            "x",
            "triangle-left",
            "triangle-right",
            "star",
            "hexagon",
            "pentagon",
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class _Source:
    """A run on the page, under its name there."""

    name: str
    run: Run

    @cached_property
    def rows(self) -> list[Row]:
        """As the report orders them: by shape, length and pass, the fastest first."""
        grouped = groups(derive(self.run.latest())).values()
        return [row for group in grouped for row in sorted(group, key=_latency)]

    @cached_property
    def labels(self) -> Labels:
        """Of this run alone, for its sentences."""
        return Labels(row.result.case for row in self.rows)

    @cached_property
    def verdicts(self) -> Verdicts:
        """Of this run, within which a row is compared."""
        return Verdicts(self.rows, self.run.environment.device_kind)


def write_page(runs: Mapping[str, Run], file: Path) -> None:
    """Write one page about one run, or about several side by side, each under its name.

    Raises:
        StoreError: a library is not installed.
        OSError: the file cannot be written.
    """
    assert runs
    sources = [_Source(name, run) for name, run in runs.items()]
    scripts = "\n".join(_asset(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{scripts}}})();\n'
    policy = (
        f"default-src 'none'; script-src 'sha256-{_digest(script)}' blob:; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    text = (
        _templates()
        .get_template("page.html")
        .render(
            title=" and ".join(dict.fromkeys(title(run) for run in runs.values())),
            version=__version__,
            policy=policy,
            styles=Markup(page_style()),  # noqa: S704 -- a library's and ours
            script=Markup(script),  # noqa: S704 -- our own
            sources=[_told(source, alone=len(sources) == 1) for source in sources],
            several=len(sources) > 1,
            environment=_environment(sources),
            unmeasured=_unmeasured(sources),
            notes=prose([*dict.fromkeys(line for s in sources for line in status_lines(s.rows)), NOTES]),
            plotly=packed_bundle(PLOTLY),
            datatables=packed_bundle(DATATABLES),
            data=packed_json(_data(sources)),
        )
    )
    file.write_text(text, encoding="utf-8")


def page_style() -> str:
    """The style sheets, of the table's library and ours."""
    style_sheet = f"{DATATABLES_STYLE.read()}\n{_asset('page.css')}"
    assert "</style" not in style_sheet.lower()
    return style_sheet


def _templates() -> Environment:
    return Environment(
        autoescape=True, loader=FunctionLoader(_asset), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _asset(name: str) -> str:
    return files("bsa_bench.report.html").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _latency(row: Row) -> float:
    return row.whole.median if row.whole else float("inf")


def _told(source: _Source, *, alone: bool) -> dict[str, Any]:
    """What is said of a run in words; `alone`: its title is the page's."""
    run, line = source.run, source.run.run_lines[-1]
    return {
        "name": source.name,
        "title": "" if alone else title(run),
        "device": run.environment.device_name,
        "date": line.utc[:10],
        "version": run.environment.packages.get("bsa-bench"),
        "path": shown_path(run.path),
        "summary": prose([answer(run, source.rows, source.labels), "", summary(run, source.rows)]),
        "findings": prose(findings(run, source.rows, source.labels, leave_out=(NOT_RUN, UNAVAILABLE))),
    }


def _environment(sources: Sequence[_Source]) -> list[dict[str, Any]]:
    """A line for each fact, with a cell for each run and whether they differ."""
    known = [environment_facts(source.run) for source in sources]
    names = dict.fromkeys(name for facts in known for name in facts)
    return [
        {
            "name": name,
            "values": [phrase(facts.get(name, "-")) for facts in known],
            "differs": len({facts.get(name) for facts in known}) > 1,
        }
        for name in names
    ]


def _unmeasured(sources: Sequence[_Source]) -> dict[str, Any]:
    """What has no figure, and why: cases by status and reason, then what is unavailable altogether."""
    lines, count = [], 0
    for source in sources:
        unverified = [row.result for row in source.rows if row.is_unverified]
        found = [
            (status.value, status.meaning, reason, results)
            for (status, reason), results in failures(source.run, source.rows).items()
        ]
        if unverified:
            found.insert(0, ("unverified", "measured", "never compared with an oracle", unverified))
        count += sum(len(results) for *_, results in found)
        lines += [
            {
                "run": source.name,
                "status": status,
                "meaning": meaning,
                "reason": reason,
                "cases": phrase(describe_cases(results, source.labels)),
            }
            for status, meaning, reason, results in found
        ]
    missing = [
        {"run": source.name, "name": name, "reason": why}
        for source in sources
        for name, why in unavailable(source.run).items()
    ]
    return {"count": count, "lines": lines[:MAX_REASONS], "more": max(len(lines) - MAX_REASONS, 0), "missing": missing}


def _data(sources: Sequence[_Source]) -> dict[str, Any]:
    """What the scripts work on: the rows of all runs, and the looks of their series."""
    labels = Labels(row.result.case for source in sources for row in source.rows)
    num_samples = sum(len(t.samples) for s in sources for row in s.rows for each in row.processes if (t := each.timing))
    every = -(-num_samples // MAX_SAMPLES) or 1
    several = len(sources) > 1
    rows, series = [], {}
    for number, source in enumerate(sources):
        line = source.run.run_lines[-1]
        for row in source.rows:
            case = row.result.case
            name = labels.of(case) + (f" · {source.name}" if several else "")
            if row.is_correct:
                series[name] = row.is_dense
            rows.append(
                {
                    "run": number,
                    "implementation": case.implementation,
                    "pass": case.passes,
                    "tokens": row.num_tokens,
                    "shape": shape(row),
                    "status": row.status_word,
                    "marks": marks(row),
                    "cells": cells(row, labels, source.verdicts),
                    "figures": figures(row, labels, name),
                    "behind": behind(row, line, every=every),
                }
            )
    return {
        "runs": [source.name for source in sources],
        "columns": [{"title": c.title, "isFigure": c.is_figure, "about": c.about} for c in COLUMNS],
        "passes": PASSES,
        "rows": rows,
        "every": every,
        "looks": {
            name: {"colour": look.colour, "symbol": _SYMBOLS[look.marker], "isDense": look.is_dense}
            for name, look in style.looks(series).items()
        },
        "phases": {"order": PHASES, "colours": COLOURS},
        "grey": style.GREY,
        "onDark": style.ON_DARK,
    }
