"""The plan's derived columns, its paths, and its stored form."""

from __future__ import annotations

import msgspec
import pytest

from stepwell.flow import nodes as n
from stepwell.flow.plan import NONE, Plan, PlanData, PlanNode, Ref, reads
from stepwell.seal import seal
from tests.engine.graphs import Seeded, awaited, branch, deciding, flow, grow, line, repeated, step, together, workflow


def plan_of(*nodes: n.Node, output: n.Node | n.Source | None = None) -> Plan:
    return flow(*nodes, output=output).plan


def node_at(plan: Plan, path: str) -> int:
    key = plan.find(path)
    assert key is not None, path
    return key[0]


def drops(plan: Plan) -> dict[str, list[str]]:
    """Return what each node drops, by paths."""
    return {plan.path(at): [plan.path(node) for node in dead] for at, dead in enumerate(plan.drops) if dead}


# --- who follows, waits, and reads -------------------------------------------------------


def test_children_of_a_sequence_follow_each_other_and_those_of_a_parallel_do_not() -> None:
    """The input's place is never followed or opened."""
    body = n.Body()
    body.nodes = [step("a", n.Input(body)), together(step("b"), step("c")), step("d")]
    plan = workflow(body, has_input=True).plan
    a, both, d = (node_at(plan, path) for path in ("a", "parallel", "d"))
    assert [plan.following[node] for node in (0, 1, a, both, d)] == [NONE, NONE, both, d, NONE]
    assert [plan.following[node] for node in plan.nodes[both].children] == [NONE, NONE]


def test_a_child_of_a_parallel_waits_for_what_anything_in_it_reads() -> None:
    """A read from inside a branch, of something inside another, makes the whole branch wait for the whole other."""
    b = step("b")
    plan = plan_of(together(branch("one", b, step("x")), branch("two", step("y", b)), step("z")))
    one, two, z = (node_at(plan, f"parallel/{name}") for name in ("one", "two", "z"))
    assert plan.nodes[two].needs == (one,)
    assert (plan.waiters[one], plan.waiters[two], plan.waiters[z]) == ((two,), (), ())


def test_a_value_is_used_if_anything_reads_it() -> None:
    """As an argument, a route's key, a loop's first value or an output."""
    a, b, c, d, e = (step(name) for name in "abcde")
    route = n.RouteNode("r", n.Value(b), "key", [("x", n.Body([], n.Value(d)))])
    plan = plan_of(a, b, c, d, e, step("f", a), route, repeated("l", line(deciding("y")), first=n.Value(c)))
    assert {plan.path(i) for i, used in enumerate(plan.used) if used} == {"a", "b", "c", "d", "l", "l/y"}


# --- liveness ----------------------------------------------------------------------------


def test_a_value_dies_with_its_last_reader_in_the_sequence() -> None:
    """However deep that reader stands: the child of the sequence around it drops the value."""
    a, b = step("a"), step("b")
    deep = n.RouteNode("r", n.Const(1), "key", [("x", n.Body([step("reader", b)])), ("y", n.Body())])
    assert drops(plan_of(a, b, step("c", a), deep, step("d"), output=n.Const(0))) == {
        "c": ["a"],
        "r": ["b"],
        "": ["result"],
    }


def test_a_value_shared_between_children_of_a_parallel_dies_with_the_parallel() -> None:
    """Which of its readers is last cannot be known."""
    a = step("a")
    plan = plan_of(together(a, step("b", a), step("c", a)), step("z"), output=n.Const(0))
    assert drops(plan)["parallel"] == ["parallel/a"]


def test_a_value_of_a_case_or_timeout_dies_with_the_route_or_signal() -> None:
    """The case's output is read when the route takes it."""
    route = n.RouteNode("r", n.Const(1), "key", [("x", line(step("a")))])
    plan = plan_of(route, awaited("go", 10, line(step("b"))), output=n.Const(0))
    assert (drops(plan)["r"], drops(plan)["go"]) == (["r/key=x/a"], ["go/timeout/b"])


def test_a_value_of_a_turn_dies_with_the_turn_and_one_around_the_loop_with_the_loop() -> None:
    """Each turn may read what lies around the loop again."""
    a = step("a")
    plan = plan_of(a, repeated("l", line(step("x", a), deciding("y"))), output=n.Const(0))
    turn = plan.nodes[node_at(plan, "l")].children[0]
    assert [plan.path(node) for node in plan.drops[turn]] == ["l/y"]
    assert [plan.path(node) for node in plan.drops[plan.parent[turn]]] == ["a", "l-first"]


@pytest.mark.parametrize("seed", range(0, 100, 25))
def test_every_read_value_is_dropped_exactly_once(seed: int) -> None:
    """In random plans, and by a node with as many loops around it."""
    for one in range(seed, seed + 25):
        plan = grow(Seeded(one), size=30).plan
        dropped = [node for dead in plan.drops for node in dead]
        assert sorted(dropped) == [node for node, used in enumerate(plan.used) if used]
        for at, dead in enumerate(plan.drops):
            assert all(plan.depth[node] == plan.depth[at] for node in dead)


