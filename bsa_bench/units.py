"""The one place that turns seconds, bytes, FLOP and ratios into text, and text into seconds."""

from __future__ import annotations

import math
import re

from bsa_bench.errors import UsageError
from bsa_bench.text import shortened

MAX_SECONDS = 365 * 86_400.0
"""Of a time limit or a budget: longer than anybody waits, and nothing computed from it overflows."""

_DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s?)?")


def parse_duration(text: str) -> float:
    """Turn `90`, `90s`, `9m`, `1h30m` into seconds.

    Raises:
        UsageError: anything else, nothing above zero, or more than a year.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    parts = {key: float(value) for key, value in match.groupdict().items() if value} if match else {}
    seconds = parts.get("h", 0.0) * 3600 + parts.get("m", 0.0) * 60 + parts.get("s", 0.0)
    if seconds <= 0:
        raise UsageError(f"duration: got {shortened(text, 80)!r}, expected a time above zero such as 90s, 9m or 1h30m")
    if seconds > MAX_SECONDS:
        raise UsageError(f"duration: got {shortened(text, 80)!r}, expected at most {MAX_SECONDS / 3600:.0f}h")
    return seconds


def parse_share(text: str) -> float:
    """Turn `5%` or `0.05` into 0.05.

    Raises:
        UsageError: anything else, or nothing above zero.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and 0 < value < 10):
        raise UsageError(f"share: got {shortened(text, 80)!r}, expected a number above zero such as 5% or 0.05")
    return value


def format_seconds(seconds: float | None) -> str:
    """Three significant digits with the unit that fits: `812 us`, `5.20 ms`, `1.93 s`, `3 min 20 s`, `1 h 52 min`."""
    if seconds is None or math.isnan(seconds):
        return "-"
    if seconds >= 3599.5:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60} min"
    if seconds >= 120:
        whole = round(seconds)
        return f"{whole // 60} min {whole % 60} s"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 0.9995:
            return f"{three_digits(seconds * factor)} {unit}"
    return f"{three_digits(seconds * 1e9)} ns"


def format_bytes(num_bytes: float | None) -> str:
    """Binary prefixes: `1.50 GiB`."""
    if num_bytes is None or math.isnan(num_bytes):
        return "-"
    return _prefixed(num_bytes, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_flop(flop: float | None) -> str:
    """Decimal prefixes: `137 GFLOP`."""
    if flop is None or math.isnan(flop):
        return "-"
    return _prefixed(flop, 1000.0, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def format_ratio(ratio: float | None) -> str:
    """`14.2x`."""
    return "-" if ratio is None or math.isnan(ratio) else f"{three_digits(ratio)}x"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: `0.0512`, `5.12`, `51.2`, `512`, `5120`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:#.3g}"
    if "e" not in text:
        return text.rstrip(".")
    # The exponent after rounding: 9996 becomes 10000.
    decimals = 2 - int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{min(max(decimals, 0), 12)}f}"


def _prefixed(value: float, base: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{three_digits(value)} {unit}"
        value /= base
    return f"{three_digits(value)} {units[-1]}"
