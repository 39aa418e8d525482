"""Delays and signals: through run, start, resume and recover; before the wait, at the wait, and across restarts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from stepwell import (
    CheckpointingRunner,
    InMemoryBackend,
    InProcessRunner,
    InstanceEnded,
    InstanceHeld,
    InstanceNotFound,
    OptionError,
    SignalTimeout,
    UsageError,
    WorkflowFailed,
    branch,
    delay,
    parallel,
    signal,
    task,
    workflow,
)
from stepwell.backend.base import Message
from stepwell.testing import VirtualClock


@task
def step(x: int) -> int:
    return x + 1


@task
def add(a: int, b: int) -> int:
    return a + b


@task
def instead() -> int:
    return -1


@workflow
def napping(x: int) -> int:
    a = step(x)
    delay("8h", name="sleep")
    return step(a)


@workflow
def asking(x: int) -> int:
    a = step(x)
    return add(a, signal("answer", int))


@workflow
def asking_twice(x: int) -> list[int]:
    step(x)
    return [signal("answer", int), signal("answer", int)]


@workflow
def asking_for_an_hour(x: int) -> int:
    step(x)
    return signal("answer", int, timeout="1h", on_timeout=instead)


@workflow
def asking_or_failing(x: int) -> int:
    step(x)
    return signal("answer", int, timeout="90s")


# --- delays ----------------------------------------------------------------------------------------


def test_run_sits_through_a_delay(any_runner: Any, clock: VirtualClock) -> None:
    """Eight hours pass, and the output comes back."""
    before = clock.now
    assert any_runner().run(napping, 1) == 3
    assert clock.now - before == timedelta(hours=8)


def test_start_goes_as_far_as_it_can_and_lets_go(runner: Any, clock: VirtualClock) -> None:
    """The status says what it waits for; nobody holds it, and no time has passed."""
    before = clock.now
    status = runner.start(napping, 1, instance_id="n")
    assert (status.state, status.due, status.held_by) == ("waiting", before + timedelta(hours=8), "")
    assert clock.now == before


def test_resume_waits_for_what_is_left(runner: Any, clock: VirtualClock) -> None:
    """The due time was stored when the delay was entered."""
    before = clock.now
    runner.start(napping, 1, instance_id="n")
    clock.advance("3h")
    assert runner.resume(napping, "n") == 3
    assert clock.now - before == timedelta(hours=8)


def test_recover_runs_what_is_due_and_leaves_the_rest(runner: Any, clock: VirtualClock) -> None:
    """Before the time it is left alone, after it completed."""
    runner.start(napping, 1, instance_id="n")
    assert runner.recover([napping]) == []
    clock.advance("8h")
    assert [s.state for s in runner.recover([napping])] == ["completed"]
    assert runner.recover([napping]) == []


def test_recover_can_stay_to_the_end(runner: Any, clock: VirtualClock) -> None:
    """wait=True goes through every delay of every instance."""
    for name in ("a", "b"):
        runner.start(napping, 1, instance_id=name)
        clock.advance("1h")
    assert {(s.instance_id, s.state) for s in runner.recover([napping], wait=True)} == {
        ("a", "completed"),
        ("b", "completed"),
    }


def test_an_overdue_delay_fires_once_after_downtime(backend: Any, open_runner: Any, clock: VirtualClock) -> None:
    """A week later it goes on at once."""
    open_runner(backend).start(napping, 1, instance_id="n")
    clock.advance("7d")
    before = clock.now
    assert open_runner(backend).resume(napping, "n") == 3
    assert clock.now == before


def test_delays_of_branches_pass_together(any_runner: Any, clock: VirtualClock) -> None:
    """Two branches that wait at the same time take as long as the longer."""

    @workflow
    def both(x: int) -> list[int]:
        with parallel():
            with branch("short"):
                delay("1h")
                a = step(x)
            with branch("long"):
                delay("5h")
                b = step(x)
        return [a, b]

    before = clock.now
    assert any_runner().run(both, 1) == [2, 2]
    assert clock.now - before == timedelta(hours=5)


# --- signals -------------------------------------------------------------------------------------------


def test_a_signal_reaches_a_run_that_waits_in_run(any_runner: Any) -> None:
    """From another thread, at any moment."""
    runner, reached = any_runner(), threading.Event()

    @task
    def tells(x: int) -> int:
        reached.set()
        return x

    @workflow
    def waiting(x: int) -> int:
        return add(tells(x), signal("answer", int))

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, waiting, 1, instance_id="w")
        assert reached.wait(20)
        runner.client.signal("w", "answer", 41)
        assert future.result(20) == 42


def test_a_signal_from_another_runner_reaches_a_run_that_waits() -> None:
    """It lies in the inbox; the waiting call sees it at its next look."""
    reached, backend = threading.Event(), InMemoryBackend()

    @task
    def tells(x: int) -> int:
        reached.set()
        return x

    @workflow
    def waiting(x: int) -> int:
        return add(tells(x), signal("answer", int))

    with (
        CheckpointingRunner(backend, poll="1ms") as waits,
        CheckpointingRunner(backend) as sends,
        ThreadPoolExecutor(1) as pool,
    ):
        future = pool.submit(waits.run, waiting, 1, instance_id="w")
        assert reached.wait(20)
        sends.client.signal("w", "answer", 41)
        assert future.result(20) == 42


def test_a_signal_may_come_before_the_wait(any_runner: Any) -> None:
    """It is kept until somebody asks for it."""
    runner = any_runner()

    @task
    def sends(x: int) -> int:
        runner.client.signal("early", "answer", 5)
        return x

    @workflow
    def waiting(x: int) -> int:
        a = sends(x)
        b = step(a)
        return add(b, signal("answer", int))

    assert runner.run(waiting, 1, instance_id="early") == 7


def test_a_signal_moves_an_instance_that_nobody_holds(runner: Any) -> None:
    """Between calls, and resume goes on from there."""
    assert runner.start(asking, 1, instance_id="q").state == "waiting"
    runner.client.signal("q", "answer", 40)
    assert runner.client.status("q").state == "running"
    assert runner.resume(asking, "q") == 42


def test_recover_goes_on_where_a_signal_came(runner: Any) -> None:
    """Only the instance that got its message is taken up."""
    for name in ("a", "b"):
        runner.start(asking, 1, instance_id=name)
    runner.client.signal("b", "answer", 1)
    assert {s.instance_id: s.state for s in runner.recover([asking])} == {"b": "completed"}


def test_messages_of_one_name_are_taken_first_in_first_out(runner: Any) -> None:
    """Whether they came before the wait or not."""
    runner.start(asking_twice, 1, instance_id="q")
    for value in (1, 2):
        runner.client.signal("q", "answer", value)
    assert runner.resume(asking_twice, "q") == [1, 2]


def test_a_signal_id_is_taken_once(runner: Any) -> None:
    """Sending again after an unclear answer is safe."""
    runner.start(asking_twice, 1, instance_id="q")
    for value, name in ((1, "first"), (1, "first"), (2, "second"), (1, "first"), (2, "second")):
        runner.client.signal("q", "answer", value, signal_id=name)
    assert runner.resume(asking_twice, "q") == [1, 2]


def test_a_signal_id_is_taken_once_while_the_instance_is_held(runner: Any) -> None:
    """The inbox remembers it as the journal does."""

    @task
    def sends(x: int) -> int:
        for value, name in ((1, "first"), (1, "first"), (2, "second"), (1, "first")):
            runner.client.signal("held", "answer", value, signal_id=name)
        return x

    @workflow
    def waiting(x: int) -> list[int]:
        sends(x)
        return [signal("answer", int), signal("answer", int)]

    assert runner.run(waiting, 1, instance_id="held") == [1, 2]


def test_what_a_dead_holder_left_in_the_inbox_comes_first_and_once(backend: Any, open_runner: Any) -> None:
    """A message that was posted to a session which then ended is older than one that is sent now."""
    runner = open_runner(backend)
    runner.start(asking_twice, 1, instance_id="q")
    session = runner._room.session()
    header = backend.claim(session, "q").header
    assert backend.post(header.instance, Message("signal", "answer", backend.codec.encode(1), 1)) == "posted"
    backend.end_session(session)
    other = open_runner(backend)
    other.client.signal("q", "answer", 2)
    assert backend.header("q").mail == 0
    assert other.resume(asking_twice, "q") == [1, 2]


def test_an_unread_request_of_a_dead_holder_is_obeyed_first(backend: Any, open_runner: Any) -> None:
    """A cancel that was acknowledged holds: what is sent later is told that the run has ended."""
    runner = open_runner(backend)
    runner.start(asking, 1, instance_id="q")
    session = runner._room.session()
    backend.post(backend.claim(session, "q").header.instance, Message("cancel", "enough", b"me", 1))
    backend.end_session(session)
    with pytest.raises(InstanceEnded):
        open_runner(backend).client.signal("q", "answer", 2)
    assert runner.client.status("q").state == "cancelled"


def test_no_message_in_time_takes_the_other_branch(any_runner: Any, clock: VirtualClock) -> None:
    """on_timeout's value stands for the payload."""
    before = clock.now
    assert any_runner().run(asking_for_an_hour, 1) == -1
    assert clock.now - before == timedelta(hours=1)


