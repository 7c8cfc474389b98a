"""What MkDocs calls while it builds the site: generated references, and links that lead out of docs/.

What stands between `<!-- generated: commands -->` and `<!-- end -->` is replaced by what the program says of itself.

The Markdown files are written for readers of the repository, so they link to sources (`../bsa_bench/contract.py`) and
to the README. In the site a source is a page of its own, under `source/`, and the README is the home page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import command_line
import schemas
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
GENERATED = {"commands": command_line.commands, "suite_keys": schemas.suite_keys, "results": schemas.results}
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml"}
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(r"^<!-- generated: (\w+) -->\n.*?^<!-- end -->$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each source that a page links to."""
    for file in list(files.documentation_pages()):
        for target in _outside(file.src_uri, file.content_string):
            for uri, content in _copies(target):
                if uri not in files.src_uris:
                    files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Fill the generated references, and lead links to sources to their pages."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def lead(match: re.Match[str]) -> str:
        target = _target(uri, match[1])
        return match[1] if target is None else posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".")

    markdown = _MARKER.sub(lambda match: GENERATED[match[1]](), markdown)
    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(lead, part) for part in parts)


def _outside(uri: str, markdown: str) -> list[str]:
    prose = "".join(part for part in _FENCE.split(markdown) if not part.startswith("```"))
    found = (_target(uri, link) for link in _LINK.findall(prose))
    return [target for target in dict.fromkeys(found) if target is not None]


def _target(uri: str, link: str) -> str | None:
    """The path in the repository that a link leads to, if that is a source or lies outside of docs/."""
    if "://" in link or link.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), link))
    is_ours = path.startswith("docs/") and Path(path).suffix not in LANGUAGES
    return path if (ROOT / path).is_file() and not is_ours else None


def _uri(target: str) -> str:
    """Where the site has a file of the repository."""
    if target == "README.md":
        return "index.md"
    shown = target.replace("/.", "/").lstrip(".")  # MkDocs leaves out names that begin with a dot
    return f"source/{shown}" if shown.endswith(".md") else f"source/{shown}.md"


def _copies(target: str) -> list[tuple[str, str | bytes]]:
    """What the site has of it: a page; and of a report the pictures too."""
    path, uri = ROOT / target, _uri(target)
    if uri == "index.md":
        return []
    if path.suffix != ".md":
        language = LANGUAGES[path.suffix]
        text = path.read_text(encoding="utf-8")
        return [(uri, f"# {path.name}\n\n`{target}`\n\n````{language}\n{text}````\n")]
    pictures = [each for each in sorted(path.parent.iterdir()) if each.suffix in {".png", ".svg", ".csv"}]
    folder = posixpath.dirname(uri)
    return [(uri, path.read_text(encoding="utf-8")), *((f"{folder}/{p.name}", p.read_bytes()) for p in pictures)]
