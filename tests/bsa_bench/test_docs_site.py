"""The site: every page has a place in the menu, references and engine pages say what the program says."""

import re
import sys
from pathlib import Path

import pytest
import torch

from bsa_bench import catalog, result
from bsa_bench.suite.schema import Part
from bsa_bench.workload import InputSpec, Workload

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ENGINES = sorted(DOCS.glob("engines/*.md"))
FORMATS = ("float32", "float16", "bfloat16", "float64")


@pytest.fixture(scope="module")
def generators():
    sys.path.insert(0, str(DOCS / "_site"))
    import command_line
    import schemas

    sys.path.remove(str(DOCS / "_site"))
    return command_line, schemas


def test_every_page_is_in_the_menu_once():
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\nnot_in_nav:")[0]
    listed = re.findall(r"(\S+\.md)$", menu, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def table_of(page):
    return dict(re.findall(r"^\| ([a-z][\w ]*|on an NVIDIA GPU) \| (.*) \|$", page.read_text(), re.MULTILINE))


def test_every_engine_has_a_page_and_a_row_in_their_table():
    overview = (DOCS / "engines/README.md").read_text()
    assert re.findall(r"^\| \[`([\w-]+)`\]", overview, re.MULTILINE) == list(catalog.ENGINES)
    assert {page.stem for page in ENGINES} == {*catalog.ENGINES, "README"}


@pytest.mark.parametrize("name", catalog.ENGINES)
def test_the_page_of_an_engine_says_what_it_offers_and_which_methods_it_runs(name):
    table = table_of(DOCS / f"engines/{name}.md")
    assert set(re.findall(r"`([\w-]+)`", table["offers"])) == catalog.offers(name)
    methods = re.findall(r"`([\w-]+)`", table["methods"])
    pairs = [pair for method in catalog.METHODS if (pair := f"{method}@{name}") in catalog.implementations()]
    assert [f"{method}@{name}" for method in methods] == pairs


@pytest.mark.parametrize("name", catalog.ENGINES)
def test_the_page_of_an_engine_says_what_it_does_on_a_cpu(name):
    engine, cpu = catalog.load_engine(name), torch.device("cpu")
    forward, backward = (
        [kind for kind in FORMATS if engine.unsupported(cpu, getattr(torch, kind), 64, backward=b) is None]
        for b in (False, True)
    )
    said = table_of(DOCS / f"engines/{name}.md")["on a CPU"]
    assert ("never timed" in said) == (engine.untimed(cpu) is not None and bool(forward))
    said = said.removesuffix("; verified, never timed")
    if not forward:
        assert said == "no"
    elif forward == backward:
        assert said == f"forward and backward in {', '.join(forward)}"
    else:
        assert backward == []
        assert said == f"forward in {', '.join(forward)}; no backward"


def test_the_reference_of_commands_has_every_command_and_flag(generators):
    made = generators[0].commands()
    for text in ("## run", "### static explain", "`--processes N`", "`--own-environment", "bsa-bench gate [OPTIONS]"):
        assert text in made


def test_the_reference_of_suites_has_every_key_with_its_limits(generators):
    made = generators[1].suite_keys()
    options = catalog.options_by_method()
    for model in (Part, Workload, InputSpec, *options.values()):
        for key in model.model_fields:
            assert f"| `{key}` |" in made or key in {"workload", "input", "axes", "zip", "sha256"}
    assert all(f"## `[{method}]`" in made for method in options)
    assert "| `batch` | integer, above 0 and at most 65,536 | `1` |" in made
    assert "| `kv_density` | number, above 0 and at most 1 | `0.1` |" in made
    assert "| `vae` | 3 of: integer, above 0 and at most 1,024 | `[4, 8, 8]` |" in made


def test_the_reference_of_results_has_every_field_and_what_its_docstring_says(generators):
    made = generators[1].results()
    models = [each for each in vars(result).values() if isinstance(each, type) and issubclass(each, result.Line)]
    for model in models:
        for key in model.model_fields if model is not result.Line else ():
            assert f"| `{key}` |" in made, (model, key)
    assert "| `first_call_s` | number, at least 0 | the first call of the pass in its process" in made
    assert "| `attend_select` | list of number, at least 0 or null | the sums of those phases" in made
    assert "| `status` | `OK`, `WRONG`" in made
    assert "| `speedup_whole`" in made or "| `speedup" in made


def test_the_guide_to_captured_tensors_writes_a_file_that_its_suite_measures(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from bsa_bench.inputs import make_qkv
    from bsa_bench.suite import load_suite

    text = (DOCS / "captured.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (suite,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("captured.toml").write_text(suite)
    space: dict = {}
    exec(compile(code, "docs/captured.md", "exec"), space)
    workload = load_suite("captured.toml", device_kind="cpu").cases()[0].workload
    found = make_qkv(workload, device="cpu").tensors
    assert workload.token_grid == (4, 8, 12)

    # The same layer's output from what was captured: Wan's own attention without its last projection.
    model, seen = space["model"], []
    hook = model.blocks[0].attn1.to_out[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(space["latents"], space["step"], space["text"])
    hook.remove()
    attended = torch.nn.functional.scaled_dot_product_attention(found["q"], found["k"], found["v"])
    torch.testing.assert_close(attended.transpose(1, 2).flatten(2), seen[0])
    assert not any(isinstance(each, space["Capture"]) for each in model.attn_processors.values())
