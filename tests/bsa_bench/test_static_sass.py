import pytest
from hypothesis import given
from hypothesis import strategies as st
from sass_factory import flow_of, instruction, instructions_of, listing, sass_of, stored

from bsa_bench.static.sass import SourceLine, digest, normalised, read_sass

# What ptxas makes of a rounded sum; R and P are chosen by its allocator.
SUM = """
    LDG.E.128 R4, desc[UR4][R2.64]
    ISETP.GE.AND P0, PT, R7.reuse, UR4, PT
    @!P0 FADD R8, R4.reuse, 1.5
    @P0 BRA `(.L_x_1)
    F2FP.BF16.F32.PACK_AB R8, R9, R8
.L_x_1:
    STG.E desc[UR4][R2.64+0x10], R8
    EXIT
"""


def starts(flow):
    return [block.start for block in flow.blocks]


def headers(flow):
    return [flow.blocks[loop.header].start for loop in flow.loops]


# Reading


def test_an_instruction_is_read_in_its_parts():
    guarded = instruction("@!UP2 UIADD3.X UR4, URZ, UR5, URZ, UP0, !UPT")
    assert (guarded.opcode, guarded.name, guarded.guard) == ("UIADD3.X", "UIADD3", "!UP2")
    assert guarded.operands == "UR4, URZ, UR5, URZ, UP0, !UPT"
    assert str(guarded) == "@!UP2 UIADD3.X UR4, URZ, UR5, URZ, UP0, !UPT"
    assert instruction("EXIT").operands == ""
    assert instruction("EXIT").guard is None
    assert instruction("BRA.U !UP0, `(.L_x_3)").target == ".L_x_3"
    assert instruction("@!PT LDS RZ, [RZ]").is_never
    assert not instruction("@PT LDS RZ, [RZ]").is_never


def test_a_real_listing_gives_addresses_labels_and_target():
    sass, _ = stored("nested.90.sass")
    assert (sass.name, sass.target) == ("nested", "sm_90a")
    assert sass.instructions[0].address == 0
    # `NOP;` without a space before the semicolon, as nvdisasm pads the end.
    assert (sass.instructions[-1].address, sass.instructions[-1].name) == (0x1150, "NOP")
    assert sass.labels == {".L_x_2": 5, ".L_x_1": 12, ".L_x_0": 34, ".L_x_3": 43, ".L_x_4": 45}
    assert sass.instructions[sass.labels[".L_x_1"]].opcode == "DEPBAR.LE"


def test_names_of_functions_are_labels():
    sass, _ = stored("nested.100.sass")
    trap = next(label for label in sass.labels if label.endswith("unallocated_columns_being_dealloced"))
    assert sass.instructions[sass.labels[trap]].opcode == "BPT.TRAP"
    assert any(each.name == "CALL" and each.target == trap for each in sass.instructions)


def test_instructions_keep_their_chain_of_source_lines_innermost_first():
    first, same, plain, again = instructions_of(
        """
        //## File "triton/language/standard.py", line 45 inlined at "/home/me/kernels/my_backward.py", line 149
        //## File "kernels/my_backward.py", line 149
        FMNMX R0, R1, R2, !PT
        FMNMX R0, R0, R3, !PT
        //## File "kernels/my_backward.py", line 150
        FADD R0, R0, R3
        //## File "a.py", line 1 inlined at "b.py", line 2
        //## File "b.py", line 2 inlined at "c.py", line 3
        //## File "c.py", line 3
        FADD R0, R0, R4
        """
    )
    inner, outer = SourceLine("triton/language/standard.py", 45), SourceLine("kernels/my_backward.py", 149)
    assert first.source == same.source == (inner, outer)
    assert plain.source == (SourceLine("kernels/my_backward.py", 150),)
    assert [str(line) for line in again.source] == ["a.py:1", "b.py:2", "c.py:3"]


def test_of_two_places_without_code_between_them_the_later_counts():
    (only,) = instructions_of('//## File "a.py", line 1\n//## File "a.py", line 2\nEXIT')
    assert only.source == (SourceLine("a.py", 2),)


