import dataclasses

import pytest
from sass_factory import flow_of, instruction, sass_of, stored

from bsa_bench.static.classify import TensorOp, bytes_per_lane, kind_of, pipe_of, tensor_op_of
from bsa_bench.static.regions import own_line, read_regions
from bsa_bench.static.sass import SourceLine


def regions_of(body):
    return read_regions(sass_of(body), flow_of(body))


def addresses(region):
    return [each.address for each in region.instructions]


# Kinds and pipes


@pytest.mark.parametrize(
    ("text", "kind", "pipe"),
    [
        ("HMMA.16816.F32.BF16 R24, R12.reuse, R26, R72", "tensor", "tensor"),
        ("HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12].tnspB, R24", "tensor", "tensor"),
        ("UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], UPT", "tensor", "tensor"),
        ("HFMA2.MMA R2, -RZ, RZ, 0, 0", "fp32", "fma"),  # no tensor-core instruction: a move by arithmetic
        ("MUFU.EX2 R0, R1", "exp2", "mufu"),
        ("MUFU.RCP R0, R1", "other special function", "mufu"),
        ("I2F.RP R0, R1", "conversion", "mufu"),
        ("F2FP.BF16.F32.PACK_AB R0, R1, R2", "conversion", "alu"),
        ("I2FP.F32.S32 R0, R1", "conversion", "alu"),
        ("FFMA R0, R1, R2, R3", "fp32", "fma"),
        ("FADD2 R0, R2, R4", "fp32", "fma"),
        ("FMNMX3 R0, R1, R2, R3, !PT", "fp32", "alu"),
        ("FSETP.GT.AND P0, PT, R0, R1, PT", "fp32", "alu"),
        ("IMAD.MOV.U32 R0, RZ, RZ, R1", "integer and logic", "fma"),
        ("IADD3 R0, R1, R2, RZ", "integer and logic", "alu"),
        ("VIADDMNMX R0, R1, R2, R3, PT", "integer and logic", "alu"),
        ("LOP3.LUT R0, R0, 0x7f, RZ, 0xc0, !PT", "integer and logic", "alu"),
        ("SEL R0, R1, R2, P0", "integer and logic", "alu"),
        ("FLO.U32 R0, UR5", "integer and logic", "mufu"),
        ("UIADD3 UR4, UR5, 0x1, URZ", "uniform", "uniform"),
        ("UISETP.GE.AND UP1, UPT, UR7, 0x1, UPT", "uniform", "uniform"),
        ("SHFL.BFLY PT, R0, R1, 0x2, 0x1f", "shuffle", "lsu"),
        ("LDG.E.128 R4, desc[UR4][R2.64]", "global load", "lsu"),
        ("LDGSTS.E.BYPASS.128 [R21], desc[UR18][R10.64], P1", "cp.async", "lsu"),
        ("UTMALDG.2D [UR8], [UR4]", "TMA", "other"),
        ("UTMAREDG.2D.ADD [UR8], [UR4]", "atomic", "lsu"),
        ("STG.E.128 desc[UR18][R44.64], R36", "global store", "lsu"),
        ("REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR8][R2.64+0xc], R8", "atomic", "lsu"),
        ("LDSM.16.MT88.4 R4, [R3]", "shared load", "lsu"),
        ("STSM.16.M88.4 [R3], R4", "shared store", "lsu"),
        ("LDTM.16dp32bit_t0_t15.x32 R4, tmem[UR18]", "tensor memory", "other"),
        ("LDL.LU.64 R4, [R1+0x8]", "spill load", "lsu"),
        ("STL R4, [R1]", "spill store", "lsu"),
        ("LDC.64 R2, c[0x0][0x210]", "constant load", "other"),
        ("LDCU UR4, c[0x0][0x398]", "constant load", "other"),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "barrier", "other"),
        ("WARPGROUP.ARRIVE", "barrier", "other"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P5, [UR46], R4", "barrier", "other"),
        ("BRA `(.L_x_0)", "control", "other"),
        ("S2R R0, SR_TID.X", "other", "other"),
        ("R2UR UR4, R5", "other", "other"),
    ],
)
def test_the_kind_and_the_pipe_of_an_instruction(text, kind, pipe):
    assert (kind_of(instruction(text)), pipe_of(instruction(text))) == (kind, pipe)


def test_padding_that_never_acts_does_nothing():
    for text in ("@!PT LDS RZ, [RZ]", "@!UPT UIADD3 URZ, URZ, URZ, URZ", "@!PT I2F R0, R1"):
        assert (kind_of(instruction(text)), pipe_of(instruction(text))) == ("other", "other")


