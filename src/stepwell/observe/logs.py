"""Log lines for attempts, at DEBUG, and what every log record of a run carries.

Records have ``instance``, ``run``, ``workflow``, ``path`` and ``attempt`` as attributes, so that a handler can print or
index them. No payload and no error text is ever in them: an error is named by its type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from stepwell.flow.plan import Key

    from .watching import Arrival, Attempt, AttemptWatch, RunWatch

    Adapter: TypeAlias = logging.LoggerAdapter[logging.Logger]
else:
    Adapter = logging.LoggerAdapter


class Named(Protocol):
    """A run, as far as a log record names it."""

    instance_id: str
    run: int
    workflow: str


def extras(run: Named, path: str = "", attempt: int = 0) -> dict[str, object]:
    """Return the attributes that a log record about a run, or one attempt of a step, carries."""
    found: dict[str, object] = {"instance": run.instance_id, "run": run.run, "workflow": run.workflow}
    return {**found, "path": path, "attempt": attempt} if path else found


class StepLogger(Adapter):
    """A logger for one attempt; what a call gives as ``extra`` is added to what every record carries."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        given: Mapping[str, object] = kwargs.get("extra") or {}
        return msg, {**kwargs, "extra": {**given, **(self.extra or {})}}


class LoggedRun:
    """Says at DEBUG what happens, and passes it on to ``inner``."""

    def __init__(self, run: Named, inner: RunWatch | None, log: logging.Logger) -> None:
        self._run, self._inner, self._log = run, inner, log
        self.trace = inner.trace if inner is not None else ""

    def entered(self, stored: bool) -> None:
        self._log.debug("taken up", extra=extras(self._run))
        if self._inner is not None:
            self._inner.entered(stored)

    def restored(self, ready_us: int, open_steps: Iterable[Key]) -> None:
        if self._inner is not None:
            self._inner.restored(ready_us, open_steps)

    def attempt(self, job: Attempt, due_us: int, now_us: int) -> AttemptWatch:
        inner = self._inner.attempt(job, due_us, now_us) if self._inner is not None else None
        return LoggedAttempt(extras(self._run, job.path, job.number), inner, self._log)

    def arrived(self, address: int, signal: Arrival) -> None:
        self._log.debug("signal %s taken in", signal.name, extra=extras(self._run))
        if self._inner is not None:
            self._inner.arrived(address, signal)

    def let_go(self, steps: Mapping[Key, Sequence[int]]) -> None:
        if self._inner is not None:
            self._inner.let_go(steps)

    def crashed(self, path: str, known_as: str, task: str, attempt: int) -> None:
        if self._inner is not None:
            self._inner.crashed(path, known_as, task, attempt)

    def committed(self, base: int) -> None:
        if self._inner is not None:
            self._inner.committed(base)

    def left(self, ended: str) -> None:
        self._log.debug("let go, %s", ended or "not ended", extra=extras(self._run))
        if self._inner is not None:
            self._inner.left(ended)


class LoggedAttempt:
    """One attempt, with a line when its body begins and one when its outcome is known."""

    def __init__(self, extra: Mapping[str, object], inner: AttemptWatch | None, log: logging.Logger) -> None:
        self.entered = False
        self._extra, self._inner, self._log = extra, inner, log

    def __enter__(self) -> None:
        self.entered = True
        self._log.debug("attempt %s of %s begins", self._extra["attempt"], self._extra["path"], extra=self._extra)
        if self._inner is not None:
            self._inner.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._inner is not None:
            self._inner.__exit__(kind, error, tb)

    def traceparent(self) -> str:
        return self._inner.traceparent() if self._inner is not None else ""

    def ended(self, outcome: str, error: str, final: bool) -> None:
        said = f"{outcome} ({error})" if error else outcome
        self._log.debug("attempt %s of %s %s", self._extra["attempt"], self._extra["path"], said, extra=self._extra)
        if self._inner is not None:
            self._inner.ended(outcome, error, final)
