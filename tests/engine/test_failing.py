"""Retries, failing scopes, pause, hold, cancel, and retry of what has ended, one small workflow at a time."""

from __future__ import annotations

import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.flow import nodes as n
from stepwell.retry import Retry, backoff_us

from .graphs import ONCE, Seeded, awaited, branch, deciding, flow, line, make_task, repeated, step, together
from .hands import Run, finish
from .test_kinds import fail, open_paths, started, succeed

THRICE = make_task("thrice", retry=Retry(attempts=3, delay=1.0, factor=2.0, max_delay=1.5, jitter=0.5))


def settle(run: Run, *paths: str) -> None:
    run.say(e.Settled(tuple(key for key in map(run.plan.find, paths) if key)))


def last(run: Run) -> f.Fact:
    return run.facts[-1]


def names(run: Run, kind: type[f.Fact]) -> list[str]:
    """Return the paths of the facts of one kind."""
    return [run.plan.path(fact.node, fact.turns) for fact in run.facts if isinstance(fact, kind)]  # type: ignore[union-attr,arg-type]


# --- attempts ----------------------------------------------------------------------------


def test_a_step_is_tried_as_often_as_its_policy_says() -> None:
    """Three attempts, with growing waits up to the longest, less the jitter that was drawn; then the run fails."""
    run = started(step("a", task=THRICE))
    waits = []
    for draw in (0.0, 0.5):
        fail(run, "a", retryable=True, draw=draw)
        waits.append(run.at("a").due_us - run.now)
    assert waits == [1_000_000, 1_500_000 * 3 // 4]
    assert run.at("a").attempt == 3
    fail(run, "a", retryable=True)
    assert last(run) == f.RunEnded("failed", run.state.seq, 1, (), "")
    assert run.result == "error of a"


def test_an_error_that_is_not_retryable_ends_the_attempts() -> None:
    """However many are left."""
    run = started(step("a", task=THRICE))
    fail(run, "a")
    assert run.state.ended == "failed"


def test_a_wait_the_task_asked_for_uses_no_attempt() -> None:
    """It may ask for it any number of times, and its policy is as fresh as before; the attempt has a new number."""
    run = started(step("a", task=THRICE))
    for asked in range(10):
        fail(run, "a", retryable=True, after_us=asked)
        assert (run.at("a").due_us, run.at("a").spent) == (run.now + asked, 0)
    assert run.at("a").attempt == 11
    fail(run, "a", retryable=True)
    fail(run, "a", retryable=True)
    assert not run.state.ended
    fail(run, "a", retryable=True)
    assert run.state.ended == "failed"


def test_an_outcome_of_an_older_attempt_is_refused() -> None:
    """Only the current attempt may speak, and only once."""
    run = started(step("a", task=THRICE), step("b"))
    fail(run, "a", retryable=True)
    assert not run.say(e.Succeeded(1, (), 1))
    assert not run.say(e.Errored(1, (), 1, True))
    assert run.say(e.Succeeded(1, (), 2))
    assert not run.say(e.Succeeded(1, (), 2))


@pytest.mark.parametrize(
    ("failed", "draw", "wait"),
    [(1, 0.0, 100), (2, 0.0, 300), (3, 0.0, 500), (99_999, 0.0, 500), (1, 0.5, 95), (3, 1.0, 450)],
)
def test_waits_grow_to_a_limit_and_jitter_shortens_them(failed: int, draw: float, wait: int) -> None:
    """The n-th wait is delay times factor to the n-1, at most max_delay, shortened by up to the jitter's share."""
    assert backoff_us(failed, 100, 3.0, 500, 0.1, draw) == wait


def test_no_delay_means_no_wait() -> None:
    """A delay of 0 stays 0 whatever the factor."""
    assert backoff_us(5_000, 0, 1000.0, 500, 0.1, 0.5) == 0


# --- a parallel that cancels -------------------------------------------------------------


def test_the_first_failure_stops_what_has_not_started() -> None:
    """Backoffs, timers, signals and unstarted steps close; the scope waits for those that may be running."""
    delayed = n.DelayNode("nap", 10)
    run = started(
        together(step("a"), step("b"), branch("w", awaited("go")), branch("d", delayed), step("c", task=THRICE))
    )
    fail(run, "parallel/c", retryable=True)
    fail(run, "parallel/a")
    assert not run.state.ended
    assert [(run.plan.path(*k), s.phase) for k, s in run.state.steps.items()] == [
        ("parallel/a", "failed"),
        ("parallel/b", "closing"),
        ("parallel/w/go", "closed"),
        ("parallel/d/nap", "closed"),
        ("parallel/c", "closing"),
    ]
    assert run.state.status(run.now) == "running"
    settle(run, "parallel/b", "parallel/c")
    assert run.state.ended == "failed"


def test_what_still_returns_is_recorded_and_advances_nothing() -> None:
    """A running sibling's result is kept for a retry; the scope fails after the last of them."""
    b = step("b")
    run = started(together(step("a"), branch("eu", b, step("next", b)), step("c")))
    fail(run, "parallel/a")
    succeed(run, "parallel/eu/b")
    assert names(run, f.StepDone) == ["parallel/eu/b"]
    assert open_paths(run, "ready") == []
    settle(run, "parallel/c")
    assert names(run, f.ScopeFailed) == ["parallel"]


def test_a_failure_while_failing_is_not_retried_and_not_the_first() -> None:
    """A closing step has no more attempts; the error shown is the first in the journal."""
    run = started(together(step("a"), step("b", task=THRICE)))
    fail(run, "parallel/a")
    fail(run, "parallel/b", retryable=True)
    assert run.state.ended == "failed"
    assert run.result == "error of parallel/a"


def test_a_failing_parallel_fails_the_one_around_it() -> None:
    """Inner first, each once; siblings further out are closed as well."""
    inner = together(step("a"), step("b"), name="inner")
    run = started(together(branch("eu", inner), step("c"), name="outer"))
    fail(run, "outer/eu/inner/a")
    assert open_paths(run, "ready") == ["outer/c"]
    settle(run, "outer/eu/inner/b")
    assert names(run, f.ScopeFailing) == ["outer/eu/inner", "outer"]
    assert open_paths(run, "closing") == ["outer/c"]
    settle(run, "outer/c")
    assert names(run, f.ScopeFailed) == ["outer/eu/inner", "outer"]


def test_two_failing_scopes_that_settle_at_once_fail_the_outer_one_once() -> None:
    """Both wait for a sibling; one report settles both: the run ends once, and nothing comes after its end."""
    inners = [together(step(f"a{i}"), step(f"b{i}"), name=f"inner{i}") for i in (1, 2)]
    run = started(together(*inners, name="outer"))
    fail(run, "outer/inner1/a1")
    fail(run, "outer/inner2/a2")
    settle(run, "outer/inner1/b1", "outer/inner2/b2")
    assert [type(fact) for fact in run.facts].count(f.RunEnded) == 1
    assert run.result == "error of outer/inner1/a1"


# --- a parallel that waits ---------------------------------------------------------------


def test_a_waiting_parallel_runs_all_that_does_not_read_what_failed() -> None:
    """Readers of a failed child are skipped, and their readers; the others finish, then the scope fails."""
    a, b = step("a"), step("b")
    reader = step("reader", a)
    run = started(together(a, b, reader, step("second", reader), step("other", b), on_error="wait"), step("z"))
    fail(run, "parallel/a")
    assert names(run, f.ChildFailed) == ["parallel/a"]
    assert names(run, f.Skipped) == ["parallel/reader", "parallel/second"]
    succeed(run, "parallel/b")
    assert not run.state.ended
    succeed(run, "parallel/other")
    assert run.state.ended == "failed"
    assert names(run, f.ScopeFailing) == []


def test_a_waiting_parallel_tries_again_and_waits_for_timers_and_messages() -> None:
    """Retries, delays and signals go on beside a failed sibling."""
    waits = (branch("d", n.DelayNode("nap", 10)), branch("w", awaited("go")))
    run = started(together(step("a"), step("c", task=THRICE), *waits, on_error="wait"))
    fail(run, "parallel/a")
    fail(run, "parallel/c", retryable=True)
    run.say(e.Signalled("go"))
    run.fire(*run.steps("parked")[0])
    assert not run.state.ended
    succeed(run, "parallel/c")
    assert run.state.ended == "failed"


def test_a_parallel_inside_a_waiting_one_fails_alone() -> None:
    """The enclosing scope sees one failed child."""
    inner = together(step("a"), step("b"), name="inner")
    run = started(together(inner, step("c"), on_error="wait", name="outer"))
    fail(run, "outer/inner/a")
    settle(run, "outer/inner/b")
    assert names(run, f.ChildFailed) == ["outer/inner"]
    assert open_paths(run, "ready") == ["outer/c"]
    succeed(run, "outer/c")
    assert run.state.ended == "failed"


# --- pause and hold ----------------------------------------------------------------------


def test_pause_lets_bodies_end_and_loses_no_timer_or_message() -> None:
    """What runs is recorded and followed; a timer fires, and a message kept meanwhile is taken, after the resume."""
    run = started(
        together(branch("a", step("a1"), step("a2")), branch("d", n.DelayNode("nap", 10)), branch("w", awaited("go")))
    )
    run.say(e.PauseAsked("lunch", "ann"))
    assert (run.state.status(run.now), run.state.next_due_us()) == ("paused", None)
    nap = run.steps("parked")[0]
    run.now += 50
    assert not run.say(e.Fired(*nap))
    run.say(e.Signalled("go"))
    succeed(run, "parallel/a/a1")
    assert open_paths(run) == ["parallel/d/nap", "parallel/w/go", "parallel/a/a2"]
    assert not run.say(e.PauseAsked())
    run.say(e.ResumeAsked("ann"))
    assert open_paths(run) == ["parallel/d/nap", "parallel/a/a2"]
    assert not run.say(e.ResumeAsked("ann"))
    assert run.say(e.Fired(*nap))


def test_cancel_beats_pause_and_hold() -> None:
    """Neither stands after a cancel, and a pause is refused from then on."""
    for stop in (e.PauseAsked(), e.HoldAsked("why", "because")):
        run = started(step("a"))
        run.say(stop)
        run.say(e.CancelAsked())
        assert not run.say(e.PauseAsked())
        assert (run.state.paused, run.state.held) == (None, None)


def test_a_hold_stops_timers_until_it_is_let_go() -> None:
    """A held run has a reason and is due at no time; a decision lets it go on as it stood, a retry does not."""
    run = started(n.DelayNode("nap", 10))
    run.say(e.HoldAsked("payload", "cannot be read", 1, ()))
    run.now += 50
    assert not run.say(e.Fired(1, ()))
    assert (run.state.status(run.now), run.state.next_due_us()) == ("held", None)
    assert not run.say(e.RetryAsked("ann"))
    assert run.say(e.Decided(1, (), "rerun", by="ann")) == [f.HoldDecided(1, (), "rerun", "", "ann")]
    assert run.say(e.Fired(1, ()))


def test_letting_go_keeps_a_scope_failing_and_a_cancel_ending() -> None:
    """A hold in the middle of a failure or cancel changes neither."""
    for stop in (lambda run: fail(run, "parallel/a"), lambda run: run.say(e.CancelAsked())):
        run = started(together(step("a"), step("b")))
        stop(run)
        run.say(e.HoldAsked("why", "because"))
        run.say(e.Decided(0, (), "rerun"))
        settle(run, *open_paths(run, "closing"))
        assert run.state.ended in ("failed", "cancelled")


def test_a_begun_step_that_was_cut_off_holds_the_run() -> None:
    """At most once: nobody but a person may start it again; then its old attempt may not speak."""
    run = started(step("a", task=ONCE), step("b"))
    run.say(e.Begun(1, (), 1))
    assert not run.say(e.Begun(1, (), 1))
    assert run.say(e.CutOff(1, (), 1)) == [f.RunHeld("interrupted", "a", 1, ())]
    assert not run.say(e.CutOff(1, (), 1))
    run.say(e.Decided(1, (), "rerun"))
    assert (run.at("a").phase, run.at("a").attempt) == ("ready", 2)
    assert not run.say(e.Succeeded(1, (), 1))
    succeed(run, "a")
    assert open_paths(run) == ["b"]


def test_letting_go_starts_no_other_begun_step_again() -> None:
    """Two at-most-once steps were cut off: a decision about one is none about the other."""
    run = started(together(step("a", task=ONCE), step("b", task=ONCE)))
    for node in (2, 3):
        run.say(e.Begun(node, (), 1))
    for node in (2, 3):
        run.say(e.CutOff(node, (), 1))
    run.say(e.Decided(2, (), "rerun"))
    assert open_paths(run, "ready") == ["parallel/a"]
    assert open_paths(run, "began") == ["parallel/b"]
    assert run.say(e.CutOff(3, (), 1))


def test_an_at_most_once_step_that_had_not_begun_is_not_cut_off() -> None:
    """Its process died before it could start."""
    run = started(step("a", task=ONCE))
    assert not run.say(e.CutOff(1, (), 1))


# --- cursors -----------------------------------------------------------------------------


def test_a_cursor_outlives_the_attempt_and_not_the_step() -> None:
    """A later attempt finds the last one kept; an older attempt keeps none; an outcome forgets it."""
    run = started(step("a", task=THRICE), step("b"))
    for cursor in ("one", "two"):
        run.say(e.Beat(1, (), 1), cursor)
    fail(run, "a", retryable=True)
    assert not run.say(e.Beat(1, (), 1), "late")
    assert [run.values[at] for at in run.state.cursors.values()] == ["two"]
    succeed(run, "a")
    assert run.state.cursors == {}


def test_only_tasks_keep_cursors() -> None:
    """A route's key and a selection are computed by no user code."""
    run = started(n.RouteNode("route", n.Const(1), "key", [("x", line(step("chosen")))]))
    assert not run.say(e.Beat(1, (), 1), "cursor")


# --- cancel ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [n.DelayNode("nap", 10), awaited("go"), awaited("go", 30, line(step("late"))), branch("b", n.DelayNode("nap", 10))],
)
def test_cancel_ends_a_waiting_run_at_once(node: n.Node) -> None:
    """Nobody has to be asked: timers and signals close."""
    run = started(node, step("z"))
    run.say(e.CancelAsked("enough", "ann"))
    assert run.state.ended == "cancelled"
    assert not run.say(e.CancelAsked())


