"""Processes that are forked, killed and judged, and what all of it came to.

A :class:`World` is one boundary: what was there before, what is done when the process dies, what another process does
after it, and how things must stand then. :func:`tell` plays it with one death; :func:`each` takes the places of death
in turn until the process gets through alive, so that no place is left out whatever their number.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

from stepwell.testing.faults import FAULT_EXIT

from . import server
from .looking import Line, lines_of
from .places import Files, Places

WIDTH = 3  # so many steps of one run may be in flight at once
POINTS_MAX = 600
SERVERS = 2
DYING, NEXT = 10, 11  # processes with lower numbers have set things up
KINDS = ("before:write", "after:write", "inside", "ledger")
SERVED = (*KINDS, "waiting")  # on a database server a statement may land without whoever sent it


class Server:
    """A process that forks others. One story at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(  # our own script
            [sys.executable, server.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["exit"], answer["found"]

    def close(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()


class Processes:
    """The servers, and the account of all stories: what they are played on is made by ``places``."""

    def __init__(self, folder: Path, places: Places | None = None) -> None:
        self.folder, self.store = folder, places or Files()
        self._numbers, self._lock = count(1), Lock()
        self.points: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.prepared: dict[str, Path] = {}
        self.plant = ""  # a fault that every process has, to see whether it is found
        self.free: SimpleQueue[Server] = SimpleQueue()
        self.servers: list[Server] = []

    def start(self) -> None:
        self.servers = [Server() for _ in range(SERVERS)]
        for each_one in self.servers:
            self.free.put(each_one)

    def beside(self, places: Places) -> Processes:
        """Return an account of its own, on other stores, kept with the same servers."""
        other = Processes(self.new_story(), places)
        other.folder.mkdir()
        other.free = self.free
        return other

    def count(self, **found: int) -> None:
        with self._lock:
            self.counts.update(found)

    def play(
        self, story: Path, parts: Sequence[str], process: int, fault: str = "", log: bool = False
    ) -> tuple[int, dict[str, Any]]:
        request = {"story": str(story), "parts": parts, "process": process, "fault": fault, "log": log}
        request |= {"plant": self.plant, **self.store.of(story)}
        free = self.free.get()
        try:
            return free.ask(request)
        finally:
            self.free.put(free)

    def dies(self, story: Path, part: str, process: int, fault: str, log: bool = False) -> bool:
        """Say whether the process died at the fault; if it lived it must have ended well."""
        status, found = self.play(story, [part], process, fault, log)
        return self.died(status, part, fault, found)

    def died(self, status: int, part: str, fault: str, found: Mapping[str, Any]) -> bool:
        assert status in (0, FAULT_EXIT), (fault, status)
        assert status or "error" not in found, (part, fault, found["error"])
        return status == FAULT_EXIT

    def ends_well(self, story: Path, parts: Sequence[str], process: int, log: bool = False) -> dict[str, Any]:
        status, found = self.play(story, parts, process, log=log)
        assert status == 0, (story, status)
        assert "error" not in found, (story, parts, found["error"])
        return found

    def new_story(self) -> Path:
        return self.folder / f"story{next(self._numbers)}"

    def amiss(self) -> Counter[str]:
        """Return what there must be none of."""
        return +Counter({name: self.counts[name] for name in ("lost", "duplicated", "stuck", "drift", "broken")})

    def close(self) -> None:
        self.store.close()
        for each_one in self.servers:
            each_one.close()


def each(processes: Processes, kind: str, tell: Callable[[int], bool], stride: int = 1) -> int:
    """Tell a story for the first place of death, the second, the third … and return at how many of them it died.

    The places are taken two at a time; they are over when a process got through.
    """
    with ThreadPoolExecutor(SERVERS) as pool:
        for nth in range(1, POINTS_MAX, SERVERS * stride):
            died = list(pool.map(tell, range(nth, nth + SERVERS * stride, stride)))
            processes.points[kind] += sum(died)
            if not all(died):
                return processes.points[kind]
    raise AssertionError(f"{kind}: it still dies at place {POINTS_MAX}")


# --- worlds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """One boundary of the API. Parts are named ``script.function``.

    Attributes:
        setup: what is played before, each with the point at which it dies, if it does.
        act: what is killed.
        again: what another process does then; default the same.
        order: the steps of a run that is over, as they follow each other; ``|`` stands between those side by side.
        done: those of them that were over before, and must not start any more.
        late: those that only the other process may start.
        once: those that run at most once, and need not have run.
        maybe: those that need not have come to their end.
        ends: the states in which instances are at last.
        run: the number of their run; earlier ones start nothing any more.
        facts: how often instance ``i`` has certain facts in its journal at last.
        found: what the other process must have seen.
        left: counts what is wrong with the rows that the dead process has left, and with those at last.
    """

    name: str
    act: str
    order: str
    setup: tuple[tuple[str, str], ...] = ()
    again: str = ""
    done: str = ""
    late: str = ""
    once: str = ""
    maybe: str = ""
    ends: Mapping[str, str] = field(default_factory=lambda: {"i": "completed"})
    run: int = 1
    facts: Mapping[str, int] = field(default_factory=dict[str, int])
    found: Mapping[str, object] = field(default_factory=dict[str, object])
    left: Callable[[dict[str, Any]], int] | None = None

    def places(self) -> dict[str, int]:
        return {path: k for k, level in enumerate(self.order.split()) for path in level.split("|")}


def prepared(processes: Processes, world: World) -> Path:
    """Play what was there before, once for all that is copied from it."""
    if world.name not in processes.prepared:
        folder = processes.new_story()
        folder.mkdir()
        for number, (part, fault) in enumerate(world.setup, 1):
            assert processes.dies(folder / "world", part, number, fault, log=True) == bool(fault), (world.name, part)
        processes.prepared[world.name] = folder / "world"
    return processes.prepared[world.name]


def check_world(processes: Processes, world: World, kind: str, name: str = "") -> int:
    """Let a process die at each place of one kind, and judge all that it came to. Returns how many places there are."""
    prepared(processes, world)  # before two at a time ask for it
    return each(processes, f"{name}{world.name}, {kind}", lambda nth: tell(processes, world, f"{kind}:{nth}"))


def check_some(processes: Processes, world: World, stride: int, offset: int, name: str = "") -> int:
    """Do so at every k-th place of each kind, and at one of each at least, beginning where it is said."""
    found = places_of(processes, world)
    for kind, number in found.items():
        chosen = range(1 + offset % min(stride, number), number + 1, stride) if number else ()
        with ThreadPoolExecutor(SERVERS) as pool:
            died = list(pool.map(lambda nth, kind=kind: tell(processes, world, f"{kind}:{nth}"), chosen))
        processes.points[f"{name}{world.name}, {kind}"] += sum(died)
        assert sum(died) >= len(died) - 1, (world.name, kind, found)  # threads make the number vary
    return sum(found.values())


def places_of(processes: Processes, world: World) -> dict[str, int]:
    """Return how many places of each kind there are, by a process that meets none of them."""
    _, found = tell_all(processes, world, "count:0")
    return {kind: found["places"][kind] for kind in SERVED}


def tell(processes: Processes, world: World, fault: str) -> bool:
    """Tell a world's story with one death. Returns whether the process died there."""
    return tell_all(processes, world, fault)[0]


def tell_all(processes: Processes, world: World, fault: str) -> tuple[bool, dict[str, Any]]:
    """Tell it, and return too what the process said that was to die, if it did not."""
    story = processes.new_story() / "world"
    processes.store.copy(prepared(processes, world), story)
    status, said = processes.play(story, [world.act], DYING, fault, log=True)
    died = processes.died(status, world.act, fault, said)
    first = ["looking.glance"] if world.left else []
    found = processes.ends_well(story, [*first, world.again or world.act, "looking.verdict"], NEXT, log=True)
    what = f"{world.name}, killed at {fault}"
    drift = world.left(found["left"]) + world.left(found["stored"]) if world.left else 0
    processes.count(drift=drift)
    assert not drift, (what, found)
    assert world.found.items() <= found.items(), (what, found)
    _check_stored(processes, world, found, what)
    _check_lines(processes, world, lines_of(str(story)), died, what)
    processes.store.drop(story)
    return died, said


def _check_stored(processes: Processes, world: World, found: dict[str, Any], what: str) -> None:
    stored = found["stored"]
    instances = stored["instances"]
    ends = {name: instance["state"] for name, instance in instances.items()}
    twice = [name for instance in instances.values() for name in instance["twice"]]
    astray = stored["stuck"] + stored["orphans"] + sum(end != world.ends.get(name) for name, end in ends.items())
    processes.count(instances=len(ends), duplicated=len(twice), stuck=astray, lost=len(world.ends.keys() - ends))
    processes.count(checked=found["checked"], broken=len(found["broken"]))
    assert not found["broken"], (what, found["broken"])
    assert ends == world.ends, (what, stored)
    assert (twice, stored["stuck"], stored["orphans"]) == ([], 0, 0), (what, stored)
    for instance in instances.values():
        assert instance["whole"], (what, stored)
        assert (instance["run"], instance["held_by"]) == (world.run, ""), (what, stored)
    seen = {name: instances["i"]["facts"].get(name, 0) for name in world.facts}
    processes.count(duplicated=sum(max(0, seen[name] - times) for name, times in world.facts.items()))
    assert seen == world.facts, (what, stored)


def _check_lines(processes: Processes, world: World, lines: Sequence[Line], died: bool, what: str) -> None:
    starts = [line for line in lines if line.phase == "start"]
    too_late = [line for line in starts if line.process >= DYING and _forbidden(world, line)]
    reruns = 0
    for name in world.ends:
        mine = [line for line in starts if (line.instance, line.run) == (name, world.run)]
        ended = {line.path for line in lines if (line.instance, line.run, line.phase) == (name, world.run, "end")}
        reruns += _check_run(processes, world, mine, ended, died, what)
    processes.count(duplicated=len(too_late), reruns=reruns)
    assert not too_late, (what, too_late)


def _forbidden(world: World, line: Line) -> bool:
    """Say whether a step was started that was over before, in a run that was, or before its time."""
    early = line.process == DYING and line.path in world.late.split()
    return line.run < world.run or line.path in world.done.split() or early


def _check_run(
    processes: Processes, world: World, starts: Sequence[Line], ended: set[str], died: bool, what: str
) -> int:
    """Check one instance's last run, and return how many attempts were made more than once."""
    places, once = world.places(), set(world.once.split())
    wanted = places.keys() - once - set(world.maybe.split())
    late = ran_too_late(starts, {path: (place, place) for path, place in places.items()})
    tries = Counter((line.path, line.attempt) for line in starts)
    again = sum(tries.values()) - len(tries)
    over = sum(max(0, count_of - 1) for (path, _), count_of in tries.items() if path in once)
    processes.count(lost=len(wanted - ended), duplicated=late + over)
    assert wanted <= ended <= places.keys(), f"{what}: lost {wanted - ended}, invented {ended - places.keys()}"
    assert not late, (what, starts)
    assert not over, (what, tries)
    deaths = died + sum(bool(fault) for _, fault in world.setup)
    assert max(tries.values(), default=1) <= 1 + deaths, (what, tries)
    assert again <= WIDTH * deaths, (what, tries)
    assert len({line.key for line in starts}) == len({line.path for line in starts}), f"{what}: a key changed"
    return again


def ran_too_late(starts: Sequence[Any], when: Mapping[str, tuple[int, int]]) -> int:
    """Count the starts of steps that a later step had followed already: what was followed was recorded."""
    latest = late = 0
    for line in starts:
        first, last = when[line.path]
        late += last < latest
        latest = max(latest, first)
    return late
