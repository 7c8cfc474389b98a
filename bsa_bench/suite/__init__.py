"""Suites: TOML files that say what to measure, turned into cases.

`load_suite` reads and checks a file (its keys are told in `schema`, the guide is docs/suites.md), `override` lays
command line settings over it, `Suite.cases` is what to run.
"""

from __future__ import annotations

from bsa_bench.suite.expand import Dropped
from bsa_bench.suite.load import list_suites, load_suite
from bsa_bench.suite.model import Limits, Suite, SuiteInfo
from bsa_bench.suite.override import override

__all__ = [
    "Dropped",
    "Limits",
    "Suite",
    "SuiteInfo",
    "list_suites",
    "load_suite",
    "override",
]