@pytest.mark.parametrize(
    ("text", "op", "shape"),
    [
        (
            "HMMA.16816.F32.BF16 R24, R12.reuse, R26, R72",
            TensorOp("mma.sync", 16, 8, 16, "F32.BF16", "registers"),
            "m16n8k16",
        ),
        (
            "HMMA.1688.F32.TF32 R0, R4, R6, R0",
            TensorOp("mma.sync", 16, 8, 8, "F32.TF32", "registers"),
            "m16n8k8",
        ),
        (
            "IMMA.16832.S8.S8.SAT R0, R4.ROW, R6.COL, R0",
            TensorOp("mma.sync", 16, 8, 32, "S8.S8.SAT", "registers"),
            "m16n8k32",
        ),
        ("DMMA.884 R0, R4, R6, R0", TensorOp("mma.sync", 8, 8, 4, "F64", "registers"), "m8n8k4"),
        ("DMMA.8x8x4 R8, R2, R4, R8", TensorOp("mma.sync", 8, 8, 4, "F64", "registers"), "m8n8k4"),
        (
            "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12].tnspB, R24, gsb0",
            TensorOp("wgmma", 64, 64, 16, "F32.BF16", "shared"),
            "m64n64k16",
        ),
        (
            "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR12].tnspB, R24",
            TensorOp("wgmma", 64, 128, 16, "F32.BF16", "registers"),
            "m64n128k16",
        ),
        (
            "QGMMA.64x32x32.F32.E4M3.E4M3 R24, gdesc[UR4], RZ, !UPT",
            TensorOp("wgmma", 64, 32, 32, "F32.E4M3.E4M3", "shared"),
            "m64n32k32",
        ),
        (
            "UTCHMMA gdesc[UR14], gdesc[UR12], tmem[UR17], tmem[UR8], idesc[UR9], !UPT",
            TensorOp("tcgen05", 0, 0, 16, "", "shared"),
            "k16",
        ),
        (
            "UTCHMMA tmem[UR14], gdesc[UR12], tmem[UR17], tmem[UR8], idesc[UR9], UPT",
            TensorOp("tcgen05", 0, 0, 16, "", "tensor memory"),
            "k16",
        ),
        (
            "UTCQMMA gdesc[UR14], gdesc[UR12], tmem[UR17], tmem[UR8], idesc[UR9], UPT",
            TensorOp("tcgen05", 0, 0, 32, "", "shared"),
            "k32",
        ),
    ],
)
def test_the_shape_and_operands_of_a_tensor_core_instruction(text, op, shape):
    assert tensor_op_of(instruction(text)) == op
    assert op.shape == shape


@pytest.mark.parametrize("opcode", ["HMMA.16999.F32", "HGMMA.F32.BF16", "BMMA"])
def test_an_unknown_shape_is_an_error_that_shows_the_opcode(opcode):
    text = rf"^tensor instruction: expected a shape such as HMMA\.16816 or HGMMA\.64x64x16, got {opcode}$"
    with pytest.raises(ValueError, match=text):
        tensor_op_of(instruction(f"{opcode} R0, R4, R6, R0"))
    with pytest.raises(ValueError, match=text):
        regions_of(f"{opcode} R0, R4, R6, R0\nEXIT")


@pytest.mark.parametrize(
    ("opcode", "num_bytes"),
    [
        ("LDG.E", 4),
        ("LDG.E.64", 8),
        ("LDG.E.128.CONSTANT", 16),
        ("LDG.E.LTC128B.64", 8),  # the hint for L2 is no width
        ("LDG.E.U16", 2),
        ("LDS.U8", 1),
        ("LDS.U.128", 16),
        ("STL.S16", 2),
        ("LDL.LU.64", 8),
        ("LDGSTS.E.BYPASS.LTC128B.128", 16),
        ("LDGSTS.E", 4),
        ("LDSM.16.M88", 4),
        ("LDSM.16.MT88.2", 8),
        ("LDSM.16.M88.4", 16),
        ("STSM.16.MT88.4", 16),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU", 4),
        ("REDG.E.ADD.F32x2.FTZ.RN.STRONG.GPU", 8),
        ("REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU", 16),
        ("ATOMG.E.ADD.F16x8.RN.STRONG.GPU", 16),
        ("RED.E.ADD.F16x2.RN.STRONG.GPU", 4),
        ("RED.E.ADD.BF16_V2.RN", 4),
        ("ATOMG.E.ADD.F64.RN.STRONG.GPU", 8),
        ("ATOMG.E.CAS.64.STRONG.GPU", 8),
    ],
)
def test_bytes_that_a_lane_moves(opcode, num_bytes):
    assert bytes_per_lane(instruction(f"{opcode} R4, [R2]")) == num_bytes


