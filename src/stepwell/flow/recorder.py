"""What turns the calls of a workflow function into nodes: the open blocks, and what may stand in them.

:mod:`.trace` says what a workflow function may say; this is how it is taken down. A handle is resolved to a source
where it is read, so a value that cannot be there is refused at that line. An ``async def`` is run by one
``send(None)``: awaiting a handle does not suspend, so whatever suspends awaits something that has no place in a graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Final, cast

from stepwell.errors import GraphError
from stepwell.types import DEFAULT_LIMITS, Again, Done

from .handle import Handle, Origin, Scope, ScopeKind
from .nodes import (
    Body,
    ChildNode,
    Const,
    DelayNode,
    Display,
    DisplayKind,
    Input,
    Node,
    Select,
    SignalNode,
    Source,
    TaskNode,
    Value,
)
from .steps import is_task, is_workflow
from .task import AnyTask
from .tracer import call_site

if TYPE_CHECKING:
    from .workflow import AnyWorkflow


class Recorder:
    """Turns the calls of one workflow function into nodes."""

    def __init__(self, name: str, body: Body, *, is_async: bool) -> None:
        self.is_async = is_async
        self.scope = Scope("workflow", f"workflow {name!r}", body.nodes)
        self._awaiting: dict[Node, Handle] = {}
        self._in_parallel: list[SignalNode] = []
        self._read: set[Node] = set()
        self._refusal: Exception | None = None

    # what tasks and workflows call

    def call(self, task: AnyTask, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Handle:
        where = call_site()
        if task.is_async and not self.is_async:
            raise GraphError(
                f"task {task.name!r} is async; make the workflow an `async def` and write `await` before the call",
                where,
            )
        sources = {name: self.source(value, where) for name, value in kwargs.items()}
        bound = task.bind(tuple(self.source(value, where) for value in args), sources, where)
        return self.add(TaskNode(task.node_name, task, *bound, where=where, was=task.was), ready=not task.is_async)

    def child(self, workflow: AnyWorkflow, args: tuple[object, ...]) -> Handle:
        where = call_site()
        if len(args) != workflow.has_input:
            wanted, call = ("one argument", "value") if workflow.has_input else ("no argument", "")
            raise GraphError(
                f"workflow {workflow.name!r} takes {wanted}, not {len(args)}; call it as {workflow.name}({call})", where
            )
        arg = self.source(args[0], where) if args else None
        return self.add(ChildNode(workflow.name, workflow, arg, where=where))

    # nodes and blocks

    def add(self, node: Node, *, ready: bool = True) -> Handle:
        """Append a node to the open block and return the handle of its value."""
        if self.scope.kind == "parallel":
            self._check_stands_in_parallel(node)
        self.scope.nodes.append(node)
        made_by = f"{_kind(node)} {node.name!r}"
        if ready:
            return Handle(Origin(Value(node), self.scope.home, made_by, node.where))
        self._awaiting[node] = Handle(
            Origin(Value(node), self.scope.home, made_by, node.where, False, lambda: self._awaiting.pop(node, None))
        )
        return self._awaiting[node]

    def _check_stands_in_parallel(self, node: Node) -> None:
        if isinstance(node, DelayNode):
            raise GraphError(
                f"delay {node.name!r} stands directly in a parallel(), where nothing waits for it; "
                f'put it in a `with branch("name"):` with what follows it',
                node.where,
            )
        if isinstance(node, SignalNode):
            self._in_parallel.append(node)

    def block(self, kind: ScopeKind, title: str, nodes: list[Node]) -> _Block:
        """Open a block; ``with recorder.block(...):`` records into ``nodes``."""
        return _Block(self, Scope(kind, title, nodes, self.scope))

    def body(self, kind: ScopeKind, title: str, fn: Callable[..., object], *, takes: object = None) -> Body:
        """Trace a function into a body of its own; it is called with a handle if ``takes`` is a type."""
        where = call_site()
        _check_takes(fn, 0 if takes is None else 1, title, where)
        body = Body(input_type=takes)
        with self.block(kind, title, body.nodes):
            args = () if takes is None else (Handle(Origin(Input(body), self.scope, f"the value of {title}", where)),)
            body.output = self.source(self.run(fn, args), where)
        return body

    def run(self, fn: Callable[..., object], args: tuple[Handle, ...]) -> object:
        """Call a function of the user's and return what it returns, awaited."""
        result = fn(*args)
        if isinstance(result, Handle) and not result.__origin__.ready:
            result = _awaited(result)
        return self._driven(result, fn) if inspect.iscoroutine(result) else result

    def _driven(self, coroutine: CoroutineType[object, None, object], fn: object) -> object:
        where = call_site()
        if not self.is_async:
            coroutine.close()
            raise GraphError("an async function stands in a sync workflow; make the workflow an `async def`", where)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return cast(object, end.value)
        except RuntimeError as error:
            if "event loop" not in str(error):
                raise
            raise GraphError(_SUSPENDED, _await_line(fn, coroutine, error) or where) from error
        where = _await_line(fn, coroutine) or where
        coroutine.close()
        raise GraphError(_SUSPENDED, where)

    # values

    def source(self, value: object, where: str, depth: int = 0) -> Source:
        """Return where a value comes from: a handle's source, a display around handles, or a constant."""
        if isinstance(value, Handle):
            return self._read_handle(value.__origin__, where)
        if depth > DEFAULT_LIMITS.depth:
            raise GraphError(f"an argument is nested deeper than {DEFAULT_LIMITS.depth}", where)
        kind = _DISPLAYS.get(type(value))
        if kind == "dict":
            entries = cast("dict[object, object]", value)
            return self._display(kind, list(entries.values()), tuple(entries), value, where, depth)
        if kind is not None:
            return self._display(kind, cast("list[object]", value), (), value, where, depth)
        _check_constant(value, where)
        return Const(value)

    def _display(
        self, kind: DisplayKind, items: list[object], keys: tuple[object, ...], whole: object, where: str, depth: int
    ) -> Source:
        sources = tuple(self.source(item, where, depth + 1) for item in items)
        if all(isinstance(s, Const) for s in sources):
            return Const(whole)
        return Display(kind, sources, keys)

    def _read_handle(self, origin: Origin, where: str) -> Source:
        if not origin.ready:
            raise GraphError(f"{origin.made_by} is async; write `await` before its call at {origin.where}", where)
        if not self.scope.within(origin.home):
            raise GraphError(
                f"{origin.made_by}, made at {origin.where} inside {origin.home.title}, cannot be read outside of it; "
                f"return it from there and use that result",
                where,
            )
        if isinstance(node := _producer(origin.source), Value):
            self._read.add(node.node)
        return origin.source

    def refused(self, error: Exception) -> None:
        self._refusal = self._refusal or error

    def finish(self) -> None:
        """Check what can be known only at the end. Raises GraphError."""
        if self._refusal is not None:
            raise self._refusal
        for origin in (handle.__origin__ for handle in self._awaiting.values()):
            raise GraphError(
                f"{origin.made_by} is async and was never awaited; write `await` before the call", origin.where
            )
        for node in self._in_parallel:
            if node not in self._read:
                raise GraphError(
                    f"nobody reads signal {node.name!r}, which stands directly in a parallel(); "
                    f'put it in a `with branch("name"):` with what waits for it',
                    node.where,
                )


