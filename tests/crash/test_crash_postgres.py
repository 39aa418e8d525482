"""All that is killed on a file is killed on PostgreSQL too, and in moments that only a server has.

Each story is a schema of its own. Which of its places a process dies at is known from one that lives: of each kind of
place in each world some are taken, beginning elsewhere in each world; STEPWELL_CRASH_ALL=1 takes them all. What the
network does to an answer on its way is tried in ``tests/chaos``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from . import scenario, test_crash_changes, test_crash_requests, test_crash_transactions
from .harness import SERVED, Processes, World, check_some, check_world, each
from .places import Schemas
from .test_crash_points import METHODS, Undisturbed, check, undisturbed_run

EVERYTHING = os.environ.get("STEPWELL_CRASH_ALL", "") not in ("", "0")
STRIDE, WIDE = (1, 1) if EVERYTHING else (2, 40)  # every so many-th place; wide where it is between statements
FEW = ["after:open_session", "after:create", "before:commit", "after:commit"]
NAME = "postgres, "
WORLDS = (*test_crash_requests.WORLDS, *test_crash_changes.WORLDS, *test_crash_transactions.WORLDS)
WRITES = [f"{when}:{method}" for method in METHODS for when in ("before", "after")]
POINTS = [*(WRITES if EVERYTHING else FEW), "ledger", "inside", "waiting"]


@pytest.fixture(scope="module")
def on_server(processes: Processes, postgres_server: Server) -> Iterator[Processes]:
    made = processes.beside(Schemas(postgres_server.dsn()))
    yield made
    processes.points.update(made.points)
    processes.counts.update(made.counts)
    made.close()


@pytest.fixture(scope="module")
def undisturbed(on_server: Processes) -> Undisturbed:
    return undisturbed_run(on_server)


@pytest.mark.parametrize("point", POINTS)
def test_killed_on_a_server(point: str, on_server: Processes, undisturbed: Undisturbed) -> None:
    """The output is that of an undisturbed run, and only what was in flight ran twice."""

    def tell(nth: int) -> bool:
        story, fault = on_server.new_story(), f"{point}:{nth}"
        died = on_server.dies(story, "scenario.run", 1, fault)
        check(on_server, story, undisturbed, int(died), f"postgres, {fault}")
        return died

    stride = WIDE if point in ("inside", "waiting") else STRIDE
    points = each(on_server, f"{NAME}the mixed run, {point.replace(':', ' ')}", tell, stride)
    assert points * stride >= {"ledger": 2 * len(scenario.WHEN), "commit": 10}.get(point.rpartition(":")[2], 1)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_killed_somewhere_of_each_kind(world: World, on_server: Processes) -> None:
    """What was asked, moved or paid has happened once, whoever goes on."""
    if EVERYTHING:
        assert sum(check_world(on_server, world, kind, NAME) for kind in SERVED) >= 10
    else:
        assert check_some(on_server, world, WIDE, WORLDS.index(world) * 7, NAME) >= 10
