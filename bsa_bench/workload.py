"""What is attended to: a video (or a grid, or a plain length), a model's heads, a number format, an input."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from bsa_bench.text import is_unicode, visible

DType = Literal["float32", "float16", "bfloat16", "float64"]
DTYPE_BYTES: dict[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
#: Far above what anybody attends to, and low enough that nothing computed from it overflows or takes long.
MAX_TOKENS = 1 << 30
MAX_PIXELS = 1_000_000
MAX_FACTOR = 1024
MAX_SHAPE = 65_536
MAX_SEED = (1 << 63) - 1
Tokens = Annotated[int, Field(gt=0, le=MAX_TOKENS)]
"""A number of tokens, of blocks, or of what else is counted along a sequence."""
Pixels = Annotated[int, Field(gt=0, le=MAX_PIXELS)]
"""Of one side of a video, or its frames."""
Shape = Annotated[int, Field(gt=0, le=MAX_SHAPE)]
"""Of an axis of the tensors that is no length: batch, heads, head size."""
Factor = Annotated[int, Field(gt=0, le=MAX_FACTOR)]
Triple = tuple[Tokens, Tokens, Tokens]
Factors = tuple[Factor, Factor, Factor]


@dataclass(frozen=True)
class ModelPreset:
    """The attention shape of a public model, and where its figures stand.

    `head_dim` is in elements; `patch` is in latent cells (t, h, w), `vae` in pixels a latent cell (t, h, w).
    """

    heads: int
    head_dim: int
    layers: int
    vae: tuple[int, int, int]
    patch: tuple[int, int, int]
    source: str


PRESETS: dict[str, ModelPreset] = {
    "wan2.1-1.3b": ModelPreset(
        12, 128, 30, (4, 8, 8), (1, 2, 2), "Wan2.1 wan/configs/wan_t2v_1_3B.py: dim 1536, num_heads 12, num_layers 30"
    ),
    "wan2.1-14b": ModelPreset(
        40, 128, 40, (4, 8, 8), (1, 2, 2), "Wan2.1 wan/configs/wan_t2v_14B.py: dim 5120, num_heads 40, num_layers 40"
    ),
    "hunyuanvideo": ModelPreset(
        24,
        128,
        60,
        (4, 8, 8),
        (1, 2, 2),
        "HunyuanVideo hyvideo/modules/models.py HYVideo-T/2-cfgdistill: "
        "hidden_size 3072, heads_num 24, 20 double and 40 single blocks",
    ),
    "cpu-2x64": ModelPreset(2, 64, 1, (4, 8, 8), (1, 2, 2), "this project: two heads of 64, small enough for a CPU"),
    "cpu-1x32": ModelPreset(1, 32, 1, (4, 8, 8), (1, 2, 2), "this project: one head of 32, for tests"),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Frozen):
    """Where q, k and v come from.

    `gaussian`: independent N(0, 1). `smooth`: a spatio-temporally correlated field with a moving object. `video`: a
    decoded clip (`path`, or the name of a sample clip in `clip`). `captured`: a safetensors file with q, k, v. `sha256`
    is of the file at `path`, which is read when a suite is; absent where there is none, and in older results.
    """

    kind: Literal["gaussian", "smooth", "video", "captured"] = "smooth"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    clip: str | None = None
    path: str | None = None
    sha256: str | None = None

    @model_serializer(mode="wrap")
    def _without_unknown_digest(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As if there were no such field where it is null: identities of cases without a file stay what they were."""
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name != "sha256" or value is not None}

    @model_validator(mode="after")
    def _complete(self) -> InputSpec:
        if self.kind == "captured" and self.path is None:
            raise ValueError("input captured: expected `path`, a safetensors file with q, k and v")
        if self.kind == "video" and (self.path is None) == (self.clip is None):
            raise ValueError("input video: expected either `clip` (a sample clip's name) or `path` (a video file)")
        if self.path is not None and not is_unicode(self.path):
            raise ValueError(f"path: {visible(self.path)} has bytes that are no UTF-8; rename it, or link to it")
        if self.kind in {"gaussian", "smooth"} and (self.path or self.clip):
            raise ValueError(f"input {self.kind}: takes neither `clip` nor `path`")
        return self

    @property
    def label(self) -> str:
        """A short name for tables: `video:bikes`, `smooth`."""
        from pathlib import PurePath

        name = self.clip or (PurePath(self.path).name if self.path else None)
        return f"{self.kind}:{name}" if name else self.kind


