"""How quickly a worker's work goes, from which follows how much it takes up and how long a commit may wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .claiming import AT_ONCE

AHEAD_NS: Final = 50_000_000  # work is taken up for so long ahead, where steps are quick
SLOW_US: Final = 1_000_000  # a body is thought to take so long until some have been seen
GATHER_NS: Final = 1_000_000  # a commit waits so long at most for quick steps that are about to end


class Pace:
    """How quickly work goes, as seen lately."""

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now_ns, self._since_ns = now_ns, now_ns()
        self._ended = self._ahead = 0
        self._took_us = SLOW_US

    def ended(self, took_us: int) -> None:
        """A body has ended, which took so long."""
        self._ended += 1
        self._took_us += (took_us - self._took_us) // 8

    @property
    def quick(self) -> bool:
        """Whether a body in the air is likely to end within the time that a commit may wait for it."""
        return self._took_us < GATHER_NS // 1_000

    def ahead(self) -> int:
        """Return how many steps are likely to end within :data:`AHEAD_NS`, bodies, commits and all."""
        passed_ns = self._now_ns() - self._since_ns
        if passed_ns > AHEAD_NS:
            self._ahead = min((self._ahead + 3 * self._ended * AHEAD_NS // passed_ns) // 4, AT_ONCE)
            self._since_ns += passed_ns
            self._ended = 0
        return self._ahead
