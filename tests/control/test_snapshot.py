"""An instance taken out of one store and put into another goes on there as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stepwell import (
    AlreadyRunning,
    CheckpointingRunner,
    CorruptValue,
    InMemoryBackend,
    InProcessRunner,
    InstanceDamaged,
    InstanceExists,
    InstanceNotFound,
    JsonCodec,
    Limits,
    MsgpackCodec,
    OptionError,
    UsageError,
    ValueTooLarge,
)
from stepwell.backend.base import Change, Entry, Loaded, Message
from stepwell.backend.liveness import this_process
from stepwell.errors import UnknownFormat
from stepwell.flow.plan import Plan
from stepwell.runtime import snapshot_format as form
from stepwell.runtime.context import idempotency_key
from stepwell.runtime.snapshot import LOOKS_MAX, restore_into, snapshot_of
from stepwell.testing import VirtualClock

from ..stores import open_store  # noqa: TID252 - the tests are not installed
from .stories import ID, STORIES, Ledger, Parcel, Story, World, asking, moved_on, napping, napping_longer, observed

Make = Callable[[str], World]

WAYS = [
    ("memory json", "sqlite msgpack"),
    ("sqlite msgpack", "memory json"),
    ("sqlite json", "sqlite json"),
    ("memory msgpack", "memory msgpack"),
    ("memory json", "postgres msgpack"),
    ("postgres json", "sqlite msgpack"),
]

stories = pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
ways = pytest.mark.parametrize(("source", "target"), WAYS, ids=[" to ".join(way) for way in WAYS])


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make a world of a kind; all of them share a clock and a ledger."""
    clock, ledger, numbers = VirtualClock(), Ledger(), count()
    with ExitStack() as stack:

        def made(kind: str) -> World:
            name, _, codec = kind.partition(" ")
            if name == "postgres":
                request.getfixturevalue("postgres_server")
            codecs = {"json": JsonCodec(), "msgpack": MsgpackCodec()}
            backend = open_store(name, tmp_path / f"{next(numbers)}.db", codec=codecs[codec])
            stack.callback(backend.close)
            runner = CheckpointingRunner(backend, clock=clock, deps={Ledger: ledger})
            stack.callback(runner.close)
            return World(runner, clock, ledger)

        yield made


def taken(world: World, instance_id: str = ID) -> bytes:
    return snapshot_of(world.runner._room, instance_id)


def put(world: World, data: bytes, instance_id: str | None = None) -> Any:
    return restore_into(world.runner._room, data, instance_id)


def store_of(world: World) -> Any:
    return world.runner._room.backend


def moved(make: Make, story: Story, source: str = "memory json", target: str = "memory msgpack") -> tuple[World, World]:
    """Begin a story in one store and restore it in another."""
    here, there = make(source), make(target)
    story.begin(here)
    put(there, taken(here))
    return here, there


# --- going on ----------------------------------------------------------------------------------------------


@ways
@stories
def test_it_ends_elsewhere_as_it_would_have_here(story: Story, source: str, target: str, make: Make) -> None:
    """The same outcome, the same steps with the same cursors, and nothing that was done is done again."""
    stayed = make(source)
    story.begin(stayed)
    expected = story.finish(stayed)
    steps, cursors = stayed.ledger.steps, stayed.ledger.cursors[:]
    stayed.ledger.calls.clear()
    stayed.ledger.cursors.clear()
    stayed.ledger.mended = False

    here, there = moved(make, story, source, target)
    assert story.finish(there) == expected
    assert (there.ledger.steps, there.ledger.cursors) == (steps, cursors)
    own = store_of(here).backend_id
    for call in there.ledger.calls:
        assert call.key == idempotency_key(own, ID, 1, story.workflow.name, call.path)


@ways
@stories
def test_it_rests_elsewhere_as_it_did_here(story: Story, source: str, target: str, make: Make) -> None:
    """State, times, history and what is due are the same; nobody holds it, and nothing is stuck."""
    here, there = moved(make, story, source, target)
    old, new = store_of(here).header(ID), store_of(there).header(ID)
    assert new.state == story.state
    same = ("run", "workflow", "fingerprint", "state", "seq", "created_us", "updated_us", "ended_us", "due_us",
            "input_digest", "result_seq", "labels", "trace", "mail", "held_by")  # fmt: skip
    assert [getattr(new, name) for name in same] == [getattr(old, name) for name in same]
    one, other = (store_of(world).history(h.instance, 0, 99) for world, h in ((here, old), (there, new)))
    assert [(e.seq, e.facts, e.at_us, e.took_us) for e in one] == [(e.seq, e.facts, e.at_us, e.took_us) for e in other]
    assert store_of(there).stuck(there.clock.now_us()) == []
    assert there.runner.client.status(ID).detail == here.runner.client.status(ID).detail


