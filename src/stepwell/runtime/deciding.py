"""A person's decision about a held instance: whether it fits the hold, and how it is written as a message."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from stepwell.codec import Codec, type_name
from stepwell.engine import advance
from stepwell.engine import events as e
from stepwell.engine.frontier import Frontier, Request, case_of
from stepwell.errors import CodecError, EncodeError, OptionError, UsageError
from stepwell.flow.declared import may_say_again, turn_types
from stepwell.flow.plan import NONE, Plan
from stepwell.types import Again, Complete, Decision, Done, Fail, Rerun

from .ending import deaths, hold_text
from .requests import Verdict, said

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow


@contextmanager
def about(instance_id: str) -> Generator[None]:
    """Let a refusal of a decision say which instance it was for."""
    try:
        yield
    except (UsageError, EncodeError) as error:
        error.args = (f"instance {instance_id!r}: {error}",)
        raise


def held_of(plan: Plan, state: Frontier, instance_id: str, path: str) -> Request:
    """Return what an instance is held for. Raises UsageError if it is not held, or not for ``path``."""
    what = f"instance {instance_id!r}"
    if state.held is None:
        mend = "client.resume() lets it go on" if state.paused else "client.explain() says what it waits for"
        raise UsageError(f"{what} is not held, so there is nothing to decide; {mend}")
    right = plan.path(state.held.node, state.held.turns)
    if path != right:
        why = hold_text(plan, state.held, deaths(state))
        raise UsageError(f"{what}: {why}; the decision must be about {right!r}, not {path!r}")
    return state.held


def written(
    codec: Codec, plan: Plan, held: Request, decision: Decision, by: str, workflow: AnyWorkflow | None
) -> tuple[Verdict, bytes | None]:
    """Return a decision as it is sent, with its value.

    Raises:
        OptionError: not a decision.
        UsageError: a run cannot be completed by a value, or the value is not of the step's type.
        EncodeError: the value cannot be stored.
    """
    path, by = plan.path(held.node, held.turns), said(by, "by")
    match decision:
        case Rerun():
            return Verdict(path, "rerun", "", by), None
        case Fail(reason):
            return Verdict(path, "fail", "", by), codec.encode(_record(said(reason, "the reason")))
        case Complete(value):
            tag, stored = _completed(codec, plan, held, value, workflow)
            return Verdict(path, "complete", tag, by), stored
        case _:  # pyright: ignore[reportUnnecessaryComparison]
            raise OptionError(
                f"a decision is Rerun(), Complete(value) or Fail(reason), not a {type(decision).__name__}"
            )


def check_follows(plan: Plan, state: Frontier, event: e.Event, now_us: int) -> None:
    """Refuse a decision from which nothing would follow, by deciding it on a state that is thrown away."""
    if not advance.advance(plan, state, event, now_us):
        raise UsageError(
            "this decision does not fit the step: a finished one takes Rerun() alone, "
            "and one that a loop goes by takes Complete(Again(value)) or Complete(Done(value))"
        )


def _record(reason: str) -> dict[str, object]:
    return {"type": "Fail", "message": reason, "traceback": "", "causes": []}


def _completed(
    codec: Codec, plan: Plan, held: Request, value: object, workflow: AnyWorkflow | None
) -> tuple[str, bytes | None]:
    kind, path = plan.kind[held.node], plan.path(held.node, held.turns)
    if not held.node:
        raise UsageError("the hold is about the run itself, which no value completes; decide Rerun() or Fail(reason)")
    if kind == "route":
        return _case(plan, held.node, value, workflow), None
    tag, bare = _untagged(value)
    try:
        stored = codec.encode(bare)
    except CodecError as error:
        raise EncodeError(f"the value to complete {path} with cannot be stored: {error}") from error
    _check_type(codec, plan, held.node, path, tag, stored, workflow)
    return tag, stored


def _untagged(value: object) -> tuple[str, object]:
    if isinstance(value, Again | Done):
        return "again" if isinstance(value, Again) else "done", cast("Again[object] | Done[object]", value).value
    return "", value


def _check_type(
    codec: Codec, plan: Plan, node: int, path: str, tag: str, stored: bytes, workflow: AnyWorkflow | None
) -> None:
    declared = _declared(plan, node, path, workflow)
    if may_say_again(declared):
        again, done = turn_types(declared)
        declared = {"again": again, "done": done}.get(tag, Any)
    elif tag:
        raise UsageError(f"{path} returns {type_name(declared)}, neither Again nor Done")
    try:
        codec.decode(stored, declared)
    except CodecError as error:
        raise UsageError(f"{path} returns {type_name(declared)}, which the value is not: {error}") from error


def _declared(plan: Plan, node: int, path: str, workflow: AnyWorkflow | None) -> object:
    """Return what a step returns, if its code is known; a graph that has changed is searched by path."""
    if workflow is None:
        return Any
    if workflow.fingerprint != plan.fingerprint:
        node, _ = workflow.plan.find(path) or (NONE, ())
    return workflow.bodies.types.get(node, Any)


def _case(plan: Plan, route: int, key: object, workflow: AnyWorkflow | None) -> str:
    """Return the name of the case that a key stands for; without the code a case is known by its name alone."""
    names = [plan.nodes[child].name for child in plan.nodes[route].children]
    if workflow is not None and workflow.fingerprint == plan.fingerprint:
        name: object = workflow.bodies.cases[route].get((type(key), key), key)
    else:
        name = key
    if not isinstance(name, str) or case_of(plan, route, name) == NONE:
        raise UsageError(f"route {plan.path(route)} has no case {key!r}; the value is one of {', '.join(names)}")
    return name