def test_cancel_waits_for_what_may_run() -> None:
    """The run is cancelled when the last closing step has reported or settled; their results are recorded."""
    run = started(together(step("a"), step("b"), branch("d", n.DelayNode("nap", 10))), step("z"))
    run.say(e.CancelAsked("enough", "ann"))
    assert (run.state.ended, run.state.next_due_us()) == ("", 0)
    succeed(run, "parallel/a")
    assert not run.state.ended
    settle(run, "parallel/b")
    assert last(run) == f.RunEnded("cancelled")


def test_cancel_takes_over_scopes_that_are_failing() -> None:
    """Closing steps then count for the run, once each."""
    run = started(together(step("a"), step("b"), step("c")))
    fail(run, "parallel/a")
    run.say(e.CancelAsked())
    settle(run, "parallel/b")
    assert not run.state.ended
    fail(run, "parallel/c")
    assert run.state.ended == "cancelled"


def test_a_message_of_a_cancelled_run_stays_kept_until_its_end() -> None:
    """It is not lost to a retry; after the end nothing is taken in any more."""
    run = started(together(step("a"), branch("w", awaited("go"))))
    run.say(e.CancelAsked())
    run.say(e.Signalled("go"), "kept")
    settle(run, "parallel/a")
    assert not run.say(e.Signalled("go"))
    run.say(e.RetryAsked())
    assert names(run, f.MessageTaken) == ["parallel/w/go"]