# Regions


def test_counts_of_nested_loops_leave_inner_loops_out():
    outside, (outer, inner) = read_regions(*stored("nested.90.sass"))
    assert (outside.loop, outer.loop, inner.loop) == (None, 0, 1)
    assert (outer.parent, inner.parent) == (None, 0)
    assert addresses(outside) == [0x0, 0x20, 0x30, 0x40, 0x120]
    assert addresses(outer) == [
        *(0x310, 0x360, 0x570, 0x5A0, 0x5E0, 0x640, 0x750),
        *(0xD20, 0xDC0, 0xE50, 0xE80, 0xE90, 0xEA0, 0xF80, 0x1120, 0x1130),
    ]
    assert (inner.address, inner.num_instructions) == (0x7A0, 22)
    assert (outer.address, outer.num_instructions) == (0x310, 16)


def test_the_main_loop_of_a_real_kernel_is_counted():
    _, (_, inner) = read_regions(*stored("nested.90.sass"))
    assert dict(inner.mix) == {
        "barrier": 8,  # DEPBAR, BAR, MEMBAR, WARPGROUP.ARRIVE, WARPGROUP.DEPBAR, BAR, LDGDEPBAR twice
        "tensor": 4,
        "other": 4,  # three LDS that never act, PLOP3
        "uniform": 2,
        "cp.async": 2,
        "integer and logic": 1,
        "control": 1,
    }
    assert dict(inner.pipes) == {"other": 13, "tensor": 4, "uniform": 2, "lsu": 2, "fma": 1}
    assert inner.num_tensor == inner.count("tensor") == len(inner.tensor_ops) == 4
    assert inner.count("exp2") == 0
    (tensor,) = inner.tensor
    assert (tensor.tensor_class, tensor.shape, tensor.types) == ("wgmma", "m64n64k16", "F32.BF16")
    assert (tensor.a_source, tensor.count, tensor.lines) == ("shared", 4, (SourceLine("toys.py", 61),))
    (copy,) = inner.accesses
    assert (copy.kind, copy.opcode, copy.bytes_per_lane, copy.count) == ("cp.async", "LDGSTS.E.BYPASS.128", 16, 2)
    assert [str(line) for line in copy.lines] == ["toys.py:59", "toys.py:60"]
    assert inner.shared_bytes_per_warp == 2 * 16 * 32
    assert not inner.is_wait


def test_instructions_are_counted_by_source_line():
    _, (_, inner) = read_regions(*stored("nested.90.sass"))
    assert {line.line.line: line.count for line in inner.lines} == {58: 3, 59: 7, 60: 2, 61: 9, 62: 1}
    assert [line.line.line for line in inner.lines] == [58, 59, 60, 61, 62]
    assert dict(inner.lines[3].mix) == {"tensor": 4, "other": 2, "barrier": 2, "uniform": 1}


def test_stores_and_loads_of_shared_memory_are_counted_in_bytes_of_a_warp():
    outside, _ = regions_of("LDS.64 R0, [R2]\nSTS.U8 [R2], R3\nLDSM.16.M88.4 R4, [R3]\nLDG.E R0, [R2.64]\nEXIT")
    assert outside.shared_bytes_per_warp == 32 * (8 + 1 + 16)


def test_bulk_copies_have_no_width():
    outside, _ = regions_of("UTMALDG.2D [UR8], [UR4]\nUTMAREDG.2D.ADD [UR8], [UR4]\nEXIT")
    assert [(a.kind, a.bytes_per_lane) for a in outside.accesses] == [("TMA", None), ("atomic", None)]
    assert outside.shared_bytes_per_warp == 0


def test_a_branch_within_a_loop_makes_its_instructions_conditional():
    _, loops = read_regions(*stored("nested.100.sass"))
    steps = loops[2]
    # The branch around the products, and the jump back from the wait at the end of the code.
    assert (steps.num_instructions, steps.num_conditional) == (18, 6 + 1)
    assert addresses(steps)[-1] == 0x1D80