def test_no_message_in_time_fails_the_step_where_nothing_else_is_declared(any_runner: Any) -> None:
    """SignalTimeout names signal, time and path."""
    with pytest.raises(WorkflowFailed, match=r"no message 'answer' came within 90s at answer") as caught:
        any_runner().run(asking_or_failing, 1)
    assert isinstance(caught.value.__cause__, SignalTimeout)


def test_a_message_in_time_stops_the_timeout(runner: Any, clock: VirtualClock) -> None:
    """An hour later nothing else happens."""
    runner.start(asking_for_an_hour, 1, instance_id="q")
    clock.advance("59m")
    runner.client.signal("q", "answer", 8)
    clock.advance("10h")
    assert runner.resume(asking_for_an_hour, "q") == 8


def test_a_message_after_the_timeout_that_nobody_fired_yet_is_taken(runner: Any, clock: VirtualClock) -> None:
    """The first of the two that is committed wins."""
    runner.start(asking_for_an_hour, 1, instance_id="q")
    clock.advance("2h")
    runner.client.signal("q", "answer", 8)
    assert runner.resume(asking_for_an_hour, "q") == 8


def test_a_late_message_finds_the_run_ended(runner: Any) -> None:
    """The sender is told."""
    assert runner.run(asking_for_an_hour, 1, instance_id="q") == -1
    with pytest.raises(InstanceEnded, match="completed"):
        runner.client.signal("q", "answer", 8)


