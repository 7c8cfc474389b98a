import pytest

from bsa_bench.errors import StoreError, UsageError
from bsa_bench.gate.acceptance import ACCEPTED, Acceptance, append_acceptance, read_acceptances


def acceptance(commit="a" * 40, reason="a larger tile", **fields):
    defaults = {"utc": "2026-11-26T10:00:00+00:00", "packages": {"torch": "2.13.0", "triton": None}, "tiers": (0, 1)}
    return Acceptance(commit=commit, reason=reason, **(defaults | fields))


def test_acceptances_are_read_in_the_order_in_which_they_were_made(tmp_path):
    assert read_acceptances(tmp_path) == []
    made = [acceptance(commit=letter * 40) for letter in "abc"]
    for each in made:
        append_acceptance(tmp_path / "new" / "folder", each)
    assert read_acceptances(tmp_path / "new" / "folder") == made
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [ACCEPTED]


@pytest.mark.parametrize("reason", ["two\nlines", "a b\x85c\u2029d", "\N{LATIN SMALL LETTER E WITH ACUTE}", '"quoted"'])
def test_a_reason_may_hold_any_character(tmp_path, reason):
    made = [acceptance(reason=reason), acceptance(reason="after it")]
    for each in made:
        append_acceptance(tmp_path, each)
    assert read_acceptances(tmp_path) == made


def test_an_acceptance_without_a_reason_is_none():
    with pytest.raises(ValueError, match="reason"):
        acceptance(reason="")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{not json", "line 2: Invalid JSON"),
        ("{}", "line 2: commit: Field required"),
        (acceptance().model_dump_json().replace('"tiers"', '"tears"'), "line 2: tiers: Field required"),
        (
            acceptance().model_dump_json().replace('"schema_version":1', '"schema_version":2'),
            "line 2: schema_version: ",
        ),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line_and_left_as_it_is(tmp_path, line, what):
    path = tmp_path / ACCEPTED
    text = f"{acceptance().model_dump_json()}\n{line}\n"
    path.write_text(text)
    for act in (lambda: read_acceptances(tmp_path), lambda: append_acceptance(tmp_path, acceptance())):
        with pytest.raises(UsageError, match=f"{ACCEPTED}, {what}"):
            act()
    assert path.read_text() == text


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / ACCEPTED).write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=f"{ACCEPTED}: expected lines of JSON, got bytes that are no UTF-8"):
        read_acceptances(tmp_path)


def test_what_cannot_be_read_or_written_is_no_fault_of_the_user(tmp_path):
    (tmp_path / ACCEPTED).mkdir()
    with pytest.raises(StoreError, match=f"{ACCEPTED}: cannot be read: Is a directory"):
        read_acceptances(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        append_acceptance(tmp_path / "file", acceptance())
