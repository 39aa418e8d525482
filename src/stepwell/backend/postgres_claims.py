"""Claims and offers in :mod:`.postgres`: who gets what, and whose sessions have to end before.

A claim is one statement. It looks for sessions that may be over first: those whose lease has run out, and those of this
machine whose process it has not been told to be alive. Only if there are none does it take anything, so mostly one
round trip does it all; else those sessions are ended, each in a transaction of its own, and it is asked again.

Claims may be forgotten by a server that crashes (``synchronous_commit`` is off for them, which spares a flush): what
was claimed is free again then, and nothing that the claimer has written meanwhile is there without its claim, since a
flushed commit flushes everything before it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from stepwell.errors import BackendUnavailable

from . import postgres_queries as sql
from . import postgres_queries_claims as claims
from .base import Holder, Loaded, Message, Offer, Offered, Session, Want
from .liveness import boot_id, is_dead, this_process
from .postgres_pack import byteas, from_utf8, int8s, texts, utf8
from .postgres_rows import Row, header_of, holder_name, holder_of, loaded_of
from .postgres_runs import Db, Runs
from .postgres_store import Store, end_session, give_up, live_name, lost, tell
from .turns import Due, Room, in_turn

SKIM = 64
"""How many due instances in full lanes are passed over one by one before it is asked lane by lane."""
TRIES_MAX = 1000  # of a claim that somebody else is always faster with


class ClaimStore(Store):
    """The methods of :class:`~.base.Backend` that are about claims and offers. ``claim`` is the line they run on."""

    def __init__(self, write: Runs, read: Runs, claim: Runs) -> None:
        super().__init__(write, read)
        self._claim = claim
        self._alive: dict[int, Holder] = {}  # sessions of this machine whose processes lived when last looked at
        me = this_process()
        self._here = utf8(boot_id()), utf8(me.namespace)

    # --- sessions that are over ---------------------------------------------------------------------

    def _living(self, mine: int) -> list[int]:
        """Return those sessions of this machine that are known and whose processes still live."""
        self._alive = {number: each for number, each in list(self._alive.items()) if not is_dead(each)}
        return [mine, *self._alive]

    def _end_others(self, session: Session) -> None:
        """End the sessions that are over, and remember those of this machine that are not."""
        known = int8s(self._living(session.id))
        for row in self._claim.once(lambda db: db.rows(claims.OTHERS, session.id, *self._here, known)):
            if holder_name(row) is None:
                self._end_over(self._claim, row[0])
            else:
                self._alive[row[0]] = holder_of(row[2:])

    # --- claims -------------------------------------------------------------------------------------

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        for _ in range(TRIES_MAX):
            if (claimed := self._claim_one(session, instance_id)) is not None:
                return self._loaded_one(session, claimed)
            row = self._claim.once(lambda db: _looked(db, session, instance_id))
            if row is None:
                return None
            number, ended, *holder = row
            if ended or holder[0] == session.id or (holder[0] is not None and holder_name(tuple(holder)) is not None):
                return self._loaded_one(session, number)
            if holder[0] is not None:
                self._end_over(self._claim, holder[0])
        raise BackendUnavailable(f"instance {instance_id!r} is claimed by others again and again")

    def _claim_one(self, session: Session, instance_id: str) -> int | None:
        values = session.id, session.token, utf8(instance_id)
        row = self._claim.once(lambda db: db.row(claims.CLAIM_ONE, *values))
        return int(row[0]) if row is not None else None

    def _loaded_one(self, session: Session, number: int) -> Loaded | None:
        row = self._read.once(lambda db: db.row(sql.LOADED_OF, int8s([number])))
        return loaded_of(row, session.id) if row is not None else None

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        limited = want.most and want.limit > 0
        found = self._claim_limited(session, want) if limited else self._claim_free(session, want)
        if not found:
            return []
        rows = self._read.once(lambda db: db.rows(sql.LOADED_HELD, int8s(found), session.id))
        loaded = {row[0]: loaded_of(row, session.id) for row in rows}
        return [loaded[number] for number in found if number in loaded]

    def _claim_free(self, session: Session, want: Want) -> list[int]:
        nonce = secrets.randbits(62) + 1
        definitions, limit = sorted(set(want.definitions)), max(want.limit, 0)

        def work(db: Db) -> tuple[bool, list[int]]:
            if db.doubt:
                live_name(db, session)
                db.rows(claims.WAIT_FOR_CLAIM, session.id, session.token)
                if found := [number for (number,) in db.rows(claims.CLAIMED, session.id, nonce)]:
                    return False, found
            row = db.row(
                claims.CLAIM_DUE, session.id, session.token, *self._here, int8s(self._living(session.id)),
                int8s(definitions), want.now_us, utf8(want.avoid), want.now_us - want.patience_us, limit, nonce,
            )  # fmt: skip
            live, others, found = row or (False, False, None)
            if not live:
                raise lost()
            return others, found or []

        while True:
            others, found = self._claim.once(work)
            if not others:
                return found
            self._end_others(session)

    # --- no more than so many at once ---------------------------------------------------------------

    def _claim_limited(self, session: Session, want: Want) -> list[int]:
        self._end_others(session)
        definitions = sorted(set(want.definitions))
        live, due = self._claim.once(
            lambda db: db.row(claims.ANY_DUE, session.id, session.token, int8s(definitions), want.now_us) or (0, 0)
        )
        if not live:
            raise lost()
        return self._claim.together(lambda db: self._take_turns(db, session, want, definitions)) if due else []

    def _take_turns(self, db: Db, session: Session, want: Want, definitions: Sequence[int]) -> list[int]:
        """Choose under the locks of the limited workflows, which keeps others of them from choosing meanwhile."""
        live_name(db, session)
        db.rows(claims.LOCK_WORKFLOWS, int8s(list(want.most)))
        names = {number: from_utf8(name) for number, name in db.rows(claims.WORKFLOWS, int8s(definitions))}
        room = Room(want.most, names.__getitem__, lambda: _held(db))
        queues = {each: self._due_of(db, each, want, room) for each in definitions if each in names}
        found = in_turn(queues, want.limit, room)
        taken = {number for (number,) in db.rows(claims.TAKE_THESE, session.id, int8s(found))} if found else set[int]()
        return [number for number in found if number in taken]

    def _due_of(self, db: Db, definition: int, want: Want, room: Room) -> list[Due]:
        """Return the oldest due instances of one definition: one index walk, unless lanes that are full are in its way.

        Of a limited definition a few more are read than are asked for. If those do not do, there may be any number of
        others in the same lanes, and each lane is asked for its own.
        """
        values = definition, want.now_us, utf8(want.avoid), want.now_us - want.patience_us
        if not room.limits(definition):
            return _rows(db.rows(claims.DUE, *values, want.limit))
        rows = _rows(db.rows(claims.DUE, *values, want.limit + SKIM))
        fitting = room.fitting(definition, rows)
        if len(fitting) < want.limit and len(rows) == want.limit + SKIM:
            fitting = sorted(row for row in self._by_lane(db, definition, values, want.limit, room))
        return fitting[: want.limit]

    @staticmethod
    def _by_lane(db: Db, definition: int, values: Row, limit: int, room: Room) -> list[Due]:
        found: list[Due] = []
        for (lane,) in db.rows(claims.LANES, definition):
            count = min(limit, room.left(definition, from_utf8(lane)))
            if count and lane:
                found += _rows(db.rows(claims.DUE_IN_LANE, *values, count, lane))
            elif count:
                found += _rows(db.rows(claims.DUE_IN_NO_LANE, *values, count))
        return found

    def next_due(self, workflows: Sequence[str]) -> Mapping[str, Mapping[int, int | None]]:
        found: dict[str, dict[int, int | None]] = {name: {} for name in workflows}
        names = byteas([utf8(name) for name in found])
        for name, number, due_us in self._read.once(lambda db: db.rows(claims.NEXT_DUE, names)):
            found[from_utf8(name)][number] = due_us
        return found

    def holdings(self, session: Session) -> tuple[Sequence[int], Sequence[int]]:
        row = self._read.once(lambda db: db.row(claims.HOLDINGS, session.id, session.token))
        if row is None:
            raise lost()
        return row[0] or [], row[1] or []

    def release(self, session: Session, instances: Sequence[int]) -> None:
        values = session.id, session.token, int8s(sorted(instances))
        live, _ = self._write.once(lambda db: db.row(sql.RELEASE, *values) or (0, 0))
        if not live:
            raise lost()
        if instances:  # what is not held any more was ended by its task's transaction, which told nobody
            self._wrote()

    # --- offers -------------------------------------------------------------------------------------

    def offer(self, session: Session, offers: Mapping[int, Sequence[Offer]]) -> None:
        first: dict[tuple[int, bytes], Offer] = {}
        for instance, steps in offers.items():
            for each in steps:
                first.setdefault((instance, each.step), each)
        rows = [(instance, each) for (instance, _), each in first.items()]
        values = (
            int8s([instance for instance, _ in rows]),
            byteas([each.step for _, each in rows]),
            byteas([each.work for _, each in rows]),
            int8s([each.rank_us for _, each in rows]),
            texts(["{" + ",".join(_tags(each.tags)) + "}" for _, each in rows]),
            int8s([each.lives for _, each in rows]),
        )
        live, new = self._write.once(lambda db: db.row(claims.OFFER, session.id, session.token, *values) or (0, 0))
        if not live:
            raise lost()
        if new:
            self._wrote()

    def offered(self, instance: int) -> Mapping[bytes, str]:
        rows = self._read.once(lambda db: db.rows(claims.OFFERED, instance))
        return {step: from_utf8(name) for step, name in rows}

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        nonce = secrets.randbits(62) + 1
        definitions, limit = int8s(sorted(set(want.definitions))), max(want.limit, 0)

        def work(db: Db) -> tuple[bool, list[int]]:
            if db.doubt:
                live_name(db, session)
                db.rows(claims.WAIT_FOR_CLAIM, session.id, session.token)
                if found := [number for (number,) in db.rows(claims.CLAIMED_OFFERS, session.id, nonce)]:
                    return False, found
            row = db.row(
                claims.CLAIM_OFFERS, session.id, session.token, *self._here, int8s(self._living(session.id)),
                definitions, texts(_tags(want.tags)), limit, nonce,
            )  # fmt: skip
            live, others, found = row or (False, False, None)
            if not live:
                raise lost()
            return others, found or []

        others, found = self._claim.once(work)
        while others:
            self._end_others(session)
            others, found = self._claim.once(work)
        if not found:
            return []
        return self._read.once(lambda db: _offered(db, session, found))

    def settle(self, session: Session, results: Sequence[tuple[int, Message]]) -> Sequence[bool]:
        def work(db: Db) -> list[bool]:
            live_name(db, session)
            mine = {row[0]: row[1] for row in db.rows(claims.MINE, session.id, int8s([each for each, _ in results]))}
            if mine:
                db.run(claims.REMOVE_OFFERS, int8s([*mine]))
            answers: list[bool] = []
            for number, message in results:
                instance = mine.pop(number, None)
                if instance is not None:
                    tell(db, instance, message)
                answers.append(instance is not None)
            return answers

        answers = self._write.together(work)
        if any(answers):
            self._wrote()
        return answers

    def hand_back(self, session: Session, offers: Sequence[int]) -> None:
        def work(db: Db) -> bool:
            live_name(db, session)
            mine = db.rows(claims.MINE, session.id, int8s(offers))
            give_up(db, mine, lost=False)
            return bool(mine)

        if self._write.together(work):
            self._wrote()

    def call_off(self, session: Session, instance: int, steps: Sequence[bytes], *, stop: bool) -> Sequence[bytes]:
        def work(db: Db) -> tuple[Sequence[bytes], bool]:
            live_name(db, session)
            if db.row(claims.HOLDS, instance, session.id) is None:
                return [], False
            rows = db.rows(claims.CALL_OFF, instance, session.id, byteas(steps))
            free = {step: number for number, step, is_free in rows if is_free}
            claimed = [number for number, _, is_free in rows if not is_free]
            if free:
                db.run(claims.REMOVE_OFFERS, int8s([*free.values()]))
            if claimed and stop:
                db.run(claims.MARK, int8s(claimed))
            return [step for step in dict.fromkeys(steps) if step in free], bool(free or (claimed and stop))

        gone, written = self._write.together(work)
        if written and stop:
            self._wrote()
        return gone

    def called_off(self, session: Session, offers: Sequence[int]) -> Sequence[int]:
        def work(db: Db) -> list[int]:
            wanted = {number for (number,) in db.rows(claims.STILL_WANTED, int8s(offers), session.id)}
            if db.row(sql.SESSION_NAME, session.id, session.token) is None:
                raise lost()
            return [number for number in offers if number not in wanted]

        return self._read.once(work)

    def end_session(self, session: Session) -> None:
        def work(db: Db) -> bool:
            if db.row(sql.LOCK_TO_END, session.id, session.token) is None:
                return False
            end_session(db, session.id, lost=False)
            return True

        if self._write.together(work):
            self._wrote()


def _looked(db: Db, session: Session, instance_id: str) -> Row | None:
    if db.row(sql.SESSION_NAME, session.id, session.token) is None:
        raise lost()
    return db.row(claims.LOOK, utf8(instance_id))


def _offered(db: Db, session: Session, found: Sequence[int]) -> list[Offered]:
    rows = db.rows(claims.WORK, int8s(found), session.id)
    loads = db.rows(claims.HEADERS, int8s([row[1] for row in rows]))
    headers = {row[0]: header_of(row, session.id) for row in loads}
    return [Offered(number, headers[instance], step, work) for number, instance, step, work in rows]


def _held(db: Db) -> dict[tuple[str, str], int]:
    return {(from_utf8(name), from_utf8(lane)): count for name, lane, count in db.rows(claims.HELD)}


def _rows(found: Sequence[Row]) -> list[Due]:
    return [Due(due_us, number, from_utf8(lane)) for due_us, number, lane in found]


def _tags(tags: Sequence[str]) -> list[str]:
    """Return tags in a form that needs no quotes anywhere."""
    return sorted({f"x{utf8(each).hex()}" for each in tags})
