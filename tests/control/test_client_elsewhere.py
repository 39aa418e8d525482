"""A client in another process, which has no workflow's code, over one store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepwell import WorkflowFailed

from ..stores import url_of  # noqa: TID252 - the tests are not installed
from . import client_elsewhere
from .client_worlds import ID, World

Call = tuple[str, list[Any], dict[str, Any]]


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A store that other processes can open, and a runner that works on it in this process."""
    if request.param == "postgres":
        request.getfixturevalue("postgres_server")
    with ExitStack() as stack:
        yield World(request.param, tmp_path / "runs.db", stack)


def elsewhere(world: World, *calls: Call) -> list[Any]:
    """Let another process make these calls, and return what it got."""
    lines = [json.dumps(call) for call in calls]
    done = subprocess.run(
        [sys.executable, client_elsewhere.__file__, url_of(world.kind, world.path), *lines],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_everything_can_be_seen_from_elsewhere(world: World) -> None:
    """State, reasons, history, attempts, results, and how many there are."""
    world.bring("in a fork")
    status, explained, history, attempts, count, stuck, none = elsewhere(
        world,
        ("status", [ID], {}),
        ("explain", [ID], {}),
        ("history", [ID], {}),
        ("attempts", [ID], {}),
        ("count", [], {"state": "unfinished", "workflow": "forking"}),
        ("stuck", [], {}),
        ("task_result", [ID, "plus"], {}),
    )
    assert "state='waiting'" in status
    assert explained == world.client.explain(ID).text
    assert history == [str(event) for event in world.client.history(ID)]
    assert len(attempts) == 1
    assert (count, stuck, none["error"]) == (1, [], "StepNotFinished")


def test_requests_and_signals_from_elsewhere_count(world: World) -> None:
    """What was asked there goes on here."""
    world.bring("at a signal")
    answers = elsewhere(
        world,
        ("pause", [ID], {"reason": "stock-taking", "by": "ann"}),
        ("signal", [ID, "answer", 5], {"signal_id": "one"}),
        ("resume", [ID], {"by": "ann"}),
        ("result", [ID], {"timeout": 0}),
    )
    assert answers[:3] == [None, None, None]
    assert answers[3]["error"] == "TimeoutError"
    world.recover()
    assert elsewhere(world, ("result", [ID], {}), ("task_result", [ID, "answer"], {})) == [6, 5]


def test_a_session_here_hears_of_what_is_asked_there(world: World) -> None:
    """It is pending there, and obeyed here."""
    with world.working() as future:
        _, status = elsewhere(world, ("signal", [ID, "answer", 5], {}), ("status", [ID], {}))
        assert "pending=('signal answer',)" in status
        world.flows.go.set()
        assert future.result(20) == 3


def test_a_hold_is_decided_elsewhere(world: World) -> None:
    """With a value, by the path that explain names."""
    world.bring("held at a step")
    wrong, right = elsewhere(
        world,
        ("decide", [ID, "", {"Rerun": None}], {}),
        ("decide", [ID, "charge", {"Complete": 41}], {"by": "ann"}),
    )
    assert "'charge'" in wrong["text"]
    assert right is None
    world.client.signal(ID, "answer", 1)
    assert world.runner.resume(world.flows.charging, ID) == 41


def test_a_failed_instance_is_retried_elsewhere(world: World) -> None:
    """It goes on from its failed step, in whichever process runs its workflow."""
    world.bring("failed")
    with pytest.raises(WorkflowFailed):
        world.client.result(ID)
    failed, retried, status = elsewhere(
        world, ("result", [ID], {}), ("retry", [ID], {"by": "ann"}), ("status", [ID], {})
    )
    assert (failed["error"], retried) == ("WorkflowFailed", None)
    assert "state='running'" in status
    world.flows.broken = False
    world.recover()
    assert world.state == "waiting"


def test_instances_are_moved_and_removed_elsewhere(world: World) -> None:
    """A snapshot, its restoring, a cancel, a delete and a purge."""
    world.bring("at a signal")
    (data,) = elsewhere(world, ("snapshot", [ID], {}))
    restored, _, _, purged, left = elsewhere(
        world,
        ("restore", [{"bytes": data}], {"instance_id": "copy"}),
        ("cancel", [ID], {}),
        ("delete", [ID], {}),
        ("purge", [], {"keep": 0}),
        ("list", [], {}),
    )
    assert "instance_id='copy'" in restored
    assert purged == 0
    assert len(left) == 1
    world.client.signal("copy", "answer", 5)
    world.runner.recover([world.flows.asking])
    assert world.client.result("copy") == 6
