"""A process is killed at each statement of a user's transaction: the user's rows and the step land together or not.

The rows are looked at twice: as the dead process has left them, and in the end.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .banking import ALL_MONEY, CENTS, TRANSFERS
from .harness import KINDS, Processes, World, check_world

SETUP = (("banking.setup_accounts", ""),)
ORDER = "transfer parallel/a/transfer|parallel/b/shaky transfer#2"


def drift(left: dict[str, Any]) -> int:
    """Return by how much the money differs from what it was and from what the journal says was booked."""
    accounts = dict(left["account"])
    booked = Counter(path for path, _ in left["booking"])
    done = {path: n for i in left["instances"].values() for path, n in i["done"].items() if path in TRANSFERS}
    moved = accounts["bob"] - ALL_MONEY // 3
    return abs(sum(accounts.values()) - ALL_MONEY) + abs(moved - CENTS * booked.total()) + (booked != Counter(done))


def unequal(left: dict[str, Any]) -> int:
    """Say whether there is a purchase without its instance, the other way round, or half of either."""
    return drift(left) + (len(left["purchase"]) != 2 * len(left["instances"]))


WORLDS = (
    World(
        "transfers", "banking.transfers", ORDER, SETUP,
        found={"output": CENTS}, facts={"StepDone": 4, "AttemptFailed": 2}, left=drift,
    ),
    World("start in a user's transaction", "banking.place", "transfer", SETUP, facts={"RunStarted": 1}, left=unequal),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_killed_in_a_transaction(world: World, kind: str, processes: Processes) -> None:
    """The sum stays what it was, and each transfer is booked exactly as often as its step is done."""
    assert check_world(processes, world, kind) >= 1
