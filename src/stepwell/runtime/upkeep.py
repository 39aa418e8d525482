"""What a runner does for its store beside its work: removing ended instances that are not kept any longer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stepwell.errors import Closed, OptionError
from stepwell.timing import SECOND_US, Duration, duration_us

if TYPE_CHECKING:
    from stepwell.backend.base import Backend

    from .clock import Clock

_LOG: Final = logging.getLogger("stepwell.runtime")

BATCH: Final = 100  # one transaction; short, as others wait for it
EVERY_US: Final = 60 * SECOND_US


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a runner keeps ended instances; what has not ended always stays. Given to a runner.

    Attributes:
        age: what ended longer ago goes: seconds, ``timedelta`` or ``"30d"``; ``None``: however long ago.
        keep: all but so many that ended last go; ``None``: however many. With ``age`` what either asks for goes.

    Raises:
        OptionError: neither is given, or one is not a duration or a number of instances.

    Example:
        >>> CheckpointingRunner(backend, retention=Retention(age="30d", keep=10_000))  # doctest: +SKIP
    """

    age: Duration | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.age is None and self.keep is None:
            raise OptionError("Retention needs age=, or keep=, or both; without either everything would stay")
        if self.age is not None:
            duration_us(self.age, "age")
        if self.keep is not None and (type(self.keep) is not int or self.keep < 0):
            raise OptionError(f"keep must be None or a whole number from 0 on, not {self.keep!r}")

    def ended_before_us(self, now_us: int) -> int | None:
        """Return the moment before which nothing that ended is kept, ``None`` if age does not matter."""
        return None if self.age is None else now_us - duration_us(self.age, "age")


class Purger:
    """Applies a :class:`Retention`, a small transaction at a time."""

    def __init__(self, backend: Backend, clock: Clock, retention: Retention) -> None:
        self._backend, self._clock, self._retention = backend, clock, retention
        self._done_us: int | None = None
        self._told = False

    def beat(self, budget_s: float, stopping: Callable[[], bool]) -> None:
        """Remove what may go, unless that was done within the last minute. Never raises; an error is logged once.

        Args:
            budget_s: when to leave the rest to the next beat.
            stopping: called between two transactions, to let others in; says whether to leave at once.
        """
        now_us = self._clock.now_us()
        if self._done_us is not None and 0 <= now_us - self._done_us < EVERY_US:
            return
        try:
            if self._purge(self._retention.ended_before_us(now_us), time.monotonic() + budget_s, stopping):
                self._done_us = now_us
            self._told = False
        except Closed:
            return  # the backend went first; the renewal of the lease ends for the same reason
        except Exception as error:  # noqa: BLE001  # upkeep must not cost the lease: try again in a minute
            self._done_us = now_us
            if not self._told:
                _LOG.warning("ended instances could not be removed, which is tried again: %s", error)
            self._told = True

    def _purge(self, before_us: int | None, until_s: float, stopping: Callable[[], bool]) -> bool:
        """Return whether nothing is left that may go."""
        while self._backend.purge(before_us, self._retention.keep, BATCH) == BATCH:
            if stopping() or time.monotonic() >= until_s:
                return False
        return True
