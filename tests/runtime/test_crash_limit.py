"""A step that kills its process is found and stopped, and what merely ran beside it is not."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stepwell import InstanceHeld, Rerun, WorkflowClient

from ..stores import open_store, url_of  # noqa: TID252 - the tests are not installed

CHILD = """
import os, sys, threading
from stepwell import CheckpointingRunner, Flow, task
from stepwell.backend.urls import open_backend

ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@task
def poison(name: str) -> str:
    os.write(ledger, f"{name}\\n".encode())
    if not os.path.exists(sys.argv[2] + ".cure"):
        os._exit(9)
    return name

@task
def innocent(name: str) -> str:
    os.write(ledger, f"{name}\\n".encode())
    threading.Event().wait(0.2)  # long enough to be cut off by whoever kills this process at once
    return name

bad, good = Flow("bad").then(poison).build(), Flow("good").then(innocent).build()
with open_backend(sys.argv[1]) as backend, CheckpointingRunner(backend) as runner:
    if sys.argv[3] == "start":
        runner.client.start_many(good, ["a", "b", "c"], instance_ids=["a", "b", "c"])
        runner.client.start(bad, "poison", instance_id="poison")
    for status in runner.recover([bad, good]):
        print(status)
"""


class Lives:
    """Runs the same script again and again, each time in a new process."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self.kind, self.path = kind, tmp_path / "s.db"
        self.ledger, self.script = tmp_path / "ledger", tmp_path / "lives.py"
        self.script.write_text(CHILD)
        self.count = 0

    def live(self) -> int:
        how = "start" if not self.count else "go on"
        command = [sys.executable, str(self.script), url_of(self.kind, self.path), str(self.ledger), how]
        self.count += 1
        return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode

    def store(self) -> Any:
        return open_store(self.kind, self.path)

    def starts(self) -> Counter[str]:
        return Counter(self.ledger.read_text().split())


@pytest.fixture
def lives(kind: str, tmp_path: Path) -> Lives:
    return Lives(kind, tmp_path)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"], indirect=True)
def test_the_culprit_is_quarantined_and_nobody_else(lives: Lives) -> None:
    """Two losses make everything suspect, five counted ones the culprit; the innocents end once they are tried."""
    codes = []
    while not codes or codes[-1]:
        codes.append(lives.live())
        assert len(codes) < 12, codes
    assert codes == [9] * 7 + [0]
    with lives.store() as backend, WorkflowClient(backend) as client:
        assert {each.instance_id: each.state for each in client.list()} == {
            "a": "completed", "b": "completed", "c": "completed", "poison": "held",
        }  # fmt: skip
        with pytest.raises(InstanceHeld, match="5") as held:
            client.result("poison")
        assert held.value.reason == "quarantined"
        assert client.stuck() == []
        assert [attempt.number for attempt in client.attempts("poison")] == [1, 2, 3, 4, 5]
    starts = lives.starts()
    assert starts["poison"] == 7
    assert all(starts[name] <= 3 for name in "abc"), starts


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_decision_ends_the_quarantine(lives: Lives) -> None:
    """Once the fault is mended, ``Rerun`` gives the step a fresh count and it completes."""
    while lives.live():
        assert lives.count < 12
    Path(f"{lives.ledger}.cure").touch()
    with lives.store() as backend, WorkflowClient(backend) as client:
        client.decide("poison", "poison", Rerun(), by="ann")
    assert lives.live() == 0
    with lives.store() as backend, WorkflowClient(backend) as client:
        assert client.result("poison") == "poison"
