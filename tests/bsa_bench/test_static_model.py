import dataclasses
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sass_factory import instruction

from bsa_bench.errors import UsageError
from bsa_bench.static.architectures import ARCHITECTURES, Figure, occupancy
from bsa_bench.static.classify import kind_of, pipe_of, tensor_op_of
from bsa_bench.static.config import ARCH_NAMES, Work
from bsa_bench.static.devices import DEVICES, device_for
from bsa_bench.static.model import Traffic, predict
from bsa_bench.static.regions import Region

HOPPER = ARCHITECTURES["sm_90"]
BLACKWELL = ARCHITECTURES["sm_100"]
NO_TRAFFIC = Traffic(l2_bytes=0, bulk_shared_bytes=0, operand_bytes=0)
WGMMA = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24"
WGMMA_FP8 = "QGMMA.64x64x32.F32.E4M3.E4M3 R24, gdesc[UR12], R24"
WGMMA_TF32 = "HGMMA.64x64x8.F32.TF32 R24, gdesc[UR12], R24"
MMA = "HMMA.16816.F32.BF16 R24, R12, R26, R72"
TCGEN05 = "UTCHMMA gdesc[UR14], gdesc[UR12], tmem[UR17], tmem[UR8], idesc[UR9], UPT"


def region(counts, *, shared_bytes_per_warp=0):
    """A loop of so many of each instruction."""
    parsed = {instruction(text): count for text, count in counts.items() if count}
    instructions = [each for each, count in parsed.items() for _ in range(count)]
    mix, pipes = Counter(), Counter()
    for each, count in parsed.items():
        mix[kind_of(each)] += count
        pipes[pipe_of(each)] += count
    return Region(
        loop=0,
        parent=None,
        address=0,
        num_instructions=len(instructions),
        num_conditional=0,
        is_wait=False,
        mix=mix,
        pipes=pipes,
        tensor=(),
        accesses=(),
        shared_bytes_per_warp=shared_bytes_per_warp,
        lines=(),
        instructions=tuple(instructions),
        tensor_ops=tuple(tensor_op_of(each) for each in instructions if kind_of(each) == "tensor"),
    )


def ceiling(counts=None, *, shared_bytes_per_warp=0, device="H100-SXM", **changes):
    loop = region({WGMMA: 4} if counts is None else counts, shared_bytes_per_warp=shared_bytes_per_warp)
    device = DEVICES[device]
    arguments = {
        "flop_per_trip": 1_000_000,
        "traffic": NO_TRAFFIC,
        "num_warps": 4,
        "depth": 2,
        "arch": ARCHITECTURES[device.arch],
        "device": device,
        "work": None,
    }
    return predict(loop, **(arguments | changes))


def clocks(found):
    return {resource.name: resource.clocks for resource in found.resources}


def figures(value):
    """All figures within a value."""
    if isinstance(value, Figure):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from figures(each)
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from figures(getattr(value, each.name))


# Data


def test_every_figure_is_positive_and_says_where_it_comes_from():
    found = [*figures(ARCHITECTURES), *figures(DEVICES)]
    assert len(found) >= len(DEVICES) * 5 + len(ARCHITECTURES) * 6
    assert all(each.source.strip() and each.value > 0 for each in found)
    assert all(arch.source.strip() for arch in ARCHITECTURES.values())


def test_there_is_an_architecture_for_each_target_and_a_device_for_each_architecture():
    assert tuple(ARCHITECTURES) == ARCH_NAMES
    assert {device.arch for device in DEVICES.values()} == set(ARCH_NAMES)
    assert all(name == device.name for name, device in DEVICES.items())


@pytest.mark.parametrize(
    ("device", "tensor_class", "datasheet_flop_per_s"),
    [
        ("A100-SXM-80GB", "mma.sync", 312e12),
        ("H100-SXM", "wgmma", 989e12),
        ("H200-SXM", "wgmma", 989e12),
        ("B200", "tcgen05", 2250e12),
    ],
)
def test_peaks_agree_with_the_datasheets(device, tensor_class, datasheet_flop_per_s):
    found = DEVICES[device]
    rates = ARCHITECTURES[found.arch].tensor_flop_per_clock
    per_clock = found.num_sms.value * found.boost_clock_hz.value
    assert per_clock * rates[tensor_class, "16-bit"].value == pytest.approx(datasheet_flop_per_s, rel=0.01)
    assert per_clock * rates[tensor_class, "8-bit"].value == pytest.approx(2 * datasheet_flop_per_s, rel=0.01)
    assert per_clock * rates[tensor_class, "tf32"].value == pytest.approx(datasheet_flop_per_s / 2, rel=0.01)


