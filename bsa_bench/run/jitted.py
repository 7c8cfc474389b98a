"""Which functions of a source file Triton compiles: their bodies run on a device, all else of the file on the host."""

from __future__ import annotations

import ast

_DECORATORS = frozenset({"triton.jit", "triton.runtime.jit.jit", "triton.experimental.gluon.jit"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


def jitted_functions(tree: ast.Module) -> list[Function]:
    """The functions decorated with `triton.jit` or `gluon.jit`, by whatever name the file imports them.

    A name that the file binds anew may be anything, so that what it decorates is not among them.

    Args:
        tree: of a whole file.
    """
    origins = _origins(tree)
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, Function) and any(_name(each, origins) in _DECORATORS for each in node.decorator_list)
    ]


def _origins(tree: ast.Module) -> dict[str, str]:
    """What imported names stand for, as dotted paths."""
    found: dict[str, str] = {}
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, Function | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return {name: origin for name, origin in found.items() if name not in bound}


def _name(decorator: ast.expr, origins: dict[str, str]) -> str | None:
    """The dotted path of a decorator, with or without arguments; None where it is no name."""
    node = decorator.func if isinstance(decorator, ast.Call) else decorator
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in origins:
        return None
    return ".".join([origins[node.id], *reversed(parts)])
