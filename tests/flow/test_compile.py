"""From the tree to the plan: rows, names, sources, types, and every error a build reports."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import pytest

from stepwell.errors import GraphError
from stepwell.flow import nodes as n
from stepwell.flow.compile import Bodies, compile_workflow, key_text
from stepwell.flow.plan import Built, Constant, Plan, Ref, Selected
from stepwell.flow.task import task
from stepwell.retry import Retry
from stepwell.types import NEST_MAX, Again, Done
from tests.engine.graphs import awaited, branch, deciding, line, make_task, repeated, step, together, workflow


def compiled(body: n.Body, has_input: bool = False, input_type: object = Any) -> tuple[Plan, Bodies]:
    return compile_workflow("flow", body, input_type, has_input, "user.py:1")


def rows(plan: Plan) -> list[str]:
    """Return kind and path of each row."""
    return [f"{kind} {plan.path(i)}".strip() for i, kind in enumerate(plan.kind)]


def refused(body: n.Body, words: str, has_input: bool = False, input_type: object = Any) -> GraphError:
    body.input_type = input_type if has_input else None
    with pytest.raises(GraphError, match=words) as caught:
        compiled(body, has_input, input_type)
    return caught.value


@task("sized")
def sized(text: str, *, by: int = 1) -> int:
    return len(text) * by


@task("halved")
def halved(number: int) -> Again[int] | Done[str]:
    return Done(str(number))


@task("counted")
def counted(number: int) -> int:
    return number


# --- rows --------------------------------------------------------------------------------


def test_every_node_has_a_row_in_the_order_of_the_tree() -> None:
    """A parent stands before its children, and sequences that belong to a node stand in it."""
    body = n.Body()
    route = n.RouteNode("r", n.Input(body), "key", [("x", line(step("a")))], line(step("b")))
    loop = repeated("l", line(deciding("d")), first=n.Input(body))
    body.nodes = [route, loop, awaited("go", 5, line(step("late"))), n.DelayNode("nap", 7)]
    plan, _ = compiled(body, has_input=True)
    assert rows(plan) == [
        "root", "input input", "route r", "case r/key=x", "task r/key=x/a", "case r/else", "task r/else/b", "loop l",
        "turn l", "input l/input", "task l/d", "signal go", "timeout go/timeout", "task go/timeout/late", "delay nap",
    ]  # fmt: skip
    assert all(parent < child for child, parent in enumerate(plan.parent))
    assert plan.depth == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]


def test_siblings_of_one_name_are_numbered() -> None:
    """Within their own scope, from the second on, whatever their kind."""
    plan, _ = compiled(line(step("a"), step("a"), together(step("a"), step("a")), n.DelayNode("a", 1)))
    assert rows(plan)[1:] == [
        "task a",
        "task a#2",
        "parallel parallel",
        "task parallel/a",
        "task parallel/a#2",
        "delay a#3",
    ]


def test_a_tasks_options_are_in_its_row() -> None:
    """As numbers: exception types and functions stay with the code."""
    made = make_task(
        "work",
        retry=Retry(attempts=4, delay=2, factor=3, max_delay=9, jitter=0.5, on=(OSError,)),
        timeout="5s",
        tags=["eu"],
        priority=2,
    )
    plan, bodies = compiled(line(step("a", task=made)))
    row = plan.nodes[1]
    assert (row.task, row.timeout_us, row.tags, row.priority, row.delivery) == (
        "work",
        5_000_000,
        ("eu",),
        2,
        "at_least_once",
    )
    assert tuple(getattr(row.retry, name) for name in row.retry.__struct_fields__) == (4, 2_000_000, 3, 9_000_000, 0.5)
    assert bodies.tasks == {1: made}


def test_a_renamed_node_keeps_its_former_name() -> None:
    """``was`` is for comparing with older plans; it is in no fingerprint."""
    old, new = step("a"), step("a")
    new.was = "before"
    assert compiled(line(new))[0].nodes[1].was == "before"
    assert compiled(line(new))[0].fingerprint == compiled(line(old))[0].fingerprint


# --- sources -----------------------------------------------------------------------------


def test_arguments_say_where_values_come_from() -> None:
    """References, parts, displays and constants, by position and by name."""
    a = step("a")
    shown = n.Display("dict", (n.Value(a), n.Const(2)), ("k", "l"))
    plan, bodies = compiled(line(a, step("b", a, n.Select(n.Value(a), (("attr", "x"),)), extra=shown)))
    args, ((name, extra),) = plan.nodes[2].args, plan.nodes[2].kwargs
    assert args == (Ref(1), Selected(Ref(1), (("attr", "x"),)))
    assert name == "extra"
    assert isinstance(extra, Built)
    assert isinstance(extra.items[1], Constant)
    assert bodies.constants[extra.items[1].index] == 2
    assert [bodies.constants[key.index] for key in extra.keys] == ["k", "l"]


def test_an_output_or_first_value_that_is_more_than_a_reference_gets_a_pack() -> None:
    """It stands where it is read: at a sequence's end, or before its loop."""
    plan, _ = compiled(line(repeated("l", line(deciding("d")), first=n.Const(1)), output=n.Const(2)))
    assert [row for row in rows(plan) if row.startswith("pack")] == ["pack l-first", "pack result"]
    assert plan.nodes[0].output == len(plan.nodes) - 1
    assert plan.kind[plan.nodes[2].first] == "pack"


