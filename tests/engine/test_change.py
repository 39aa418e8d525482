"""What may change in a graph while a run of it is open, one small change at a time."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell.engine import advance as engine
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.change import Obstacle, compare
from stepwell.flow import nodes as n
from stepwell.flow.task import AnyTask, task
from stepwell.flow.workflow import Workflow

from .graphs import (
    ONCE,
    PLAIN,
    awaited,
    branch,
    deciding,
    flow,
    line,
    make_task,
    repeated,
    step,
    together,
    workflow,
)  # fmt: skip
from .hands import Run
from .test_failing import settle
from .test_kinds import begin, fail, open_paths, started, succeed


def ran(run: Run, *paths: str) -> Run:
    succeed(run, *paths)
    return run


def refused(run: Run, made: Workflow[Any, Any]) -> tuple[str, str]:
    """Return the path and reason of what keeps a run from moving, and see that the run is as it was."""
    obstacle = run.move(made)
    assert obstacle is not None
    return obstacle.path, obstacle.reason


def moved(run: Run, made: Workflow[Any, Any]) -> Run:
    obstacle = run.move(made)
    assert obstacle is None, obstacle
    return run


# --- sequences ---------------------------------------------------------------------------


def test_what_has_not_begun_may_change_freely() -> None:
    """Steps behind the open one are added, removed, retyped and rewired."""
    run = ran(started(step("a"), step("b"), step("c"), step("d")), "a")
    moved(run, flow(step("a"), step("b"), step("d", n.Const(1), task=make_task("other")), step("x"), step("c")))
    succeed(run, "b", "d", "x", "c")
    assert run.state.ended == "completed"


def test_nothing_new_stands_before_what_has_run() -> None:
    """The obstacle names the new step, and the old row that it would stand before."""
    run = ran(started(step("a"), step("b")), "a")
    obstacle = run.move(flow(step("a"), step("x"), step("b")))
    assert obstacle == Obstacle("x", "x is new and stands before b, which is open; put it behind that", 2, ())


def test_what_has_run_keeps_its_order() -> None:
    """The values would be the same, but the graph would say that they came about in another way."""
    run = ran(started(step("a"), step("b"), step("c")), "a", "b")
    assert refused(run, flow(step("b"), step("a"), step("c"))) == (
        "a", "a has run and its order has changed; put it back before b",
    )  # fmt: skip


def test_what_has_run_must_be_there() -> None:
    """Finished or open, and in words that say how to mend it."""
    run = ran(started(step("a"), step("b")), "a")
    assert refused(run, flow(step("b"))) == (
        "a", "a has run and is not in the new graph; put it back, or say was='a' on its new name",
    )  # fmt: skip
    assert refused(run, flow(step("a"), step("c")))[1].startswith("b is open and is not in the new graph")


def _typed(result: type = int, parameter: type = int, **options: Any) -> AnyTask:
    def body(value=1):  # type: ignore[no-untyped-def]
        return value

    body.__annotations__ = {"value": parameter, "return": result}
    made: AnyTask = task("typed", **options)(body)
    return made


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (_typed(result=str), "has another result type now, str, no longer int"),
        (_typed(parameter=str), "has other parameters now"),
        (_typed(version="2"), "has version 2 now, no longer (none)"),
        (make_task("another"), "calls task 'another' now, no longer 'typed'"),
    ],
)
def test_what_has_run_keeps_its_interface(other: AnyTask, words: str) -> None:
    """Types, declared version and task, whether it is finished or only open."""
    for path in ((), ("a",)):
        run = ran(started(step("a", task=_typed()), step("b")), *path)
        assert words in refused(run, flow(step("a", task=other), step("b")))[1]


def test_other_kinds_say_what_differs_too() -> None:
    """A wait, a parallel, a loop, a route, a child and an input."""
    child = workflow(line(step("a")), "one"), workflow(line(step("a")), "two")
    old_new_words = [
        (awaited("go", name="s"), awaited("stop", name="s"), "awaits signal 'stop' now"),
        (n.SignalNode("s", "go", int), n.SignalNode("s", "go", str), "another type now, str, no longer int"),
        (together(step("a")), together(step("a"), on_error="wait"), "on_error='wait' now, no longer 'cancel'"),
        (_one_case("label"), _one_case("other"), "has another key now"),
        (n.ChildNode("c", child[0], None), n.ChildNode("c", child[1], None), "is workflow 'two' now, no longer 'one'"),
        (step("a"), n.DelayNode("a", 5), "is a delay now, no task"),
    ]
    for old, new, words in old_new_words:
        assert words in refused(started(old), flow(new))[1]
    loops = [flow(repeated("l", line(deciding("d")), on_max=on_max)) for on_max in ("fail", "last")]  # type: ignore[arg-type]
    assert "on_max='last' now" in refused(ran(begin(loops[0]), "l-first"), loops[1])[1]


def _one_case(label: str) -> n.RouteNode:
    return n.RouteNode("r", n.Const(1), label, [("x", line(step("a")))])


def test_the_input_keeps_its_type() -> None:
    """A run has been given one, and one that was given none cannot have one now."""

    def made(declared: object) -> Workflow[Any, Any]:
        return Workflow(
            "flow", line(step("a")), input_type=declared, output_type=Any, has_input=declared is not None,
            metadata={}, where="x:1",
        )  # fmt: skip

    assert refused(begin(made(int)), made(str))[1] == (
        "input has run and has another type now, str, no longer int; give the new step another name"
    )
    assert refused(begin(made(None)), made(int))[0] == "input"
    moved(begin(made(int)), made(int))


def test_another_workflow_is_no_new_graph() -> None:
    """The name is who it is."""
    other = workflow(line(step("a")), "other")
    assert "is workflow 'other' now" in refused(started(step("a")), other)[1]


def test_what_has_run_keeps_its_sources() -> None:
    """Another value, selection or constant would have given another result."""
    a, b = step("a"), step("b")
    run = ran(started(a, b, step("c", a, n.Const(1))), "a", "b")
    for other in ((b, n.Const(1)), (a, n.Const(2)), (n.Select(n.Value(a), (("attr", "x"),)), n.Const(1))):
        new = flow(a, b, step("c", *other))
        assert refused(run, new) == ("c", "c is open and is given other values now; give the step another name")
    moved(run, flow(a, b, step("c", a, n.Const(1)), step("z", n.Const("moves the indexes of constants"))))


def test_tuning_moves_without_trouble() -> None:
    """Also where less is allowed than was used up: an attempt or turn that is there may end."""
    often = make_task("often", attempts=5)
    run = started(step("a", task=often))
    for _ in range(3):
        fail(run, "a", retryable=True)
    moved(run, flow(step("a", task=make_task("often", attempts=2, tags=["x"]))))
    assert (run.at("a").attempt, run.at("a").spent) == (4, 1)
    fail(run, "a", retryable=True)
    assert run.state.ended == "failed"
    run = ran(started(repeated("l", line(deciding("d")), most=9)), "l-first")
    for turn in (1, 2, 3):
        succeed(run, f"l[{turn}]/d", tag="again")
    moved(run, flow(repeated("l", line(deciding("d")), most=2)))
    succeed(run, "l[4]/d", tag="done")
    assert run.state.ended == "completed"


# --- values ------------------------------------------------------------------------------


def test_a_new_reader_finds_a_value_that_was_forgotten() -> None:
    """Even across two moves, in both of which nobody read it."""
    a, b = step("a"), step("b")
    run = ran(started(a, step("z", a), b, step("c")), "a", "z", "b")
    assert run.state.values == {}
    moved(run, flow(a, step("z", a), b, step("c"), step("d")))
    moved(run, flow(a, step("z", a), b, step("c"), step("d", a, b)))
    key = run.plan.find("d")
    assert key is not None
    assert [run.bound(arg, ()) for arg in run.plan.nodes[key[0]].args] == ["value of a", "value of b"]


def test_a_value_that_nobody_reads_any_more_is_forgotten() -> None:
    """The state holds what the new graph needs and no more."""
    a = step("a")
    run = ran(started(a, step("b"), step("c", a)), "a")
    assert len(run.state.values) == 1
    moved(run, flow(a, step("b"), step("c")))
    assert run.state.values == {}


def test_what_is_found_again_is_what_a_run_of_the_new_graph_would_have_kept() -> None:
    """The input, a message, a moment, a scope's value, and what a person gave."""
    c = step("c", task=ONCE)
    inner = branch("b", step("i"))
    nodes = [awaited("go"), n.DelayNode("nap", 5), together(inner, name="p"), c]
    body = line(*nodes, step("z"))
    run = begin(workflow(body, has_input=True))
    run.say(e.Signalled("go"), "message")
    run.fire(2 + 1, ())
    succeed(run, "p/b/i")
    key = run.plan.find("c")
    assert key is not None
    run.say(e.HoldAsked("decision", "", *key))
    run.say(e.Decided(*key, "complete"), "by hand")
    new = n.Body([*nodes, step("z")])
    new.nodes.append(step("y", n.Input(new), nodes[0], inner, inner.body.nodes[0], c))
    moved(run, workflow(new, has_input=True))
    succeed(run, "z")
    node = run.steps("ready")[0][0]
    values = [run.bound(arg, ()) for arg in run.plan.nodes[node].args]
    assert values == ["input", "message", "value of p/b/i", "value of p/b/i", "by hand"]


