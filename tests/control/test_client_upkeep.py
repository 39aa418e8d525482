"""Finding instances among many, and getting rid of them; taking one out and putting it in."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from stepwell import InstanceExists, InstanceNotFound, OptionError, UsageError
from stepwell.backend.base import Stuck
from stepwell.runtime import selecting

from .client_worlds import ID, World


def ids(statuses: Any) -> list[str]:
    return [status.instance_id for status in statuses]


def fill(world: World) -> None:
    """Two completed, two waiting and one failed instance, an hour apart, the last one newest."""
    flows = world.flows
    for name, flow in (
        ("q1", flows.quick),
        ("a1", flows.asking),
        ("f1", flows.failing),
        ("a2", flows.asking),
        ("q2", flows.quick),
    ):
        world.runner.start(flow, 1, instance_id=name, labels={"kind": name[0], "number": name[1]})
        world.clock.advance("1h")


# --- list and count -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({}, ["q2", "a2", "f1", "a1", "q1"]),
        ({"state": "waiting"}, ["a2", "a1"]),
        ({"state": ["failed", "completed"]}, ["q2", "f1", "q1"]),
        ({"state": "unfinished"}, ["a2", "a1"]),
        ({"workflow": "quick"}, ["q2", "q1"]),
        ({"workflow": "nothing"}, []),
        ({"labels": {"kind": "a"}}, ["a2", "a1"]),
        ({"labels": {"kind": "a", "number": "1"}}, ["a1"]),
        ({"labels": {"kind": "a"}, "state": "failed"}, []),
    ],
)
def test_instances_are_found_and_counted_by_what_they_are(world: World, where: Any, found: list[str]) -> None:
    """All filters must hold at once; newest first."""
    fill(world)
    assert ids(world.client.list(**where)) == found
    assert ids(world.client.iterate(**where)) == found
    assert world.client.count(**where) == len(found)


def test_instances_are_found_by_when_they_were_created(world: World) -> None:
    """The first moment counts, the second does not."""
    first = world.clock.now
    fill(world)
    span = {"created_after": first + timedelta(hours=1), "created_before": first + timedelta(hours=3)}
    assert ids(world.client.list(**span)) == ["f1", "a1"]
    assert world.client.count(**span) == 2


def test_a_workflow_may_be_named_by_itself(world: World) -> None:
    """Where its code is at hand."""
    fill(world)
    assert ids(world.client.list(workflow=world.flows.asking)) == ["a2", "a1"]


def test_pages_do_not_shift(world: World) -> None:
    """What is created between two pages appears on neither."""
    fill(world)
    first = world.client.list(limit=2)
    world.runner.start(world.flows.quick, 1, instance_id="late")
    second = world.client.list(limit=2, after=first[-1])
    third = world.client.list(limit=2, after=second[-1].number)
    assert [ids(page) for page in (first, second, third)] == [["q2", "a2"], ["f1", "a1"], ["q1"]]
    assert world.client.list(after=third[-1]) == []


def test_a_listed_status_is_the_status(world: World) -> None:
    """With its detail, labels and moments."""
    fill(world)
    world.client.pause("a1", reason="lunch", by="bob")
    for status in world.client.list():
        assert status == world.client.status(status.instance_id)
    assert "by bob: lunch" in {s.instance_id: s for s in world.client.list()}["a1"].detail


def test_pending_messages_are_listed(world: World) -> None:
    """In words, of an instance that a session works on."""
    with world.working() as future:
        world.client.signal(ID, "answer", 5)
        (status,) = world.client.list()
        assert (status.pending, bool(status.held_by)) == (("signal answer",), True)
        world.flows.go.set()
        assert future.result(20) == 3


@pytest.mark.parametrize(
    "where",
    [
        {"state": "ended"},
        {"state": ["waiting", "gone"]},
        {"state": []},
        {"limit": 0},
        {"limit": 10_001},
        {"limit": True},
        {"created_after": datetime(2030, 1, 1)},  # naive on purpose
        {"created_before": "yesterday"},
    ],
)
def test_a_filter_that_means_nothing_is_refused(world: World, where: Any) -> None:
    """Rather than finding nothing."""
    with pytest.raises(OptionError):
        world.client.list(**where)


# --- delete and purge --------------------------------------------------------------------------------------


def test_only_what_has_ended_is_deleted(world: World) -> None:
    """What goes on must be cancelled first."""
    fill(world)
    with pytest.raises(UsageError, match="is waiting; cancel it first"):
        world.client.delete("a1")
    world.client.cancel("a1")
    world.client.delete("a1")
    with pytest.raises(InstanceNotFound):
        world.client.delete("a1")
    assert ids(world.client.list()) == ["q2", "a2", "f1", "q1"]


def test_purge_removes_what_ended_long_ago(world: World) -> None:
    """Of the ended, those older than a span, or all but the newest; of both, what either asks for."""
    fill(world)
    assert world.client.purge(older_than="4h") == 1
    assert ids(world.client.list()) == ["q2", "a2", "f1", "a1"]
    assert world.client.purge(keep=1) == 1
    assert ids(world.client.list()) == ["q2", "a2", "a1"]
    assert world.client.purge(older_than="1d", keep=0, limit=0) == 0
    assert world.client.purge(older_than="1d", keep=0) == 1
    assert ids(world.client.list()) == ["a2", "a1"]


def test_purge_goes_in_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a transaction of its own, so nobody waits long; a limit bounds all of them together."""
    world.client.start_many(world.flows.quick, range(7))
    world.runner.recover([world.flows.quick])
    monkeypatch.setattr(selecting, "BATCH", 2)
    backend: Any = world.client._room.backend
    purge, batches = backend.purge, list[int]()
    backend.purge = lambda before, keep, limit: (batches.append(limit), purge(before, keep, limit))[1]
    assert world.client.purge(keep=0, limit=3) == 3
    assert world.client.purge(keep=0) == 4
    assert batches == [2, 1, 2, 2, 2]


def test_purge_must_be_told_what_may_go(world: World) -> None:
    """Nothing is not everything."""
    for options in ({}, {"keep": -1}, {"older_than": "1h", "limit": -1}, {"older_than": "soon"}):
        with pytest.raises(OptionError):
            world.client.purge(**options)  # type: ignore[arg-type]


# --- snapshot and restore -------------------------------------------------------------------------------------


def test_an_instance_can_be_taken_out_and_put_in(world: World) -> None:
    """As it was; under another id it is another one."""
    world.bring("paused")
    data = world.client.snapshot(ID)
    with pytest.raises(InstanceExists):
        world.client.restore(data)
    copy = world.client.restore(data, instance_id="copy")
    assert (copy.instance_id, copy.state, copy.held_by) == ("copy", "paused", "")
    assert "by bob: lunch" in copy.detail
    for name in (ID, "copy"):
        world.client.signal(name, "answer", 5)
        world.client.resume(name)
    world.recover()
    assert [world.client.result(name) for name in (ID, "copy")] == [6, 6]


# --- stuck ----------------------------------------------------------------------------------------------------


@pytest.mark.broken_store
def test_stuck_passes_on_what_the_store_finds(world: World) -> None:
    """A sound one finds nothing, so the store is made to say something."""
    world.bring("at a signal")
    assert world.client.stuck() == []
    backend: Any = world.client._room.backend
    moments: list[int] = []
    backend.stuck = lambda now_us: (moments.append(now_us), (Stuck(ID, "nothing moves it"),))[1]
    assert world.client.stuck() == [Stuck(ID, "nothing moves it")]
    assert moments == [world.clock.now_us()]
