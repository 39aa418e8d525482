"""What a task or workflow declares is held to, before anything wrong is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from stepwell import (
    Again,
    CheckpointingRunner,
    Done,
    GraphError,
    InMemoryBackend,
    InProcessRunner,
    OptionError,
    SqliteBackend,
    UsageError,
    WorkflowFailed,
    loop,
    task,
    workflow,
)


@dataclass
class Point:
    x: int
    y: int = 0


ran: list[str] = []


@task(attempts=3)
def lies(value: Any) -> int:
    ran.append("lies")
    return value  # type: ignore[no-any-return]


@task
def lists(value: Any) -> list[Point]:
    return [value]


@task
def takes(n: int) -> int:
    return n


@task
def turns(value: Any) -> Again[int] | Done[str]:
    return Done(value)


@task
def point(x: int) -> Point:
    return Point(x)


@workflow
def lying(value: Any) -> int:
    return takes(lies(value))


@workflow
def listing(value: Any) -> list[Point]:
    return lists(value)


@workflow
def turning(value: Any) -> str:
    return loop(turns, value)


@pytest.fixture
def runner() -> CheckpointingRunner:
    ran.clear()
    return CheckpointingRunner(InMemoryBackend())


def test_a_result_that_is_not_what_the_task_declares_fails_the_step_once(runner: CheckpointingRunner) -> None:
    """Its consumer could not read it; nothing is held, and no attempt would mend it."""
    with pytest.raises(WorkflowFailed, match=r"the result of 'lies' at lies cannot be stored: expected int, found str"):
        runner.run(lying, "no")
    assert ran == ["lies"]
    assert runner.run(lying, 3) == 3


def test_a_part_of_a_result_is_held_to_its_type_too(runner: CheckpointingRunner) -> None:
    """The message leads to the field."""
    with pytest.raises(WorkflowFailed, match=r"expected int, found str \(at \[0\]\.y\)"):
        runner.run(listing, Point(1, "2"))  # type: ignore[arg-type]
    assert runner.run(listing, Point(1)) == [Point(1)]


def test_what_a_loop_ends_with_is_held_to_its_type(runner: CheckpointingRunner) -> None:
    """The value inside Done counts."""
    with pytest.raises(WorkflowFailed, match="expected str, found int"):
        runner.run(turning, 3)
    assert runner.run(turning, "x") == "x"


def test_a_forgotten_return_is_found_when_the_workflow_is_built() -> None:
    """And so is a result of another class."""
    with pytest.raises(GraphError, match="declares to return int, but it returns None; is a `return` missing"):

        @workflow
        def forgets(n: int) -> int:  # type: ignore[empty-body]
            takes(n)

    with pytest.raises(GraphError, match="declares to return str, but it returns int"):

        @workflow
        def mistakes(n: int) -> str:
            return takes(n)  # type: ignore[return-value]


def test_a_misspelt_field_is_found_when_the_workflow_is_built() -> None:
    """Where the type lists its fields; properties and methods of a class stay selectable."""
    with pytest.raises(GraphError, match=r"nothing is called \.z there: 'point' is declared as Point"):

        @workflow
        def misspells(n: int) -> int:
            return takes(point(n).z)  # type: ignore[attr-defined]


def test_a_refusal_cannot_be_hidden_in_the_workflow() -> None:
    """Its own `except` does not turn a wrong graph into another one."""
    with pytest.raises(GraphError, match="made text"):

        @workflow
        def hides(n: int) -> int:
            try:
                return takes(int(f"{n}"))
            except Exception:  # noqa: BLE001  # hiding it is the point
                return takes(n)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "4"])
def test_a_number_of_threads_is_checked(threads: Any) -> None:
    """With none, a fork would wait for ever."""
    with pytest.raises(OptionError, match="threads must be a whole number from 1"):
        InProcessRunner(threads=threads)


def test_tasks_and_functions_run_without_a_workflow_around_them(runner: CheckpointingRunner) -> None:
    """They are workflows of one step, under their own name; a lambda has none."""

    def plain(n: int) -> int:
        return n + 1

    assert runner.run(takes, 3, instance_id="t") == 3
    assert runner.client.status("t").workflow == "takes"
    assert InProcessRunner().run(plain, 3) == 4
    with pytest.raises(UsageError, match="no name of its own"):
        InProcessRunner().run(lambda n: n, 3)
    with pytest.raises(UsageError, match="not a str"):
        InProcessRunner().run("takes", 3)  # type: ignore[call-overload]


def test_a_backend_closes_with_its_block(tmp_path: Any) -> None:
    """As files do."""
    with SqliteBackend(tmp_path / "runs.db") as backend, CheckpointingRunner(backend) as held:
        assert held.run(takes, 3) == 3
    with pytest.raises(UsageError, match="closed"):
        backend.header("x")
