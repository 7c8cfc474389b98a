"""The one way from a workload to its q, k, v."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bsa_bench.errors import InputError
from bsa_bench.file_digest import file_digest
from bsa_bench.inputs.captured import check_captured, check_values, read_captured
from bsa_bench.inputs.clip import check_clip, find_sample_clip, load_clip, patch_chunks
from bsa_bench.inputs.fields import CHANNELS, smooth_chunks, write_gaussian
from bsa_bench.inputs.projection import Projection, check_head_dim
from bsa_bench.result import Case, Footage, InputFacts
from bsa_bench.workload import Workload

if TYPE_CHECKING:
    import torch

    from bsa_bench.contract import TensorSpec


@dataclass(frozen=True)
class QKV:
    """Inputs of one attention: contiguous [B, H, L, D] in natural (T, H, W) token order, and what they are."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    description: str
    footage: Footage | None = None

    @property
    def facts(self) -> InputFacts:
        """What they are, to be stored."""
        return InputFacts(description=self.description, footage=self.footage)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """q, k and v by name."""
        return {"q": self.q, "k": self.k, "v": self.v}


def check_inputs(cases: Iterable[Case]) -> None:
    """Raise InputError if the input of one of the cases cannot be made, see `check_input`; each input is read once."""
    for workload in {case.workload.digest: case.workload for case in cases}.values():
        check_input(workload)


def check_input(workload: Workload) -> None:
    """Raise InputError if the input of `workload` cannot be made, or its file is no longer the one that it names.

    Of captured tensors all values are read, of a clip the first picture. Without torch.
    """
    _check_file(workload)
    if workload.input.kind == "captured":
        check_values(_file_path(workload), workload)


def _check_file(workload: Workload) -> None:
    spec = workload.input
    if spec.kind in {"smooth", "video"}:
        check_head_dim(workload.head_dim)
    if spec.kind == "video":
        check_clip(_clip_path(workload))
    elif spec.kind == "captured":
        check_captured(_file_path(workload), workload)
    if spec.sha256 is not None and (found := file_digest(_file_path(workload))) != spec.sha256:
        raise InputError(
            f"{spec.kind} {spec.path}: another file lies there now, its SHA-256 is {found}, expected {spec.sha256}; "
            "put the file that was measured back, or start a new run"
        )


def make_qkv(workload: Workload, *, device: str) -> QKV:
    """Make q, k and v of `workload` in its dtype on `device`.

    All numbers are drawn and computed in fp32 on the CPU, so the seed alone decides them, not the device. The weights
    of the projection belong to the seed; elements of a batch differ by their field, or by the place in the clip at
    which they start.

    Raises:
        InputError: see `check_input`; or a clip breaks off while it is decoded.
    """
    import torch

    _check_file(workload)  # of the values, the tensors are asked
    spec = workload.input
    dtype = getattr(torch, workload.dtype)
    if spec.kind == "captured":
        path = _file_path(workload)
        q, k, v = read_captured(path, dtype=dtype, device=device)
        return QKV(q, k, v, f"q, k, v captured in {path.name}")
    q, k, v = (_empty(workload, dtype=dtype, device=device) for _ in range(3))
    if spec.kind == "gaussian":
        for name, out in (("q", q), ("k", k), ("v", v)):
            write_gaussian(out, seed=spec.seed, name=name)
        return QKV(q, k, v, f"independent N(0, 1), seed {spec.seed}")
    projected = f"random projection with qk-norm and 3D RoPE, seed {spec.seed}"
    if spec.kind == "smooth":
        return QKV(q, k, v, f"{_write_smooth(workload, q, k, v)}; {projected}")
    content, footage = _write_video(workload, q, k, v)
    return QKV(q, k, v, f"{content}; {projected}", footage)


def random_like_output(workload: Workload, device: str) -> torch.Tensor:
    """Return a seeded N(0, 1) gradient of the output, [B, H, L, D] in the workload's dtype."""
    import torch

    out = _empty(workload, dtype=getattr(torch, workload.dtype), device=device)
    write_gaussian(out, seed=workload.input.seed, name="dO")
    return out


