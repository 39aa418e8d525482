"""What each kind of node does, one small workflow at a time."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.flow import nodes as n
from stepwell.flow.workflow import Workflow

from .graphs import (
    Seeded,
    awaited,
    branch,
    deciding,
    flow,
    line,
    repeated,
    step,
    together,
    workflow,
)
from .hands import Run, finish


def started(*nodes: n.Node, output: n.Node | n.Source | None = None) -> Run:
    """Return a started run of these nodes."""
    return begin(flow(*nodes, output=output))


def begin(made: Workflow[Any, Any]) -> Run:
    run = Run.of(made)
    run.say(e.Start(), "input")
    return run


def open_paths(run: Run, *phases: str) -> list[str]:
    """Return the paths of open steps, in the order they were opened."""
    return [run.plan.path(*key) for key in run.steps(*(phases or ("ready", "began", "tried", "parked")))]


def succeed(run: Run, *paths: str, tag: str = "") -> None:
    for path in paths:
        key = run.plan.find(path)
        assert key is not None
        run.say(e.Succeeded(*key, run.state.steps[key].attempt, tag), f"value of {path}")


def fail(run: Run, path: str, retryable: bool = False, after_us: int = -1, draw: float = 0.0) -> None:
    key = run.plan.find(path)
    assert key is not None
    run.say(e.Errored(*key, run.state.steps[key].attempt, retryable, after_us, draw), f"error of {path}")


def kinds(run: Run) -> list[str]:
    return [type(fact).__name__ for fact in run.facts]


# --- sequence, task, pack ----------------------------------------------------------------


def test_a_sequence_runs_one_after_the_other() -> None:
    """Each step opens when the one before is done; the result is the address of the last outcome."""
    run = started(step("a"), step("b"))
    assert open_paths(run) == ["a"]
    succeed(run, "a")
    assert open_paths(run) == ["b"]
    succeed(run, "b")
    assert (run.state.ended, run.result) == ("completed", "value of b")


def test_the_output_may_be_an_earlier_value_the_input_a_constant_or_nothing() -> None:
    """A run's result is where its output points, not what came last; no output is None."""
    a, body = step("a"), n.Body()
    body.nodes, body.output = [step("b")], n.Input(body)
    for made, expected in (
        (flow(a, step("b"), output=a), "value of a"),
        (workflow(body, has_input=True), "input"),
        (workflow(n.Body([step("b")])), None),
    ):
        run = begin(made)
        while not run.state.ended:
            succeed(run, *open_paths(run))
        assert run.result == expected


def test_a_selection_becomes_a_step_of_its_own() -> None:
    """What is more than a reference is packed by a step, so that the choice is stored once."""
    a = step("a")
    run = started(a, output=n.Select(n.Value(a), (("item", 0),)))
    succeed(run, "a")
    assert [run.plan.kind[node] for node, _ in run.steps("ready")] == ["pack"]
    succeed(run, "result")
    assert run.result == "value of result"


def test_values_are_kept_until_their_last_reader_is_done() -> None:
    """A value nobody reads is never kept; others are dropped with the step that reads them last."""
    a, b = step("a"), step("b")
    run = started(a, b, step("c", a), step("d", b), step("e"))
    kept = []
    for path in "abcd":
        succeed(run, path)
        kept.append(sorted(run.plan.path(*key) for key in run.state.values))
    assert kept == [["a"], ["a", "b"], ["b"], []]


# --- parallel ----------------------------------------------------------------------------


def test_a_parallel_opens_what_needs_nothing_and_ends_with_the_last() -> None:
    """Independent children are open at once; what follows waits for all."""
    run = started(together(step("a"), step("b"), branch("eu", step("c"), step("d"))), step("z"))
    assert open_paths(run) == ["parallel/a", "parallel/b", "parallel/eu/c"]
    succeed(run, "parallel/eu/c", "parallel/b", "parallel/eu/d")
    assert open_paths(run) == ["parallel/a"]
    succeed(run, "parallel/a")
    assert open_paths(run) == ["z"]