# --- retry of an ended run ---------------------------------------------------------------


def test_a_retry_opens_exactly_what_failed_or_was_closed() -> None:
    """Results are kept, attempts begin afresh under new numbers, a delay keeps its moment, a signal its wait."""
    nap, wait = branch("d", n.DelayNode("nap", 40)), branch("w", awaited("go", 90, n.Body()))
    run = started(together(step("a"), step("b"), step("c", task=THRICE), nap, wait), step("z"))
    due = [run.at("parallel/d/nap").due_us, run.at("parallel/w/go").due_us]
    succeed(run, "parallel/a")
    fail(run, "parallel/c", retryable=True)
    fail(run, "parallel/b")
    settle(run, "parallel/c")
    run.now += 20
    run.say(e.RetryAsked("ann"))
    assert open_paths(run) == ["parallel/b", "parallel/c", "parallel/d/nap", "parallel/w/go"]
    assert [run.at("parallel/d/nap").due_us, run.at("parallel/w/go").due_us] == due
    assert (run.at("parallel/c").attempt, run.at("parallel/c").spent) == (3, 0)
    finish(run, Seeded(1))
    assert run.state.ended == "completed"
    assert names(run, f.StepDone).count("parallel/a") == 1


def test_a_retry_goes_on_behind_what_was_done_while_the_scope_failed() -> None:
    """A step and a route's choice of the failing scope are not asked again, and what follows them opens once."""
    b = step("b")
    route = n.RouteNode("route", n.Const(1), "key", [("x", line(step("chosen")))])
    run = started(together(step("a"), branch("eu", b, step("next", b)), route, step("join", b)))
    fail(run, "parallel/a")
    succeed(run, "parallel/eu/b")
    succeed(run, "parallel/route", tag="key=x")
    assert run.state.ended == "failed"
    run.say(e.RetryAsked())
    assert sorted(open_paths(run)) == ["parallel/a", "parallel/eu/next", "parallel/route/key=x/chosen"]
    finish(run, Seeded(1))
    assert names(run, f.StepDone).count("parallel/eu/b") == 1


