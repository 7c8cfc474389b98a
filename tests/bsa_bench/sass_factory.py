"""Listings as nvdisasm writes them, from the few lines that a test is about."""

from pathlib import Path

from bsa_bench.static.flow import read_flow
from bsa_bench.static.sass import read_sass

DATA = Path(__file__).parent / "data_static"


def listing(body, *, kernel="kernel", target="sm_90a"):
    """A kernel's section. Lines that are labels or comments stay; the others become instructions 16 bytes apart."""
    lines = [f"\t.target\t{target}", "", f'\t.section\t.text.{kernel},"ax",@progbits', f".text.{kernel}:"]
    address = 0
    for line in map(str.strip, body.strip().splitlines()):
        if line.endswith(":") or line.startswith("//"):
            lines.append(line)
            continue
        guard, _, text = line.rpartition("@")[2].partition(" ") if line.startswith("@") else ("", "", line)
        lines.append(f"        /*{address:04x}*/ {'@' + guard if guard else '':>18} {text} ;")
        address += 16
    return "\n".join(lines) + "\n"


def sass_of(body):
    return read_sass(listing(body), "kernel")


def flow_of(body):
    return read_flow(sass_of(body))


def instructions_of(body):
    return sass_of(body).instructions


def instruction(text):
    (only,) = instructions_of(text)
    return only


def stored(name, kernel="nested"):
    """A trimmed listing of a real kernel and its flow."""
    sass = read_sass((DATA / name).read_text(), kernel)
    return sass, read_flow(sass)
