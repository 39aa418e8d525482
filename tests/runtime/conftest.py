"""Every kind of runner and store, each with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepwell import CheckpointingRunner, InMemoryBackend, InProcessRunner, SqliteBackend
from stepwell.testing import VirtualClock

Make = Callable[..., Any]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A store of each kind."""
    made = InMemoryBackend() if request.param == "memory" else SqliteBackend(tmp_path / "runs.db")
    yield made
    made.close()


@pytest.fixture
def open_runner(clock: VirtualClock) -> Iterator[Make]:
    """Make runners over a store; they are closed after the test."""
    with ExitStack() as stack:
        yield lambda backend, **options: stack.enter_context(
            CheckpointingRunner(backend, **{"clock": clock, **options})
        )


@pytest.fixture
def runner(backend: Any, open_runner: Make) -> Any:
    """A runner over a store of each kind."""
    return open_runner(backend)


@pytest.fixture(params=["passed", "isolated", "memory", "sqlite"])
def any_runner(request: pytest.FixtureRequest, tmp_path: Path, clock: VirtualClock) -> Iterator[Make]:
    """A function that makes a sync runner of each kind."""
    with ExitStack() as stack:

        def make(**options: Any) -> Any:
            options = {"clock": clock, **options}
            if request.param in ("passed", "isolated"):
                return stack.enter_context(InProcessRunner(isolate=request.param == "isolated", **options))
            store = InMemoryBackend() if request.param == "memory" else SqliteBackend(tmp_path / "any.db")
            stack.callback(store.close)
            return stack.enter_context(CheckpointingRunner(store, **options))

        yield make
