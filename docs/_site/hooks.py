"""What MkDocs calls while it builds the site: generated reference pages, and links that lead out of docs/.

The Markdown files are written for readers of the repository, so they link to sources (`../bsa_bench/contract.py`) and to
the README. In the site a source is a page of its own, under `source/`, and the README is the home page.
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
GENERATED = {
    "reference/command-line.md": command_line.page,
    "reference/suite-keys.md": schemas.suite_keys_page,
    "reference/results.md": schemas.results_page,
}
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml"}
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages, and one for each source that a page links to."""
    for uri, make in GENERATED.items():
        files.append(File.generated(config, uri, content=make()))
    for file in list(files.documentation_pages()):
        for target in _outside(file.src_uri, file.content_string):
            for uri, content in _copies(target):
                if uri not in files.src_uris:
                    files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead links to sources to their pages."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def lead(match: re.Match[str]) -> str:
        target = _target(uri, match[1])
        return match[1] if target is None else posixpath.relpath(_uri(target), posixpath.dirname(uri) or ".")

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