def test_code_outside_loops_and_a_loop_of_one_block_have_nothing_conditional():
    outside, (loop,) = regions_of(
        "@P0 BRA `(.L_x_0)\nNOP\nFADD R0, R0, R1\n.L_x_0:\nFADD R0, R0, R1\n@P0 BRA `(.L_x_0)"
    )
    assert (outside.num_conditional, loop.num_conditional) == (0, 0)
    assert (outside.num_instructions, loop.num_instructions) == (2, 2)  # NOP is none


def test_waits_are_told_from_work():
    _, loops = read_regions(*stored("nested.100.sass"))
    # An allocation's spin, tiles, steps, the wait after the steps, the wait in them.
    assert [loop.is_wait for loop in loops] == [True, False, False, True, True]
    assert [(loop.address, loop.num_instructions) for loop in loops[3:]] == [(0x1D90, 2), (0x1D60, 2)]


@pytest.mark.parametrize(
    "work", ["LDG.E R0, desc[UR4][R2.64]", "FADD R0, R0, R1", "HMMA.16816.F32.BF16 R0, R4, R6, R0", "STS [R2], R0"]
)
def test_a_short_loop_that_works_is_no_wait(work):
    _, (loop,) = regions_of(f".L_x_0:\n{work}\nDEPBAR.LE SB0, 0x0\n@P0 BRA `(.L_x_0)\nEXIT")
    assert not loop.is_wait


def test_code_that_nothing_leads_to_is_not_counted():
    outside, loops = regions_of("BRA `(.L_x_1)\nFADD R0, R0, R1\n.L_x_0:\nBRA `(.L_x_0)\n.L_x_1:\nEXIT")
    assert (addresses(outside), loops) == ([0x0, 0x30], [])


def test_a_kernel_that_is_one_loop_has_nothing_outside():
    outside, (loop,) = regions_of(".L_x_0:\nFADD R0, R0, R1\nBRA `(.L_x_0)")
    assert (outside.num_instructions, outside.address, outside.lines) == (0, 0, ())
    assert loop.num_instructions == 2


def test_spills_are_counted_inside_and_outside_loops():
    outside, (outer, inner) = regions_of(
        """
            STL.64 [R1], R2
            STL [R1+0x8], R4
        .L_x_0:
            LDL R4, [R1+0x8]
        .L_x_1:
            //## File "k.py", line 7
            LDL.LU.64 R2, [R1]
            STL.64 [R1], R2
            LDL.LU.64 R6, [R1]
            @P0 BRA `(.L_x_1)
            @P1 BRA `(.L_x_0)
            EXIT
        """
    )
    spills = [(region.count("spill load"), region.count("spill store")) for region in (outside, outer, inner)]
    assert spills == [(0, 2), (1, 0), (2, 1)]
    assert [(a.kind, a.opcode, a.bytes_per_lane, a.count) for a in inner.accesses] == [
        ("spill load", "LDL.LU.64", 8, 2),
        ("spill store", "STL.64", 8, 1),
    ]
    assert inner.accesses[0].lines == (SourceLine("k.py", 7),)
    assert inner.shared_bytes_per_warp == 0


def test_tensor_instructions_of_different_shape_or_operands_are_counted_apart():
    outside, _ = regions_of(
        """
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT
        HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0
        HGMMA.64x64x16.F32.BF16 R56, R4, gdesc[UR8].tnspB, R56
        HGMMA.64x128x16.F32.BF16 R56, R4, gdesc[UR8].tnspB, R56
        EXIT
        """
    )
    assert [(t.shape, t.a_source, t.count) for t in outside.tensor] == [
        ("m64n64k16", "shared", 2),
        ("m64n64k16", "registers", 1),
        ("m64n128k16", "registers", 1),
    ]


def test_counts_cannot_be_changed():
    _, (loop,) = regions_of(".L_x_0:\nFADD R0, R0, R1\nBRA `(.L_x_0)")
    with pytest.raises(TypeError):
        loop.mix["fp32"] = 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        loop.address = 7


def test_the_line_that_counts_is_the_innermost_of_the_user():
    library, kernel, caller = (
        SourceLine("triton/language/standard.py", 45),
        SourceLine("k.py", 3),
        SourceLine("k.py", 9),
    )
    assert own_line((library, kernel, caller)) == kernel
    assert own_line((library,)) == library
    assert own_line(()) is None


def test_instructions_of_no_line_are_counted_last():
    outside, _ = regions_of('FADD R0, R0, R1\n//## File "k.py", line 3\nFADD R0, R0, R1\nFMUL R0, R0, R1\nEXIT')
    assert [(str(line.line), line.count) for line in outside.lines] == [("k.py:3", 3), ("None", 1)]
