"""Suites as nobody would write them: mutations of the text of real ones, and of their values.

    python tests/bsa_bench/fuzz_suites.py 50000 [SEED]

Each is loaded for both kinds of device, and what is accepted is named and predicted, as `--dry-run` does. A suite is
either accepted or refused by a SuiteError; anything else, or one that takes long, is printed with its number. One of
them again: give its number as the seed, and 1 as how many.
"""

import json
import random
import resource
import sys
import tempfile
import time
import tomllib
from collections import Counter
from datetime import date, datetime
from datetime import time as day_time
from importlib import resources
from pathlib import Path

from bsa_bench.catalog import unsupported_case
from bsa_bench.errors import SuiteError
from bsa_bench.report.labels import Labels
from bsa_bench.run import DeviceModel, plan_run
from bsa_bench.suite import load_suite, override
from bsa_bench.suite.override import keys
from bsa_bench.suite.settings import settings_of

SLOW_S = 10.0
DEVICE = DeviceModel("cpu", flop_per_s=1e12, bytes_per_s=1e11, memory_bytes=8 << 30)
SMALL = """
title = "Small"
description = "\\u00fc \\u4e2d"
profile = "quick"
processes = 2
implementations = ["full@sdpa-flash", "bsa@gather", "vsa@gather", "vmoba@gather", "swa@gather", "bitstopper@simulator"]
passes = ["forward", "backward"]
time_limit_s = 60
budget_s = 100.5
order = "listed"

[workload]
heads = 3
head_dim = 64
dtype = "auto"
vae = [4, 8, 8]

[input]
kind = "gaussian"
seed = 3

[bsa]
block = [4, 4, 4]
query_keep = 0.5

[vmoba]
select = "topk"
kv_density = 0.25

[axes]
tokens = [1024, 4099]
bsa.kv_density = {start = 0.1, stop = 0.3, num = 3, scale = "log2"}

[[zip]]
batch = [1, 2]
swa.window = [64, 128]

[[variant]]
name = "one"
kv_density = 0.2
when = {tokens = 1024}
paper = {speedup = 2.5, standing = "P", source = "somewhere"}

[[variant]]
name = "two"
fill = "zero"
implementations = ["bsa@gather"]

[limit."full@*"]
max_tokens = 4096
reason = "slow"

[cuda.axes]
tokens = {start = 64, stop = 128, step = 64}

[cpu.workload]
heads = 2
"""
PLAIN = 'title = "T"\nimplementations = ["full@sdpa-flash", "bsa@gather"]\n[workload]\ngrid = [4, 8, 8]\n'
CLIP = (
    'title = "T"\nimplementations = ["full@sdpa-flash", "moba@gather"]\npasses = ["forward"]\n[input]\nkind = "video"\n'
    'path = "x.mp4"\n[axes]\nframes = [5, 9]\nheight = [64]\nwidth = [128]\n'
)
LETTERS = "aZ0 _-.,=[]{}'\"#\n\\@:+*/~%\t\0\x1b\x7f\u00e9\u4e2d\U0001f600\u202e\ufeff\u2028"


def bases():
    """Texts to begin with: the three above, and the shorter ones of the built-in suites."""
    built_in = [file.read_text(encoding="utf-8") for file in resources.files("bsa_suites").iterdir()
                if file.name.endswith(".toml")]  # fmt: skip
    return [SMALL] * 6 + [PLAIN, CLIP] * 2 + sorted(text for text in built_in if len(text) < 3000)


def any_number(rng):
    size = rng.choice([1, 2, 5, 10, 20, 40, 310, 400])
    whole = rng.choice([0, 1, -1, 2, 3, 7, 64, 1024, 4096, 65_536, 65_537, (1 << 30), (1 << 30) + 1, (1 << 31) - 1])
    big = rng.randrange(10**size) * rng.choice([1, 1, -1])
    real = rng.choice([0.0, -0.0, 0.5, 1.0, 1e-320, 5e-324, 1e-9, 1e9, 1e300, 1.7e308, float("inf"), float("nan")])
    return rng.choice([whole, whole, big, real, rng.random(), rng.choice([31_536_000, 31_536_001, 1000, 1001, 2**63])])


def any_text(rng, words):
    made = "".join(rng.choices(LETTERS, k=rng.choice([0, 1, 3, 12, 80])))
    paths = ["~nouser/x", "/dev/zero", "/", "x" * 5000, "../" * 40, "a\0b", "none", "auto", "-", "clip.mp4"]
    return rng.choice(
        [rng.choice(words), made, rng.choice(paths), rng.choice(words) + made, "x" * rng.choice([300, 9000])]
    )


