"""The laws hold after every event of every run of random workflows, and every run can be brought to its end."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine import laws
from stepwell.engine.frontier import Request, Scope, Step, to_image
from stepwell.flow.plan import Turns
from stepwell.flow.workflow import Workflow

from .edits import edit
from .graphs import Seeded, grow, workflows
from .hands import BODY, MOVES, Run, finish, walk
from .oracle import Oracle

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


CHOICE = st.integers(0, 2**16)


def when(*phases: str) -> Any:
    """Let a rule apply while a step is in one of these phases."""
    return precondition(lambda self: bool(self.run.steps(*phases)))


class EveryEvent(RuleBasedStateMachine):
    """One rule for each kind of event; :meth:`Run.say` checks all laws after each.

    Preconditions only make events that fit more frequent; one in ten still names another step or attempt, and
    ``nonsense`` says anything at any time.
    """

    run: Run
    workflow: Workflow[Any, Any]

    @initialize(workflow=st.one_of(CHOICE.map(lambda seed: grow(Seeded(seed), size=12)), workflows(size=10)))
    def begin(self, workflow: Workflow[Any, Any]) -> None:
        self.workflow = workflow
        self.run = Run.of(workflow)
        self.run.say(e.Start(), "input")

    def _say(self, name: str, choice: int) -> None:
        MOVES[name](self.run, Seeded(choice))

    @when(*BODY)
    @rule(choice=CHOICE)
    def succeed(self, choice: int) -> None:
        self._say("succeed", choice)

    @when(*BODY)
    @rule(choice=CHOICE)
    def succeed_too(self, choice: int) -> None:
        self._say("succeed", choice)

    @when(*BODY)
    @rule(choice=CHOICE)
    def err(self, choice: int) -> None:
        self._say("err", choice)

    @when("parked")
    @rule(choice=CHOICE)
    def fire(self, choice: int) -> None:
        self._say("fire", choice)

    @precondition(lambda self: not self.run.state.ended)
    @rule(choice=CHOICE)
    def signal(self, choice: int) -> None:
        self._say("signal", choice)

    @precondition(lambda self: not self.run.state.ended and len(self.run.events) > 3)
    @rule(choice=CHOICE)
    def cancel(self, choice: int) -> None:
        self._say("cancel", choice)

    @precondition(lambda self: not self.run.state.ended)
    @rule(choice=CHOICE)
    def pause(self, choice: int) -> None:
        self._say("pause", choice)

    @precondition(lambda self: self.run.state.paused is not None)
    @rule(choice=CHOICE)
    def resume(self, choice: int) -> None:
        self._say("resume", choice)

    @precondition(lambda self: self.run.state.held is not None)
    @rule(choice=CHOICE)
    def decide(self, choice: int) -> None:
        self._say("decide", choice)

    @precondition(lambda self: self.run.state.ended in ("failed", "cancelled"))
    @rule(choice=CHOICE)
    def retry(self, choice: int) -> None:
        self._say("retry", choice)

    @precondition(lambda self: not self.run.state.ended)
    @rule(choice=CHOICE)
    def hold(self, choice: int) -> None:
        self._say("hold", choice)

    @when("ready")
    @rule(choice=CHOICE)
    def begin_attempt(self, choice: int) -> None:
        self._say("begin", choice)

    @when(*BODY)
    @rule(choice=CHOICE)
    def beat(self, choice: int) -> None:
        self._say("beat", choice)

    @precondition(lambda self: self.run.state.ended != "completed" and len(self.run.events) > 2)
    @rule(choice=CHOICE)
    def change(self, choice: int) -> None:
        made = edit(self.workflow, Seeded(choice))
        if made is not None and self.run.move(made.workflow) is None:
            self.workflow = made.workflow

    @when("began", "tried")
    @rule(choice=CHOICE)
    def tune(self, choice: int) -> None:
        self._say("tune", choice)

    @when("began", "tried")
    @rule(choice=CHOICE)
    def cut_off(self, choice: int) -> None:
        self._say("cut_off", choice)

    @when("ready", "began", "tried")
    @rule(choice=CHOICE)
    def crash(self, choice: int) -> None:
        self._say("crash", choice)

    @when("closing")
    @rule(choice=CHOICE)
    def settle(self, choice: int) -> None:
        self._say("settle", choice)

    @rule(choice=CHOICE)
    def nonsense(self, choice: int) -> None:
        self._say(Seeded(choice).pick(("again", *MOVES)), choice)


EveryEvent.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=QUIET
)
TestEveryEvent = EveryEvent.TestCase


@pytest.mark.parametrize("block", range(12))
def test_laws_hold_on_random_walks(block: int) -> None:
    """Many cheap walks beside the few shrinking ones; then no run is in limbo, and a retry of it completes."""
    for seed in range(block * 60, block * 60 + 60):
        choose = Seeded(seed)
        run = Run.of(grow(choose, size=14))
        walk(run, choose, 40)
        finish(run, choose)
        ends_well_after_a_retry(run, choose)


def ends_well_after_a_retry(run: Run, choose: Seeded) -> None:
    """A run that did not complete does so when it is retried and nothing fails, unless a loop's value is refused."""
    if run.state.ended == "completed":
        return
    assert run.say(e.RetryAsked())
    finish(run, choose)
    reason = run.state.failure.reason if run.state.failure else ""
    assert run.state.ended == "completed" or reason in ("loop_limit", "loop_value", "loop_value nonsense")