def test_inside_a_parallel_order_is_data_flow() -> None:
    """A child starts when the siblings it reads are done, also those it reads from inside a branch."""
    a, b, c = step("a"), step("b"), step("c")
    run = started(
        together(a, branch("eu", b, step("x")), step("join", a, b), branch("us", step("c0", a), c), step("last", c))
    )
    assert open_paths(run) == ["parallel/a", "parallel/eu/b"]
    succeed(run, "parallel/a", "parallel/eu/b")
    assert open_paths(run) == ["parallel/us/c0", "parallel/eu/x"]
    succeed(run, "parallel/eu/x")
    assert "parallel/join" in open_paths(run)


def test_values_of_a_parallel_are_seen_behind_it() -> None:
    """A step behind the barrier reads what children and steps of branches yielded."""
    a, b = step("a"), step("b")
    run = started(together(a, branch("eu", b, step("x"))), step("z", a, b))
    succeed(run, "parallel/a", "parallel/eu/b", "parallel/eu/x")
    assert sorted(run.plan.path(*key) for key in run.state.values) == ["parallel/a", "parallel/eu/b"]


# --- route -------------------------------------------------------------------------------


def _route(default: bool = True) -> n.RouteNode:
    cases = [("yes", line(step("a"))), ("no", n.Body())]
    return n.RouteNode("route", n.Const("yes"), "answer", cases, line(step("other")) if default else None)


def test_a_route_records_its_choice_then_runs_that_case_alone() -> None:
    """The chosen case is open and no other; the route's value is the case's."""
    run = started(_route(), output=None)
    succeed(run, "route", tag="answer=yes")
    assert f.RouteTaken(1, (), "answer=yes") in run.facts
    assert open_paths(run) == ["route/answer=yes/a"]
    succeed(run, "route/answer=yes/a")
    assert run.result == "value of route/answer=yes/a"


def test_an_empty_case_and_the_default_are_cases() -> None:
    """A case without steps yields None at once; the default is a case named ``else``."""
    run = started(_route())
    succeed(run, "route", tag="answer=no")
    assert (run.state.ended, run.result) == ("completed", None)
    run = started(_route())
    succeed(run, "route", tag="else")
    assert open_paths(run) == ["route/else/other"]


def test_a_case_that_does_not_exist_is_not_taken() -> None:
    """An outcome of a route that names no case leads to nothing."""
    run = started(_route(default=False))
    for tag in ("", "else", "answer=perhaps"):
        assert not run.say(e.Succeeded(1, (), 1, tag))


# --- loop --------------------------------------------------------------------------------


def _loop(most: int = 3, on_max: n.OnMax = "fail") -> n.LoopNode:
    body = n.Body()
    draft = deciding("draft", n.Input(body))
    body.nodes, body.output = [draft], n.Value(draft)
    return repeated("refine", body, most, on_max)


def test_a_loop_turns_until_its_body_says_done() -> None:
    """Each turn is entered with the value of the one before; the loop yields what came with Done."""
    run = started(_loop(), step("z"))
    succeed(run, "refine-first")
    for turn in (1, 2):
        assert open_paths(run) == [f"refine[{turn}]/draft"]
        succeed(run, f"refine[{turn}]/draft", tag="again")
    succeed(run, "refine[3]/draft", tag="done")
    assert [fact.address for fact in run.facts if isinstance(fact, f.Turned)] == [2, 3, 4]
    assert open_paths(run) == ["z"]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_loop_has_exactly_max_iterations_turns(most: int) -> None:
    """With ``on_max="last"`` the last value is the loop's; with ``"fail"`` the run fails with ``loop_limit``."""
    for on_max in ("last", "fail"):
        run = started(_loop(most, on_max), output=None)  # type: ignore[arg-type]
        succeed(run, "refine-first")
        for turn in range(1, most + 1):
            assert not run.state.ended
            succeed(run, f"refine[{turn}]/draft", tag="again")
        if on_max == "last":
            assert (run.state.ended, run.result) == ("completed", f"value of refine[{most}]/draft")
        else:
            assert run.state.failure is not None
            assert (run.state.ended, run.state.failure.reason) == ("failed", "loop_limit")


def test_a_loop_whose_body_says_neither_fails() -> None:
    """A value without Again or Done ends the run with ``loop_value``."""
    run = started(_loop())
    succeed(run, "refine-first", "refine[1]/draft")
    assert isinstance(run.facts[-1], f.RunEnded)
    assert (run.facts[-1].state, run.facts[-1].reason) == ("failed", "loop_value")