def test_an_unknown_device_names_those_there_are():
    assert device_for("B200") is DEVICES["B200"]
    expected = (
        "^--device: got 'h100-smx', expected one of A100-SXM-80GB, H100-SXM, H200-SXM, B200; "
        r"did you mean 'H100-SXM'\?$"
    )
    with pytest.raises(UsageError, match=expected):
        device_for("h100-smx")


# Occupancy


@pytest.mark.parametrize(
    ("registers", "shared_kilobytes", "num_warps", "ctas", "limited_by"),
    [
        (122, 33, 4, 4, "registers"),
        (138, 82, 4, 2, "shared memory"),
        (114, 49, 4, 4, "registers"),
        (158, 50, 4, 3, "registers"),
        (168, 50, 4, 3, "registers"),
        (188, 147, 4, 1, "shared memory"),
        (138, 98, 8, 1, "registers"),
        (122, 98, 8, 2, "registers"),
    ],
)
def test_occupancy_of_published_forward_kernels_on_sm_90(registers, shared_kilobytes, num_warps, ctas, limited_by):
    found = occupancy(HOPPER, registers=registers, shared_bytes=shared_kilobytes * 1000, num_warps=num_warps)
    assert (found.ctas, found.limited_by) == (ctas, limited_by)
    assert found.ctas == min(found.limits.values()) == found.limits[found.limited_by]


@pytest.mark.parametrize(
    ("asked", "ctas", "limited_by"),
    [
        ({"registers": 16, "shared_bytes": 0, "num_warps": 16}, 4, "warps"),
        ({"registers": 16, "shared_bytes": 0, "num_warps": 1}, 32, "CTA slots"),
        ({"registers": 255, "shared_bytes": 0, "num_warps": 4}, 2, "registers"),
        ({"registers": 255, "shared_bytes": 0, "num_warps": 16}, 0, "registers"),
        ({"registers": 64, "shared_bytes": 1000, "num_warps": 4, "tensor_memory_columns": 256}, 2, "tensor memory"),
        ({"registers": 64, "shared_bytes": 1000, "num_warps": 4, "tensor_memory_columns": 512}, 1, "tensor memory"),
    ],
)
def test_the_scarcest_resource_limits_occupancy(asked, ctas, limited_by):
    found = occupancy(BLACKWELL, **asked)
    assert (found.ctas, found.limited_by) == (ctas, limited_by)


def test_limits_follow_from_the_tables_by_hand():
    # A warp takes 122 x 32 = 3904 registers, 4096 as allocated: four a quarter of the SM, 16 an SM.
    # A CTA takes 33,000 + 1,024 bytes, 34,048 as allocated, of 233,472.
    found = occupancy(HOPPER, registers=122, shared_bytes=33_000, num_warps=4)
    assert dict(found.limits) == {"registers": 4, "shared memory": 6, "warps": 16, "CTA slots": 32}


@pytest.mark.parametrize(("arch", "most"), [("sm_80", 163 * 1024), ("sm_90", 227 * 1024), ("sm_100", 227 * 1024)])
def test_a_cta_can_ask_for_all_shared_memory_but_not_for_more(arch, most):
    fits = occupancy(ARCHITECTURES[arch], registers=64, shared_bytes=most, num_warps=4)
    too_much = occupancy(ARCHITECTURES[arch], registers=64, shared_bytes=most + 1, num_warps=4)
    assert (fits.ctas, too_much.ctas, too_much.limited_by) == (1, 0, "shared memory")


def register_limit(registers, *, num_warps):
    return occupancy(HOPPER, registers=registers, shared_bytes=0, num_warps=num_warps).limits["registers"]


