"""A small part of what `fuzz_suites.py` and `fuzz_commands.py` try; they say how to try more."""

from pathlib import Path

import fuzz_commands
import fuzz_suites
import pytest

from bsa_bench.suite import expand

SUITES, COMMANDS = 120, 60


@pytest.mark.slow
def test_a_mutated_suite_is_accepted_or_refused_in_a_sentence(tmp_path):
    counts, troubles = fuzz_suites.fuzz(SUITES, 0, tmp_path)
    assert troubles == {}
    assert counts["accepted"] > SUITES // 20
    assert counts["refused"] > SUITES // 2


@pytest.mark.slow
def test_a_random_command_line_ends_with_an_exit_code_of_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzz_commands.furnish(Path(tmp_path))
    counts, troubles = fuzz_commands.fuzz(COMMANDS, 0)
    assert troubles == {}
    assert {"exit 2", "would start a process"} <= counts.keys()


def test_the_mutations_of_a_seed_are_the_same_again():
    assert [fuzz_suites.mutated(seed) for seed in range(30)] == [fuzz_suites.mutated(seed) for seed in range(30)]
    lines = [fuzz_commands.command_line(seed) for seed in range(50)]
    assert lines == [fuzz_commands.command_line(seed) for seed in range(50)]
    assert len({tuple(line) for line in lines}) > 40


def test_a_fuzzer_finds_what_is_planted(tmp_path, monkeypatch):
    def planted(*_, **__):
        raise OverflowError("int too large to convert to float")

    with monkeypatch.context() as patch:
        patch.setattr(expand, "_workload", planted)
        assert "OverflowError" in str(fuzz_suites.fuzz(30, 0, tmp_path)[1])
    monkeypatch.setattr(fuzz_suites, "SLOW_S", 0.0)
    assert len(fuzz_suites.fuzz(3, 0, tmp_path)[1]) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz_commands, "main", planted)
    assert "OverflowError" in str(fuzz_commands.fuzz(3, 0)[1])
