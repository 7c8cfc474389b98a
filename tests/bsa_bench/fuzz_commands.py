"""Command lines as nobody would type them: random verbs, flags, values and orders, in this process.

    python tests/bsa_bench/fuzz_commands.py 5000 [SEED]

The parser's own list of verbs and flags says what there is. A command goes on until it would start a process, which
ends it here; `run` is answered by a made-up probe, and its cases go no further. Whatever is no exit code of ours is
printed with its number: a traceback, or a command that takes long.
"""

import contextlib
import inspect
import io
import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args, get_origin
from unittest import mock

import typer
from cli_factory import TINY
from fuzz_suites import tell
from run_factory import Bench, case, environment

from bsa_bench.cli import app as app_module
from bsa_bench.cli import main, run_command
from bsa_bench.errors import EXIT_CODES
from bsa_bench.report import style
from bsa_bench.result import Status
from bsa_bench.run import probe as probe_module
from bsa_bench.suite.override import keys
from bsa_bench.suite.settings import settings_of

SLOW_S = 20
NOT_RUN = {"bisect-step"}
TEXTS = (
    "", " ", "-", "--", "=", "0", "1", "-1", "64", "1e9", "nan", "inf", "9" * 30, "9" * 5000, "x" * 300, "x" * 5000,
    "a/b", "../..", "~nouser/x", "~", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/nope/x", "/", ".",
    "pipe", "loop", "endless", "folder", "text", "empty", "binary", "gone", "tiny.toml", "video.mp4", "r", "wrong",
    "latest", "results", "a,b", "[", "[1", "{a=1}", "[[[[1]]]]", "a=b=c", "\u4e2d\u6587", "\x1b[2J", "a\nb", "\udcff",
    "%s{}", "*", "10s", "1h30m", "5%", "500%", "quick", "paper", "bsa@gather", "full@sdpa-flash", "full@*", "HEAD",
    "git:HEAD", "triton==0.0.1", "cpu", "cuda", "sm_90", "json", "md", "csv", "png,svg", "forward", "x.py:f", "none",
)  # fmt: skip


class Started(BaseException):
    """A process would be started."""


class Slow(BaseException):
    """It took too long."""


class Parameter(NamedTuple):
    """A flag or an argument of a verb, and what it takes."""

    names: tuple[str, ...]
    kinds: frozenset
    choices: tuple[str, ...]
    is_required: bool

    @property
    def is_flag(self):
        return self.names[0].startswith("-")


def verbs():
    """Every verb with its parameters, as its function declares them."""
    found = {(verb.name or verb.callback.__name__,): verb.callback for verb in app_module.app.registered_commands}
    for group in app_module.app.registered_groups:
        inner = group.typer_instance
        found[group.name,] = inner.registered_callback.callback
        found |= {(group.name, verb.callback.__name__): verb.callback for verb in inner.registered_commands}
    return {
        name: [
            _parameter(each) for each in inspect.signature(call, eval_str=True).parameters.values() if _is_given(each)
        ]
        for name, call in found.items()
        if not set(name) & NOT_RUN
    }


def _is_given(parameter):
    return get_origin(parameter.annotation) is Annotated


def _parameter(parameter):
    declared, about = get_args(parameter.annotation)
    parts = [declared, *get_args(declared)]
    choices = [each for part in parts if get_origin(part) is Literal for each in get_args(part)]
    is_argument = isinstance(about, typer.models.ArgumentInfo)
    names = (parameter.name,) if is_argument else about.param_decls or (f"--{parameter.name.replace('_', '-')}",)
    names = tuple(itertools.chain.from_iterable(name.split("/") for name in names))
    kinds = frozenset(part for part in parts if isinstance(part, type)) | {get_origin(part) for part in parts}
    return Parameter(names, kinds, tuple(choices), parameter.default is inspect.Parameter.empty)


def any_value(rng, about=None):
    """A text for a parameter; often one that its type takes."""
    if about and about.choices and rng.random() < 0.8:
        return rng.choice(about.choices)
    if about and int in about.kinds and rng.random() < 0.8:
        return str(rng.choice([0, 1, 2, 3, 64, 1000, 10**6, -1, 10**12]))
    return rng.choice(TEXTS)


def any_setting(rng):
    """An override, `key=values`."""
    key = rng.choice([*keys(), "implementation", "pass", "input", "size", "x"])
    value = ",".join(any_value(rng) for _ in range(rng.choice([1, 1, 2, 3])))
    good = rng.choice(settings_of(case("bsa@gather")))
    return rng.choice(
        [f"{key}={value}", f"{key}={rng.choice([1, 0.5, 128, '4x4x4', '[4, 4]', '{start=1,stop=9,num=3}'])}", good]
    )


