"""What the runner of an offered step tells the instance, as a message: written, read, damaged, and come too late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell import JsonCodec, route, task, workflow
from stepwell.backend.base import LOST, Message
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.advance import advance
from stepwell.engine.frontier import Frontier
from stepwell.runtime.offered import CURSOR, DECLINED, OUTCOME, event_of_report, ref, ref_of, report, took_of
from stepwell.runtime.outside import taken_in
from stepwell.runtime.requests import event_of, in_words, value_of

NOW = 1_000_000


@task
def plus(x: int) -> int:
    return x + 1


@task
def minus(x: int) -> int:
    return x - 1


@workflow
def line(x: int) -> int:
    return minus(plus(x))


@workflow
def longer(x: int) -> int:
    return minus(plus(plus(x)))


@workflow
def either(x: int) -> int:
    return route(x, {1: lambda: plus(x), 2: lambda: minus(x)}, name="which")


VALUE = JsonCodec().encode(2)
PLUS = line.plan.find("plus") or (0, ())
STEP = ref_of(ref(*PLUS, 1, line.plan.fingerprint))


def begun(flow: Any = line) -> Frontier:
    state = Frontier()
    advance(flow.plan, state, e.Start(), NOW)
    return state


def facts_of(message: Message, flow: Any = line) -> list[f.Fact]:
    """Return what a message leads to in a run whose first step is open."""
    return list(advance(flow.plan, begun(flow), event_of(message, flow.plan), NOW))


def lost(step: bytes) -> Message:
    return Message(LOST, "", step, NOW)


whole = st.integers(0, 2**31)


@given(whole, st.lists(whole, max_size=4).map(tuple), whole, st.sampled_from(["", "ab" * 16]))
def test_a_step_is_always_called_the_same(node: int, turns: tuple[int, ...], attempt: int, graph: str) -> None:
    """And is what it was called by; another attempt is called otherwise."""
    called = ref(node, turns, attempt, graph)
    found = ref_of(called)
    assert (found.node, found.turns, found.attempt, found.graph) == (node, turns, attempt, graph)
    assert ref(node, turns, attempt, graph) == called != ref(node, turns, attempt + 1, graph)


def test_the_bytes_of_a_step_are_on_record() -> None:
    """Offers outlive the process that made them, and are found again by these bytes."""
    assert ref(7, (2, 300), 3).hex() == "94079202cd012c03a0"


@given(st.booleans(), st.text(max_size=20), st.booleans(), st.integers(-1, 2**50), st.floats(0, 0.999), whole)
def test_a_report_says_what_an_outcome_says(
    error: bool, tag: str, retryable: bool, after_us: int, draw: float, took_us: int
) -> None:
    """The event is the one that the holder's own hands would have sent."""
    message = report(
        STEP, VALUE, NOW, error=error, tag=tag, retryable=retryable, after_us=after_us, draw=draw, took_us=took_us
    )
    failed = e.Errored(*PLUS, 1, retryable, after_us, draw)
    assert event_of_report(message) == (failed if error else e.Succeeded(*PLUS, 1, tag))
    assert (value_of(message), took_of(message), message.kind) == (VALUE, took_us, OUTCOME)
    message.name.encode()  # storable


def test_an_outcome_moves_the_run_on() -> None:
    """Its value goes into the journal, beside how long the body ran."""
    state = begun()
    (row,) = taken_in(line.plan, state, [report(STEP, VALUE, NOW, took_us=5)], NOW)
    assert f.decode(row.facts)[0] == f.StepDone(*PLUS)
    assert (row.output, row.took_us) == (VALUE, 5)


def test_an_outcome_counts_once() -> None:
    """Delivered again, or of an attempt that has been lost meanwhile, it changes nothing."""
    state, message = begun(), report(STEP, VALUE, NOW)
    assert len(taken_in(line.plan, state, [message, message], NOW)) == 1
    state = begun()
    (row,) = taken_in(line.plan, state, [lost(ref(*PLUS, 1)), message], NOW)
    assert f.decode(row.facts) == [f.StepCrashed(*PLUS, 1, 1)]


