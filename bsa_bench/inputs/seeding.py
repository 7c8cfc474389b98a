"""Independent random streams from one seed, drawn on the CPU so that every device gets the same numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def make_generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator for the stream `names` of `seed`; streams of different names are unrelated."""
    import torch

    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