def test_a_child_is_walked_anew_at_each_use() -> None:
    """Its input stands for the caller's argument, which may be a reference, a part or a constant."""
    body = n.Body()
    inner = step("inner", n.Input(body))
    body.nodes, body.output = [inner], n.Value(inner)
    kid = workflow(body, "kid", has_input=True)
    a = step("a")
    plan, _ = compiled(line(a, n.ChildNode("kid", kid, n.Value(a)), n.ChildNode("kid", kid, n.Const(1))))
    assert rows(plan)[2:] == ["child kid", "task kid/inner", "child kid#2", "task kid#2/inner"]
    assert plan.nodes[3].args == (Ref(1),)
    assert isinstance(plan.nodes[5].args[0], Constant)


# --- types -------------------------------------------------------------------------------


def test_declared_types_are_kept_by_node() -> None:
    """What a task wants and returns, what a sequence yields, what a loop gives back."""
    body = n.Body()
    node = step("h", n.Input(body), task=halved)
    body.nodes, body.output, body.input_type = [node], n.Value(node), int
    first = n.TaskNode("s", sized, (n.Const("abc"),), {"by": n.Const(2)})
    for on_max, expected in (("fail", str), ("last", int | str)):
        plan, bodies = compiled(line(first, repeated("l", body, on_max=on_max, first=n.Value(first))))  # type: ignore[arg-type]
        loop = plan.kind.index("loop")
        assert bodies.types[loop] == expected
        assert bodies.wanted[1] == ((str,), {"by": int})
        assert bodies.types[1] is int


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: line(n.TaskNode("s", sized, (n.Const(1),), {})), "wants text: str, but it is given int by a constant"),
        (lambda: line(c := step("c", n.Const(1), task=counted), step("s", c, task=sized)), "wants text: str.*by 'c'"),
        (
            lambda: line(n.TaskNode("s", sized, (n.Const(""),), {"by": n.Const("x")})),
            "wants by: int, but it is given str",
        ),
    ],
)
def test_a_producer_that_cannot_fit_its_consumer_is_refused(wrong: Any, words: str) -> None:
    """Both types and both names are in the message."""
    refused(wrong(), words)


def test_an_input_that_cannot_fit_is_refused() -> None:
    """The workflow's own, and a child's."""
    body = n.Body()
    body.nodes = [step("s", n.Input(body), task=sized)]
    refused(body, "given int by the workflow's input", has_input=True, input_type=int)
    body.input_type = None
    kid = workflow(body, "kid", has_input=True)
    kid.input_type = str
    refused(line(n.ChildNode("kid", kid, n.Const(1))), "workflow 'kid' wants str, but it is given int")


# --- what cannot be built ----------------------------------------------------------------


def _case_value() -> n.Body:
    inner = step("a")
    return line(n.RouteNode("r", n.Const(1), "k", [("x", line(inner))]), step("b", inner))


def _turn_value() -> n.Body:
    inner = deciding("d")
    return line(repeated("l", line(inner)), step("b", inner))


def _timeout_value() -> n.Body:
    inner = step("a")
    return line(awaited("go", 5, line(inner)), step("b", inner))


def _later_value() -> n.Body:
    later = step("b")
    return line(step("a", later), later)


def _foreign_value() -> n.Body:
    inner = step("inner")
    return line(n.ChildNode("kid", workflow(line(inner), "kid"), None), step("b", inner))


def _outer_value_in_a_child() -> n.Body:
    a = step("a")
    body = line(step("inner", a))
    kid = workflow(line(step("x")), "kid")
    kid.body = body
    return line(a, n.ChildNode("kid", kid, None))


def _sibling_case() -> n.Body:
    inner = step("a")
    return line(n.RouteNode("r", n.Const(1), "k", [("x", line(inner)), ("y", line(step("b", inner)))]))


def _two_functions() -> n.Body:
    other = task("plain")(lambda: None)
    return line(step("a"), n.TaskNode("b", other, (), {}))


def _loop_of(body: n.Body) -> n.Body:
    return line(repeated("l", body))


def _decider_outside() -> n.Body:
    outside = deciding("d")
    return line(outside, repeated("l", line(step("a"), output=outside)))


def _input_decides() -> n.Body:
    body = n.Body([step("a")])
    body.output = n.Input(body)
    return _loop_of(body)


def _route(*cases: tuple[Any, n.Body], default: n.Body | None = None, key_type: object = None) -> n.Body:
    return line(n.RouteNode("r", n.Const(1), "k", list(cases), default, key_type))


class Color(Enum):
    RED = 1
    BLUE = 2


EMPTY = n.Body()