CRASHY = (
    *["crash"] * 3, *["begin", "tune", "cut_off"] * 3, "err", "hold", "refuse", *["decide"] * 2, "cancel", "settle",
    "retry", "succeed",
)  # fmt: skip


def crashed(seed: int) -> Run:
    """Let processes die in a small run again and again, in whatever state it is, and move it on the way."""
    choose = Seeded(seed)
    workflow = grow(choose, size=6)
    run = Run.of(workflow)
    run.say(e.Start(), "input")
    for _ in range(60):
        MOVES[choose.pick(CRASHY)](run, choose)
        if not choose.number(0, 19) and run.state.ended != "completed" and (made := edit(workflow, choose)):
            workflow = made.workflow if run.move(made.workflow) is None else workflow
    finish(run, choose)
    ends_well_after_a_retry(run, choose)
    return run


@pytest.mark.parametrize("block", range(4))
def test_laws_hold_on_walks_in_which_processes_die(block: int) -> None:
    """Each crash is counted once, quarantines are decided about, and every run still comes to an end."""
    tally: Counter[str] = Counter()
    for seed in range(block * 50, block * 50 + 50):
        run = crashed(seed)
        tally.update(type(fact).__name__ for fact in run.facts)
        tally.update(fact.reason for fact in run.facts if isinstance(fact, f.RunHeld))
    seen = ("StepTried", "StepCrashed", "quarantined", "StepBegan", "interrupted", "RunMoved")
    assert min(tally[what] for what in seen) > 2, tally


# --- against the oracle ------------------------------------------------------------------


def runs_as_it_reads(workflow: Workflow[Any, Any], seed: int, late: str) -> Run:
    run, oracle = Run.of(workflow), Oracle(late)
    finish(run, Seeded(seed), late)
    expected = oracle.run(workflow)
    assert run.state.ended == "completed"
    assert run.result == expected
    assert task_calls(run) == oracle.calls
    return run


def task_calls(run: Run) -> Counter[tuple[str, Turns]]:
    return run.calls


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
@given(
    workflow=workflows(size=14, failing=False), seed=st.integers(0, 99), late=st.sampled_from(["message", "timeout"])
)
def test_a_run_without_failures_does_what_the_tree_says(workflow: Workflow[Any, Any], seed: int, late: str) -> None:
    """Whatever order branches end in, the same steps run in the same turns and the output is the oracle's."""
    runs_as_it_reads(workflow, seed, late)


@pytest.mark.parametrize("seed", range(0, 240, 40))
def test_larger_runs_without_failures_do_what_the_tree_says(seed: int) -> None:
    """The same on larger trees, without shrinking."""
    for one in range(seed, seed + 40):
        runs_as_it_reads(grow(Seeded(one), size=30, failing=False), one, ("message", "timeout")[one % 2])


@pytest.mark.parametrize("seed", range(0, 120, 40))
def test_failures_and_stops_on_the_way_do_not_change_the_result(seed: int) -> None:
    """Errors, pauses, holds, cancels and retries of runs change neither the output nor which steps have outcomes."""
    for one in range(seed, seed + 40):
        workflow = grow(Seeded(one), size=14, failing=False)
        run, choose = Run.of(workflow), Seeded(one)
        run.say(e.Start(), "input")
        for _ in range(30):
            disturb(run, choose)
        while run.state.ended != "completed":
            run.say(e.RetryAsked())
            finish(run, choose)
        oracle = Oracle()
        assert run.result == oracle.run(workflow)
        assert task_calls(run) == oracle.calls


