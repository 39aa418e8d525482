"""The engine's live state, and its image: the whole of it as bytes.

A *frontier* holds open steps, the scopes around them, and the addresses of values somebody may still read. Its size
follows what is open, never what has happened. Nothing here changes it: that is :mod:`.frontier`'s alone.

Steps that failed or were closed stay here until the run ends well: a retry opens exactly them again.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from stepwell.flow.plan import Key, Turns
from stepwell.seal import seal, unseal
from stepwell.types import State

Phase: TypeAlias = Literal["ready", "began", "tried", "parked", "closing", "closed", "failed"]

ROOT: Final[Key] = (0, ())


class Step(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One open step.

    Attributes:
        attempt: the number of the current attempt; an event must name it.
        spent: attempts that count against the retry policy.
        due_us: when it may run (ready), when its time is over (parked); 0: now, or never.
        phase: ready to run; began (its start is recorded, as it runs at most once); tried (its start is recorded, as
            processes may have died with it); parked for a time or message; closing (must not start, may still run);
            closed (stopped before its end); failed.
        scope: the failing scope that a closing step holds open.
        path: what it was called when it was opened, if a move to another graph has renamed it since; ``""``: what it is
            called now. Idempotency keys are made of it.
        crashes: how many processes in a row died in it. They are no attempts of the policy's.
    """

    attempt: int = 1
    spent: int = 0
    due_us: int = 0
    phase: Phase = "ready"
    scope: Key = ROOT
    path: str = ""
    crashes: int = 0


FRESH: Final = Step()


class Scope(msgspec.Struct, array_like=True):
    """One open parallel.

    ``remaining`` counts the children that are neither done nor lost, ``blocked`` the needs of each child that are not
    done; ``lost`` are children that failed or were skipped; ``unsettled`` counts closing steps below it.
    """

    remaining: int
    blocked: dict[int, int] = {}
    failing: bool = False
    lost: list[int] = []
    unsettled: int = 0


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What failed first: the step, and the entry with the error record, or 0 and the engine's reason.

    Node 0 is the run itself, which a person has failed.
    """

    node: int
    turns: Turns
    address: int
    reason: str


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Why and by whom a run was paused, cancelled or held. Of a hold, ``by`` is the detail for people."""

    reason: str
    by: str
    node: int = 0
    turns: Turns = ()


class Frontier:
    """The state of one run. Only :func:`apply` changes it.

    Attributes:
        seq: entries so far; the address of the current entry's value.
        steps: open steps in the order they were opened.
        scopes: open parallels.
        turning: the current turn of each open loop.
        values: addresses of values that may still be read.
        tags: ``again`` or ``done`` of values that carry it.
        cursors: addresses of what attempts of open steps kept.
        inbox: addresses of kept messages by name, oldest first.
        stalled: nodes that were done while their scope failed, so that nothing followed.
        stopping: it was cancelled, or failed by a person: nothing starts, and it ends when all has settled.
        pending: children that a new graph brought to parallels that had stopped; a retry opens them.
        ended: the state it ended in, or ``""``.
    """

    __slots__ = (
        "cancelling", "cursors", "ended", "failure", "held", "inbox", "paused", "pending", "result", "scopes", "seq",
        "stalled", "started", "steps", "stopping", "tags", "turning", "unsettled", "values",
    )  # fmt: skip

    def __init__(self) -> None:
        self.seq = 0
        self.started = False
        self.steps: dict[Key, Step] = {}
        self.scopes: dict[Key, Scope] = {}
        self.turning: dict[Key, int] = {}
        self.values: dict[Key, int] = {}
        self.tags: dict[int, str] = {}
        self.inbox: dict[str, list[int]] = {}
        self.cursors: dict[Key, int] = {}
        self.stalled: list[Key] = []
        self.pending: list[Key] = []
        self.unsettled = 0
        self.stopping = False
        self.cancelling: Request | None = None
        self.paused: Request | None = None
        self.held: Request | None = None
        self.failure: Failure | None = None
        self.ended: State | Literal[""] = ""
        self.result = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frontier) and to_image(self) == to_image(other)

    __hash__ = None  # type: ignore[assignment]  # mutable, compared by content

    def status(self, now: int) -> State:
        """Return the state an observer would name: what could move next decides it."""
        if self.ended:
            return self.ended
        if not self.started:
            return "pending"
        if self.held:
            return "held"
        if any(s.phase == "closing" for s in self.steps.values()):
            return "running"
        if self.paused:
            return "paused"
        busy = any(
            s.phase in ("began", "tried") or (s.phase == "ready" and s.due_us <= now) for s in self.steps.values()
        )
        return "running" if busy else "waiting"

    def next_due_us(self) -> int | None:
        """Return when a hand is wanted next: 0 for at once, ``None`` if only a message or a person can move it."""
        if self.ended or self.held:
            return None
        if any(s.phase in ("closing", "began") for s in self.steps.values()):
            return 0
        if self.paused:
            return None
        return min(
            (
                s.due_us
                for s in self.steps.values()
                if s.phase in ("ready", "tried") or (s.phase == "parked" and s.due_us)
            ),
            default=None,
        )


