"""What other programs read of a gate's result: JSON, JUnit XML, and the commands and the summary of a workflow."""

import json
import re
import subprocess

import gate_result_factory as made
import pytest
from junitparser import Error, Failure, JUnitXml, Properties, Skipped

from bsa_bench.errors import EXIT_NOTHING_MEASURED, StoreError, UsageError
from bsa_bench.gate.document import document, read_result
from bsa_bench.gate.show.files import check_outputs, write_outputs
from bsa_bench.gate.show.github import MAX_PER_LEVEL, SUMMARY_BYTES, workflow_commands, write_step_summary
from bsa_bench.gate.show.junit import junit
from bsa_bench.gate.show.markdown import markdown
from bsa_bench.gate.verdict import Change, TierResult, Verdict, exit_code

OUTCOMES = {
    Verdict.WRONG: [Failure],
    Verdict.SLOWER: [Failure],
    Verdict.FAILED: [Failure],
    Verdict.INFRA_ERROR: [Error],
    Verdict.CALIBRATION_NEEDED: [Error],
    Verdict.AMBIGUOUS: [Skipped],
    Verdict.NOT_MEASURED: [Skipped],
    Verdict.WARNING: [],
    Verdict.FASTER: [],
    Verdict.SAME: [],
    Verdict.VERIFIED: [],
    Verdict.UNCHANGED: [],
}


def parsed(result):
    return JUnitXml.fromstring(junit(result).encode())


def cases(result):
    return {case.name: case for suite in parsed(result) for case in suite}


def properties(case):
    return {each.name: each.value for group in case.iterchildren(Properties) for each in group}