def test_a_retry_opens_a_waiter_of_several_stalled_children_once() -> None:
    """And a scope all of whose children are done by then is closed once."""
    b, c = step("b"), step("c")
    run = started(together(step("a"), b, c, step("join", b, c)), together(step("x"), step("y"), name="second"))
    fail(run, "parallel/a")
    succeed(run, "parallel/b", "parallel/c")
    run.say(e.RetryAsked())
    assert sorted(open_paths(run)) == ["parallel/a", "parallel/join"]
    succeed(run, "parallel/a", "parallel/join")
    run.say(e.CancelAsked())
    succeed(run, "second/x", "second/y")
    run.say(e.RetryAsked())
    assert run.state.ended == "completed"


def test_a_retry_takes_kept_messages_in_order() -> None:
    """Messages that came meanwhile go to the reopened signals before anything behind them asks for one."""
    waits = [branch(f"b{i}", awaited("go", name=f"w{i}"), awaited("go", name=f"then{i}")) for i in (1, 2)]
    run = started(together(step("a"), *waits))
    run.say(e.CancelAsked())
    for message in ("first", "second", "third"):
        run.say(e.Signalled("go"), message)
    settle(run, "parallel/a")
    run.say(e.RetryAsked())
    taken = [(run.plan.nodes[t.node].name, run.values[t.address]) for t in run.facts if isinstance(t, f.MessageTaken)]
    assert taken == [("w1", "first"), ("w2", "second"), ("then1", "third")]