@stories
def test_there_and_back_again_is_the_same_snapshot(story: Story, make: Make) -> None:
    """Through a store of the other codec and home; a snapshot holds nothing but the instance."""
    here, there = moved(make, story)
    back = make("memory json")
    put(back, taken(there))
    assert taken(back) == taken(here)


def test_every_unfinished_one_is_found_by_recover(make: Make) -> None:
    """Without its name; it waits until it is due."""
    _, there = moved(make, STORIES[0])
    assert there.runner.recover([napping]) == []
    there.clock.advance("8h")
    assert [status.state for status in there.runner.recover([napping])] == ["completed"]


def test_a_step_in_flight_runs_again_with_its_key(make: Make) -> None:
    """A picture of a running instance shows the step open; the one before it is done."""
    here, there = make("memory json"), make("sqlite msgpack")
    pictures: list[bytes] = []
    here.ledger.inside = lambda: pictures.append(taken(here))
    assert here.runner.run(observed, 3, instance_id=ID) == 3
    put(there, pictures[0])
    here.ledger.inside = bool
    assert there.runner.recover([observed])[0].state == "completed"
    assert there.ledger.steps == [("looking", 1), ("looking", 1), ("pack", 1), ("weigh", 1), ("weigh", 1)]
    keys = {call.path: call.key for call in there.ledger.calls}
    assert len({call.key for call in there.ledger.calls}) == len(keys) == 3


def test_under_another_id_it_is_another_instance(make: Make) -> None:
    """Also beside the original: both end, and no two of their steps share a key."""
    here = make("memory json")
    STORIES[0].begin(here)
    assert put(here, taken(here), "copy").instance_id == "copy"
    assert [here.runner.resume(napping, name) for name in (ID, "copy")] == [3, 3]
    assert here.ledger.steps == [("pack", 1), ("weigh", 1), ("weigh", 1)]
    assert len({call.key for call in here.ledger.calls}) == 3


def test_it_may_come_home(make: Make) -> None:
    """Restored where it began, it is an instance of that store again, keys included."""
    here = make("sqlite json")
    STORIES[8].begin(here)
    data = taken(here)
    assert store_of(here).delete(ID)
    assert put(here, data).origin == ""
    assert put(make("memory json"), data).origin == store_of(here).backend_id


def test_its_run_keeps_its_number(make: Make) -> None:
    """Keys are made from it."""
    here, there = make("memory json"), make("sqlite json")
    for _ in range(3):
        here.runner.start(napping, 1, instance_id=ID, on_conflict="terminate_existing")
    assert put(there, taken(here)).run == 3


# --- graphs that changed ---------------------------------------------------------------------------------------


@ways
def test_an_instance_that_moved_takes_all_its_graphs_along(source: str, target: str, make: Make) -> None:
    """Its journal is read with the graph that each part of it was written under."""
    here, there = make(source), make(target)
    moved_on(here)
    data = taken(here)
    plans = [Plan.from_bytes(stored) for stored in form.read(data)[0].plans]
    assert [plan.fingerprint for plan in plans] == [napping.fingerprint, napping_longer.fingerprint]
    put(there, data)
    assert store_of(there).plan(napping.fingerprint, "napping") is not None
    assert there.runner.resume(napping_longer, ID) == 6
    assert there.ledger.steps == [("pack", 1), ("shaky", 1), ("shaky", 2), ("shaky", 3), ("weigh", 1)]
    assert form.read(taken(there))[0].plans == form.read(data)[0].plans


def test_graphs_that_are_not_those_of_the_journal_are_refused(make: Make) -> None:
    """One is missing, so that a part of it could not be read, or one stands where it does not belong."""
    here, there = make("memory json"), make("memory json")
    moved_on(here)
    snapshot, _ = form.read(taken(here))
    for plans in (snapshot.plans[:1], snapshot.plans[1:], snapshot.plans[::-1]):
        with pytest.raises(CorruptValue):
            put(there, form.write(msgspec.structs.replace(snapshot, plans=plans), 1))


# --- the inbox -----------------------------------------------------------------------------------------------