def disturb(run: Run, choose: Seeded) -> None:
    """Let bodies end as they should, and anything else happen."""
    if run.steps(*BODY) and choose.number(0, 1):
        run.succeed(*choose.pick(run.steps(*BODY)))
    else:
        MOVES[choose.pick(DISTURBING)](run, choose)


DISTURBING = ("err", "cancel", "pause", "resume", "retry", "hold", "begin", "cut_off", "crash", "settle", "again")


# --- the laws can be broken --------------------------------------------------------------


def _busy_run() -> Run:
    """Return a run in the middle of a parallel, a loop and a wait."""
    for seed in range(1_000):
        choose = Seeded(seed)
        run = Run.of(grow(choose, size=14, failing=False))
        run.say(e.Start(), "input")
        for _ in range(4):
            if run.steps("ready"):
                run.succeed(*run.steps("ready")[0])
        state = run.state
        if state.scopes and state.turning and run.steps("parked") and run.steps("ready") and state.values:
            return run
    raise AssertionError("no such run")


def _lose_a_step(run: Run) -> None:
    run.state.steps.clear()


def _lose_a_value(run: Run) -> None:
    run.state.values.popitem()


def _keep_a_value(run: Run) -> None:
    run.state.values[(run.plan.nodes[0].children[-1], ())] = 1


def _miscount(run: Run) -> None:
    next(iter(run.state.scopes.values())).remaining += 1


def _miscount_unsettled(run: Run) -> None:
    run.state.unsettled += 1


def _turn_too_far(run: Run) -> None:
    run.state.turning[next(iter(run.state.turning))] += 7


def _end_while_open(run: Run) -> None:
    run.state.ended = "completed"


def _tag_nothing(run: Run) -> None:
    run.state.tags[run.state.seq + 5] = "again"


def _keep_a_message(run: Run) -> None:
    run.state.inbox["go"] = [3, 2]


def _fail_nothing(run: Run) -> None:
    key = run.steps("ready")[0]
    run.state.steps[key] = Step(1, 1, 0, "failed")


def _keep_a_cursor(run: Run) -> None:
    run.state.cursors[next(iter(run.state.scopes))] = 1


def _cancel_without_closing(run: Run) -> None:
    run.state.cancelling = Request("", "")


def _bring_what_has_begun(run: Run) -> None:
    run.state.pending.append(run.steps("ready")[0])


def _crash_in_no_attempt(run: Run) -> None:
    run.state.steps[run.steps("ready")[0]] = Step(2, 1, crashes=1)


def _open_a_scope(run: Run) -> None:
    key = next(iter(run.state.scopes))
    run.state.scopes[key] = Scope(1, {}, failing=True)


@pytest.mark.parametrize(
    "damage",
    [
        _lose_a_step, _lose_a_value, _keep_a_value, _miscount, _miscount_unsettled, _turn_too_far, _end_while_open,
        _tag_nothing, _keep_a_message, _fail_nothing, _keep_a_cursor, _cancel_without_closing, _open_a_scope,
        _bring_what_has_begun, _crash_in_no_attempt,
    ],
)  # fmt: skip
def test_damage_breaks_a_law(damage: Any) -> None:
    """A state that no run leads to is refused by name."""
    run = _busy_run()
    damage(run)
    with pytest.raises(laws.LawBroken):
        laws.check(run.plan, run.state)


def test_a_step_is_one_entry() -> None:
    """A list of facts with no head first, two heads, or that leads elsewhere is refused."""
    run = _busy_run()
    before, (node, turns) = to_image(run.state), run.steps("ready")[0]
    facts = list(run.succeed(node, turns))
    for wrong in (facts[1:] or [f.RunEnded("failed")], [*facts, f.MessageKept("x")], [f.MessageKept("x")]):
        with pytest.raises(laws.LawBroken):
            laws.check_step(run.plan, before, wrong, run.state)
    with pytest.raises(laws.LawBroken, match="ignored"):
        laws.check_step(run.plan, before, [], run.state)
