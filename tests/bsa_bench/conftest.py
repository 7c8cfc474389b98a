"""The command line in this process, standing in an empty folder."""

import os
import sys

import pytest
from cli_factory import TINY
from run_factory import Bench, environment
from static_factory import Toys

from bsa_bench.cli import main, run_command
from bsa_bench.errors import EXIT_CODES, EXIT_UNEXPECTED
from bsa_bench.run import RunSettings
from bsa_bench.run.probe import Probe, question_of
from bsa_bench.suite import load_suite


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder outside the checkout, to stand in; the suite `tiny.toml` is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("BSA_BENCH_RESULTS", raising=False)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture
def bench(monkeypatch, capsys):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bsa-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code or 0
        assert code in EXIT_CODES.keys() - {EXIT_UNEXPECTED}
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def unrendered(monkeypatch):
    """Have a report's plots laid out and drawn, which is all that can fail, but not rendered to pixels and paths."""
    from bsa_bench.report import style

    def save(figure, folder, name, formats):
        figure.draw_without_rendering()
        files = tuple(folder / f"{name}.{each}" for each in formats)
        for file in files:
            file.touch()
        return files

    monkeypatch.setattr(style, "save", save)


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """Toy kernels, compiled and read: `toys(release, name, arch)`."""
    return Toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def scripted(monkeypatch, folder):
    """Answer the probe and do the work by a script: `scripted(actions)`, a status or an action by case."""
    there = Bench(folder)

    def script(actions=None, unavailable=None, **more):
        cases = load_suite("./tiny.toml", device_kind="cpu").cases()
        by_name = {c: (actions or {}).get(c.implementation, "ok") for c in cases}
        settings = there.settings(cases, by_name)

        class Scripted(RunSettings):
            def __init__(self, **fields):
                super().__init__(**(fields | {"worker_command": settings.worker_command} | more))

        def answer(questions, **_):
            reasons = {question_of(c): (unavailable or {}).get(c.implementation) for c in cases}
            here = environment().model_copy(update={"cpu": {"threads": 1}})
            return Probe(here, {q: reasons.get(q) for q in questions["cpu"]})

        monkeypatch.setattr(run_command, "RunSettings", Scripted)
        monkeypatch.setattr(run_command, "probe", answer)
        return there

    return script
