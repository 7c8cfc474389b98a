"""What is compiled: configurations of kernels, the project's own or those of a user's TOML file."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bsa_bench.errors import UsageError
from bsa_bench.files import read_regular
from bsa_bench.suite.suggest import did_you_mean, explain

ArchName = Literal["sm_80", "sm_90", "sm_100"]
ARCH_NAMES: tuple[ArchName, ...] = ("sm_80", "sm_90", "sm_100")

Constant = bool | int | float | str | None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"got {value}, expected a power of two")
    return value


def check_kernel(value: str) -> str:
    """Raise ValueError unless a text names a function: `module:function` or `path.py:function`."""
    if not re.fullmatch(r".+:[A-Za-z_]\w*", value):
        raise ValueError(f"kernel: got {value!r}, expected path.py:function or module:function")
    return value


class Work(_Model):
    """A launch of the kernel: its programs, the trips of each through the main loop, and the bytes it must move."""

    programs: int = Field(gt=0)
    trips: float = Field(gt=0)
    hbm_bytes: int = Field(ge=0)


class KernelConfig(_Model):
    """One compilation of a kernel.

    Attributes:
        name: what it is called in tables and on the command line.
        kernel: `module:function`, or `path.py:function`.
        signature: type of each argument that is no constant, as Triton writes it: `*bf16`, `i32`, `fp32`.
        constexprs: value of each constant; a text `tl.X` stands for that attribute of `triton.language`,
            `path.py:function` for that function, jitted as the kernel is.
        num_warps, num_stages, num_ctas, maxnreg: the compiler's options.
        divisible_by_16: arguments that are known to be multiples of 16 (pointers: 16 bytes); by default all pointers.
        work: the launch that predictions are made for; without it memory traffic beyond L2 is not judged.
    """

    name: str = Field(min_length=1)
    kernel: Annotated[str, AfterValidator(check_kernel)]
    signature: dict[str, str]
    constexprs: dict[str, Constant] = {}
    num_warps: Annotated[int, Field(ge=1, le=32), AfterValidator(_power_of_two)] = 4
    num_stages: int = Field(default=3, ge=1, le=32)
    num_ctas: int = Field(default=1, ge=1, le=16)
    maxnreg: int | None = Field(default=None, ge=8, le=255)
    divisible_by_16: tuple[str, ...] | None = None
    work: Work | None = None

    @property
    def aligned(self) -> tuple[str, ...]:
        """The arguments that are compiled as multiples of 16."""
        if self.divisible_by_16 is not None:
            return self.divisible_by_16
        return tuple(name for name, kind in self.signature.items() if kind.startswith("*"))


class _Entry(_Model):
    name: str | None = Field(default=None, min_length=1)
    kernel: str | None = None
    signature: dict[str, str] = {}
    constexprs: dict[str, Constant] = {}
    num_warps: int | None = None
    num_stages: int | None = None
    num_ctas: int | None = None
    maxnreg: int | None = None
    divisible_by_16: tuple[str, ...] | None = None
    work: Work | None = None


class _File(_Entry):
    axes: dict[str, Annotated[list[Constant], Field(min_length=1)]] = {}
    config: list[_Entry] = []


_FUNCTION = re.compile(r".+\.py:[A-Za-z_]\w*")
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


def load_configs(path: Path, *, kernel: str | None = None) -> list[KernelConfig]:
    """Read a user's file: what stands at its top is for all, `[[config]]` entries change it, `[axes]` are crossed.

    Args:
        path: the TOML file.
        kernel: `path.py:function` or `module:function`; takes the place of the file's own `kernel`.

    Raises:
        UsageError: the file cannot be read, or something in it is wrong; names the file, the key and what was expected.
    """
    try:
        content = tomllib.loads(read_regular(path).decode("utf-8-sig"))
        file = _File.model_validate(content)
    except OSError as error:
        raise UsageError(f"config: {path}: {error.strerror}") from error
    except ValidationError as error:
        raise UsageError(explain(error, _File, source=str(path), prefix="")) from error
    except (ValueError, RecursionError) as error:  # a number too long, or nested deeper than Python reads
        raise UsageError(f"config: {path} is no TOML: {error}") from error
    kernel = kernel or file.kernel
    found: list[KernelConfig] = []
    for number, entry in enumerate(file.config or [_Entry()]):
        for axes in _crossed(file.axes):
            merged = _merged(file, entry, axes, default_kernel=kernel, base=path.parent)
            if merged["kernel"] is None:
                raise UsageError(f"config: {path}: no kernel given; write kernel = 'path.py:name' or use --kernel")
            merged["name"] = _name_of(merged["kernel"], file.name, entry.name, axes, number, len(file.config))
            try:
                found.append(KernelConfig.model_validate(merged))
            except ValidationError as error:
                raise UsageError(explain(error, KernelConfig, source=str(path), prefix=merged["name"])) from error
    names = [each.name for each in found]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"config: {path}: names must differ, got {doubled[0]!r} twice")
    return found


def _crossed(axes: dict[str, list[Constant]]) -> Iterator[dict[str, Constant]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _merged(
    file: _File, entry: _Entry, axes: dict[str, Constant], *, default_kernel: str | None, base: Path
) -> dict[str, Any]:
    options = {
        key: value for source in (file, entry) for key in _OPTIONS if (value := getattr(source, key)) is not None
    }
    options |= {key: value for key, value in axes.items() if key in _OPTIONS}
    constants = {key: value for key, value in axes.items() if key not in _OPTIONS}
    kernel = entry.kernel or default_kernel
    if kernel is not None and kernel.rpartition(":")[0].endswith(".py") and kernel == (entry.kernel or file.kernel):
        # A path in a file is seen from the folder of that file.
        kernel = _seen_from(base, kernel)
    aligned = entry.divisible_by_16 if entry.divisible_by_16 is not None else file.divisible_by_16
    return {
        "kernel": kernel,
        "signature": file.signature | entry.signature,
        "constexprs": {
            key: _seen_from(base, value) if isinstance(value, str) and _FUNCTION.fullmatch(value) else value
            for key, value in (file.constexprs | entry.constexprs | constants).items()
        },
        "divisible_by_16": aligned,
        "work": entry.work or file.work,
        **options,
    }


def _seen_from(base: Path, function: str) -> str:
    """`path.py:function` with the path made absolute."""
    path, _, name = function.rpartition(":")
    return f"{(base / path).resolve()}:{name}"


def _name_of(
    kernel: str, file: str | None, entry: str | None, axes: dict[str, Constant], number: int, count: int
) -> str:
    base = entry or file or kernel.rpartition(":")[2]
    parts = [base, *([str(number)] if entry is None and count > 1 else [])]
    parts += [f"{re.sub('^num_', '', key).lower()}{value}" for key, value in axes.items()]
    return "-".join(parts)


def pick(configs: list[KernelConfig], patterns: list[str]) -> list[KernelConfig]:
    """The configurations that a pattern names (`forward-*-d128*`), in their order; all without a pattern.

    Raises:
        UsageError: a pattern fits none; the message lists what there is.
    """
    from fnmatch import fnmatchcase

    for pattern in patterns:
        if not any(fnmatchcase(config.name, pattern) for config in configs):
            names = [config.name for config in configs]
            listed = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
            raise UsageError(f"configuration {pattern!r}: not known{did_you_mean(pattern, names)}; there are: {listed}")
    return [c for c in configs if not patterns or any(fnmatchcase(c.name, p) for p in patterns)]
