"""What a store must do, on one page: records that go in and out, and the :class:`Backend` protocol.

Each method is exactly one transaction. No method is optional and none has a default: what a store cannot do it
declares in :class:`Capabilities`, and whoever needs it refuses at construction. A store decides nothing about a
workflow: facts, outputs and images are bytes to it, and it compares only ids, numbers, tokens and times.

Three rules carry the promise of stepwell:

*Admission.* A write names the session it belongs to and the seq it continues from. It lands whole if that session is
live and that seq is still the journal's last, else not at all: a lost session raises
:class:`~stepwell.errors.LeaseLost` and changes nothing, another seq is answered ``"conflict"`` for that instance
alone.

*One holder.* An instance is held by at most one live session. Others may post to its inbox; nobody else may write its
journal. An instance that nobody holds may be written by anyone with the right seq, which is how clients act.

*Being freed.* An instance whose claim ends in any other way than by a rest (a release, the end or the loss of a
session) is due at once, unless it was waiting, paused or held with nothing written since; with unread messages it
always is. So neither a crash nor a message that crosses a release can leave it where nobody looks.

Times that end up in rows are wall-clock microseconds given by the caller, except leases, which are read from the
store's own lease clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

import msgspec

from stepwell.errors import OptionError
from stepwell.types import ENDED, State

if TYPE_CHECKING:
    from stepwell.codec import Codec

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

    ``id`` is given by the store in order of arrival and is 0 when posting. A ``message_id`` is accepted once.
    """

    kind: str
    name: str
    payload: bytes | None
    at_us: int
    message_id: str = ""
    id: int = 0


class Rest(msgspec.Struct, frozen=True, gc=False):
    """How an instance is left when a commit ends a stretch of work.

    Attributes:
        state: what ``status`` shows until the next commit.
        image: the engine's whole state after the last entry, so that a load need not read older ones.
        due_us: when the instance wants to be claimed again; ``None``: only a message can move it.
        release: give the claim back. An ended instance is always released.
        result_seq: the entry whose value is the result or the error, 0 if none.
        definition: the definition it goes on with, ``None`` if it stays with its own.
    """

    state: State
    image: bytes
    due_us: int | None = None
    release: bool = True
    result_seq: int = 0
    definition: int | None = None


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


