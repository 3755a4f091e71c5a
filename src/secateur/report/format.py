"""Numbers as people read them: pure functions from a number to a short text.

Plain ASCII, so that the same text fits a terminal, a page and a file. Prefixes
are decimal (1 kB is 1000 bytes); changes always carry their sign. A number that
is not finite is shown as what it is, never hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_PREFIXES = ("", "k", "M", "G", "T", "P")


def _odd(value: float) -> str | None:
    """The text of a number that is not finite, else None."""
    if math.isfinite(value):
        return None
    return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _signed(value: float, digits: int) -> str:
    """``value`` with its sign; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def significant(value: float) -> str:
    """Three significant digits, never an exponent: 1234 -> 1,234; 14.94 -> 14.9; 0.5 -> 0.500."""
    odd = _odd(value)
    if odd:
        return odd
    # Rounded first: 9.996 has to count as 10.0 when its digits are chosen.
    rounded = float(f"{value:.2e}")
    exponent = math.floor(math.log10(abs(rounded))) if rounded else 0
    digits = min(max(2 - exponent, 0), 6)
    return f"{value:,.{digits}f}"


def count(value: int) -> str:
    """A whole number in full: 853018 -> 853,018."""
    return f"{value:,}"


def short(value: float, unit: str = "") -> str:
    """Three significant digits and a decimal prefix: 1234567 -> 1.23 M; 3400 with B -> 3.40 kB."""
    odd = _odd(value)
    if odd:
        return odd
    scaled = float(value)
    prefix = 0
    # 999.5 would be printed as 1000, so it belongs to the next prefix.
    while abs(scaled) >= 999.5 and prefix < len(_PREFIXES) - 1:
        scaled /= 1000
        prefix += 1
    number = f"{scaled:g}" if prefix == 0 and scaled == int(scaled) else significant(scaled)
    return f"{number} {_PREFIXES[prefix]}{unit}".rstrip()


def size(value: float) -> str:
    """Bytes with a decimal prefix: 3400 -> 3.40 kB."""
    return short(value, "B")


def percent(share: float, digits: int = 2) -> str:
    """A share in [0, 1] as per cent: 0.832 -> 83.20 %."""
    return _odd(share) or f"{100 * share:.{digits}f} %"


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def points(change: float, digits: int = 2) -> str:
    """A difference of two shares in percentage points: 0.013 -> +1.30 points."""
    return _odd(change) or f"{_signed(100 * change, digits)} points"


def difference(change: float, digits: int = 3) -> str:
    """A plain difference with its sign: 0.0214 -> +0.021."""
    return _odd(change) or _signed(change, digits)


def relative(before: float, after: float) -> str:
    """The change as a share of ``before``: 200 to 90 -> -55.0 %."""
    if before == 0:
        return "0.0 %" if after == 0 else "n/a"
    share = after / before - 1
    return _odd(share) or f"{_signed(100 * share, 1)} %"


def times(before: float, after: float) -> str:
    """How many times ``before`` goes into ``after``: 100 to 210 -> x2.10."""
    return f"x{significant(after / before)}" if before else "n/a"


def rate(per_second: float) -> str:
    """Events per second: 1234.5 -> 1,234 /s."""
    return f"{significant(per_second)} /s"


def decimal(value: float, digits: int = 3) -> str:
    """A number with fixed digits: 0.51234 -> 0.512."""
    return _odd(value) or f"{value:.{digits}f}"


def tiny(value: float) -> str:
    """A small number such as an error or a learning rate: 3.14e-15; zero is 0."""
    return _odd(value) or (f"{value:.2g}" if value else "0")


def duration(seconds: float) -> str:
    """A time as people say it: 0.42 -> 0.42 s; 123 -> 2 min 3 s; 7260 -> 2 h 1 min."""
    odd = _odd(seconds)
    if odd:
        return odd
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
