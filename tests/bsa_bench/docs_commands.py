"""The commands of the guides: what stands in fenced blocks, as a shell would read it."""

import re
import shlex
from pathlib import Path

from markdown_it import MarkdownIt
from typer.main import get_command

from bsa_bench.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_ENDS = {"|", "||", "&&", ";", ">", ">>", "2>", "<", "&"}
#: Words that a page has in place of one of several; optional parts in brackets are taken.
_STANDS_FOR = {"FORMAT": "pytest-benchmark", "NAME": "main", "PASS": "forward"}
#: Blocks of these hold output, code or files, in which the program's name begins no command.
_NO_SHELL = {"python", "toml", "text", "json", "markdown", "latex", "csv"}


def fences(text):
    return [(token.info.strip(), token.content) for token in MarkdownIt().parse(text) if token.type == "fence"]


def commands(text):
    """The arguments of each `bsa-bench` in a Markdown text."""
    for language, content in fences(text):
        if language not in _NO_SHELL:
            joined = re.sub(r"\\\n\s*", " ", content)
            if language == "yaml":
                joined = re.sub(r"run: >\n((?:\s{8,}.*\n)+)", lambda m: "run: " + " ".join(m[1].split()) + "\n", joined)
            for line in joined.splitlines():
                yield from _of_line(line.replace("${{", "$").replace("}}", ""))


def _of_line(line):
    start = re.search(r"(?:^|[$\]] |&& |\w=\S+ |run: |^\s+)(bsa-bench|python -m bsa_bench) ", line + " ")
    if start is None:
        return
    shown = re.sub(r"\[(-[^\]]*|[A-Z]+)\](\.\.\.)?", r"\1", line[start.start(1) :])
    lexer = shlex.shlex(shown, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in _ENDS:
            break
        words.append(_STANDS_FOR.get(word, word))
    yield words[3:] if words[0] == "python" else words[1:]


def parser():
    """The command line with commands that do nothing: it reads arguments, and refuses wrong ones."""
    top = get_command(app)
    _silence(top)
    return top


def _silence(command):
    for each in getattr(command, "commands", {}).values():
        _silence(each)
        each.callback = lambda **_: None


def parse(words):
    """Read the arguments, or raise what a wrong flag raises."""
    parser().main(args=words, prog_name="bsa-bench", standalone_mode=False)