def test_a_line_stays_in_force_behind_a_label():
    _, behind = instructions_of('//## File "a.py", line 1\nNOP\n.L_x_0:\nEXIT')
    assert behind.source == (SourceLine("a.py", 1),)


def test_a_listing_without_line_info_has_no_source():
    assert instruction("EXIT").source == ()


def test_only_the_kernel_asked_for_is_read():
    text = listing('//## File "a.py", line 9\nEXIT', kernel="first") + listing("BRA `(.L_x_0)\n.L_x_0:\nEXIT")
    assert [each.name for each in read_sass(text, "kernel").instructions] == ["BRA", "EXIT"]
    assert read_sass(text, "kernel").instructions[0].source == ()
    assert [each.name for each in read_sass(text, "first").instructions] == ["EXIT"]


def test_an_unknown_kernel_is_named_beside_those_there_are():
    with pytest.raises(ValueError, match=r"^kernel: expected 'other' in the listing, got kernel$"):
        read_sass(listing("EXIT"), "other")
    with pytest.raises(ValueError, match=r"^kernel: expected 'other' in the listing, got no code$"):
        read_sass("", "other")


# Normalised text


def test_normalised_text_numbers_registers_and_hides_targets():
    assert list(normalised(instructions_of(SUM))) == [
        "LDG.E.128 R_0, desc[UR_0][R_1.64]",
        "ISETP.GE.AND P_0, PT, R_2, UR_0, PT",
        "@!P_0 FADD R_3, R_0, 1.5",
        "@P_0 BRA `(target)",
        "F2FP.BF16.F32.PACK_AB R_3, R_4, R_3",
        "STG.E desc[UR_0][R_1.64+0x10], R_3",
        "EXIT",
    ]


@pytest.mark.slow
@given(st.permutations(range(2, 12)), st.permutations(range(4)), st.integers(0, 60))
def test_the_digest_does_not_see_which_registers_and_labels_were_chosen(registers, predicates, label):
    renamed = SUM.replace(".reuse", "").replace(".L_x_1", f".L_x_{label}").replace("P0", f"P{predicates[0]}")
    for old, new in zip(range(2, 12), registers, strict=True):
        renamed = renamed.replace(f" R{old}", f" r{new}").replace(f"[R{old}", f"[r{new}")
    renamed = renamed.replace(" r", " R").replace("[r", "[R").replace("UR4", "UR6")
    assert digest(instructions_of(renamed)) == digest(instructions_of(SUM))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.5", "1.25"),
        ("+0x10", "+0x20"),
        ("LDG.E.128", "LDG.E.64"),
        ("@!P0 FADD", "@P0 FADD"),
        ("R8, R9, R8", "R8, R8, R9"),  # another register, not another name
        ("    F2FP.BF16.F32.PACK_AB R8, R9, R8\n", ""),
        ("ISETP.GE", "ISETP.GT"),
    ],
)
def test_the_digest_sees_constants_widths_modifiers_and_order(old, new):
    assert SUM.count(old) == 1
    assert digest(instructions_of(SUM.replace(old, new))) != digest(instructions_of(SUM))


def test_the_digest_does_not_see_source_lines():
    assert digest(instructions_of('//## File "a.py", line 1' + SUM)) == digest(instructions_of(SUM))


def test_the_digest_sees_which_byte_of_a_register_is_taken():
    second, third = instructions_of("I2F.U8 R4, R0.B1\nI2F.U8 R4, R0.B2")
    assert list(normalised([second])) == ["I2F.U8 R_0, R_1.B1"]
    assert digest([second]) != digest([third])


def test_the_digest_does_not_see_where_a_computed_jump_stands():
    near, far = instructions_of(
        'BRX R4 -0x100     (*"BRANCH_TARGETS .L_x_2,.L_x_3"*)\nBRX R8 -0x2f0 (*"BRANCH_TARGETS .L_x_7,.L_x_8"*)'
    )
    assert list(normalised([near])) == ["BRX R_0 target"]
    assert digest([near]) == digest([far])