def one_check(verdict, tier=0, **fields):
    return made.result([TierResult(tier=tier, checks=(made.check(tier, "c", verdict, **fields),))])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A repository with a file that one name fits, and one name that two files have."""
    root = tmp_path_factory.mktemp("checkout")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for name in ("kernels/triton_attend.py", "kernels/a/ops.py", "kernels/b/ops.py", "ignored/lost.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    (root / ".gitignore").write_text("ignored\n")
    return root


# JSON.


def test_the_document_reads_back_equal(tmp_path):
    path = tmp_path / "gate.json"
    path.write_text(document(made.result()))
    assert read_result(path) == made.result()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected the JSON document of a gate run, got '{'"),
        ("[]", "of kind 'gate', got 'list'"),
        ('{"kind": "result"}', "of kind 'gate', got 'result'"),
        ('{"kind": "gate", "schema_version": 2}', "schema_version: got 2, this version of bsa-bench reads 1"),
        ('{"kind": "gate", "schema_version": 1, "utc": 3}', r"utc: Input should be a valid string, got '3'"),
        (b"\xff\xfe", "got bytes that are no UTF-8"),
    ],
)
def test_another_document_is_refused_with_what_it_is(tmp_path, text, message):
    path = tmp_path / "gate.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StoreError, match=f"gate.json: .*{message}"):
        read_result(path)


def test_a_document_that_is_not_there_is_a_wrong_argument(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json: there is no such file, expected the JSON document"):
        read_result(tmp_path / "none.json")
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        read_result(tmp_path)


# JUnit XML.


def test_each_verdict_has_its_outcome_in_junit():
    found = {}
    for case in cases(made.result()).values():
        if verdict := properties(case).get("verdict"):
            found.setdefault(verdict, []).append([type(each) for each in case.result])
    assert found == {verdict: [kinds] * len(found[verdict]) for verdict, kinds in OUTCOMES.items()}


def test_a_suite_stands_for_each_tier_and_its_counts_are_those_of_its_cases():
    xml = parsed(made.result())
    before = [(s.name, s.tests, s.failures, s.errors, s.skipped, s.time) for s in xml]
    assert before == [
        ("tier 0: compiled code", 5, 1, 0, 1, 48.2),
        ("tier 1: counters", 2, 1, 0, 0, 3.4),
        ("tier 2: CPU execution", 7, 2, 0, 2, 312.0),
        ("tier 3: GPU timing", 3, 0, 2, 1, 20.0),
    ]
    totals = (xml.tests, xml.failures, xml.errors, xml.skipped)
    xml.update_statistics()
    assert [(s.name, s.tests, s.failures, s.errors, s.skipped) for s in xml] == [each[:5] for each in before]
    assert (xml.tests, xml.failures, xml.errors, xml.skipped) == totals == (17, 4, 2, 4)


def test_the_elements_stand_where_the_schema_has_them():
    order = {"properties": 0, "failure": 1, "error": 1, "skipped": 1, "system-out": 2}
    for suite in parsed(made.result()):
        assert suite._elem[0].tag == "properties"
        for case in suite:
            tags = [order[child.tag] for child in case._elem]
            assert tags == sorted(set(tags))


def test_a_timed_case_has_its_ratio_interval_and_detectable_effect():
    case = cases(made.result())["bsa@gather 8x16x16, forward"]
    figures = properties(case)
    assert (figures["ratio"], figures["ratio_low"], figures["ratio_high"]) == ("1.1", "1.075", "1.125")
    assert (figures["detectable"], figures["limit"], figures["num_pairs"], figures["stage"]) == (
        "0.0812", "0.05", "8", "confirm",
    )  # fmt: skip
    assert case.result[0].message.startswith("SLOWER: 1.10x [1.08, 1.12], 12.3 ms -> 13.5 ms")
    unknown = properties(cases(made.result())["bsa@triton wan2.1-1.3b, backward"])
    assert {"ratio_low", "detectable", "p"}.isdisjoint(unknown)


def test_a_failure_carries_its_rules_lines_and_the_whole_detail():
    text = cases(made.result())["attend-bf16-d128-k32, sm_90"].result[0].text
    assert "spills in the main loop: 0 -> 12 (spills in the main loop must not rise), triton_attend.py:118" in text
    assert text.endswith("\n".join(line.rstrip() for line in made.SASS_DIFF))


def test_ambiguous_is_a_failure_only_where_the_exit_code_comes_of_it():
    def outcome(**how):
        result = one_check(Verdict.AMBIGUOUS, tier=2)
        result = result.model_copy(update={"exit_code": exit_code(result.tiers, **how)})
        return [type(each) for each in cases(result)["c"].result]

    assert outcome() == [Skipped]
    assert outcome(ambiguous="fail") == outcome(ambiguous="ambiguous") == [Failure]


def test_a_tier_without_a_measurement_is_skipped_or_an_error_but_never_passed():
    case = cases(made.result([made.UNCHANGED_TIER, made.NO_GPU]))["GPU timing is measured"]
    assert [(type(each), each.message) for each in case.result] == [(Skipped, "NOT_MEASURED: no NVIDIA GPU here")]
    required = made.result([made.UNCHANGED_TIER, made.NO_GPU], exit_code=EXIT_NOTHING_MEASURED)
    assert [type(each) for each in cases(required)["GPU timing is measured"].result] == [Error]


def test_a_tier_of_which_too_little_was_measured_is_an_error():
    checks = [made.check(2, f"c{i}", Verdict.NOT_MEASURED, reason="no time") for i in range(3)]
    tier = TierResult(tier=2, checks=(*checks, made.check(2, "d", Verdict.SAME)))
    result = made.result([made.UNCHANGED_TIER, tier])
    assert result.exit_code == EXIT_NOTHING_MEASURED
    errors = [(case.name, case.result[0].message) for case in cases(result).values() if Error in map(type, case.result)]
    assert errors == [("CPU execution is measured", "NOT_MEASURED: 3 NOT_MEASURED, 1 SAME of 4 checks")]


def test_what_xml_cannot_hold_is_left_out():
    reason = "a\x00b\x0bc\ud800d\ufffee <&\"'> µ \U0001f600"
    result = one_check(Verdict.FAILED, reason=reason, detail=("x\x1by", "\ud800z"))
    (element,) = cases(result)["c"].result
    assert element.message == "FAILED: abcde <&\"'> µ \U0001f600"
    assert element.text == "xy\nz"
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", junit(result))


def test_a_control_keeps_its_name_so_that_a_dashboard_knows_it():
    case = cases(made.result())["full@sdpa-flash 8x16x16, forward"]
    assert properties(case)["is_control"] == "true"


# Workflow commands.


def test_a_broken_rule_is_annotated_at_its_line(checkout):
    commands = workflow_commands(made.result([made.compiled_tier()]), root=checkout)
    assert commands[0] == (
        "::error file=kernels/triton_attend.py,line=118,title=FAILED in tier 0%2C compiled code::"
        "spills in the main loop (spills in the main loop must not rise)%0Aattend-bf16-d128-k32, sm_90: 0 -> 12"
    )


def test_levels_follow_the_verdicts_and_errors_come_first(checkout):
    commands = workflow_commands(made.result(), root=checkout)
    found = [re.match(r"::(\w+) (?:file=.*,)?title=(\w+)", command).groups() for command in commands]
    assert found == [
        ("error", "WRONG"),
        ("error", "SLOWER"),
        *[("error", "FAILED")] * 4,
        ("error", "INFRA_ERROR"),
        ("error", "CALIBRATION_NEEDED"),
        ("warning", "AMBIGUOUS"),
        ("warning", "WARNING"),
        ("notice", "tier"),
    ]
    assert commands[-1].startswith("::notice title=tier 3%2C GPU timing%3A NOT_MEASURED::the device throttled")


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("triton_attend.py:7", "file=kernels/triton_attend.py,line=7,"),
        ("kernels/a/ops.py:9", "file=kernels/a/ops.py,line=9,"),
        ("b/ops.py:9:4", "file=kernels/b/ops.py,line=9,"),
        ("/tmp/base/kernels/a/ops.py:9", "file=kernels/a/ops.py,line=9,"),
        ("triton_attend.py:7, ops.py:9", "file=kernels/triton_attend.py,line=7,"),
        ("ops.py:9", ""),
        ("attend.py:9", ""),
        ("lost.py:9", ""),
        ("triton_attend.py", ""),
    ],
)
def test_a_line_is_named_only_where_its_file_is_certain(checkout, line, place):
    change = made.SPILLS.model_copy(update={"line": line})
    (command,) = workflow_commands(one_check(Verdict.FAILED, changes=(change,)), root=checkout / "kernels")
    assert command.startswith(f"::error {place}title=")


def test_outside_of_a_checkout_no_file_is_named(tmp_path):
    assert "file=" not in "".join(workflow_commands(made.result(), root=tmp_path))


def test_a_command_is_escaped_as_github_reads_it(checkout):
    change = Change(metric="a\n::error::b", base="100%", head="x, y: z", severity="fail", rule="r\r")
    result = one_check(Verdict.FAILED, changes=(change,))
    (command,) = workflow_commands(result, root=checkout)
    assert command == "::error title=FAILED in tier 0%2C compiled code::a ::error::b (r)%0Ac: 100%25 -> x, y: z"


def test_checks_that_fail_alike_are_one_annotation(checkout):
    checks = tuple(made.check(0, f"c{i}", Verdict.FAILED, changes=(made.SPILLS,)) for i in range(8))
    (command,) = workflow_commands(made.result([TierResult(tier=0, checks=checks)]), root=checkout)
    assert command.split("%0A")[1:] == [*(f"c{i}: 0 -> 12" for i in range(5)), "and 3 more checks"]


@pytest.mark.parametrize("num", [10, 11, 60])
def test_no_more_annotations_of_a_level_than_github_shows(checkout, num):
    checks = tuple(made.check(2, f"c{i}", Verdict.WRONG, reason=f"reason {i}") for i in range(num))
    commands = workflow_commands(made.result([TierResult(tier=2, checks=checks), made.NO_GPU]), root=checkout)
    *errors, notice = commands
    assert len(errors) == MAX_PER_LEVEL
    assert notice.startswith("::notice ")
    last = "::error title=bsa-bench gate::{} more errors; the JSON document has all"
    assert (errors[-1] == last.format(num - 9)) == (num > 10)


# The summary of a step.


def test_the_summary_is_appended(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("what another step said")
    write_step_summary(made.result(), environment={"GITHUB_STEP_SUMMARY": str(path)})
    assert path.read_text() == "what another step said\n" + markdown(made.result())


def test_the_summary_leaves_room_for_what_is_there(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("x" * (SUMMARY_BYTES - 3_000))
    write_step_summary(made.result(), environment={"GITHUB_STEP_SUMMARY": str(path)})
    assert SUMMARY_BYTES - 2_000 < path.stat().st_size <= SUMMARY_BYTES
    assert "*Cut to 2,999 bytes" in path.read_text()
    path.write_text("x" * SUMMARY_BYTES)
    with pytest.raises(StoreError, match="holds 1,000,000 bytes, no room below 1,000,000"):
        write_step_summary(made.result(), environment={"GITHUB_STEP_SUMMARY": str(path)})


def test_without_a_place_for_the_summary_it_says_which_variable(tmp_path):
    with pytest.raises(UsageError, match="GITHUB_STEP_SUMMARY: is not set, expected the file"):
        write_step_summary(made.result(), environment={})
    with pytest.raises(StoreError, match=r"GITHUB_STEP_SUMMARY: .*: Is a directory"):
        write_step_summary(made.result(), environment={"GITHUB_STEP_SUMMARY": str(tmp_path)})


# Files that flags name.


def test_each_file_that_is_asked_for_is_written(tmp_path):
    paths = {"json_path": tmp_path / "g.json", "markdown_path": tmp_path / "g.md", "junit_path": tmp_path / "g.xml"}
    write_outputs(made.result(), **paths)
    assert json.loads(paths["json_path"].read_text())["kind"] == "gate"
    assert paths["markdown_path"].read_text() == markdown(made.result())
    assert paths["junit_path"].read_text() == junit(made.result())
    write_outputs(made.result(), json_path=None, markdown_path=None, junit_path=None)
    assert {path.name for path in tmp_path.iterdir()} == {"g.json", "g.md", "g.xml"}


def test_a_place_that_cannot_be_written_is_named_with_its_flag_before_anything_is_written(tmp_path):
    paths = {"json_path": tmp_path / "g.json", "markdown_path": None, "junit_path": tmp_path / "none" / "g.xml"}
    with pytest.raises(StoreError, match=r"^--junit: .*g\.xml: expected a file in a folder that can be written"):
        write_outputs(made.result(), **paths)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"--out and --markdown: got .* for both"):
        check_outputs(json_path=tmp_path / "g", markdown_path=tmp_path / "." / "g", junit_path=None)
