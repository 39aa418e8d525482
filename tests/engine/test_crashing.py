"""Processes that die in a step: what is counted, what is not, and where it ends. One small workflow at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.frontier import Step
from stepwell.flow import nodes as n
from stepwell.retry import Retry

from .graphs import ONCE, branch, flow, line, make_task, step, together
from .hands import Run
from .test_change import moved
from .test_failing import settle
from .test_kinds import fail, open_paths, started, succeed

OFTEN = make_task("often", retry=Retry(attempts=3, delay=0.0, jitter=0.0))


def crash(run: Run, path: str, limit: int = e.MAX_CRASHES, *, begun: bool = True) -> Sequence[f.Fact]:
    """Let a process die in the current attempt of a step; not ``begun``: it was given away and lost."""
    key, attempt = run.plan.find(path), run.at(path).attempt
    assert key is not None
    if begun:
        assert run.say(e.Begun(*key, attempt))
    return run.say(e.CutOff(*key, attempt, limit))


@pytest.mark.parametrize("begun", [True, False])
def test_a_step_whose_process_died_runs_again(begun: bool) -> None:
    """At once, as the next attempt; the dead one is not heard any more, and dies only once."""
    run = started(step("a"), step("b"))
    assert crash(run, "a", begun=begun) == [f.StepCrashed(1, (), 1, 1)]
    assert run.at("a") == Step(2, crashes=1)
    assert not run.say(e.Succeeded(1, (), 1))
    assert not run.say(e.CutOff(1, (), 1))
    succeed(run, "a")
    assert run.at("b") == Step()


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_so_many_crashes_in_a_row_quarantine_a_step(limit: int) -> None:
    """No more and no fewer; then a person decides."""
    run = started(step("a"), step("b"))
    for died in range(1, limit):
        assert crash(run, "a", limit) == [f.StepCrashed(1, (), died, died)]
    assert crash(run, "a", limit) == [f.RunHeld("quarantined", "a", 1, ())]
    assert not run.say(e.CutOff(1, (), limit, limit))
    assert (run.state.status(run.now), run.state.next_due_us()) == ("held", None)


@pytest.mark.parametrize("limit", [1, 5])
def test_an_at_most_once_step_never_runs_again_by_itself(limit: int) -> None:
    """Its first crash holds the run. Given away and not begun, it has not started, so nothing has happened."""
    run = started(step("a", task=ONCE))
    assert not crash(run, "a", limit, begun=False)
    assert crash(run, "a", limit) == [f.RunHeld("interrupted", "a", 1, ())]


def tuned(begin_once: bool) -> Run:
    """Return a run with a step that has begun, under code that has changed how often it may start since."""
    run = started(step("a", task=ONCE if begin_once else OFTEN))
    run.say(e.Begun(1, (), 1))
    run.tune(1)
    return run


def test_a_start_is_recorded_as_the_plan_has_it_then() -> None:
    """The only one, or one that may be repeated; and no second time."""
    for task, fact, phase in ((ONCE, f.StepBegan, "began"), (OFTEN, f.StepTried, "tried")):
        run = started(step("a", task=task))
        assert run.say(e.Begun(1, (), 1)) == [fact(1, (), 1)]
        assert run.at("a") == Step(phase=phase)
        assert not run.say(e.Begun(1, (), 1))


def test_what_has_begun_to_start_once_never_starts_again_whatever_the_code_says() -> None:
    """Nobody knows whether it happened; and a plan that would allow another start records none."""
    run = tuned(begin_once=True)
    assert not run.say(e.Begun(1, (), 1))
    assert run.say(e.CutOff(1, (), 1)) == [f.RunHeld("interrupted", "a", 1, ())]


def test_what_has_begun_to_start_often_is_tried_again_whatever_the_code_says() -> None:
    """Its crash is counted; the next start is the only one, and so is this one if it has not happened."""
    run = tuned(begin_once=False)
    assert run.say(e.CutOff(1, (), 1)) == [f.StepCrashed(1, (), 1, 1)]
    assert not run.say(e.CutOff(1, (), 2))
    assert crash(run, "a") == [f.RunHeld("interrupted", "a", 1, ())]
    run = tuned(begin_once=False)
    assert crash(run, "a") == [f.RunHeld("interrupted", "a", 1, ())]


def test_only_the_current_attempt_of_a_step_may_ask_for_a_hold() -> None:
    """One that was lost reports too late that its arguments cannot be read."""
    run = started(step("a"), step("b"))
    crash(run, "a")
    assert not run.say(e.HoldAsked("undecodable", "why", 1, (), 1))
    assert not run.say(e.HoldAsked("undecodable", "why", 2, (), 1))
    assert run.say(e.HoldAsked("undecodable", "why", 1, (), 2)) == [f.RunHeld("undecodable", "why", 1, ())]


def test_crashes_use_up_no_attempt_of_the_policy() -> None:
    """Three attempts may fail, however many processes died before."""
    run = started(step("a", task=OFTEN))
    for _ in range(4):
        crash(run, "a")
    for spent in (1, 2):
        fail(run, "a", retryable=True)
        crash(run, "a")
        assert (run.at("a").spent, run.at("a").attempt) == (spent, 5 + 2 * spent)
    fail(run, "a", retryable=True)
    assert run.state.ended == "failed"


def test_an_attempt_that_ends_otherwise_begins_the_count_anew() -> None:
    """An error, or a wait that the task asked for, shows that it need not die."""
    run = started(step("a", task=OFTEN))
    for after_us in (-1, 0):
        crash(run, "a", 2)
        fail(run, "a", retryable=True, after_us=after_us)
        assert run.at("a").crashes == 0
    assert crash(run, "a", 2) == [f.StepCrashed(1, (), 5, 1)]


def test_a_rerun_begins_the_count_anew() -> None:
    """A person says that it may try again, so often as at first."""
    run = started(step("a"))
    crash(run, "a", 1)
    run.say(e.Decided(1, (), "rerun"))
    assert run.at("a") == Step(2)
    assert crash(run, "a", 2) == [f.StepCrashed(1, (), 2, 1)]


@pytest.mark.parametrize(("kind", "ended"), [("complete", "completed"), ("fail", "failed")])
def test_a_person_may_decide_instead(kind: str, ended: str) -> None:
    """By a value or an error; whether it was begun or given away."""
    for begun in (True, False):
        run = started(step("a"))
        crash(run, "a", 1, begun=begun)
        run.say(e.Decided(1, (), kind), "by hand")  # type: ignore[arg-type]  # one of its words
        assert (run.state.ended, run.result) == (ended, "by hand")


def test_a_retry_begins_the_count_anew() -> None:
    """Of what was closed as of what failed."""
    run = started(together(step("a"), step("b")))
    crash(run, "parallel/a")
    crash(run, "parallel/b")
    run.say(e.CancelAsked())
    assert run.at("parallel/a").crashes == 1
    settle(run, "parallel/a", "parallel/b")
    run.say(e.RetryAsked())
    assert [run.at(path) for path in open_paths(run)] == [Step(3), Step(3)]


def test_the_crash_of_a_closing_step_just_settles_it() -> None:
    """It was not to run again, and its scope or the run ends as if it had been stopped."""
    for stop in (e.CancelAsked(), e.Errored(3, (), 1, False)):
        run = started(together(step("a"), step("b")))
        run.say(e.Begun(2, (), 1))
        run.say(stop, "error")
        facts = run.say(e.CutOff(2, (), 1, 1))
        assert facts[0] == f.StepsSettled(((2, ()),))
        settle(run, "parallel/b")
        assert run.state.ended in ("cancelled", "failed")


def test_a_run_that_is_held_counts_and_is_not_held_again() -> None:
    """The last crash waits until the hold is over; the step that is held waits for the decision."""
    run = started(together(step("a"), step("b")))
    run.say(e.Begun(2, (), 1))
    run.say(e.HoldAsked("why", "so", 3, ()))
    assert run.say(e.CutOff(2, (), 1, 3)) == [f.StepCrashed(2, (), 1, 1)]
    assert not run.say(e.CutOff(2, (), 2, 2))
    assert not run.say(e.CutOff(3, (), 1, 2))
    run.say(e.Decided(3, (), "rerun"))
    assert run.say(e.CutOff(2, (), 2, 2)) == [f.RunHeld("quarantined", "parallel/a", 2, ())]


def test_a_paused_run_counts_and_stays_paused() -> None:
    """What is tried waits as what is ready does; whoever takes the run up after a crash counts it all the same."""
    run = started(step("a"))
    run.say(e.Begun(1, (), 1))
    assert (run.state.status(run.now), run.state.next_due_us()) == ("running", 0)
    run.say(e.PauseAsked())
    assert (run.state.status(run.now), run.state.next_due_us()) == ("paused", None)
    assert run.say(e.CutOff(1, (), 1)) == [f.StepCrashed(1, (), 1, 1)]
    assert (run.state.status(run.now), run.state.next_due_us()) == ("paused", None)
    run.say(e.ResumeAsked())
    assert (run.state.status(run.now), run.state.next_due_us()) == ("running", 0)


def test_what_began_to_start_once_is_looked_at_in_a_paused_run() -> None:
    """It does begin, or is held for."""
    run = started(step("a", task=ONCE))
    run.say(e.Begun(1, (), 1))
    run.say(e.PauseAsked())
    assert (run.state.status(run.now), run.state.next_due_us()) == ("paused", 0)


def test_what_a_dead_attempt_kept_is_there_for_the_next() -> None:
    """The cursor says how far it came before its process died."""
    run = started(step("a"))
    run.say(e.Beat(1, (), 1), "half")
    crash(run, "a")
    assert run.values[run.state.cursors[(1, ())]] == "half"
    assert not run.say(e.Beat(1, (), 1), "late")


def test_whatever_has_a_body_can_crash() -> None:
    """The key of a route and the value that is put together run code of the author's as well."""
    route = n.RouteNode("r", n.Const(1), "key", [("x", line(step("x")))])
    run = started(route, output=n.Display("list", (n.Const(1),)))
    assert crash(run, "r", 2) == [f.StepCrashed(run.steps("ready")[0][0], (), 1, 1)]
    succeed(run, "r", tag="key=x")
    succeed(run, "r/key=x/x")
    assert crash(run, "result", 1)
    assert run.state.held is not None


def test_crashes_go_along_when_a_run_moves() -> None:
    """Whether the step has begun or not; another name makes no other step of it."""
    for begun in (True, False):
        run = started(together(step("a"), branch("b", step("c"))))
        crash(run, "parallel/a")
        if begun:
            run.say(e.Begun(2, (), 2))
        moved(run, flow(together(step("new"), step("a"), branch("b", step("c")))))
        assert (run.at("parallel/a").crashes, run.at("parallel/a").phase) == (1, "tried" if begun else "ready")
        assert crash(run, "parallel/a", 2, begun=not begun)[0] == f.RunHeld(
            "quarantined", "parallel/a", *run.plan.find("parallel/a") or (0, ())
        )
