"""What a client can see of an instance: history, attempts, results of steps, and why it stands where it stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stepwell import (
    Again,
    DecodeError,
    Done,
    InstanceDamaged,
    InstanceNotFound,
    Record,
    StepwellError,
    UsageError,
    branch,
    loop,
    parallel,
    signal,
    task,
    workflow,
)
from stepwell.errors import StepNotFinished
from stepwell.runtime import explaining as why
from stepwell.runtime.client import WorkflowClient
from stepwell.runtime.ending import InstanceStatus

from .client_worlds import ID, STATES, World


def kinds(world: World) -> list[type]:
    return [type(reason) for reason in world.client.explain(ID).reasons]


# --- explain ------------------------------------------------------------------------------------------

REASONS: dict[str, list[type]] = {
    "pending": [why.NoWorker, why.Ready],
    "in a delay": [why.DueAt],
    "at a signal": [why.AwaitsSignal],
    "in a backoff": [why.Backoff],
    "in a fork": [why.DueAt, why.AwaitsSignal, why.Backoff],
    "in a loop": [why.AwaitsSignal],
    "paused": [why.Paused, why.AwaitsSignal],
    "held at a step": [why.Held],
    "held itself": [why.Held, why.AwaitsSignal],
    "completed": [],
    "failed": [why.Failed],
    "cancelled": [why.Cancelled],
}


@pytest.mark.parametrize("state", STATES)
def test_every_state_has_its_reasons(world: World, state: str) -> None:
    """One for each open step, after those about the whole; each says so in words too."""
    world.bring(state)
    explained = world.client.explain(ID)
    assert kinds(world) == REASONS[state]
    assert explained.state == world.state
    assert explained.text.splitlines() == [f"i is {world.state}", *(reason.text for reason in explained.reasons)]


def test_a_reason_is_data(world: World) -> None:
    """Moments, attempts and errors as fields."""
    world.bring("in a fork")
    nap, ask, again = world.client.explain(ID).reasons
    assert nap == why.DueAt("parallel/nap/delay", world.clock.now + timedelta(hours=8))
    assert ask == why.AwaitsSignal("parallel/ask/answer", "answer", None, 0)
    assert again == why.Backoff("parallel/try/flaky", world.clock.now + timedelta(hours=1), 2, "OSError: the wire")
    assert dataclasses.asdict(again)["attempt"] == 2  # type: ignore[call-overload]


def test_what_is_over_and_not_seen_to_wants_a_worker(world: World) -> None:
    """A delay or backoff whose time has come while nobody works."""
    world.bring("in a delay")
    world.clock.advance("9h")
    assert kinds(world) == [why.NoWorker, why.DueAt]
    world.client.cancel(ID)
    world.client.delete(ID)
    world.bring("in a backoff")
    world.clock.advance("9h")
    assert kinds(world) == [why.NoWorker, why.Ready]


def test_a_step_in_a_live_process_is_running(world: World) -> None:
    """It names the process and the moment at which the step was opened."""
    with world.working() as future:
        (reason,) = world.client.explain(ID).reasons
        assert reason == why.Running("blocks", world.client.status(ID).held_by, 1, world.clock.now)
        world.client.signal(ID, "answer", 1)
        world.flows.go.set()
        assert future.result(20) == 3


def test_a_step_that_was_cut_off_says_so(world: World) -> None:
    """Its process is gone, and no other has seen it yet."""
    world.begin("charging")
    assert world.client.explain(ID).reasons == (why.NoWorker("charging"), why.CutOff("charge", 1))
    world.recover()
    assert kinds(world) == [why.Held]


def test_buffered_messages_are_counted(world: World) -> None:
    """A pause keeps them."""
    world.bring("paused")
    world.client.signal(ID, "answer", 1)
    world.client.signal(ID, "answer", 2)
    _, awaits = world.client.explain(ID).reasons
    assert isinstance(awaits, why.AwaitsSignal)
    assert awaits.buffered == 2
    assert "2 already there" in awaits.text


def test_an_instance_being_cancelled_says_what_it_waits_for(world: World) -> None:
    """Its holder has taken the cancel in; a body in a thread has not ended."""
    import threading

    entered, go, asked = threading.Event(), threading.Event(), threading.Event()

    @task(timeout="1h")
    def deaf(x: int) -> int:
        entered.set()
        assert go.wait(20)
        return x

    @workflow
    def stopping(x: int) -> int:
        return deaf(x)

    commit = world.backend.commit

    def committed(session: Any, changes: Any) -> Any:
        outcomes = commit(session, changes)
        if why.Cancelling in kinds(world):
            asked.set()
        return outcomes

    def run() -> None:
        with pytest.raises(StepwellError):
            world.runner.run(stopping, 1, instance_id=ID)

    caller = threading.Thread(target=run)
    caller.start()
    try:
        assert entered.wait(20)
        world.backend.commit = committed
        world.client.cancel(ID, reason="enough", by="ann")
        assert asked.wait(20)
        explained = world.client.explain(ID)
        assert kinds(world) == [why.Cancelling, why.Closing]
        assert "being cancelled by ann: enough" in explained.text
        assert "being cancelled by ann: enough" in world.client.status(ID).detail
    finally:
        go.set()
        caller.join()
    assert kinds(world) == [why.Cancelled]


def test_every_failed_branch_is_named(world: World) -> None:
    """The failure that is raised is the first; the others stand beside it."""

    @task
    def fails(x: int) -> int:
        raise ValueError(x)

    @workflow
    def both(x: int) -> int:
        with parallel(on_error="wait"):
            with branch("a"):
                a = fails(x)
            with branch("b"):
                fails(x)
        return a

    world.runner.start(both, 1, instance_id=ID)
    reasons = world.client.explain(ID).reasons
    assert [(type(r), r.path) for r in reasons] == [  # type: ignore[union-attr]
        (why.Failed, "parallel/a/fails"),
        (why.Failed, "parallel/b/fails"),
    ]
    assert "ValueError: 1" in reasons[0].text


def test_a_failure_of_the_engines_own_is_told(world: World) -> None:
    """A signal that did not come, a loop without an end."""

    @workflow
    def waiting() -> int:
        return signal("answer", int, timeout="1h")

    @task
    def again(x: int) -> Again[int] | Done[int]:
        return Again(x)

    @workflow
    def endless(x: int) -> int:
        return loop(again, x, max_iterations=2)

    world.runner.start(waiting, instance_id=ID)
    world.clock.advance("2h")
    world.runner.recover([waiting])
    (late,) = world.client.explain(ID).reasons
    assert "no message 'answer' came within 1h" in late.text
    world.client.delete(ID)
    world.runner.start(endless, 1, instance_id=ID)
    (over,) = world.client.explain(ID).reasons
    assert "max_iterations=2" in over.text


# --- history -------------------------------------------------------------------------------------------


def test_history_tells_what_happened_in_order(world: World) -> None:
    """In plain words, with paths and attempts."""
    world.bring("in a backoff")
    world.flows.broken = False
    world.clock.advance("1h")
    world.recover()
    told = [(e.kind, e.path, e.attempt) for e in world.client.history(ID)]
    assert told == [
        ("started", "", 0),
        ("opened", "flaky", 1),
        ("attempt failed", "flaky", 1),
        ("done", "flaky", 2),
        ("opened", "plus", 1),
        ("done", "plus", 1),
        ("completed", "", 0),
    ]
    failed = world.client.history(ID)[2]
    assert failed.detail == "OSError: the wire; next at 2030-01-01 01:00:00 UTC"
    assert str(failed).startswith("2030-01-01 00:00:00 UTC  flaky  attempt failed (1): OSError")


def test_history_comes_in_pages(world: World) -> None:
    """By the seq of entries, and by a number of events; the same events as at once."""
    world.bring("in a fork")
    everything = world.client.history(ID)
    first = world.client.history(ID, limit=1)
    rest = world.client.history(ID, after=first[0].seq)
    assert first == everything[:1]
    assert rest == [event for event in everything if event.seq > first[0].seq]


@pytest.mark.parametrize("state", STATES)
def test_no_payload_is_in_what_is_told(world: World, state: str) -> None:
    """Neither in the history nor in the explanation; and every fact has its words."""
    world.bring(state)
    for event in world.client.history(ID):
        assert event.kind
        assert "731" not in str(event)
    assert [e.seq for e in world.client.history(ID)] == sorted(e.seq for e in world.client.history(ID))


def test_every_fact_has_words() -> None:
    """A fact that the engine learns later fails here, not at a user's."""
    from typing import get_args

    from stepwell.engine import facts as f
    from stepwell.runtime import inspection

    told = {*inspection._KINDS, f.AttemptFailed, f.RunEnded, f.Turned}
    assert told == set(get_args(f.Fact))


