"""What releases of Triton removed from its language, and the last one that has it.

Source: the public names and the parameters of `triton.language` and `triton.experimental.gluon.language` in Triton
3.6.0, 3.7.0, 3.8.0 and 3.9.0, compared.
"""

from __future__ import annotations

import re

_LAST_WITH: dict[str, str] = {
    **dict.fromkeys(("thread_barrier", "block_bases"), "3.6.0"),
    **dict.fromkeys(("get_tmem_reg_layout", "sync_cluster_init", "cta_split_num"), "3.7.0"),
    **dict.fromkeys(("make_block_ptr", "advance", "boundary_check", "padding_option"), "3.8.0"),
    **dict.fromkeys(
        (
            "async_copy_global_to_shared",
            "async_copy_global_to_shared_im2col",
            "async_copy_shared_to_global",
            "fence_init_release_cluster",
        ),
        "3.8.0",
    ),
}
_SAYS_GONE = re.compile(r"ha(?:s|ve) been removed|has no attribute|unexpected keyword argument|cannot import name")


def remedy_for(message: str) -> str | None:
    """Where a compiler's message says that something is not there: which release had it, and how to ask for it."""
    if not _SAYS_GONE.search(message):
        return None
    words = set(re.findall(r"\w+", message))
    gone = [name for name in _LAST_WITH if name in words]
    if not gone:
        return None
    # With several, the oldest has all of them.
    release = min(_LAST_WITH[name] for name in gone)
    return f"Triton {release} still has {', '.join(gone)}: --triton {release}"