def test_turns_of_nested_loops_have_their_own_paths() -> None:
    """A step is known by all turns around it, and an inner loop starts from turn 1 in each outer turn."""
    inner = repeated("inner", line(deciding("x")))
    outer = repeated("outer", line(inner, deciding("y")))
    run = started(outer, output=None)
    succeed(run, "outer-first", "outer[1]/inner-first")
    succeed(run, "outer[1]/inner[1]/x", tag="again")
    succeed(run, "outer[1]/inner[2]/x", tag="done")
    succeed(run, "outer[1]/y", tag="again")
    succeed(run, "outer[2]/inner-first")
    assert open_paths(run) == ["outer[2]/inner[1]/x"]
    assert run.state.turning == {run.plan.find("outer"): 2, run.plan.find("outer[2]/inner"): 1}


# --- delay and signal --------------------------------------------------------------------


def test_a_delay_is_over_at_the_moment_recorded_at_its_entry() -> None:
    """The due time is absolute; firing early leads to nothing, firing late or twice is harmless."""
    run = started(n.DelayNode("pause", 50), step("z"))
    assert run.at("pause").due_us == run.now + 50
    assert run.state.next_due_us() == run.now + 50
    run.now += 49
    assert not run.say(e.Fired(1, ()))
    run.now += 2
    assert run.say(e.Fired(1, ()))
    assert not run.say(e.Fired(1, ()))
    assert open_paths(run) == ["z"]


def test_a_signal_takes_a_message_that_comes_or_has_come() -> None:
    """A waiting signal is done by its message at once; an earlier message is kept for it."""
    run = started(awaited("go"), step("a"), awaited("go", name="again"))
    run.say(e.Signalled("go"), "first")
    run.say(e.Signalled("go"), "second")
    assert open_paths(run) == ["a"]
    succeed(run, "a")
    assert (run.state.ended, run.result, run.state.inbox) == ("completed", "second", {})


def test_a_message_sent_before_the_start_is_kept() -> None:
    """An inbox exists before the run does."""
    run = Run.of(flow(awaited("go")))
    run.say(e.Signalled("go"), "early")
    run.say(e.Start())
    assert (run.state.ended, run.result) == ("completed", "early")


def test_the_oldest_message_goes_to_the_oldest_wait() -> None:
    """Per name: first come, first served, on both sides; other names do not matter."""
    waits = [branch(str(i), awaited("go", name=f"wait{i}"), step(f"after{i}")) for i in range(3)]
    run = started(together(*waits))
    for message in ("first", "other", "second"):
        run.say(e.Signalled("other" if message == "other" else "go"), message)
    taken = [fact for fact in run.facts if isinstance(fact, f.MessageTaken)]
    assert [(run.plan.nodes[t.node].name, run.values[t.address]) for t in taken] == [
        ("wait0", "first"),
        ("wait1", "second"),
    ]
    run = started(step("a"), awaited("go"), awaited("go", name="go2"), output=None)
    for message in ("first", "second"):
        run.say(e.Signalled("go"), message)
    succeed(run, "a")
    assert [run.values[fact.address] for fact in run.facts if isinstance(fact, f.MessageTaken)] == ["first", "second"]


def test_a_message_of_an_unknown_name_is_kept_and_moves_nothing() -> None:
    """Nothing waits for it now; a changed workflow may."""
    run = started(awaited("go"))
    assert run.say(e.Signalled("unheard-of"), 1) == [f.MessageKept("unheard-of")]


def test_a_timeout_without_a_branch_fails_the_signal() -> None:
    """The engine's own reason is recorded, not an error of a task."""
    run = started(awaited("go", 30))
    run.fire(1, ())
    assert run.facts[-1] == f.RunEnded("failed", 0, 1, (), "signal_timeout")


def test_a_timeout_branch_takes_the_signals_place() -> None:
    """Its steps run under the signal's path, and its value is the signal's."""
    run = started(awaited("go", 30, line(step("escalate"))), step("z"))
    run.fire(1, ())
    assert open_paths(run) == ["go/timeout/escalate"]
    run.say(e.Signalled("go"), "too late")
    succeed(run, "go/timeout/escalate")
    assert open_paths(run) == ["z"]
    assert list(run.state.inbox) == ["go"]