def held_with_mail(world: World) -> None:
    """Leave an instance with a session that is alive, and two messages that it has not read."""
    world.runner.start(asking, 3, instance_id=ID)
    store = store_of(world)
    store.claim(store.open_session(this_process(), 30_000_000), ID)
    for number in (10, 20):
        world.runner.client.signal(ID, "answer", Parcel(number), signal_id=str(number))
    world.runner.client.pause(ID, reason="lunch", by="ann")


@ways
def test_messages_that_wait_are_taken_along(source: str, target: str, make: Make) -> None:
    """In their order; the instance is due at once, and their ids stay known."""
    here, there = make(source), make(target)
    held_with_mail(here)
    header = put(there, taken(here))
    assert (header.mail, header.due_us, header.held_by) == (3, 0, "")
    assert store_of(there).received(header.instance) == ["10", "20"]
    assert [status.state for status in there.runner.recover([asking])] == ["paused"]
    there.runner.client.signal(ID, "answer", Parcel(20), signal_id="20")
    there.runner.client.resume(ID)
    assert there.runner.resume(asking, ID) == 33


@ways
def test_its_lane_is_taken_along(source: str, target: str, make: Make) -> None:
    """What runs at once in a lane is counted where it goes on, too."""
    here, there = make(source), make(target)
    held_with_mail(here)
    snapshot, codec_id = form.read(taken(here))
    copied = put(there, form.write(msgspec.structs.replace(snapshot, lane="eu"), codec_id))
    assert (copied.lane, store_of(there).header(ID).lane) == ("eu", "eu")
    assert form.read(taken(there))[0].lane == "eu"


def test_ids_of_messages_that_were_taken_stay_known(make: Make) -> None:
    """A sender that repeats itself to the copy is heard once."""
    _, there = moved(make, STORIES[1])
    there.runner.client.signal(ID, "answer", Parcel(99), signal_id="10")
    assert there.runner.resume(asking, ID) == 33


# --- what is refused -----------------------------------------------------------------------------------------


def test_an_id_that_is_taken_is_refused(make: Make) -> None:
    """Whatever became of the instance that has it; it is left as it is."""
    here = make("memory json")
    STORIES[0].begin(here)
    data, before = taken(here), store_of(here).header(ID)
    with pytest.raises(InstanceExists, match="instance_id="):
        put(here, data)
    assert store_of(here).header(ID) == before


def test_an_id_that_is_taken_while_it_is_restored_is_refused(make: Make) -> None:
    """The store has the last word."""
    here, there = make("memory json"), make("memory json")
    STORIES[0].begin(here)
    data = taken(here)
    put(there, data)
    store_of(there).header = lambda name: None  # as it was a moment ago
    with pytest.raises(InstanceExists):
        put(there, data)


def test_what_is_not_there_is_not_taken(make: Make) -> None:
    """And an id that is none is no id."""
    with pytest.raises(InstanceNotFound):
        taken(make("memory json"), "nobody")
    with pytest.raises(OptionError):
        taken(make("memory json"), "")


def test_another_id_must_be_one(make: Make) -> None:
    """It is checked like any other."""
    here = make("memory json")
    STORIES[0].begin(here)
    with pytest.raises(OptionError, match="control character"):
        put(here, taken(here), "a\nb")


def test_a_runner_without_a_store_has_no_snapshots() -> None:
    """It says which one has."""
    with InProcessRunner() as runner:
        for call in (lambda: snapshot_of(runner._room, ID), lambda: restore_into(runner._room, b"", None)):
            with pytest.raises(UsageError, match="CheckpointingRunner"):
                call()


def test_a_value_too_large_for_the_other_store_is_named(make: Make) -> None:
    """By its journal entry; nothing was written."""
    here = make("memory msgpack")
    STORIES[0].begin(here)
    small = InMemoryBackend(JsonCodec(Limits(value_bytes=100)))
    with CheckpointingRunner(small) as runner:
        with pytest.raises(ValueTooLarge, match="journal entry 2"):
            restore_into(runner._room, taken(here), None)
        assert small.header(ID) is None


def test_values_of_a_codec_that_is_not_known_here_are_refused_by_name(make: Make) -> None:
    """Nobody could read them."""
    here, there = make("memory json"), make("memory json")
    STORIES[0].begin(here)
    snapshot, _ = form.read(taken(here))
    with pytest.raises(UnknownFormat, match="codec 7"):
        put(there, form.write(snapshot, 7))


def test_an_instance_that_is_too_large_is_refused_while_it_is_read(make: Make, monkeypatch: Any) -> None:
    """Before all of it is in memory."""
    here = make("memory json")
    STORIES[0].begin(here)
    check_size = form.check_size
    monkeypatch.setattr(form, "check_size", lambda size: check_size(size, 100))
    with pytest.raises(ValueTooLarge, match="100 bytes"):
        taken(here)