def test_a_loop_goes_on_by_what_was_said_before_the_move() -> None:
    """The tag of a turn's value is found again with it."""
    decider = deciding("d")

    def body(*more: n.Node) -> n.LoopNode:
        return repeated("l", line(decider, step("b"), *more, output=decider))

    run = ran(started(body()), "l-first")
    succeed(run, "l[1]/d", tag="again")
    moved(run, flow(body(step("c"))))
    succeed(run, "l[1]/b", "l[1]/c")
    assert open_paths(run) == ["l[2]/d"]


# --- parallels ---------------------------------------------------------------------------


def test_a_new_child_starts_when_what_it_needs_is_done() -> None:
    """At once, later, or not before another new one."""
    a, b = step("a"), step("b")
    run = ran(started(together(a, b, name="p")), "p/a")
    c, d = step("c", a), step("d", b)
    moved(run, flow(together(a, b, c, d, step("e", c, d), step("f"), name="p")))
    assert open_paths(run) == ["p/b", "p/c", "p/f"]
    succeed(run, "p/b", "p/c", "p/f")
    assert open_paths(run) == ["p/d"]
    succeed(run, "p/d", "p/e")
    assert run.state.ended == "completed"


def test_what_has_started_needs_nothing_new() -> None:
    """A branch whose later step would read what is not done, and a step that would read a new one."""
    a, b = step("a"), step("b")
    run = started(together(a, branch("x", step("i")), name="p"))
    assert refused(run, flow(together(a, branch("x", step("i"), step("j", a)), name="p"))) == (
        "p/x", "p/x is open and needs p/a now, which is not done; let only new steps read it",
    )  # fmt: skip
    assert refused(run, flow(together(b, step("a", b), branch("x", step("i")), name="p")))[0] == "p/a"
    succeed(run, "p/a")
    moved(run, flow(together(a, branch("x", step("i"), step("j", a)), name="p")))


