"""Every policy against every state an instance may be in, through every door, on each store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import pytest

from stepwell import (
    CheckpointingRunner,
    StepwellError,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Change, Header, Rest, Session
from stepwell.backend.liveness import this_process
from stepwell.codec import digest
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.frontier import to_image
from stepwell.runtime.client import WorkflowClient
from stepwell.runtime.live import Live, frontier_of
from stepwell.runtime.starting import start_of, start_unheld
from stepwell.runtime.stored import stored_plan
from stepwell.testing import VirtualClock

from ..stores import open_store  # noqa: TID252 - the tests are not installed
from . import conflict_table as table

ROOT = Path(__file__).parents[2]
INPUTS = {"same": 1, "other": 2}


class Waits(BaseException):
    """The call would wait now."""


class Impatient(VirtualClock):
    """Ends a call that would wait, so that ``run`` can be asked about an instance that waits."""

    def timeout_s(self, wait: object) -> NoReturn:
        raise Waits


class Dies(BaseException):
    """Stands for the death of a process, as far as an instance is concerned."""


class World:
    """A store with one runner, and workflows whose bodies note that they ran."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.runner = backend, CheckpointingRunner(backend, clock=Impatient())
        self.elsewhere: Session = backend.open_session(this_process(), 3_600_000_000)
        self.ran: list[str] = []
        self.dying: type[BaseException] | None = None
        self.numbers = count()
        self.same = self._workflow("world", "first")
        self.changed = self._workflow("world", "begin")
        self.foreign = self._workflow("foreign", "first")

    def _workflow(self, name: str, opening: str) -> Any:
        def opens(x: int) -> int:
            self.ran.append("first")
            return x

        opens.__name__ = opening
        first = task(opens)

        @task
        def second(x: int) -> int:
            self.ran.append("second")
            if self.dying is not None:
                raise self.dying
            return x

        @task
        def last(x: int, y: int) -> int:
            assert task_context().instance_id
            return x + y

        @workflow(name)
        def made(x: int) -> int:
            return last(second(first(x)), signal("go", int))

        return made

    # --- bringing an instance into a state ---

    def bring(self, instance_id: str, state: str) -> None:
        self.dying = {"failed": OSError, "running": Dies, "running elsewhere": Dies}.get(state)
        if state == "pending":
            self._unheld(self.same, 1, instance_id=instance_id)
        elif state != "none":
            with suppress(Dies):
                self.runner.start(self.same, 1, instance_id=instance_id)
            self._bring_on(instance_id, state)
        self.dying, self.ran = None, []

    def _bring_on(self, instance_id: str, state: str) -> None:
        match state:
            case "completed":
                self.runner.client.signal(instance_id, "go", 10)
                self.runner.resume(self.same, instance_id)
            case "cancelled":
                self.runner.client.cancel(instance_id)
            case "paused":
                self.runner.client.pause(instance_id)
            case "held":
                self._hold(instance_id)
            case "running elsewhere":
                self.backend.claim(self.elsewhere, instance_id)

    def _hold(self, instance_id: str) -> None:
        loaded, now = self.backend.load(instance_id), self.runner._room.clock.now_us()
        plan = stored_plan(self.runner._room, loaded.header)
        state = frontier_of(plan, loaded)
        entries = Live.rows(plan, state, [e.HoldAsked("undecodable", "a test holds it")], now)
        rest = Rest(state.status(now), to_image(state))
        assert self.backend.commit(None, [Change(loaded.header.instance, loaded.header.seq, entries, (), rest)]) == [
            "done"
        ]

    # --- the doors ---

    def call(self, door: str, cell: table.Cell, instance_id: str) -> str | None:
        """Start through a door; return the name of the error that it raised."""
        made = self.foreign if cell.workflow == "other" else self.changed if cell.graph == "other" else self.same
        doors: dict[str, Callable[..., object]] = {
            "run": self.runner.run,
            "start": self.runner.start,
            "client": WorkflowClient.over(self.runner._room).start,
            "unheld": self._unheld,
        }
        try:
            doors[door](
                made,
                INPUTS[cell.input],
                instance_id=instance_id,
                on_conflict=cell.policy,
                on_mismatch=cell.on_mismatch,
            )
        except StepwellError as error:
            return type(error).__name__
        except Waits:
            assert door == "run"
        return None

    def _unheld(self, made: Any, value: object, **options: Any) -> Header:
        room = self.runner._room
        (header,) = start_unheld(room, room.prepare(made), [start_of(value, options)])
        assert header == self.backend.header(header.instance_id)
        return header

    # --- one cell ---

    def check(self, door: str, cell: table.Cell) -> None:
        """Ask one cell of the table and compare all that is left behind."""
        instance_id = f"i{next(self.numbers)}"
        self.bring(instance_id, cell.state)
        old: Header | None = self.backend.header(instance_id)
        answer = table.expected(cell, door)
        assert self.call(door, cell, instance_id) == answer.error
        new: Header = self.backend.header(instance_id)
        assert answer.after is not None
        assert (new.state, new.seq, self.ran) == (answer.after.state, answer.after.entries, list(answer.after.ran))
        anew = answer.result in ("created", "replaced")
        assert new.run == (2 if answer.result == "replaced" else 1)
        assert new.input_digest == digest(self.backend.codec, INPUTS[cell.input] if anew else 1)
        assert new.workflow == ("foreign" if anew and cell.workflow == "other" else "world")
        self._check_holder(cell, new, anew)
        if answer.error in table.REFUSALS.values():
            assert new == old, "a refusal leaves the row as it was"
        if answer.result == "replaced":
            assert old is not None
            self._check_replaced(cell, old)

    def _check_holder(self, cell: table.Cell, new: Header, anew: bool) -> None:
        elsewhere = cell.state == "running elsewhere" and not anew
        assert new.session == (self.elsewhere.id if elsewhere else 0)
        if not elsewhere and new.ended_us is None and new.state not in ("waiting", "paused", "held"):
            assert new.due_us is not None, "somebody may claim it"
            assert new.due_us <= self.runner._room.clock.now_us(), "and may do so now"

    def _check_replaced(self, cell: table.Cell, old: Header) -> None:
        """The run of before has an end, and takes no entry any more."""
        entries = self.backend.history(old.instance, 0, 100)
        ends = [fact.state for entry in entries for fact in f.decode(entry.facts) if isinstance(fact, f.RunEnded)]
        assert ends == [cell.state if old.ended_us is not None else "cancelled"]
        late = Live.rows(self.same.plan, frontier_of(self.same.plan, _early(self.backend, old)), [e.PauseAsked()], 0)
        for session in (None, self.elsewhere):
            assert self.backend.commit(session, [Change(old.instance, len(entries), late)]) == ["conflict"]


