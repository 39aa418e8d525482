"""Two or three calls about one instance at once: what each race begins with, who runs, and what may come of it.

A race's outcome is what each call was told, the state that is left, and whatever else tells the orders apart. Every
race states the whole set of its lawful outcomes, and which two of them the two plain orders lead to. It is run in three
ways: one call *inside* the other, before each of its calls to the store in turn, which meets every such interleaving
for certain; by threads that leave a barrier together; and by processes.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stepwell import CheckpointingRunner, Complete, Fail, StepwellError
from stepwell.runtime.client import WorkflowClient
from stepwell.testing import VirtualClock
from stepwell.testing.invariants import check_store

from ..stores import open_store  # noqa: TID252 - the tests are not installed
from .history_flows import FIRST, SECOND, Ledger, PowerFails

Told = tuple[str, ...]
BY_NAME: Final = {each.name: each for each in FIRST}
LATER: Final = {each.name: each for each in SECOND}
WAIT_S: Final = 60
LATER_BY: Final = 11  # no multiple of the lanes, so each of them is late by each amount
LOOKS: Final = {"memory": 12, "sqlite": 2, "postgres": 12}


class Corner:
    """Where one contestant stands: a connection of its own, with a client and a runner on it."""

    def __init__(self, backend: Any, clock: VirtualClock, ledger: Ledger, stack: ExitStack) -> None:
        self.backend = backend
        self.client = stack.enter_context(WorkflowClient(backend, clock=clock))
        self.runner = stack.enter_context(CheckpointingRunner(backend, clock=clock, deps={Ledger: ledger}, poll="1ms"))

    def told(self, call: Callable[[Corner, str], object], instance_id: str) -> str:
        """Make a call, and return what it gave in a word."""
        try:
            answer = call(self, instance_id)
        except StepwellError as error:
            return type(error).__name__
        return str(answer) if isinstance(answer, int) else "ok"


class Arena:
    """One store, its clock, and as many corners as are asked for."""

    def __init__(self, kind: str, path: Path, stack: ExitStack) -> None:
        self.kind, self.path, self._stack = kind, path, stack
        self.clock, self.ledger = VirtualClock(jump=False), Ledger()
        self.backend = self._opened()
        self.referee = self.corner(self.backend)
        for each in (*FIRST, *SECOND):
            self.referee.runner._room.prepare(each)

    def _opened(self) -> Any:
        return self._stack.enter_context(open_store(self.kind, self.path, durability="fast"))

    def corner(self, backend: Any = None) -> Corner:
        """Return a new corner, with a connection of its own where the store has such."""
        if backend is None:
            backend = self.backend if self.kind == "memory" else self._opened()
        return Corner(backend, self.clock, self.ledger, self._stack)

    def state(self, instance_id: str) -> str:
        """Return how an instance stands and what is still in its inbox; ``gone`` if there is none."""
        if self.backend.header(instance_id) is None:
            return "gone"
        status = self.referee.client.status(instance_id)
        return " + ".join((status.state, *status.pending))

    def kinds(self, instance_id: str) -> Counter[str]:
        """Count an instance's history by kinds of events."""
        if self.backend.header(instance_id) is None:
            return Counter()
        return Counter(event.kind for event in self.referee.client.history(instance_id))

    def settle(self) -> None:
        """Let all that can go on do so, with nothing broken any more."""
        self.ledger.broken = self.ledger.cut = False
        self.clock.advance("9h")
        self.referee.runner.recover(SECOND)
        assert not [status for status in self.referee.client.iterate(state="unfinished") if status.pending]

    def check(self) -> None:
        """Check every promise of the store, and that no attempt's body has run twice."""
        report = check_store(self.backend, now_us=self.clock.now_us())
        assert report.ok, str(report)
        twice = {call: count for call, count in self.ledger.ran.items() if count > 1}
        assert not twice


Begin = Callable[[Arena, str], object]
Contestant = Callable[[Corner, str], object]


@dataclass(frozen=True)
class Race:
    """``first`` and ``second`` are what the plain orders lead to: the contestants' own one, and the reverse."""

    name: str
    begin: Begin
    contestants: tuple[Contestant, ...]
    first: Told
    second: Told
    others: frozenset[Told] = frozenset()
    marks: Callable[[Arena, str], Told] = lambda arena, instance_id: (arena.state(instance_id),)

    @property
    def lawful(self) -> frozenset[Told]:
        return self.others | {self.first, self.second}

    def outcome(self, arena: Arena, instance_id: str, told: Sequence[str]) -> Told:
        """Return what came of a race. It is one of the lawful outcomes."""
        came = (*told, *self.marks(arena, instance_id))
        assert came in self.lawful, f"{self.name} {instance_id}: {came}, of {sorted(self.lawful)}"
        return came


# --- one inside the other -----------------------------------------------------------------------------------