def test_a_child_that_waits_may_go_or_need_less() -> None:
    """What it waited for is counted again."""
    a, b = step("a"), step("b")
    run = started(together(a, b, step("c", a, b), step("d", b), name="p"))
    moved(run, flow(together(b, a, step("c", a), name="p")))
    succeed(run, "p/a")
    assert open_paths(run) == ["p/b", "p/c"]
    moved(run, flow(together(b, a, step("c", a), step("d"), name="p")))
    succeed(run, "p/b", "p/c", "p/d")
    assert run.state.ended == "completed"


def test_what_needs_a_failed_child_is_skipped_again() -> None:
    """In a parallel that waits for all: also if it is new, and no more if it needs it no more."""
    a, b = step("a"), step("b")
    run = started(together(a, b, step("c", a), step("d", a), name="p", on_error="wait"))
    fail(run, "p/a")
    moved(run, flow(together(a, b, step("c"), step("d", a), step("x", a), name="p", on_error="wait")))
    assert open_paths(run) == ["p/b", "p/c"]
    succeed(run, "p/b", "p/c")
    assert run.state.ended == "failed"
    run.say(e.RetryAsked())
    succeed(run, "p/a", "p/d", "p/x")
    assert run.state.ended == "completed"


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_new_child_waits_for_the_retry(cancelled: bool) -> None:
    """In a run that has failed or was cancelled nothing starts; a retry opens what the new graph brought."""
    a, b = step("a"), step("b")
    run = ran(started(together(a, b, name="p")), "p/a")
    if cancelled:
        run.say(e.CancelAsked())
        settle(run, "p/b")
    else:
        fail(run, "p/b")
    for _ in range(2):
        moved(run, flow(together(a, b, step("c", a), step("d", b), name="p")))
        assert [run.plan.path(*key) for key in run.state.pending] == ["p/c"]
    run.say(e.RetryAsked())
    succeed(run, "p/b", "p/c", "p/d")
    assert run.state.ended == "completed"