def any_value(rng, words, depth=0):
    """A value of any type that TOML has, nested or not."""
    kind = rng.randrange(9 if depth < 3 else 5)
    if kind <= 1:
        return any_number(rng)
    if kind == 2:
        return any_text(rng, words)
    if kind == 3:
        return rng.choice([True, False, date(2026, 1, 2), day_time(1, 2), datetime.fromisoformat("2026-01-02")])
    if kind == 4:
        return rng.choice([[], {}, [[]], [{}], [1, "a", True], [4, 4, 4], [1 << 30] * 3, [0, 1, 1]])
    if kind == 5:
        return [any_value(rng, words, depth + 1) for _ in range(rng.choice([1, 2, 3, 3, 50]))]
    if kind == 6:
        return {rng.choice(words): any_value(rng, words, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 7:
        value = any_number(rng)
        for _ in range(rng.choice([2, 10, 90, 150])):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    start, stop = sorted((rng.choice([0, 1, 64, -5, 0.1]), rng.choice([1, 128, 10_000, 1e9, 0.5])))
    step = {"step": any_number(rng)} if rng.random() < 0.5 else {"num": any_number(rng)}
    return {"start": start, "stop": stop, **step} | ({"scale": "log2"} if rng.random() < 0.3 else {})


def near(rng, value, words):
    """A value much like this one, which is often accepted."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, max(value - 1, 1), value * 2, value * 1000, value // 3, value * 10**9])
    if isinstance(value, float):
        return value * rng.choice([0.1, 0.9, 1.1, 1e-6, 1e-300])
    if isinstance(value, list):
        return [near(rng, each, words) if rng.random() < 0.5 else each for each in value] + value[: rng.randrange(2)]
    if isinstance(value, dict):
        return {key: near(rng, each, words) if rng.random() < 0.5 else each for key, each in value.items()}
    return rng.choice(
        [rng.choice(words), "forward+backward", "bsa@gather", "moba@flex", "float64", "gaussian", str(value)]
    )


def places(value, path=()):
    """Every place in nested tables and lists."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def change_value(rng, document, words):
    """Replace, remove, repeat, rename or add something, somewhere."""
    path = rng.choice([place for place in places(document) if place])
    holder = document
    for step in path[:-1]:
        holder = holder[step]
    key, what = path[-1], rng.randrange(9)
    if what >= 6:
        holder[key] = near(rng, holder[key], words)
    elif what <= 2:
        holder[key] = any_value(rng, words)
    elif what == 3:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, rng.choice([holder[key], any_value(rng, words)]))
    elif what == 4:
        holder[rng.choice([rng.choice(words), f"{key}s", key.upper(), any_text(rng, words)])] = holder.pop(key)
    else:
        holder[rng.choice(words)] = any_value(rng, words)


def to_toml(value):
    """A value as TOML has it, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(str(key))} = {to_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def change_text(rng, text):
    """Remove, repeat, move, insert or exchange a piece of it."""
    start = rng.randrange(len(text) + 1)
    stop = min(len(text), start + rng.choice([1, 1, 2, 5, 20, 100]))
    piece = text[start:stop]
    what = rng.randrange(7)
    if what == 0:
        return text[:start] + text[stop:]
    if what == 1:
        return text[:start] + piece * rng.choice([2, 3, 200]) + text[stop:]
    if what == 2:
        lines = text.split("\n")
        rng.shuffle(lines)
        return "\n".join(lines)
    if what == 3:
        return text[:start] + "".join(rng.choices(LETTERS, k=rng.choice([1, 3]))) + text[start:]
    if what == 4:
        return (
            text[:start]
            + rng.choice(["9" * 40, "9" * 5000, "[" * 3000, "{a=" * 2000, "1e999", "0x1f", "inf"])
            + text[stop:]
        )
    if what == 5:
        other = rng.randrange(len(text) + 1)
        return text[:start] + text[stop:] + text[other : other + 50]
    return text[:start] + "".join(rng.sample(piece, len(piece))) + text[stop:]


def mutated(seed, texts=(), words=()):
    """The suite of a seed, as bytes; most have one change, some a few."""
    rng = random.Random(seed)
    text = rng.choice(texts or bases())
    words = words or sorted(
        {*keys(), "cpu", "cuda", "workload", "input", "bsa", "axes", "zip", "variant", "limit", "when"}
    )
    if rng.random() < 0.6:
        document = tomllib.loads(text)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            if document:
                change_value(rng, document, words)
        return "".join(f"{to_toml(key)} = {to_toml(value)}\n" for key, value in document.items()).encode(
            errors="replace"
        )
    for _ in range(rng.choice([1, 1, 2, 6])):
        text = change_text(rng, text)
    content = bytearray(text.encode())
    if content and rng.random() < 0.2:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def verdict(file):
    """What becomes of a suite: `accepted`, or `refused` by a SuiteError that says why."""
    outcomes = set()
    for kind in ("cpu", "cuda"):
        try:
            suite = load_suite(str(file), device_kind=kind)
        except SuiteError as error:
            outcomes.add("refused" if str(error).strip() else "refused without a word")
            continue
        cases = suite.cases()[:200]
        plan_run(cases, device=DEVICE, unavailable=unsupported_case)
        labels = Labels(cases)
        assert all(labels.of(case) and case.case_id for case in cases)
        again = override(suite, [*settings_of(cases[0]), "limit=off"])
        assert again.cases()
        outcomes.add("accepted")
    return min(outcomes)


def fuzz(number, first, folder):
    """Try so many; returns how many were accepted and refused, and what else happened, by number."""
    texts, words = bases(), None
    counts, troubles = Counter(), {}
    file = Path(folder) / "fuzz.toml"
    for seed in range(first, first + number):
        file.write_bytes(mutated(seed, texts, words))
        started = time.process_time()
        try:
            counts[verdict(file)] += 1
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
            counts["trouble"] += 1
            troubles[seed] = f"{type(error).__name__}: {error}"[:300]
        if (seconds := time.process_time() - started) > SLOW_S:
            troubles[seed] = f"took {seconds:.1f} s"
    return counts, troubles


def tell(counts, troubles):
    """Print what a fuzzer found."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    lines = [f"{dict(counts)}, peak {peak} MiB", *(f"{number} {what}" for number, what in troubles.items())]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        found, wrong = fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, where)
    tell(found, wrong)
