"""The untyped half of the fluent form: from what users pass to :mod:`.stages`, and from those to a workflow.

:mod:`.builder` gives it types. What can be checked without the rest of the graph is checked in the call that adds a
stage, so that the error points at that line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from stepwell.errors import GraphError
from stepwell.timing import Duration

from .declared import declared
from .nodes import Body, Const, Input, OnMax, Source
from .stages import Call, Child, Delay, Loop, Route, Signal, Stage, Stages, add_all, wants
from .steps import checked_cases, checked_name, checked_turns, is_workflow, span_us, timeout_span_us
from .task import as_task
from .tracer import call_site
from .workflow import Workflow


class Unfinished:
    """What the fluent calls return before ``build()``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Start:
    """What a flow was begun with. ``name`` is empty for a chain that is only a step."""

    name: str
    metadata: Mapping[str, object]
    input_type: object
    where: str


class Row(Unfinished):
    """A start and the stages so far. The methods that add a stage check it, and return the longer row of stages."""

    __slots__ = ("stages", "start")

    def __init__(self, start: Start, stages: Stages) -> None:
        self.start, self.stages = start, stages

    def __repr__(self) -> str:
        names = " -> ".join(stage.name for stage in self.stages)
        return f"<{type(self).__name__.lower()} {self.start.name!r}: {names or 'empty'}>"

    def _grown(self, *more: Stage) -> Stages:
        """Return the stages with more; whether they take the value before them is checked here, at the user's call."""
        add_all(more, [], self.feed(more))
        return (*self.stages, *more)

    def feed(self, more: Stages) -> Source | None:
        """Return a stand-in for the value that ``more`` would be given, ``None`` if they begin a flow without input."""
        begins = all(isinstance(stage, Delay) for stage in self.stages) and self.start.input_type is None
        return None if begins and wants(more) is None else Const(None)

    def _route(self, key: object, cases: object, default: object, name: str | None, was: str) -> Stages:
        where = call_site()
        chosen = checked_name("route" if name is None else name, "a route's name", where)
        key_name = f"{name}-key" if name is not None and getattr(key, "__name__", "") == "<lambda>" else None
        return self._grown(
            Route(
                single_stage(key, key_name, "", where),
                tuple((k, stages_of(step, None, where)) for k, step in checked_cases(cases, where).items()),
                None if default is None else stages_of(default, None, where),
                chosen,
                was,
                where,
            )
        )

    def _loop(self, body: object, turns: int, on_max: OnMax, name: str | None, was: str) -> Stages:
        where = call_site()
        own = name is None or isinstance(body, Row) or is_workflow(body) or getattr(body, "__name__", "") != "<lambda>"
        stages = stages_of(body, None if own else name, where)
        chosen = checked_name(name or stages[0].name, "a loop's name", where)
        return self._grown(Loop(stages, chosen, checked_turns(turns, on_max, where), on_max, was, where))

    def _delay(self, name: str, duration: Duration, was: str) -> Stages:
        where = call_site()
        span = span_us(duration, f"delay {name!r}", where)
        return self._grown(Delay(checked_name(name, "a delay's name", where), span, was, where))

    def _signal(self, name: str, payload: object, timeout: Duration | None, on_timeout: object, was: str) -> Stages:
        where = call_site()
        checked_name(name, "a signal's name", where)
        timeout_us = timeout_span_us(timeout, on_timeout is not None, name, where)
        stages = None if on_timeout is None else stages_of(on_timeout, None, where)
        return self._grown(Signal(name, payload, timeout_us, stages, was, where))

    def _build(self) -> Workflow[Any, Any]:
        start = self.start
        if not start.name:
            raise GraphError(
                "a Flow() without a name is a step of another; give it a name, as Flow('digest'), to build it",
                start.where,
            )
        input_type = wants(self.stages) if start.input_type is None else start.input_type
        has_input = input_type is not None
        body = Body(input_type=input_type)
        body.output = add_all(self.stages, body.nodes, Input(body) if has_input else None)
        return Workflow(
            start.name,
            body,
            input_type=input_type,
            output_type=declared(body.output),
            has_input=has_input,
            metadata=start.metadata,
            where=start.where,
        )


def stages_of(step: object, name: str | None, where: str, *, was: str = "") -> Stages:
    """Return the stages of a step: a task, a function, a workflow or a chain."""
    if was:
        checked_name(was, "was=", where)
    if isinstance(step, Row):
        if name is not None or was:
            raise GraphError("a chain takes no name= or was= here; name its steps", where)
        if not step.stages:
            raise GraphError("an empty Flow() is no step; add at least one with then()", where)
        return step.stages
    return (single_stage(step, name, was, where),)


def single_stage(step: object, name: str | None, was: str, where: str) -> Call | Child:
    """Return the stage of a step that is one node: a task, a function or a workflow."""
    if isinstance(step, Unfinished):
        raise GraphError("a chain cannot stand here; use a task, a function or a workflow", where)
    if is_workflow(step):
        return Child(step, checked_name(name or step.name, "a node's name", where), was, where)
    task = as_task(cast(Callable[..., Any], step), name, where)
    return Call(task, checked_name(name or task.node_name, "a node's name", where), was or task.was, where)
