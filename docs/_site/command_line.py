"""The reference of the command line, by Typer's own documentation command."""

from __future__ import annotations

import re
import subprocess
import sys


def commands() -> str:
    """Every command and its flags, as Markdown."""
    command = [sys.executable, "-m", "typer", "bsa_bench.cli.app", "utils", "docs", "--name", "bsa-bench"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    body = made.partition("\n**Options**:")[2]
    body = re.sub(r"^(#+) `bsa-bench (.*)`$", r"\1 \2", f"**Options**:{body}", flags=re.MULTILINE)
    return re.sub(r"`([^`]*) <(?:list\[)?(?:str|path|text)\]?>`", r"`\1`", body)
