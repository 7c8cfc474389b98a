import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bsa_bench.workload import PRESETS, InputSpec, Workload, most_cubic_grid, short_digest


@pytest.mark.parametrize(
    ("video", "grid", "tokens", "blocks"),
    [
        ((61, 448, 832), (16, 28, 52), 23_296, 364),
        ((77, 448, 832), (20, 28, 52), 29_120, 455),
        ((81, 480, 832), (21, 30, 52), 32_760, 624),
        ((93, 576, 1024), (24, 36, 64), 55_296, 864),
        ((157, 448, 832), (40, 28, 52), 58_240, 910),
        ((81, 720, 1280), (21, 45, 80), 75_600, 1440),
        ((157, 768, 1280), (40, 48, 80), 153_600, 2400),
    ],
)
def test_videos_of_the_paper_and_of_wan_have_their_published_token_counts(video, grid, tokens, blocks):
    frames, height, width = video
    workload = Workload(frames=frames, height=height, width=width)
    assert workload.token_grid == grid
    assert workload.num_tokens == tokens
    assert workload.padded_tokens((4, 4, 4)) == 64 * blocks
    assert workload.video_size == video


def test_a_video_that_does_not_fill_whole_tokens_is_padded_up():
    workload = Workload(frames=30, height=250, width=260)
    assert workload.token_grid == (9, 16, 17)
    assert workload.video_size == (33, 256, 272)


def test_one_frame_is_one_latent_frame():
    assert Workload(frames=1, height=16, width=16).token_grid == (1, 1, 1)


def test_time_patches_count_latent_frames_after_the_first():
    assert Workload(frames=17, height=16, width=16, patch=(2, 2, 2)).token_grid[0] == 3


def cubic_by_hand(n):
    factors = ((t, h, n // t // h) for t in range(1, n + 1) if n % t == 0 for h in range(t, n + 1) if n // t % h == 0)
    return min((f for f in factors if f[1] <= f[2]), key=lambda f: f[0] * f[1] + f[1] * f[2] + f[0] * f[2])


@given(st.integers(1, 600))
def test_a_plain_length_becomes_the_factors_with_the_smallest_surface(n):
    t, h, w = most_cubic_grid(n)
    assert t * h * w == n
    assert t <= h <= w
    best = cubic_by_hand(n)
    assert t * h + h * w + t * w == best[0] * best[1] + best[1] * best[2] + best[0] * best[2]


def test_well_known_lengths_become_well_known_grids():
    assert most_cubic_grid(16_384) == (16, 32, 32)
    assert most_cubic_grid(4096) == (16, 16, 16)
    assert most_cubic_grid(13) == (1, 1, 13)
    assert Workload(tokens=16_384).token_grid == (16, 32, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected exactly one of"),
        ({"tokens": 64, "grid": (4, 4, 4)}, "expected exactly one of"),
        ({"frames": 5, "height": 64}, r"needs frames, height and width, got \(5, 64, None\)"),
        ({"tokens": 0}, "greater than 0"),
        ({"tokens": 64, "dtype": "int8"}, "float32"),
        ({"tokens": 64, "model": "wan9"}, "got 'wan9', expected one of cpu-1x32, cpu-2x64, hunyuanvideo"),
        ({"tokens": 64, "head": 4}, "[Ee]xtra inputs"),
    ],
)
def test_a_workload_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Workload(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "captured"}, "expected `path`, a safetensors file"),
        ({"kind": "video"}, "expected either `clip`"),
        ({"kind": "video", "clip": "bikes", "path": "a.mp4"}, "expected either `clip`"),
        ({"kind": "smooth", "clip": "bikes"}, "input smooth: takes neither"),
        ({"kind": "gaussian", "seed": -1}, "greater than or equal to 0"),
    ],
)
def test_an_input_that_lacks_its_source_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        InputSpec(**fields)


def test_counts_follow_from_the_shape():
    workload = Workload(grid=(5, 7, 9), batch=2, heads=3, head_dim=32, dtype="bfloat16")
    assert workload.num_tokens == 315
    assert workload.dense_flop == 4 * 2 * 3 * 32 * 315**2
    assert workload.tensor_bytes == 2 * 3 * 315 * 32 * 2
    assert workload.padded_tokens((4, 4, 4)) == 8 * 8 * 12
    assert workload.padded_tokens((1, 1, 1)) == 315


def test_a_label_shows_padding_source_and_batch():
    workload = Workload(
        frames=61,
        height=448,
        width=832,
        heads=12,
        head_dim=128,
        dtype="bfloat16",
        input=InputSpec(kind="video", clip="bikes"),
    )
    assert workload.label == "61x448x832 -> 16x28x52 = 23,296 tokens, 12x128 bfloat16, video:bikes"
    assert Workload(grid=(1, 4, 4), batch=3).label == "1x4x4 = 16 tokens, batch 3, 2x64 float32, smooth"
    assert InputSpec(kind="captured", path="/a/b/qkv.safetensors").label == "captured:qkv.safetensors"


def test_the_digest_knows_everything_and_nothing_else():
    one = Workload(tokens=64)
    assert one.digest == Workload(tokens=64).digest
    others = [
        Workload(tokens=64, batch=2),
        Workload(tokens=64, dtype="float16"),
        Workload(tokens=64, input=InputSpec(seed=1)),
        Workload(tokens=64, input=InputSpec(kind="gaussian")),
        Workload(tokens=128),
    ]
    assert len({w.digest for w in [one, *others]}) == 1 + len(others)
    assert short_digest({"b": 1, "a": 2}) == short_digest({"a": 2, "b": 1})


def test_a_workload_is_immutable_and_survives_json():
    workload = Workload(frames=61, height=448, width=832, model="wan2.1-1.3b")
    assert Workload.model_validate_json(workload.model_dump_json()) == workload
    with pytest.raises(ValidationError, match="frozen"):
        workload.batch = 2


def test_every_preset_names_its_source_and_a_shape_that_patches_whole_pixels():
    for name, preset in PRESETS.items():
        assert preset.source, name
        assert preset.heads * preset.head_dim * preset.layers > 0
        assert math.prod(preset.vae) > 0
        Workload(
            tokens=64, model=name, heads=preset.heads, head_dim=preset.head_dim, vae=preset.vae, patch=preset.patch
        )
