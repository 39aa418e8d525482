"""Whoever asks something of an instance is killed at each place in turn, and so is a holder with requests in its inbox.

The one who asked repeats what they do not know to have arrived; what was asked has happened once all the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from .harness import KINDS, Processes, World, check_world

FAILED = (("requested.setup_failed", ""),)
WAITING = (("requested.setup_waiting", ""),)
CANCELLED = (("requested.setup_cancelled", ""),)
BUSY = (("requested.setup_busy", "ledger:1"),)
HELD = (("requested.setup_charging", "ledger:3"), ("requested.setup_held", ""))
MANY = (("requested.setup_many", ""),)
SNAPSHOT = (("requested.setup_snapshot", ""),)
END = {"i": "completed"}


def all_or_none(left: dict[str, Any]) -> int:
    return len(left["instances"]) not in (0, 3)


def whole_or_gone(left: dict[str, Any]) -> int:
    broken = sum(not instance["whole"] for instance in left["instances"].values())
    return broken + left["orphans"] + ("i" not in left["instances"])


WORLDS = (
    World(
        "retry of a failed run", "requested.retry", "first fragile last", FAILED,
        done="first", facts={"RunReopened": 1},
    ),
    World(
        "retry of a cancelled run", "requested.retry", "first last", CANCELLED,
        done="first", facts={"RunReopened": 1, "MessageTaken": 1},
    ),
    World("decide rerun", "requested.rerun", "first charge last", HELD, done="first"),
    World(
        "decide complete", "requested.complete", "first charge last", HELD,
        done="first charge", once="charge", facts={"HoldDecided": 1},
    ),
    World(
        "decide fail", "requested.fail", "first charge", HELD,
        done="first charge", once="charge", ends={"i": "failed"}, facts={"HoldDecided": 1},
    ),
    World(
        "at most once", "requested.pay", "first charge last", again="requested.again_pay", once="charge",
        found={"output": 12}, facts={"StepBegan": 1},
    ),
    World(
        "cancel", "requested.cancel", "first", WAITING,
        done="first", ends={"i": "cancelled"}, facts={"CancelBegun": 1},
    ),
    World(
        "pause, signal, resume", "requested.pause_and_resume", "first last", WAITING,
        done="first", facts={"MessageTaken": 1},
    ),
    World(
        "pause of a held run", "requested.ask_pause", "asks last", again="requested.again_pause",
        late="last", found={"rested": "paused"},
    ),
    World(
        "cancel of a held run", "requested.ask_cancel", "asks", maybe="asks", ends={"i": "cancelled"},
        found={"rested": "cancelled"}, facts={"CancelBegun": 1},
    ),
    World("signal to a held run", "requested.ask_signal", "asks last", facts={"MessageTaken": 1, "MessageKept": 1}),
    World("terminate a waiting run", "requested.replace", "first last", WAITING, run=2),
    World("terminate a waiting run, by a client", "requested.replace_unheld", "first last", WAITING, run=2),
    World("terminate a run whose holder died", "requested.replace", "first last", BUSY, run=2),
    World(
        "terminate a run whose holder died, by a client", "requested.replace_unheld", "first last", BUSY, run=2
    ),
    World(
        "restart if failed", "requested.restart", "first fragile last", FAILED,
        done="first", found={"output": 6}, facts={"RunReopened": 1},
    ),
    World(
        "restart if failed, by a client", "requested.restart_unheld", "first fragile last", FAILED,
        done="first", facts={"RunReopened": 1},
    ),
    World("start", "requested.start_one", "first fragile last", facts={"RunStarted": 1}),
    World(
        "start many", "requested.start_many", "first fragile last",
        ends={"i": "completed", "j": "completed", "k": "completed"}, left=all_or_none,
    ),
    World(
        "delete and purge", "requested.remove", "first", MANY,
        done="first", ends={"i": "paused", "c": "completed"}, left=whole_or_gone,
    ),
    World(
        "restore", "requested.restore", "first last", SNAPSHOT,
        done="first", facts={"MessageTaken": 1, "RunStarted": 1},
    ),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_killed_while_asking(world: World, kind: str, processes: Processes) -> None:
    """It counts once, nothing that was over runs again, and nothing is lost, stuck or half there."""
    assert check_world(processes, world, kind) >= (1 if kind == "inside" else 0)
