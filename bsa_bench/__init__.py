"""bsa-bench: which attention is fastest on your shapes and hardware, by how much, at what loss of fidelity.

Importing this package loads neither torch nor pandas; `load` imports what it needs when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str | Path) -> pd.DataFrame:
    """Load a run's results as one flat table, a row for each case that was attempted.

    Args:
        path: a run's folder, or its `results.jsonl`.

    Returns:
        One row a case, in the order of execution; seconds, bytes and FLOP; what was not measured is missing.

    Raises:
        StoreError: there is no run at `path`, or it was written by a newer schema.
    """
    from bsa_bench.store import load_frame

    return load_frame(path)