def test_a_failed_step_can_be_helped_by_a_new_graph() -> None:
    """More turns for a loop that was refused; but the turn that was judged gets no more steps."""
    run = ran(started(repeated("l", line(deciding("d")), most=1)), "l-first")
    succeed(run, "l[1]/d", tag="again")
    assert run.state.ended == "failed"
    again = deciding("d")
    assert refused(run, flow(repeated("l", line(again, step("x"), output=again))))[0] == "l[1]/x"
    moved(run, flow(repeated("l", line(deciding("d")), most=2)))
    run.say(e.RetryAsked())
    assert open_paths(run) == ["l[2]/d"]


# --- finished scopes, loops and routes ---------------------------------------------------


def test_what_is_finished_stays_as_it_is_inside() -> None:
    """Nothing new in it, and it yields what it did: a branch, a child, a parallel, a loop."""
    i, j = step("i"), step("j")
    child = [workflow(line(*nodes), "w") for nodes in ((step("k"),), (step("k"), step("x")))]

    def made(branch_: n.BranchNode, of: Workflow[Any, Any], *more: n.Node) -> Workflow[Any, Any]:
        return flow(together(branch_, *more, name="p"), n.ChildNode("c", of, None), step("z"))

    run = ran(begin(made(branch("b", i, j), child[0])), "p/b/i", "p/b/j", "c/k")
    assert refused(run, made(branch("b", i, j, step("x")), child[0])) == (
        "p/b/x", "p/b/x is new inside p/b, which is finished; put it behind that",
    )  # fmt: skip
    assert refused(run, made(branch("b", i, j), child[1]))[0] == "c/x"
    assert refused(run, made(branch("b", i, j), child[0], step("x")))[0] == "p/x"
    other = n.BranchNode("b", line(i, j, output=i))
    assert refused(run, made(other, child[0])) == (
        "p/b", "p/b has run and yields another value now; give it another name",
    )  # fmt: skip


def _turning(*nodes: n.Node) -> Workflow[Any, Any]:
    again = deciding("d")
    return flow(n.LoopNode("l", n.Const(1), line(*nodes, again, output=again), 9))


def test_earlier_turns_bind_nobody() -> None:
    """A body may change in all that the current turn has not done yet; what it has done stays."""
    run = ran(begin(_turning(step("a"), step("b"), step("c"))), "l-first", "l[1]/a", "l[1]/b", "l[1]/c")
    succeed(run, "l[1]/d", tag="again")
    succeed(run, "l[2]/a")
    b = step("b", n.Const(7), task=make_task("other"))
    assert refused(run, _turning(step("a", n.Const(7)), step("b"), step("c")))[0] == "l[2]/a"
    assert refused(run, _turning(step("a"), b, step("c")))[0] == "l[2]/b"
    moved(run, _turning(step("a"), step("b"), step("x")))
    succeed(run, "l[2]/b", "l[2]/x")
    succeed(run, "l[2]/d", tag="done")
    assert run.state.ended == "completed"


