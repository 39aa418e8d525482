"""What the engine decided. A fact is at once a journal entry and an order to the hands.

Facts are stored for ever, so a fact's number and fields never change: a new shape is a new fact with a new number. A
newer engine may decide differently, but it applies old facts as they stand; that is why upgrades need no replay rules.

A journal entry is the list of facts that one event led to. Its first fact is a *head*: it counts the entry, and the
value that came with the event is addressed by that count. All others are consequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from stepwell.flow.plan import Key, Turns
from stepwell.seal import seal, unseal

EndState: TypeAlias = Literal["completed", "failed", "cancelled"]
Decision: TypeAlias = Literal["rerun", "complete", "fail"]


# --- heads -----------------------------------------------------------------------------


class RunStarted(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=1):
    """The run exists; the entry's value is the input."""


class StepDone(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=2):
    """A body's outcome; the entry's value is its output. ``tag`` is as in :class:`.events.Succeeded`."""

    node: int
    turns: Turns = ()
    tag: str = ""


class AttemptFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=3):
    """An attempt's error, which is the entry's value. The next attempt is due at ``due_us``; -1: there is none.

    ``spent`` attempts count against the policy so far.
    """

    node: int
    turns: Turns
    attempt: int
    due_us: int
    spent: int


class StepBegan(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=4):
    """An attempt that may start only once starts after this is stored."""

    node: int
    turns: Turns
    attempt: int


class TimerFired(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=5):
    """A delay is over (it is done) or a signal's timeout has come (what follows says how it goes on)."""

    node: int
    turns: Turns = ()


class MessageKept(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=6):
    """A message is in the inbox; the entry's value is its payload."""

    name: str


class CancelBegun(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=7):
    """Nothing starts any more; the run ends when what is open has settled."""

    reason: str
    by: str


class RunPaused(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=8):
    """Nothing starts, and no timer or message moves anything, until the run is resumed."""

    reason: str
    by: str


class RunResumed(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=9):
    by: str


class RunReopened(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=10):
    """A run that failed, was cancelled or is held goes on; the facts that follow open again what failed or was closed.

    A held run goes on as it stood: a scope that was failing still fails, a cancel still ends it.
    """

    by: str


class RunHeld(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=11):
    """The run stops for a person's decision about the step that is named, or about itself (node 0)."""

    reason: str
    detail: str
    node: int
    turns: Turns


class StepsSettled(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=12):
    """Closing steps that had not started, or whose hands are gone."""

    steps: tuple[Key, ...]


class RouteTaken(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=13):
    """A route's key chose the case with this name; the entry has no value."""

    node: int
    turns: Turns
    case: str


class CursorKept(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=14):
    """A step's cursor, which is the entry's value; its later attempts may read it."""

    node: int
    turns: Turns


class HoldDecided(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=15):
    """A person has decided about what is held, and the hold is over.

    ``complete``: the step is done and the entry's value is its output (a route takes the case that ``tag`` names).
    ``fail``: it failed for good and the value is the error record; node 0: the run itself fails, and ends when what is
    open has settled. ``rerun``: what follows opens it again, if it had begun.
    """

    node: int
    turns: Turns
    kind: Decision
    tag: str
    by: str


class RunMoved(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=16):
    """The run goes on under another graph. This and what follows are in terms of the new one.

    Attributes:
        source: the fingerprint of the graph it leaves.
        target: that of the graph it goes on under.
        rows: how what has run or is open was renumbered: (first old row, first new row, how many).
        scopes: the open parallels, each with the children that are done.
        values: all addresses that may still be read, some of which the old graph had no reader for.
        tags: ``again`` or ``done`` of those that carry it.
        paths: what open steps were called under the old graph, where a rename changed it; their idempotency keys are
            still made of that.
        pending: children that may start, but only when what has stopped around them goes on.
    """

    source: str
    target: str
    rows: tuple[tuple[int, int, int], ...]
    scopes: tuple[tuple[int, Turns, tuple[int, ...]], ...]
    values: tuple[tuple[int, Turns, int], ...]
    tags: tuple[tuple[int, str], ...]
    paths: tuple[tuple[int, Turns, str], ...]
    pending: tuple[Key, ...]


