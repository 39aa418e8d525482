"""A process is killed before and after everything it writes, at each place in turn, and another one goes on.

What must hold afterwards is checked against a ledger outside of the store: the output is that of an undisturbed run,
nothing that had been followed by a later step ran again, only what was in flight ran twice, and nothing is lost, stuck
or recorded twice.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import scenario
from .harness import POINTS_MAX, WIDTH, Processes, each, ran_too_late

STRIDE = 3  # statements are many; where they only repeat another test's idea, every third is enough
WELL = {"state": "completed", "held_by": "", "mail": 0, "stuck": 0, "twice": []}


class Line(NamedTuple):
    process: int
    phase: str
    path: str
    attempt: int
    key: str


Undisturbed = tuple[Any, set[tuple[str, int]]]


@pytest.fixture(scope="module")
def undisturbed(processes: Processes) -> Undisturbed:
    return undisturbed_run(processes)


def undisturbed_run(processes: Processes) -> Undisturbed:
    """Return the output of a run that nobody disturbs, and its steps and attempts."""
    story = processes.new_story()
    output = processes.ends_well(story, ["scenario.run"], 1)["output"]
    lines = ledger(story)
    assert {line.path for line in lines} == set(scenario.WHEN)
    assert len({line.key for line in lines}) == len(scenario.WHEN)
    return output, {(line.path, line.attempt) for line in lines}


def ledger(story: Path) -> list[Line]:
    try:
        rows = Path(f"{story}.txt").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [
        Line(int(p), phase, path, int(attempt), key) for p, phase, path, attempt, key in (row.split() for row in rows)
    ]


def look(processes: Processes, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is stored in the end, and count what must not be."""
    stored = {name: found[name] for name in WELL}
    astray = stored["stuck"] + (stored["state"] != "completed")
    processes.count(stuck=astray, duplicated=len(stored["twice"]), instances=1)
    return stored


def check(
    processes: Processes, story: Path, undisturbed: tuple[Any, set[tuple[str, int]]], crashes: int, what: str
) -> None:
    """Everything the promise says, of one story that was recovered."""
    output, steps = undisturbed
    seen = processes.ends_well(story, ["scenario.recover", "scenario.look"], 9)
    assert seen["output"] == output, what
    stored = look(processes, seen)
    assert stored == WELL, (what, stored)
    starts = [line for line in ledger(story) if line.phase == "start"]
    ends = {(line.path, line.attempt) for line in ledger(story) if line.phase == "end"}
    late = ran_too_late(starts, scenario.WHEN)
    processes.count(lost=len(steps - ends), duplicated=late)
    assert ends == steps, f"{what}: lost {steps - ends}, invented {ends - steps}"
    runs = Counter((line.path, line.attempt) for line in starts)
    assert max(runs.values()) <= 1 + crashes, (what, runs)
    again = sum(runs.values()) - len(runs)
    assert again <= WIDTH * crashes, (what, runs)
    assert not late, f"{what}: a step ran again after a later step had started"
    assert len({line.key for line in starts}) == len({line.path for line in starts}), f"{what}: a key changed"
    processes.count(reruns=again)


def killed_at_each(processes: Processes, undisturbed: Any, kind: str, point: str) -> int:
    """Kill the mixed run at each place of one kind; return how many there are."""

    def tell(nth: int) -> bool:
        story, fault = processes.new_story(), f"{point}:{nth}"
        died = processes.dies(story, "scenario.run", 1, fault)
        check(processes, story, undisturbed, int(died), fault)
        return died

    return each(processes, kind, tell)


METHODS = ("open_session", "register", "create", "post", "commit", "end_session")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_every_write(method: str, when: str, processes: Processes, undisturbed: Any) -> None:
    """Before it and after it, for the first, the second, the third … until the run gets through."""
    points = killed_at_each(processes, undisturbed, f"{when} {method}", f"{when}:{method}")
    assert points >= (10 if method == "commit" else 1)


def test_killed_inside_every_body(processes: Processes, undisturbed: Any) -> None:
    """At its beginning, and after its effect and before its commit: the one place where an effect may happen twice."""
    assert killed_at_each(processes, undisturbed, "in a body", "ledger") >= 2 * len(scenario.WHEN)


def test_killed_before_every_statement(processes: Processes, undisturbed: Any) -> None:
    """Inside every transaction too, beginning with the pragmas and the migration of a file that did not exist."""
    assert 100 < killed_at_each(processes, undisturbed, "before a statement", "statement") < POINTS_MAX - 1


RECOVERY = (
    "before:open_session",
    "after:open_session",
    "before:claim",
    "after:claim",
    "before:commit",
    "after:commit",
    "statement",
)


@pytest.mark.parametrize("point", RECOVERY)
def test_killed_while_recovering(point: str, processes: Processes, undisturbed: Any) -> None:
    """A first process dies in the fork, a second one while it goes on from there, and a third one ends it."""

    def tell(nth: int) -> bool:
        story, fault = processes.new_story(), f"{point}:{nth}"
        assert processes.dies(story, "scenario.run", 1, "before:commit:4")
        died = processes.dies(story, "scenario.recover", 2, fault)
        check(processes, story, undisturbed, 1 + died, fault)
        return died

    kind = f"recovering, {point.replace(':', ' ')}"
    assert each(processes, kind, tell, STRIDE if point == "statement" else 1) >= 1


CLIENT = [
    f"{when}:{method}" for method in ("create", "commit", "post", "claim", "release") for when in ("before", "after")
]


@pytest.mark.parametrize("point", [*CLIENT, "statement"])
def test_killed_while_sending_requests(point: str, processes: Processes) -> None:
    """start, pause, signal and resume from outside; the sender repeats what it does not know to have arrived."""

    def tell(nth: int) -> bool:
        story = processes.new_story()
        died = processes.dies(story, "scenario.client", 1, f"{point}:{nth}")
        seen = processes.ends_well(story, ["scenario.client", "scenario.look"], 2)
        assert seen["output"] == 7
        assert look(processes, seen) == WELL
        starts = Counter(line.path for line in ledger(story) if line.phase == "start")
        assert set(starts) == {"shape", "merge"}
        assert sum(starts.values()) <= 2 + died
        processes.count(reruns=sum(starts.values()) - 2)
        return died

    each(processes, f"a client, {point.replace(':', ' ')}", tell, STRIDE if point == "statement" else 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_renewing_the_lease(when: str, processes: Processes) -> None:
    """The pacemaker dies with its process, and the next one goes on at once."""
    story = processes.new_story()
    assert processes.dies(story, "scenario.lease", 1, f"{when}:renew:1")
    seen = processes.ends_well(story, ["scenario.lease", "scenario.look"], 2)
    assert seen["output"] == 1
    assert look(processes, seen)["state"] == "completed"
    processes.points[f"{when} renew"] += 1