def test_a_finished_loop_stays_as_its_last_turn_was() -> None:
    """Its steps would not run in the way that the new graph says."""
    again = deciding("d")

    def made(*nodes: n.Node) -> Workflow[Any, Any]:
        return flow(n.LoopNode("l", n.Const(1), line(*nodes, again, output=again), 9), step("z"))

    run = ran(begin(made(step("a"))), "l-first", "l[1]/a")
    succeed(run, "l[1]/d", tag="done")
    assert refused(run, made(step("a"), step("x")))[0] == "l[1]/x"


def test_cases_that_were_not_chosen_may_change() -> None:
    """They may go, come and change; the chosen one stays, and grows only behind what is open."""

    def made(**cases: n.Body) -> Workflow[Any, Any]:
        return flow(n.RouteNode("r", n.Const(1), "key", list(cases.items())), step("z"))

    run = begin(made(x=line(step("a")), y=line(step("b"))))
    succeed(run, "r", tag="key=x")
    assert refused(run, made(y=line(step("b"))))[0] == "r/key=x"
    moved(run, made(w=line(step("a")), x=line(step("a"), step("c"))))
    succeed(run, "r/key=x/a", "r/key=x/c")
    assert refused(run, made(x=line(step("a"))))[0] == "r/key=x/c"
    moved(run, made(x=line(step("a"), step("c")), v=line(step("v"))))


def test_a_wait_may_get_a_time_branch() -> None:
    """The one that is open keeps its moment; a taken branch stays."""
    run = started(awaited("go", 20), step("z"))
    due = run.at("go").due_us
    moved(run, flow(awaited("go", 50, line(step("late"))), step("z")))
    assert run.at("go").due_us == due
    run.fire(1, ())
    assert open_paths(run) == ["go/timeout/late"]
    assert refused(run, flow(awaited("go", 50), step("z")))[0] == "go/timeout"


def test_a_refused_wait_is_not_in_a_branch_that_came_later() -> None:
    """Its time was over when there was no branch for that: it failed, and the branch may still change."""
    run = started(awaited("go", 20))
    run.fire(1, ())
    assert run.state.ended == "failed"
    moved(run, flow(awaited("go", 20, line(step("late")))))
    moved(run, flow(awaited("go", 20, line(step("other")))))
    run.say(e.RetryAsked())
    run.fire(1, ())
    assert open_paths(run) == ["go/timeout/other"]


# --- names -------------------------------------------------------------------------------


def test_repeats_may_only_be_appended_to() -> None:
    """They are told apart by number, so one that comes or goes in the middle makes others of those behind it."""
    a, z = step("a"), step("z")
    old = flow(a, step("s", a), step("s"), step("s", n.Const(3)), z)
    run = ran(begin(old), "a", "s")
    moved(run, flow(a, step("s", a), step("s"), step("s", n.Const(3)), z, step("s", n.Const(4))))
    for others in ([step("s", a), step("s")], [step("s", a), step("s"), step("s", n.Const(4))]):
        path, reason = refused(run, flow(a, *others, z))
        assert path == "s"
        assert "one of several steps called 's', told apart by their order alone" in reason


def test_a_second_step_of_a_name_may_come_behind_the_first() -> None:
    """Before it, it would take its name: then the first would be fed from elsewhere."""
    a = step("a")
    run = ran(started(a, step("s", a), step("z")), "a", "s")
    moved(run, flow(a, step("s", a), step("z"), step("s")))
    run = ran(started(a, step("s", a), step("z")), "a", "s")
    assert refused(run, flow(a, step("s"), step("s", a), step("z")))[0] == "s"


def _renamed(name: str, was: str, *reads: n.Node, task: AnyTask = PLAIN) -> n.TaskNode:
    node = step(name, *reads, task=task)
    node.was = was
    return node


