"""How often and how long after a failed attempt a task is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

from .errors import OptionError, Permanent, StepwellError
from .timing import SECOND_US, Duration, duration_us

ATTEMPTS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy. A wait under way survives a restart: only the rest of it is waited for.

    Args:
        attempts: tries in all, 1 to 10 000; default 3.
        delay: wait before the second attempt: seconds, ``timedelta``, or ``"100ms" "30s" "5m" "2h" "1d"``; default 1 s.
        factor: each further wait is this many times the one before, 1 to 1000; default 2.
        max_delay: no wait is longer; default one hour.
        jitter: share of a wait that is drawn at random, 0 to 1; 0.1 spreads a wait over 90 to 100 %.
        on: exception types that are tried again.
        unless: exception types that are not, even where ``on`` names them.

    Raises:
        OptionError: a number is out of range, or ``on``/``unless`` hold something other than exception types.

    Example:
        >>> Retry(attempts=5, delay="500ms", factor=2, max_delay="1m", on=(IOError,)).attempts
        5
    """

    attempts: int = 3
    delay: Duration = 1.0
    factor: float = 2.0
    max_delay: Duration = 3600.0
    jitter: float = 0.1
    on: tuple[type[BaseException], ...] = (Exception,)
    unless: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        check_attempts(self.attempts)
        duration_us(self.delay, "Retry(delay=)")
        duration_us(self.max_delay, "Retry(max_delay=)")
        if not _number(self.factor) or not 1 <= self.factor <= 1_000:
            raise OptionError(f"Retry(factor=) must be 1 to 1000, not {self.factor!r}")
        if not _number(self.jitter) or not 0 <= self.jitter <= 1:
            raise OptionError(f"Retry(jitter=) must be 0 to 1, not {self.jitter!r}")
        _check_kinds(self.on, "on")
        _check_kinds(self.unless, "unless")

    @property
    def delay_us(self) -> int:
        """The first wait in microseconds."""
        return duration_us(self.delay, "Retry(delay=)")

    @property
    def max_delay_us(self) -> int:
        """The longest wait in microseconds."""
        return duration_us(self.max_delay, "Retry(max_delay=)")

    def covers(self, error: BaseException) -> bool:
        """Say whether this policy tries again after ``error``."""
        return isinstance(error, self.on) and not isinstance(error, (Permanent, *self.unless))


class RetryAfter(StepwellError):
    """Raise it in a task to be tried again after at least ``wait``; uses up no attempt.

    ``seconds`` is the wait as a number.

    Args:
        wait: seconds, ``timedelta``, or ``"100ms" "30s" "5m" "2h" "1d"``, up to ten years.
        message: what a person may read of it.

    Raises:
        OptionError: ``wait`` is not a duration, or out of range.

    Example:
        >>> RetryAfter("30s", "the server is busy").seconds
        30.0
    """

    def __init__(self, wait: Duration, message: str = "") -> None:
        self.seconds = duration_us(wait, "RetryAfter(wait)") / SECOND_US
        super().__init__(message or f"retry after {self.seconds:g} s")


def check_attempts(attempts: object) -> int:
    """Return ``attempts`` if it is a number of tries, else raise :class:`OptionError`."""
    if not isinstance(attempts, int) or isinstance(attempts, bool) or not 1 <= attempts <= ATTEMPTS_MAX:
        raise OptionError(f"attempts must be a whole number from 1 to {ATTEMPTS_MAX}, not {attempts!r}")
    return attempts


def _check_kinds(kinds: object, option: str) -> None:
    members = cast("tuple[object, ...]", kinds) if isinstance(kinds, tuple) else ()
    if not isinstance(kinds, tuple) or not all(isinstance(k, type) and issubclass(k, BaseException) for k in members):
        raise OptionError(f"Retry({option}=) must be a tuple of exception types, as {option}=(OSError,), not {kinds!r}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def backoff_us(failed: int, delay_us: int, factor: float, max_delay_us: int, jitter: float, draw: float) -> int:
    """Return the wait after the ``failed``-th failed attempt (from 1); ``draw`` in [0, 1) spends the jitter."""
    if delay_us == 0:
        return 0
    try:
        wait = min(delay_us * float(factor) ** (failed - 1), max_delay_us)
    except OverflowError:
        wait = max_delay_us
    return int(wait * (1 - jitter * draw))
