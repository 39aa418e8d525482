"""How plans are drawn: every kind of node, as text and as Mermaid."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell.flow.builder import Flow
from stepwell.flow.draw import mermaid, text
from stepwell.flow.plan import Plan, PlanData, PlanNode
from stepwell.flow.task import task
from stepwell.flow.trace import branch, delay, loop, parallel, route, signal, workflow
from stepwell.timing import span
from stepwell.types import Again, Done


@task
def charge(order: str) -> str: ...
@task
def ship(order: str) -> str: ...
@task
def escalate() -> str: ...
@task
def refine(order: str) -> Again[str] | Done[str]: ...
@task
def gather(parts: list[str]) -> str: ...


@workflow
def small(order: str) -> str:
    return ship(order)


@workflow
def everything(order: str) -> str:
    with parallel(on_error="wait"):
        paid = charge(order)
        with branch("eu"):
            delay("90s")
            sent = ship(paid)
    answer = signal("approve", str, timeout="2d", on_timeout=escalate)
    better = loop(refine, small(answer), max_iterations=3)
    return route(better, {"yes": lambda: gather([paid, sent])}, default=lambda: "none", name="last")


def test_text() -> None:
    """Every node has one line; what its name does not say stands behind it."""
    assert text(everything.plan) == "\n".join(
        [
            "everything",
            "├─ parallel (parallel, waits for all)",
            "│  ├─ charge",
            "│  └─ eu (branch)",
            "│     ├─ delay (delay 90s)",
            "│     └─ ship",
            "├─ approve (signal, at most 2d)",
            "│  └─ timeout",
            "│     └─ escalate",
            "├─ small (child)",
            "│  └─ ship",
            "├─ refine (loop, at most 3)",
            "│  └─ refine",
            "└─ last (route)",
            "   ├─ refine=yes",
            "   │  └─ gather",
            "   └─ else",
        ]
    )


def test_mermaid() -> None:
    """Scopes are boxes, arrows say what follows what; ways out are labelled."""
    ids = {"/".join([*path]): number for path, number in _ids(everything.plan)}
    drawn = mermaid(everything.plan)
    expected = [
        "flowchart TD",
        f'  subgraph n{ids["parallel"]}["parallel (parallel, waits for all)"]',
        f'    n{ids["parallel/charge"]}["charge"]',
        f'    subgraph n{ids["parallel/eu"]}["eu (branch)"]',
        f'      n{ids["parallel/eu/delay"]}(["delay (delay 90s)"])',
        f'      n{ids["parallel/eu/ship"]}["ship"]',
        "    end",
        "  end",
        f'  n{ids["approve"]}[/"approve (signal, at most 2d)"/]',
        f'  n{ids["approve/timeout/escalate"]}["escalate"]',
        f'  subgraph n{ids["small"]}["small (child)"]',
        f'    n{ids["small/ship"]}["ship"]',
        "  end",
        f'  subgraph n{ids["refine"]}["refine (loop, at most 3)"]',
        f'    n{ids["refine/refine"]}["refine"]',
        "  end",
        f'  n{ids["last"]}{{"last (route)"}}',
        f'  n{ids["last/refine=yes/gather"]}["gather"]',
    ]
    assert drawn.splitlines()[: len(expected)] == expected
    edges = {
        ("parallel/charge", "parallel/eu", ""),
        ("parallel/eu/delay", "parallel/eu/ship", ""),
        ("parallel", "approve", ""),
        ("approve", "approve/timeout/escalate", "timeout"),
        ("approve", "small", ""),
        ("approve/timeout/escalate", "small", ""),
        ("small", "refine", ""),
        ("refine/refine", "refine/refine", "again"),
        ("refine", "last", ""),
        ("last", "last/refine=yes/gather", "refine=yes"),
    }
    arrows = {f"  n{ids[a]} " + (f'-->|"{label}"|' if label else "-->") + f" n{ids[b]}" for a, b, label in edges}
    assert set(drawn.splitlines()[len(expected) :]) == arrows


def _ids(plan: Plan) -> list[tuple[tuple[str, ...], int]]:
    """Return every shown node's path without turns, and its number."""
    return [
        (tuple(plan.path(i).split("/")), i) for i, kind in enumerate(plan.kind) if kind not in ("input", "pack", "turn")
    ]


def test_scopes_only_open_and_close() -> None:
    """Every box that is opened is closed, and every arrow joins drawn nodes."""
    lines = [line.strip() for line in mermaid(everything.plan).splitlines()]
    assert sum(line.startswith("subgraph") for line in lines) == lines.count("end") == 4
    drawn = {
        line.split("[")[0].removeprefix("subgraph ").split("(")[0].split("{")[0] for line in lines if "-->" not in line
    }
    for line in (line for line in lines if "-->" in line):
        assert {line.split()[0], line.split()[-1]} <= drawn


def test_loop_in_parallel_waits_for_what_its_first_value_reads() -> None:
    """A wait that goes through a packed value is drawn between the nodes a reader sees."""

    @workflow
    def flow(order: dict[str, str]) -> Any:
        with parallel():
            paid = charge(order["id"])
            done = loop(refine, [paid], name="again")
        return gather([paid, done])

    plan = flow.plan
    found = {name: next(i for i, n in enumerate(plan.nodes) if n.name == name) for name in ("charge", "again")}
    assert f"n{found['charge']} --> n{found['again']}" in mermaid(plan)


def test_names_are_escaped() -> None:
    """Quotes and marks that Mermaid would read are written as entities."""
    flow = Flow("x", input=str).then(charge, name='say "<hi>"').then(ship).then(ship).build()
    assert 'n2["say #quot;#lt;hi#gt;#quot;"]' in mermaid(flow.plan)
    assert 'n4["ship#35;2"]' in mermaid(flow.plan)


def test_stored_plan_is_enough() -> None:
    """A client without workflow code draws the same."""
    stored = Plan.from_bytes(everything.plan.to_bytes())
    assert (text(stored), mermaid(stored)) == (everything.draw(), everything.mermaid())


def test_empty_plan() -> None:
    """A root alone is its name."""
    plan = Plan(PlanData(1, "alone", (PlanNode("root", "alone", -1),), ""))
    assert (text(plan), mermaid(plan)) == ("alone", "flowchart TD")


@pytest.mark.parametrize(
    ("us", "shown"),
    [
        (0, "0us"),
        (1, "1us"),
        (1_500, "1500us"),
        (2_000, "2ms"),
        (90_000_000, "90s"),
        (120_000_000, "2m"),
        (3_600_000_000, "1h"),
        (86_400_000_000, "1d"),
        (90_000_000_000, "25h"),
    ],
)
def test_span(us: int, shown: str) -> None:
    """A span is shown in the largest unit it is whole in, so that nothing is rounded away."""
    assert span(us) == shown