@pytest.mark.broken_store
def test_damage_in_the_store_is_not_passed_on(make: Make) -> None:
    """A journal that does not lead to its image is refused when it is taken, not when it is needed."""
    here = make("memory json")
    STORIES[0].begin(here)
    run = store_of(here)._last[ID]
    run.journal[1] = msgspec.structs.replace(run.journal[1], facts=run.journal[0].facts)
    with pytest.raises(InstanceDamaged, match="another state"):
        taken(here)
    run.journal[1] = msgspec.structs.replace(run.journal[1], facts=b"")
    with pytest.raises(InstanceDamaged, match="cannot be read"):
        taken(here)


@pytest.mark.broken_store
def test_a_row_that_lags_behind_its_journal_is_seen_through(make: Make) -> None:
    """The journal is what counts: it says that the run has ended."""
    here, there = make("memory json"), make("memory json")
    STORIES[8].begin(here)
    run, ended_us = store_of(here)._last[ID], store_of(here).header(ID).ended_us
    run.state, run.ended_us = "running", None
    header = put(there, taken(here))
    assert (header.state, header.ended_us) == ("completed", ended_us)
    assert there.runner.resume(observed, ID) == 3


# --- one moment ----------------------------------------------------------------------------------------------


class Busy:
    """A store in which something happens each time the inbox has been looked at, until it has run out."""

    def __init__(self, store: Any, events: Sequence[Callable[[], object]]) -> None:
        self._store, self._events = store, iter(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def received(self, instance: int) -> Any:
        known = self._store.received(instance)
        next(self._events, bool)()
        return known


def wrapped(world: World, events: Sequence[Callable[[], object]]) -> bytes:
    """Take a snapshot of an instance that moves on meanwhile."""
    with CheckpointingRunner(Busy(store_of(world), events), clock=world.clock) as looker:  # type: ignore[arg-type]
        return snapshot_of(looker._room, ID)


def test_what_moves_on_is_read_again(make: Make) -> None:
    """The snapshot is of the last moment: entries, inbox and ids belong together."""
    here = make("memory json")
    held_with_mail(here)
    store = store_of(here)
    loaded: Loaded = store.load(ID)
    session = store._sessions[store._last[ID].session].session

    def post() -> None:
        store.post(loaded.header.instance, Message("signal", "answer", b"", 0, "30"))

    def take_in_and_post() -> None:
        """No entry, and as many messages as before."""
        store.commit(session, [Change(loaded.header.instance, loaded.header.seq, (), [loaded.mail[0].id])])
        store.post(loaded.header.instance, Message("cancel", "enough", b"", 0, "40"))

    quiet = wrapped(here, [post, take_in_and_post])
    assert quiet == taken(here)
    snapshot, _ = form.read(quiet)
    assert ([note.message_id for note in snapshot.mail], snapshot.message_ids) == (
        ["20", "", "30", "40"],
        ["10", "20", "30", "40"],
    )


def test_a_new_run_that_takes_its_place_is_read_from_its_start(make: Make) -> None:
    """Entries of two runs are not mixed."""
    here = make("memory json")
    STORIES[0].begin(here)

    def replace() -> None:
        here.runner.start(napping, 8, instance_id=ID, on_conflict="terminate_existing")

    snapshot, _ = form.read(wrapped(here, [replace]))
    assert (snapshot.run, [row.output for row in snapshot.entries]) == (2, [e.output for e in history(here)])


def history(world: World) -> Sequence[Entry]:
    store = store_of(world)
    return store.history(store.header(ID).instance, 0, 99)  # type: ignore[no-any-return]


def test_one_that_never_rests_is_given_up(make: Make) -> None:
    """After so many looks, saying what to do."""
    here = make("memory json")
    held_with_mail(here)
    number = store_of(here).header(ID).instance
    posts = [
        lambda at=at: store_of(here).post(number, Message("signal", "answer", b"", 0, f"n{at}"))
        for at in range(LOOKS_MAX)
    ]
    with pytest.raises(AlreadyRunning, match="pause it"):
        wrapped(here, posts)


def test_one_that_is_deleted_meanwhile_is_not_found(make: Make) -> None:
    """As if it had been deleted before."""
    here = make("memory json")
    STORIES[8].begin(here)
    with pytest.raises(InstanceNotFound):
        wrapped(here, [lambda: store_of(here).delete(ID)])
