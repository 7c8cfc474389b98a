"""The protocol between the gate and a worker of a pair, which samples when it is told to.

The gate starts `<command> --requests-fd R --events-fd E` with stdin open for as long as it lives (as for the workers of
a run, it is the worker's lifeline). On R it writes one JSON line for each `Request`, and reads one JSON line from E for
each: a `Reply`. The worker ends when R is closed. Both sides of a pair live at the same time and take turns; a turn is
one call of each.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from bsa_bench.result import Case, Line, Status
from bsa_bench.run.job import DeviceKind


class SetUp(Line):
    """The first request: import everything, on as many of the last usable cores as there are threads."""

    do: Literal["set up"] = "set up"
    device: DeviceKind
    threads: PositiveInt


class Prepare(Line):
    """Make a case ready to be sampled: inputs, first call, verification if asked for, warm-up.

    `inputs` is a folder where the q, k and v that one process made are for all others.
    """

    do: Literal["prepare"] = "prepare"
    case: Case
    verify: bool
    inputs: str | None = None


class PrepareHost(Line):
    """Make an operation of `gate.host_cases` ready to be sampled."""

    do: Literal["prepare host"] = "prepare host"
    operation: str


class Sample(Line):
    """Call once."""

    do: Literal["sample"] = "sample"


class Finish(Line):
    """Verify on fresh inputs and measure the memory, if asked for; let go of the case."""

    do: Literal["finish"] = "finish"
    verify: bool
    memory: bool


Asked = SetUp | Prepare | PrepareHost | Sample | Finish
Request = Annotated[Asked, Field(discriminator="do")]


class Reply(Line):
    """What came of a request.

    Args:
        status: OK, or what the case came to; WRONG where the verification failed.
        reason: why it is not OK.
        seconds: of one call: the sample, or the median of the warm-up.
        clock_hz: the device's clock during the call, where it can be read.
        peak_bytes: peak memory above the inputs.
        slowdown_ns: how long the device's hardware held it back since the case was prepared.
        sources: digest of the kernels' sources without comments, docstrings and layout.
        kernels: the folder they were imported from.
        package: the folder that `bsa_bench` was imported from.
    """

    status: Status = Status.OK
    reason: str | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    clock_hz: float | None = None
    peak_bytes: NonNegativeInt | None = None
    slowdown_ns: NonNegativeInt = 0
    sources: str | None = None
    kernels: str | None = None
    package: str | None = None
