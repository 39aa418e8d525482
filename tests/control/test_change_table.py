"""What a restart with edited code does to an instance: states x edits, as :mod:`.change_cells` has it as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepwell.runtime.client import WorkflowClient
from stepwell.testing import VirtualClock

from ..stores import open_store  # noqa: TID252 - the tests are not installed
from .change_cells import STATES, Case, edits_of, expected

CELLS = 18 * 18 + 2


class Table:
    """A store that all cells of a row share; each has its own workflow."""

    def __init__(self, kind: str, path: Path, stack: ExitStack) -> None:
        self.store = open_store(kind, path, durability="fast")
        stack.callback(self.store.close)
        self.clock = VirtualClock()
        self.client = stack.enter_context(WorkflowClient(self.store, clock=self.clock))

    def case(self, state: str, edit: str) -> Case:
        case = Case(self.store, self.clock, self.client, state, edit)
        case.bring()
        return case


@pytest.fixture
def table(kind: str, tmp_path: Path) -> Iterator[Table]:
    with ExitStack() as stack:
        yield Table(kind, tmp_path / "runs.db", stack)


def restarted(table: Table, case: Case) -> str:
    """Restart with the edited code, and say what it did, having compared that with the preview."""
    before, journal = table.client.status(case.id), table.client.history(case.id)
    previews = table.client.preview_change(case.new)
    assert (table.client.status(case.id), table.client.history(case.id)) == (before, journal), "a preview wrote"
    after = case.start(case.new)
    if case.new.fingerprint == case.old.fingerprint:
        assert previews == []
        return "same"
    moved = [event for event in table.client.history(case.id) if event.kind == "moved"]
    assert len(moved) == (table.store.header(case.id).fingerprint == case.new.fingerprint)
    if before.finished:
        assert (previews, moved, after) == ([], [], before)
        return "left"
    (preview,) = previews
    assert (preview.instance_id, preview.run, preview.state) == (case.id, before.run, before.state)
    if moved or after.finished:
        assert preview.moves
        return "moves" if moved else "ends"
    assert after.state == "held"
    assert preview.path in preview.obstacle
    held = "it is held (changed)" in after.detail
    assert (preview.obstacle in after.detail) == held
    return f"{'held' if held else 'kept'} {preview.path}"


def ended_as_a_new_run(case: Case, graph: Any) -> None:
    """Bring it to its end: nothing finished runs again, an open step keeps its key, the output is a new run's."""
    done = [key for name, keys in case.code.runs.items() if name != "mid" for key in keys]
    output = case.finished(graph)
    keys = Counter(key for keys in case.code.runs.values() for key in keys)
    assert {keys[key] for key in done} <= {1}, case.id
    assert len(set(case.code.runs["mid"])) <= 1, case.id
    assert output == case.finished(graph, f"{case.id} anew"), case.id


@pytest.mark.parametrize("state", STATES)
def test_a_restart_does_what_the_table_says(table: Table, state: str) -> None:
    """One row: it moves, is held at the step that differs, or is left alone; what is held ends with the old code."""
    found: dict[str, str] = {}
    for edit in edits_of(state):
        case = table.case(state, edit)
        found[edit] = restarted(table, case)
        ended_as_a_new_run(case, case.new if found[edit] in ("moves", "same") else case.old)
    assert found == expected(state)


def test_the_table_is_whole() -> None:
    """Each state meets each edit that its graph allows."""
    assert sum(len(expected(state)) for state in STATES) == CELLS
    assert all(expected(state).keys() == edits_of(state).keys() for state in STATES)