# Blocks


def test_blocks_end_at_jumps_and_labels():
    flow = flow_of(SUM)
    assert [(block.start, block.stop, block.successors) for block in flow.blocks] == [
        (0, 4, (2, 1)),
        (4, 5, (2,)),
        (5, 7, ()),
    ]
    assert (flow.loops, flow.has_unread_jumps) == ((), False)


def test_a_guarded_exit_goes_on_and_a_plain_one_does_not():
    flow = flow_of("@P0 EXIT\nNOP\nEXIT\nNOP")
    assert [block.successors for block in flow.blocks] == [(1,), (), ()]


def test_a_branch_on_a_uniform_predicate_is_conditional_and_one_on_pt_is_not():
    for branch in ("BRA.U UP0, `(.L_x_0)", "BRA.U !UP1, `(.L_x_0)", "BRA P3, `(.L_x_0)", "BRA.DIV UR4, `(.L_x_0)"):
        assert flow_of(f"{branch}\nNOP\n.L_x_0:\nEXIT").blocks[0].successors == (2, 1), branch
    for branch in ("BRA `(.L_x_0)", "@PT BRA `(.L_x_0)"):
        assert flow_of(f"{branch}\nNOP\n.L_x_0:\nEXIT").blocks[0].successors == (2,), branch


def test_convergence_barriers_are_no_jumps():
    flow = flow_of("BSSY B0, `(.L_x_0)\n@P0 BREAK B1\nWARPSYNC.ALL\nBSYNC B0\n.L_x_0:\nEXIT")
    assert [block.successors for block in flow.blocks] == [(1,), ()]


# Loops


def test_nested_loops_of_a_real_kernel_are_told_apart():
    sass, flow = stored("nested.90.sass")
    outer, inner = flow.loops
    assert headers(flow) == [sass.labels[".L_x_2"], sass.labels[".L_x_1"]]
    assert (outer.index, outer.parent, inner.index, inner.parent) == (0, None, 1, 0)
    assert inner.blocks < outer.blocks
    assert flow.own_blocks(inner) == inner.blocks
    assert flow.own_blocks(outer) == outer.blocks - inner.blocks


def test_the_trap_behind_the_code_is_no_loop():
    sass, flow = stored("nested.90.sass")
    trap = starts(flow).index(sass.labels[".L_x_3"])
    assert flow.blocks[trap].successors == (trap,)  # it jumps to itself, but nothing leads to it
    assert all(trap not in loop.blocks for loop in flow.loops)


def test_waits_at_the_end_of_the_code_belong_to_the_loop_that_jumps_to_them():
    sass, flow = stored("nested.100.sass")
    parents = {
        next(label for label, index in sass.labels.items() if index == flow.blocks[loop.header].start): loop.parent
        for loop in flow.loops
    }
    # Outer loops first, then by address: the spin of an allocation, tiles, steps, and the waits of both.
    assert list(parents.items()) == [
        (".L_x_3", None),
        (".L_x_13", None),
        (".L_x_10", 1),
        (".L_x_12", 1),
        (".L_x_9", 2),
    ]
    # The jump back from a wait to the middle of the code is part of the loop around the wait.
    steps = flow.loops[2]
    back = next(i for i, block in enumerate(flow.blocks) if sass.instructions[block.start].address == 0x1D80)
    assert back in flow.own_blocks(steps)
    assert back not in steps.always


def test_a_loop_of_several_back_edges_is_one_loop():
    flow = flow_of("NOP\n.L_x_0:\nNOP\n@P0 BRA `(.L_x_0)\nFADD R0, R0, R1\n@P1 BRA `(.L_x_0)\nEXIT")
    (loop,) = flow.loops
    assert sorted(loop.blocks) == [1, 2]
    assert sorted(loop.always) == [1]