class StepCrashed(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=17):
    """The process died that ran this attempt; the next one may run at once. It is the ``crashes``-th in a row.

    A crash is no error of the task's: it counts against a limit of its own, and not against the retry policy.
    """

    node: int
    turns: Turns
    attempt: int
    crashes: int


class StepTried(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=18):
    """An attempt that may start again starts after this is stored, as processes may have died with it."""

    node: int
    turns: Turns
    attempt: int


class MessageTraced(MessageKept, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=19):
    """A message is in the inbox, as ``MessageKept`` says, and was sent in this W3C trace context."""

    trace: str


# --- consequences ---------------------------------------------------------------------------


class Opened(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=32):
    """A node is entered: a body may run, a delay or signal waits (until ``due_us``, 0: no time), a scope has begun."""

    node: int
    turns: Turns = ()
    due_us: int = 0
    attempt: int = 1


class MessageTaken(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=33):
    """A signal has its message, kept as entry ``address``: it is done."""

    node: int
    turns: Turns
    address: int


class Turned(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=34):
    """A loop begins the turn that ``turns`` ends with, with the value at ``address``."""

    node: int
    turns: Turns
    address: int


class ScopeDone(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=35):
    """A parallel, branch, child, route, loop or signal is done; its value is the one at ``address``, 0: None."""

    node: int
    turns: Turns = ()
    address: int = 0


class StepRefused(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=36):
    """A node failed by the engine's own decision: ``signal_timeout``, ``loop_limit`` or ``loop_value``.

    The last is followed by a space and the name of the type that came instead, where that is known.
    """

    node: int
    turns: Turns
    reason: str


class ChildFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=37):
    """A child of a waiting parallel failed; its siblings go on."""

    node: int
    turns: Turns


class Skipped(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=38):
    """A child of a waiting parallel will not run, because what it reads failed."""

    node: int
    turns: Turns


class ScopeFailing(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=39):
    """A parallel will fail: nothing in it starts any more, and it waits for what is open to settle."""

    node: int
    turns: Turns


class ScopeFailed(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=40):
    """A parallel has failed: nothing in it will move any more."""

    node: int
    turns: Turns


class RunEnded(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True, tag=41):
    """The run is over. ``address`` is the entry of the result or error, 0: None or the engine's own ``reason``.

    ``node`` and ``turns`` name the step that failed first.
    """

    state: EndState
    address: int = 0
    node: int = 0
    turns: Turns = ()
    reason: str = ""


Head: TypeAlias = (
    RunStarted
    | StepDone
    | AttemptFailed
    | StepBegan
    | TimerFired
    | MessageKept
    | CancelBegun
    | RunPaused
    | RunResumed
    | RunReopened
    | RunHeld
    | StepsSettled
    | RouteTaken
    | CursorKept
    | HoldDecided
    | RunMoved
    | StepCrashed
    | StepTried
    | MessageTraced
)
Consequence: TypeAlias = (
    Opened
    | MessageTaken
    | Turned
    | ScopeDone
    | StepRefused
    | ChildFailed
    | Skipped
    | ScopeFailing
    | ScopeFailed
    | RunEnded
)
Fact: TypeAlias = Head | Consequence

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(list[Fact])


class Fixed(tuple[Fact, ...]):
    """Facts that are the same for every run of a plan, that one step follows: built once, and so are their bytes."""

    stored: bytes
    opened: Key

    @classmethod
    def of(cls, head: RunStarted | StepDone, opened: Opened) -> Fixed:
        """Return these facts, ready to be stored any number of times."""
        fixed = cls((head, opened))
        fixed.stored, fixed.opened = seal(_ENCODER.encode(fixed)), (opened.node, opened.turns)
        return fixed


def encode(facts: Sequence[Fact]) -> bytes:
    """Return an entry's facts as they are stored."""
    return facts.stored if type(facts) is Fixed else seal(_ENCODER.encode(facts))


def decode(stored: bytes) -> list[Fact]:
    """Return an entry's facts. Raises ``msgspec.DecodeError`` for damaged bytes and facts of no known number."""
    return _DECODER.decode(unseal(stored))