def test_a_declared_rename_keeps_what_the_step_has_done() -> None:
    """Its value, and of an open one the attempts and the path that its idempotency keys are made of."""
    a = step("a", task=make_task("a"))
    often = make_task("often", attempts=5)
    run = ran(started(a, step("b", a, task=often), step("c", a)), "a")
    fail(run, "b", retryable=True)
    new_a = _renamed("one", "a", task=make_task("one"))
    new = flow(new_a, _renamed("two", "b", new_a, task=often), step("c", new_a))
    moved(run, new)
    assert (run.at("two").attempt, run.at("two").path) == (2, "b")
    three = _renamed("three", "two", new_a, task=often)
    moved(run, flow(new_a, three, step("c", new_a)))
    fail(run, "three")
    run.say(e.RetryAsked())
    assert (run.at("three").attempt, run.at("three").path) == (3, "b")
    assert run.bound(run.plan.nodes[3].args[0], ()) == "value of a"


def test_a_rename_that_a_run_has_behind_it_is_none() -> None:
    """``was=`` may stay in the code, even when a later step takes the old name."""
    new = flow(_renamed("b", "a"), step("a"), step("z"))
    run = ran(begin(new), "b")
    moved(run, flow(_renamed("b", "a"), step("a"), step("y")))
    assert open_paths(run) == ["a"]


def test_two_steps_may_swap_their_names() -> None:
    """Both say what they were."""
    run = ran(started(step("a"), step("b", n.Const(1)), step("z")), "a")
    moved(run, flow(_renamed("b", "a"), _renamed("a", "b", n.Const(1)), step("z")))  # type: ignore[arg-type]
    assert open_paths(run) == ["a"]


# --- the run -----------------------------------------------------------------------------


def test_a_run_that_has_not_started_moves_to_anything() -> None:
    """Nothing has come of the old graph."""
    run = moved(Run.of(flow(step("a"))), flow(step("b")))
    run.say(e.Start(), "input")
    assert open_paths(run) == ["b"]


def test_a_completed_run_never_moves() -> None:
    """Its result is that of the graph it had."""
    run = ran(started(step("a")), "a")
    assert refused(run, flow(step("a"), step("b")))[1].startswith("the run has completed")


def test_a_move_ends_a_hold_for_a_changed_graph_and_no_other() -> None:
    """It is what that hold was for; messages that came in the meantime are taken."""
    for reason, ends in (("changed", True), ("undecodable", False)):
        a = step("a")
        run = ran(started(a, together(awaited("go"), step("b"))), "a")
        run.say(e.HoldAsked(reason, "text", *(run.plan.find("parallel/b") or ())))
        run.say(e.Signalled("go"), "hello")
        moved(run, flow(a, together(step("x"), awaited("go"), step("b"))))
        assert (run.state.held is None) is ends
        assert ("parallel/go" in open_paths(run)) is not ends
        assert "parallel/x" in open_paths(run)
        if run.state.held:
            assert run.plan.path(run.state.held.node) == "parallel/b"


def test_a_move_fits_one_state_and_one_graph() -> None:
    """Asked for an older state, or said to another graph, it gives no facts."""
    run = started(together(step("a"), step("b")))
    made = flow(together(step("a"), step("b"), step("c")))
    asked = compare(run.plan, made.plan, run.state, run.entries)
    assert isinstance(asked, e.MoveAsked)
    assert not engine.advance(run.plan, run.state, asked, run.now)
    succeed(run, "parallel/a")
    assert not engine.advance(made.plan, run.state, asked, run.now)
    moved(run, made)
    assert isinstance(run.entries[-1][0], f.RunMoved)


def test_a_history_that_is_not_the_states_is_refused() -> None:
    """Entries that are missing would be steps that are done and not known to be."""
    run = ran(started(step("a"), step("b")), "a")
    with pytest.raises(ValueError, match="1 entries and the state 2"):
        compare(run.plan, flow(step("a")).plan, run.state, run.entries[1:])
