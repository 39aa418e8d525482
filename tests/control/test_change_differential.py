"""Random graphs, cut at every commit, edited at random and gone on with: what the new tree reads aloud comes of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell import BackendError, CheckpointingRunner, InstanceHeld
from stepwell.errors import GraphError
from stepwell.flow import nodes as n
from stepwell.runtime.client import WorkflowClient
from stepwell.testing.faults import Fault, FaultyBackend

from ..differential.test_differential import Impatient, given_to  # noqa: TID252 - the tests are not installed
from ..differential.worlds import (  # noqa: TID252 - the tests are not installed
    INPUT,
    WAITS_MAX,
    Ledger,
    RealOracle,
    decider,
    grow,
    inline,
    opener,
    plain,
)
from ..engine import edits  # noqa: TID252 - the tests are not installed
from ..engine.graphs import Seeded, workflow  # noqa: TID252 - the tests are not installed
from ..stores import open_store  # noqa: TID252 - the tests are not installed

REAL = (plain, inline, decider, opener)
#: a renamed step's value is made of its name, so the tree does not say what it has given; tuning is no edit of a graph
LEFT_OUT = (edits.tune, edits.rename, edits.rename_with_was)
EDITS = [edit for edit in edits.EDITS if edit not in LEFT_OUT]


def edited(given: Any, choose: Seeded) -> Any:
    """Return another workflow whose tasks really run, ``None`` where that cannot be."""
    copied = edits._Copier().body(given.body)
    if not choose.pick(EDITS)(tree := edits.tree_of(copied), choose) or not copied.nodes:
        return None
    for node in edits.tree_of(copied).nodes:
        if isinstance(node, n.TaskNode) and node.task not in REAL:
            node.task = decider if node.task.name == "decider" else plain
    first, children = copied.nodes[0], [node for node in tree.nodes if isinstance(node, n.ChildNode)]
    if first.name != "opener" or getattr(first, "args", ()) or not all(child.workflow.body.nodes for child in children):
        return None
    try:
        made = workflow(copied, given.name, given.has_input)
        return made if made.plan else None
    except GraphError:
        return None


class Cut:
    """One run of a random graph that is cut at a commit, and goes on with what an author made of the graph."""

    def __init__(self, store: Any, seed: int, nth: int, when: Any) -> None:
        choose = Seeded(seed)
        self.store, self.clock, self.ledger = store, Impatient(), Ledger()
        self.old = grow(choose, 14, (plain, inline))
        self.new = edited(self.old, choose)
        self.fault, self.id = Fault(when, "commit", nth), f"{seed} {when} {nth}"

    def call(self, made: Any, faults: list[Fault]) -> Any:
        def strike() -> None:
            raise BackendError("cut here")

        backend = FaultyBackend(self.store, faults, strike)
        with CheckpointingRunner(backend, clock=self.clock, deps={Ledger: self.ledger}, threads=4) as runner:
            self.ledger.client = runner.client
            return runner.run(made, *given_to(made), instance_id=self.id)

    def finished(self) -> set[tuple[str, tuple[int, ...]]]:
        with WorkflowClient(self.store, clock=self.clock) as client:
            paths = [each.path for each in client.attempts(self.id) if each.outcome == "succeeded"]
        return {(path.rpartition("/")[2], tuple(map(int, re.findall(r"\[(\d+)\]", path)))) for path in paths}

    def runs(self) -> Counter[tuple[str, tuple[int, ...]]]:
        made: Counter[tuple[str, tuple[int, ...]]] = Counter()
        for (name, turns, *_), count in self.ledger.calls.items():
            made[name, turns] += count
        return made

    def said(self) -> bool:
        with WorkflowClient(self.store, clock=self.clock) as client:
            previews = {each.instance_id: each.moves for each in client.preview_change(self.new)}
        return previews.get(self.id, True)

    def go_on(self) -> str:
        """Go on with the new code, or where that is held with the old one, and compare with the tree."""
        done, before, moves = self.finished(), self.runs(), self.said()
        made, kind = self.new, "moved"
        try:
            output = self.call(self.new, [])
        except InstanceHeld:
            made, kind, output = self.old, "held", self.call(self.old, [])
        assert moves == (kind == "moved")
        after = self.runs()
        assert {key: after[key] for key in done} == {key: before[key] for key in done}, "a finished step ran again"
        oracle = RealOracle("message")
        wanted = oracle.run(made, INPUT)
        if kind == "moved" and any(max(turns, default=1) > 1 for _, turns in before):
            return "moved in a later turn"  # earlier ones ran as the old tree read
        assert output == wanted
        assert {key[:2] for key in oracle.done} <= after.keys()
        return kind


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Iterator[Any]:
    made = open_store(kind, tmp_path / "c.db", durability="fast")
    yield made
    made.close()


@pytest.fixture(scope="module")
def account() -> Iterator[Counter[str]]:
    """What was compared, printed at the end."""
    made: Counter[str] = Counter()
    yield made
    print("\nchanged while running:", dict(made))  # noqa: T201 - the account is shown with -s


@pytest.mark.parametrize("block", range(4))
def test_a_cut_run_ends_as_the_edited_tree_says(store: Any, account: Counter[str], block: int) -> None:
    """Cut before and after each commit. What is held ends as the old tree says; no finished step runs again."""
    told: Counter[str] = Counter()
    for seed in range(block * 12, block * 12 + 12):
        waits = RealOracle("message")
        probe = Cut(store, seed, 10_000, "before")
        waits.run(probe.old, INPUT)
        if probe.new is None or probe.new.fingerprint == probe.old.fingerprint or waits.waits.total() > WAITS_MAX:
            continue
        for when in ("before", "after"):
            for nth in range(1, 40):
                cut = Cut(store, seed, nth, when)
                cut.ledger.prepare(None, waits.waits, breaking=False)
                try:
                    cut.call(cut.old, [cut.fault])
                    break
                except BackendError:
                    header = store.header(cut.id)
                    told["ended" if header.state == "completed" else cut.go_on()] += 1
    account.update(told)
    assert told["moved"] > 5
    assert told["held"] > 5
