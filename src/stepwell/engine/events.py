"""What the world says to the engine. An event brings at most one value, which the journal stores beside its facts.

Events are not stored; facts are. An event that no longer fits (a repeated one, one of an old attempt or of an ended
run) leads to no facts, so delivering it twice is harmless.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from stepwell.flow.plan import Key, Turns

MAX_CRASHES: Final = 5


class Start(msgspec.Struct, frozen=True, gc=False):
    """The run begins; its value is the input."""


class Succeeded(msgspec.Struct, frozen=True, gc=False):
    """A body returned; its value is the output. ``tag`` is a route's chosen case, or ``again``/``done``.

    Where a loop goes on by the value and it is neither, it is the name of its type.
    """

    node: int
    turns: Turns
    attempt: int
    tag: str = ""


class Errored(msgspec.Struct, frozen=True, gc=False):
    """An attempt failed; its value is the error record.

    ``after_us`` is a wait that the task asked for (-1: none), which uses up no attempt. ``draw`` in [0, 1) places the
    next attempt within the jitter.
    """

    node: int
    turns: Turns
    attempt: int
    retryable: bool
    after_us: int = -1
    draw: float = 0.0


class Begun(msgspec.Struct, frozen=True, gc=False):
    """An attempt is about to start, and that it does must be known: it may start once, or processes died with it.

    Which of the two it is, the plan of that moment says, and it stays so whatever later code says.
    """

    node: int
    turns: Turns
    attempt: int


class Beat(msgspec.Struct, frozen=True, gc=False):
    """A running attempt keeps a cursor, which is the event's value."""

    node: int
    turns: Turns
    attempt: int


class CutOff(msgspec.Struct, frozen=True, gc=False):
    """An attempt had begun, or was given away to be run, and whoever had it is gone.

    The run is held if it began as an at-most-once attempt, or if this is the ``limit``-th process in a row that died in
    this step.
    """

    node: int
    turns: Turns
    attempt: int
    limit: int = MAX_CRASHES


class Fired(msgspec.Struct, frozen=True, gc=False):
    """The moment of a delay or of a signal's timeout has come."""

    node: int
    turns: Turns


class Signalled(msgspec.Struct, frozen=True, gc=False):
    """A message came; its value is the payload. ``trace`` is the context it was sent in, ``""`` for none."""

    name: str
    trace: str = ""


class CancelAsked(msgspec.Struct, frozen=True, gc=False):
    reason: str = ""
    by: str = ""


class PauseAsked(msgspec.Struct, frozen=True, gc=False):
    reason: str = ""
    by: str = ""


class ResumeAsked(msgspec.Struct, frozen=True, gc=False):
    by: str = ""


class RetryAsked(msgspec.Struct, frozen=True, gc=False):
    """Continue a failed or cancelled run from where it stopped. What is held waits for :class:`Decided`."""

    by: str = ""


class HoldAsked(msgspec.Struct, frozen=True, gc=False):
    """Stop for a person's decision; ``reason`` is a short typed word, ``detail`` the text for people.

    ``attempt`` is the one of that step which asks for it, and must be its current one; 0: it is none that asks.
    """

    reason: str
    detail: str
    node: int = 0
    turns: Turns = ()
    attempt: int = 0


class Decided(msgspec.Struct, frozen=True, gc=False):
    """A person's decision about what the hold names, which ends the hold.

    ``complete``: the event's value is the step's output, ``tag`` what :class:`Succeeded` would say (a route's case,
    ``again`` or ``done``). ``fail``: the value is an error record, and no attempt follows. ``rerun``: the step runs
    again as the next attempt. Of a hold that names no step (node 0), ``rerun`` lets the run go on and ``fail`` ends it.
    """

    node: int
    turns: Turns
    kind: Literal["rerun", "complete", "fail"]
    tag: str = ""
    by: str = ""


class MoveAsked(msgspec.Struct, frozen=True, gc=False):
    """Go on under another graph; :func:`stepwell.engine.change.compare` makes it, from the state that has this ``seq``.

    The other fields are those of :class:`~stepwell.engine.facts.RunMoved`; ``ready`` are children of open parallels
    that nothing keeps from starting and that have not.
    """

    seq: int
    source: str
    target: str
    rows: tuple[tuple[int, int, int], ...]
    scopes: tuple[tuple[int, Turns, tuple[int, ...]], ...]
    values: tuple[tuple[int, Turns, int], ...]
    tags: tuple[tuple[int, str], ...]
    paths: tuple[tuple[int, Turns, str], ...]
    ready: tuple[Key, ...]


class Settled(msgspec.Struct, frozen=True, gc=False):
    """These closing steps do not run, or run no longer, and will report nothing."""

    steps: tuple[Key, ...]


Event: TypeAlias = (
    Start
    | Succeeded
    | Errored
    | Begun
    | Beat
    | CutOff
    | Fired
    | Signalled
    | CancelAsked
    | PauseAsked
    | ResumeAsked
    | RetryAsked
    | HoldAsked
    | Decided
    | MoveAsked
    | Settled
)
