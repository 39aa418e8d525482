"""``@workflow``: a graph written as a function, which is run once with handles instead of values.

While the function runs, a :class:`~stepwell.flow.recorder.Recorder` is the active tracer: every task or workflow that
is called adds a node to the innermost open block and answers with a :class:`~stepwell.flow.handle.Handle`.
``parallel()``, ``branch()``, ``route()``, ``loop()`` and a signal's ``on_timeout`` open blocks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, overload

from stepwell.errors import GraphError, OptionError, UsageError
from stepwell.timing import Duration
from stepwell.types import Again, Done

from .declared import declared
from .handle import Handle, Origin, told
from .nodes import (
    Body,
    BranchNode,
    DelayNode,
    Input,
    LoopNode,
    OnError,
    OnMax,
    ParallelNode,
    RouteNode,
    SignalNode,
)
from .recorder import Recorder
from .steps import (
    body_name,
    checked_cases,
    checked_name,
    checked_on_error,
    checked_turns,
    entry_type,
    label,
    span_us,
    timeout_span_us,
)
from .task import kind_of, own_name, resolved_hints, unresolved
from .tracer import active_tracer, call_site, tracing, user_frame
from .workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")
K = TypeVar("K")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

Async: TypeAlias = Coroutine[Any, Any, T]


# --- @workflow -------------------------------------------------------------------------------------


class WorkflowDecorator(Protocol):
    """What ``@workflow(...)`` returns."""

    @overload
    def __call__(self, fn: Callable[[In], Async[Out]], /) -> Workflow[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[], Async[Out]], /) -> Workflow[None, Out]: ...
    @overload
    def __call__(self, fn: Callable[[In], Out], /) -> Workflow[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[], Out], /) -> Workflow[None, Out]: ...


@overload
def workflow(fn: Callable[[In], Async[Out]], /) -> Workflow[In, Out]: ...
@overload
def workflow(fn: Callable[[], Async[Out]], /) -> Workflow[None, Out]: ...
@overload
def workflow(fn: Callable[[In], Out], /) -> Workflow[In, Out]: ...
@overload
def workflow(fn: Callable[[], Out], /) -> Workflow[None, Out]: ...
@overload
def workflow(name: str | None = None, /, *, metadata: Mapping[str, object] | None = None) -> WorkflowDecorator: ...
def workflow(fn: Callable[..., Any] | str | None = None, /, *, metadata: Mapping[str, object] | None = None) -> Any:
    """Make a function a workflow: ``@workflow`` or ``@workflow("name", metadata={...})``.

    The function takes one value or none. It is run once, here, with a handle in place of the value; the tasks it calls
    become the graph. Statements run in the order written, except inside ``with parallel():``. What the function
    computes itself is computed once, here: the time, a random number or a setting belong in a task. ``except`` around a
    call never sees a task's error, nor ``is None`` its value: let the task return what it found, and ``route()`` by
    that.

    Args:
        name: the workflow's name; default the function's.
        metadata: readable in every task by ``task_context().metadata``; JSON-like.

    Raises:
        GraphError: the function cannot be made a graph; the message has the file and line.

    Example::

        @workflow
        def greet(name: str) -> str:
            return shout(salute(name))
    """
    if fn is None or isinstance(fn, str):
        return partial(_trace, name=fn, metadata=metadata)
    return _trace(fn, None, metadata)


def _trace(fn: Callable[..., Any], name: str | None, metadata: Mapping[str, object] | None) -> Workflow[Any, Any]:
    where = call_site()
    name = _workflow_name(fn, name, where)
    hints = _workflow_hints(fn, name, where)
    body = Body(input_type=_input_type(fn, name, hints, where))
    recorder = Recorder(name, body, is_async=inspect.iscoroutinefunction(fn))
    has_input = body.input_type is not None
    args = (Handle(Origin(Input(body), recorder.scope, f"the input of workflow {name!r}", where)),) if has_input else ()
    with tracing(recorder):
        body.output = recorder.source(recorder.run(fn, args), where)
    recorder.finish()
    return Workflow(
        name,
        body,
        input_type=body.input_type,
        output_type=hints.get("return", declared(body.output)),
        has_input=has_input,
        metadata=metadata or {},
        where=where,
    )


def _workflow_name(fn: object, name: str | None, where: str) -> str:
    if not inspect.isfunction(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise GraphError(
            f"@workflow needs a plain `def` or `async def`, not {kind_of(fn)}; decorate a function that calls tasks",
            where,
        )
    try:
        return own_name(fn, name, "a workflow's name")
    except OptionError as error:
        raise GraphError(str(error), where) from None


def _workflow_hints(fn: Callable[..., Any], name: str, where: str) -> Mapping[str, object]:
    frame = user_frame()
    hints = resolved_hints(fn, frame.f_locals if frame else {})
    if hints is None:
        raise GraphError(unresolved(fn, f"workflow {name!r}"), where)
    return hints


def _input_type(fn: Callable[..., Any], name: str, hints: Mapping[str, object], where: str) -> object:
    """Return the declared type of the one parameter, ``None`` if there is none."""
    parameters = list(inspect.signature(fn).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(parameters) > 1 or len(positional) < len(parameters):
        raise GraphError(f"workflow {name!r} takes one input or none; put several values into a dataclass", where)
    if parameters and parameters[0].default is not inspect.Parameter.empty:
        raise GraphError(
            f"workflow {name!r}: a default of the input is never used; leave it out, and give run() the value", where
        )
    return hints.get(parameters[0].name, Any) if parameters else None


# --- what a workflow function may say ---------------------------------------------------------------


def _recorder(what: str) -> Recorder:
    tracer = active_tracer()
    if not isinstance(tracer, Recorder):
        raise UsageError(
            f"{what} stands inside a @workflow function only, where it notes a step; in a task, or anywhere else, "
            f"write plain Python: if, for, time.sleep()"
        )
    return tracer


def parallel(name: str = "parallel", *, on_error: OnError = "cancel") -> AbstractContextManager[None]:
    """``with parallel():`` runs what is called inside as soon as its arguments are there; its end waits for all.

    Args:
        name: the node's name.
        on_error: ``"cancel"`` starts nothing more after the first failure, ``"wait"`` runs what can still run.

    Example::

        @workflow
        def both(order: str) -> list[str]:
            with parallel():
                payment = charge(order)
                stock = reserve(order)
            return [payment, stock]
    """
    recorder, where = _recorder("parallel()"), call_site()
    node = ParallelNode(checked_name(name, "a parallel's name", where), [], checked_on_error(on_error, where), where)
    recorder.add(node)
    return recorder.block("parallel", f"parallel {name!r}", node.children)


def branch(name: str) -> AbstractContextManager[None]:
    """``with branch("eu"):`` directly inside ``parallel()`` makes its statements one sequence with its own path.

    Raises:
        GraphError: it stands elsewhere, or ``name`` cannot be part of a path.

    Example::

        @workflow
        def both(order: str) -> str:
            with parallel():
                with branch("money"):
                    delay("1h")
                    receipt = charge(order)
                stock = reserve(order)
            return confirm(receipt, stock)
    """
    recorder, where = _recorder("branch()"), call_site()
    if recorder.scope.kind != "parallel":
        raise GraphError(
            f"branch {name!r} must stand directly inside `with parallel():`; steps elsewhere follow each other anyway",
            where,
        )
    node = BranchNode(checked_name(name, "a branch's name", where), Body(), where)
    recorder.add(node)
    return recorder.block("branch", f"branch {name!r}", node.body.nodes)


@overload
def route(
    key: K,
    cases: Mapping[K, Callable[[], Async[R]] | Callable[[], R]],
    *,
    default: Callable[[], Async[R]] | Callable[[], R] | None = None,
    name: str = "route",
) -> R: ...
@overload
def route(  # pyright: ignore[reportOverlappingOverload] - mypy cannot solve R from the union above where cases are async
    key: K,
    cases: Mapping[K, Callable[[], Async[R]]],
    *,
    default: Callable[[], Async[R]] | None = None,
    name: str = "route",
) -> R: ...
def route(key: object, cases: Any, *, default: Callable[[], object] | None = None, name: str = "route") -> Any:
    """Choose one case by a key that is known at run time, and return the chosen case's value. It is not awaited.

    The choice is recorded before the case starts. Where the key's type is an Enum, Literal or bool, a missing case
    without a ``default`` is a GraphError.

    Args:
        key: a handle, or a selection from one; a str, int, bool or ``Enum`` at run time.
        cases: for each key a function without parameters, traced as that case. Under mypy the cases of one route must
            be all sync or all async for the result to have a type; an ``async def`` may hold sync tasks.
        default: the case for every other key; without it such a key fails the step with ``NoRoute``.
        name: the node's name.

    Example::

        @workflow
        def settle(order: str) -> str:
            return route(decide(order), {"yes": lambda: charge(order), "no": lambda: refund(order)})
    """
    recorder, where = _recorder("route()"), call_site()
    if not isinstance(key, Handle):
        raise GraphError(
            f"route() chooses by a handle, not by a {type(key).__name__}; a known key needs no route", where
        )
    source = recorder.source(key, where)
    title = f"a case of route {checked_name(name, 'a route', where)!r}"
    bodies = [(k, recorder.body("case", title, _function(fn, where))) for k, fn in checked_cases(cases, where).items()]
    otherwise = None if default is None else recorder.body("case", title, _function(default, where))
    key_type = declared(source)
    return recorder.add(
        RouteNode(name, source, label(source), bodies, otherwise, None if key_type is Any else key_type, where)
    )


def _function(fn: object, where: str) -> Callable[..., object]:
    if isinstance(fn, Handle) or not callable(fn):
        what = told(fn, where) if isinstance(fn, Handle) else kind_of(fn)
        raise GraphError(
            f"{what} stands where a function is needed, so that its steps belong to this part alone; "
            f"write `lambda: ...` around the call",
            where,
        )
    return fn


@overload
def loop(
    body: Callable[[S], Async[Again[S] | Done[R]]],
    first: S,
    *,
    max_iterations: int = 10,
    on_max: Literal["fail"] = "fail",
    name: str | None = None,
) -> R: ...
@overload
def loop(
    body: Callable[[S], Async[Again[S] | Done[R]]],
    first: S,
    *,
    max_iterations: int = 10,
    on_max: Literal["last"],
    name: str | None = None,
) -> R | S: ...
@overload
def loop(
    body: Callable[[S], Again[S] | Done[R]],
    first: S,
    *,
    max_iterations: int = 10,
    on_max: Literal["fail"] = "fail",
    name: str | None = None,
) -> R: ...
@overload
def loop(
    body: Callable[[S], Again[S] | Done[R]],
    first: S,
    *,
    max_iterations: int = 10,
    on_max: Literal["last"],
    name: str | None = None,
) -> R | S: ...
def loop(
    body: Callable[[Any], Any],
    first: object,
    *,
    max_iterations: int = 10,
    on_max: OnMax = "fail",
    name: str | None = None,
) -> Any:
    """Repeat ``body`` until it yields ``Done(value)``; ``Again(value)`` feeds the next turn. It is not awaited.

    Args:
        body: a task, a workflow, or a function of one handle that is traced as a sub-graph.
        first: the value of the first turn.
        max_iterations: the most turns, at least 1.
        on_max: after the last turn ``"fail"`` with ``LoopLimit``, or ``"last"``: yield the last value.
        name: the node's name; default the body's.

    Example::

        @workflow
        def polish(text: str) -> str:
            return loop(refine, text, max_iterations=5)
    """
    recorder, where = _recorder("loop()"), call_site()
    name = checked_name(name or body_name(_function(body, where), where), "a loop's name", where)
    source = recorder.source(first, where)
    takes = entry_type(body)
    if takes is None:
        raise GraphError(f"loop {name!r}: its body takes no value, so a turn could not feed the next", where)
    traced = recorder.body(
        "turn", f"the body of loop {name!r}", body, takes=declared(source) if takes is Any else takes
    )
    turns = checked_turns(max_iterations, on_max, where)
    return recorder.add(LoopNode(name, source, traced, turns, on_max, where))


def delay(duration: Duration, name: str = "delay") -> None:
    """Wait durably: the moment it ends is recorded when it is entered, and after a restart only the rest is waited for.

    ``run`` and ``resume`` sit through it; ``start`` and ``recover`` return, and nothing is held meanwhile.

    Args:
        duration: seconds, a ``timedelta``, or ``"100ms" "30s" "5m" "2h" "1d"``; at most ten years.
        name: the node's name.

    Raises:
        GraphError: not a duration, or directly in a ``parallel()``, where nothing would wait for it.

    Example::

        @workflow
        def remind(user: str) -> str:
            delay("3d", name="patience")
            return send_reminder(user)
    """
    recorder, where = _recorder("delay()"), call_site()
    recorder.add(DelayNode(checked_name(name, "a delay's name", where), span_us(duration, "delay", where), where))


@overload
def signal(name: str, type: type[T], *, timeout: Duration | None = None) -> T: ...
@overload
def signal(name: str, type: type[T], *, timeout: Duration, on_timeout: Callable[[], Async[R]]) -> T | R: ...
@overload
def signal(name: str, type: type[T], *, timeout: Duration, on_timeout: Callable[[], R]) -> T | R: ...
@overload
def signal(
    name: str, type: object = Any, *, timeout: Duration | None = None, on_timeout: Callable[[], object] | None = None
) -> Any: ...
def signal(
    name: str, type: object = Any, *, timeout: Duration | None = None, on_timeout: Callable[[], object] | None = None
) -> Any:
    """Wait for a message named ``name`` and return its payload.

    Messages of one name are taken first in, first out; one sent before the wait begins is kept.

    Args:
        name: the signal's name, and the node's.
        type: what the payload is decoded as; it is also checked where it is sent, by a runner that knows the workflow.
        timeout: how long to wait: seconds, a ``timedelta``, or ``"100ms" "30s" "5m" "2h" "1d"``; default for ever.
        on_timeout: a function without parameters, traced as what happens instead; its value stands for the payload.
            Without it a timeout fails the step with ``SignalTimeout``.

    Example::

        @workflow
        def publish(draft: str) -> str:
            decision = signal("approve", Decision, timeout="2d", on_timeout=escalate)
            return file(draft, decision)

        runner.client.signal("post-7", "approve", Decision(granted=True))
    """
    recorder, where = _recorder("signal()"), call_site()
    checked_name(name, "a signal's name", where)
    timeout_us = timeout_span_us(timeout, on_timeout is not None, name, where)
    title = f"the timeout branch of signal {name!r}"
    body = None if on_timeout is None else recorder.body("timeout", title, _function(on_timeout, where))
    return recorder.add(SignalNode(name, name, type, timeout_us, body, where))
