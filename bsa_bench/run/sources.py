"""Which code runs: a digest of Python sources that comments, docstrings and layout do not move."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path


def sources_digest(folder: str | Path) -> str:
    """SHA-256 over all files of a package: Python as its syntax tree without docstrings, the rest byte by byte.

    Args:
        folder: the package's folder, or a single file of it; what Python caches is left out, extension modules are
            not.

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
            content = _without_prose(content, path)
        whole.update(f"{name.as_posix()}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()


def _without_prose(source: bytes, path: Path) -> bytes:
    tree = ast.parse(source, filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                statement
                for statement in node.body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ]
    return ast.dump(tree).encode()
