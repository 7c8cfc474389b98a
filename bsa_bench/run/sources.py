"""Which code runs: digests of Python sources that comments, docstrings and layout do not move."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from bsa_bench.run.jitted import Function, Jitted, jitted_code, jitted_functions


def sources_digest(folder: str | Path, *, jitted_bodies: bool = True) -> str:
    """SHA-256 over all files of a package: Python as its syntax tree without docstrings, the rest byte by byte.

    Args:
        folder: the package's folder, or a single file of it; what Python caches is left out, extension modules are
            not.
        jitted_bodies: include the bodies of functions that Triton compiles; without them it is a digest of what runs on
            the host, signatures, decorators and defaults of these functions included.

    Raises:
        SyntaxError: a Python file does not parse.
    """
    root = Path(folder)
    whole = hashlib.sha256()
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_dir() or "__pycache__" in name.parts or path.suffix == ".pyc":
            continue
        content = path.read_bytes()
        if path.suffix == ".py":
            content = _code(content, path, jitted_bodies=jitted_bodies)
        whole.update(f"{name.as_posix()}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()


def jitted_sources(folder: str | Path) -> dict[tuple[str, str], Jitted]:
    """The functions of a package that Triton compiles, by the dotted name of the module and their own.

    Args:
        folder: the package's folder; its name is the first of the modules' names.

    Raises:
        SyntaxError: a Python file does not parse.
    """
    root = Path(folder)
    found: dict[tuple[str, str], Jitted] = {}
    for path in sorted(root.rglob("*.py")):
        module = ".".join((root.name, *path.relative_to(root).with_suffix("").parts))
        tree = ast.parse(path.read_bytes(), filename=str(path))
        _strip_prose(tree)
        found |= {(module, name): code for name, code in jitted_code(tree, module).items()}
    return found


def _code(source: bytes, path: Path, *, jitted_bodies: bool) -> bytes:
    tree = ast.parse(source, filename=str(path))
    _strip_prose(tree)
    for function in [] if jitted_bodies else jitted_functions(tree):
        function.body = []
    return ast.dump(tree).encode()


def _strip_prose(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            node.body = [
                statement
                for statement in node.body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ]