def test_an_empty_timeout_branch_goes_on_with_none() -> None:
    """A timeout may simply be let pass."""
    run = started(awaited("go", 30, n.Body()))
    run.fire(1, ())
    assert (run.state.ended, run.result) == ("completed", None)


def test_a_message_leaves_no_timer_behind() -> None:
    """Once the message has won, the timeout means nothing."""
    run = started(awaited("go", 30, line(step("escalate"))), step("z"))
    run.say(e.Signalled("go"), "in time")
    run.now += 100
    assert not run.say(e.Fired(1, ()))


# --- child -------------------------------------------------------------------------------


def test_a_child_is_a_line_of_the_same_run() -> None:
    """Its steps have its name in their path; its value is its output; it may stand twice."""
    body = n.Body()
    inner = step("inner", n.Input(body))
    body.nodes, body.output = [inner], n.Value(inner)
    made = workflow(body, "kid", has_input=True)
    a = step("a")
    first = n.ChildNode("kid", made, n.Value(a))
    run = started(a, first, n.ChildNode("kid", made, n.Value(first)))
    succeed(run, "a", "kid/inner")
    assert open_paths(run) == ["kid#2/inner"]
    succeed(run, "kid#2/inner")
    assert run.result == "value of kid#2/inner"


# --- paths -------------------------------------------------------------------------------


def test_every_open_step_is_found_by_its_path() -> None:
    """``find`` is the inverse of ``path`` for whatever opens in loops, cases, branches, children and timeouts."""
    from .graphs import grow

    seen: set[tuple[int, int]] = set()
    for seed in range(60):
        run = Run.of(grow(Seeded(seed), size=20, failing=False))
        finish(run, Seeded(seed), ("message", "timeout")[seed % 2])
        for fact in run.facts:
            if isinstance(fact, f.Opened | f.Turned):
                assert run.plan.find(run.plan.path(fact.node, fact.turns)) == (fact.node, fact.turns)
                seen.add((run.plan.depth[fact.node], len(run.plan.path(fact.node).split("/"))))
    assert max(depth for depth, _ in seen) >= 2
    assert max(length for _, length in seen) >= 4


# --- the beginning -----------------------------------------------------------------------


def test_a_run_starts_once() -> None:
    """A second start, and a start after the end, lead to nothing."""
    run = started(step("a"))
    assert not run.say(e.Start())
    run = Run.of(flow(step("a")))
    run.say(e.CancelAsked())
    assert not run.say(e.Start())
    assert (run.state.ended, run.state.started) == ("cancelled", False)


def test_a_run_cancelled_before_its_start_may_be_retried_and_started() -> None:
    """Then it is as new."""
    run = Run.of(flow(step("a")))
    run.say(e.CancelAsked())
    run.say(e.RetryAsked())
    assert run.state.status(run.now) == "pending"
    run.say(e.Start())
    succeed(run, "a")
    assert run.state.ended == "completed"


# --- what an observer sees ----------------------------------------------------------------


def test_the_status_is_what_could_move_next() -> None:
    """And the moment a hand is wanted next goes with it: 0 for at once, None for only by a message or a person."""
    run = Run.of(flow(step("a"), n.DelayNode("nap", 50), awaited("go"), awaited("late", 70, n.Body())))

    def seen() -> tuple[str, int | None]:
        return run.state.status(run.now), run.state.next_due_us()

    assert seen() == ("pending", None)
    run.say(e.Start())
    assert seen() == ("running", 0)
    fail_later = e.Errored(1, (), 1, True, 30)
    run.say(fail_later)
    assert seen() == ("waiting", run.now + 30)
    run.now += 30
    assert seen()[0] == "running"
    succeed(run, "a")
    assert seen() == ("waiting", run.now + 50)
    run.say(e.PauseAsked())
    assert seen() == ("paused", None)
    run.say(e.ResumeAsked())
    run.fire(*run.steps("parked")[0])
    assert seen() == ("waiting", None)
    run.say(e.Signalled("go"))
    assert seen() == ("waiting", run.now + 70)
    run.say(e.HoldAsked("why", "because"))
    assert seen() == ("held", None)
    run.say(e.Decided(0, (), "rerun"))
    run.say(e.Signalled("late"))
    assert seen() == ("completed", None)
