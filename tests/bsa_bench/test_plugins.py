"""Broken packages of other people: each a line of `doctor`, and everything else runs."""

import json
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest
import torch
from cli_factory import command, needs_no_gpu

from bsa_bench import catalog, plugins
from bsa_bench.errors import UsageError
from bsa_bench.suite import load_suite

MODULES = {
    "plugs/__init__.py": "",
    "plugs/raises.py": "raise RuntimeError('no licence \\x1b[2J for this machine')",
    "plugs/exits.py": "import sys\nsys.exit('needs a GPU')",
    "plugs/quits.py": "raise SystemExit",
    "plugs/hangs.py": "import time\nwhile True: time.sleep(0.1)",
    "plugs/slow.py": "import time\ntime.sleep(0.2)\nfrom plugs.good import ENGINE",
    "plugs/prints.py": "print('welcome to prints'); print('no end of line', end='')\nfrom plugs.good import ENGINE",
    "plugs/types.py": "WORDS = {'offers': 1}\nNOTHING = None\nclass Engine: pass\nPLAIN = Engine()",
    "plugs/syntax.py": "def x(:",
    "plugs/recursion.py": "def f(): f()\nf()",
    "plugs/good.py": """
        from bsa_bench.engines.dense import SDPA_MATH
        class Good:
            offers = frozenset({"dense"})
            expected_ops = ()
            name = "good"
            def version(self): return "1"
            def unsupported(self, device, dtype, head_dim, *, backward): return None
            def untimed(self, device): return None
            def executed_flop(self, contract, state, which): return None
            def dense(self, q, k, v, *, scale, causal=False): return SDPA_MATH.dense(q, k, v, scale=scale)
        class Asked(Good):
            def unsupported(self, device, dtype, head_dim, *, backward): raise ValueError("who asks?")
        class Exits(Good):
            def unsupported(self, device, dtype, head_dim, *, backward): raise SystemExit(3)
        class Text(Good):
            offers = "dense"
        class Printing(Good):
            def unsupported(self, device, dtype, head_dim, *, backward): print("I was asked", end="")
        ENGINE, ASKED, EXITS, TEXT, PRINTING = Good(), Asked(), Exits(), Text(), Printing()
    """,
    "plugs/methods.py": """
        from typing import Any
        from pydantic import BaseModel
        from bsa_bench.contract import MethodOptions
        from bsa_bench.methods.full import Full
        class Named(MethodOptions):
            name: str = "x"
        class Needed(MethodOptions):
            level: int
        class Plain(BaseModel):
            level: int = 1
        class Odd(MethodOptions):
            model_config = {"arbitrary_types_allowed": True, "frozen": True}
            thing: "object" = None
        class Method(Full):
            Options = MethodOptions
            def claims(self, options): return "I am fast"
        def of(options):
            method = Full.__new__(Full)
            method.__dict__.update(vars(__import__("bsa_bench.methods.full").methods.full.FULL), Options=options)
            return method
        NAMED, NEEDED, PLAIN = of(Named), of(Needed), of(Plain)
        CLAIMS = Method("claims", causal=False)
    """,
}
ENGINES = {
    "good": ("plugs.good:ENGINE", None),
    "raises": ("plugs.raises:X", r"cannot be loaded: RuntimeError: no licence \x1b[2J for this machine"),
    "exits": ("plugs.exits:X", "cannot be loaded: SystemExit: needs a GPU"),
    "quits": ("plugs.quits:X", "cannot be loaded: SystemExit: "),
    "missing": ("not_there.at_all:X", "cannot be loaded: ModuleNotFoundError: No module named 'not_there'"),
    "attribute": ("plugs.good:NOTHING", "cannot be loaded: AttributeError: "),
    "syntax": ("plugs.syntax:X", "cannot be loaded: SyntaxError: "),
    "recursion": ("plugs.recursion:X", "cannot be loaded: RecursionError: "),
    "words": ("plugs.types:WORDS", "is of the type dict, which lacks offers, unsupported; expected an engine"),
    "nothing": ("plugs.types:NOTHING", "is of the type NoneType, which lacks offers, unsupported"),
    "class": ("plugs.types:Engine", "is a class, expected an object"),
    "plain": ("plugs.types:PLAIN", "is of the type Engine, which lacks offers, unsupported"),
    "text": ("plugs.good:TEXT", "offers 'dense', expected texts such as {'dense'}"),
    "Bad Name": ("plugs.good:ENGINE", "is registered as 'Bad Name', expected lower-case letters"),
    "gather": ("plugs.good:ENGINE", "is not used: the name is taken by another one"),
    "asked": ("plugs.good:ASKED", None),
    "asked-exits": ("plugs.good:EXITS", None),
    "printing": ("plugs.good:PRINTING", None),
    "prints": ("plugs.prints:ENGINE", None),
}
METHODS = {
    "named": ("plugs.methods:NAMED", "has an option 'name', which is a key of a variant in suites"),
    "needed": ("plugs.methods:NEEDED", "cannot be loaded: ValidationError: 1 validation error for Needed"),
    "model": ("plugs.methods:PLAIN", "expected a subclass of bsa_bench.contract.MethodOptions"),
    "claims": ("plugs.methods:CLAIMS", "claims 'I am fast', expected a bsa_bench.result.Claims"),
    "axes": ("plugs.methods:NAMED", "is registered as 'axes', expected lower-case letters, digits and hyphens, and no"),
    "dict": (
        "plugs.types:WORDS",
        "is of the type dict, which lacks Options, needs, claims, unsupported, expected, oper",
    ),
}
GROUPS = {plugins.ENGINES_GROUP: ENGINES, plugins.METHODS_GROUP: METHODS}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of packages with all of that registered."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    info = folder / "plugs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugs\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in GROUPS.items()
        for line in (f"[{group}]", *(f"{n} = {w}" for n, (w, _) in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def registered(site, monkeypatch):
    """All of that registered in this process."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(plugins, "_CACHE", {})
    entries = {
        group: [EntryPoint(name, where, group) for name, (where, _) in all_.items()] for group, all_ in GROUPS.items()
    }
    monkeypatch.setattr(catalog, "entry_points", lambda group: entries[group])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugs"]:
        del sys.modules[name]


@pytest.mark.usefixtures("registered")
def test_each_is_named_with_what_is_wrong_and_the_good_ones_are_found(capsys):
    found = {(each.group, each.name): each for each in catalog.plugins()}
    for group, entries in GROUPS.items():
        for name, (where, fault) in entries.items():
            each = found[group, name]
            assert (fault or "") in (each.reason or ""), name
            assert (each.reason is None) == (fault is None), (name, each.reason)
            assert each.remark is None or (where in each.remark and len(each.remark) < 600), name
    assert {"full@good", "full@prints", "full@asked", "bsa@gather"} <= set(catalog.implementations())
    assert not {"full@raises", "full@words", "full@Bad Name"} & set(catalog.implementations())
    assert type(catalog.load_engine("gather")).__module__.startswith("bsa_bench.")
    assert "welcome to prints" not in capsys.readouterr().out
    assert load_suite("quick", device_kind="cpu").cases()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["full@raises", "full@missing", "named@gather"])
def test_who_asks_for_a_broken_one_is_told_why(name):
    with pytest.raises(
        UsageError, match=r"entry point '\w+' of bsa_bench\.\w+: plugs|not_there.*; mend or uninstall that package"
    ):
        catalog.check_implementations([name])


@pytest.mark.usefixtures("registered")
def test_an_engine_that_raises_or_exits_when_it_is_asked_says_no():
    here = (torch.device("cpu"), torch.float32, 64)
    assert catalog.unsupported("full@asked", *here, backward=False) == (
        "asked of another package raised ValueError when it was asked: who asks?"
    )
    assert "raised SystemExit" in catalog.unsupported("full@asked-exits", *here, backward=False)
    assert "cannot be loaded" in catalog.unsupported("full@raises", *here, backward=False)
    assert catalog.unsupported("full@good", *here, backward=False) is None


@pytest.mark.usefixtures("registered")
def test_an_import_that_never_ends_is_ended_and_a_slow_one_remarked_on(monkeypatch):
    monkeypatch.setattr(plugins, "LIMIT_S", 0.5)
    monkeypatch.setattr(plugins, "SLOW_S", 0.15)
    entries = [EntryPoint(name, f"plugs.{name}:ENGINE", plugins.ENGINES_GROUP) for name in ("hangs", "slow")]
    hanging, slow = plugins.load_plugins(entries, plugins.ENGINES_GROUP, {})
    assert hanging.reason == "cannot be loaded: TimeoutError: it was not imported within 0 s"
    assert slow.reason is None
    assert slow.remark.startswith("plugs.slow:ENGINE takes 0.")


@pytest.mark.slow
@needs_no_gpu
def test_doctor_has_a_line_for_each_and_a_run_goes_on(site, folder):
    path = [str(site), *sys.path]
    done = command("doctor", cwd=folder, path=path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for group, entries in GROUPS.items():
        for name, (_, fault) in entries.items():
            # The first that imports torch takes long, and that is said.
            words = ("no ",) if fault else ("yes", "?  ")
            assert any(f"  {word}  {group} {name}" in done.stdout for word in words), name
    assert "  yes  bsa@gather\n" in done.stdout
    assert "  yes  full@printing\n" in done.stdout
    assert "asked of another package raised ValueError when it was asked: who asks?" in done.stdout
    assert "\x1b" not in done.stdout
    suite = (folder / "tiny.toml").read_text().replace("full@sdpa-cudnn", "full@good")
    (folder / "tiny.toml").write_text(suite)
    run = ("run", "--suite", "tiny.toml", "--threads", "1", "--no-report", "--json", "--device", "cpu")
    done = command(*run, cwd=folder, path=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {"OK": 3}


@pytest.mark.usefixtures("registered")
def test_who_needs_one_loads_that_one_alone():
    assert catalog.load_engine("good").version() == "1"
    assert not {"plugs.slow", "plugs.prints", "plugs.types"} & sys.modules.keys()