def _await_line(fn: object, coroutine: CoroutineType[object, None, object], error: BaseException | None = None) -> str:
    """Return the line of ``fn`` on which its coroutine awaits, ``""`` where the coroutine is another function's."""
    code, frame = coroutine.cr_code, coroutine.cr_frame
    if code is not getattr(fn, "__code__", None):
        return ""
    line, came_through = frame.f_lineno if frame is not None else 0, error.__traceback__ if error is not None else None
    while came_through is not None:
        line = came_through.tb_lineno if came_through.tb_frame.f_code is code else line
        came_through = came_through.tb_next
    return f"{code.co_filename}:{line}"


async def _awaited(handle: Handle) -> Handle:
    return await handle


_SUSPENDED: Final = "a workflow may await async tasks only; to wait use delay(), and await the rest in an async task"


_DISPLAYS: Final[Mapping[type, DisplayKind]] = {list: "list", tuple: "tuple", dict: "dict"}


class _Block:
    """``with`` this, the recorder records into the scope."""

    def __init__(self, recorder: Recorder, scope: Scope) -> None:
        self._recorder, self._scope = recorder, scope

    def __enter__(self) -> None:
        self._recorder.scope = self._scope

    def __exit__(self, *exc: object) -> None:
        assert self._scope.parent is not None
        self._recorder.scope = self._scope.parent


def _check_takes(fn: Callable[..., object], count: int, title: str, where: str) -> None:
    if is_task(fn) or is_workflow(fn):
        return  # they say so themselves when they are called
    try:
        inspect.signature(fn).bind(*[None] * count)
    except TypeError as error:
        takes = "one value" if count else "no arguments"
        raise GraphError(f"{title} is a function of {takes}: {error}", where) from None


def _kind(node: Node) -> str:
    return type(node).__name__.removesuffix("Node").lower()


def _producer(source: Source) -> Source:
    return source.base if isinstance(source, Select) else source


def _check_constant(value: object, where: str) -> None:
    if type(value) in (Again, Done):
        raise GraphError(f"{type(value).__name__}(...) is made in a task; a workflow function only passes it on", where)
    if any(isinstance(inner, Handle) for inner in _inside(value)):
        raise GraphError(
            f"a {type(value).__name__} holds a handle; only list, tuple and dict displays may, as a handle is no value "
            f"yet; make the {type(value).__name__} in a task that is given the parts",
            where,
        )


def _inside(value: object) -> list[object]:
    if isinstance(value, tuple):
        return list(cast("tuple[object, ...]", value))
    return list(getattr(value, "__dict__", {}).values()) + [
        getattr(value, name, None) for name in getattr(type(value), "__match_args__", ())
    ]
