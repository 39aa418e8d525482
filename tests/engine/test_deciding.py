"""What a person decides about a run that is held, one small workflow at a time."""

from __future__ import annotations

import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.frontier import fold
from stepwell.flow import nodes as n

from .graphs import ONCE, awaited, branch, deciding, line, make_task, repeated, step, together
from .hands import Run
from .test_failing import last, settle
from .test_kinds import open_paths, started, succeed


def held(run: Run, path: str = "") -> tuple[int, tuple[int, ...]]:
    """Hold a run about a step, or about itself, and return what the hold names."""
    key = run.plan.find(path)
    assert key is not None
    run.say(e.HoldAsked("decision", "look at this", *key))
    return key


def test_a_completed_step_is_done_with_the_value_that_was_given() -> None:
    """Its readers read the decision's entry, and the run goes on at once."""
    a = step("a", task=ONCE)
    run = started(a, step("b", a))
    run.say(e.Begun(1, (), 1))
    run.say(e.CutOff(1, (), 1))
    run.say(e.Decided(1, (), "complete", by="ann"), "by hand")
    assert (open_paths(run), run.state.held) == (["b"], None)
    assert run.bound(run.plan.nodes[2].args[0], ()) == "by hand"


def test_a_completed_route_takes_the_case_that_is_named() -> None:
    """Without the name of one of its cases there is nothing to go on with."""
    cases = [(key, line(step(key))) for key in ("x", "y")]
    run = started(n.RouteNode("r", n.Const(1), "key", cases))
    key = held(run, "r")
    for tag in ("", "again", "y", "key=z"):
        assert not run.say(e.Decided(*key, "complete", tag))
    assert run.say(e.Decided(*key, "complete", "key=y"))
    assert open_paths(run) == ["r/key=y/y"]


def test_what_a_loop_goes_on_by_must_say_again_or_done() -> None:
    """Itself, or through a route, branch or child whose value it is; any other task may but need not."""
    inner = deciding("d")
    route = n.RouteNode("r", n.Const(1), "key", [("x", line(step("a"), inner))])
    run = started(repeated("l", line(route)))
    succeed(run, "l-first")
    succeed(run, "l[1]/r", tag="key=x")
    assert run.say(e.Decided(*held(run, "l[1]/r/key=x/a"), "complete"))
    key = held(run, "l[1]/r/key=x/d")
    assert not run.say(e.Decided(*key, "complete"))
    assert not run.say(e.Decided(*key, "complete", "nonsense"))
    assert run.say(e.Decided(*key, "complete", "again"), "more")
    assert open_paths(run) == ["l[2]/r"]


def test_a_pack_has_no_tag() -> None:
    """It builds a value and says nothing beside it."""
    a = step("a")
    run = started(a, output=n.Display("list", (n.Value(a),)))
    succeed(run, "a")
    key = held(run, "result")
    assert not run.say(e.Decided(*key, "complete", "done"))
    assert run.say(e.Decided(*key, "complete"), ["by hand"])
    assert run.result == ["by hand"]


@pytest.mark.parametrize("on_error", ["cancel", "wait"])
def test_a_failed_step_fails_like_one_without_attempts_left(on_error: n.OnError) -> None:
    """Whatever its policy allows: the scope around it decides, and the record given is the run's error."""
    run = started(together(step("a", task=make_task("often", attempts=9)), step("b"), on_error=on_error))
    run.say(e.Decided(*held(run, "parallel/a"), "fail", by="ann"), "no such payment")
    assert run.at("parallel/a").phase == "failed"
    if on_error == "wait":
        succeed(run, "parallel/b")
    else:
        settle(run, "parallel/b")
    assert (run.state.ended, run.result) == ("failed", "no such payment")


def test_a_step_runs_again_as_the_next_attempt() -> None:
    """Begun or not; whoever still works on the last attempt is not heard any more."""
    for begun in (True, False):
        run = started(step("a", task=ONCE))
        if begun:
            run.say(e.Begun(1, (), 1))
        run.say(e.Decided(*held(run, "a"), "rerun"))
        assert (run.at("a").phase, run.at("a").attempt, run.at("a").spent) == ("ready", 2, 0)
        assert not run.say(e.Succeeded(1, (), 1))
        assert run.say(e.Succeeded(1, (), 2))


def test_what_else_is_open_stays_as_it_was() -> None:
    """A backoff, a begun step and a timer outlive the decision about another step."""
    often = make_task("often", attempts=9)
    run = started(together(step("a"), step("b", task=often), step("c", task=ONCE), branch("d", n.DelayNode("nap", 9))))
    run.say(e.Begun(4, (), 1))
    run.say(e.Errored(3, (), 1, True))
    others = {key: step for key, step in run.state.steps.items() if key[0] != 2}
    assert len(others) == 3
    run.say(e.Decided(*held(run, "parallel/a"), "complete"))
    assert run.state.steps == others


