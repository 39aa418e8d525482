"""Durations as users write them, microseconds as stepwell counts them.

All times inside stepwell are integers: microseconds since the Unix epoch for moments, microseconds for spans.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from .errors import OptionError

Duration: TypeAlias = float | timedelta | str

SECOND_US: Final = 1_000_000
DURATION_MAX_US: Final = 10 * 366 * 86_400 * SECOND_US  # ten years: longer is a mistake in the unit

_UNITS_US: Final = {"ms": 1_000, "s": SECOND_US, "m": 60 * SECOND_US, "h": 3_600 * SECOND_US, "d": 86_400 * SECOND_US}
_LONGEST_FIRST: Final = tuple(_UNITS_US.items())[::-1]
_TEXT: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d)")


def duration_us(value: object, what: str, *, least_us: int = 0) -> int:
    """Return a user's duration in microseconds.

    Args:
        value: seconds as int or float, a ``timedelta``, or text such as ``"100ms" "30s" "5m" "2h" "1d"``.
        what: the option's name, for the message.
        least_us: the smallest span allowed.

    Raises:
        OptionError: not a duration, below ``least_us``, not finite, or above ten years.

    Example:
        >>> duration_us("1.5s", "timeout")
        1500000
    """
    span = _parse(value, what)
    if not least_us <= span <= DURATION_MAX_US:
        raise OptionError(f"{what} must be between {least_us / SECOND_US:g} s and ten years, not {value!r}")
    return int(span)


def _parse(value: object, what: str) -> float:
    if isinstance(value, timedelta):
        return value / timedelta(microseconds=1)
    if isinstance(value, str) and (match := _TEXT.fullmatch(value.strip())):
        return round(float(match[1]) * _UNITS_US[match[2]])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value * SECOND_US) if value == value and abs(value) < 1e12 else float("inf")
    raise OptionError(f"{what} must be seconds, a timedelta, or text like '100ms' '30s' '5m' '2h' '1d', not {value!r}")


def span(duration_us: int) -> str:
    """Return a span in the largest unit that it is a whole number of: ``90s``, ``2d``, ``1500us``."""
    unit, size = next(((u, s) for u, s in _LONGEST_FIRST if duration_us and duration_us % s == 0), ("us", 1))
    return f"{duration_us // size}{unit}"


def moment(at_us: int) -> datetime:
    """Return a stored moment as an aware UTC ``datetime``."""
    return datetime.fromtimestamp(at_us / SECOND_US, UTC)