def command_line(seed, known=None):
    """The arguments of a seed."""
    rng = random.Random(seed)
    known = known or verbs()
    if rng.random() < 0.03:
        return [any_value(rng) for _ in range(rng.randrange(4))]
    name, params = rng.choice(sorted(known.items()))
    parts = []
    for about in params:
        if not about.is_flag:
            given = rng.choice([0, 1, 1, 2]) if list in about.kinds else rng.random() < 0.95
            is_setting = about.names == ("overrides",)
            parts += [[any_setting(rng) if is_setting else any_value(rng, about)] for _ in range(given)]
        elif rng.random() < (0.9 if about.is_required else 0.15):
            flag = rng.choice(about.names)
            value = [] if bool in about.kinds else [any_value(rng, about)]
            parts.append(
                [f"{flag}={value[0]}"] if value and rng.random() < 0.3 and flag.startswith("--") else [flag, *value]
            )
    if name == ("run",) and rng.random() < 0.7:
        parts += [["--suite", rng.choice(["quick", "tiny.toml", "tiny.toml"])], ["--dry-run"]]
    if rng.random() < 0.1:
        parts.append([rng.choice(["--nothing", "-x", "--help", "--json", "--results", "--out"])])
    if rng.random() < 0.5:
        rng.shuffle(parts)
    return [*name, *itertools.chain.from_iterable(parts)]


def furnish(folder):
    """Files of all kinds to name, and stored runs."""
    (folder / "tiny.toml").write_text(TINY)
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere")
    (folder / "endless").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    (folder / "text").write_text("some text\n")
    (folder / "empty").write_text("")
    (folder / "binary").write_bytes(bytes(range(256)) * 20)
    (folder / "video.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(2000))
    cases = [case(), case("bsa@gather"), case("bsa@gather", passes="backward")]
    Bench(folder).run(cases, {cases[2]: Status.WRONG})
    wrong = folder / "results" / "wrong"
    wrong.mkdir()
    os.mkfifo(wrong / "results.jsonl")


def answered(questions, *, device=None, **_):
    """A probe of a CPU on which all can run."""
    kind = device or "cpu"
    if kind == "cuda":
        raise Started
    here = environment().model_copy(
        update={"cpu": {"threads": 1, "model": "m", "usable_cores": 1, "memory_bytes": 1 << 34}}
    )
    return probe_module.Probe(here, {tuple(question): None for question in questions[kind]})


def drawn(figure, folder, name, formats):
    """Lay a plot out, but render nothing."""
    figure.draw_without_rendering()
    return tuple(folder / f"{name}.{each}" for each in formats)


def started(*_, **__):
    raise Started


def ended(*_):
    raise Slow


@contextlib.contextmanager
def no_processes():
    """No process is started inside, and no plot rendered."""
    with contextlib.ExitStack() as stack:
        for where, name, instead in (
            (subprocess, "Popen", started),
            (run_command, "probe", answered),
            (run_command, "execute", started),
            (style, "save", drawn),
        ):
            stack.enter_context(mock.patch.object(where, name, instead))
        stack.enter_context(mock.patch.dict(os.environ, {"HOME": str(Path.cwd()), "COLUMNS": "100"}))
        yield


def verdict(arguments):
    """How a command line ends: its exit code, or that it would have started a process.

    Raises:
        AssertionError: by an exit code that is none of ours, or with a long error.
    """
    out, errors = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGALRM, ended)
    signal.alarm(SLOW_S)
    try:
        with (
            mock.patch.object(sys, "argv", ["bsa-bench", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            main()
    except SystemExit as end:
        code = end.code or 0
        assert code in EXIT_CODES.keys() - {1} or (code == 1 and "Traceback" not in errors.getvalue()), code
        assert len(errors.getvalue()) < 100_000, f"an error of {len(errors.getvalue()):,} letters"
        assert code in {0, 1} or errors.getvalue().strip(), f"{code} without a word"
        return f"exit {code}"
    except Started:
        return "would start a process"
    finally:
        signal.alarm(0)
    raise AssertionError("it came back")


def fuzz(number, first):
    """Try so many, in the working folder; returns how they ended, and what else happened, by number."""
    known = verbs()
    counts, troubles = Counter(), {}
    with no_processes():
        for seed in range(first, first + number):
            arguments = command_line(seed, known)
            begun = time.monotonic()
            try:
                counts[verdict(arguments)] += 1
            except (Exception, Slow) as error:  # noqa: BLE001  # whatever it is, it is what is looked for
                counts["trouble"] += 1
                typed = shlex.join(a if len(a) < 100 else f"{a[:20]}...{len(a)}" for a in arguments)
                troubles[seed] = (
                    f"{type(error).__name__}: {error}"[:300] + f"\n    {typed!r}, {time.monotonic() - begun:.1f} s"
                )
    return counts, troubles


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        os.chdir(where)
        furnish(Path(where))
        found, wrong = fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        os.chdir("/")
    tell(found, wrong)
