"""Who is told what happens to a run: nobody, a tracer, a log at DEBUG, or both.

A runner asks its :class:`Lookout` once for each run that it takes up. Nearly always the answer is ``None``, and then
all that an attempt costs is a look at two attributes. This module imports nothing of OpenTelemetry: a program that
traces has imported it already, and one that has not does not trace.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from .logs import LoggedRun

if TYPE_CHECKING:
    from stepwell.flow.plan import Key

    from .spans import Tracing

_LOG: Final = logging.getLogger("stepwell.runtime")
_API: Final = ("opentelemetry.trace", "opentelemetry.metrics")


class Run(Protocol):
    """A run, as far as those who watch it look at it."""

    instance_id: str
    run: int
    workflow: str
    backend_id: str
    trace: str


class Facts(msgspec.Struct):
    """A run that only its row is known of."""

    instance_id: str
    run: int
    workflow: str
    backend_id: str
    trace: str


class Arrival(NamedTuple):
    """A signal that a run has taken in, and the context it was sent in as text, ``""`` for none."""

    name: str
    at_us: int
    trace: str


class Attempt(Protocol):
    """An attempt, as far as those who watch it look at it."""

    number: int

    @property
    def path(self) -> str: ...

    @property
    def known_as(self) -> str: ...

    @property
    def key(self) -> Key: ...

    @property
    def task_name(self) -> str: ...

    def signals(self) -> Iterable[int]:
        """Return the addresses of the signals whose payloads this attempt reads."""
        ...

    def let_go_by(self) -> Iterable[int]:
        """Look up the addresses of the signals that let this step go."""
        ...

    def arrival(self, address: int) -> Arrival | None:
        """Look up a signal that this process has not seen arrive."""
        ...


class AttemptWatch(Protocol):
    """One attempt as somebody watches it. As a context manager it surrounds the body, where that runs."""

    entered: bool

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def traceparent(self) -> str:
        """Return what a body in another process begins with, ``""`` for nothing."""
        ...

    def ended(self, outcome: str, error: str, final: bool) -> None:
        """Its outcome is known. It counts with the commit of the run, or at once where that is ``final``.

        ``error`` is the error's type, never its text.
        """
        ...


class RunWatch(Protocol):
    """One run in one runner's hands, as somebody watches it."""

    trace: str

    def entered(self, stored: bool) -> None:
        """A drive takes it on."""
        ...

    def restored(self, ready_us: int, open_steps: Iterable[Key]) -> None:
        """Its rows were read; it could have gone on since ``ready_us``. Signals may have let go what is open."""
        ...

    def attempt(self, job: Attempt, due_us: int, now_us: int) -> AttemptWatch:
        """An attempt is about to be given to whoever runs it; it was due at ``due_us`` (0: now)."""
        ...

    def arrived(self, address: int, signal: Arrival) -> None:
        """A signal was taken in as the entry ``address``."""
        ...

    def let_go(self, steps: Mapping[Key, Sequence[int]]) -> None:
        """These steps were opened, each by the signals of these entries."""
        ...

    def crashed(self, path: str, known_as: str, task: str, attempt: int) -> None:
        """An attempt was lost with the process that ran it, and is counted as such."""
        ...

    def committed(self, base: int) -> None:
        """What happened since seq ``base`` is stored."""
        ...

    def left(self, ended: str) -> None:
        """The drive works on it no more. ``ended``: its final state, if it has one."""
        ...


class Beginning(Protocol):
    """A run that is being created."""

    trace: str

    def created(self) -> None:
        """It is there, and this call has made it."""
        ...


def acts(provider: object) -> bool:
    """Whether a provider is more than a stand-in of OpenTelemetry's API, which does nothing."""
    return not type(provider).__module__.startswith(_API)


def _found(provider: Any) -> Tracing | None:
    """Return what to trace with; ``None`` if neither spans nor metrics go anywhere."""
    metrics = sys.modules.get("opentelemetry.metrics")
    if not acts(provider) and (metrics is None or not acts(metrics.get_meter_provider())):
        return None
    from .spans import tracing_of

    return tracing_of(provider)


class Lookout:
    """Finds out whether anybody watches, anew for each run: a program may begin to trace after it made its runner."""

    __slots__ = ("_provider", "_tracing")

    def __init__(self) -> None:
        self._provider: object = None
        self._tracing: Tracing | None = None

    def tracing(self) -> Tracing | None:
        """Return what makes spans, ``None`` if this program does not trace."""
        api = sys.modules.get("opentelemetry.trace")
        if api is None or not hasattr(api, "get_tracer_provider"):  # not imported, or half
            return None
        provider: Any = api.get_tracer_provider()
        if provider is not self._provider:
            self._tracing, self._provider = _found(provider), provider
        return None if getattr(provider, "over", False) else self._tracing

    def settle(self) -> None:
        """Let what has been told get away, before this process may end."""
        tracing = self.tracing()
        if tracing is not None and tracing.settle is not None:
            tracing.settle()

    def run(self, run: Run) -> RunWatch | None:
        """Return who watches a run that is taken up."""
        tracing = self.tracing()
        return self._logged(run, tracing.run(run) if tracing is not None else None)

    def start(self, run: Run) -> RunWatch | None:
        """Return who watches a run that is being created in a drive."""
        tracing = self.tracing()
        if tracing is None:
            return self._logged(run, None)
        return self._logged(run, tracing.run(run, tracing.beginning(run.workflow, run.instance_id)))

    def beginning(self, workflow: str, instance_id: str) -> Beginning | None:
        """Return who watches a run that is being created for others to take up."""
        tracing = self.tracing()
        return tracing.beginning(workflow, instance_id) if tracing is not None else None

    def signalled(self, run: Run, name: str, at_us: int) -> None:
        """A signal that arrives at ``at_us`` was sent from here."""
        tracing = self.tracing()
        if tracing is not None:
            tracing.signalled(run, name, at_us)

    @staticmethod
    def here() -> str:
        """Return as text what the caller is doing, ``""`` for nothing: whether or not this program makes spans."""
        api: Any = sys.modules.get("opentelemetry.trace")
        if api is None or not hasattr(api, "get_current_span"):
            return ""
        if not api.get_current_span().get_span_context().is_valid:
            return ""
        from .spans import here

        return here()

    @staticmethod
    def _logged(run: Run, inner: RunWatch | None) -> RunWatch | None:
        return LoggedRun(run, inner, _LOG) if _LOG.isEnabledFor(logging.DEBUG) else inner
