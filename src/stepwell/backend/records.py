"""The records that go into a store and come out of it, and the words of its answers; :mod:`.base` says what they mean.

Times that end up in rows are wall-clock microseconds given by the caller, except leases, which are read from the
store's own lease clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from stepwell.errors import OptionError
from stepwell.types import ENDED, State

if TYPE_CHECKING:
    pass

Outcome: TypeAlias = Literal["done", "mail", "conflict", "held"]
"""What became of one change.

``"done"``: it landed. ``"mail"``: it landed and gave the instance back, but messages are waiting, so it is due at once:
claim it again. ``"conflict"``: the journal has moved on, or another session holds it; nothing of this change landed.
``"held"``: a live session holds it; post to it instead.
"""

Posted: TypeAlias = Literal["posted", "free", "ended", "known"]


class Capabilities(msgspec.Struct, frozen=True):
    """What a store can do.

    ``durable``: survives the process. ``multi_process``: several processes may share it. ``user_transactions``: a step
    may commit inside the user's own transaction.
    """

    durable: bool
    multi_process: bool
    user_transactions: bool


class Holder(msgspec.Struct, frozen=True):
    """Which process a session lives in, so that its death can be proven on the same host.

    ``started`` is the process's start time in the kernel's own unit, ``0`` where it cannot be known. A pid means
    something only within one ``boot_id`` and one pid ``namespace``; both are ``""`` where they cannot be known.
    """

    name: str
    host: str
    pid: int
    started: int
    boot_id: str
    namespace: str = ""


class Session(msgspec.Struct, frozen=True):
    """A right to write until the lease ends. ``token`` is drawn at random for each session and fences every write."""

    id: int
    token: int
    lease_us: int


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One journal row: what one event led to, and the one value it brought (an output, a payload or an error).

    ``took_us`` is how long the attempt that ended with this entry ran, 0 for other entries.
    """

    seq: int
    facts: bytes
    output: bytes | None
    at_us: int
    took_us: int = 0


class Message(msgspec.Struct, frozen=True, gc=False):
    """Something posted to an instance that a session holds: a signal (``name`` set) or a request.

    ``id`` is given by the store in order of arrival and is 0 when posting. A ``message_id`` is accepted once. ``trace``
    is the context it was sent in, written as in :attr:`Creation.trace`; ``""`` for none.
    """

    kind: str
    name: str
    payload: bytes | None
    at_us: int
    message_id: str = ""
    id: int = 0
    trace: str = ""


class Rest(msgspec.Struct, frozen=True, gc=False):
    """How an instance is left when a commit ends a stretch of work.

    Attributes:
        state: what ``status`` shows until the next commit.
        image: the engine's whole state after the last entry, so that a load need not read older ones.
        due_us: when the instance wants to be claimed again; ``None``: only a message can move it.
        release: give the claim back. An ended instance is always released.
        result_seq: the entry whose value is the result or the error, 0 if none.
        definition: the definition it goes on with, ``None`` if it stays with its own.
        avoid: the name of the holder whose hands its last attempt failed in; :class:`Want` says what comes of it.
    """

    state: State
    image: bytes
    due_us: int | None = None
    release: bool = True
    result_seq: int = 0
    definition: int | None = None
    avoid: str = ""


class Change(msgspec.Struct, frozen=True, gc=False):
    """Entries to append to one instance after seq ``base``, messages they took in, and how it is left.

    ``instance`` is the store's number for one run of an instance. ``rest`` is ``None`` while work goes on.
    ``message_ids`` are those of messages that the entries bring in without having been posted; if one was accepted
    before, the change is a conflict. Entries are numbered from ``base`` + 1 without a gap, else the change is a
    conflict too.
    """

    instance: int
    base: int
    entries: Sequence[Entry]
    taken: Sequence[int] = ()
    rest: Rest | None = None
    message_ids: Sequence[str] = ()


class Creation(msgspec.Struct, frozen=True):
    """A new run of an instance, inserted if ``instance_id`` is free or, with ``replacing``, in place of its last run.

    ``replacing`` is the change that ends the old run, whoever holds it; it and the creation land together or not at
    all, and the old run's inbox is emptied.

    The last seven fields restore a run that another store had, with its history, image and state.

    Attributes:
        definition: what :meth:`Backend.register` returned.
        origin: the id of the store whose idempotency keys the run goes on with, ``""`` for this one.
        run: the number of the run, 0: the next one. Not together with ``replacing``.
        messages: its inbox, oldest first; they get ids of this store. An unfinished run with messages is due at once.
        message_ids: ids that were accepted before; those of ``messages`` need not be repeated.
        result_seq: as in :class:`Rest`.
        updated_us: when it was written last, 0: ``at_us``.
        ended_us: when it ended, ``None``: ``at_us``. Only with a state that is an end.
        lane: instances of one workflow and lane share what :attr:`Want.most` allows.
        trace: W3C ``traceparent`` of whoever creates it, and after a space ``tracestate``; at most 568 characters.
    """

    instance_id: str
    definition: int
    input_digest: bytes
    entries: Sequence[Entry]
    at_us: int
    state: State = "pending"
    due_us: int | None = 0
    labels: Mapping[str, str] = {}
    trace: str = ""
    claim: bool = True
    image: bytes | None = None
    replacing: Change | None = None
    origin: str = ""
    run: int = 0
    messages: Sequence[Message] = ()
    message_ids: Sequence[str] = ()
    result_seq: int = 0
    updated_us: int = 0
    ended_us: int | None = None
    lane: str = ""