class Header(msgspec.Struct, frozen=True, gc=False):
    """An instance's row, without its history. ``instance`` numbers this run of it; ``seq`` is its last entry.

    ``held_by`` and ``session`` are the name and id of the live session that holds it, ``""`` and 0 if none does.
    While it is held, ``state``, ``updated_us`` and ``due_us`` are what the last rest wrote. ``mail`` counts the
    waiting messages. ``definition`` is the store's number of what it goes on with; later ones are greater. ``origin``
    is the id of the store that idempotency keys are made from, ``""`` for this one.
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


class Created(msgspec.Struct, frozen=True, gc=False):
    """Says that this call created the run, and how its row looks now."""

    header: Header


class Loaded(msgspec.Struct, frozen=True):
    """What a session needs to go on: the image, the entries after it (outputs left out), and the waiting messages."""

    header: Header
    image: bytes | None
    entries: Sequence[Entry]
    mail: Sequence[Message]


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


PATIENT: Final[frozenset[str]] = frozenset({"waiting", "paused", "held"})
"""The states of an instance that may rest without a due time."""

NOTHING_MOVES: Final = "it is not held by a session, has no due time, and its state waits for nothing"
NO_SESSION: Final = "the session that holds it does not exist"
UNREAD: Final = "it has unread messages, is not held by a session and has no due time"


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


class Joined(Protocol):
    """The methods of a :class:`Backend` that also work inside a transaction of the user's own.

    Each is all or nothing by itself and leaves the transaction open, so its user decides what becomes of all of it. On
    a connection without an open transaction each is a transaction of its own. A number that :meth:`register` or
    :meth:`create` gave counts for nothing once the transaction is rolled back.
    """

    def register(self, name: str, fingerprint: str, plan: bytes) -> int: ...

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]: ...

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]: ...

    def load(self, instance_id: str) -> Loaded | None: ...

    def header(self, instance_id: str) -> Header | None: ...

    def values(self, instance: int, seqs: Sequence[int]) -> Mapping[int, bytes]: ...

    def plan(self, fingerprint: str, name: str) -> bytes | None: ...


class Backend(Protocol):
    """Where facts rest. All methods may be called from any thread; each is one transaction.

    Every method may raise :class:`~stepwell.errors.BackendError` and its subclasses; then nothing was written, except
    where the message says that the outcome is unknown.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def codec(self) -> Codec:
        """What encodes the values of this store; never used by the store itself."""
        ...

    @property
    def codec_id(self) -> int:
        """The codec this store was created with; values of another are refused by whoever decodes them."""
        ...

    @property
    def backend_id(self) -> str:
        """A random id given to the store when it was created; part of every idempotency key."""
        ...

    # --- sessions ---------------------------------------------------------------------------------

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        """Begin a session with a fresh random token and a lease of ``lease_us`` from now on the lease clock."""
        ...

    def renew(self, session: Session) -> None:
        """Extend the lease, whatever the session holds. Raises ``LeaseLost`` if it was taken over."""
        ...

    def end_session(self, session: Session) -> None:
        """Give back every claim and end the session. Ending a lost session does nothing."""
        ...

    # --- writing ----------------------------------------------------------------------------------

    def register(self, name: str, fingerprint: str, plan: bytes) -> int:
        """Store a plan per (name, fingerprint), numbering it in order of arrival, and return its id.

        Other bytes of a plan that is there replace the stored ones and leave its number: what is not in a fingerprint
        was tuned, and the newest code counts.
        """
        ...

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]:
        """Insert each creation whose id is free, all in one transaction.

        Returns one item for each: :class:`Created` if this call made the run (held by ``session`` if a claim was asked
        for), the header of the run that exists, or, for one with ``replacing``, ``"conflict"`` when the old run is
        not the last one or has moved on since. Raises ``LeaseLost`` if ``session`` is not live.
        """
        ...

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        """Apply each change that is admitted, all in one transaction, and say for each what became of it.

        With a session: raises ``LeaseLost`` if it is not live, and then nothing is written; an instance that nobody
        held is held by it afterwards, unless its rest gives it back. ``"held"`` is answered only without a session.
        An unknown instance is a conflict.
        """
        ...

    def post(self, instance: int, message: Message) -> Posted:
        """Put a message into the inbox if a live session holds the instance, checked in the same transaction.

        ``"free"``: nobody holds it, so the caller may advance it. ``"ended"``: it takes no message, or is gone.
        ``"known"``: a message with this ``message_id`` was accepted before, whatever has become of the instance
        since.
        """
        ...

    # --- claiming ---------------------------------------------------------------------------------

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        """Take one instance whether it is due or not, ending a session that is provably dead.

        Returns ``None`` if no such instance exists. If another live session holds it, or it has ended, it is returned
        without being claimed: compare ``header.session`` and ``header.state``.
        """
        ...

    def claim_due(self, session: Session, definitions: Sequence[int], now_us: int, limit: int) -> Sequence[Loaded]:
        """Take up to ``limit`` unheld instances of these definitions that are due, oldest due first.

        Sessions that are dead or whose lease is over are ended first, which frees what they held.
        """
        ...

    def next_due(self, workflow: str) -> Mapping[int, int | None]:
        """Return the definitions of a workflow, and when the first free instance of each is due: ``None``: none is."""
        ...

    def release(self, session: Session, instances: Sequence[int]) -> None:
        """Give claims back without saying how the instances are left; those of others are passed over."""
        ...

    # --- reading ----------------------------------------------------------------------------------

    def load(self, instance_id: str) -> Loaded | None:
        """Return the last run of an instance without claiming it, or ``None``."""
        ...

    def header(self, instance_id: str) -> Header | None:
        """Return the last run's row, or ``None``."""
        ...

    def values(self, instance: int, seqs: Sequence[int]) -> Mapping[int, bytes]:
        """Return the outputs of these entries; entries without one are left out."""
        ...

    def received(self, instance: int) -> Sequence[str]:
        """Return the message ids that this run has accepted so far, sorted."""
        ...

    def mail(self, session: Session) -> Mapping[int, Sequence[Message]]:
        """Return, oldest first, the messages posted to what this session holds, by instance. Raises ``LeaseLost``."""
        ...

    def plan(self, fingerprint: str, name: str) -> bytes | None:
        """Return the stored plan of a definition."""
        ...

    def history(self, instance: int, after: int, limit: int) -> Sequence[Entry]:
        """Return up to ``limit`` entries with outputs, from seq ``after`` + 1 on."""
        ...

    def list(self, where: Filter) -> Sequence[Header]:
        """Return a page of the last runs that match, newest first."""
        ...

    def count(self, where: Filter) -> int:
        """Return how many match, ignoring ``limit`` and ``after``."""
        ...

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        """Return every unfinished instance that is none of these: claimed by a session that exists, due at some time,
        waiting for a message, paused, or ``held``. With unread messages the last three do not count."""
        ...

    # --- upkeep -----------------------------------------------------------------------------------

    def delete(self, instance_id: str) -> bool:
        """Remove an ended instance with all its runs. Returns whether there was one; a live one is left alone."""
        ...

    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> int:
        """Remove up to ``limit`` ended instances, the one that ended first before others, and return how many.

        Those may go that ended before ``ended_before_us``, and those that are not among the ``keep`` that ended last;
        ``None`` asks for nothing, and one of the two must ask. An instance that has not ended never goes.
        """
        ...

    # --- the user's transaction -------------------------------------------------------------------

    def within(self, connection: object) -> Joined:
        """Return a view that works inside the user's transaction on ``connection``.

        Raises ``OptionError`` for a connection that is not to this very store, and from a store whose
        ``capabilities.user_transactions`` is false.
        """
        ...

    # --- whether to look --------------------------------------------------------------------------

    def hint(self) -> int:
        """Return a number that changes when another session may have written. Cheap; a poll needs nothing else."""
        ...

    def close(self) -> None:
        """Release files and connections. Closing twice does nothing."""
        ...
