"""What both front ends ask of a step and check of a number, so that they say the same of the same mistake."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard, cast

from stepwell.errors import GraphError, OptionError
from stepwell.timing import Duration, duration_us
from stepwell.types import check_name

from .nodes import OnError, OnMax, Select, Source, Value
from .task import AnyTask, Task, own_name, resolved_hints
from .workflow import AnyWorkflow, Workflow

TURNS_MAX: Final = 1_000_000_000


def checked_name(name: str, what: str, where: str) -> str:
    """Return a name that paths can hold. Raises GraphError."""
    try:
        return check_name(name, what)
    except OptionError as error:
        raise GraphError(str(error), where) from None


def checked_on_error(on_error: OnError, where: str) -> OnError:
    """Return what a parallel does after a failure. Raises GraphError."""
    if on_error not in ("cancel", "wait"):
        raise GraphError(f"on_error must be 'cancel' or 'wait', not {on_error!r:.80}", where)
    return on_error


def checked_turns(max_iterations: object, on_max: OnMax, where: str) -> int:
    """Return the number of turns a loop may take. Raises GraphError."""
    if on_max not in ("fail", "last"):
        raise GraphError(f"on_max must be 'fail' or 'last', not {on_max!r:.80}", where)
    if not isinstance(max_iterations, int) or isinstance(max_iterations, bool) or not 1 <= max_iterations <= TURNS_MAX:
        raise GraphError(
            f"max_iterations must be a whole number from 1 to {TURNS_MAX}, not {max_iterations!r:.80}", where
        )
    return max_iterations


def checked_cases(cases: object, where: str) -> Mapping[object, object]:
    """Return a route's cases. Raises GraphError."""
    if not isinstance(cases, Mapping):
        raise GraphError(
            f"a route's cases are a dict of key and step, not a {type(cases).__name__}; write {{'yes': …}}", where
        )
    return cast("Mapping[object, object]", cases)


def is_workflow(step: object) -> TypeGuard[AnyWorkflow]:
    """Say whether a step is a workflow."""
    return isinstance(step, Workflow)


def is_task(step: object) -> TypeGuard[AnyTask]:
    """Say whether a step is a task."""
    return isinstance(step, Task)


def label(source: Source) -> str:
    """Return what a route's key is called in paths."""
    if isinstance(source, Select):
        attributes = [str(key) for kind, key in source.steps if kind == "attr"]
        return attributes[-1] if attributes else label(source.base)
    return source.node.name if isinstance(source, Value) else "key"


def body_name(body: object, where: str) -> str:
    """Return the name a loop takes from its body."""
    if is_task(body):
        return body.node_name
    if is_workflow(body):
        return body.name
    try:
        return own_name(body, None, "a loop's name")
    except OptionError as error:
        raise GraphError(str(error), where) from None


def entry_type(body: Callable[..., Any]) -> object:
    """Return the declared type of the value that a step takes, ``Any`` where none is written."""
    if is_workflow(body):
        return body.input_type
    if is_task(body):
        return next((p.annotation for p in body.params.values()), Any)
    first = next(iter(inspect.signature(body).parameters), "")
    return (resolved_hints(body, {}) or {}).get(first, Any)


def span_us(duration: Duration, what: str, where: str, *, least_us: int = 0) -> int:
    """Return a duration in microseconds. Raises GraphError."""
    try:
        return duration_us(duration, what, least_us=least_us)
    except OptionError as error:
        raise GraphError(str(error), where) from None


def timeout_span_us(timeout: Duration | None, has_branch: bool, name: str, where: str) -> int | None:
    """Return a signal's timeout in microseconds, ``None`` for none. Raises GraphError."""
    if timeout is not None:
        return span_us(timeout, f"timeout of signal {name!r}", where, least_us=1)
    if has_branch:
        raise GraphError(
            f"signal {name!r} has on_timeout= but no timeout=, so it would never be taken; give it timeout=, as '2d'",
            where,
        )
    return None