class Header(msgspec.Struct, frozen=True, gc=False):
    """An instance's row, without its history. ``instance`` numbers this run of it; ``seq`` is its last entry.

    ``held_by`` and ``session`` are the name and id of the live session that holds it, ``""`` and 0 if none does.
    While it is held, ``state``, ``updated_us`` and ``due_us`` are what the last rest wrote. ``mail`` counts the
    waiting messages. ``definition`` is the store's number of what it goes on with; later ones are greater. ``origin``
    is the id of the store that idempotency keys are made from, ``""`` for this one. ``suspect`` counts the sessions
    that were lost while they held it, since its last entry was written; ``offered`` its open offers.
    """

    instance: int
    instance_id: str
    run: int
    workflow: str
    fingerprint: str
    state: State
    seq: int
    created_us: int
    updated_us: int
    ended_us: int | None
    due_us: int | None
    input_digest: bytes
    result_seq: int
    held_by: str
    mail: int
    labels: Mapping[str, str] = {}
    trace: str = ""
    session: int = 0
    definition: int = 0
    origin: str = ""
    suspect: int = 0
    offered: int = 0
    lane: str = ""


class Created(msgspec.Struct, frozen=True, gc=False):
    """Says that this call created the run, and how its row looks now."""

    header: Header


class Loaded(msgspec.Struct, frozen=True):
    """What a session needs to go on: the image, the entries after it, and the waiting messages.

    Outputs are left out, but for that of entry 1 if it has at most :data:`BROUGHT_BYTES`: whoever takes up a new
    instance needs its input at once.
    """

    header: Header
    image: bytes | None
    entries: Sequence[Entry]
    mail: Sequence[Message]


class Want(msgspec.Struct, frozen=True):
    """What a session would take up.

    Attributes:
        definitions: of which graphs. Each gives its oldest in turn, so that a long queue of one delays no other.
        now_us: what is due by then.
        limit: at most so many.
        tags: what this session can do; an offer is claimed only if all of its tags are among them.
        avoid: the session's name; an instance whose last rest asked to avoid it waits ``patience_us`` past its due
            time for others to take it.
        most: for some of the definitions, how many of their workflow's instances may be held at once, in each lane.
            Counted exactly, however many sessions claim at the same time.
    """

    definitions: Sequence[int]
    now_us: int
    limit: int
    tags: Sequence[str] = ()
    avoid: str = ""
    patience_us: int = 0
    most: Mapping[int, int] = {}


class Offer(msgspec.Struct, frozen=True, gc=False):
    """One step of a held instance that any session may run.

    Attributes:
        step: which step it is, in the holder's words; an instance has at most one offer with it.
        work: what the one who runs it needs to know.
        rank_us: offers go in this order, the lowest first.
        tags: what a session must be able to do, all of it.
        lives: after so many sessions were lost with it, or one after it was called off, it is not offered again: its
            end is posted to the instance as a message of kind ``"lost"`` whose payload is ``step``.
    """

    step: bytes
    work: bytes
    rank_us: int
    tags: Sequence[str] = ()
    lives: int = 2


class Offered(msgspec.Struct, frozen=True, gc=False):
    """An offer that a session has claimed, and the row of the instance it belongs to."""

    id: int
    header: Header
    step: bytes
    work: bytes


class Filter(msgspec.Struct, frozen=True):
    """Which instances to list; empty fields do not restrict. Newest first; ``after`` is the last number of a page."""

    states: Sequence[State] = ()
    workflow: str = ""
    labels: Mapping[str, str] = {}
    created_from_us: int | None = None
    created_to_us: int | None = None
    unfinished: bool = False
    after: int | None = None
    limit: int = 100


class Stuck(msgspec.Struct, frozen=True):
    """An instance that nothing will ever move, and why. A correct store never has one."""

    instance_id: str
    reason: str


BROUGHT_BYTES: Final = 4_096
"""The longest output that a load brings along."""

PATIENT: Final[frozenset[str]] = frozenset({"waiting", "paused", "held"})
"""The states of an instance that may rest without a due time."""

LOST: Final = "lost"
"""The kind of the message that says an offered step was lost with those who ran it."""

NOTHING_MOVES: Final = "it is not held by a session, has no due time, and its state waits for nothing"
NO_SESSION: Final = "the session that holds it does not exist"
UNREAD: Final = "it has unread messages, is not held by a session and has no due time"
OFFER_LEFT: Final = "it has ended or is gone, and a step of it is still offered"
OFFER_NO_SESSION: Final = "the session that claimed an offered step of it does not exist"


def lost_message(step: bytes) -> Message:
    """Return what an instance is told when an offered step was lost; nobody gave a time for it, so it has none."""
    return Message(LOST, "", step, 0)


def check_creation(creation: Creation) -> None:
    """Refuse a creation that contradicts itself."""
    for seq, entry in enumerate(creation.entries, 1):
        if entry.seq != seq:
            raise OptionError(
                f"the entries of new instance {creation.instance_id!r} must be numbered 1, 2, 3 and so on"
            )
    if creation.run and (creation.run < 0 or creation.replacing is not None):
        raise OptionError(f"run of new instance {creation.instance_id!r} must be 0, or above it and without replacing")
    if creation.ended_us is not None and creation.state not in ENDED:
        raise OptionError(f"new instance {creation.instance_id!r} is {creation.state} and cannot have an ended_us")


def check_purge(ended_before_us: int | None, keep: int | None) -> None:
    """Refuse a purge that does not say what may go."""
    if ended_before_us is None and keep is None:
        raise OptionError("purge needs ended_before_us, or keep, or both; without either it would not know what may go")
    if keep is not None and keep < 0:
        raise OptionError(f"keep must be 0 or more, not {keep}")