def test_two_loops_one_after_another_have_no_parent():
    flow = flow_of(".L_x_0:\nNOP\n@P0 BRA `(.L_x_0)\n.L_x_1:\nNOP\n@P0 BRA `(.L_x_1)\nEXIT")
    assert [(loop.parent, sorted(loop.blocks)) for loop in flow.loops] == [(None, [0]), (None, [1])]


def test_three_loops_in_one_another_have_the_nearest_as_parent():
    flow = flow_of(
        """
        .L_x_0:
            NOP
        .L_x_1:
            NOP
        .L_x_2:
            NOP
            @P0 BRA `(.L_x_2)
            @P1 BRA `(.L_x_1)
            @P2 BRA `(.L_x_0)
            EXIT
        """
    )
    assert [loop.parent for loop in flow.loops] == [None, 0, 1]
    assert [len(loop.blocks) for loop in flow.loops] == [5, 3, 1]
    assert [len(flow.own_blocks(loop)) for loop in flow.loops] == [2, 2, 1]


def test_a_jump_into_the_middle_of_a_cycle_makes_no_natural_loop():
    flow = flow_of("@P0 BRA `(.L_x_1)\n.L_x_0:\nNOP\n.L_x_1:\nNOP\n@P1 BRA `(.L_x_0)\nEXIT")
    assert flow.loops == ()


# Calls and jumps


def test_a_call_that_returns_goes_on_behind_it():
    flow = flow_of(
        "CALL.REL.NOINC `($kernel$div)\nNOP\nEXIT\n$kernel$div:\nMUFU.RCP R0, R1\nRET.REL.NODEC R2 `(kernel)"
    )
    assert [block.successors for block in flow.blocks] == [(1,), (), ()]


def test_a_call_into_another_section_goes_on_behind_it():
    assert flow_of("CALL.ABS.NOINC `(vprintf)\nEXIT").blocks[0].successors == (1,)


# ptxas leaves a loop by a call that nobody returns from.
JUMP_OUT = """
.L_x_0:
    HMMA.16816.F32.BF16 R28, R12, R30, R80
    IMAD.MOV.U32 R12, RZ, RZ, R147
    @!P5 CALL.REL.NOINC `(.L_x_1)
    BRA `(.L_x_0)
.L_x_1:
    {after}
    EXIT
$kernel$div:
    MUFU.RCP R0, R1
    RET.REL.NODEC R2 `(kernel)
"""


@pytest.mark.parametrize("after", ["NOP", "CALL.REL.NOINC `($kernel$div)", "@P0 BRA `(.L_x_0)"])
def test_a_call_to_code_that_never_returns_is_a_jump(after):
    sass = sass_of(JUMP_OUT.format(after=after))
    flow = flow_of(JUMP_OUT.format(after=after))
    behind = starts(flow).index(sass.labels[".L_x_1"])
    assert flow.blocks[0].successors == (behind, 1)
    assert (headers(flow), flow.has_unread_jumps) == ([0], False)


def test_a_call_that_never_returns_and_is_not_guarded_does_not_go_on():
    assert flow_of("CALL.REL.NOINC `(.L_x_1)\nNOP\n.L_x_1:\nEXIT").blocks[0].successors == (2,)


def test_a_computed_jump_goes_where_the_listing_says():
    computed = 'BRX R4 -0x100                     (*"BRANCH_TARGETS .L_x_2,.L_x_3"*)'
    flow = flow_of(f"NOP\n{computed}\n.L_x_2:\nEXIT\n.L_x_3:\nNOP\nBRA `(.L_x_3)\nEXIT")
    assert not flow.has_unread_jumps
    assert [flow.blocks[block].start for block in flow.blocks[0].successors] == [2, 3]
    assert [flow.blocks[loop.header].start for loop in flow.loops] == [3]


def test_a_computed_jump_that_goes_nobody_knows_where_is_reported_as_unread():
    flow = flow_of("BRXU UR4 -0x100\nEXIT")
    assert flow.has_unread_jumps
    assert flow.blocks[0].successors == ()


def test_a_computed_jump_that_nothing_leads_to_is_not_reported():
    assert not flow_of("EXIT\nBRX R4 -0x100").has_unread_jumps
