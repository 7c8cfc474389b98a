"""What the guides say can be done, done."""

import re
import tomllib
from pathlib import Path

import pytest

from bsa_bench import catalog
from bsa_bench.suite import load_suite

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHOD_PAGES = [page for page in sorted((ROOT / "docs/methods").glob("*.md")) if "```toml" in page.read_text()]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_the_options_on_a_methods_page_are_options_of_that_method(page):
    for text in blocks(page, "toml"):
        for method, options in tomllib.loads(text).items():
            assert method == page.stem
            catalog.check_options(method, options)


def test_every_method_is_in_the_table_of_methods_with_its_claims():
    table = (ROOT / "docs/methods/README.md").read_text()
    lines = dict(re.findall(r"^\| \[`([^`]+)`\](.*)$", table, re.MULTILINE))
    assert lines.keys() == set(catalog.METHODS)
    for name, line in lines.items():
        method = catalog.load_method(name)
        claims = method.claims(method.Options())
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[2] == ("yes" if claims.trains else "no"), name
        assert cells[3] in ({"yes"} if claims.causal else {"no", "with `causal = true`"}), name
        assert cells[4] in ({"unless `causal = true`"} if claims.adapted else {"", "with `causal = false`"}), name


def test_the_code_in_the_guide_to_methods_and_engines_runs():
    found = blocks(ROOT / "docs/extending.md", "python")
    assert found
    for text in found:
        exec(compile(text, "docs/extending.md", "exec"), {})


def test_the_entry_points_in_the_guide_are_those_of_the_example_package():
    (quoted,) = blocks(ROOT / "docs/extending.md", "toml")
    package = tomllib.loads((ROOT / "docs/examples/third_party/pyproject.toml").read_text())
    assert tomllib.loads(quoted)["project"]["entry-points"] == package["project"]["entry-points"]


def test_the_file_in_the_guide_to_suites_loads(tmp_path):
    text = blocks(ROOT / "docs/suites.md", "toml")[0]
    (tmp_path / "clips").mkdir()
    (tmp_path / "mine.toml").write_text(text)
    suite = load_suite(str(tmp_path / "mine.toml"), device_kind="cpu")
    assert suite.cases
