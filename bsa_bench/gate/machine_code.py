"""Whether two revisions run the same machine code, so that one of them need not be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bsa_bench.catalog import ENGINES, METHODS, options_of
from bsa_bench.errors import UsageError
from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.result import Case, Environment
from bsa_bench.run.jitted import Jitted
from bsa_bench.run.job import DeviceKind
from bsa_bench.run.sources import jitted_sources, sources_digest
from bsa_bench.static.compile import Compiled, Failure, Settings, Toolchain, compile_all, list_configs
from bsa_bench.static.config import ARCH_NAMES, ArchName, KernelConfig

_IN_TRITON = frozenset({"triton", "triton-tiled", "gluon"})
"""Engines that run jitted functions of `bsa_kernels`."""
_FORMATS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_HEAD_DIMS = frozenset({64, 128, 256})
_Function = tuple[str, str]
"""Module and name."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the shipped configurations are compiled for.

    Args:
        arch: of the device.
        dtype: as Triton writes it.
        tokens, heads: of the case, for configurations that depend on them.
        cache: where compiled code is kept.
    """

    arch: ArchName
    dtype: str
    tokens: int
    heads: int
    cache: Path


def runs_jitted(case: Case, device: DeviceKind) -> bool:
    """Whether a case may run jitted functions of `bsa_kernels` there; True for what is not known."""
    if device != "cpu":
        return True
    return case.method not in METHODS or case.base_engine not in ENGINES or case.base_engine in _IN_TRITON


def target_of(case: Case, environment: Environment, cache: Path) -> Target | None:
    """For what a case's kernels are compiled, if all of them are among the shipped configurations; else None.

    These are of BSA with its default blocks and rules on an even grid, in the standard form of the engines.
    """
    capability = environment.device_details.get("compute_capability")
    arch = next((arch for arch in ARCH_NAMES if f"{arch[3:-1]}.{arch[-1]}" == capability), None)
    workload = case.workload
    if arch is None or case.method != "bsa" or case.engine not in {"triton", "gluon"}:
        return None
    options = options_of(case)
    if not isinstance(options, BsaOptions) or options != BsaOptions(kv_density=options.kv_density):
        return None
    is_even = all(size % side == 0 for size, side in zip(workload.token_grid, options.block, strict=True))
    if not is_even or workload.head_dim not in _HEAD_DIMS or workload.dtype not in _FORMATS:
        return None
    dtype = _FORMATS[workload.dtype]
    return Target(arch=arch, dtype=dtype, tokens=workload.num_tokens, heads=workload.heads, cache=cache)


def host_digest(revision: Path) -> str:
    """The digest of the kernels' sources without the bodies of jitted functions.

    Args:
        revision: the top of its files.

    Raises:
        SyntaxError: a file does not parse.
    """
    return sources_digest(_package(revision), jitted_bodies=False)


def same_machine_code(one: Path, other: Path, target: Target) -> bool:
    """Whether all shipped configurations compile to the same instructions at two revisions of the same host code.

    False also where that cannot be told: a configuration does not compile, a revision declares none, or a jitted
    function that differs is part of none.

    Args:
        one, other: the tops of their files.
        target: what they are compiled for.

    Raises:
        StoreError: the cache cannot be written.
    """
    functions = [jitted_sources(_package(revision)) for revision in (one, other)]
    changed = {key for key, code in functions[0].items() if code != functions[1].get(key)}
    changed |= functions[1].keys() - functions[0].keys()
    try:
        listed = [_configurations(revision, target) for revision in (one, other)]
    except UsageError:
        return False
    if not listed[0] or listed[0] != listed[1]:
        return False
    if any(not changed <= _reached(listed[0], each) for each in functions):
        return False
    codes = [_code(revision, listed[0], target) for revision in (one, other)]
    return None not in codes and codes[0] == codes[1]


def _package(revision: Path) -> Path:
    return revision / "kernels" / "bsa_kernels"


def _toolchain(revision: Path) -> Toolchain:
    return Toolchain(label="this revision", first_paths=(revision, revision / "kernels"))


def _configurations(revision: Path, target: Target) -> list[KernelConfig]:
    shape = {"tokens": target.tokens, "heads": target.heads}
    found = list_configs("shipped", shape, [target.arch], dtype=target.dtype, toolchain=_toolchain(revision))
    return found[target.arch]


def _reached(configs: Sequence[KernelConfig], functions: Mapping[_Function, Jitted]) -> set[_Function]:
    """The jitted functions that are part of what is compiled: kernels, and what these use."""
    kernels = [each.kernel.rpartition(":") for each in configs]
    pending: list[_Function] = [(module, name) for module, _, name in kernels]
    found: set[_Function] = set()
    while pending:
        user = pending.pop()
        if user in functions and user not in found:
            found.add(user)
            pending += functions[user].uses
    return found


def _code(
    revision: Path, configs: Sequence[KernelConfig], target: Target
) -> list[tuple[str, int, int, int, int, int]] | None:
    """What each configuration compiles to: the instructions, and what a launch takes of an SM; None if one does not."""
    settings = replace(Settings(target.cache), toolchain=_toolchain(revision))
    done = compile_all([(config, target.arch) for config in configs], settings)
    if any(isinstance(each, Failure) for each in done):
        return None
    return [_figures(each) for each in done if isinstance(each, Compiled)]


def _figures(compiled: Compiled) -> tuple[str, int, int, int, int, int]:
    record = compiled.record
    lines = compiled.listing.splitlines()
    instructions = "\n".join(line for line in lines if not line.lstrip().startswith("//##"))
    return (
        instructions,
        record.registers,
        record.stack_bytes,
        record.shared_bytes,
        record.tensor_memory_columns,
        record.num_warps,
    )
