"""Faults that are planted on purpose: if the suite did not find them, what it does not find would mean nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from .harness import Processes, places_of, tell
from .places import Files, Schemas
from .test_crash_changes import WORLDS as CHANGES
from .test_crash_requests import WORLDS as REQUESTS
from .test_crash_transactions import WORLDS as TRANSACTIONS

WORLDS = {world.name: world for world in (*REQUESTS, *CHANGES, *TRANSACTIONS)}
CASES = (
    ("file", "early", "restart if failed", "ledger:1", "starts although its outcome is stored"),
    ("file", "forgetful", "move of a waiting run", "after:write:1", "it is held"),
    ("postgres", "early", "restart if failed", "ledger:1", "starts although its outcome is stored"),
    ("postgres", "forgetful", "move of a waiting run", "after:write:1", "it is held"),
    ("postgres", "beside", "transfers", "inside:9", "'booking': \\[\\]"),
    ("postgres", "piecemeal", "terminate a waiting run", "inside:8", "no such instance"),
)


@pytest.fixture
def account(kind: str, processes: Processes, request: pytest.FixtureRequest) -> Iterator[Processes]:
    """An account of its own, so that what is found here is not held against the suite."""
    server: Server | None = request.getfixturevalue("postgres_server") if kind == "postgres" else None
    made = processes.beside(Schemas(server.dsn()) if server else Files())
    yield made
    made.close()
    shutil.rmtree(made.folder)  # what it has broken is not to be found again


@pytest.mark.parametrize(
    ("kind", "plant", "name", "first", "found"), CASES, ids=[f"{plant} on {kind}" for kind, plant, *_ in CASES]
)
def test_a_planted_fault_is_found(account: Processes, plant: str, name: str, first: str, found: str) -> None:
    """All is well without it. With it, at one place after the other, it comes to what must not be."""
    kind, _, place = first.rpartition(":")
    places = places_of(account, WORLDS[name])[kind]
    account.plant = plant

    def killed_at_each() -> None:
        for nth in range(int(place), places + 1):
            tell(account, WORLDS[name], f"{kind}:{nth}")

    with pytest.raises(AssertionError, match=found):
        killed_at_each()
