"""What every test run needs: Triton's interpreter where there is no GPU, one thread, the mark `gpu`, quick runs."""

import gc
import importlib.util
import os
from pathlib import Path

import interpreter_speed
import pytest

TESTS = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption(
        "--every-folder", action="store_true", help="fail unless in every folder of tests at least one test passed"
    )
    parser.addoption(
        "--quick",
        action="store_true",
        help="no test marked slow, of each parametrised one the first and the last case",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One a core and, but for a quick run, one more, as tests wait for processes, locks and files; each loads torch.

    So there are at most 8. A GPU, its memory and its time are not shared.
    """
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return 1
    return min(8, len(os.sched_getaffinity(0)) + (not config.getoption("quick")))


def pytest_configure(config):
    is_worker = hasattr(config, "workerinput")
    if config.getoption("every_folder") and not is_worker:
        config.pluginmanager.register(EveryFolder(), "every-folder")
    if config.getoption("numprocesses", None) and not is_worker:
        return  # the workers of pytest-xdist run the tests; their parent needs no torch
    import torch

    # Read when kernels are defined, so it must stand before the first import of one.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton"):
        interpreter_speed.remember()

    # Tensors are tiny: a second thread costs more than it gives, and far more on a busy machine.
    torch.set_num_threads(1)


def pytest_collection_finish(session):
    """What is loaded by now stays to the end: the garbage collector need not look through torch and all tests again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config):
    gc.unfreeze()  # so that libraries find nothing left of theirs at the end


def pytest_collection_modifyitems(config, items):
    import torch

    if config.getoption("quick"):
        chosen = quick(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]
    elif num_workers := getattr(config, "workerinput", {}).get("workercount"):
        items[:] = slow_files_first(items, num_workers)

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def quick(items):
    """The tests of a quick run, as a set."""
    cases = {}
    for item in items:
        if "slow" not in item.keywords:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return {item for each in cases.values() for item in (each[0], each[-1])}


def slow_files_first(items, num_workers):
    """The tests in an order for `--dist worksteal`, which deals them in equal parts, one after another.

    Each part begins with files of many slow tests and ends with quick ones, which are what is stolen at the end.
    """
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    ranked = sorted(files.values(), key=lambda tests: -sum("slow" in test.keywords for test in tests))
    return [item for part in range(num_workers) for tests in ranked[part::num_workers] for item in tests]


class EveryFolder:
    """Fails a run that passes over a folder of tests: nothing collected, all deselected or all skipped."""

    def __init__(self):
        self.missing = {file.parent.relative_to(TESTS).as_posix() for file in TESTS.rglob("test_*.py")}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            path = TESTS.parent / report.nodeid.partition("::")[0]
            self.missing.discard(path.parent.relative_to(TESTS).as_posix())

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if self.missing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.missing:
            folders = ", ".join(sorted(f"tests/{name}" for name in self.missing))
            terminalreporter.write_line(f"ERROR: no test passed in {folders}", red=True, bold=True)