# --- images ---------------------------------------------------------------------------------------


class FirstImage(msgspec.Struct, frozen=True, array_like=True, tag="frontier-1"):
    """A frontier as it was stored at first, and still is read."""

    seq: int
    started: bool
    steps: list[tuple[int, Turns, Step]]
    scopes: list[tuple[int, Turns, Scope]]
    turning: list[tuple[int, Turns, int]]
    values: list[tuple[int, Turns, int]]
    tags: dict[int, str]
    cursors: list[tuple[int, Turns, int]]
    inbox: dict[str, list[int]]
    stalled: list[Key]
    unsettled: int
    cancelling: Request | None
    paused: Request | None
    held: Request | None
    failure: Failure | None
    ended: State | Literal[""]
    result: int


class Image(FirstImage, frozen=True, array_like=True, tag="frontier-2"):
    """A frontier as it is stored. A new shape gets a new tag."""

    pending: list[Key]


def to_image(state: Frontier) -> bytes:
    """Return the whole state as bytes, to be stored where a load should not read older entries."""
    body = _IMAGE_ENCODER.encode(
        Image(
            state.seq,
            state.started,
            [(*key, step) for key, step in state.steps.items()],
            [(*key, scope) for key, scope in state.scopes.items()],
            [(*key, turn) for key, turn in state.turning.items()],
            [(*key, at) for key, at in state.values.items()],
            state.tags,
            [(*key, at) for key, at in state.cursors.items()],
            state.inbox,
            state.stalled,
            state.unsettled,
            state.cancelling,
            state.paused,
            state.held,
            state.failure,
            state.ended,
            state.result,
            state.pending,
        )
    )
    return seal(body)


def from_image(stored: bytes) -> Frontier:
    """Return the state that :func:`to_image` stored. Raises ``msgspec.DecodeError`` for anything else."""
    image = _IMAGE_DECODER.decode(unseal(stored))
    state = Frontier()
    state.seq, state.started, state.unsettled, state.result = image.seq, image.started, image.unsettled, image.result
    state.steps = {(node, turns): step for node, turns, step in image.steps}
    state.scopes = {(node, turns): scope for node, turns, scope in image.scopes}
    state.turning = {(node, turns): turn for node, turns, turn in image.turning}
    state.values = {(node, turns): at for node, turns, at in image.values}
    state.cursors = {(node, turns): at for node, turns, at in image.cursors}
    state.tags, state.inbox, state.stalled = image.tags, image.inbox, image.stalled
    state.cancelling, state.paused, state.held, state.failure = (
        image.cancelling,
        image.paused,
        image.held,
        image.failure,
    )
    state.ended = image.ended
    state.stopping = image.cancelling is not None or (image.failure is not None and image.failure.node == 0)
    state.pending = image.pending if isinstance(image, Image) else []
    return state


_IMAGE_ENCODER: Final = msgspec.msgpack.Encoder()
_IMAGE_DECODER: Final[msgspec.msgpack.Decoder[FirstImage | Image]] = msgspec.msgpack.Decoder(FirstImage | Image)
