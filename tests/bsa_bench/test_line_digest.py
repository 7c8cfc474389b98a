"""Stored lines end with a digest; what does not fit it, or contradicts itself, is refused."""

import random
from pathlib import Path

import pytest
from report_factory import measured, quick_results, write_run

from bsa_bench.errors import StoreError
from bsa_bench.result import ErrorFigures
from bsa_bench.store.line_digest import with_digest, without_digest
from bsa_bench.store.reader import read_run
from bsa_bench.store.writer import RunWriter

REFERENCE = Path(__file__).parents[2] / "results/reference"


@pytest.fixture
def stored(tmp_path):
    """A results file as a run writes it, and its bytes."""
    source = read_run(write_run(tmp_path / "plain", quick_results((1024,))))
    with RunWriter.create(tmp_path, "r") as writer:
        writer.append(source.run_lines[0], *source.results)
    return writer.path


def test_a_line_comes_back_without_its_digest_which_fits():
    assert without_digest(with_digest(b'{"a":1}')) == (b'{"a":1}', True)
    assert without_digest(with_digest(b'{"a":1}').replace(b"1", b"2", 1)) == (b'{"a":2}', False)
    assert without_digest(b'{"a":1}') == (b'{"a":1}', None)


def test_a_stored_run_loads_and_all_of_its_lines_have_a_digest(stored):
    assert read_run(stored).num_without_digest == 0


def test_no_flipped_bit_loads_with_another_result(stored, tmp_path):
    data, expected = stored.read_bytes(), read_run(stored).results
    assert len(expected) > 1
    draw, file, num_refused = random.Random(0), tmp_path / "flipped.jsonl", 0
    for _ in range(500):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        try:
            found = read_run(file).results
        except StoreError:
            num_refused += 1
        else:
            assert all(result in expected for result in found)
    assert num_refused > 450


def test_a_changed_time_is_refused_by_file_and_line(stored):
    text = stored.read_text()
    stored.write_text(text.replace('"samples":[0.', '"samples":[1.', 1))
    with pytest.raises(StoreError, match=r"results.jsonl, line \d+: its digest does not fit"):
        read_run(stored)


def test_a_hash_that_is_not_of_its_case_is_refused(tmp_path):
    result = measured().model_copy(update={"case_hash": "0123"})
    with pytest.raises(StoreError, match="case_hash 0123 is not that of its case"):
        read_run(write_run(tmp_path, [result]))


def test_a_verdict_that_its_own_figures_contradict_is_refused(tmp_path):
    result = measured()
    worse = {"output": ErrorFigures(max_abs=9, relative_l2=9, cosine=0)}
    result = result.model_copy(update={"correctness": result.correctness.model_copy(update={"checked": worse})})
    with pytest.raises(StoreError, match="correctness: passed, though output has a relative L2 error of 9"):
        read_run(write_run(tmp_path, [result]))


def test_the_committed_reference_runs_load_and_are_marked_as_without_digests():
    for file in REFERENCE.glob("*/results.jsonl"):
        run = read_run(file)
        assert run.results
        assert run.num_without_digest == len(run.run_lines) + len(run.results)
