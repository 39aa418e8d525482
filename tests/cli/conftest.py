"""A store in which an instance stands in every state, and how the command is called on it."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from stepwell import CheckpointingRunner, SqliteBackend, WorkflowClient
from stepwell.cli import main
from stepwell.cli.loading import load_module

from ..postgres import until  # noqa: TID252 - the tests are not installed

SHOP = Path(__file__).parent / "shop.py"
EVIL_ID = "evil\u202e\x9b31m-1"


class Said(NamedTuple):
    """What a command printed, and its exit code."""

    out: str
    err: str
    code: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """Calls ``stepwell`` in this process on one database."""

    def __init__(self, database: Any) -> None:
        self.database = database

    def __call__(self, *words: str, stdin: str | bytes | None = None, env: dict[str, str] | None = None) -> Said:
        settings = {"STEPWELL_DB": str(self.database), "COLUMNS": "100", "NO_COLOR": "1"} | (env or {})
        result = CliRunner().invoke(main, list(words), input=stdin, env=settings)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.stdout, result.stderr, result.exit_code)

    def shop(self, name: str) -> str:
        return f"{SHOP}:{name}"


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loading a workflow puts on the path goes with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)


@pytest.fixture(scope="session")
def worn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with an instance in every state."""
    path = tmp_path_factory.mktemp("worn") / "worn.db"
    kept = list(sys.path)
    shop: Any = load_module(str(SHOP))
    sys.path[:] = kept
    with closing(SqliteBackend(path)) as backend:
        with CheckpointingRunner(backend) as runner:
            _fill(runner, shop)
        _hold(backend, shop)
    del sys.modules["shop"]
    return path


def _fill(runner: CheckpointingRunner, shop: Any) -> None:
    client = runner.client
    labels = {"customer": "ann"}
    runner.start(shop.checkout, shop.Order("pens", 2), instance_id="waiting-1", labels=labels)
    until(lambda: runner.recover([shop.checkout], wait=False), "its delay is over")
    runner.start(shop.gate, shop.Order("cups"), instance_id="gate-1")
    runner.start(shop.gate, shop.Order("done"), instance_id="done-1", labels=labels)
    client.signal("done-1", "go", True)
    runner.recover([shop.gate])
    runner.start(shop.failing, "no such card", instance_id="failed-1")
    runner.start(shop.slow, "the bank", instance_id="backoff-1")
    runner.start(shop.gate, shop.Order("x"), instance_id="paused-1")
    client.pause("paused-1", reason="stock-taking", by="ann")
    runner.start(shop.gate, shop.Order("y"), instance_id="cancelled-1")
    client.cancel("cancelled-1", reason="withdrawn", by="bob")
    client.start(shop.wide, 1, instance_id="wide-1")
    for name in ("pending-1", "pending-2"):
        client.start(shop.gate, shop.Order("ink"), instance_id=name)


def _hold(backend: SqliteBackend, shop: Any) -> None:
    with CheckpointingRunner(backend) as dying, pytest.raises(KeyboardInterrupt):
        dying.run(shop.pay, 100, instance_id="held-1")
    with CheckpointingRunner(backend) as runner:
        runner.recover([shop.pay])


@pytest.fixture
def stepwell(worn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command on a copy of the worn database, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(worn, tmp_path / "orders.db")
    return Command(tmp_path / "orders.db")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command on a database that is not there yet."""
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path / "new.db")


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command on a database whose texts try to command the terminal."""
    monkeypatch.chdir(tmp_path)
    shop: Any = load_module(str(SHOP))
    with closing(SqliteBackend(tmp_path / "evil.db")) as backend, CheckpointingRunner(backend) as runner:
        runner.start(shop.failing, "", instance_id=EVIL_ID, labels={EVIL_ID: EVIL_ID})
        runner.start(shop.gate, shop.Order(shop.EVIL), instance_id="values-1")
        runner.client.cancel("values-1", reason=shop.EVIL, by=shop.EVIL)
        runner.start(shop.gate, shop.Order("a"), instance_id="paused-1")
        WorkflowClient(backend).pause("paused-1", reason=shop.EVIL, by=shop.EVIL)
    return Command(tmp_path / "evil.db")


@pytest.fixture(autouse=True)
def time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that most tests look at may be minutes old when one of them comes to its turn."""
    from stepwell.cli import checks

    monkeypatch.setattr(checks, "LATE_US", 10**15)
