"""A server of its own for what ends servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from .harness import Account, Chaos
from .places import Place


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A server that tests may kill; it waits for the disk as in real life."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def account() -> Account:
    return Account()


@pytest.fixture
def begin(own_server: Server, account: Account, tmp_path: Path) -> Iterator[Callable[..., Chaos]]:
    """Make a store of a kind, with nobody at work on it yet."""
    with ExitStack() as stack:

        def make(kind: str = "postgres", **options: Any) -> Chaos:
            if kind == "sqlite":
                place, server = Place(kind, str(tmp_path / "chaos.db")), None
            else:
                place, server = Place(kind, own_server.dsn(), own_server.new_schema()), own_server
            made = Chaos(place, tmp_path, account, server, **options)
            stack.callback(made.close)
            return made

        yield make
