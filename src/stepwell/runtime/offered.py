"""A step that another session runs: what an offer calls it, and how its end is told to its instance.

Whoever runs an offered step does not hold the instance, so it writes no journal. What came of the step is a message,
which the holder (or whoever takes the instance up) makes an event of; so is the message by which a store says that the
step was lost with all who tried it. The engine refuses what comes late, as it does with any outcome.

A step is called by its row in the graph, and a run may move to another graph while one of its steps is away. So the
graph's fingerprint stands beside the row, and what names another graph than the run has now changes nothing: the step
is still open there, and is run again. So does a message that cannot be read.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from stepwell.backend.base import LOST, Message
from stepwell.engine import events as e
from stepwell.flow.plan import Key, Plan, Turns

OUTCOME: Final = "outcome"
DECLINED: Final = "declined"
"""The kind of the message by which a step comes back that only its holder can run; its payload is the step."""
CURSOR: Final = "cursor"
"""The kind of the message with a cursor of a running step: its name is the step in hex, its payload the value."""

Whole: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**61)]
Wait: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=2**61)]
Draw: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=1)]

NO_EVENT: Final = e.Settled(())
"""An event from which nothing ever follows."""


class StepRef(msgspec.Struct, frozen=True, array_like=True):
    """One attempt of one step. ``graph`` is the fingerprint that ``node`` belongs to; empty: it is not said."""

    node: int
    turns: Turns
    attempt: int
    graph: str = ""


class Reported(StepRef, frozen=True, array_like=True):
    """What came of an attempt, without its value.

    Attributes:
        error: whether it failed; the value is the error record then, and ``tag`` says nothing.
        tag, retryable, after_us, draw: as in :class:`~stepwell.engine.events.Succeeded` and ``Errored``.
        took_us: how long the body ran.
        undecodable: why its arguments could not be read, which holds the run; there is no value then.
    """

    error: bool = False
    tag: str = ""
    retryable: bool = False
    after_us: Wait = -1
    draw: Draw = 0.0
    took_us: Whole = 0
    undecodable: str = ""


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(StepRef)
_REPORTS: Final = msgspec.json.Decoder(Reported)


# --- which step ---


def ref(node: int, turns: Turns, attempt: int, graph: str = "") -> bytes:
    """Return what an offer calls an attempt; the same attempt is always called the same."""
    return _ENCODER.encode(StepRef(node, turns, attempt, graph))


def ref_of(step: bytes) -> StepRef:
    """Return which attempt is meant. Raises ``msgspec.MsgspecError`` for what :func:`ref` has not written."""
    return _DECODER.decode(step)


# --- what came of it ---


def report(
    step: StepRef,
    value: bytes | None,
    at_us: int,
    *,
    error: bool = False,
    tag: str = "",
    retryable: bool = False,
    after_us: int = -1,
    draw: float = 0.0,
    took_us: int = 0,
    undecodable: str = "",
) -> Message:
    """Return the message that ends an offered step.

    Args:
        value: the stored output, or the stored error record; ``None`` for a route, and with ``undecodable``.
        at_us: when the body ended. The rest is as in :class:`Reported`.

    Example:
        >>> done = report(ref_of(offered.step), output, now_us, took_us=1_500)  # doctest: +SKIP
        >>> backend.settle(session, [(offered.id, done)])  # doctest: +SKIP
    """
    told = Reported(
        step.node, step.turns, step.attempt, step.graph, error, tag, retryable, after_us, draw, took_us, undecodable
    )
    return Message(OUTCOME, msgspec.json.encode(told).decode(), value, at_us)


def reported(message: Message) -> Reported:
    """Return what a message of kind ``outcome`` says. Raises ``msgspec.MsgspecError`` for no report."""
    return _REPORTS.decode(message.name)


def event_of_report(message: Message) -> e.Succeeded | e.Errored | e.HoldAsked:
    """Return the event that a report stands for. Raises ``msgspec.MsgspecError`` for no report."""
    told = reported(message)
    if told.undecodable:
        return e.HoldAsked("undecodable", told.undecodable, told.node, told.turns, told.attempt)
    if told.error:
        return e.Errored(told.node, told.turns, told.attempt, told.retryable, told.after_us, told.draw)
    return e.Succeeded(told.node, told.turns, told.attempt, told.tag)


def step_of(message: Message) -> StepRef:
    """Return which step a message of this module is about. Raises ``ValueError`` if it does not say."""
    match message.kind:
        case "outcome":
            return reported(message)
        case "cursor":
            return ref_of(bytes.fromhex(message.name))
        case _:
            return ref_of(message.payload or b"")


def key_of(message: Message) -> Key | None:
    """Return the row and turns of the step that a message is about, ``None`` if it does not say."""
    try:
        step = step_of(message)
    except ValueError:  # which msgspec's errors are
        return None
    return step.node, step.turns


def took_of(message: Message) -> int:
    """Return how long the body ran that a message reports about, in microseconds; 0 for any other message."""
    if message.kind != OUTCOME:
        return 0
    try:
        return reported(message).took_us
    except msgspec.MsgspecError:
        return 0


# --- what it is to the instance ---


def event_of_offered(message: Message, plan: Plan, limit: int) -> e.Event:
    """Return the event that a message about an offered step stands for; ``limit`` as in ``CutOff``."""
    try:
        step = step_of(message)
    except ValueError:  # which msgspec's errors are
        return NO_EVENT
    return _event(step, message, plan, limit) if _is_of(step, plan) else NO_EVENT


def _event(step: StepRef, message: Message, plan: Plan, limit: int) -> e.Event:
    if message.kind == LOST:
        return e.CutOff(step.node, step.turns, step.attempt, limit)
    if message.kind == CURSOR and message.payload is not None:
        return e.Beat(step.node, step.turns, step.attempt)
    if isinstance(step, Reported) and _is_whole(step, message, plan):
        return event_of_report(message)
    return NO_EVENT


def _is_of(step: StepRef, plan: Plan) -> bool:
    """Whether this graph has the step, in so many loops."""
    known = step.graph in ("", plan.fingerprint) and 0 < step.node < len(plan.nodes)
    return known and len(step.turns) == plan.depth[step.node]


def _is_whole(told: Reported, message: Message, plan: Plan) -> bool:
    """Whether the value is there that the journal promises; a route that is taken has none."""
    taken = plan.kind[told.node] == "route" and not told.error
    return (message.payload is None) == (taken or bool(told.undecodable))