def _early(backend: Any, header: Header) -> Any:
    """Return a run as it was after its first entry."""
    loaded = backend.load(header.instance_id)
    entries = backend.history(header.instance, 0, 1)
    return type(loaded)(header=_with_seq(header, 1), image=None, entries=entries, mail=())


def _with_seq(header: Header, seq: int) -> Header:
    from msgspec.structs import replace

    return replace(header, seq=seq)


@pytest.fixture
def world(kind: str, tmp_path: Path) -> Iterator[World]:
    backend = open_store(kind, tmp_path / "runs.db")
    made = World(backend)
    yield made
    made.runner.close()
    assert not backend.stuck(0)
    backend.close()


@pytest.mark.parametrize("policy", table.POLICIES)
@pytest.mark.parametrize("state", table.STATES)
@pytest.mark.parametrize("door", table.DOORS)
def test_the_table(world: World, door: str, state: str, policy: str) -> None:
    """For every workflow, graph, input and on_mismatch: the answer, what is stored, who holds it and what ran."""
    for cell in table.cells(policy, state):
        world.check(door, cell)


def test_the_table_is_complete() -> None:
    """Each policy meets each state and each thing a caller may bring, once."""
    asked = [cell for policy in table.POLICIES for state in table.STATES for cell in table.cells(policy, state)]
    assert len(set(asked)) == len(asked) == 4 * 10 * 3 * 2 * 2
    assert set(table.TABLE) == set(table.STATES) == {*table.BEFORE, "none"}


def test_the_page_is_current() -> None:
    """``python -m tests.control.conflict_table > docs/conflicts.md`` writes it anew."""
    assert (ROOT / "docs" / "conflicts.md").read_text(encoding="utf-8") == table.page()