def test_a_retry_closes_a_parallel_whose_last_children_take_messages() -> None:
    """Two signals and a stalled branch are all done by the retry itself: the scope ends once."""
    run = started(together(awaited("go", name="w1"), awaited("go", name="w2"), branch("eu", step("a"))), step("z"))
    run.say(e.CancelAsked())
    run.say(e.Signalled("go"))
    run.say(e.Signalled("go"))
    succeed(run, "parallel/eu/a")
    run.say(e.RetryAsked())
    assert open_paths(run) == ["z"]


def test_a_retry_of_a_refused_loop_fails_again_and_loses_nothing() -> None:
    """The loop is refused in the same entry; what had stalled beside it is open by then, is closed, and comes back."""
    loop = repeated("l", line(deciding("x")), most=1, first=n.Const(0))
    run = started(together(branch("eu", step("b"), step("next")), branch("us", loop)))
    succeed(run, "parallel/us/l-first")
    succeed(run, "parallel/us/l[1]/x", tag="again")
    succeed(run, "parallel/eu/b")
    assert run.state.ended == "failed"
    run.say(e.RetryAsked())
    assert run.state.ended == ""
    assert open_paths(run, "closing") == ["parallel/eu/next"]
    succeed(run, "parallel/eu/next")
    assert run.state.ended == "failed"
    run.say(e.RetryAsked())
    assert run.state.ended == "failed"
    assert names(run, f.StepDone).count("parallel/eu/next") == 1