def test_a_long_history_is_read_whole(world: World) -> None:
    """It is longer than a page."""

    @task
    def counts(x: int) -> Again[int] | Done[int]:
        return Again(x + 1) if x < 250 else Done(x)

    @workflow
    def counting(x: int) -> int:
        return loop(counts, x, max_iterations=300)

    world.runner.start(counting, 0, instance_id=ID)
    assert len(world.client.attempts(ID)) == 251
    assert world.client.task_result(ID, "counts[200]/counts") == 200


# --- attempts -----------------------------------------------------------------------------------------------


def test_attempts_keep_their_errors(world: World) -> None:
    """Type, message, the task's own traceback and the causes; and when the next one was due."""
    world.bring("in a backoff")
    (attempt,) = world.client.attempts(ID, "flaky")
    assert attempt.error is not None
    assert (attempt.number, attempt.outcome, attempt.retry_due) == (1, "failed", world.client.status(ID).due)
    assert (attempt.error.type, attempt.error.message) == ("OSError", "the wire")
    assert "in flaky" in attempt.error.traceback
    assert attempt.error.causes == ("ValueError: deep",)
    assert attempt.took is not None
    assert attempt.began == attempt.ended - attempt.took


def test_attempts_of_a_loop_are_found_with_and_without_their_turn(world: World) -> None:
    """Without, of all turns."""
    world.begin("looping", 2)
    for _ in range(2):
        world.client.signal(ID, "answer", 1)
        world.recover()
    paths = [attempt.path for attempt in world.client.attempts(ID)]
    assert [a.path for a in world.client.attempts(ID, paths[-1])] == [paths[-1]]
    assert [a.path for a in world.client.attempts(ID, "turn/turn/counts")] == paths


