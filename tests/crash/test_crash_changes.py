"""A process with new code is killed at each place in turn while it moves an instance to its graph, or holds it."""

from __future__ import annotations

import pytest

from .harness import KINDS, Processes, World, check_world

WAITING = (("changed.setup_waiting", ""),)
BUSY = (("changed.setup_busy", "ledger:3"),)
FAILED = (("changed.setup_failed", ""),)
HELD = (("changed.setup_waiting", ""), ("changed.hold", ""))
MOVED_ONCE = {"RunMoved": 1, "RunHeld": 0, "MessageTaken": 1}
HELD_ONCE = {"RunMoved": 0, "RunHeld": 1, "HoldDecided": 1, "MessageTaken": 1}

WORLDS = (
    World(
        "move of a waiting run", "changed.move", "one two added last", WAITING,
        done="one two", found={"output": 109}, facts=MOVED_ONCE,
    ),
    World(
        "move by a client", "changed.move_by_client", "one two added last", WAITING,
        done="one two", found={"output": 109}, facts=MOVED_ONCE,
    ),
    World(
        "move of a run whose holder died", "changed.move", "one two added last", BUSY,
        done="one", found={"output": 109}, facts=MOVED_ONCE,
    ),
    World(
        "move and restart of a failed run", "changed.move_and_restart", "one two added last", FAILED,
        done="one", found={"output": 97}, facts={**MOVED_ONCE, "RunReopened": 1},
    ),
    World(
        "hold of what does not fit", "changed.hold", "one two last", WAITING, again="changed.again_hold",
        done="one two", late="last", found={"rested": "held", "output": 9}, facts=HELD_ONCE,
    ),
    World(
        "lift of such a hold", "changed.lift", "one two last", HELD,
        done="one two", found={"output": 9}, facts=HELD_ONCE,
    ),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_killed_while_moving(world: World, kind: str, processes: Processes) -> None:
    """It is moved or held once, and no finished step runs again under either graph."""
    assert check_world(processes, world, kind) >= (1 if kind == "inside" else 0)