class Workload(_Frozen):
    """One attention problem. Exactly one of video (`frames`, `height`, `width`), `grid` or `tokens` gives its length.

    A video of F frames becomes T = ceil((F-1)/vae_t) + 1 latent frames (a causal video VAE codes the first frame by
    itself), each of ceil(height/(vae_h*patch_h)) x ceil(width/(vae_w*patch_w)) tokens. A plain length becomes its most
    cubic factorisation.
    """

    model: str | None = None
    frames: Pixels | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    grid: Triple | None = None
    tokens: Tokens | None = None
    vae: Factors = (4, 8, 8)
    patch: Factors = (1, 2, 2)
    batch: Shape = 1
    heads: Shape = 2
    head_dim: Shape = 64
    dtype: DType = "float32"
    input: InputSpec = InputSpec()

    @model_validator(mode="after")
    def _one_length(self) -> Workload:
        video = (self.frames, self.height, self.width)
        given = [any(v is not None for v in video), self.grid is not None, self.tokens is not None]
        if sum(given) != 1:
            raise ValueError("workload: expected exactly one of (frames, height, width), grid or tokens")
        if given[0] and None in video:
            raise ValueError(f"workload: a video needs frames, height and width, got {video}")
        if self.model is not None and self.model not in PRESETS:
            raise ValueError(f"model: got {self.model!r}, expected one of {', '.join(sorted(PRESETS))}")
        if self.tokens is None and self.num_tokens > MAX_TOKENS:
            t, h, w = self.token_grid
            raise ValueError(
                f"workload: {t:,} x {h:,} x {w:,} = {self.num_tokens:,} tokens, expected at most {MAX_TOKENS:,}"
            )
        return self

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """(T, H, W) tokens along time, height and width."""
        if self.grid is not None:
            return self.grid
        if self.tokens is not None:
            return most_cubic_grid(self.tokens)
        assert self.frames is not None
        assert self.height is not None
        assert self.width is not None
        return (
            math.ceil((self.frames - 1) / self.vae[0] / self.patch[0]) + 1,
            math.ceil(self.height / (self.vae[1] * self.patch[1])),
            math.ceil(self.width / (self.vae[2] * self.patch[2])),
        )

    @property
    def num_tokens(self) -> int:
        """L, the length of the attention."""
        t, h, w = self.token_grid
        return t * h * w

    @property
    def video_size(self) -> tuple[int, int, int]:
        """(frames, height, width) in pixels that fill the token grid: what is asked for, padded up to whole tokens."""
        t, h, w = self.token_grid
        return (
            (t - 1) * self.vae[0] * self.patch[0] + 1,
            h * self.vae[1] * self.patch[1],
            w * self.vae[2] * self.patch[2],
        )

    def padded_tokens(self, block: tuple[int, int, int]) -> int:
        """Tokens after each axis of the grid is padded to whole blocks."""
        return math.prod(math.ceil(g / b) * b for g, b in zip(self.token_grid, block, strict=True))

    def dense_pairs(self, *, causal: bool = False) -> int:
        """Pairs of a query and a key of dense attention, over all heads; causal: B*H*L*(L + 1)/2."""
        length = self.num_tokens
        return self.batch * self.heads * (length * (length + 1) // 2 if causal else length**2)

    @property
    def dense_flop(self) -> int:
        """Forward FLOP of dense attention, 4*B*H*D*L^2 (a multiply-add is 2; softmax not counted)."""
        return 4 * self.batch * self.heads * self.head_dim * self.num_tokens**2

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one of q, k, v, o."""
        return self.batch * self.heads * self.num_tokens * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def digest(self) -> str:
        """Short stable digest of everything that defines the workload, its input included."""
        return _digest(self)

    @property
    def slugs(self) -> tuple[str, str, str]:
        """Length, shape and input as parts of a case's id: two workloads that differ have other ones.

        `("61x512x512px-16x32x32", "cpu-2x64-2x64-float32", "video:bikes")`.
        """
        t, h, w = self.token_grid
        source = (
            f"{self.frames}x{self.height}x{self.width}px-" if self.frames else f"{self.tokens}-" if self.tokens else ""
        )
        length = f"{source}{t}x{h}x{w}"
        shape = f"{self.model}-" * bool(self.model) + f"b{self.batch}-" * (self.batch != 1)
        shape += f"{self.heads}x{self.head_dim}-{self.dtype}"
        for name in ("vae", "patch"):
            sides = getattr(self, name)
            if sides != type(self).model_fields[name].default:
                shape += f"-{name}{'x'.join(map(str, sides))}"
        spec = self.input
        # Files of one name lie in several folders, and one file holds something else tomorrow.
        where = f"~{short_digest([spec.path, spec.sha256] if spec.sha256 else spec.path)[:6]}" if spec.path else ""
        return length, shape, f"{spec.label}{where}" + f"-s{spec.seed}" * (spec.seed != 0)

    @property
    def label(self) -> str:
        """A readable line: `61x448x832 -> 16x28x52 = 23,296 tokens, 12x128 bfloat16, video:bikes`."""
        grid = "x".join(map(str, self.token_grid))
        shape = f"{self.heads}x{self.head_dim} {self.dtype}, {self.input.label}"
        source = f"{self.frames}x{self.height}x{self.width} -> " if self.frames else ""
        batch = f"batch {self.batch}, " if self.batch != 1 else ""
        return f"{source}{grid} = {self.num_tokens:,} tokens, {batch}{shape}"


@lru_cache(maxsize=4096)
def most_cubic_grid(num_tokens: int) -> tuple[int, int, int]:
    """Factor a length into t <= h <= w with the smallest surface: 16,384 -> (16, 32, 32), a prime p -> (1, 1, p)."""
    best = (1, 1, num_tokens)
    for t in range(1, round(num_tokens ** (1 / 3)) + 1):
        if num_tokens % t:
            continue
        rest = num_tokens // t
        h = next(h for h in range(math.isqrt(rest), 0, -1) if rest % h == 0)
        if h >= t and _surface(t, h, rest // h) < _surface(*best):
            best = (t, h, rest // h)
    return best


def _surface(t: int, h: int, w: int) -> int:
    return t * h + h * w + t * w


@lru_cache(maxsize=65536)
def _digest(workload: Workload) -> str:
    return short_digest(workload.model_dump(mode="json"))


def short_digest(value: object) -> str:
    """Twelve hex digits of the SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
