"""Every command that the guides show is one that this version takes; cheap ones are run."""

import published_factory
import pytest
import report_factory as made
from docs_commands import PAGES, ROOT, commands, parse
from typer.testing import CliRunner

from bsa_bench.cli.app import app
from bsa_bench.imports import import_file
from bsa_bench.result import Status
from bsa_bench.suite import list_suites, load_suite
from bsa_bench.suite.override import override
from bsa_bench.workload import InputSpec

SUITES = {suite.name for suite in list_suites()}
RUNS = sorted(
    {
        tuple(words)
        for page in PAGES
        for words in commands(page.read_text())
        if words[:1] == ["run"] and "--suite" in words
    }
)
#: Commands that measure nothing and load no torch.
CHEAP = sorted(
    {tuple(words) for page in PAGES for words in commands(page.read_text()) if words[:1] in (["list"], ["--help"])}
    | {(verb, "--help") for page in PAGES for verb, *_ in [*commands(page.read_text())]}
)
#: Names of runs in the guides; a command that differs from another by this alone is run once.
RUN_NAMES = dict.fromkeys(
    ["RUN_A", "before", "h200", "latest", "results/sparsity-1", "results/reference/quick-amd-epyc-2-cores", "tutorial"],
    "RUN",
) | {"RUN_B": "after"}
#: Commands over stored runs.
STORED = sorted(
    {
        tuple(RUN_NAMES.get(word, word) for word in words)
        for page in PAGES
        for words in commands(page.read_text())
        if words[0] in {"report", "table", "plot", "export"}
        or words[:2] in (["compare", "RUN_A"], ["import", "wan22.csv"])
    }
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_parses(page):
    for words in commands(page.read_text()):
        parse(words)


def test_commands_are_found_in_all_the_ways_that_pages_write_them():
    text = """
```
$ bsa-bench list forms
pip install x && bsa-bench doctor
KEY=a bsa-bench run \\
    --suite quick tokens=4096     # a comment with an ' in it
bsa-bench static --json > out.json
bsa-bench: an error is no command
```
```yaml
- run: >
          bsa-bench gate --tier 2
          --github
```
```python
bsa-bench no command
```
"""
    assert list(commands(text)) == [
        ["list", "forms"],
        ["doctor"],
        ["run", "--suite", "quick", "tokens=4096"],
        ["static", "--json"],
        ["gate", "--tier", "2", "--github"],
    ]


@pytest.mark.parametrize("words", [["run", "--suit", "quick"], ["rum"], ["list", "engines"], ["run"]])
def test_a_command_that_this_version_does_not_take_is_found(words):
    with pytest.raises(Exception) as raised:
        parse(words)
    assert "UsageError" in {kind.__name__ for kind in type(raised.value).__mro__}


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_the_settings_of_every_run_fit_the_suite_that_it_names(words):
    name = words[words.index("--suite") + 1]
    if name not in SUITES:
        pytest.skip("a suite of the reader's own")
    settings = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    device_kind = "cpu" if "cpu" in words else "cuda"
    assert override(load_suite(name, device_kind=device_kind), settings).cases()


@pytest.mark.parametrize("words", CHEAP, ids=" ".join)
def test_cheap_commands_run(words):
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    assert done.output


def on_noise(result, **changes):
    """The result as one of an input that is made anywhere, as `plot plan` makes it again."""
    workload = result.case.workload.model_copy(update={"input": InputSpec(kind="gaussian")})
    case = result.case.model_copy(update={"workload": workload})
    named = {"case_id": case.case_id, "case_hash": case.case_hash}
    return result.model_copy(update={"case": case, **named, **changes})


@pytest.fixture(scope="module")
def stored_runs(tmp_path_factory):
    """A folder with two runs, and with a file of figures that others published, under the names that `STORED` has."""
    folder = tmp_path_factory.mktemp("stored")
    results = [*made.quick_results((1024, 2048)), *made.sparsity_results(1024)]
    for name in ("RUN", "after"):
        correct = [on_noise(each, run_id=name) for each in results if each.status is Status.OK]
        made.write_run(folder / "results" / name, made.renumber(correct), run_id=name)
    (folder / "wan22.csv").write_text(published_factory.cudnn())
    import_file(folder / "wan22.csv", out=folder / "FILE")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", STORED, ids=" ".join)
def test_commands_over_stored_runs_run(words, stored_runs, monkeypatch, unrendered):
    monkeypatch.chdir(stored_runs)
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    assert done.output
