"""`bsa-bench import`: another tool's result file becomes a file of published figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bsa_bench.imports import ImportName, import_file
from bsa_bench.result import PassName


def import_published(
    file: Path,
    source_format: ImportName | None,
    out: Path | None,
    *,
    label: str | None,
    device: str | None,
    passes: PassName | None,
    as_json: bool,
) -> None:
    """Import a file; the path goes to stdout, what was left out to stderr."""
    done = import_file(
        file,
        out=out or Path(f"{file.stem}.published.jsonl"),
        source_format=source_format,
        label=label,
        device=device,
        passes=passes,
    )
    if as_json:
        document = {
            "published": str(done.target),
            "format": done.format_name,
            "num_figures": len(done.figures),
            "left_out": done.left_out,
            "devices": list(dict.fromkeys(each.device for each in done.figures)),
        }
        json.dump(document, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    print(done.target)
    print(done.note, file=sys.stderr)