class Interrupted:
    """A store that does something else before its ``at``-th call, from 1; ``calls`` counts them."""

    def __init__(self, store: Any) -> None:
        self._store, self.at, self.calls = store, 0, 0
        self.then: Callable[[], object] = bool

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found) or name in ("codec", "hint", "close"):
            return found

        def called(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                self.then()
            return found(*args, **options)

        return called


def crossed(race: Race, arena: Arena, outer: int) -> Counter[Told]:
    """Let one contestant call inside another's call, before each of its calls to the store, and behind the last."""
    seen: Counter[Told] = Counter()
    store = Interrupted(arena.backend)
    corners, inner = {outer: arena.corner(store)}, 1 - outer
    corners[inner] = arena.corner()
    at = 0
    while True:
        at += 1
        instance_id, told = f"{race.name} {outer} {at}", dict[int, str]()
        race.begin(arena, instance_id)

        def inside(instance_id: str = instance_id, told: dict[int, str] = told) -> None:
            told[inner] = corners[inner].told(race.contestants[inner], instance_id)

        store.calls, store.at, store.then = 0, at, inside
        told[outer] = corners[outer].told(race.contestants[outer], instance_id)
        store.at = 0
        over = inner not in told
        if over:
            inside()
        seen[race.outcome(arena, instance_id, [told[0], told[1]])] += 1
        if over:
            return seen


# --- by threads ------------------------------------------------------------------------------------------------


@contextmanager
def often_switched() -> Iterator[None]:
    """Let threads take turns after microseconds, so that calls which take no longer overlap at all."""
    was = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(was)


def raced(race: Race, arena: Arena, rounds: int) -> Counter[Told]:
    """Let threads leave a barrier together, ``rounds`` times, each time about a new instance."""
    corners = [arena.corner() for _ in race.contestants]
    ids = [f"{race.name} {n}" for n in range(rounds)]
    left = iter(ids)
    barrier = threading.Barrier(len(corners), lambda: race.begin(arena, next(left)))

    def run(lane: int) -> list[str]:
        told: list[str] = []
        for n, instance_id in enumerate(ids):
            barrier.wait(WAIT_S)
            for _ in range(n % LATER_BY * LOOKS[arena.kind] if n % len(corners) == lane else 0):
                corners[lane].backend.header("nobody")  # one of them starts a little later
            told.append(corners[lane].told(race.contestants[lane], instance_id))
        return told

    with ThreadPoolExecutor(len(corners)) as pool, often_switched():
        lanes = list(pool.map(run, range(len(corners))))
    return Counter(
        race.outcome(arena, instance_id, told) for instance_id, told in zip(ids, zip(*lanes, strict=True), strict=True)
    )


# --- what races begin with ---------------------------------------------------------------------------------------


def pending(name: str) -> Begin:
    return lambda arena, i: arena.referee.client.start(BY_NAME[name], 1, instance_id=i)


def left(name: str) -> Begin:
    """Run as far as it goes."""

    def begin(arena: Arena, i: str) -> None:
        arena.ledger.broken = arena.ledger.cut = True
        with suppress(PowerFails):
            arena.referee.runner.start(BY_NAME[name], 1, instance_id=i)
        arena.ledger.broken = arena.ledger.cut = False

    return begin


def held(arena: Arena, i: str) -> None:
    left("charging")(arena, i)
    arena.referee.runner.start(BY_NAME["charging"], 1, instance_id=i)
    assert arena.state(i) == "held"


def overdue(arena: Arena, i: str) -> None:
    left("missing")(arena, i)
    arena.clock.advance("2h")


def known_and_over(arena: Arena, i: str) -> None:
    """An ended instance that has accepted a signal with an id."""
    left("missing")(arena, i)
    arena.referee.client.signal(i, "answer", 5, signal_id="s")
    arena.referee.client.cancel(i)


def over(arena: Arena, i: str) -> None:
    left("missing")(arena, i)
    arena.referee.client.cancel(i)


def nothing(arena: Arena, i: str) -> None:
    """There is no such instance, but a snapshot of one."""
    if arena.backend.header("origin") is None:
        left("asking")(arena, "origin")


# --- who runs ------------------------------------------------------------------------------------------------


def cancels(corner: Corner, i: str) -> None:
    corner.client.cancel(i, by="ann")


def pauses(corner: Corner, i: str) -> None:
    corner.client.pause(i, by="bob")


def resumes(corner: Corner, i: str) -> None:
    corner.client.resume(i, by="bob")


def retries(corner: Corner, i: str) -> None:
    corner.client.retry(i, by="ann")


def answers(corner: Corner, i: str) -> None:
    corner.client.signal(i, "answer", 5)


def answers_once(corner: Corner, i: str) -> None:
    corner.client.signal(i, "answer", 5, signal_id="s")


def completes(corner: Corner, i: str) -> None:
    corner.client.decide(i, "charge", Complete(5), by="ann")


def fails(corner: Corner, i: str) -> None:
    corner.client.decide(i, "charge", Fail("no"), by="bob")


def deletes(corner: Corner, i: str) -> None:
    corner.client.delete(i)


def purges(corner: Corner, i: str) -> None:
    corner.client.purge(keep=0)


def restores(corner: Corner, i: str) -> None:
    corner.client.restore(corner.client.snapshot("origin"), instance_id=i)


def starts(policy: str, name: str = "asking") -> Contestant:
    def start(corner: Corner, i: str) -> None:
        corner.client.start(BY_NAME[name], 1, instance_id=i, on_conflict=policy)

    return start


def moves(corner: Corner, i: str) -> None:
    corner.client.move(i, LATER["looping"])


def goes_on(name: str) -> Contestant:
    """Work on the instance as far as it goes; who is in the way is told."""

    def start(corner: Corner, i: str) -> None:
        corner.runner.start(BY_NAME[name], 1, instance_id=i)

    return start
