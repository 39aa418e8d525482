"""Random workflows whose tasks really run, and what they must come to.

The trees are those of the engine's tests, grown with sources that real values can follow. A task's value is made of its
name, its turns and its arguments, so two runs agree only if the same steps were given the same things.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from stepwell import Again, Done, Retry, inject, task, task_context
from stepwell.flow import nodes as n
from stepwell.flow.plan import Turns
from stepwell.flow.task import AnyTask
from stepwell.flow.workflow import Workflow

from ..engine.graphs import Chooser, Drawn, _Grower, workflow  # noqa: TID252 - the tests are not installed
from ..engine.hands import says  # noqa: TID252 - the tests are not installed
from ..engine.oracle import Oracle  # noqa: TID252 - the tests are not installed

INPUT = ["input", {"part": 0, "key1": "x", "key2": "y", "key3": "z"}]
WAITS_MAX = 40


class Broken(Exception):
    pass


class Ledger:
    """What the tasks of one run did: ``calls`` counts (name, turns, attempt, arguments)."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, Turns, int, str]] = Counter()
        self.client: Any = None
        self.waits: Counter[str] = Counter()
        self.breaking = False

    def prepare(self, client: Any, waits: Counter[str], breaking: bool) -> None:
        self.calls = Counter()
        self.client, self.waits, self.breaking = client, waits, breaking


# --- what tasks compute ----------------------------------------------------------------------------------


def value_of(name: str, turns: Turns, args: Sequence[object], kwargs: dict[str, object]) -> Any:
    """Return a step's value, of a shape that goes by its name; all of them can be selected from in the same way."""
    text = hashlib.blake2b(repr((name, turns, args, sorted(kwargs.items()))).encode(), digest_size=6).hexdigest()
    number = zlib.crc32(text.encode())
    parts = {"part": Decimal(number) / 8, "key1": "x", "key2": "xy"[number % 2], "key3": "xyz"[number % 3]}
    shapes: tuple[Any, ...] = (
        [text, parts],
        (text, parts),
        (text.encode(), parts, {number}),
        [2**70 + number, parts, (1, [text])],
    )
    return shapes[zlib.crc32(name.encode()) % len(shapes)]


def failures(name: str, turns: Turns) -> int:
    """Return how many attempts of a retried step fail."""
    return zlib.crc32(repr((name, turns)).encode()) % 3


def breaks(name: str, turns: Turns) -> bool:
    """Say whether a step never succeeds, in a world where some do not."""
    return zlib.crc32(repr(("break", name, turns)).encode()) % 6 == 0


def where() -> tuple[str, Turns]:
    path = task_context().path
    return path.rpartition("/")[2], tuple(int(turn) for turn in re.findall(r"\[(\d+)\]", path))


def work(ledger: Ledger, args: tuple[Any, ...], kwargs: dict[str, Any], *, retried: bool = False) -> Any:
    name, turns = where()
    attempt = task_context().attempt
    ledger.calls[(name, turns, attempt, repr((args, sorted(kwargs.items()))))] += 1
    if retried and attempt <= failures(name, turns):
        raise OSError("not this time")
    if ledger.breaking and breaks(name, turns):
        raise Broken(name)
    return value_of(name, turns, args, kwargs)


@task
def plain(*args: Any, ledger: Ledger = inject(), **kwargs: Any):  # type: ignore[no-untyped-def]
    return work(ledger, args, kwargs)


@task(run_in="inline")
def inline(*args: Any, ledger: Ledger = inject(), **kwargs: Any):  # type: ignore[no-untyped-def]
    return work(ledger, args, kwargs)


@task
async def later(*args: Any, ledger: Ledger = inject(), **kwargs: Any):  # type: ignore[no-untyped-def]
    return work(ledger, args, kwargs)


@task(timeout="1h")
def bounded(*args: Any, ledger: Ledger = inject(), **kwargs: Any):  # type: ignore[no-untyped-def]
    return work(ledger, args, kwargs)


@task(retry=Retry(attempts=3, delay="1s", unless=(Broken,)))
def retried(*args: Any, ledger: Ledger = inject(), **kwargs: Any):  # type: ignore[no-untyped-def]
    return work(ledger, args, kwargs, retried=True)


@task(retry=Retry(attempts=3, delay=0, unless=(Broken,)))
async def retried_later(*args: Any, ledger: Ledger = inject(), **kwargs: Any):  # type: ignore[no-untyped-def]
    return work(ledger, args, kwargs, retried=True)


@task(delivery="at_most_once")
def once(*args: Any, ledger: Ledger = inject(), **kwargs: Any):  # type: ignore[no-untyped-def]
    return work(ledger, args, kwargs)


@task
def decider(*args: Any, ledger: Ledger = inject()):  # type: ignore[no-untyped-def]
    made = work(ledger, args, {})
    return Again(made) if says(*where()) == "again" else Done(made)


@task
def opener(*, ledger: Ledger = inject()):  # type: ignore[no-untyped-def]
    """Send every message that the run will wait for."""
    for name, count in ledger.waits.items():
        for number in range(count):
            ledger.client.signal(
                task_context().instance_id, name, value_of(name, (), (), {}), signal_id=f"{name} {number}"
            )
    return work(ledger, (), {})


# --- growing ---------------------------------------------------------------------------------------------------


