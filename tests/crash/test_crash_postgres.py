"""The mixed run on PostgreSQL: killed before and after writes and inside bodies, and another process goes on.

Each story is a schema of its own. What happens between the statements of one write is tried in ``tests/chaos``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from . import scenario
from .harness import Processes, each
from .test_crash_points import Undisturbed, check, undisturbed_run

STRIDE = 2  # every other place: the places are those of a file, where each is taken


@pytest.fixture(scope="module")
def on_server(
    processes: Processes, postgres_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Processes]:
    made = Processes(tmp_path_factory.mktemp("served"), postgres_server.dsn())
    yield made
    processes.points.update(made.points)
    processes.counts.update(made.counts)
    made.close()


@pytest.fixture(scope="module")
def undisturbed(on_server: Processes) -> Undisturbed:
    return undisturbed_run(on_server)


@pytest.mark.parametrize("point", ["before:commit", "after:commit", "after:create", "after:open_session", "ledger"])
def test_killed_on_a_server(point: str, on_server: Processes, undisturbed: Undisturbed) -> None:
    """The output is that of an undisturbed run, and only what was in flight ran twice."""

    def tell(nth: int) -> bool:
        story, fault = on_server.new_story(), f"{point}:{nth}"
        died = on_server.dies(story, "scenario.run", 1, fault)
        check(on_server, story, undisturbed, int(died), f"postgres, {fault}")
        return died

    points = each(on_server, f"postgres, {point}", tell, STRIDE)
    assert points >= {"ledger": len(scenario.WHEN), "commit": 5}.get(point.rpartition(":")[2], 1)
