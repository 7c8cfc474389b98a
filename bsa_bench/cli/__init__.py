"""The command line: parse, call, render. Domain errors become one message and an exit code."""

from __future__ import annotations

import sys

from bsa_bench.cli.streams import print_error, settle_streams
from bsa_bench.errors import BenchError


def main() -> None:
    """Run the `bsa-bench` command."""
    from bsa_bench.cli.clock import note_start

    note_start()
    settle_streams()
    from bsa_bench.cli.app import app

    try:
        app()
    except BenchError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
