"""A clock that a test moves, so that delays of days and backoffs of hours pass at once and in a known order."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from typing import Final

from stepwell.runtime.clock import Wait
from stepwell.timing import Duration, duration_us

_FIRST_DAY: Final = datetime(2030, 1, 1, tzinfo=UTC)


class VirtualClock:
    """Time for a runner under test: it moves when nothing else can happen, and by hand.

    A call that only waits for a timer (a delay, a backoff, a signal's timeout) jumps to it at once. While bodies run,
    time stands still until :meth:`advance` moves it, which is how a test lets a task's timeout pass. Leases are not
    concerned: they follow the store's own clock. Runners may share one clock; each of them may then move it.

    Args:
        start: the first moment, aware; default the beginning of 2030 in UTC. A second process that goes on with the
            instances of a first one needs a clock that starts no earlier.
        jump: ``False``: time moves by :meth:`advance` alone.

    Example:
        >>> from stepwell import InProcessRunner, delay, workflow
        >>> @workflow
        ... def nap() -> None:
        ...     delay("8h")
        >>> clock = VirtualClock()
        >>> with InProcessRunner(clock=clock) as runner:
        ...     runner.run(nap)
        >>> clock.now.hour
        8
    """

    def __init__(self, start: datetime = _FIRST_DAY, *, jump: bool = True) -> None:
        self._now_us = round(start.timestamp() * 1e6)
        self._jump = jump
        self._lock = Lock()
        self._asleep: set[Callable[[object], None]] = set()

    @property
    def now(self) -> datetime:
        """The moment it shows, in UTC."""
        return datetime.fromtimestamp(self.now_us() / 1e6, UTC)

    def advance(self, span: Duration) -> None:
        """Move time on, and wake every call that waits, from any thread or task.

        Raises:
            OptionError: ``span`` is not a duration.
        """
        with self._lock:
            self._now_us += duration_us(span, "span")
            asleep, self._asleep = self._asleep, set()
        for wake in asleep:
            wake(None)

    # --- what a runner asks ---

    def now_us(self) -> int:
        with self._lock:
            return self._now_us

    def timeout_s(self, wait: Wait) -> float | None:
        """Return 0 where time has come; else the wait is for news: from here, or from other processes by polling."""
        with self._lock:
            if wait.until_us is not None and self._jump and not wait.busy:
                self._now_us = max(self._now_us, wait.until_us)
            if wait.until_us is not None and wait.until_us <= self._now_us:
                return 0.0
            if wait.wake is not None:
                self._asleep.add(wait.wake)
            return None if wait.poll_us is None else wait.poll_us / 1e6