class _RealGrower(_Grower):
    """Selects only from what can be selected from, and routes by keys that have a case."""

    def __init__(self, choose: Chooser, size: int, tasks: Sequence[AnyTask]) -> None:
        super().__init__(choose, size, failing=False)
        self.tasks = tasks

    def selectable(self, seen: Sequence[n.Source]) -> list[n.Source]:
        return [
            s for s in seen if isinstance(s, n.Value) and isinstance(s.node, n.TaskNode) and s.node.task is not decider
        ]

    def source(self, seen: Sequence[n.Source], nest: int = 1) -> n.Source:
        shape = self.choose.pick(("seen", "seen", "seen", "const", "select", "display"))
        if shape == "select" and (whole := self.selectable(seen)):
            return n.Select(self.choose.pick(whole), (("item", 1), ("item", "part")))
        if shape == "display" and nest and seen:
            items = tuple(self.source(seen, nest - 1) for _ in range(self.choose.number(1, 2)))
            kind = self.choose.pick(("list", "tuple", "dict"))
            return n.Display(kind, items, tuple(f"k{i}" for i in range(len(items))) if kind == "dict" else ())
        return self.choose.pick(seen) if shape == "seen" and seen else n.Const(self.choose.number(0, 9))

    def task(self, known: Sequence[n.Source], depth: int) -> n.TaskNode:
        made = super().task(known, depth)
        made.task = self.choose.pick(self.tasks)
        return made

    def route(self, known: Sequence[n.Source], depth: int) -> Any:
        if not (whole := self.selectable(known)):
            return self.task(known, depth)
        made = super().route(known, depth)
        field = "key3" if made.default else f"key{len(made.cases)}"
        made.key = n.Select(self.choose.pick(whole), (("item", 1), ("item", field)))
        return made

    def decider(self, known: Sequence[n.Source], depth: int) -> n.Node:
        whole = self.selectable(known)
        if depth <= 0 or self.choose.number(0, 2) or not whole:
            return n.TaskNode(self.name("again"), decider, (self.source(known),), {})
        cases = [(key, self.deciding_case(known, depth)) for key in ("x", "y")]
        key = n.Select(self.choose.pick(whole), (("item", 1), ("item", "key2")))
        return n.RouteNode(self.name("r"), key, "key", cases)


ALL = (plain, later, inline, retried, bounded, retried_later, once)
REPEATABLE = ALL[:-1]


def grow(choose: Chooser, size: int, tasks: Sequence[AnyTask]) -> Workflow[Any, Any]:
    """Return a random workflow that begins with the opener."""
    grower = _RealGrower(choose, choose.number(2, size), tasks)
    opening = n.TaskNode("opener", opener, (), {})
    body = n.Body([opening])
    has_input = bool(choose.number(0, 1))
    known: list[n.Source] = [n.Value(opening), *([n.Input(body)] if has_input else [])]
    grower.fill(body, known, depth=3, least=2)
    body.output = grower.source(known)
    return workflow(body, has_input=has_input)


@st.composite
def worlds(draw: Any, size: int = 12, tasks: Sequence[AnyTask] = ALL) -> Workflow[Any, Any]:
    """Random workflows for Hypothesis."""
    return grow(Drawn(draw), size, tasks)


# --- what they must come to ----------------------------------------------------------------------------------------


class RealOracle(Oracle):
    """Executes the tree directly. ``done`` counts the calls a run must make, ``waits`` the messages it takes."""

    def __init__(self, late: str) -> None:
        super().__init__(late)
        self.done: Counter[tuple[str, Turns, int, str]] = Counter()
        self.waits: Counter[str] = Counter()
        self.broken: set[str] = set()

    def value(self, source: n.Source | None) -> Any:
        match source:
            case n.Select(base, steps):
                found = self.value(base)
                for _, key in steps:
                    found = found[key]
                return found
            case n.Display("dict", items, keys):
                return dict(zip(keys, map(self.value, items), strict=True))
            case n.Display(kind, items):
                return {"list": list, "tuple": tuple}[kind](map(self.value, items))
            case _:
                return super().value(source)

    def TaskNode(self, node: n.TaskNode, turns: Turns) -> object:
        args = tuple(self.value(arg) for arg in node.args)
        kwargs = {key: self.value(arg) for key, arg in node.kwargs.items()}
        tries = failures(node.name, turns) + 1 if node.task in (retried, retried_later) else 1
        for attempt in range(1, tries + 1):
            self.done[(node.name, turns, attempt, repr((args, sorted(kwargs.items()))))] += 1
        if breaks(node.name, turns):
            self.broken.add(node.name)
        made = value_of(node.name, turns, args, kwargs)
        if node.task is not decider:
            return made
        return Again(made) if says(node.name, turns) == "again" else Done(made)

    def RouteNode(self, node: n.RouteNode, turns: Turns) -> object:
        cases = dict(node.cases)
        return self.body(cases.get(self.value(node.key), node.default), turns)  # type: ignore[arg-type]

    def LoopNode(self, node: n.LoopNode, turns: Turns) -> object:
        value = self.value(node.first)
        for turn in range(1, node.max_iterations + 1):
            self.known[id(node.body)] = value
            said: Any = self.body(node.body, (*turns, turn))
            value = said.value
            if type(said) is Done:
                break
        return value

    def SignalNode(self, node: n.SignalNode, turns: Turns) -> object:
        if node.on_timeout is not None and self.late == "timeout":
            return self.body(node.on_timeout, turns)
        self.waits[node.signal] += 1
        return value_of(node.signal, (), (), {})
