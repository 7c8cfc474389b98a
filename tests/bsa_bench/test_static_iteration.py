"""What an iteration must run is charged; what it can do without, and what it does not say of itself, is not."""

import pytest
from sass_factory import flow_of, instruction, sass_of
from test_static_model import BLACKWELL, NO_TRAFFIC, ceiling, clocks, region

from bsa_bench.static.architectures import ARCHITECTURES
from bsa_bench.static.classify import tensor_op_of
from bsa_bench.static.devices import DEVICES
from bsa_bench.static.model import Traffic, predict
from bsa_bench.static.regions import read_regions
from bsa_bench.static.ttgir import read_ttgir

WGMMA = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], R24"
EXP2 = "MUFU.EX2 R0, R1"


def loop_of(body):
    """The region of the outermost loop of a kernel."""
    return read_regions(sass_of(body), flow_of(body))[1][0]


def loop_ceiling(body, *, device="H100-SXM", optional_traffic=NO_TRAFFIC):
    return predict(
        loop_of(body),
        flop_per_trip=1_000_000,
        traffic=NO_TRAFFIC,
        optional_traffic=optional_traffic,
        num_warps=4,
        depth=2,
        arch=ARCHITECTURES[DEVICES[device].arch],
        device=DEVICES[device],
        work=None,
    )


def resource(found, name):
    return next(each for each in found.resources if each.name == name)


def body_of(*, before="", after="", rare="", guard="@P0"):
    """A loop that makes a product, with work that an iteration can jump over."""
    return f"""
    .L_x_0:
        {before}
        {WGMMA}
        {guard} BRA `(.L_x_1)
        {rare}
    .L_x_1:
        {after}
        @P1 BRA `(.L_x_0)
        EXIT
    """


def test_work_on_a_branch_is_not_charged_but_shown_beside():
    rare = "\n".join([EXP2] * 100 + ["STS.128 [R2], R4"] * 50)
    found = loop_ceiling(body_of(before=EXP2, rare=rare))
    special, shared, issue = (
        resource(found, name) for name in ("exp and other special functions", "shared memory", "issue slots")
    )
    assert (special.clocks, special.optional_clocks) == (128 / 16, 100 * 128 / 16)
    assert (shared.clocks, shared.optional_clocks) == (0, 4 * 50 * 16 * 32 / 128)
    assert (issue.clocks, issue.optional_clocks) == (4, 150)
    assert found.limited_by == "tensor cores"
    assert found.overlapped_flop_per_s == loop_ceiling(body_of(before=EXP2)).overlapped_flop_per_s


def test_work_at_the_end_of_a_loop_that_a_second_back_edge_spares_is_rare():
    # As ptxas writes `if not last: continue`: two jumps to the header.
    body = f".L_x_0:\n{WGMMA}\n@P0 BRA `(.L_x_0)\n{EXP2}\n{EXP2}\n@P1 BRA `(.L_x_0)\nEXIT"
    special = resource(loop_ceiling(body), "exp and other special functions")
    assert (special.clocks, special.optional_clocks) == (0, 2 * 128 / 16)


def test_an_instruction_under_a_predicate_costs_its_issue_slot():
    found = loop_ceiling(body_of(before=f"@!P3 {EXP2}\n@P2 STS.128 [R2], R4"))
    special, shared, issue = (
        resource(found, name) for name in ("exp and other special functions", "shared memory", "issue slots")
    )
    assert (special.clocks, special.optional_clocks) == (0, 128 / 16)
    assert (shared.clocks, shared.optional_clocks) == (0, 4 * 16 * 32 / 128)
    assert issue.clocks == 5


def test_of_an_iteration_that_a_branch_makes_or_skips_the_one_with_products_counts():
    # `if the block is wanted: load, multiply, exponentiate`; the other iterations do nothing.
    add = "FADD R0, R0, R1"
    body = f".L_x_0:\n{add}\n@P0 BRA `(.L_x_1)\n{EXP2}\n{WGMMA}\n.L_x_1:\n{add}\n@P1 BRA `(.L_x_0)\nEXIT"
    found = clocks(loop_ceiling(body))
    assert found["exp and other special functions"] == 128 / 16
    assert found["fp32"] == 2 * 128 / 128


