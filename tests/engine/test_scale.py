"""The short cut decides what the general way does; cost follows what is open; nothing recurses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.advance import advance
from stepwell.engine.frontier import Frontier, to_image
from stepwell.flow import nodes as n
from stepwell.flow.plan import Plan, PlanData, PlanNode

from .graphs import Seeded, awaited, branch, deciding, flow, grow, repeated, step, together
from .hands import Run, finish

engine = importlib.import_module("stepwell.engine.advance")
LONG = 5_000


# --- the short cut -----------------------------------------------------------------------


def _stored_facts(seed: int) -> list[bytes]:
    run = Run.of(grow(Seeded(seed), size=14, failing=False))
    finish(run, Seeded(seed))
    assert run.state.ended == "completed"
    return [f.encode([fact]) for fact in run.facts]


def test_the_short_cut_decides_what_the_general_way_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the short cut disabled, the same runs have the same facts, byte for byte."""
    taken: list[object] = []
    short_cut: Callable[..., object] = engine._straight_on

    def counted(*given: object) -> object:
        facts = short_cut(*given)
        taken.append(facts)
        return facts

    monkeypatch.setattr(engine, "_straight_on", counted)
    fast = [_stored_facts(seed) for seed in range(40)]
    assert sum(facts is not None for facts in taken) > 50
    monkeypatch.setattr(engine, "_straight_on", lambda *given: None)
    assert [_stored_facts(seed) for seed in range(40)] == fast


# --- cost --------------------------------------------------------------------------------


class Cost:
    """The most facts of one event, and the largest image, of a run that is led by its caller."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.state = plan, Frontier()
        self.most_facts = self.most_bytes = self.events = 0
        self.say(e.Start())

    def say(self, event: e.Event) -> None:
        facts = advance(self.plan, self.state, event, 1_000)
        assert facts
        self.events += 1
        self.most_facts = max(self.most_facts, len(facts))
        if self.events % 97 == 0 or self.state.ended:
            self.most_bytes = max(self.most_bytes, len(to_image(self.state)))


def _chain(length: int) -> Plan:
    nodes: list[n.Node] = []
    for i in range(length):
        nodes.append(step(f"t{i}", *nodes[-1:]))
    return flow(*nodes).plan


def test_a_long_chain_costs_the_same_at_every_step() -> None:
    """5 000 steps: two facts each, and a frontier of one step and one value."""
    cost = Cost(_chain(LONG))
    for node in range(1, LONG + 1):
        cost.say(e.Succeeded(node, (), 1))
    assert cost.state.ended == "completed"
    assert cost.most_facts == 2
    assert cost.most_bytes < 80


def test_a_long_loop_costs_the_same_at_every_turn() -> None:
    """5 000 turns: three facts each, and nothing of a finished turn is kept."""
    body = n.Body()
    first, decider = step("a", n.Input(body)), deciding("b", n.Input(body))
    body.nodes, body.output = [first, decider], n.Value(decider)
    made = flow(repeated("l", body, most=LONG))
    cost = Cost(made.plan)
    pack, a, b = (made.plan.find(path) for path in ("l-first", "l[1]/a", "l[1]/b"))
    assert pack is not None
    assert a is not None
    assert b is not None
    cost.say(e.Succeeded(*pack, 1))
    for turn in range(1, LONG + 1):
        cost.say(e.Succeeded(a[0], (turn,), 1))
        cost.say(e.Succeeded(b[0], (turn,), 1, "again" if turn < LONG else "done"))
    assert cost.state.ended == "completed"
    assert cost.most_facts == 3
    assert cost.most_bytes < 100


# --- depth -------------------------------------------------------------------------------


@pytest.fixture
def shallow() -> object:
    """Leave room for few more frames than a test has, so that any recursion over nodes is an error."""
    limit, depth, frame = sys.getrecursionlimit(), 0, sys._getframe()
    while frame.f_back:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + 120)
    yield
    sys.setrecursionlimit(limit)


def test_thousands_of_kept_messages_are_taken_in_one_event(shallow: object) -> None:
    """5 000 signals in a row find their messages and complete each other without recursion."""
    plan = _signals(LONG)
    state = Frontier()
    for _ in range(LONG):
        advance(plan, state, e.Signalled("go"), 1_000)
    facts = advance(plan, state, e.Start(), 1_000)
    assert [type(fact) for fact in facts].count(f.MessageTaken) == LONG
    assert (state.ended, state.result) == ("completed", LONG)


def _signals(length: int) -> Plan:
    return flow(*(awaited("go", name=f"s{i}") for i in range(length))).plan


def test_thousands_of_empty_scopes_are_passed_in_one_event(shallow: object) -> None:
    """Empty children behind a step complete each other without recursion."""
    plan = _empty_children(2_000)
    state = Frontier()
    advance(plan, state, e.Start(), 1_000)
    facts = advance(plan, state, e.Succeeded(1, (), 1), 1_000)
    assert [type(fact) for fact in facts].count(f.ScopeDone) == 2_000
    assert state.ended == "completed"


def _empty_children(length: int) -> Plan:
    """Return a plan of one step and then children without steps, which no author can write, but a plan can say."""
    rows = [PlanNode("root", "flow", -1, children=tuple(range(1, length + 2))), PlanNode("task", "a", 0)]
    rows += [PlanNode("child", f"c{i}", 0) for i in range(length)]
    return Plan(PlanData(1, "flow", tuple(rows), "hand-made"))


def test_a_wide_parallel_of_kept_messages_is_passed_in_one_event(shallow: object) -> None:
    """A wide parallel of waits that all find their message closes without recursion."""
    waits = [branch(f"b{i}", awaited("go", name=f"s{i}"), awaited("go", name=f"t{i}")) for i in range(500)]
    plan = flow(together(*waits), step("z")).plan
    state = Frontier()
    for _ in range(1_000):
        advance(plan, state, e.Signalled("go"), 1_000)
    advance(plan, state, e.Start(), 1_000)
    assert len(state.steps) == 1
    assert not state.scopes


def test_deep_nesting_fails_from_the_inside_out() -> None:
    """Forty parallels inside each other fail one after the other and end the run."""
    node: n.Node = together(step("a"), step("b"), name="p0")
    for i in range(1, 40):
        node = together(branch(f"b{i}", node), name=f"p{i}")
    run = Run.of(flow(node))
    run.say(e.Start())
    inner = run.steps("ready")
    run.say(e.Errored(*inner[0], 1, False))
    run.say(e.Settled((inner[1],)))
    assert run.state.ended == "failed"
    assert sum(isinstance(fact, f.ScopeFailed) for fact in run.facts) == 40


def test_a_route_with_an_empty_case_passes_in_a_long_row() -> None:
    """2 000 routes whose chosen case is empty: each costs three facts."""
    routes = [n.RouteNode(f"r{i}", n.Const(1), "key", [("x", n.Body())]) for i in range(2_000)]
    plan = flow(*routes, output=n.Const(0)).plan
    cost = Cost(plan)
    for node in [i for i, kind in enumerate(plan.kind) if kind == "route"]:
        cost.say(e.Succeeded(node, (), 1, "key=x"))
    assert cost.most_facts == 3
    assert cost.most_bytes < 60