def test_reads_are_arguments_outputs_and_first_values() -> None:
    """Selections and displays are looked through; constants read nothing."""
    a, b = step("a"), step("b")
    shown = n.Display("dict", (n.Select(n.Value(a), (("item", 0),)), n.Const(1)), ("k", "l"))
    plan = plan_of(a, b, step("c", shown, extra=b), output=b)
    assert [list(reads(plan.nodes[i])) for i in (3, 0)] == [[1, 2], [2]]


# --- paths -------------------------------------------------------------------------------


def _nested() -> Plan:
    inner = repeated("inner", line(step("x"), deciding("y")))
    return plan_of(step("a"), repeated("outer", line(inner, deciding("z"))), together(branch("eu", step("b"))))


def test_a_path_names_every_node_and_turn_on_the_way() -> None:
    """Turn rows have no segment of their own; the workflow itself has the empty path."""
    plan = _nested()
    key = plan.find("outer[2]/inner[5]/x")
    assert key is not None
    assert (plan.kind[key[0]], key[1]) == ("task", (2, 5))
    assert plan.path(*key) == "outer[2]/inner[5]/x"
    assert plan.path(key[0]) == "outer/inner/x"
    assert plan.find("") == (0, ())
    assert plan.find("parallel/eu/b") is not None


@pytest.mark.parametrize(
    "path",
    [
        "b", "a/x", "outer[2]/inner/x", "outer/inner[2]/x", "a[1]", "outer[0]", "outer[01]", "outer[-1]", "outer[1",
        "outer[1x", "outer[1]x", "outer[٣]", f"outer[{'9' * 5000}]", "/a", "a/", "//", "input",
        "outer[1]/turn/z", "outer[1]/input", "parallel/",
    ],
)  # fmt: skip
def test_what_is_no_path_is_not_found(path: str) -> None:
    """Unknown names, missing or wrong turns, and texts that only look like paths."""
    assert _nested().find(path) is None


@pytest.mark.parametrize("seed", range(0, 60, 20))
def test_find_is_the_inverse_of_path(seed: int) -> None:
    """For every node of random plans, with any turns."""
    for one in range(seed, seed + 20):
        plan, choose = grow(Seeded(one), size=30).plan, Seeded(one)
        for node, kind in enumerate(plan.kind):
            if kind not in ("turn", "input"):
                turns = tuple(choose.number(1, 12) for _ in range(plan.depth[node]))
                assert plan.find(plan.path(node, turns)) == (node, turns)


# --- stored form -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_read_from_its_bytes_is_the_same(seed: int) -> None:
    """All columns are derived from what is stored."""
    plan = grow(Seeded(seed), size=20).plan
    again = Plan.from_bytes(plan.to_bytes())
    for column in Plan.__slots__:
        if column not in ("scratch", "data"):
            assert getattr(again, column) == getattr(plan, column)
    assert again.data == plan.data


def test_other_bytes_are_refused() -> None:
    """A plan is read by its declared shape."""
    stored = plan_of(step("a")).to_bytes()
    for wrong in (b"", b"{}", stored[:-1], stored.replace(b'"task"', b'"guess"', 1), stored.replace(b"0", b'"0"', 1)):
        with pytest.raises(msgspec.DecodeError):
            Plan.from_bytes(wrong)


def test_the_stored_form_does_not_change() -> None:
    """Plans of running instances are read for ever: new fields need defaults, old ones keep name and meaning."""
    rows = (
        PlanNode("root", "w", -1, children=(1, 2), output=2),
        PlanNode("delay", "d", 0, duration_us=7),
        PlanNode(
            "task", "a", 0, args=(Ref(1),), kwargs=(("k", Ref(1)),), task="a", interface="i", timeout_us=5, tags=("eu",)
        ),
    )
    stored = (
        b'{"version":1,"name":"w","nodes":[{"kind":"root","name":"w","parent":-1,"children":[1,2],"output":2},'
        b'{"kind":"delay","name":"d","parent":0,"duration_us":7},'
        b'{"kind":"task","name":"a","parent":0,"args":[["ref",1]],"kwargs":[["k",["ref",1]]],"interface":"i","task":"a",'
        b'"timeout_us":5,"tags":["eu"]}],"fingerprint":"f"}'
    )
    sealed = stored + b"E\x10rC"
    assert Plan(PlanData(1, "w", rows, "f")).to_bytes() == sealed
    assert Plan.from_bytes(sealed).nodes == rows


@pytest.mark.parametrize(
    "stored", [b"", b"{}", seal(b"{}"), seal(b'{"version":2,"name":"w","nodes":[],"fingerprint":"f"}')]
)
def test_what_is_no_plan_of_this_version_is_refused(stored: bytes) -> None:
    """Cut bytes, another document and a newer version are decoding errors."""
    with pytest.raises(msgspec.DecodeError):
        Plan.from_bytes(stored)
