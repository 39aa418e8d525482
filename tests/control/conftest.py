"""Worlds for the client's tests, on every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .client_worlds import World


@pytest.fixture
def world(kind: str, tmp_path: Path) -> Iterator[World]:
    """A store, a runner on it, and a client without the workflows' code."""
    with ExitStack() as stack:
        yield World(kind, tmp_path / "runs.db", stack)
