"""Fingerprints: what changes them, what must not, and that they are the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwell.flow import nodes as n
from stepwell.flow.fingerprint import fingerprint_of, interface_of, places_of, wiring_of
from stepwell.flow.plan import PlanNode, Ref
from stepwell.flow.task import AnyTask, task
from stepwell.flow.workflow import Workflow
from tests.engine.graphs import awaited, branch, deciding, flow, line, make_task, repeated, step, together, workflow


def typed(**options: Any) -> AnyTask:
    def body(left: int, right: str = "") -> list[int]:
        return [left, len(right)]

    made: AnyTask = task("typed", **options)(body)
    return made


def base(made: AnyTask | None = None) -> n.Body:
    a = step("a")
    return line(a, step("b", a, n.Const("x"), task=made or make_task("plain")))


def printed(body: n.Body, name: str = "flow") -> str:
    return workflow(body, name).fingerprint


# --- what must not change it -------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 5},
        {"timeout": "9s"},
        {"tags": ["eu"]},
        {"priority": 1},
        {"description": "text"},
        {"run_in": "inline"},
        {"delivery": "at_most_once"},
    ],
)
def test_tuning_a_task_strands_no_instance(options: dict[str, Any]) -> None:
    """Retries, timeouts, tags, priority, text and placement are in no fingerprint."""
    assert printed(base(typed(**options))) == printed(base(typed()))


def test_another_function_body_is_the_same_task() -> None:
    """Only names and types count."""

    def body(left: int, right: str = "") -> list[int]:
        return [0]

    assert printed(base(task("typed")(body))) == printed(base(typed()))


def test_timeouts_and_durations_of_nodes_are_tuning() -> None:
    """A delay may be made longer while instances wait in it."""
    assert printed(line(n.DelayNode("d", 5), awaited("go", 5))) == printed(line(n.DelayNode("d", 9), awaited("go", 9)))


# --- what changes it ---------------------------------------------------------------------


def _other_types() -> AnyTask:
    def body(left: int, right: str | None = "") -> list[int]:
        return [left]

    made: AnyTask = task("typed")(body)
    return made


def _other_result() -> AnyTask:
    def body(left: int, right: str = "") -> list[str]:
        return [right]

    made: AnyTask = task("typed")(body)
    return made


def _selecting(part: str) -> n.Body:
    a = step("a")
    return line(a, step("b", n.Select(n.Value(a), (("attr", part),))))


def _routed(key: object, label: str = "k") -> n.Body:
    return line(n.RouteNode("r", n.Const(1), label, [(key, n.Body())]))


def _crossed(order: int) -> n.Body:
    a, b = step("a"), step("b")
    return line(a, b, step("c", *((a, b), (b, a))[order]))


CHANGES: list[tuple[str, n.Body, n.Body]] = [
    ("a parameter's type", base(typed()), base(_other_types())),
    ("a result's type", base(typed()), base(_other_result())),
    ("a declared version", base(typed()), base(typed(version="2"))),
    ("a node's name", line(step("a")), line(step("z"))),
    ("a task's name", line(step("a", task=make_task("one"))), line(step("a", task=make_task("two")))),
    ("a step more", line(step("a")), line(step("a"), step("b"))),
    ("the order of steps", line(step("a"), step("b")), line(step("b"), step("a"))),
    ("which value is read", _crossed(0), _crossed(1)),
    ("a constant", line(step("a", n.Const(1))), line(step("a", n.Const(2)))),
    ("a constant's type", line(step("a", n.Const(1))), line(step("a", n.Const(True)))),
    (
        "a display",
        line(step("a", n.Display("list", (n.Const(1),)))),
        line(step("a", n.Display("tuple", (n.Const(1),)))),
    ),
    ("a selected part", _selecting("x"), _selecting("y")),
    ("a route's key", _routed("x"), _routed("y")),
    ("a route's key's type", _routed(1), _routed("1")),
    ("a route's label", _routed("x"), _routed("x", "other")),
    ("a signal's name", line(awaited("go", name="s")), line(awaited("stop", name="s"))),
    ("a signal's type", line(n.SignalNode("s", "go", int)), line(n.SignalNode("s", "go", str))),
    ("on_error", line(together(step("a"))), line(together(step("a"), on_error="wait"))),
    ("a branch around a step", line(together(step("a"))), line(together(branch("a", step("a"))))),
    ("the output", line(step("a"), step("b")), line(*(both := [step("a"), step("b")]), output=both[0])),
    ("by position or by name", line(step("a", n.Const(1))), line(step("a", extra=n.Const(1)))),
    (
        "what a loop does at its limit",
        line(repeated("l", line(deciding("d")))),
        line(repeated("l", line(deciding("d")), on_max="last")),
    ),
    ("a loop around a step", line(deciding("d")), line(repeated("l", line(deciding("d"))))),
]


@pytest.mark.parametrize(("before", "after"), [change[1:] for change in CHANGES], ids=[change[0] for change in CHANGES])
def test_what_an_instance_depends_on_is_in_it(before: n.Body, after: n.Body) -> None:
    """A change that old results may not fit changes the fingerprint."""
    assert printed(before) != printed(after)


def test_the_workflows_name_and_types_are_in_it() -> None:
    """Another name, an input, and another input type are another graph."""

    def made(name: str, has_input: bool, declared: object) -> str:
        return Workflow[Any, Any](
            name,
            line(step("a")),
            input_type=declared,
            output_type=Any,
            has_input=has_input,
            metadata={},
            where="here:1",
        ).fingerprint

    prints = [made("one", False, Any), made("two", False, Any), made("one", True, int), made("one", True, str)]
    assert len(set(prints)) == 4


def test_texts_cannot_run_into_each_other() -> None:
    """Every length is stored, so that no two different rows are hashed as the same bytes."""
    one = [PlanNode("task", "ab", -1, interface="c"), PlanNode("task", "d", 0)]
    two = [PlanNode("task", "a", -1, interface="bc"), PlanNode("task", "d", 0)]
    assert fingerprint_of("w", one) != fingerprint_of("w", two)
    assert interface_of(one[0]) != interface_of(two[0])
    rest = [PlanNode("task", name, 0) for name in ("b", "c")]
    root = PlanNode("root", "w", -1, children=(1, 2, 3))
    assert fingerprint_of("w", [root, PlanNode("task", "a", 0, args=(Ref(2), Ref(3))), *rest]) != fingerprint_of(
        "w", [root, PlanNode("task", "a", 0, args=(Ref(2),), needs=(3,)), *rest]
    )


def test_a_nodes_wiring_does_not_depend_on_its_row() -> None:
    """Places and constants are told by path and digest, so that wiring can be compared between two graphs."""

    def wiring(body: n.Body, name: str) -> str:
        plan = workflow(body).plan
        places = places_of(plan.nodes)
        return next(wiring_of(node, places) for node in plan.nodes if node.name == name)

    def made(*before: n.Node) -> n.Body:
        a = step("a")
        return line(*before, a, together(step("b", n.Select(n.Value(a), (("attr", "x"),)), n.Const("y")), name="p"))

    assert wiring(made(), "b") == wiring(made(step("z", n.Const("w")), step("zz")), "b")
    assert wiring(made(), "b") != wiring(line(step("a"), together(step("b"), name="p")), "b")


# --- the same everywhere -----------------------------------------------------------------


def test_these_fingerprints_never_change() -> None:
    """Instances carry them: another text here would hold every running instance after an upgrade."""
    rows = [
        PlanNode("root", "w", -1, children=(1,), output=1, interface='["in=-","out=int"]'),
        PlanNode("task", "a", 0, args=(Ref(0),), kwargs=(("k", Ref(0)),), interface='["task","a","","int"]'),
    ]
    assert interface_of(rows[1]) == "b604319424a7c3a879df055256240ccf"
    assert fingerprint_of("w", rows) == "20995671ad202ba0e863ee3c17614be6"
    assert printed(base(typed())) == "73db4feccfb6e247e583f8ca39a2fa96"


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_a_fingerprint_does_not_depend_on_the_hash_seed(seed: str) -> None:
    """Another process with another hash seed finds the same one."""
    root = Path(__file__).parent.parent.parent
    code = "from tests.flow.test_fingerprint import base, printed, typed; print(printed(base(typed())))"
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed(base(typed()))


def test_lines_and_files_are_not_in_it() -> None:
    """A workflow may move to another module."""

    def moved(where: str, change: Callable[[n.TaskNode], None]) -> str:
        node = step("a")
        change(node)
        return Workflow[Any, Any](
            "w", line(node), input_type=None, output_type=Any, has_input=False, metadata={}, where=where
        ).fingerprint

    def note(node: n.TaskNode) -> None:
        node.where = "elsewhere.py:99"

    assert moved("a.py:1", lambda node: None) == moved("b.py:2", note)
    assert flow(step("a")).fingerprint != ""