REFUSALS: list[tuple[str, n.Body]] = [
    ("has no steps", EMPTY),
    ("holds no steps", line(together())),
    ("branch 'b' holds no steps", line(together(branch("b")))),
    ("lives inside a route's case", _case_value()),
    ("lives inside a loop's body", _turn_value()),
    ("lives inside a timeout branch", _timeout_value()),
    ("lives inside a route's case", _sibling_case()),
    ("not known here", _later_value()),
    ("not known here", _foreign_value()),
    ("not known here", _outer_value_in_a_child()),
    ("two functions are called 'plain'", _two_functions()),
    ("must be storable", line(step("a", n.Const(object())))),
    ("two payload types, int and str", line(n.SignalNode("a", "go", int), n.SignalNode("b", "go", str))),
    ("must end with a task that returns Again or Done", _loop_of(n.Body([step("a")]))),
    ("must end with a task that returns Again or Done", _loop_of(line(step("a"), output=n.Const(1)))),
    ("must end with a task that returns Again or Done", _loop_of(line(repeated("inner", line(deciding("d")))))),
    ("must end with a task that returns Again or Done", _decider_outside()),
    ("must end with a task that returns Again or Done", _input_decides()),
    ("'c' returns int, not Again or Done", _loop_of(line(step("c", n.Const(1), task=counted)))),
    ("'c' returns int", _loop_of(_route(("x", line(step("c", n.Const(1), task=counted)))))),
    ("has no cases", _route()),
    ("a key is a str, int, bool or Enum, not float", _route((1.5, EMPTY))),
    ("two cases that read 'k=x'", _route(("x", EMPTY), ("x", EMPTY))),
    ("no case for .*BLUE", _route((Color.RED, EMPTY), key_type=Color)),
    ("'z' is not one of", _route(("y", EMPTY), ("z", EMPTY), key_type=Literal["y"])),
    ("no case for False", _route((True, EMPTY), key_type=bool)),
    ("1 is not one of bool", _route((1, EMPTY), (True, EMPTY), (False, EMPTY), key_type=bool)),
]


@pytest.mark.parametrize(("words", "body"), REFUSALS)
def test_what_cannot_run_is_not_built(words: str, body: n.Body) -> None:
    """Each error says what is wrong."""
    refused(body, words)


def test_an_error_carries_the_users_line() -> None:
    """The line of the call that made the node."""
    later = step("later")
    node = step("a", later)
    node.where = "user.py:42"
    assert "user.py:42" in str(refused(line(node, later), "not known here"))


def test_a_default_covers_the_values_without_a_case() -> None:
    """Also those that an Enum declares."""
    plan, bodies = compiled(_route((Color.RED, EMPTY), default=EMPTY, key_type=Color))
    assert bodies.cases == {1: {(Color, Color.RED): "k=RED"}}
    assert rows(plan)[2:] == ["case r/k=RED", "case r/else"]


def test_values_of_branches_and_parallels_are_seen_outside() -> None:
    """They always exist by then."""
    a, b = step("a"), step("b")
    plan, _ = compiled(line(together(a, branch("eu", b)), step("c", a, b)))
    assert plan.nodes[-1].args == (Ref(2), Ref(4))


def test_a_loop_may_be_decided_in_every_case_of_a_route_or_in_a_child() -> None:
    """Wherever the value comes from, a task of this turn says it."""
    cases = [("x", line(deciding("d"))), ("y", line(deciding("e")))]
    kid = workflow(line(deciding("f")), "kid")
    for body in (
        line(n.RouteNode("r", n.Const(1), "k", cases)),
        line(n.ChildNode("kid", kid, None)),
        line(deciding("g")),
    ):
        assert "loop" in compiled(_loop_of(body))[0].kind


def test_nesting_has_a_limit() -> None:
    """Deep trees are refused before they meet Python's own limit."""
    node: n.Node = step("a")
    for i in range(4 * NEST_MAX):
        node = branch(f"b{i}", node)
    refused(line(node), f"more than {NEST_MAX} deep")


def test_the_number_of_nodes_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is loaded whole."""
    monkeypatch.setattr("stepwell.flow.compile.NODES_MAX", 10)
    refused(line(*(step(f"t{i}") for i in range(10))), "at most 10 nodes")


# --- route keys in paths -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("yes", "yes"), ("über", "über"), ("a/b", "a%2Fb"), ("x=1[2]#3%", "x%3D1%5B2%5D%233%25"), ("a\nb", "a%0Ab"),
        (True, "true"), (False, "false"), ("true", "'true'"), (7, "7"), (-7, "-7"), ("7", "'7'"), ("-7", "'-7'"),
        ("", "''"),
        ("else", "'else'"), (Color.RED, "RED"), ("\ud800", "%ED%A0%80"),
    ],
)  # fmt: skip
def test_a_key_is_written_so_that_paths_stay_readable_and_typed(key: Any, text: str) -> None:
    """Texts that look like other keys are quoted; what paths use is escaped."""
    assert key_text(key) == text


def test_a_case_is_found_by_its_path() -> None:
    """With any key."""
    cases = [(key, line(step("s"))) for key in ("a/b", 7, "7", True, "true", "[1]")]
    plan, _ = compiled(line(n.RouteNode("r", n.Const(1), "k", cases)))
    for row, kind in enumerate(plan.kind):
        if kind == "task":
            assert plan.find(plan.path(row)) == (row, ())
