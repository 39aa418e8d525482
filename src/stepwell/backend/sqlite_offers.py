"""Offers in :mod:`.sqlite`: single steps of held instances that other sessions run.

An offer is one row. It is claimed as an instance is, by the number of a session that exists; whoever ends that session
gives its offers up as well (:meth:`.sqlite_store.Store._end`). Whatever the claimer brings goes into the inbox of the
instance in the transaction that removes the row, so it comes once or the offer is still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from . import queries as sql
from . import queries_offers as offer_sql
from .base import Header, Message, Offer, Offered, Session, Want
from .sqlite_connection import Connection
from .sqlite_store import Names, Store


class OfferStore(Store):
    """The methods of :class:`~.base.Backend` that are about offers."""

    def offer(self, session: Session, offers: Mapping[int, Sequence[Offer]]) -> None:
        rows = [
            (instance, session.id, each.rank_us, each.lives, _tags(each.tags), each.step, each.work)
            for instance, steps in offers.items()
            for each in steps
        ]
        with self._write as db:
            self._live_name(db, session)
            db.executemany(offer_sql.OFFER, rows)

    def offered(self, instance: int) -> Mapping[bytes, str]:
        with self._read as db:
            return dict(db.execute(offer_sql.OFFERED, (instance,)).fetchall())

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        with self._read as db:  # an idle poll takes no write lock
            self._live_name(db, session)
            if not self._others_over(db, session) and not self._free_offers(db, want, 1):
                return []
        with self._write as db:
            names: Names = {session.id: self._live_name(db, session)}
            self._end_others(db, session)
            found = self._free_offers(db, want, want.limit)
            db.executemany(offer_sql.CLAIM, [(session.id, number) for number, _ in found])
            headers = {instance: self._header_of(db, instance, names) for instance in {each for _, each in found}}
            return [self._offered(db, number, headers) for number, _ in found]

    def _free_offers(self, db: Connection, want: Want, limit: int) -> list[tuple[int, int]]:
        """Return numbers and instances of free offers for this session, the lowest rank first."""
        if limit <= 0 or db.execute(offer_sql.ANY_FREE).fetchone() is None:
            return []
        found: list[tuple[int, int, int]] = []
        for definition in set(want.definitions):
            for (tags,) in db.execute(offer_sql.TAGS, (definition,)).fetchall():
                if _can(want, tags):
                    found += db.execute(offer_sql.FREE, (definition, tags, limit)).fetchall()
        return [(number, instance) for _, number, instance in sorted(found)[:limit]]

    def _header_of(self, db: Connection, instance: int, names: Names) -> Header:
        row = db.execute(sql.HEADER_OF, (instance,)).fetchone()
        assert row is not None
        return self._header(db, row, names)

    def _offered(self, db: Connection, number: int, headers: Mapping[int, Header]) -> Offered:
        row = db.execute(offer_sql.CLAIMED, (number,)).fetchone()
        assert row is not None
        _, instance, step, work = row
        return Offered(number, headers[instance], step, work)

    def settle(self, session: Session, results: Sequence[tuple[int, Message]]) -> Sequence[bool]:
        with self._write as db:
            self._live_name(db, session)
            return [self._settle(db, session, offer, message) for offer, message in results]

    def _settle(self, db: Connection, session: Session, offer: int, message: Message) -> bool:
        ended = db.execute(offer_sql.SETTLE, (offer, session.id)).fetchall()
        for (instance,) in ended:
            self._tell(db, instance, message)
        return bool(ended)

    def hand_back(self, session: Session, offers: Sequence[int]) -> None:
        with self._write as db:
            self._live_name(db, session)
            for offer in offers:
                self._give_up(db, db.execute(offer_sql.HELD_ONE, (offer, session.id)).fetchall(), lost=False)

    def call_off(self, session: Session, instance: int, steps: Sequence[bytes], *, stop: bool) -> Sequence[bytes]:
        with self._write as db:
            self._live_name(db, session)
            if db.execute(offer_sql.HOLDS, (instance, session.id)).fetchone() is None:
                return []
            return [step for step in steps if self._call_off(db, instance, step, stop)]

    def _call_off(self, db: Connection, instance: int, step: bytes, stop: bool) -> bool:
        """Return whether an offer of this step was taken back."""
        row = db.execute(offer_sql.STANDING, (instance, step)).fetchone()
        if row is None:
            return False
        number, claimed_by = row
        if claimed_by is None:
            db.execute(offer_sql.REMOVE, (number,))
        elif stop:
            db.execute(offer_sql.CALL_OFF, (number,))
        return claimed_by is None

    def called_off(self, session: Session, offers: Sequence[int]) -> Sequence[int]:
        with self._read as db:
            self._live_name(db, session)
            return [each for each in offers if db.execute(offer_sql.GOES_ON, (each, session.id)).fetchone() is None]

    # --- shared with the claims of instances --------------------------------------------------------

    def _others_over(self, db: Connection, session: Session) -> list[int]:
        others = db.execute(sql.OTHER_SESSIONS, (session.id,)).fetchall()
        return [other for (other,) in others if self._holder_name(db, other) is None]

    def _end_others(self, db: Connection, session: Session) -> None:
        for other in self._others_over(db, session):
            self._end(db, other, lost=True)


def _tags(tags: Sequence[str]) -> str:
    return msgspec.json.encode(sorted(set(tags))).decode()


def _can(want: Want, tags: str) -> bool:
    return set(msgspec.json.decode(tags, type=list[str])).issubset(want.tags)
