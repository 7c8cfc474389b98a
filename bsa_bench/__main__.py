"""`python -m bsa_bench`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # `-m` puts the working folder first, for a checkout to be run as it lies there; an installed package has no use of
    # it, and a `queue.py` in it would be taken for Python's.
    folder = Path(__file__).resolve().parents[1]
    if not sys.flags.safe_path and sys.path and Path(sys.path[0]).resolve() != folder:
        del sys.path[0]

    from bsa_bench.cli import main

    main()