def test_an_interrupted_attempt_is_one(world: World) -> None:
    """With the moment at which it began."""
    world.bring("held at a step")
    (attempt,) = world.client.attempts(ID)
    assert (attempt.path, attempt.outcome, attempt.took) == ("charge", "interrupted", None)
    assert attempt.began is not None


def test_a_path_that_names_no_step_is_told_its_neighbours(world: World) -> None:
    """For attempts and results alike."""
    world.bring("in a fork")
    for ask in (world.client.attempts, world.client.task_result):
        with pytest.raises(UsageError, match="parallel/try/flaky"):
            ask(ID, "parallel/try/flakey")


# --- results of steps --------------------------------------------------------------------------------------------


@dataclass
class Receipt:
    number: int


@task
def pays(x: int) -> Receipt:
    return Receipt(731)


@task
def nothing(receipt: Receipt) -> None:
    return None


@workflow
def paying(x: int) -> int | None:
    receipt = pays(x)
    nothing(receipt)
    got = signal("answer", int)
    nothing(receipt)
    return got


def test_a_result_is_read_with_and_without_its_type(world: World) -> None:
    """Without, a record; with the wrong one, an error that names the step."""
    world.runner.start(paying, 1, instance_id=ID)
    plain = world.client.task_result(ID, "pays")
    assert isinstance(plain, Record)
    assert plain["number"] == 731
    assert world.client.task_result(ID, "pays", type=Receipt) == Receipt(731)
    with pytest.raises(DecodeError, match="the result of step pays in instance 'i'"):
        world.client.task_result(ID, "pays", type=int)