def test_registers_are_allocated_in_eights():
    assert [register_limit(registers, num_warps=4) for registers in (96, 97, 104)] == [5, 4, 4]


def test_a_warp_finds_its_registers_in_one_quarter_of_the_sm():
    # 144 x 32 = 4608: three warps a quarter, though all quarters together hold 14.
    assert register_limit(144, num_warps=2) == 12 // 2


@pytest.mark.slow
@given(st.integers(1, 255), st.integers(0, 240_000), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_more_registers_or_shared_memory_never_let_more_ctas_fit(registers, shared_bytes, num_warps):
    base = occupancy(HOPPER, registers=registers, shared_bytes=shared_bytes, num_warps=num_warps).ctas
    for more in ({"registers": min(registers + 9, 255)}, {"shared_bytes": shared_bytes + 500}):
        asked = {"registers": registers, "shared_bytes": shared_bytes, "num_warps": num_warps} | more
        assert occupancy(HOPPER, **asked).ctas <= base


@pytest.mark.parametrize("registers", [0, 256])
def test_an_impossible_number_of_registers_is_an_error(registers):
    with pytest.raises(ValueError, match=rf"^registers: expected 1 to 255 a thread, got {registers}$"):
        occupancy(HOPPER, registers=registers, shared_bytes=0, num_warps=4)


@pytest.mark.parametrize(("num_warps", "shared_bytes", "columns"), [(0, 0, 0), (4, -1, 0), (4, 0, -1)])
def test_impossible_counts_are_an_error(num_warps, shared_bytes, columns):
    expected = (
        "^expected num_warps >= 1, shared_bytes >= 0 and tensor_memory_columns >= 0, "
        rf"got {num_warps}, {shared_bytes} and {columns}$"
    )
    with pytest.raises(ValueError, match=expected):
        occupancy(HOPPER, registers=64, num_warps=num_warps, shared_bytes=shared_bytes, tensor_memory_columns=columns)


# Ceilings: clocks of each resource, by hand, on an H100 (132 SMs at 1.83 GHz)


@pytest.mark.parametrize(
    ("name", "counts", "expected"),
    [
        ("tensor cores", {WGMMA: 4}, 1_000_000 / 4096),
        ("tensor cores", {WGMMA_FP8: 4}, 1_000_000 / 8192),
        ("tensor cores", {WGMMA_TF32: 4}, 1_000_000 / 2048),
        ("tensor cores", {MMA: 9}, 1_000_000 / (0.629 * 4096)),
        # 2 x 64x64x16 and 1 x 64x64x32: half of the FLOP each.
        ("tensor cores", {WGMMA: 2, WGMMA_FP8: 1}, 500_000 / 4096 + 500_000 / 8192),
        ("issue slots", {"NOP": 100}, 100 * 4 / 4),
        ("fp32", {"FFMA R0, R1, R2, R3": 60}, 60 * 4 * 32 / 128),
        ("fp32", {"FADD2 R0, R2, R4": 60}, 2 * 60 * 4 * 32 / 128),
        ("fp32", {"IMAD R0, R1, R2, R3": 60}, 60 * 4 * 32 / 64),
        ("fp32", {"FMUL R0, R1, R2": 10, "IMAD.WIDE R0, R1, R2, R4": 3}, 10 * 128 / 128 + 3 * 128 / 64),
        ("integer and logic", {"FMNMX R0, R1, R2, !PT": 5, "F2FP.BF16.F32.PACK_AB R0, R1, R2": 2}, 7 * 128 / 64),
        ("exp and other special functions", {"MUFU.EX2 R0, R1": 5, "MUFU.RCP R0, R1": 2}, 7 * 128 / 16),
        ("shuffles", {"SHFL.BFLY PT, R0, R1, 0x2, 0x1f": 6}, 6 * 128 / 32),
    ],
)
def test_clocks_of_arithmetic(name, counts, expected):
    assert clocks(ceiling({WGMMA: 1, **counts} if name != "tensor cores" else counts))[name] == pytest.approx(
        expected + (name == "issue slots")
    )


def test_vector_work_grows_with_the_warps_that_do_it():
    counts = {WGMMA: 1, "MUFU.EX2 R0, R1": 8}
    assert clocks(ceiling(counts, num_warps=8))["exp and other special functions"] == 8 * 8 * 32 / 16


def test_clocks_of_shared_memory_join_instructions_bulk_copies_and_operands():
    found = ceiling(
        shared_bytes_per_warp=1000,
        traffic=Traffic(l2_bytes=0, bulk_shared_bytes=3000, operand_bytes=5000),
    )
    assert clocks(found)["shared memory"] == (4 * 1000 + 3000 + 5000) / 128


def test_clocks_of_l2_share_its_bandwidth_among_the_sms():
    found = ceiling(traffic=Traffic(l2_bytes=10_000, bulk_shared_bytes=0, operand_bytes=0))
    assert clocks(found)["L2"] == pytest.approx(10_000 * 132 / 4472)


def test_clocks_of_hbm_spread_the_launch_over_its_trips():
    found = ceiling(work=Work(programs=100, trips=10, hbm_bytes=20_000_000))
    assert clocks(found)["HBM"] == pytest.approx(20_000 * 132 * 1.83e9 / 3.35e12)


def test_without_a_launch_hbm_is_not_judged():
    found = ceiling()
    assert "HBM" not in clocks(found)
    assert found.overlapped_s is None


def test_half_rate_flop_take_twice_the_time():
    whole, part, half = (ceiling({TCGEN05: 4}, device="B200", half_rate_flop=n) for n in (0, 250_000, 1_000_000))
    times = [clocks(found)["tensor cores"] for found in (whole, part, half)]
    assert times == pytest.approx([1_000_000 / 8192, 1_250_000 / 8192, 2_000_000 / 8192])
    # The FLOP that are counted as done stay.
    assert {found.flop_per_trip for found in (whole, part, half)} == {1_000_000}
    assert half.overlapped_flop_per_s == pytest.approx(whole.overlapped_flop_per_s / 2)
    assert "1.00 of them at half the rate" in half.resources[0].detail
    assert "half" not in whole.resources[0].detail


# Ceilings: bounds


def test_a_loop_of_nothing_but_products_runs_at_the_peak():
    found = ceiling({WGMMA: 1})
    assert found.limited_by == "tensor cores"
    assert found.overlapped_flop_per_s == pytest.approx(132 * 1.83e9 * 4096)


MIXED = {WGMMA: 4, "MUFU.EX2 R0, R1": 40, "FFMA R0, R1, R2, R3": 40}
MIXED_TRAFFIC = Traffic(l2_bytes=9000, bulk_shared_bytes=0, operand_bytes=40_000)


def test_overlapped_the_slowest_resource_sets_the_time():
    found = ceiling(MIXED, traffic=MIXED_TRAFFIC)
    # exp: 40 x 128 / 16 = 320; shared memory: 312.5; L2: 265.7; tensor cores: 244.1.
    names = ["exp and other special functions", "shared memory", "L2", "tensor cores"]
    assert [resource.name for resource in found.resources[:4]] == names
    assert found.limited_by == names[0]
    assert found.overlapped_clocks == max(clocks(found).values()) == 320
    assert found.overlapped_flop_per_s == pytest.approx(1_000_000 / 320 * 1.83e9 * 132)


def test_in_order_products_and_other_arithmetic_take_turns_while_memory_runs_beside():
    found = ceiling(MIXED, traffic=MIXED_TRAFFIC, depth=2)
    assert found.in_order_clocks == pytest.approx(312.5 + 320)
    assert found.in_order_flop_per_s == pytest.approx(1_000_000 / 632.5 * 1.83e9 * 132)


def test_in_order_slow_memory_sets_the_time_of_a_loop_that_loads_ahead():
    slow = dataclasses.replace(MIXED_TRAFFIC, l2_bytes=900_000)
    found = ceiling(MIXED, traffic=slow, depth=2)
    assert found.in_order_clocks == found.overlapped_clocks == clocks(found)["L2"]


def test_in_order_one_buffer_adds_the_time_of_memory():
    found = ceiling(MIXED, traffic=MIXED_TRAFFIC, depth=1)
    assert found.in_order_clocks == pytest.approx(312.5 + 320 + 9000 * 132 / 4472)
    # The slower of L2 and HBM: they run beside each other.
    work = Work(programs=132, trips=1, hbm_bytes=132 * 100_000)
    slower = ceiling(MIXED, traffic=MIXED_TRAFFIC, depth=1, work=work)
    assert slower.in_order_clocks == pytest.approx(312.5 + 320 + 100_000 * 132 * 1.83e9 / 3.35e12)


def test_the_time_of_a_launch_is_that_of_its_trips():
    found = ceiling({WGMMA: 1}, work=Work(programs=264, trips=2.5, hbm_bytes=0))
    assert found.overlapped_s == pytest.approx(264 * 2.5 * (1_000_000 / 4096) / (132 * 1.83e9))
    assert found.overlapped_s * found.overlapped_flop_per_s == pytest.approx(264 * 2.5 * 1_000_000)


@pytest.mark.parametrize(
    ("device", "text", "what"),
    [
        ("B200", MMA, "sm_100: no figure for the rate of mma.sync with 16-bit operands"),
        ("A100-SXM-80GB", WGMMA, "sm_80: no figure for the rate of wgmma with 16-bit operands"),
        ("A100-SXM-80GB", "DMMA.884 R0, R4, R6, R0", "sm_80: no figure for the rate of mma.sync with 64-bit operands"),
    ],
)
def test_instructions_of_unknown_rate_are_an_error_that_names_them(device, text, what):
    with pytest.raises(ValueError, match=rf"^{what}$"):
        ceiling({text: 1}, device=device)


RESOURCES = st.fixed_dictionaries(
    {
        "exp2": st.integers(0, 200),
        "fma": st.integers(0, 200),
        "imad": st.integers(0, 200),
        "logic": st.integers(0, 200),
        "shuffle": st.integers(0, 50),
        "other": st.integers(0, 200),
        "shared_per_warp": st.integers(0, 20_000),
        "bulk": st.integers(0, 100_000),
        "operands": st.integers(0, 100_000),
        "l2": st.integers(0, 100_000),
        "hbm": st.integers(0, 10**9),
        "half_rate": st.integers(0, 1_000_000),
    }
)


def bounds(used, *, depth, num_warps):
    counts = {
        WGMMA: 2,
        "MUFU.EX2 R0, R1": used["exp2"],
        "FFMA R0, R1, R2, R3": used["fma"],
        "IMAD R0, R1, R2, R3": used["imad"],
        "LOP3.LUT R0, R0, 0x7f, RZ, 0xc0, !PT": used["logic"],
        "SHFL.BFLY PT, R0, R1, 0x2, 0x1f": used["shuffle"],
        "BAR.SYNC.DEFER_BLOCKING 0x0": used["other"],
    }
    return ceiling(
        counts,
        shared_bytes_per_warp=used["shared_per_warp"],
        traffic=Traffic(l2_bytes=used["l2"], bulk_shared_bytes=used["bulk"], operand_bytes=used["operands"]),
        half_rate_flop=used["half_rate"],
        work=Work(programs=100, trips=4, hbm_bytes=used["hbm"]),
        depth=depth,
        num_warps=num_warps,
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(RESOURCES, RESOURCES, st.integers(1, 3), st.sampled_from([4, 8]))
def test_more_of_any_resource_never_raises_a_ceiling(used, extra, depth, num_warps):
    base = bounds(used, depth=depth, num_warps=num_warps)
    assert base.in_order_clocks >= base.overlapped_clocks
    assert base.overlapped_flop_per_s >= base.in_order_flop_per_s
    for name in used:
        more = bounds(used | {name: used[name] + extra[name]}, depth=depth, num_warps=num_warps)
        assert more.overlapped_flop_per_s <= base.overlapped_flop_per_s, name
        assert more.in_order_flop_per_s <= base.in_order_flop_per_s, name
        assert more.overlapped_s >= base.overlapped_s, name
    assert bounds(used, depth=1, num_warps=num_warps).in_order_clocks >= base.in_order_clocks
    assert bounds(used, depth=depth, num_warps=2 * num_warps).overlapped_flop_per_s <= base.overlapped_flop_per_s
