"""Workers as processes of their own on one SQLite file: killed, asked to stop, frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell import SqliteBackend, WorkflowClient

from .fleet_work import fan, slow, steps
from .test_worker import LIMIT_S, until

MODULE = Path(__file__).with_name("fleet_work.py")


class Fleet:
    """Worker processes on one file; each says in its output what it does."""

    def __init__(self, tmp_path: Path) -> None:
        self.file, self.ledger = tmp_path / "fleet.db", tmp_path / "ledger"
        self.ledger.touch()
        self.running: list[subprocess.Popen[str]] = []

    def worker(self, *options: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "FLEET_LEDGER": str(self.ledger)}
        command = [sys.executable, str(MODULE), str(self.file), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
        self.running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.ledger.read_text().splitlines()]

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    monkeypatch.setenv("FLEET_LEDGER", str(made.ledger))
    yield made
    made.close()


@pytest.fixture
def client(fleet: Fleet) -> Iterator[WorkflowClient]:
    with SqliteBackend(fleet.file, durability="fast") as backend, WorkflowClient(backend) as client:
        yield client


def test_work_and_branches_spread_over_processes(fleet: Fleet, client: WorkflowClient) -> None:
    """Three processes share many instances, and the branches of one wide fork."""
    for _ in range(3):
        fleet.worker()
    wide = client.start(fan, 1).instance_id
    ids = [each.instance_id for each in client.start_many(steps, list(range(60)))]
    assert [client.result(each, timeout=LIMIT_S) for each in ids] == [x + 2 for x in range(60)]
    assert len(client.result(wide, timeout=LIMIT_S)) == 24  # type: ignore[arg-type]
    branches = {pid for what, _, pid in fleet.lines() if what == "branch"}
    assert len(branches) > 1, "all branches ran in one process"
    assert client.stuck() == []


def test_a_killed_worker_s_work_goes_on_at_once(fleet: Fleet, client: WorkflowClient) -> None:
    """Its death can be proven on one machine, so nobody waits for its lease; only what ran runs again."""
    first = fleet.worker("--lease", "1h")
    ids = [client.start(slow, x).instance_id for x in range(4)]
    until(lambda: sum(what == "slow" for what, *_ in fleet.lines()) == 4)
    second = fleet.worker("--lease", "1h")
    first.kill()
    first.wait()
    Path(f"{fleet.ledger}.go").touch()
    assert [client.result(each, timeout=LIMIT_S) for each in ids] == [1, 2, 3, 4]
    starts = Counter((what, x) for what, x, _ in fleet.lines())
    assert all(starts[("slow", str(x))] == 2 and starts[("begin", str(x))] == 1 for x in range(4)), starts
    assert {pid for what, _, pid in fleet.lines() if what == "end"} == {str(second.pid)}


def test_sigterm_drains_and_a_second_one_leaves(fleet: Fleet, client: WorkflowClient) -> None:
    """After the first, what runs may end; after the second nothing is waited for. Both end in exit code 0."""
    first = fleet.worker()
    instance = client.start(slow, 1).instance_id
    until(lambda: any(what == "slow" for what, *_ in fleet.lines()))
    first.send_signal(signal.SIGTERM)
    Path(f"{fleet.ledger}.go").touch()
    assert first.wait(LIMIT_S) == 0
    assert sum(what == "slow" for what, *_ in fleet.lines()) == 1
    Path(f"{fleet.ledger}.go").unlink()
    with SqliteBackend(fleet.file) as backend:
        assert backend.header(instance).session == 0  # type: ignore[union-attr]

    other = client.start(slow, 7).instance_id
    second = fleet.worker()
    until(lambda: ["slow", "7", str(second.pid)] in fleet.lines())
    second.send_signal(signal.SIGTERM)
    second.send_signal(signal.SIGINT)
    assert second.wait(LIMIT_S) == 0
    Path(f"{fleet.ledger}.go").touch()
    fleet.worker()
    assert client.result(other, timeout=LIMIT_S) == 8
    assert client.result(instance, timeout=LIMIT_S) == 2


def test_a_frozen_worker_cannot_write_when_it_wakes(fleet: Fleet, client: WorkflowClient) -> None:
    """Frozen beyond its lease it loses what it held; thawed it goes on with a new session, under the same name too."""
    frozen = fleet.worker("--lease", "1s", "--name", "same")
    instance = client.start(slow, 1).instance_id
    until(lambda: any(what == "slow" for what, *_ in fleet.lines()))
    frozen.send_signal(signal.SIGSTOP)
    other = fleet.worker("--lease", "1s", "--name", "same")
    until(lambda: ["slow", "1", str(other.pid)] in fleet.lines())
    Path(f"{fleet.ledger}.go").touch()
    assert client.result(instance, timeout=LIMIT_S) == 2
    frozen.send_signal(signal.SIGCONT)
    before = client.history(instance)
    more = [client.start(slow, x).instance_id for x in range(10, 40)]
    assert [client.result(each, timeout=LIMIT_S) for each in more] == [x + 1 for x in range(10, 40)]
    assert client.history(instance) == before
    frozen.send_signal(signal.SIGTERM)
    assert frozen.wait(LIMIT_S) == 0
