"""What a user's configuration file means, and what is said of a wrong one."""

import pytest

from bsa_bench.errors import UsageError
from bsa_bench.static.config import KernelConfig, load_configs, pick


@pytest.fixture
def load(tmp_path):
    """Write a configuration file and load it."""
    path = tmp_path / "own" / "configs.toml"
    path.parent.mkdir()

    def load(text, **options):
        path.write_text(text)
        return load_configs(path, **options)

    return load


def test_entries_change_what_stands_at_the_top_and_axes_are_crossed(load, tmp_path):
    configs = load("""
        name = "scale"
        kernel = "kernels/scale.py:scale"
        signature = { x_ptr = "*bf16", n = "i32" }
        constexprs = { SIZE = 64, FAST = true }
        num_stages = 2
        divisible_by_16 = ["x_ptr", "n"]
        work = { programs = 4, trips = 2.5, hbm_bytes = 100 }

        [axes]
        num_warps = [4, 8]
        SIZE = [128, 256]

        [[config]]
        name = "small"

        [[config]]
        kernel = "bsa_kernels.some:other"
        signature = { n = "i64" }
        constexprs = { FAST = false }
        num_stages = 3
        divisible_by_16 = []
        work = { programs = 1, trips = 1, hbm_bytes = 0 }
    """)
    assert [config.name for config in configs] == [
        *("small-warps4-size128", "small-warps4-size256", "small-warps8-size128", "small-warps8-size256"),
        *("scale-1-warps4-size128", "scale-1-warps4-size256", "scale-1-warps8-size128", "scale-1-warps8-size256"),
    ]
    small, other = configs[1], configs[7]
    assert small.kernel == f"{tmp_path.resolve()}/own/kernels/scale.py:scale"
    assert (small.signature, small.constexprs) == ({"x_ptr": "*bf16", "n": "i32"}, {"SIZE": 256, "FAST": True})
    assert (small.num_warps, small.num_stages, small.aligned, small.work.trips) == (4, 2, ("x_ptr", "n"), 2.5)
    assert other.kernel == "bsa_kernels.some:other"
    assert (other.signature, other.constexprs) == ({"x_ptr": "*bf16", "n": "i64"}, {"SIZE": 256, "FAST": False})
    assert (other.num_warps, other.num_stages, other.aligned, other.work.programs) == (8, 3, (), 1)


def test_a_file_without_entries_is_one_configuration_named_after_its_kernel(load):
    (config,) = load('kernel = "scale.py:scale"\nsignature = { x_ptr = "*fp32", n = "i32" }')
    assert (config.name, config.aligned, config.num_warps, config.num_stages) == ("scale", ("x_ptr",), 4, 3)


def test_a_kernel_of_the_command_line_is_seen_from_where_one_stands(load):
    (config,) = load('kernel = "scale.py:scale"\nsignature = {}', kernel="here/other.py:other")
    assert (config.name, config.kernel) == ("other", "here/other.py:other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel = ", "is no TOML: Invalid value (at "),
        ("signature = {}", "no kernel given; write kernel = 'path.py:name' or use --kernel"),
        ("kernel = 'scale.py'", "kernel: got 'scale.py', expected path.py:function or module:function"),
        ("kernel = 'a.py:f'\nnum_warp = 4", "num_warp: unknown key, expected one of axes, config, "),
        ("kernel = 'a.py:f'\nnum_warp = 4", "did you mean 'num_warps'?"),
        ("kernel = 'a.py:f'\nnum_warps = 3", "f.num_warps: got 3, expected a power of two"),
        ("kernel = 'a.py:f'\nnum_warps = 64", "f.num_warps: got 64, expected a number less than or equal to 32"),
        ("kernel = 'a.py:f'\nnum_stages = 'two'", "num_stages: got 'two', expected "),
        ("kernel = 'a.py:f'\nmaxnreg = 256", "f.maxnreg: got 256, expected a number less than or equal to 255"),
        ("kernel = 'a.py:f'\nsignature = ['x']", "signature: got ['x'], expected a table"),
        ("kernel = 'a.py:f'\n[axes]\nnum_warps = 4", "axes.num_warps: got 4, expected "),
        ("kernel = 'a.py:f'\n[axes]\nSIZE = []", "axes.SIZE: got [], expected at least one value"),
        ("kernel = 'a.py:f'\n[axes]\nnum_warps = [4, 5]", "f-warps5.num_warps: got 5, expected a power of two"),
        ("kernel = 'a.py:f'\nwork = { programs = 0, trips = 1, hbm_bytes = 0 }", "work.programs: got 0, expected "),
        ("kernel = 'a.py:f'\n[[config]]\nname = 'a'\n[[config]]\nname = 'a'", "names must differ, got 'a' twice"),
        ("kernel = 'a.py:f'\n[[config]]\nname = 'a'\nwarps = 2", "config[0].warps: unknown key, expected one of "),
    ],
)
def test_a_wrong_file_is_answered_with_file_key_and_what_was_expected(load, tmp_path, text, message):
    with pytest.raises(UsageError) as error:
        load(text)
    assert message in str(error.value)
    assert str(tmp_path / "own" / "configs.toml") in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"config: .*none\.toml: No such file or directory"):
        load_configs(tmp_path / "none.toml")


def test_patterns_pick_configurations_in_their_order():
    configs = [
        KernelConfig(name=name, kernel="a.py:f", signature={})
        for name in ("forward-d64", "forward-d128", "backward-d64")
    ]
    assert [c.name for c in pick(configs, ["*-d64", "forward-*"])] == ["forward-d64", "forward-d128", "backward-d64"]
    assert [c.name for c in pick(configs, ["b*"])] == ["backward-d64"]
    assert pick(configs, []) == configs
    with pytest.raises(UsageError, match=r"'foward-d64': not known; did you mean 'forward-d64'\?; there are: forward"):
        pick(configs, ["foward-d64"])
