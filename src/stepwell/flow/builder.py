"""The fluent form: a pipeline in which each step feeds the next.

A :class:`Chain` is an immutable row of :mod:`~stepwell.flow.stages`. What can be checked without the rest of the graph
is checked in the call that adds a stage, so that the error points at that line.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack, overload

from stepwell.errors import GraphError
from stepwell.timing import Duration
from stepwell.types import Again, Done

from .nodes import OnError, OnMax
from .rows import Row, Start, Unfinished, single_stage, stages_of
from .stages import Branch, Call, ForkJoin, Stages, first_name, unique_names
from .steps import checked_name, checked_on_error
from .tracer import call_site
from .workflow import Workflow

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
K = TypeVar("K")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
New = TypeVar("New")

# Why route() has three overloads: pyright solves the first for every mixture of steps. mypy solves it only where the
# cases are all sync or all chains; the second is for async cases, the third, without the result's type, for mixtures.
Async: TypeAlias = Coroutine[Any, Any, T]
Step: TypeAlias = "Callable[[T], Async[R]] | Callable[[T], R] | Workflow[T, R] | Chain[T, R]"
Last: TypeAlias = "Callable[[T], object] | Workflow[T, object] | Chain[T, object]"
LoopBody: TypeAlias = (
    "Callable[[S], Again[S] | Done[R]] | Workflow[S, Again[S] | Done[R]] | Chain[S, Again[S] | Done[R]]"
)
AnyStep: TypeAlias = "Callable[..., Any] | Workflow[Any, Any] | Chain[Any, Any]"


class Named(TypedDict, total=False):
    """What every step may be given: ``name``, and ``was``, its name in earlier versions of the workflow."""

    name: str | None
    was: str


class _Pipe(Row):
    """What :class:`Flow` and :class:`Chain` share."""

    __slots__ = ()

    def _then(self, step: object, name: str | None, was: str) -> Chain[Any, Any]:
        return self.chain(self._grown(*stages_of(step, name, call_site(), was=was)))

    def chain(self, stages: Stages) -> Chain[Any, Any]:
        return Chain[Any, Any](self.start, stages)

    def joined(self, fork: ForkJoin) -> Chain[Any, Any]:
        return self.chain(self._grown(fork))

    def _fork(self, name: str, on_error: OnError, was: str) -> Fork[Any, Any]:
        where = call_site()
        name = checked_name(name, "a fork's name", where)
        return Fork(self, name, checked_on_error(on_error, where), was, (), where)


class Flow(_Pipe):
    """The beginning of a pipeline; its first step gives a :class:`Chain`, which knows its types.

    Args:
        name: the workflow's name. Without one the chain is a step: a branch, a route's case, a loop's body.
        metadata: readable in every task by ``task_context().metadata``; JSON-like.
        input: the input's type, where the first step does not declare it. A flow whose first step has no required
            parameter takes no input, unless this says so.

    Every call returns a new object.

    Example:
        >>> digest = Flow("digest").then(str.strip, name="strip").then(len).build()
        >>> digest.name
        'digest'
    """

    __slots__ = ()

    def __init__(
        self, name: str | None = None, *, metadata: Mapping[str, object] | None = None, input: object = None
    ) -> None:
        where = call_site()
        checked = "" if name is None else checked_name(name, "a workflow's name", where)
        super().__init__(Start(checked, dict(metadata or {}), input, where), ())

    @overload
    def then(self, step: Workflow[A, New] | Chain[A, New], /, **named: Unpack[Named]) -> Chain[A, New]: ...
    @overload
    def then(self, step: Callable[[], Async[New]], /, **named: Unpack[Named]) -> Chain[None, New]: ...
    @overload
    def then(self, step: Callable[[], New], /, **named: Unpack[Named]) -> Chain[None, New]: ...
    @overload
    def then(self, step: Callable[[A], Async[New]], /, **named: Unpack[Named]) -> Chain[A, New]: ...
    @overload
    def then(self, step: Callable[[A], New], /, **named: Unpack[Named]) -> Chain[A, New]: ...
    def then(self, step: Any, /, *, name: str | None = None, was: str = "") -> Chain[Any, Any]:
        """Begin with a step: a task, a function, a lambda with ``name=``, a workflow, or a chain begun by ``Flow()``.

        A step without required parameters begins a workflow without input.
        """
        return self._then(step, name, was)

    def fork(self, *, name: str = "parallel", on_error: OnError = "cancel", was: str = "") -> Fork[Any, Any]:
        """Begin with branches side by side; see :meth:`Chain.fork`."""
        return self._fork(name, on_error, was)

    @overload
    def route(
        self,
        key: Step[A, K],
        cases: Mapping[K, Step[A, R]],
        *,
        default: Step[A, R] | None = ...,
        **named: Unpack[Named],
    ) -> Chain[A, R]: ...
    @overload
    def route(  # pyright: ignore[reportOverlappingOverload]
        self,
        key: Callable[[A], K],
        cases: Mapping[K, Callable[[A], Async[R]]],
        *,
        default: Callable[[A], Async[R]] | None = ...,
        **named: Unpack[Named],
    ) -> Chain[A, R]: ...
    @overload
    def route(  # pyright: ignore[reportOverlappingOverload]
        self, key: Step[A, K], cases: Mapping[K, Last[A]], *, default: Last[A] | None = ..., **named: Unpack[Named]
    ) -> Chain[A, Any]: ...
    def route(
        self, key: Any, cases: Mapping[Any, Any], *, default: Any = None, name: str | None = None, was: str = ""
    ) -> Any:
        """Begin with a choice; see :meth:`Chain.route`."""
        return self.chain(self._route(key, cases, default, name, was))

    @overload
    def loop(
        self,
        body: Callable[[S], Async[Again[S] | Done[R]]],
        /,
        *,
        max_iterations: int = ...,
        on_max: Literal["fail"] = ...,
        **named: Unpack[Named],
    ) -> Chain[S, R]: ...
    @overload
    def loop(
        self,
        body: Callable[[S], Async[Again[S] | Done[R]]],
        /,
        *,
        max_iterations: int = ...,
        on_max: Literal["last"],
        **named: Unpack[Named],
    ) -> Chain[S, R | S]: ...
    @overload
    def loop(
        self,
        body: LoopBody[S, R],
        /,
        *,
        max_iterations: int = ...,
        on_max: Literal["fail"] = ...,
        **named: Unpack[Named],
    ) -> Chain[S, R]: ...
    @overload
    def loop(
        self, body: LoopBody[S, R], /, *, max_iterations: int = ..., on_max: Literal["last"], **named: Unpack[Named]
    ) -> Chain[S, R | S]: ...
    def loop(
        self, body: Any, /, *, max_iterations: int = 10, on_max: OnMax = "fail", name: str | None = None, was: str = ""
    ) -> Any:
        """Begin with a loop over the input; see :meth:`Chain.loop`."""
        return self.chain(self._loop(body, max_iterations, on_max, name, was))

    @overload
    def signal(self, name: str, type: type[T], *, timeout: Duration | None = ..., was: str = ...) -> Chain[None, T]: ...
    @overload
    def signal(
        self,
        name: str,
        type: object = ...,
        *,
        timeout: Duration | None = ...,
        on_timeout: AnyStep | None = ...,
        was: str = ...,
    ) -> Chain[Any, Any]: ...
    def signal(
        self, name: str, type: object = Any, *, timeout: Duration | None = None, on_timeout: Any = None, was: str = ""
    ) -> Any:
        """Begin by waiting for a message; see :meth:`Chain.signal`."""
        return self.chain(self._signal(name, type, timeout, on_timeout, was))

    def delay(self, name: str, duration: Duration, *, was: str = "") -> Flow:
        """Begin with a durable wait; the input passes."""
        flow = object.__new__(Flow)
        Row.__init__(flow, self.start, self._delay(name, duration, was))
        return flow

    def build(self) -> Workflow[Any, Any]:
        """Raise GraphError where there is no step yet; else see :meth:`Chain.build`."""
        return self._build()


class Chain(_Pipe, Generic[In, Out]):
    """A pipeline from ``In`` to ``Out``; every call returns a new one. Begun by :class:`Flow`.

    Example:
        >>> chain = Flow("digest").then(str.split, name="split").then(len)
        >>> chain.then(lambda n: f"{n} words", name="say").build().name
        'digest'
    """

    __slots__ = ()

    @overload
    def then(self, step: Workflow[Out, New] | Chain[Out, New], /, **named: Unpack[Named]) -> Chain[In, New]: ...
    @overload
    def then(self, step: Callable[[Out], Async[New]], /, **named: Unpack[Named]) -> Chain[In, New]: ...
    @overload
    def then(self, step: Callable[[Out], New], /, **named: Unpack[Named]) -> Chain[In, New]: ...
    def then(self, step: Any, /, *, name: str | None = None, was: str = "") -> Chain[In, Any]:
        """Give the value to a step, whose result is the value from here on.

        Args:
            step: a task, a function, a lambda with ``name=``, a workflow, or a chain begun by ``Flow()``.
            name: the node's name; default the task's.
            was: the node's name in earlier versions of this workflow.

        Raises:
            GraphError: the step does not take exactly the one value.
        """
        return self._then(step, name, was)

    def fork(self, *, name: str = "parallel", on_error: OnError = "cancel", was: str = "") -> Fork[In, Out]:
        """Give the value to several branches at once: ``fork().branch(...).branch(...).join(...)``.

        ``on_error`` ``"cancel"`` starts nothing more after the first failure, ``"wait"`` runs what can still run.
        ``was`` is the node's name in earlier versions of this workflow.
        """
        return self._fork(name, on_error, was)

    @overload
    def route(
        self,
        key: Step[Out, K],
        cases: Mapping[K, Step[Out, R]],
        *,
        default: Step[Out, R] | None = ...,
        **named: Unpack[Named],
    ) -> Chain[In, R]: ...
    @overload
    def route(  # pyright: ignore[reportOverlappingOverload]
        self,
        key: Callable[[Out], K],
        cases: Mapping[K, Callable[[Out], Async[R]]],
        *,
        default: Callable[[Out], Async[R]] | None = ...,
        **named: Unpack[Named],
    ) -> Chain[In, R]: ...
    @overload
    def route(  # pyright: ignore[reportOverlappingOverload]
        self,
        key: Step[Out, K],
        cases: Mapping[K, Last[Out]],
        *,
        default: Last[Out] | None = ...,
        **named: Unpack[Named],
    ) -> Chain[In, Any]: ...
    def route(
        self, key: Any, cases: Mapping[Any, Any], *, default: Any = None, name: str | None = None, was: str = ""
    ) -> Any:
        """Choose one case by a key; the chosen case's value is the value from here on.

        Args:
            key: a task or function that computes the key from the value: a str, int, bool or ``Enum``.
            cases: for each key a step; it is given the same value as ``key``.
            default: the step for every other key; without it such a key fails with ``NoRoute``.
            name: the node's name, by default ``"route"``; a lambda as ``key`` needs it and is called ``<name>-key``.
            was: the node's name in earlier versions.
        """
        return self.chain(self._route(key, cases, default, name, was))

    @overload
    def loop(
        self,
        body: Callable[[Out], Async[Again[Out] | Done[R]]],
        /,
        *,
        max_iterations: int = ...,
        on_max: Literal["fail"] = ...,
        **named: Unpack[Named],
    ) -> Chain[In, R]: ...
    @overload
    def loop(
        self: Chain[In, S],
        body: Callable[[S], Async[Again[S] | Done[R]]],
        /,
        *,
        max_iterations: int = ...,
        on_max: Literal["last"],
        **named: Unpack[Named],
    ) -> Chain[In, R | S]: ...
    @overload
    def loop(
        self,
        body: LoopBody[Out, R],
        /,
        *,
        max_iterations: int = ...,
        on_max: Literal["fail"] = ...,
        **named: Unpack[Named],
    ) -> Chain[In, R]: ...
    @overload
    def loop(
        self: Chain[In, S],
        body: LoopBody[S, R],
        /,
        *,
        max_iterations: int = ...,
        on_max: Literal["last"],
        **named: Unpack[Named],
    ) -> Chain[In, R | S]: ...
    def loop(
        self, body: Any, /, *, max_iterations: int = 10, on_max: OnMax = "fail", name: str | None = None, was: str = ""
    ) -> Any:
        """Repeat ``body`` on its own value until it yields ``Done(value)``; ``Again(value)`` feeds the next turn.

        Args:
            body: a step that ends in a task returning ``Again`` or ``Done``.
            max_iterations: the most turns, at least 1.
            on_max: after the last turn ``"fail"`` with ``LoopLimit``, or ``"last"``: the last value is the loop's.
            name: the node's name; default the body's.
            was: the node's name in earlier versions.
        """
        return self.chain(self._loop(body, max_iterations, on_max, name, was))

    def delay(self, name: str, duration: Duration, *, was: str = "") -> Chain[In, Out]:
        """Wait durably; the value passes. ``duration``: seconds, ``timedelta`` or ``"100ms" "30s" "5m" "2h" "1d"``."""
        return self.chain(self._delay(name, duration, was))

    @overload
    def signal(self, name: str, type: type[T], *, timeout: Duration | None = ..., was: str = ...) -> Chain[In, T]: ...
    @overload
    def signal(
        self,
        name: str,
        type: type[T],
        *,
        timeout: Duration,
        on_timeout: Workflow[Out, R] | Chain[Out, R],
        was: str = ...,
    ) -> Chain[In, T | R]: ...
    @overload
    def signal(
        self, name: str, type: type[T], *, timeout: Duration, on_timeout: Callable[[Out], Async[R]], was: str = ...
    ) -> Chain[In, T | R]: ...
    @overload
    def signal(
        self, name: str, type: type[T], *, timeout: Duration, on_timeout: Callable[[Out], R], was: str = ...
    ) -> Chain[In, T | R]: ...
    @overload
    def signal(
        self,
        name: str,
        type: object = ...,
        *,
        timeout: Duration | None = ...,
        on_timeout: AnyStep | None = ...,
        was: str = ...,
    ) -> Chain[In, Any]: ...
    def signal(
        self, name: str, type: object = Any, *, timeout: Duration | None = None, on_timeout: Any = None, was: str = ""
    ) -> Any:
        """Wait for a message; its payload is the value from here on.

        Args:
            name: the signal's name, and the node's.
            type: what the payload is decoded as, and checked against where it is sent.
            timeout: how long to wait.
            on_timeout: a step that runs instead, on the value before the signal (or on none if it takes none); its
                value stands for the payload. Without it a timeout fails the step with ``SignalTimeout``.
            was: the node's name in earlier versions.
        """
        return self.chain(self._signal(name, type, timeout, on_timeout, was))

    def build(self) -> Workflow[In, Out]:
        """Return the finished workflow. Raises GraphError with the line of the step that does not fit."""
        return self._build()


@dataclass(frozen=True, slots=True, repr=False)
class Fork(Unfinished, Generic[In, Out]):
    """Branches being collected; :meth:`join` closes them. Every call returns a new one."""

    _row: _Pipe
    _name: str
    _on_error: OnError
    _was: str
    _branches: tuple[Branch, ...]
    _where: str

    def __repr__(self) -> str:
        return f"<fork {self._name!r}: {', '.join(unique_names(self._branches)) or 'empty'}>"

    @overload
    def branch(self, s1: Last[Out], /, *, name: str | None = ...) -> Fork[In, Out]: ...
    @overload
    def branch(self, s1: Callable[[Out], Async[A]], s2: Last[A], /, *, name: str | None = ...) -> Fork[In, Out]: ...
    @overload
    def branch(self, s1: Step[Out, A], s2: Last[A], /, *, name: str | None = ...) -> Fork[In, Out]: ...
    @overload
    def branch(
        self, s1: Callable[[Out], Async[A]], s2: Callable[[A], Async[B]], s3: Last[B], /, *, name: str | None = ...
    ) -> Fork[In, Out]: ...
    @overload
    def branch(self, s1: Step[Out, A], s2: Step[A, B], s3: Last[B], /, *, name: str | None = ...) -> Fork[In, Out]: ...
    @overload
    def branch(
        self,
        s1: Callable[[Out], Async[A]],
        s2: Callable[[A], Async[B]],
        s3: Callable[[B], Async[C]],
        s4: Last[C],
        /,
        *,
        name: str | None = ...,
    ) -> Fork[In, Out]: ...
    @overload
    def branch(
        self, s1: Step[Out, A], s2: Step[A, B], s3: Step[B, C], s4: Last[C], /, *, name: str | None = ...
    ) -> Fork[In, Out]: ...
    @overload
    def branch(
        self,
        s1: Callable[[Out], Async[A]],
        s2: Callable[[A], Async[B]],
        s3: Callable[[B], Async[C]],
        s4: Callable[[C], Async[D]],
        s5: Last[D],
        /,
        *,
        name: str | None = ...,
    ) -> Fork[In, Out]: ...
    @overload
    def branch(
        self,
        s1: Step[Out, A],
        s2: Step[A, B],
        s3: Step[B, C],
        s4: Step[C, D],
        s5: Last[D],
        /,
        *,
        name: str | None = ...,
    ) -> Fork[In, Out]: ...
    def branch(self, *steps: Any, name: str | None = None) -> Fork[In, Out]:
        """Add a branch: one step, or several that run one after the other.

        Args:
            steps: what :meth:`Chain.then` takes; the first is given the value at the fork.
            name: the branch's name, by which the join finds its value; default the first step's name.
        """
        where = call_site()
        if not steps:
            raise GraphError("branch() needs at least one step; give it tasks, as branch(polish)", where)
        stages: Stages = ()
        for step in steps:
            alone = len(steps) == 1 and not isinstance(step, Row)
            stages = (*stages, *stages_of(step, name if alone else None, where))
        own = first_name(stages, self._row.feed(stages))
        chosen = checked_name(own if name is None else name, "a branch's name", where)
        return replace(self, _branches=(*self._branches, Branch(stages, chosen, where)))

    @overload
    def join(self, step: Callable[..., Async[New]], /, **named: Unpack[Named]) -> Chain[In, New]: ...
    @overload
    def join(self, step: Callable[..., New], /, **named: Unpack[Named]) -> Chain[In, New]: ...
    def join(self, step: Callable[..., Any], /, *, name: str | None = None, was: str = "") -> Chain[In, Any]:
        """Close the fork: ``step`` is given what the branches left.

        With one required parameter it gets a dict by branch name, with several each is the value of the branch of that
        name. Repeated branch names are numbered: ``charge``, ``charge#2``.

        Raises:
            GraphError: there is no branch, or parameters and branch names do not fit.
        """
        where = call_site()
        if not self._branches:
            raise GraphError("a fork needs at least one branch() before join(); add one, or use then()", where)
        joined = single_stage(step, name, was, where)
        if not isinstance(joined, Call):
            raise GraphError(
                "join() takes a task or a function, not a workflow; join first, then give it to the workflow by then()",
                where,
            )
        stage = ForkJoin(self._name, self._on_error, self._was, self._branches, joined, self._where)
        return self._row.joined(stage)
