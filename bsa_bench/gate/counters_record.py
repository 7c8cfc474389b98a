"""What is counted of one case: plain values, so that two revisions compare by equality."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Annotated

from pydantic import Field, JsonValue, NonNegativeInt, model_validator

from bsa_bench.result import Case, Line, Work

Share = Annotated[float, Field(ge=0, le=1)]


class Traffic(Line):
    """Bytes that a pass moves at least, and those that its tiles read; shares of padding.

    Args:
        compulsory_bytes: each tensor once, and the lists of the plan.
        list_bytes: of these, the lists; null without a plan.
        tile_bytes: what all tiles read from L2, each for itself; null without a plan.
        query_padding_share, key_padding_share: slots of the blocks that hold no token; null without a plan.
    """

    compulsory_bytes: NonNegativeInt
    list_bytes: NonNegativeInt | None = None
    tile_bytes: NonNegativeInt | None = None
    query_padding_share: Share | None = None
    key_padding_share: Share | None = None


class Launch(Line):
    """One launch of a Triton kernel.

    Args:
        kernel: `module:function` below `bsa_kernels`.
        grid: its programs along each axis.
        options: its constexprs and the compiler's options: what it is compiled for.
        arguments: digest of the others: numbers, and dtype, shape and strides of tensors.
    """

    kernel: str
    grid: tuple[NonNegativeInt, ...]
    options: dict[str, JsonValue]
    arguments: str


class HostCost(Line):
    """What a call costs the host. These figures depend on the versions of Python, torch and Triton.

    Args:
        python_calls: calls of Python functions, launches left out.
        calls_by_module: the same by module, of other packages than this project's by package.
        torch_ops: operators of torch that ran, nested ones included, by name.
        peak_bytes: most that the call had allocated at once, its output included: the workspace.
    """

    python_calls: NonNegativeInt
    calls_by_module: dict[str, NonNegativeInt]
    torch_ops: dict[str, NonNegativeInt]
    peak_bytes: NonNegativeInt


class CaseCounters(Line):
    """The counters of one case, or the reason why there are none.

    Args:
        name: see `name_of`.
        launches: in order; none where the engine launches no Triton kernel.
        host: null for a method whose time means nothing.
    """

    name: str
    work: Work | None = None
    traffic: Traffic | None = None
    launches: tuple[Launch, ...] = ()
    host: HostCost | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> CaseCounters:
        if self.reason is None and (self.work is None or self.traffic is None):
            raise ValueError(f"{self.name}: expected work and traffic, or a reason why there are none")
        if self.reason is not None and (self.work or self.traffic or self.launches or self.host):
            raise ValueError(f"{self.name}: expected no counters beside the reason {self.reason!r}")
        return self


class Versions(Line):
    """What host costs depend on."""

    python: str
    torch: str
    triton: str

    @classmethod
    def installed(cls) -> Versions:
        """Those of this Python and its packages; loads none of them."""
        return cls(python=platform.python_version(), torch=version("torch"), triton=version("triton"))

    def differing(self, other: Versions) -> list[str]:
        """The packages of another minor version or kind of build: `torch 2.12.1, 2.13.0`."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in type(self).model_fields}
        return [f"{name} {a}, {b}" for name, (a, b) in pairs.items() if _kind(a) != _kind(b)]


class Counted(Line):
    """All that one counting process said.

    Args:
        kernels: the folder that `bsa_kernels` was imported from.
        package: the folder of the `bsa_bench` that ran.
        cases: in the order of the suite.
    """

    versions: Versions
    kernels: str
    package: str
    cases: tuple[CaseCounters, ...]


class Request(Line):
    """What a counting process is asked, as JSON on its stdin: cases as JSON, in order, counted on a CPU.

    Args:
        kernels: the folder that `bsa_kernels` must come from; null: wherever it is installed.
    """

    cases: tuple[dict[str, JsonValue], ...]
    kernels: str | None = None


def name_of(case: Case) -> str:
    """A case's id without its input, which is its own here: `full@triton/8x8x8/2x64-float16/forward`."""
    length, shape, _ = case.workload.slugs
    return "/".join([case.implementation, length, shape, *([case.label] if case.label else []), case.passes])


def _kind(release: str) -> tuple[object, ...]:
    """The minor version; torch for CPUs alone takes other ways through its own Python code than that for GPUs."""
    return (*release.split(".")[:2], release.endswith("+cpu"))
