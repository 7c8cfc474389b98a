"""What is compiled, and the sides of a comparison: these sources, a git revision, another release of Triton."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from bsa_bench.errors import UsageError
from bsa_bench.static.compile import KernelSet, Settings, Workers, list_configs
from bsa_bench.static.config import ARCH_NAMES, ArchName, KernelConfig, check_kernel, load_configs, pick
from bsa_bench.static.toolchain import revision_sources, triton_toolchain

HERE = "."
"""The side of the sources as they are."""
_TRITON = "triton=="


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which kernels are compiled, for which architectures and which launch.

    Attributes:
        only: patterns of configuration names, such as `attend-*-d128*`; all without one.
        kernel_set: of the project's kernels, what calls compile to or the tiles that compete with that.
        config, kernel: a user's file of configurations instead, and the kernel that takes the place of the file's own.
        archs: to compile for.
        tokens, heads, kv_density, dtype: the launch that the project's kernels are compiled for.
    """

    only: Sequence[str] = ()
    kernel_set: KernelSet = "shipped"
    config: Path | None = None
    kernel: str | None = None
    archs: Sequence[ArchName] = ARCH_NAMES
    tokens: int = 153_600
    heads: int = 12
    kv_density: float = 0.1
    dtype: str = "bf16"


def is_toolchain(side: str) -> bool:
    """Whether a side is another release of Triton."""
    return side.startswith(_TRITON)


@contextlib.contextmanager
def open_side(side: str, choice: Choice, settings: Settings) -> Iterator[tuple[Choice, Settings]]:
    """Turn the name of a side into what is compiled and what compiles it, for as long as the context lasts.

    Args:
        side: `.`, `triton==VERSION` or a git revision of the repository that holds the working directory.
        choice: as asked for; files that it names are those of the revision.
        settings: as asked for.

    Raises:
        UsageError: there is no such revision or release, or the revision has no such file.
        StoreError: the release cannot be written to the cache.
    """
    if side == HERE:
        yield choice, settings
    elif is_toolchain(side):
        yield choice, replace(settings, toolchain=triton_toolchain(side.removeprefix(_TRITON), settings.cache))
    else:
        with revision_sources(side, Path.cwd()) as folder:
            toolchain = settings.toolchain
            paths = (*toolchain.first_paths, folder, folder / "kernels")
            own = choice
            if choice.config is not None:
                own = replace(own, config=_in_revision(choice.config, folder, side))
            if choice.kernel is not None and choice.kernel.rpartition(":")[0].endswith(".py"):
                place, _, name = choice.kernel.rpartition(":")
                own = replace(own, kernel=f"{_in_revision(Path(place), folder, side)}:{name}")
            yield own, replace(settings, toolchain=replace(toolchain, label=side, first_paths=paths))


def configurations(choice: Choice, workers: Workers) -> dict[ArchName, list[KernelConfig]]:
    """All configurations there are, by architecture, whatever `choice.only` says; each architecture has its own tiles.

    The project's own sources are asked, those of the workers' toolchain, by one of the workers.

    Raises:
        UsageError: the file of configurations is wrong, or the toolchain's sources declare none.
    """
    if choice.config is not None:
        return dict.fromkeys(choice.archs, load_configs(choice.config, kernel=choice.kernel))
    if choice.kernel is not None:
        try:
            check_kernel(choice.kernel)
        except ValueError as error:
            raise UsageError(f"--{error}") from error
        raise UsageError("--kernel: needs --config FILE.toml with the kernel's signature; docs/static.md shows one")
    shape = {"tokens": choice.tokens, "heads": choice.heads, "kv_density": choice.kv_density}
    return list_configs(
        choice.kernel_set, shape, choice.archs, dtype=choice.dtype, toolchain=workers.toolchain, workers=workers
    )


def fits(name: str, only: Sequence[str]) -> bool:
    """Whether a configuration is among those that patterns ask for; without a pattern all are."""
    return not only or any(fnmatchcase(name, pattern) for pattern in only)


def pick_jobs(
    by_arch: Mapping[ArchName, Sequence[KernelConfig]], only: Sequence[str], *, elsewhere: Collection[str] = ()
) -> list[tuple[KernelConfig, ArchName]]:
    """What is compiled for which architecture.

    Args:
        by_arch: all configurations of a side.
        only: patterns of their names.
        elsewhere: names of the other side, which a pattern may fit instead.

    Raises:
        UsageError: a pattern fits no configuration.
    """
    unique = {config.name: config for configs in by_arch.values() for config in configs}
    pick(list(unique.values()), [p for p in only if not any(fits(name, [p]) for name in elsewhere)])
    return [(config, arch) for arch, configs in by_arch.items() for config in configs if fits(config.name, only)]


def _in_revision(path: Path, folder: Path, revision: str) -> Path:
    """The same file among the sources of a revision."""
    top = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / ".git").exists()), Path.cwd())
    absolute = path.resolve()
    if not absolute.is_relative_to(top):
        raise UsageError(f"{path}: expected a file of the repository {top}, to find it in revision {revision}")
    found = folder / absolute.relative_to(top)
    if not found.is_file():
        raise UsageError(f"{path}: is not in revision {revision}")
    return found
