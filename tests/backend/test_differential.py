"""The same random operations on the reference store and on SQLite give equal answers and equal visible states."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from stepwell.backend.base import (
    Backend,
    Change,
    Created,
    Creation,
    Filter,
    Header,
    Loaded,
    Message,
    Offer,
    Offered,
    Rest,
    Session,
    Want,
)
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.errors import LeaseLost, OptionError
from stepwell.testing.conformance import LeaseClock
from stepwell.testing.sample import LEASE_US, T0, entries, session_of
from stepwell.types import State

IDS = ("a", "b", "c")
STATES = st.sampled_from(["pending", "running", "waiting", "paused", "held", "completed", "failed", "cancelled"])
DUE = st.sampled_from([None, 0, T0, T0 + 5])
LABELS = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["v", "w"]))
KNOWN = st.lists(st.sampled_from(["m", "n"]), max_size=2)
SESSIONS = st.one_of(st.none(), st.integers(0, 2))
RESTS = st.none() | st.builds(
    Rest,
    state=STATES,
    image=st.binary(max_size=3),
    due_us=DUE,
    release=st.booleans(),
    result_seq=st.integers(0, 3),
    definition=st.sampled_from([None, None, 1, 2, 3]),
    avoid=st.sampled_from(["", "", "0", "1"]),
)
LANES = st.sampled_from(["", "", "eu", "us"])
TAGS = st.lists(st.sampled_from(["gpu", "eu"]), max_size=2)
STEPS = st.sampled_from([b"x", b"y", b"z"])
WANTS = st.builds(
    Want,
    definitions=st.sampled_from([[1, 2, 3], [3, 1], [1], [2, 2, 4], []]),
    now_us=st.sampled_from([T0 + 10, T0 + 5, T0]),
    limit=st.sampled_from([2, 1, 9, 0, -1]),
    tags=st.sampled_from([["eu", "gpu"], [], ["gpu"]]),
    avoid=st.sampled_from(["", "0", "1"]),
    patience_us=st.sampled_from([0, 5, 100]),
    most=st.dictionaries(st.sampled_from([1, 2, 3]), st.integers(0, 3), max_size=3),
)
OFFERS = st.builds(
    Offer, step=STEPS, work=st.binary(max_size=2), rank_us=st.integers(0, 2), tags=TAGS, lives=st.integers(1, 2)
)


class SameAnswers(RuleBasedStateMachine):
    """Numbers are compared as they are: both stores count instances, messages, sessions and definitions from 1."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = LeaseClock()
        path = Path(self.folder.name) / "store.db"
        self.stores: tuple[Backend, Backend] = (
            InMemoryBackend(lease_clock=self.clock),
            SqliteBackend(path, durability="fast", lease_clock=self.clock),
        )
        self.sessions: list[tuple[Session, Session]] = []
        self.instances: dict[int, int] = {}
        self.offers = 0
        for name, fingerprint in (("one", "one"), ("two", "two"), ("one", "newer")):
            self.both(lambda store, _, name=name, print=fingerprint: store.register(name, print, b"plan"))  # type: ignore[misc]
        for slot in range(3):
            self.sessions.append(self.new_session(slot))
        for definition, instance_id in enumerate(IDS, 1):
            new = Creation(instance_id, definition, b"digest", entries(1), T0, due_us=T0, claim=instance_id == "a")
            self.both(lambda store, side, new=new: _plain(store.create(self.sessions[0][side], [new])))  # type: ignore[misc]
        made = {1: [Offer(step, b"", rank, lives=1 + rank) for rank, step in enumerate((b"x", b"y", b"z"))]}
        self.both(lambda store, side: store.offer(self.sessions[0][side], made))

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for store in self.stores:
                store.close()
            self.folder.cleanup()

    def new_session(self, slot: int) -> tuple[Session, Session]:
        first, second = (session_of(store, str(slot)) for store in self.stores)
        assert first.id == second.id
        return first, second

    def both(self, action: Callable[[Backend, int], object]) -> Any:
        """Do it on both and return the common answer; an error is an answer too."""
        reference, other = (_answer(action, store, side) for side, store in enumerate(self.stores))
        assert reference == other
        return reference

    def session(self, slot: int | None, side: int) -> Session | None:
        return None if slot is None else self.sessions[slot][side]

    def number(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.instances)) if self.instances else st.just(1))

    def change(self, data: st.DataObject, number: int) -> Change:
        seq = self.instances.get(number, 0)
        base = data.draw(st.sampled_from([seq, seq, seq, seq, seq - 1, seq + 1]))
        taken = data.draw(st.lists(st.integers(1, 4), max_size=2))
        known = data.draw(st.lists(st.sampled_from(["m", "n"]), max_size=1))
        count = data.draw(st.integers(0, 2))
        return Change(number, base, entries(base + 1, count), taken, data.draw(RESTS), known)

    @rule(data=st.data(), slot=SESSIONS)
    def create(self, data: st.DataObject, slot: int | None) -> None:
        made = [
            self.creation(data, instance_id) for instance_id in data.draw(st.lists(st.sampled_from(IDS), max_size=2))
        ]
        self.both(lambda store, side: _plain(store.create(self.session(slot, side), made)))

    def creation(self, data: st.DataObject, instance_id: str) -> Creation:
        old = data.draw(st.booleans()) and self.instances
        return Creation(
            instance_id,
            data.draw(st.sampled_from([1, 1, 2, 3, 4])),
            b"digest",
            entries(1, data.draw(st.integers(0, 2))),
            T0,
            state=data.draw(st.sampled_from(["pending", "running", "completed"])),
            due_us=data.draw(DUE),
            claim=data.draw(st.booleans()),
            image=data.draw(st.none() | st.just(b"image")),
            labels=data.draw(LABELS),
            lane=data.draw(LANES),
            replacing=self.change(data, self.number(data)) if old else None,
        )

    @rule(data=st.data(), slot=SESSIONS, instance_id=st.sampled_from(IDS), state=STATES, known=KNOWN)
    def restore(self, data: st.DataObject, slot: int | None, instance_id: str, state: State, known: list[str]) -> None:
        made = replace(
            self.creation(data, instance_id),
            state=state,
            origin=data.draw(st.sampled_from(["", "elsewhere"])),
            run=data.draw(st.integers(-1, 3)),
            messages=[Message("signal", name, None, T0, name, trace=name) for name in data.draw(KNOWN)],
            message_ids=known,
            result_seq=data.draw(st.integers(0, 2)),
            updated_us=data.draw(st.sampled_from([0, T0 + 3])),
            ended_us=data.draw(st.sampled_from([None, T0 + 1, T0 + 50])),
        )
        self.both(lambda store, side: _plain(store.create(self.session(slot, side), [made])))

    @rule(
        states=st.lists(STATES, max_size=2),
        labels=LABELS,
        workflow=st.sampled_from(["", "one"]),
        unfinished=st.booleans(),
        limit=st.integers(1, 3),
    )
    def page(self, states: list[State], labels: dict[str, str], workflow: str, unfinished: bool, limit: int) -> None:
        where = Filter(states, workflow, labels, unfinished=unfinished, limit=limit)
        self.both(lambda store, _: store.count(where))
        while found := self.listed(where):
            where = replace(where, after=found[-1].instance)

    def listed(self, where: Filter) -> list[Header]:
        found: list[Header] = self.both(lambda store, _: list(store.list(where)))
        return found

    @rule(data=st.data(), slot=SESSIONS)
    def commit(self, data: st.DataObject, slot: int | None) -> None:
        changes = [self.change(data, self.number(data)) for _ in range(data.draw(st.integers(0, 3)))]
        self.both(lambda store, side: store.commit(self.session(slot, side), changes))

    @rule(
        data=st.data(),
        message_id=st.sampled_from(["", "m", "n"]),
        payload=st.none() | st.binary(max_size=2),
        trace=st.sampled_from(["", "00-1-2-01 a=b"]),
    )
    def post(self, data: st.DataObject, message_id: str, payload: bytes | None, trace: str) -> None:
        number = self.number(data)
        self.both(lambda store, _: store.post(number, Message("signal", "go", payload, T0, message_id, trace=trace)))

    @rule(slot=st.integers(0, 2), instance_id=st.sampled_from(IDS))
    def claim(self, slot: int, instance_id: str) -> None:
        self.both(lambda store, side: store.claim(self.sessions[slot][side], instance_id))

    @rule(workflow=st.sampled_from(["one", "two", "three"]))
    def next_due(self, workflow: str) -> None:
        self.both(lambda store, _: dict(store.next_due([workflow, "another"])))

    @rule(slot=st.integers(0, 2), want=WANTS)
    def claim_due(self, slot: int, want: Want) -> None:
        self.both(lambda store, side: list(store.claim_due(self.sessions[slot][side], want)))

    @rule(data=st.data(), slot=st.integers(0, 2), instance_id=st.sampled_from(IDS))
    def work_on(self, data: st.DataObject, slot: int, instance_id: str) -> None:
        """Claim by name and offer at once, so that there is something to be claimed, lost and called off."""
        self.be_there(slot)
        claimed = self.both(lambda store, side: store.claim(self.sessions[slot][side], instance_id))
        if isinstance(claimed, Loaded):
            self.offer(data, slot, claimed.header.instance)

    @rule(data=st.data(), slot=st.integers(0, 2), limit=st.integers(1, 3))
    def run_offers(self, data: st.DataObject, slot: int, limit: int) -> None:
        """Claim whatever is offered, and end it in one of the ways there are, or not at all."""
        self.be_there(slot)
        want = Want([1, 2, 3], T0, limit, tags=["eu", "gpu"])
        found = self.both(lambda store, side: store.claim_offers(self.sessions[slot][side], want))
        self.offers = max([self.offers, *(each.id for each in found)])
        results = [(each.id, Message("outcome", "", each.step, T0)) for each in found]
        for each in found[:1]:
            for holder in range(3):  # one of them may be
                self.call_off_one(holder, each, data.draw(st.booleans()))
        match data.draw(st.sampled_from(["settle", "hand back", "keep", "end"])):
            case "settle":
                self.both(lambda store, side: store.settle(self.sessions[slot][side], results))
            case "hand back":
                self.both(lambda store, side: store.hand_back(self.sessions[slot][side], [each.id for each in found]))
            case "end":
                self.end_session(slot)
            case _:
                pass

    def call_off_one(self, slot: int, each: Offered, stop: bool) -> None:
        number, step = each.header.instance, each.step
        self.both(lambda store, side: store.call_off(self.sessions[slot][side], number, [step], stop=stop))

    @rule(living=st.integers(0, 2))
    def lose_all_but(self, living: int) -> None:
        """Let every lease run out but one, whose session ends the others."""
        self.be_there(living)
        self.clock.now_us += LEASE_US + 1
        self.both(lambda store, side: store.renew(self.sessions[living][side]))
        self.both(lambda store, side: list(store.claim_due(self.sessions[living][side], Want([], 0, 0))))

    def be_there(self, slot: int) -> None:
        """Begin a new session in place of one that is lost."""
        if self.both(lambda store, side: store.renew(self.sessions[slot][side])) is LeaseLost:
            self.sessions[slot] = self.new_session(slot)

    @rule(data=st.data(), slot=st.integers(0, 2))
    def offer_some(self, data: st.DataObject, slot: int) -> None:
        self.offer(data, slot, self.number(data))

    def offer(self, data: st.DataObject, slot: int, number: int) -> None:
        made = {number: data.draw(st.lists(OFFERS, min_size=1, max_size=3))}
        self.both(lambda store, side: store.offer(self.sessions[slot][side], made))

    @rule(slot=st.integers(0, 2), want=WANTS)
    def claim_offers(self, slot: int, want: Want) -> None:
        found = self.both(lambda store, side: store.claim_offers(self.sessions[slot][side], want))
        if found is not LeaseLost:
            self.offers = max([self.offers, *(each.id for each in found)])

    @rule(data=st.data(), slot=st.integers(0, 2), known=st.sampled_from(["", "", "m", "n"]))
    def settle(self, data: st.DataObject, slot: int, known: str) -> None:
        results = [(number, Message("outcome", "", b"%d" % number, T0, known)) for number in self.some_offers(data)]
        self.both(lambda store, side: store.settle(self.sessions[slot][side], results))

    @rule(data=st.data(), slot=st.integers(0, 2))
    def hand_back(self, data: st.DataObject, slot: int) -> None:
        numbers = self.some_offers(data)
        self.both(lambda store, side: store.hand_back(self.sessions[slot][side], numbers))

    @rule(data=st.data(), slot=st.integers(0, 2), steps=st.lists(STEPS, max_size=3), stop=st.booleans())
    def call_off(self, data: st.DataObject, slot: int, steps: list[bytes], stop: bool) -> None:
        number = self.number(data)
        self.both(lambda store, side: store.call_off(self.sessions[slot][side], number, steps, stop=stop))

    def some_offers(self, data: st.DataObject) -> list[int]:
        newest = self.offers
        return data.draw(st.lists(st.integers(max(newest - 4, 0), newest + 1), min_size=1, max_size=3))

    @rule(data=st.data(), slot=st.integers(0, 2))
    def release(self, data: st.DataObject, slot: int) -> None:
        numbers = [self.number(data), self.number(data)]
        self.both(lambda store, side: store.release(self.sessions[slot][side], numbers))

    @rule(slot=st.integers(0, 2))
    def renew(self, slot: int) -> None:
        self.both(lambda store, side: store.renew(self.sessions[slot][side]))

    @rule(slot=st.integers(0, 2), definitions=st.lists(st.integers(1, 3), max_size=2))
    def serve(self, slot: int, definitions: list[int]) -> None:
        self.both(lambda store, side: store.serve(self.sessions[slot][side], definitions))

    @rule(definitions=st.lists(st.integers(1, 3), max_size=3))
    def served(self, definitions: list[int]) -> None:
        self.both(lambda store, _: dict(store.served(definitions)))

    @rule(slot=st.integers(0, 2))
    def end_session(self, slot: int) -> None:
        self.both(lambda store, side: store.end_session(self.sessions[slot][side]))
        self.sessions[slot] = self.new_session(slot)

    @rule(part=st.sampled_from([2, 3]))
    def time_passes(self, part: int) -> None:
        self.clock.now_us += LEASE_US // part

    @rule(instance_id=st.sampled_from(IDS))
    def delete(self, instance_id: str) -> None:
        self.both(lambda store, _: store.delete(instance_id))

    @rule(
        ended_before_us=st.sampled_from([None, T0, T0 + 2, T0 + 100]),
        keep=st.sampled_from([None, 0, 1, 2, -1]),
        limit=st.integers(0, 2),
    )
    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> None:
        self.both(lambda store, _: store.purge(ended_before_us, keep, limit))

    @invariant()
    def looks_the_same(self) -> None:
        if not hasattr(self, "stores"):
            return
        headers = self.listed(Filter())
        self.instances.update({header.instance: header.seq for header in headers})
        self.both(lambda store, _: [store.load(header.instance_id) for header in headers])
        self.both(lambda store, _: [list(store.history(number, 0, 99)) for number in self.instances])
        self.both(lambda store, _: [list(store.received(number)) for number in self.instances])
        self.both(lambda store, _: [store.count(Filter(unfinished=flag)) for flag in (True, False)])
        self.both(lambda store, _: sorted(stuck.instance_id for stuck in store.stuck(T0)))
        self.both(lambda store, _: [sorted(store.offered(number)) for number in self.instances])
        recent = range(max(self.offers - 8, 0), self.offers + 2)
        for slot in range(len(self.sessions)):
            self.both(lambda store, side, slot=slot: store.holdings(self.sessions[slot][side]))  # type: ignore[misc]
            self.both(lambda store, side, slot=slot: store.called_off(self.sessions[slot][side], recent))  # type: ignore[misc]
            self.both(lambda store, side, slot=slot: dict(store.mail(self.sessions[slot][side])))  # type: ignore[misc]


def _answer(action: Callable[[Backend, int], object], store: Backend, side: int) -> object:
    try:
        return _listed(action(store, side))
    except (LeaseLost, OptionError) as error:
        return type(error)


def _listed(value: object) -> object:
    """Give sequences inside an answer one type, as the protocol does not fix it."""
    if isinstance(value, list | tuple):
        return [_listed(each) for each in value]
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    if value is not None and type(value).__name__ == "Loaded":
        return replace(value, entries=list(value.entries), mail=list(value.mail))  # type: ignore[type-var, attr-defined]
    return value


def _plain(answers: object) -> list[object]:
    assert isinstance(answers, list)
    return [("created", answer.header) if isinstance(answer, Created) else answer for answer in answers]


TestSameAnswers = SameAnswers.TestCase
TestSameAnswers.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
