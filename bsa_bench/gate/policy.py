"""When a change counts: the limits of the gate, and how many pairs of processes it may use."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from bsa_bench.errors import UsageError

_TURN_ERROR = 0.3


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When a change counts. Limits are relative: 0.02 is 2 %.

    Args:
        limit: a change below it is none.
        absolute_s: a change below it is none either, whatever its share.
        noise_factor: the limit is at least this many standard deviations of a process on this machine.
        sd: the calibrated standard deviation of a pair's log ratio. Without it, or where the run's own pairs are
            noisier than that, theirs is used.
        num_freedoms: the degrees of freedom behind `sd`.
        screen_pairs, max_screen_pairs: pairs before the first decision, and before a case is left ambiguous.
        clear_pairs: fresh pairs of a flagged case that confirm it if each lies beyond the limit and the chance of that
            is below `clear_significance`, by the spread of all of the run's pairs.
        confirm_pairs, max_confirm_pairs: fresh pairs before the confirmation is looked at by their ranks, and, where
            they do not settle it, before the second and last such look.
        significance: one-sided, of the looks by ranks together; where there are two, each gets half of it.
        spare_pairs: how many pairs of a case may be disturbed; they are dropped and measured again.
        clock_spread: how far the sides' clocks may differ.
        memory_share, memory_bytes: growth of the peak memory that fails, both together.

    Raises:
        UsageError: a value is out of range, or so few pairs could never reach the significance.
    """

    limit: float = 0.02
    absolute_s: float = 20e-6
    noise_factor: float = 1.5
    sd: float | None = None
    num_freedoms: int = 200
    screen_pairs: int = 3
    max_screen_pairs: int = 16
    clear_pairs: int = 4
    clear_significance: float = 1e-4
    confirm_pairs: int = 8
    max_confirm_pairs: int = 16
    significance: float = 0.01
    spare_pairs: int = 2
    clock_spread: float = 0.03
    memory_share: float = 0.05
    memory_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{field.name}: expected a finite number from 0, got {value}")
        if not self.limit or not 0 < self.significance < 0.5:
            raise UsageError(
                f"limit, significance: expected a limit above 0 and a significance between 0 and 0.5, "
                f"got {self.limit} and {self.significance}"
            )
        for name, first, last in (
            ("screen_pairs", self.screen_pairs, self.max_screen_pairs),
            ("confirm_pairs", self.confirm_pairs, self.max_confirm_pairs),
        ):
            if not 1 <= first <= last:
                raise UsageError(f"{name}: expected from 1 to max_{name}, got {first} and {last}")
        if 0.5**self.confirm_pairs >= self.significance_of_a_look:
            raise UsageError(
                f"confirm_pairs: {self.confirm_pairs} pairs that all agree have p = {0.5**self.confirm_pairs:.2g}, "
                f"which never passes {self.significance_of_a_look:g}; ask for more pairs or a larger significance"
            )

    @property
    def turn_error(self) -> float:
        """Standard error of a pair's log ratio below which its processes need no more turns: pairs differ by more."""
        return _TURN_ERROR * self.limit

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many pairs a confirmation is judged."""
        return tuple(sorted({min(self.clear_pairs, self.confirm_pairs), self.confirm_pairs, self.max_confirm_pairs}))

    @property
    def significance_of_a_look(self) -> float:
        """So that the looks by ranks together raise no more false alarms than one would."""
        return self.significance / len({self.confirm_pairs, self.max_confirm_pairs})

    def limit_of(self, sd: float | None, call_s: float) -> float:
        """The limit of a case, relative.

        Args:
            sd: standard deviation of a pair's log ratio, where it is known.
            call_s: what a call takes.
        """
        # The spread of one process is that of a pair's ratio over the square root of two.
        noise = math.expm1(self.noise_factor * sd / math.sqrt(2)) if sd else 0.0
        return max(self.limit, noise, self.absolute_s / call_s)


LEAST_CHANGE = {"cpu": 0.05, "cuda": 0.02}
"""The least relative change that counts, unless asked otherwise: processes on a CPU are further apart than on a GPU."""
_LEAST_SECONDS = {"cpu": 20e-6, "cuda": 5e-6}


def policy_for(
    device: Literal["cpu", "cuda"], *, limit: float | None = None, noise: tuple[float, int] | None = None
) -> Policy:
    """The policy of a kind of device.

    Args:
        limit: the least relative change that counts; None for that of the device.
        noise: the calibrated `sd` and the degrees of freedom behind it.

    Raises:
        UsageError: the limit is out of range.
    """
    policy = Policy(limit=LEAST_CHANGE[device] if limit is None else limit, absolute_s=_LEAST_SECONDS[device])
    return policy if noise is None else replace(policy, sd=noise[0], num_freedoms=noise[1])
