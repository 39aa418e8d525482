"""Stores that several workers share, and workers that are stopped after their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepwell import InMemoryBackend, PooledWorker, PostgresBackend, SqliteBackend, WorkerHandle, WorkflowClient

Start = Callable[..., WorkerHandle]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: Any
    if request.param == "postgres":
        dsn, schema = request.getfixturevalue("postgres_place")
        made = PostgresBackend(dsn, schema=schema)
    else:
        made = InMemoryBackend() if request.param == "memory" else SqliteBackend(tmp_path / "f.db", durability="fast")
    yield made
    made.close()


@pytest.fixture
def client(backend: Any) -> Iterator[WorkflowClient]:
    with WorkflowClient(backend) as client:
        yield client


@pytest.fixture
def start(backend: Any) -> Iterator[Start]:
    """Start workers on the store; each is drained at the end and must end well."""
    with ExitStack() as stack:

        def started(*workflows: Any, **options: Any) -> WorkerHandle:
            handle = PooledWorker(backend, workflows, **{"poll": "20ms", **options}).start()
            stack.callback(handle.join, "30s")
            stack.callback(handle.shutdown)
            return handle

        yield started
