"""Figures that others published: never measured here, and labelled so wherever they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bsa_bench.report.tables import STANDING

PAPER = "arXiv 2509.01085"
PAPER_LABEL = "paper, H100"


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's main comparison: speed-up of attention in training over a baseline that it does not name.

    `flop_ratio` is how many times fewer FLOP than full attention, selection left out; null where none is known.
    `standing`: see `STANDING`.
    """

    num_tokens: int
    method: str
    sparsity: float
    speedup: float
    standing: Literal["P", "N"]
    flop_ratio: float | None = None
    flop_standing: Literal["P", "N"] | None = None

    @property
    def label(self) -> str:
        """`BSA (paper, H100)`."""
        return f"{self.method} ({PAPER_LABEL})"


def standing_note(standing: str) -> str:
    """The footnote of a paper's figure."""
    return f"{PAPER}, H100; known from {STANDING[standing]}; speed-up in training over a baseline that it does not name"


#: That the paper's 23K and 153K tokens are these two lengths is our reading: the products match exactly.
PAPER_MAIN = (
    PaperRow(23_296, "full", 0.0, 1.0, "N"),
    PaperRow(23_296, "MoBA", 0.80, 1.2, "N"),
    PaperRow(23_296, "VSA", 0.87, 4.5, "N"),
    PaperRow(23_296, "BSA", 0.93, 12.85, "N", 1.51e12 / 1.05e11, "N"),
    PaperRow(153_600, "full", 0.0, 1.0, "N"),
    PaperRow(153_600, "MoBA", 0.80, 2.3, "N"),
    PaperRow(153_600, "VSA", 0.87, 6.2, "N"),
    PaperRow(153_600, "BSA", 0.95, 17.79, "P", 20.0, "P"),
)


@dataclass(frozen=True)
class PublishedRate:
    """A block-sparse kernel's TFLOP/s over the selected blocks alone, and those of dense attention next to it."""

    kernel: str
    case: str
    direction: Literal["forward", "backward"]
    sparsity: float
    rate: float
    dense_rate: float

    @property
    def title(self) -> str:
        """Of the group of rows that it belongs to."""
        return f"published by NVIDIA, B200: {self.case}, {self.direction}"

    @property
    def retention(self) -> float:
        """Effective over dense rate."""
        return self.rate / self.dense_rate


NVIDIA_SOURCE = (
    "published by NVIDIA, not measured here: cudnn-frontend at 7ec40d3, "
    "benchmark/block_sparse_attention/results/topk_b200.csv; B200 at clocks locked to 847 MHz, bfloat16, head dim "
    "128, random top-k masks given to the kernel, no selection; dense is the faster of its two kernels"
)
_CUDNN_64, _CUDNN_128, _FA4_256 = (
    "cuDNN, 64-token blocks",
    "cuDNN, 128-token blocks",
    "FlashAttention-4, 256-token blocks",
)
_SMALL, _LARGE = "wan1.3b-480p, 12 heads, 39,936 tokens", "wan14b-720p, 40 heads, 92,160 tokens"
NVIDIA_RATES = (
    PublishedRate(_CUDNN_64, _SMALL, "forward", 0.9006, 299.8, 824.3),
    PublishedRate(_CUDNN_128, _SMALL, "forward", 0.9006, 689.0, 824.3),
    PublishedRate(_FA4_256, _SMALL, "forward", 0.8974, 784.3, 824.3),
    PublishedRate(_CUDNN_64, _LARGE, "forward", 0.9, 472.2, 850.9),
    PublishedRate(_CUDNN_128, _LARGE, "forward", 0.9, 792.9, 850.9),
    PublishedRate(_FA4_256, _LARGE, "forward", 0.9, 830.3, 850.9),
    PublishedRate(_CUDNN_64, _SMALL, "backward", 0.9006, 303.5, 684.3),
    PublishedRate(_CUDNN_128, _SMALL, "backward", 0.9006, 592.4, 684.3),
    PublishedRate(_FA4_256, _SMALL, "backward", 0.8974, 604.2, 684.3),
    PublishedRate(_CUDNN_64, _LARGE, "backward", 0.9, 330.0, 700.9),
    PublishedRate(_CUDNN_128, _LARGE, "backward", 0.9, 610.8, 700.9),
    PublishedRate(_FA4_256, _LARGE, "backward", 0.9, 667.2, 700.9),
)
