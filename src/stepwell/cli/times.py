"""Moments and spans as people read them: local time, or UTC where that is asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from stepwell.timing import SECOND_US, moment

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def span(us: int) -> str:
    """Return a span in at most two units: ``12ms``, ``0.8s``, ``3m 12s``, ``2d 4h``."""
    if us < 0:
        return "0ms"
    if us < SECOND_US:
        return f"{us / 1_000:.0f}ms" if us >= 1_000 or us == 0 else f"{us}us"
    if us < 10 * SECOND_US:
        return f"{us / SECOND_US:.1f}s"
    seconds = us // SECOND_US
    at = next(i for i, (size, _) in enumerate(_UNITS) if seconds >= size)
    size, unit = _UNITS[at]
    text = f"{seconds // size}{unit}"
    if at + 1 < len(_UNITS) and (rest := seconds % size // _UNITS[at + 1][0]):
        text += f" {rest}{_UNITS[at + 1][1]}"
    return text


def us_of(span: timedelta) -> int:
    return round(span / timedelta(microseconds=1))


class Times:
    """How one command writes moments: against one "now", in one zone."""

    def __init__(self, *, utc: bool, now: datetime | None = None) -> None:
        self.utc = utc
        self.now = now or datetime.now(UTC)

    def renewed(self) -> Times:
        """Return the same with a later now."""
        return Times(utc=self.utc)

    @property
    def now_us(self) -> int:
        return round(self.now.timestamp() * 1e6)

    def at(self, when: datetime | int) -> str:
        """Return a moment: the clock time today, else with the day and without seconds; ``Z`` marks UTC."""
        when = moment(when) if isinstance(when, int) else when
        local, now = (t.astimezone(UTC) if self.utc else t.astimezone() for t in (when, self.now))
        if local.date() == now.date():
            text = f"{local:%H:%M:%S}"
        else:
            text = f"{local:%d %b %H:%M}" if local.year == now.year else f"{local:%Y-%m-%d %H:%M}"
        return f"{text}Z" if self.utc else text

    def whole(self, when: datetime | int) -> str:
        """Return a moment with its day and zone."""
        when = moment(when) if isinstance(when, int) else when
        if self.utc:
            return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return f"{when.astimezone():%Y-%m-%d %H:%M:%S %Z}".rstrip()

    def age(self, when: datetime | int) -> str:
        """Return how long ago a moment was."""
        return span(max(0, self.now_us - _us(when)))

    def until(self, when: datetime | int) -> str:
        """Return how far ahead a moment is: ``in 4m 10s``, or ``now``."""
        ahead = _us(when) - self.now_us
        return f"in {span(ahead)}" if ahead > 0 else "now"


def _us(when: datetime | int) -> int:
    return when if isinstance(when, int) else round(when.timestamp() * 1e6)