def test_what_was_lost_is_a_crash() -> None:
    """Up to the limit that is given."""
    message = lost(ref(*PLUS, 1, line.plan.fingerprint))
    assert facts_of(message) == [f.StepCrashed(*PLUS, 1, 1)]
    assert event_of(message, line.plan, 1) == e.CutOff(*PLUS, 1, 1)
    assert value_of(message) is None


def test_arguments_that_cannot_be_read_hold_the_run() -> None:
    """As they do when the step runs at home; no attempt is used up, and there is no value."""
    message = report(STEP, None, NOW, undecodable="plus(x) wants an int")
    assert facts_of(message) == [f.RunHeld("undecodable", "plus(x) wants an int", *PLUS)]


def test_a_lost_attempt_that_could_not_read_its_arguments_holds_nothing() -> None:
    """The next one may; only the current attempt is heard."""
    state, late = begun(), report(STEP, None, NOW, undecodable="plus(x) wants an int")
    (row,) = taken_in(line.plan, state, [lost(ref(*PLUS, 1)), late], NOW)
    assert f.decode(row.facts) == [f.StepCrashed(*PLUS, 1, 1)]


def test_a_cursor_is_kept_and_a_step_that_is_declined_stays_open() -> None:
    """The one is the attempt's own beat; of the other its holder takes note by itself."""
    step = ref(*PLUS, 1, line.plan.fingerprint)
    kept = Message(CURSOR, step.hex(), VALUE, NOW)
    assert (facts_of(kept), value_of(kept)) == ([f.CursorKept(*PLUS)], VALUE)
    assert facts_of(Message(DECLINED, "", step, NOW)) == []


def test_a_route_is_taken_without_a_value() -> None:
    """A failed one brings its error."""
    which = either.plan.find("which") or (0, ())
    step = ref_of(ref(*which, 1))
    case = either.plan.nodes[either.plan.nodes[which[0]].children[0]].name
    taken = facts_of(report(step, None, NOW, tag=case), either)
    assert taken[0] == f.RouteTaken(*which, case)
    failed = facts_of(report(step, VALUE, NOW, error=True), either)
    assert isinstance(failed[0], f.AttemptFailed)


def unreadable() -> Iterator[Message]:
    good = report(STEP, VALUE, NOW)
    for name in ("", "{}", "[]", "[1]", '["x",[],1]', "[1,[],1,3]", "nonsense", good.name[:-1]):
        yield msgspec.structs.replace(good, name=name)
    yield report(STEP, None, NOW)
    yield report(STEP, None, NOW, error=True)
    yield report(STEP, VALUE, NOW, undecodable="it has a value all the same")
    for after_us, draw in ((2**63, 0.0), (-5, 0.0), (0, 2.0)):
        yield report(STEP, VALUE, NOW, error=True, after_us=after_us, draw=draw)
    for payload in (None, b"", b"\x90", b"\xff\xff", ref(*PLUS, 1)[:-1], b"\x93\xa1x\x90\x01"):
        yield Message(LOST, "", payload, NOW)
    for name, value in (("", VALUE), ("xyz", VALUE), ("00", VALUE), (ref(*PLUS, 1).hex(), None)):
        yield Message(CURSOR, name, value, NOW)


def elsewhere() -> Iterator[Message]:
    for node, turns in ((-1, ()), (0, ()), (99, ()), (PLUS[0], (1,)), (2**70, ())):
        step = msgspec.structs.replace(STEP, node=node, turns=turns)
        yield report(step, VALUE, NOW)
        yield report(step, None, NOW, undecodable="it")
        if node < 2**64:
            yield lost(ref(node, turns, 1))
    other = msgspec.structs.replace(STEP, graph=longer.plan.fingerprint)
    yield report(other, VALUE, NOW)
    yield report(other, None, NOW, undecodable="it")
    yield lost(ref(*PLUS, 1, longer.plan.fingerprint))


@pytest.mark.parametrize("message", [*unreadable(), *elsewhere()])
def test_what_cannot_be_read_or_is_of_another_graph_changes_nothing(message: Message) -> None:
    """It neither raises nor moves, and nor does it hold the run: the step is open, and is done again."""
    assert facts_of(message) == []
    assert took_of(message) == 0
    assert in_words(message).startswith("a step's ")


def test_a_message_of_another_kind_took_no_time() -> None:
    """Only bodies take any."""
    assert took_of(Message("signal", "approve", VALUE, NOW)) == 0
