"""A process is killed before and after everything it writes, at each place in turn, and another one goes on.

What must hold afterwards is checked against a ledger outside of the store: the output is that of an undisturbed run,
nothing that had been followed by a later step ran again, only what was in flight ran twice, and nothing is lost, stuck
or recorded twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stepwell.testing.faults import FAULT_EXIT

from . import scenario, server

WIDTH = 3  # so many steps of the mixed run may be in flight at once
POINTS_MAX = 400
STRIDE = 3  # statements are many; where they only repeat another test's idea, every third is enough


class Line(NamedTuple):
    process: int
    phase: str
    path: str
    attempt: int
    key: str


class Processes:
    """A server that forks a process for each part of a story, and what all stories came to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stories = folder, 0
        self.points: Counter[str] = Counter()
        self.reruns = self.instances = 0
        self.lost = self.duplicated = self.stuck = 0
        self.server = subprocess.Popen(  # our own script
            [sys.executable, server.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def play(self, story: Path, part: str, process: int, fault: str = "") -> tuple[int, dict[str, Any]]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        request = {"db": f"{story}.db", "ledger": f"{story}.txt", "part": part, "process": process, "fault": fault}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        return answer["exit"], answer["found"]

    def dies(self, story: Path, part: str, process: int, fault: str) -> bool:
        """Say whether the process died at the fault; if it lived it must have ended well."""
        status, found = self.play(story, part, process, fault)
        assert status in (0, FAULT_EXIT), (fault, status)
        assert status or "error" not in found, (fault, found)
        return status == FAULT_EXIT

    def ends_well(self, story: Path, part: str, process: int) -> dict[str, Any]:
        status, found = self.play(story, part, process)
        assert status == 0, (story, status)
        assert "error" not in found, found["error"]
        return found

    def look(self, story: Path, process: int) -> dict[str, Any]:
        """Return what is stored in the end, and count what must not be."""
        stored = self.ends_well(story, "look", process)
        self.stuck += stored["stuck"] + (stored["state"] != "completed")
        self.duplicated += len(stored["twice"])
        self.instances += 1
        return stored

    def new_story(self) -> Path:
        self.stories += 1
        return self.folder / f"story{self.stories}"

    def close(self) -> None:
        with self.server:
            assert self.server.stdin is not None
            self.server.stdin.close()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    made = Processes(tmp_path_factory.mktemp("crash"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(processes: Processes) -> tuple[Any, set[tuple[str, int]]]:
    """The output of a run that nobody disturbs, and its steps and attempts."""
    story = processes.new_story()
    output = processes.ends_well(story, "run", 1)["output"]
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


def check(
    processes: Processes, story: Path, undisturbed: tuple[Any, set[tuple[str, int]]], crashes: int, what: str
) -> None:
    """Everything the promise says, of one story that was recovered."""
    output, steps = undisturbed
    seen = processes.ends_well(story, "recover", 9)
    assert seen["output"] == output, what
    stored = processes.look(story, 10)
    assert stored == {"state": "completed", "held_by": "", "mail": 0, "stuck": 0, "twice": []}, (what, stored)
    starts = [line for line in ledger(story) if line.phase == "start"]
    ends = {(line.path, line.attempt) for line in ledger(story) if line.phase == "end"}
    processes.lost += len(steps - ends)
    processes.duplicated += ran_too_late(starts)
    assert ends == steps, f"{what}: lost {steps - ends}, invented {ends - steps}"
    runs = Counter((line.path, line.attempt) for line in starts)
    assert max(runs.values()) <= 1 + crashes, (what, runs)
    again = sum(runs.values()) - len(runs)
    assert again <= WIDTH * crashes, (what, runs)
    assert not ran_too_late(starts), f"{what}: a step ran again after a later step had started"
    assert len({line.key for line in starts}) == len({line.path for line in starts}), f"{what}: a key changed"
    processes.reruns += again


def ran_too_late(starts: list[Line]) -> int:
    """Count the starts of steps that a later step had followed already: what was followed was recorded."""
    latest = late = 0
    for line in starts:
        first, last = scenario.WHEN[line.path]
        late += last < latest
        latest = max(latest, first)
    return late


METHODS = ("open_session", "register", "create", "post", "commit", "end_session")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_every_write(method: str, when: str, processes: Processes, undisturbed: Any) -> None:
    """Before it and after it, for the first, the second, the third … until the run gets through."""
    for nth in range(1, POINTS_MAX):
        story, fault = processes.new_story(), f"{when}:{method}:{nth}"
        died = processes.dies(story, "run", 1, fault)
        check(processes, story, undisturbed, int(died), fault)
        if not died:
            break
        processes.points[f"{when} {method}"] += 1
    assert processes.points[f"{when} {method}"] >= (10 if method == "commit" else 1)


def test_killed_inside_every_body(processes: Processes, undisturbed: Any) -> None:
    """At its beginning, and after its effect and before its commit: the one place where an effect may happen twice."""
    for nth in range(1, POINTS_MAX):
        story, fault = processes.new_story(), f"ledger:{nth}"
        died = processes.dies(story, "run", 1, fault)
        check(processes, story, undisturbed, int(died), fault)
        if not died:
            break
        processes.points["in a body"] += 1
    assert processes.points["in a body"] >= 2 * len(scenario.WHEN)


def test_killed_before_every_statement(processes: Processes, undisturbed: Any) -> None:
    """Inside every transaction too, beginning with the pragmas and the migration of a file that did not exist."""
    for nth in range(1, POINTS_MAX):
        story, fault = processes.new_story(), f"statement:{nth}"
        died = processes.dies(story, "run", 1, fault)
        check(processes, story, undisturbed, int(died), fault)
        if not died:
            break
        processes.points["before a statement"] += 1
    assert 100 < processes.points["before a statement"] < POINTS_MAX - 1


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
    for nth in range(1, POINTS_MAX, STRIDE if point == "statement" else 1):
        story, fault = processes.new_story(), f"{point}:{nth}"
        assert processes.dies(story, "run", 1, "before:commit:4")
        died = processes.dies(story, "recover", 2, fault)
        check(processes, story, undisturbed, 1 + died, fault)
        if not died:
            break
        processes.points[f"recovering, {point.replace(':', ' ')}"] += 1
    assert processes.points[f"recovering, {point.replace(':', ' ')}"] >= 1


CLIENT = [
    f"{when}:{method}" for method in ("create", "commit", "post", "claim", "release") for when in ("before", "after")
]


@pytest.mark.parametrize("point", [*CLIENT, "statement"])
def test_killed_while_sending_requests(point: str, processes: Processes) -> None:
    """start, pause, signal and resume from outside; the sender repeats what it does not know to have arrived."""
    for nth in range(1, POINTS_MAX, STRIDE if point == "statement" else 1):
        story = processes.new_story()
        died = processes.dies(story, "client", 1, f"{point}:{nth}")
        assert processes.ends_well(story, "client", 2) == {"output": 7}
        stored = processes.look(story, 3)
        assert stored == {"state": "completed", "held_by": "", "mail": 0, "stuck": 0, "twice": []}
        starts = Counter(line.path for line in ledger(story) if line.phase == "start")
        assert set(starts) == {"shape", "merge"}
        assert sum(starts.values()) <= 2 + died
        processes.reruns += sum(starts.values()) - 2
        if not died:
            break
        processes.points[f"a client, {point.replace(':', ' ')}"] += 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_renewing_the_lease(when: str, processes: Processes) -> None:
    """The pacemaker dies with its process, and the next one goes on at once."""
    story = processes.new_story()
    assert processes.dies(story, "lease", 1, f"{when}:renew:1")
    assert processes.ends_well(story, "lease", 2) == {"output": 1}
    assert processes.look(story, 3)["state"] == "completed"
    processes.points[f"{when} renew"] += 1


def test_the_account(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    """Every point was reached, and says so."""
    points = processes.points
    with capsys.disabled():
        print(  # noqa: T201 - the account is shown in every run
            f"\ncrash points: {points.total()} points of {len(points)} kinds, {processes.instances} instances, "
            f"{processes.reruns} re-runs of steps in flight, lost {processes.lost}, "
            f"duplicated {processes.duplicated}, stuck {processes.stuck}"
        )
        for name, count in sorted(points.items()):
            print(f"  {name}: {count}")  # noqa: T201 - the account is shown in every run
    assert (processes.lost, processes.duplicated, processes.stuck) == (0, 0, 0)
    if len(points) > 1:
        assert points.total() >= 300
        assert processes.reruns > 0
