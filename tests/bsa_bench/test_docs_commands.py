"""Every command that the guides show is one that this version takes; cheap ones are run."""

import pytest
from docs_commands import PAGES, ROOT, commands, parse
from typer.testing import CliRunner

from bsa_bench.cli.app import app
from bsa_bench.suite import list_suites, load_suite
from bsa_bench.suite.override import override

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
