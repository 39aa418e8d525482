"""Which messages let a step go: those whose signals stand directly before it, and no others."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.causes import let_go, signals_before
from stepwell.engine.frontier import to_image
from stepwell.flow import nodes as n

from .graphs import awaited, branch, deciding, flow, line, repeated, step, together
from .hands import Run

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def started(*nodes: n.Node) -> Run:
    run = Run.of(flow(*nodes, output=None))
    run.say(e.Start(), "input")
    return run


def done(run: Run, path: str, tag: str = "") -> Sequence[f.Fact]:
    key = run.plan.find(path)
    assert key is not None
    return run.say(e.Succeeded(*key, 1, tag), path)


def paths(run: Run, facts: Sequence[f.Fact]) -> dict[str, list[int]]:
    return {run.plan.path(*key): addresses for key, addresses in let_go(run.plan, facts).items()}


def before(run: Run, path: str) -> set[str]:
    key = run.plan.find(path)
    assert key is not None
    return {run.plan.path(signal) for signal in signals_before(run.plan, key[0])}


def test_a_message_that_comes_lets_the_next_step_go() -> None:
    """Its address is the entry it came with."""
    run = started(awaited("go"), step("a"), step("b"))
    assert paths(run, run.say(e.Signalled("go", TRACE), "now")) == {"a": [2]}
    assert paths(run, done(run, "a")) == {}
    assert (before(run, "a"), before(run, "b")) == ({"go"}, set())


def test_a_message_that_was_kept_lets_a_step_go_later() -> None:
    """Its address is still the entry it came with."""
    run = started(step("a"), awaited("go"), step("b"))
    assert paths(run, run.say(e.Signalled("go", TRACE), "early")) == {}
    assert paths(run, done(run, "a")) == {"b": [2]}


def test_all_first_steps_of_a_fork_are_let_go() -> None:
    """Through branches; not those that wait for others."""
    run = started(awaited("go"), together(step("a"), branch("line", step("b"), step("c"))), step("d"))
    opened = paths(run, run.say(e.Signalled("go"), "now"))
    assert opened == {"parallel/a": [2], "parallel/line/b": [2]}
    assert before(run, "d") == set()


def test_what_follows_a_fork_follows_the_signals_that_end_it() -> None:
    """The last of them to come opens it."""
    run = started(together(awaited("one"), branch("line", step("a"), awaited("two"))), step("b"))
    assert before(run, "b") == {"parallel/one", "parallel/line/two"}
    run.say(e.Signalled("one"), 1)
    done(run, "parallel/line/a")
    assert paths(run, run.say(e.Signalled("two"), 2)) == {"b": [4]}


def test_a_step_that_something_else_opened_at_the_same_time_is_not_let_go() -> None:
    """One entry takes a kept message and opens what only its own step was waited for."""
    first = step("first")
    gated = branch("gated", awaited("go"), step("x", first))
    run = started(together(first, gated, step("other", first)))
    run.say(e.Signalled("go"), "kept")
    facts = done(run, "parallel/first")
    assert [run.plan.path(fact.node) for fact in facts if isinstance(fact, f.Opened)][1:] == [
        "parallel/gated/x",
        "parallel/other",
    ]
    assert paths(run, facts) == {"parallel/gated/x": [2]}


def test_each_message_that_a_resume_takes_lets_its_own_step_go() -> None:
    """All in one entry."""
    waits = [branch(name, awaited(name), step(f"after {name}")) for name in ("one", "two")]
    run = started(together(*waits))
    run.say(e.PauseAsked())
    run.say(e.Signalled("two"), 2)
    run.say(e.Signalled("one"), 1)
    opened = paths(run, run.say(e.ResumeAsked()))
    assert opened == {"parallel/one/after one": [4], "parallel/two/after two": [3]}


def test_a_turn_begins_after_the_last_one() -> None:
    """Here with what the turn before it ended with, and so does what follows the loop."""
    says = deciding("says")
    run = started(repeated("again", line(step("work"), says, awaited("more"), output=says)), step("end"))
    run.say(e.Signalled("more"), "kept")
    assert (before(run, "again[1]/work"), before(run, "end")) == ({"again/more"}, {"again/more"})
    (pack,) = run.state.steps  # the value that the loop begins with
    run.say(e.Succeeded(*pack, 1), 0)
    done(run, "again[1]/work")
    assert paths(run, done(run, "again[1]/says", "again")) == {"again[2]/work": [2]}


def test_the_context_is_a_fact_and_nothing_of_the_state() -> None:
    """With it or without it a run goes the same way; without it the fact is the one it always was."""
    runs = [started(step("a"), awaited("go"), step("b")) for _ in range(2)]
    plain, traced = (run.say(e.Signalled("go", trace), "m") for run, trace in zip(runs, ("", TRACE), strict=True))
    assert (list(plain), list(traced)) == ([f.MessageKept("go")], [f.MessageTraced("go", TRACE)])
    for run in runs:
        done(run, "a")
    assert to_image(runs[0].state) == to_image(runs[1].state)
    assert runs[0].entries[2:] == runs[1].entries[2:]