def draw_tensors(workload: Workload, specs: Mapping[str, TensorSpec], *, device: str) -> dict[str, torch.Tensor]:
    """Draw what a method reads beside q, k and v, from the input's seed and each tensor's name.

    Axes `BHLD` give [B, H, L, D], `BHL` [B, H, L]; in the workload's dtype.
    """
    import torch

    found = {}
    for name, spec in specs.items():
        shape = (workload.batch, workload.heads, workload.num_tokens)
        wide = torch.empty(*shape, workload.head_dim if spec.axes == "BHLD" else 1, dtype=torch.float32)
        write_gaussian(wide, seed=workload.input.seed, name=name)
        if spec.draw == "sigmoid":
            wide.sigmoid_()
        elif spec.draw == "log-decay":
            wide.exp_().mul_(-0.1)
        drawn = wide if spec.axes == "BHLD" else wide.squeeze(-1)
        found[name] = drawn.to(device=device, dtype=getattr(torch, workload.dtype))
    return found


def _write_smooth(workload: Workload, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> str:
    grid = workload.token_grid
    projection = _draw_projection(workload, num_features=CHANNELS)
    for b in range(workload.batch):
        projection.write(smooth_chunks(grid, seed=workload.input.seed, element=b), q[b], k[b], v[b])
    return f"smooth random field of {CHANNELS} channels on {_by(grid)} tokens with one moving object"


def _write_video(workload: Workload, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[str, Footage]:
    path = _clip_path(workload)
    num_frames, height, width = workload.video_size
    needed = num_frames * workload.batch
    clip = load_clip(path, num_frames=needed, height=height, width=width)
    patch = (
        workload.vae[0] * workload.patch[0],
        workload.vae[1] * workload.patch[1],
        workload.vae[2] * workload.patch[2],
    )
    projection = _draw_projection(workload, num_features=3 * math.prod(patch))
    for b in range(workload.batch):
        chunks = patch_chunks(clip, start=b * num_frames, grid=workload.token_grid, patch=patch)
        projection.write(chunks, q[b], k[b], v[b])

    found = len(clip.frames)
    footage = Footage(
        num_pictures=found,
        num_needed=needed,
        source=clip.source,
        crop=clip.crop,
        size=(height, width),
        turned=clip.turned,
        is_still=clip.is_still,
    )
    played = f"its {found} frames forward and backward to fill {needed}" if found < needed else f"first {found} frames"
    asked = (workload.frames, workload.height, workload.width)
    padded = f" (asked for {_by(asked)})" if workload.frames and asked != workload.video_size else ""
    batch = (
        f", {num_frames} frames after each other for each of {workload.batch} elements" if workload.batch > 1 else ""
    )
    turned = f", {clip.turned}" * bool(clip.turned)
    words = (
        f"clip {workload.input.clip or path.name}: {played}{batch}{turned}, centre {_by(clip.crop)} of "
        f"{_by(clip.source)} pixels scaled to {_by((height, width))}{padded}, raw {_by(patch)} pixel blocks as tokens"
    )
    return words, footage


def _draw_projection(workload: Workload, *, num_features: int) -> Projection:
    return Projection.draw(
        num_features=num_features,
        heads=workload.heads,
        head_dim=workload.head_dim,
        grid=workload.token_grid,
        seed=workload.input.seed,
    )


def _empty(workload: Workload, *, dtype: torch.dtype, device: str) -> torch.Tensor:
    import torch

    shape = (workload.batch, workload.heads, workload.num_tokens, workload.head_dim)
    return torch.empty(shape, dtype=dtype, device=device)


def _clip_path(workload: Workload) -> Path:
    clip = workload.input.clip
    return find_sample_clip(clip) if clip is not None else _file_path(workload)


def _file_path(workload: Workload) -> Path:
    assert workload.input.path is not None
    return Path(workload.input.path).expanduser()


def _by(sizes: tuple[int | None, ...]) -> str:
    return "x".join(map(str, sizes))