def test_none_is_a_result_and_no_result_is_not(world: World) -> None:
    """A step that has not finished raises."""
    world.runner.start(paying, 1, instance_id=ID)
    assert world.client.task_result(ID, "nothing") is None
    for path in ("nothing#2", "answer"):
        with pytest.raises(StepNotFinished) as caught:
            world.client.task_result(ID, path)
        assert caught.value.path == path
    world.client.signal(ID, "answer", 5)
    assert world.client.task_result(ID, "answer") == 5


def test_scopes_have_results(world: World) -> None:
    """A loop's is that of its last turn; a turn's steps are named with it, and must be."""
    world.begin("looping", 2)
    for _ in range(2):
        world.client.signal(ID, "answer", 1)
        world.recover()
    assert world.client.task_result(ID, "turn") == 3
    assert world.client.task_result(ID, "turn[1]/turn/counts") == 3
    assert world.client.task_result(ID, "turn[2]/turn") == 3
    with pytest.raises(UsageError, match="say which turn"):
        world.client.task_result(ID, "turn/turn/counts")
    with pytest.raises(StepNotFinished):
        world.client.task_result(ID, "turn[7]/turn/counts")


def test_a_failed_step_has_no_result(world: World) -> None:
    """Its error is not one."""
    world.bring("failed")
    assert world.client.task_result(ID, "plus") == 2
    with pytest.raises(StepNotFinished):
        world.client.task_result(ID, "breaks")


# --- and where there is nothing to read -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["status", "history", "attempts", "explain", "result", "snapshot", "delete"])
def test_an_unknown_instance_cannot_be_looked_at(world: World, method: str) -> None:
    """Whatever the way."""
    with pytest.raises(InstanceNotFound):
        getattr(world.client, method)(ID)


@pytest.mark.broken_store
def test_a_damaged_journal_is_said_to_be_one(world: World) -> None:
    """By the methods that read it; the list shows the others all the same."""
    world.bring("paused")
    world.runner.start(world.flows.quick, 1, instance_id="sound")
    backend: Any = world.client._room.backend
    load, history = backend.load, backend.history

    def broken(entry: Any) -> Any:
        from msgspec.structs import replace

        return replace(entry, facts=b"rot")

    def load_broken(instance_id: str) -> Any:
        from msgspec.structs import replace

        loaded = load(instance_id)
        return replace(loaded, image=b"rot") if instance_id == ID else loaded

    backend.load = load_broken
    backend.history = lambda *args: [broken(entry) for entry in history(*args)]
    with pytest.raises(InstanceDamaged):
        world.client.explain(ID)
    with pytest.raises(InstanceDamaged, match="entry 1"):
        world.client.history(ID)
    listed = {status.instance_id: status for status in world.client.list()}
    assert "cannot be read" in listed[ID].detail
    assert listed["sound"].state == "completed"


def test_a_closed_client_says_so(world: World) -> None:
    """A runner's own client lives as long as the runner."""
    world.bring("completed")
    own = WorkflowClient.over(world.runner._room)
    own.close()
    assert own.status(ID).state == "completed"
    world.client.close()
    with pytest.raises(StepwellError, match="this client is closed"):
        world.client.status(ID)


def test_a_status_prints_as_one_line() -> None:
    """What people want to know of it, and nothing that they would have to look up."""
    made = datetime(2030, 1, 1, tzinfo=UTC)
    status = InstanceStatus("a", 1, "shop", "waiting", made, made, None, made, ("cancel",), "host:7", "see below")
    assert str(status) == (
        "shop a: waiting until 2030-01-01 00:00:00 UTC, in the hands of host:7; pending: cancel; see below"
    )
    assert str(replace(status, state="completed", due=None, pending=(), held_by="", detail="")) == "shop a: completed"
