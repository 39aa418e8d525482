"""Every kind of runner and store, each with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stepwell import CheckpointingRunner, InProcessRunner
from stepwell.testing import VirtualClock

from ..stores import KINDS, open_store  # noqa: TID252 - the tests are not installed

Make = Callable[..., Any]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def backend(kind: str, tmp_path: Path) -> Iterator[Any]:
    """A store of each kind."""
    made = open_store(kind, tmp_path / "runs.db")
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


@pytest.fixture(params=["passed", "isolated", *KINDS])
def any_runner(request: pytest.FixtureRequest, tmp_path: Path, clock: VirtualClock) -> Iterator[Make]:
    """A function that makes a sync runner of each kind."""
    if request.param == "postgres":
        request.getfixturevalue("postgres_server")
    with ExitStack() as stack:

        def make(**options: Any) -> Any:
            options = {"clock": clock, **options}
            if request.param in ("passed", "isolated"):
                return stack.enter_context(InProcessRunner(isolate=request.param == "isolated", **options))
            store = open_store(request.param, tmp_path / "any.db")
            stack.callback(store.close)
            return stack.enter_context(CheckpointingRunner(store, **options))

        yield make