def test_products_on_branches_that_exclude_each_other_are_not_added():
    big, small = WGMMA, WGMMA.replace("64x64x16", "64x8x16")
    arms = f"@P0 BRA `(.L_x_1)\n{big}\nBRA `(.L_x_2)\n.L_x_1:\n{small}\n{EXP2}\n.L_x_2:\nNOP"
    loop = loop_of(f".L_x_0:\n{arms}\n@P1 BRA `(.L_x_0)\nEXIT")
    assert [op.shape for op in loop.products] == ["m64n64k16"]
    assert not any(each.name == "MUFU" for each in loop.charged)
    # One after the other they are both of the iteration.
    chain = loop_of(f".L_x_0:\n{big}\n@P0 BRA `(.L_x_1)\n{small}\n.L_x_1:\n{EXP2}\n@P1 BRA `(.L_x_0)\nEXIT")
    assert [op.shape for op in chain.products] == ["m64n64k16", "m64n8k16"]
    assert any(each.name == "MUFU" for each in chain.charged)


def test_what_an_elected_lane_runs_to_issue_a_product_is_not_charged_to_all_warps():
    mma = "UTCHMMA gdesc[UR14], gdesc[UR12], tmem[UR17], tmem[UR8], idesc[UR9], UPT"
    issue = "\n".join(["UIADD3 UR4, UR5, 0x1, URZ"] * 20)
    body = f".L_x_0:\n{EXP2}\n@P0 BRA `(.L_x_1)\n{issue}\n{mma}\n.L_x_1:\n{EXP2}\n@P1 BRA `(.L_x_0)\nEXIT"
    loop = loop_of(body)
    assert sum(each.name == "MUFU" for each in loop.charged) == 2
    assert len(loop.required) == 4
    assert len(loop.products) == 1


def test_counts_by_line_say_what_is_on_a_branch():
    rare = f'//## File "k.py", line 9\n{EXP2}\n{EXP2}'
    loop = loop_of(body_of(before='//## File "k.py", line 3', rare=rare, after='//## File "k.py", line 4'))
    assert {line.line.line: line.num_optional for line in loop.lines} == {3: 0, 4: 0, 9: 2}


def test_optional_traffic_is_shown_beside():
    beside = Traffic(l2_bytes=4472, bulk_shared_bytes=128, operand_bytes=256)
    found = loop_ceiling(body_of(), optional_traffic=beside)
    assert [resource(found, name).clocks for name in ("L2", "shared memory")] == [0, 0]
    assert resource(found, "L2").optional_clocks == pytest.approx(132)
    assert resource(found, "shared memory").optional_clocks == 3


# Rates


@pytest.mark.parametrize(
    ("text", "types", "flop_per_clock"),
    [
        ("UTCHMMA gdesc[UR4]", "", 8192),
        ("UTCQMMA gdesc[UR4]", "", 2 * 8192),
        ("UTCIMMA gdesc[UR4]", "", 2 * 8192),
        ("UTCOMMA gdesc[UR4]", "", 4 * 8192),
        ("UTCOMMA.4X gdesc[UR4]", "", 4 * 8192),  # nvfp4: a scale for 16 numbers
        ("UTCHMMA gdesc[UR4]", "TF32.TF32", 8192 / 2),  # the opcode is that of bf16
        ("UTCQMMA gdesc[UR4]", "E4M3.E2M1", 2 * 8192),  # fp4 beside fp8 is as fast as fp8
        ("UTCOMMA gdesc[UR4]", "E2M1.E2M1", 4 * 8192),
    ],
)
def test_products_of_tcgen05_run_at_the_rate_of_their_types(text, types, flop_per_clock):
    op = tensor_op_of(instruction(text))
    loop = region({text: 4})
    typed = type(op)(op.tensor_class, 128, 128, op.k, types, op.a_source) if types else op
    found = predict(
        type(loop)(**{**vars(loop), "products": (typed,)}),
        flop_per_trip=1_000_000,
        traffic=NO_TRAFFIC,
        num_warps=4,
        depth=2,
        arch=BLACKWELL,
        device=DEVICES["B200"],
        work=None,
    )
    assert clocks(found)["tensor cores"] == pytest.approx(1_000_000 / flop_per_clock)


