"""Which functions of a source file Triton compiles: their bodies run on a device, all else of the file on the host."""

from __future__ import annotations

import ast
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Jitted:
    """What Triton compiles of a function.

    Attributes:
        body: as text that comments and layout do not move.
        uses: module and name of what the body names: functions of its own module, and what that imports.
    """

    body: str
    uses: frozenset[tuple[str, str]]


def jitted_code(tree: ast.Module, module: str) -> dict[str, Jitted]:
    """The jitted functions of a file by name; of several of one name, all of them in a row.

    Args:
        tree: of a whole file, without docstrings.
        module: its dotted name.
    """
    origins = {name: origin.rpartition(".") for name, origin in _origins(tree).items()}
    functions = jitted_functions(tree)
    places = {name: (path, own) for name, (path, _, own) in origins.items()}
    places |= {function.name: (module, function.name) for function in functions}
    found: dict[str, Jitted] = {}
    for function in functions:
        nodes = [node for statement in function.body for node in ast.walk(statement)]
        names = [node for node in nodes if isinstance(node, ast.Name)]
        own = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        own |= {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
        uses = frozenset(places[node.id] for node in names if node.id in places and node.id not in own)
        earlier = found.get(function.name, Jitted("", frozenset()))
        body = "".join(ast.dump(statement) for statement in function.body)
        found[function.name] = Jitted(earlier.body + body, earlier.uses | uses)
    return found


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
