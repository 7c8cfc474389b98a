"""Writing of JSON documents."""

from __future__ import annotations

import json
from pathlib import Path


def write_json(document: object, target: Path) -> None:
    """Write a JSON document; what is not finite is refused, for it is not JSON.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n", encoding="utf-8")