def test_a_retry_refuses_every_loop_that_is_out_of_turns() -> None:
    """Two loops of one scope: both are noted as stalled, so that a retry after a change finds both."""
    loops = [branch(f"b{i}", repeated(f"l{i}", line(deciding(f"x{i}")), most=1)) for i in (1, 2)]
    run = started(together(*loops))
    for i in (1, 2):
        succeed(run, f"parallel/b{i}/l{i}-first")
    for i in (1, 2):
        succeed(run, f"parallel/b{i}/l{i}[1]/x{i}", tag="again")
    run.say(e.RetryAsked())
    assert run.state.ended == "failed"
    assert [run.plan.kind[node] for node, _ in run.state.stalled] == ["turn", "turn"]


def test_a_timed_out_signal_waits_anew_after_a_retry() -> None:
    """A wait that failed has a fresh timeout; a message that came meanwhile is taken at once."""
    run = started(awaited("go", 30), step("z"))
    run.fire(1, ())
    run.now += 100
    run.say(e.RetryAsked())
    assert run.at("go").due_us == run.now + 30
    run.say(e.Signalled("go"))
    assert open_paths(run) == ["z"]


def test_a_completed_run_is_never_retried() -> None:
    """Nor is one that has not ended."""
    run = started(step("a"))
    assert not run.say(e.RetryAsked())
    succeed(run, "a")
    assert not run.say(e.RetryAsked())


def test_skipped_children_of_a_waiting_parallel_run_after_a_retry() -> None:
    """They were lost, not done."""
    a = step("a")
    run = started(together(a, step("reader", a), on_error="wait"))
    fail(run, "parallel/a")
    assert run.state.ended == "failed"
    run.say(e.RetryAsked())
    succeed(run, "parallel/a", "parallel/reader")
    assert run.state.ended == "completed"


def test_an_interrupted_scope_inside_a_loop_is_retried_in_its_turn() -> None:
    """Turns that are done stay done."""
    body = n.Body()
    decider = deciding("x")
    body.nodes, body.output = [together(step("a"), step("b")), decider], n.Value(decider)
    run = Run.of(flow(repeated("l", body)))
    run.say(e.Start())
    succeed(run, "l-first", "l[1]/parallel/a", "l[1]/parallel/b")
    succeed(run, "l[1]/x", tag="again")
    fail(run, "l[2]/parallel/a")
    succeed(run, "l[2]/parallel/b")
    assert run.state.ended == "failed"
    run.say(e.RetryAsked())
    assert open_paths(run) == ["l[2]/parallel/a"]
    succeed(run, "l[2]/parallel/a")
    succeed(run, "l[2]/x", tag="done")
    assert run.state.ended == "completed"