# Names


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ({"IMAD R0, R1, R2, R3": 600}, "integer multiply-adds"),
        ({"FFMA R0, R1, R2, R3": 1000}, "issue slots"),
        ({"F2FP.BF16.F32.PACK_AB R0, R1, R2": 600, "LOP3.LUT R0, R0, R1, RZ": 100}, "conversions"),
        ({"FMNMX R0, R1, R2, !PT": 600, "LOP3.LUT R0, R0, R1, RZ": 100}, "comparisons, minimum and maximum"),
        ({"FMNMX R0, R1, R2, !PT": 100, "LOP3.LUT R0, R0, R1, RZ": 600}, "integer and logic"),
        ({"I2F.RP R0, R1": 300, EXP2: 100}, "conversions"),
        ({"POPC R0, R1": 300}, "bit counts"),
        ({EXP2: 300, "I2F.RP R0, R1": 100}, "exp and other special functions"),
    ],
)
def test_a_limit_is_named_by_what_fills_the_pipe(counts, name):
    assert ceiling({WGMMA: 1, **counts}).limited_by == name


# TTGIR

HEAD = 'module attributes {"ttg.num-ctas" = 1 : i32, "ttg.num-warps" = 4 : i32, ttg.target = "cuda:90"} {'
LAYOUT = "#ttg.blocked<{sizePerThread = [4], threadsPerWarp = [32], warpsPerCTA = [4], order = [0]}>"
TILE = f"tensor<512x!tt.ptr<f32>, {LAYOUT}>"


def accesses_of(lines):
    """The accesses of a loop over %i up to %n, with a condition that changes from iteration to iteration."""
    text = f"""{HEAD}
  tt.func public @kernel(%p: !tt.ptr<f32>, %n: i32, %every: i32) {{
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %c2 = arith.constant 2 : i32
    %t = tt.splat %p : !tt.ptr<f32> -> {TILE}
    scf.for %i = %c0 to %n step %c1  : i32 {{
      %rest = arith.remsi %i, %every : i32
      %often = arith.cmpi eq, %rest, %c0 : i32
      %last = arith.subi %n, %c2 : i32
      %ahead = arith.cmpi slt, %i, %last : i32
      {lines}
    }}
    tt.return
  }}
}}
"""
    return read_ttgir(text).accesses


def test_a_load_on_a_branch_has_the_branch():
    plain, rare, otherwise = accesses_of(
        f"""%a = tt.load %t : {TILE}
        scf.if %often {{
          %b = tt.load %t : {TILE}
        }} else {{
          %c = tt.load %t : {TILE}
        }}"""
    )
    assert (plain.branches, len(rare.branches)) == (frozenset(), 1)
    assert rare.branches.isdisjoint(otherwise.branches)


@pytest.mark.parametrize(
    ("mask", "can_be_off"),
    [
        ("tt.splat %often : i1", True),
        ("tt.splat %ahead : i1", False),  # the predicate of a copy that runs ahead of the loop
    ],
)
def test_a_mask_that_is_one_condition_for_the_tile_is_a_branch(mask, can_be_off):
    masks = f"tensor<512xi1, {LAYOUT}>"
    (found,) = accesses_of(f"%m = {mask} -> {masks}\n%a = tt.load %t, %m : {TILE}")
    assert found.can_be_off is can_be_off
    (both,) = accesses_of(
        f"%x = tt.splat %ahead : i1 -> {masks}\n%y = {mask} -> {masks}\n%m = arith.andi %x, %y : {masks}\n"
        f"%a = tt.load %t, %m : {TILE}"
    )
    assert both.can_be_off is can_be_off


def test_a_mask_of_elements_is_taken_to_be_true():
    masks, numbers = f"tensor<512xi1, {LAYOUT}>", f"tensor<512xi32, {LAYOUT}>"
    (found,) = accesses_of(
        f"%r = tt.make_range {{end = 512 : i32, start = 0 : i32}} : {numbers}\n%b = tt.splat %n : i32 -> {numbers}\n"
        f"%m = arith.cmpi slt, %r, %b : {numbers}\n%a = tt.load %t, %m : {TILE}"
    )
    assert masks
    assert not found.can_be_off