def test_a_signal_to_nobody_is_refused(any_runner: Any) -> None:
    """An unknown instance is told to the sender, as is one that an InProcessRunner does not run."""
    with pytest.raises(InstanceNotFound):
        any_runner().client.signal("nobody", "answer", 1)


def test_an_ended_instance_takes_no_request(runner: Any) -> None:
    """Signal, cancel, pause and resume alike."""
    runner.run(napping, 1, instance_id="n")
    client = runner.client
    for send in (lambda: client.cancel("n"), lambda: client.pause("n"), lambda: client.resume("n")):
        with pytest.raises(InstanceEnded):
            send()


def test_names_and_types_of_signals_are_checked_at_the_sender(any_runner: Any) -> None:
    """Also by a runner without a store; the run goes on unharmed."""
    runner, told = any_runner(), list[str]()

    @task
    def sends(x: int) -> int:
        for name, payload in (("anser", 1), ("answer", "text"), ("no/name", 1)):
            with pytest.raises((UsageError, OptionError)) as caught:
                runner.client.signal("s", name, payload)
            told.append(str(caught.value))
        runner.client.signal("s", "answer", 2)
        return x

    @workflow
    def waiting(x: int) -> int:
        return add(sends(x), signal("answer", int))

    assert runner.run(waiting, 1, instance_id="s") == 3
    assert "awaits no signal 'anser'" in told[0]
    assert "answer" in told[0]
    assert "as int" in told[1]


def test_a_payload_that_nobody_could_check_holds_the_instance(backend: Any, open_runner: Any) -> None:
    """A sender without the workflow's code may send anything; the reader finds out, and nothing has failed."""
    open_runner(backend).start(asking, 1, instance_id="q")
    open_runner(backend).client.signal("q", "answer", {"not": "an int"})
    runner = open_runner(backend)
    with pytest.raises(InstanceHeld, match="undecodable"):
        runner.resume(asking, "q")
    status = runner.client.status("q")
    assert (status.state, status.held_by) == ("held", "")
    assert "not" not in status.detail.replace("cannot be read", "")


def test_a_payload_that_cannot_be_stored_is_refused(any_runner: Any) -> None:
    """Before it is sent."""
    from stepwell import EncodeError

    with pytest.raises(EncodeError, match="payload of signal 'answer'"):
        any_runner().client.signal("q", "answer", object())


def test_time_stands_still_while_a_clock_is_moved_by_hand_alone() -> None:
    """With jump=False a waiting call goes on when the test says so."""
    clock, entered = VirtualClock(jump=False), threading.Event()

    class Watched(VirtualClock):
        def timeout_s(self, wait: Any) -> float | None:
            answer = clock.timeout_s(wait)
            entered.set()
            return answer

        def now_us(self) -> int:
            return clock.now_us()

    with InProcessRunner(clock=Watched()) as runner, ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, napping, 1)
        assert entered.wait(20)
        assert not future.done()
        clock.advance("8h")
        assert future.result(20) == 3
