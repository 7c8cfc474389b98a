"""Torch's compile cache in a worker: where it cannot be written, only what compiles is refused.

Importing torch's compiler makes the cache's folder and fails where it cannot, and the first call of an operator of
`torch.library.custom_op` imports it, whatever engine that belongs to.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_SHARED = Path("/dev/shm")  # noqa: S108 -- a folder of this process's own is made there

_fault: str | None = None


def set_up_torch_cache() -> None:
    """Give the process a compile cache that works, if only for its life; before torch's compiler is imported."""
    global _fault  # noqa: PLW0603 -- of the process, as the variable is
    _fault = _cache_fault()
    if _fault is None:
        return
    for parent in (None, _SHARED, Path.cwd()):
        try:
            folder = tempfile.mkdtemp(prefix="bsa-bench-no-cache-", dir=parent)
        except OSError:
            continue
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[_VARIABLE] = folder
        return


def torch_cache_fault() -> str | None:
    """Why the cache that this process was started with cannot be used, or None."""
    return _fault or _cache_fault()


def _cache_fault() -> str | None:
    try:
        from bsa_kernels.engines.flex_needs import cache_fault
    except ImportError:  # the kernels of an older revision, in a pair
        return None
    return cache_fault()
