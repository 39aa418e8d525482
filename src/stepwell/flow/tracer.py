"""Whoever is being traced right now, and where in the user's code we are.

A task or workflow called during a trace records a node instead of running; this file is all they need to know of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .task import AnyTask
    from .workflow import AnyWorkflow


class Tracer(Protocol):
    """Records calls as nodes and answers with handles."""

    def call(self, task: AnyTask, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """Record a task."""
        ...

    def child(self, workflow: AnyWorkflow, args: tuple[object, ...]) -> object:
        """Record another workflow."""
        ...

    def refused(self, error: Exception) -> None:
        """Remember a refusal, so that the workflow's own ``except`` cannot hide it."""
        ...


_active: ContextVar[Tracer | None] = ContextVar("stepwell_tracer", default=None)


def active_tracer() -> Tracer | None:
    """Return the tracer of the workflow function that is being traced, or ``None``."""
    return _active.get()


class tracing:
    """``with tracing(tracer):`` makes ``tracer`` the active one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __enter__(self) -> None:
        self._token = _active.set(self._tracer)

    def __exit__(self, *exc: object) -> None:
        _active.reset(self._token)


_PACKAGE = __name__.partition(".")[0]


def user_frame() -> FrameType | None:
    """Return the innermost frame outside this package: the line an error should point at."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE:
        frame = frame.f_back
    return frame


def call_site() -> str:
    """Return ``"file:line"`` of the user's call that led here."""
    frame = user_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
