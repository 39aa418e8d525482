"""Code that is edited while instances run, as its users see it: who moves, who is held, and what brings it on again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from stepwell import (
    AlreadyRunning,
    AsyncCheckpointingRunner,
    BackendError,
    CheckpointingRunner,
    ConflictPolicy,
    Flow,
    InMemoryBackend,
    InstanceConflict,
    InstanceDamaged,
    InstanceHeld,
    WorkflowCancelled,
)
from stepwell.backend.base import Change, Entry, Message, Rest
from stepwell.engine import events as e
from stepwell.engine.frontier import to_image
from stepwell.runtime import moving
from stepwell.runtime.live import Live, frontier_of
from stepwell.runtime.requests import Verdict, decision
from stepwell.runtime.stored import stored_plan
from stepwell.testing import VirtualClock
from stepwell.testing.faults import Fault, FaultyBackend

from .change_cells import Code
from .client_worlds import ID, World


def asking(code: Code, *, first: str = "first", was: str = "", more: bool = False) -> Any:
    """Return a workflow that does something, waits for an answer, and does something with it."""
    flow = Flow("order").then(code.body("first"), name=first, was=was).signal("answer", int).then(code.body("last"))
    return (flow.then(code.body("extra")) if more else flow).build()


def charging(code: Code, *, name: str = "mid", was: str = "") -> Any:
    """Return a workflow whose second step may run once only."""
    once = code.body("mid", dies=True, delivery="at_most_once")
    return Flow("order").then(code.body("first")).then(once, name=name, was=was).then(code.body("last")).build()


def another(world: World) -> CheckpointingRunner:
    """Return the runner of another process."""
    return CheckpointingRunner(world.backend, clock=world.clock, poll="1ms")


def started(world: World, workflow: Any) -> None:
    with another(world) as runner, suppress(SystemExit):
        runner.start(workflow, 1, instance_id=ID)


def kinds(world: World) -> list[str]:
    return [event.kind for event in world.client.history(ID)]


def post(world: World, message: Message) -> None:
    """Leave a message that its holder has not read before its end."""
    from stepwell.backend.liveness import this_process

    session = world.backend.open_session(this_process(), 30_000_000)
    loaded = world.backend.claim(session, ID)
    assert world.backend.post(loaded.header.instance, message) == "posted"
    world.backend.end_session(session)


def left(world: World, event: e.Event) -> None:
    """Write what an event leads to, as a holder that dies then."""
    loaded = world.backend.load(ID)
    state = frontier_of(plan := stored_plan(world.runner._room, loaded.header), loaded)
    rows = Live.rows(plan, state, [event], world.clock.now_us())
    rest = Rest(state.status(0), to_image(state), 0)
    assert world.backend.commit(None, [Change(loaded.header.instance, loaded.header.seq, rows, (), rest)]) == ["done"]


# --- every door -----------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["run", "start", "resume", "recover"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_call_moves_what_fits(world: World, door: str, asynchronous: bool) -> None:
    """The definition is the new one, the move is in the journal, results are kept and nothing runs again."""
    code = Code()
    started(world, asking(code))
    world.client.signal(ID, "answer", 5)
    new = asking(code, more=True)

    async def restart() -> None:
        async with AsyncCheckpointingRunner(world.backend, clock=world.clock, poll="1ms") as runner:
            await call(runner, door, new)

    if asynchronous:
        asyncio.run(restart())
    else:
        with another(world) as runner:
            call(runner, door, new)
    assert world.backend.header(ID).fingerprint == new.fingerprint
    assert kinds(world).count("moved") == 1
    assert world.client.result(ID, timeout=0) == 7
    assert {name: len(keys) for name, keys in code.runs.items()} == {"first": 1, "last": 1, "extra": 1}


def call(runner: Any, door: str, workflow: Any) -> Any:
    match door:
        case "resume":
            return runner.resume(workflow, ID)
        case "recover":
            return runner.recover([workflow])
        case _:
            return getattr(runner, door)(workflow, 1, instance_id=ID)


@pytest.mark.parametrize("door", ["run", "start", "resume", "recover"])
def test_every_call_holds_what_does_not_fit_and_lifts_that(world: World, door: str) -> None:
    """Held with the step and the reason; the code that fits goes on by itself, whatever the call."""
    code = Code()
    old = asking(code)
    started(world, old)
    world.client.signal(ID, "answer", 5)
    with another(world) as runner, suppress(InstanceHeld):
        call(runner, door, asking(code, first="other"))
    status = world.client.status(ID)
    assert status.state == "held"
    assert "(changed): first has run and is not in the new graph; put it back, or say was='first'" in status.detail
    with another(world) as runner:
        call(runner, door, old)
    assert world.client.result(ID, timeout=0) == 6
    assert kinds(world).count("moved") == 0
    assert {len(keys) for keys in code.runs.values()} == {1}


def test_a_third_graph_that_fits_ends_the_hold(world: World) -> None:
    """The author mends the edit, as the reason says."""
    code = Code()
    started(world, asking(code))
    started(world, asking(code, first="other"))
    assert world.client.status(ID).state == "held"
    mended = asking(code, first="other", was="first")
    started(world, mended)
    assert world.client.status(ID).state == "waiting"
    world.client.signal(ID, "answer", 5)
    with another(world) as runner:
        assert runner.resume(mended, ID) == 6
    assert len(code.runs["first"]) == 1


def test_an_open_step_keeps_its_key_under_another_name(world: World) -> None:
    """Across two renames, the second of which moves it further."""
    code = Code()

    def made(name: str, was: str) -> Any:
        return Flow("order").then(code.body("mid", dies=True), name=name, was=was).build()

    for name, was in (("mid", ""), ("middle", "mid"), ("centre", "middle")):
        started(world, made(name, was))
    code.broken = False
    started(world, made("centre", "middle"))
    assert world.client.status(ID).state == "completed"
    assert len(code.runs["mid"]) == 4
    assert len(set(code.runs["mid"])) == 1


# --- back and forth -------------------------------------------------------------------------------


def test_code_that_was_rolled_back_leaves_what_is_newer_alone(world: World) -> None:
    """It may be taken back by hand; the newer code moves it on again."""
    code = Code()
    old, new = asking(code), asking(code, more=True)
    started(world, old)
    started(world, new)
    before = world.client.status(ID), kinds(world)
    (preview,) = world.client.preview_change(old)
    with another(world) as runner, pytest.raises(InstanceConflict, match=r"newer graph.*client\.move") as refused:
        runner.resume(old, ID)
    assert preview.obstacle in str(refused.value)
    assert (world.client.status(ID), kinds(world)) == before
    world.client.move(ID, old)
    started(world, old)
    assert world.backend.header(ID).fingerprint == old.fingerprint
    started(world, new)
    assert world.backend.header(ID).fingerprint == new.fingerprint
    assert kinds(world).count("moved") == 3


def test_a_reopening_restart_goes_forward_only_too(world: World) -> None:
    """A failed run of the newer graph is not reopened under the older one."""
    code = Code()
    short = Flow("order").then(code.body("mid"))
    old, new = short.build(), short.then(code.body("extra")).build()
    started(world, old)
    options: Any = {"instance_id": ID, "on_conflict": ConflictPolicy.RESTART_IF_FAILED}
    with another(world) as runner:
        assert runner.start(new, 1, **options).state == "failed"
        assert world.backend.header(ID).fingerprint == new.fingerprint
        before = world.client.status(ID)
        with pytest.raises(InstanceConflict, match="newer graph"):
            runner.start(old, 1, **options)
    assert world.client.status(ID) == before


def test_a_client_ends_the_hold_with_the_code_that_fits(world: World) -> None:
    """``move`` to the graph that it has already."""
    code = Code()
    started(world, old := asking(code))
    started(world, asking(code, first="other"))
    assert world.client.move(ID, old).state == "waiting"


# --- what was sent under the old graph ------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_unread_decision_is_taken_in_by_the_names_it_was_made_with(world: World, by_hand: bool) -> None:
    """The step is called otherwise in the new graph; the decision counts all the same."""
    code = Code()
    started(world, charging(code))
    started(world, charging(code))
    assert world.client.status(ID).state == "held"
    value = world.backend.codec.encode(40)
    post(world, decision(Verdict("mid", "complete"), value, world.clock.now_us()))
    new = charging(code, name="pay", was="mid")
    if by_hand:
        world.client.move(ID, new)
    with another(world) as runner:
        assert runner.resume(new, ID) == 41
    assert len(code.runs["mid"]) == 1
    assert world.client.task_result(ID, "pay") == 40


def test_an_unread_message_and_the_move_are_one_commit(world: World) -> None:
    """Whoever dies there has done both or neither."""
    code = Code()
    started(world, asking(code))
    post(world, Message("signal", "answer", world.backend.codec.encode(5), world.clock.now_us()))
    seq = world.backend.header(ID).seq
    new = asking(code, more=True)

    def strike() -> None:
        raise BackendError("the power fails here")

    faulty = FaultyBackend(world.backend, [Fault("after", "commit", 1)], strike)
    with CheckpointingRunner(faulty, clock=world.clock) as runner, suppress(BackendError):
        runner.start(new, 1, instance_id=ID)
    loaded = world.backend.load(ID)
    assert loaded.header.fingerprint == new.fingerprint
    assert not loaded.mail
    assert not loaded.entries
    assert [event.kind for event in world.client.history(ID, after=seq)][-1] == "moved"
    with another(world) as runner:
        assert runner.resume(new, ID) == 7


@pytest.mark.parametrize("fits", [True, False])
def test_a_cancel_that_its_holder_did_not_finish_is_finished(world: World, fits: bool) -> None:
    """It closes what ran before the process died; the run ends as cancelled, and is neither moved nor held."""
    code = Code()
    started(world, charging(code))
    left(world, e.CancelAsked("enough"))
    assert world.client.status(ID).state == "running"
    new = charging(code, name="pay", was="mid" if fits else "")
    (preview,) = world.client.preview_change(new)
    assert preview.moves
    with another(world) as runner, pytest.raises(WorkflowCancelled):
        runner.resume(new, ID)
    assert kinds(world).count("moved") == 0


def test_every_move_leaves_an_image(world: World) -> None:
    """No load folds facts of one graph onto a state of another: not of a claimed one, nor of one moved by hand."""
    code = Code()
    old, new = asking(code), asking(code, more=True)
    started(world, old)
    for workflow in (new, old, new):
        world.client.move(ID, workflow)
        assert not world.backend.load(ID).entries
    world.client.move(ID, old)
    with world.runner as runner:
        loaded = world.backend.claim(runner._room.session(), ID)
        moving.settle(runner._room, loaded, runner._room.prepare(new), runner._room.session())
        assert world.backend.load(ID).header.session
        assert not world.backend.load(ID).entries


# --- what can go wrong ----------------------------------------------------------------------------


class Forgetful(InMemoryBackend):
    """Has lost a row of its journals that no image needs."""

    def history(self, instance: int, after: int, limit: int) -> Sequence[Entry]:
        return [entry for entry in super().history(instance, after, limit) if entry.seq != 2]


@pytest.mark.broken_store
def test_a_journal_that_is_not_that_of_its_state_is_damage() -> None:
    """The instance is left as it is; a preview says so, and shows the others."""
    code, clock = Code(), VirtualClock()
    old, new = asking(code), asking(code, more=True)
    with CheckpointingRunner(Forgetful(), clock=clock) as runner:
        runner.start(old, 1, instance_id=ID)
        before = runner.client.status(ID)
        (preview,) = runner.client.preview_change(new)
        assert "cannot be read" in preview.obstacle
        for refused in (lambda: runner.resume(new, ID), lambda: runner.client.move(ID, new)):
            with pytest.raises(InstanceDamaged, match="ValueError"):
                refused()
        assert runner.client.status(ID) == before


def test_a_run_that_was_replaced_meanwhile_is_not_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the claim and the move; the one in its place has other keys."""
    code = Code()
    old, new = asking(code), asking(code, more=True)
    started(world, old)
    settle = moving.settle

    def replaced(*args: Any) -> None:
        world.client.start(old, 1, instance_id=ID, on_conflict="terminate_existing")
        settle(*args)

    monkeypatch.setattr(moving, "settle", replaced)
    with another(world) as runner, pytest.raises(AlreadyRunning, match="another run"):
        runner.resume(new, ID)
    assert len(code.runs["first"]) == 1
    assert world.client.status(ID).run == 2


# --- previews -------------------------------------------------------------------------------------


def test_a_preview_stores_nothing(world: World) -> None:
    """Not even the graph that is asked about."""
    code = Code()
    started(world, asking(code))
    new = asking(code, more=True)
    (preview,) = world.client.preview_change(new)
    assert preview.moves
    assert world.backend.plan(new.fingerprint, "order") is None


def test_a_preview_shows_every_unfinished_one(world: World) -> None:
    """Oldest first, over all pages; what has ended is left out, as a restart leaves it alone."""
    code = Code()
    old = asking(code)
    ids = [f"i{number}" for number in range(620)]
    world.client.start_many(old, [1] * len(ids), instance_ids=ids)
    world.client.cancel("i0")
    previews = world.client.preview_change(asking(code, first="other"))
    assert [each.instance_id for each in previews] == ids[1:]
    assert {each.path for each in previews} == {"first"}