def test_only_what_is_held_can_be_decided() -> None:
    """No hold, another step, a step that is done by now: nothing happens, and the hold stands."""
    run = started(together(step("a"), step("b")))
    assert not run.say(e.Decided(2, (), "complete"))
    key = held(run, "parallel/a")
    assert not run.say(e.Decided(3, (), "rerun"))
    assert not run.say(e.Decided(0, (), "rerun"))
    succeed(run, "parallel/a")
    assert not run.say(e.Decided(*key, "complete"))
    assert not run.say(e.Decided(*key, "fail"))
    assert run.state.held is not None
    assert run.say(e.Decided(*key, "rerun"))
    assert open_paths(run) == ["parallel/b"]


def test_a_wait_that_is_held_can_only_be_let_go() -> None:
    """A message or its moment ends it, no decision does."""
    run = started(awaited("go"))
    key = held(run, "go")
    assert not run.say(e.Decided(*key, "complete"))
    assert not run.say(e.Decided(*key, "fail"))
    run.say(e.Signalled("go"), "hello")
    run.say(e.Decided(*key, "rerun"))
    assert run.result == "hello"


def test_messages_that_came_during_the_hold_are_taken() -> None:
    """Unless the run is paused as well: then it stays so, and they are taken when it is resumed."""
    for paused in (False, True):
        run = started(together(step("a"), branch("b", awaited("go"))))
        if paused:
            run.say(e.PauseAsked())
        key = held(run, "parallel/a")
        run.say(e.Signalled("go"), "hello")
        run.say(e.Decided(*key, "complete"))
        assert (run.state.ended == "completed") is not paused
        run.say(e.ResumeAsked())
        assert run.state.ended == "completed"


def test_a_closing_step_that_is_completed_moves_nothing() -> None:
    """Its outcome is recorded, and its scope has failed; a retry goes on from it."""
    a = step("a")
    run = started(together(a, step("b"), name="p"), step("c", a))
    run.say(e.Errored(3, (), 1, False), "error")
    run.say(e.Decided(*held(run, "p/a"), "complete"), "by hand")
    assert (run.state.ended, run.result) == ("failed", "error")
    run.say(e.RetryAsked())
    succeed(run, "p/b")
    assert open_paths(run) == ["c"]


def test_two_waits_of_one_parallel_end_at_once() -> None:
    """Both messages came while the run was stopped; the parallel is left once, when it is resumed or let go."""
    for stop, go_on in ((e.PauseAsked(), e.ResumeAsked()), (e.HoldAsked("why", "so"), e.Decided(0, (), "rerun"))):
        waits = [awaited("go"), awaited("stop")]
        run = started(together(*waits), step("a", *waits))
        run.say(stop)
        run.say(e.Signalled("go"), "one")
        run.say(e.Signalled("stop"), "two")
        run.say(go_on)
        assert open_paths(run) == ["a"]


# --- the run itself ----------------------------------------------------------------------


def test_a_run_that_is_let_go_goes_on_as_it_stood() -> None:
    """Of a hold that names no step, no step runs again and none can be completed."""
    run = started(together(step("a", task=ONCE), step("b")))
    run.say(e.Begun(2, (), 1))
    before = dict(run.state.steps)
    held(run)
    assert not run.say(e.Decided(0, (), "complete"))
    assert run.say(e.Decided(0, (), "rerun", by="ann")) == [f.HoldDecided(0, (), "rerun", "", "ann")]
    assert run.state.steps == before


def test_a_run_that_is_failed_ends_when_all_has_settled() -> None:
    """Nothing starts any more, what runs may end and moves nothing, and the record given is the run's error."""
    run = started(together(step("a"), branch("b", step("c"), step("d")), branch("e", awaited("go"))))
    held(run)
    run.say(e.Decided(0, (), "fail"), "given up")
    assert (run.state.status(run.now), open_paths(run, "closing")) == ("running", ["parallel/a", "parallel/b/c"])
    succeed(run, "parallel/b/c")
    settle(run, "parallel/a")
    assert last(run) == f.RunEnded("failed", run.state.seq - 2, 0, (), "")
    assert run.result == "given up"
    run.say(e.RetryAsked())
    assert sorted(open_paths(run)) == ["parallel/a", "parallel/b/d", "parallel/e/go"]


def test_a_run_that_waits_is_failed_at_once() -> None:
    """There is nothing to settle; a cancel comes too late."""
    run = started(awaited("go"))
    held(run)
    run.say(e.Decided(0, (), "fail"), "given up")
    assert run.state.ended == "failed"
    assert not run.say(e.CancelAsked())


def test_a_cancel_ends_a_run_that_is_failing() -> None:
    """The state it ends in is the later decision's."""
    run = started(step("a"))
    held(run)
    run.say(e.Decided(0, (), "fail"), "given up")
    run.say(e.CancelAsked("enough", "ann"))
    settle(run, "a")
    assert run.state.ended == "cancelled"


def test_holds_that_were_ended_by_a_retry_are_still_read() -> None:
    """Journals hold such entries from before decisions had a fact."""
    run = started(step("a"))
    held(run)
    state = fold(run.plan, run.state, [f.RunReopened("ann")])
    assert (state.held, list(state.steps)) == (None, [(1, ())])
