"""Figures that were known before: those that the kernels' design was based on, to stand beside what is read now."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Figures:
    """Earlier figures by configuration and architecture, and where they come from.

    Keys: `registers`, `shared_kb` (thousands of bytes), `ctas`, `spill_bytes`, `tensor`; a pair is a range.
    """

    source: str
    by_name: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def of(self, name: str, arch: str) -> dict[str, Any] | None:
        """The figures of a configuration, if there are any."""
        found = self.by_name.get(name, {}).get(arch)
        return dict(found) if found else None


def design_figures() -> Figures:
    """What the design of the kernels was based on."""
    text = (files("bsa_bench.static") / "design_figures.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    return Figures(content["source"], content["figures"])
