"""What a store must do, on one page: records that go in and out, and the :class:`Backend` protocol.

Each method is exactly one transaction. No method is optional and none has a default: what a store cannot do it
declares in :class:`Capabilities`, and whoever needs it refuses at construction. A store decides nothing about a
workflow: facts, outputs and images are bytes to it, and it compares only ids, numbers, tokens and times.

Five rules carry the promise of stepwell:

*Admission.* A write names the session it belongs to and the seq it continues from. It lands whole if that session is
live and that seq is still the journal's last, else not at all: a lost session raises
:class:`~stepwell.errors.LeaseLost` and changes nothing, another seq is answered ``"conflict"`` for that instance
alone.

*One holder.* An instance is held by at most one live session. Others may post to its inbox; nobody else may write its
journal. An instance that nobody holds may be written by anyone with the right seq, which is how clients act.

*Being freed.* An instance whose claim ends in any other way than by a rest (a release, the end or the loss of a
session) is due at once, unless it was waiting, paused or held with nothing written since; with unread messages it
always is. So neither a crash nor a message that crosses a release can leave it where nobody looks.

*Being suspect.* Whoever ends a session that is dead or over, not the session itself, counts that for each instance it
held: :attr:`Header.suspect` says how many sessions were lost with it since its last entry was written. What is done
about that is decided elsewhere.

*Offers.* A holder may let other sessions run single steps of what it holds. An offer is a row that says what to run;
whoever claims it brings the outcome as a message to the instance's inbox, in the transaction that ends the offer. So
an offer never lets anybody but the holder write a journal. Offers are made of what the journal says and carry no
promise of their own: those of a run go when it ends, and a holder that finds none for a step makes one anew.

Times that end up in rows are wall-clock microseconds given by the caller, except leases, which are read from the
store's own lease clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from .records import (
    BROUGHT_BYTES,
    LOST,
    NO_SESSION,
    NOTHING_MOVES,
    OFFER_LEFT,
    OFFER_NO_SESSION,
    PATIENT,
    UNREAD,
    Capabilities,
    Change,
    Created,
    Creation,
    Entry,
    Filter,
    Header,
    Holder,
    Loaded,
    Message,
    Offer,
    Offered,
    Outcome,
    Posted,
    Rest,
    Session,
    Stuck,
    Want,
    check_creation,
    check_purge,
    lost_message,
)

if TYPE_CHECKING:
    from stepwell.codec import Codec

__all__ = [
    "BROUGHT_BYTES",
    "LOST",
    "NOTHING_MOVES",
    "NO_SESSION",
    "OFFER_LEFT",
    "OFFER_NO_SESSION",
    "PATIENT",
    "UNREAD",
    "Backend",
    "Capabilities",
    "Change",
    "Created",
    "Creation",
    "Entry",
    "Filter",
    "Header",
    "Holder",
    "Joined",
    "Loaded",
    "Message",
    "Offer",
    "Offered",
    "Outcome",
    "Posted",
    "Rest",
    "Session",
    "Stuck",
    "Want",
    "check_creation",
    "check_purge",
    "lost_message",
]


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

    def serve(self, session: Session, definitions: Sequence[int]) -> None:
        """Say which graphs the session has the code of, in place of what it said before; at first that is none.

        It binds nobody: a claim does not look at it. Raises ``LeaseLost``.
        """
        ...

    def served(self, definitions: Sequence[int]) -> Mapping[int, int]:
        """Return how many live sessions serve each of these definitions; those that none serves are left out."""
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

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        """Take unheld instances that are due and wanted, those of each definition oldest due first.

        Sessions that are dead or whose lease is over are ended first, which frees what they held.
        """
        ...

    def next_due(self, workflows: Sequence[str]) -> Mapping[str, Mapping[int, int | None]]:
        """Return by workflow its definitions and when the first free instance of each is due: ``None``: none is."""
        ...

    def holdings(self, session: Session) -> tuple[Sequence[int], Sequence[int]]:
        """Return the instances and the offers that this session has claimed, by number. Raises ``LeaseLost``."""
        ...

    def release(self, session: Session, instances: Sequence[int]) -> None:
        """Give claims back without saying how the instances are left; those of others are passed over."""
        ...

    # --- offers -----------------------------------------------------------------------------------

    def offer(self, session: Session, offers: Mapping[int, Sequence[Offer]]) -> None:
        """Offer steps of instances that this session holds; one that is offered already stays as it is.

        Offers of an instance that it does not hold are passed over. Raises ``LeaseLost``.
        """
        ...

    def offered(self, instance: int) -> Mapping[bytes, str]:
        """Return which steps of an instance are offered, each with the name of the session that has claimed it.

        ``""``: nobody has.
        """
        ...

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        """Claim free offers of the wanted definitions whose tags this session has, the lowest rank of all first.

        An offer goes with its instance when that moves to another definition.

        As with :meth:`claim_due`, sessions that are over are ended first: their offers are free again, or lost. Raises
        ``LeaseLost``.
        """
        ...

    def settle(self, session: Session, results: Sequence[tuple[int, Message]]) -> Sequence[bool]:
        """End offers that this session has claimed, each with the message that goes to its instance's inbox.

        An instance that nobody holds is due at once then. Returns for each whether it was still there to be ended,
        called off or not; of the others nothing is written. A message whose id was accepted before ends its offer
        and is dropped. Raises ``LeaseLost``.
        """
        ...

    def hand_back(self, session: Session, offers: Sequence[int]) -> None:
        """Give up claimed offers, which are free again unless they were called off; then they are gone.

        For each that was called off, its instance gets the message of :attr:`Offer.lives`. Raises ``LeaseLost``.
        """
        ...

    def call_off(self, session: Session, instance: int, steps: Sequence[bytes], *, stop: bool) -> Sequence[bytes]:
        """Take back offers of an instance that this session holds.

        Those that nobody has claimed are gone, and returned. Those that are claimed stay; with ``stop`` they are called
        off, which whoever runs them sees in :meth:`called_off`. Of an instance that it does not hold nothing is taken
        back. Raises ``LeaseLost``.
        """
        ...

    def called_off(self, session: Session, offers: Sequence[int]) -> Sequence[int]:
        """Return which of these offers, claimed by this session, were called off or are gone. Raises ``LeaseLost``."""
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

    def connect(self) -> object:
        """Return a new connection to the same database, set up like the store's own; closing it is the caller's.

        Raises ``OptionError`` from a store whose ``capabilities.user_transactions`` is false.
        """
        ...

    def within(self, connection: object) -> Joined:
        """Return a view that works inside the user's transaction on ``connection``.

        Raises ``OptionError`` for a connection that is not to this very store, and from a store whose
        ``capabilities.user_transactions`` is false.
        """
        ...

    # --- whether to look --------------------------------------------------------------------------

    def hint(self) -> int:
        """Return a number that changes when another session may have written. Cheap; a poll needs nothing else.

        A claim, or a step by which a holder's work goes on, need not change it: nobody else waits for that. Where word
        of others' writes may be lost on the way, the number also changes from time to time by itself.
        """
        ...

    def watch(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Call ``wake``, from any thread, soon after another session may have written; return what ends that.

        It is called without a reason now and then, and may miss one: a poll stays necessary. ``None``: this store is
        told of nothing, so whoever waits looks at :meth:`hint` in short intervals.
        """
        ...

    def close(self) -> None:
        """Release files and connections. Closing twice does nothing."""
        ...
