"""A world of several processes over one store, told from one seed in one thread.

The scheduler picks what goes on next: a worker's turn, a body, the renewal of a lease, something a client does, or
time. See :mod:`.machine` for what may go wrong, :mod:`.judging` for what must hold all the same.
"""

from __future__ import annotations

import gc
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from typing import Any, Final

from stepwell import InMemoryBackend, Workflow
from stepwell.backend.base import Change, Session
from stepwell.engine import facts as f
from stepwell.runtime import claiming, drive, invoke, pooling, serving, worker
from stepwell.runtime.clock import Wait
from stepwell.runtime.pooling import Drain
from stepwell.runtime.worker import PooledWorker
from stepwell.testing.watched import WatchedBackend

from . import bodies
from .chance import Chance
from .judging import Judge
from .machine import Flying, Hands, Killed, Line, QuietLease, SlowMailbox

FIRST_US: Final = 1_900_000_000_000_000
LEASE_US: Final = 2_000_000
POLL_US: Final = 300_000
DEEP: Final = 3
CALLS_AT_ONCE: Final = 3_000
MAX_CRASHES: Final = 3
MAX_RUNNING: Final = 2
ROLLED_OUT_US: Final = 5_000_000  # from then on nobody begins with older code, unless it is asked for


class Over(BaseException):
    """The schedule has come to an end in the middle of something: a promise is broken."""


class SimStore(InMemoryBackend):
    """The reference store, which can be told that the process of a session is gone."""

    def __init__(
        self,
        lease_clock: Callable[[], int],
        on_lost: Callable[[int, Sequence[str]], None],
        on_changed: Callable[[str, int], None],
    ) -> None:
        super().__init__(lease_clock=lease_clock)
        self.serving_us: dict[int, int] = {}
        self._on_changed = on_changed
        self.gone: set[int] = set()
        self._on_lost = on_lost

    def serve(self, session: Session, definitions: Sequence[int]) -> None:
        super().serve(session, definitions)
        self.serving_us[session.id] = self._clock()

    def renew(self, session: Session) -> None:
        if (held := self._sessions.get(session.id)) is not None and self._over(held):
            self.serving_us[session.id] = self._clock()
        super().renew(session)

    def _apply(self, run: Any, change: Change) -> None:
        super()._apply(run, change)
        facts = (fact for entry in change.entries for fact in f.decode(entry.facts))
        if any(isinstance(fact, f.RunHeld) and fact.reason == "changed" for fact in facts):
            self._on_changed(run.made.instance_id, self._served_for_us(run.definition.id))

    def _served_for_us(self, definition: int) -> int:
        """Return for how long somebody has served a graph without a break."""
        serving = [each for each in self._sessions.values() if definition in each.serves and not self._over(each)]
        return max((self._clock() - self.serving_us[each.session.id] for each in serving), default=0)

    def _over(self, held: Any) -> bool:
        return held.until_us <= self._clock() or held.session.id in self.gone

    def _end(self, held: Any, *, lost: bool) -> None:
        if lost:
            runs = [*(self._runs[n] for n in held.runs), *(self._offers._rows[n].run for n in held.offers)]
            self._on_lost(held.session.id, [run.made.instance_id for run in runs])
        super()._end(held, lost=lost)


class SimClock:
    """A process's wall clock, which need not agree with that of others."""

    def __init__(self, world: World, skew_us: int) -> None:
        self._world, self.skew_us = world, skew_us

    def now_us(self) -> int:
        return FIRST_US + self._world.now_us + self.skew_us

    def timeout_s(self, wait: Wait) -> float | None:
        raise AssertionError("nothing waits in a simulation")


class Pausing:
    """In place of the event that a worker waits for while its store is out of reach."""

    def __init__(self, who: Machine) -> None:
        self._who, self._set = who, False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout_s: float) -> bool:
        self._who.world.pass_time(int(timeout_s * 1e6))
        self._who.world.check_alive(self._who)
        return self._set


class Machine:
    """One worker in a process of its own."""

    def __init__(self, world: World, name: str, tags: Sequence[str], version: Workflow[Any, Any] | None) -> None:
        self.world, self.name, self.tags, self.version = world, name, tags, version
        self.dead = self.busy = self.done = self.poisoned = False
        self.deaf = world.chance.maybe(0.2)
        self.frozen_until_us = 0
        self.sessions: list[Session] = []
        self.leases: list[QuietLease] = []
        self.flying: list[Flying] = []
        self.ends: list[Callable[[], None]] = []
        self.wait: Wait | None = None
        self.since_us = 0
        self.clock = SimClock(world, world.chance.between(-world.skew_us, world.skew_us))
        self.worker = self._worker(world)
        self._turns: Generator[Wait, Sequence[object], None] = self.worker._turns()
        self._begun = False
        self._context = Context()

    def _worker(self, world: World) -> PooledWorker:
        made = PooledWorker(
            Line(world, self),
            bodies.SERVED if self.version is None else (*bodies.SERVED, self.version),
            concurrency=world.chance.between(1, 3),
            tags=self.tags,
            lease=LEASE_US / 1e6,
            poll=POLL_US / 1e6,
            deps={bodies.Outside: world.judge.outside(self)},
            name=self.name,
            max_crashes=MAX_CRASHES,
            max_running={"capped": MAX_RUNNING},
            clock=self.clock,
        )
        made._state = "running"
        made._leaving = Pausing(self)  # type: ignore[assignment]
        made._mailbox = SlowMailbox(self)
        room: Any = made._room
        hands = Hands(self)
        room.threads = room.loop_thread = lambda: hands
        room.keep_lease = lambda backend, session, opened_us, purger, lost: QuietLease(
            self, backend, session, purger, lost
        )
        room._random.seed(world.chance.below(2**30))
        return made

    @property
    def pool(self) -> Any:
        return self.worker._pool

    def frozen(self) -> bool:
        return self.world.now_us < self.frozen_until_us

    def next_us(self) -> int | None:
        """Return when it has something to do, on the world's clock; ``None`` while it is in the middle of it."""
        if self.busy or self.done or self.dead:
            return None
        wait = self.wait
        if wait is None or not self.worker._mailbox.empty():
            return 0
        moments = [] if wait.until_us is None else [wait.until_us - FIRST_US - self.clock.skew_us]
        if wait.poll_us is not None:
            moments.append(self.since_us + wait.poll_us)
        return min(moments, default=None)

    def turn(self) -> None:
        """Go on until it waits again."""
        self.busy = True
        came = self.worker._mailbox.drain()
        try:
            if self._begun:
                self.wait = self._context.run(self._turns.send, came)
            else:
                self._begun = True
                self.wait = self._context.run(next, self._turns)
            self.since_us = self.world.now_us
        except StopIteration:
            self._end()
        except Killed:
            self._gone()
        except Over:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever ends a worker is a finding
            self.world.judge.found(f"worker {self.name} ended with {error!r}", error)
        finally:
            self.busy = False

    def _end(self) -> None:
        self.done = True
        try:
            self._context.run(self.worker._close)
        except Killed:
            self._gone()
        except Exception as error:  # noqa: BLE001  # as above
            self.world.judge.found(f"worker {self.name} could not be closed: {error!r}", error)

    def die(self) -> None:
        """Its process ends here and now."""
        self.dead = True
        for end in self.ends:
            end()
        if not self.busy:
            self._gone()

    def _gone(self) -> None:
        """Let go of what is left of it; whatever that calls is refused."""
        self.dead = True
        try:
            self._context.run(self._turns.close)
        except (Killed, RuntimeError):
            return

    def drain(self) -> None:
        if self.worker._state == "running":
            self.worker._state = "draining"
            self.worker._mailbox.put(Drain())

    def leave(self) -> None:
        self.worker.leave()


class World:
    """What there is, and what time it is."""

    def __init__(self, seed: int, only: Sequence[int] | None = None, *, trace: bool = False) -> None:
        self.chance = Chance(seed, only)
        self.now_us = 0
        self.skew_us = self.chance.pick([0, 0, 50_000, 2_000_000])
        self.out_until_us = 0
        self.store = SimStore(
            self.lease_us,
            lambda session, lost: self.judge.lost(session, lost),
            lambda instance_id, served_us: self.judge.held_as_changed(instance_id, served_us),
        )
        self.watched = WatchedBackend(self.store, lease_clock=self.lease_us)
        self.machines: list[Machine] = []
        self.spawned = 0
        self.depth = 0
        self.steps = 0
        self.calls: Counter[str] = Counter()
        self.calls_now = 0
        self.ticks = 0
        self.extra: list[Callable[[], tuple[int, Callable[[], None]] | None]] = []
        self.log: list[str] | None = [] if trace else None
        self.judge = Judge(self)
        self.most_machines = self.chance.between(2, 4)
        self.meddling = self.poison = False
        self.versions: Sequence[Workflow[Any, Any]] = ()  # of a workflow that was edited
        self.quick = self.chance.maybe(0.25)  # whether bodies take next to no time

    # --- time ---

    def lease_us(self) -> int:
        return self.now_us

    def perf_ns(self) -> int:
        """Even where nothing happens, a little time passes between two looks."""
        self.ticks += 1
        if self.ticks % 200 == 0:
            self.now_us += 1
        if self.ticks > 2_000_000:
            self.judge.found("a worker goes round and round without a call")
        return self.now_us * 1_000

    def is_out(self) -> bool:
        return self.now_us < self.out_until_us

    def pass_time(self, span_us: int) -> None:
        """Let this much time pass for whoever waits in the middle of something, while others go on."""
        until_us, steps = self.now_us + span_us, 0
        while self.now_us < until_us and self.depth < DEEP and steps < 30:
            steps += 1
            self._deeper(until_us)
        self.now_us = max(self.now_us, until_us)

    def let_others(self, most: int) -> None:
        """Let others go on for a few steps."""
        if self.depth < DEEP:
            for _ in range(self.chance.between(1, most)):
                self._deeper(None)

    def _deeper(self, until_us: int | None) -> None:
        self.depth += 1
        try:
            self.step(until_us)
        finally:
            self.depth -= 1

    # --- calls ---

    def check_alive(self, who: Machine | None) -> None:
        if who is not None and who.dead:
            raise Killed(who.name)

    def count_call(self, who: Machine | None, method: str) -> None:
        if method == "hint":
            return
        self.calls[who.name if who else "client"] += 1
        self.calls_now += 1
        self.now_us += 1 + self.chance.below(30)
        if self.calls_now > CALLS_AT_ONCE:
            self.judge.found(f"{CALLS_AT_ONCE} calls of the store in one step, the last of them {method}")

    # --- what goes wrong ---

    def kill(self, who: Machine) -> None:
        """End a process. Sometimes others can prove that at once."""
        self.note(f"{who.name} is killed")
        if self.chance.maybe(0.3):
            for session in who.sessions:
                self.store.gone.add(session.id)
                self.watched._has_lost(session)
        who.die()

    def kill_by_body(self, who: Machine) -> None:
        """A body takes its process with it."""
        who.poisoned = True
        who.die()
        raise Killed(who.name)

    def stall(self, who: Machine) -> None:
        """A process stands still, often for longer than its lease, while others go on."""
        span_us = self.chance.between(LEASE_US // 4, LEASE_US * 2)
        self.note(f"{who.name} stands still for {span_us / 1e6:.1f} s")
        who.frozen_until_us = self.now_us + span_us
        self.pass_time(span_us)

    # --- what goes on ---

    def alive(self) -> list[Machine]:
        return [each for each in self.machines if not (each.dead or each.done)]

    def serving(self, version: Workflow[Any, Any]) -> bool:
        """Say whether a worker with this code is there, and not about to end."""
        return any(each.version is version and each.worker._state == "running" for each in self.alive())

    def spawn(self, version: Workflow[Any, Any] | None = None) -> Machine:
        self.spawned += 1
        has_gpu = self.spawned == 1 or self.chance.maybe(0.4) or not any(m.tags for m in self.alive())
        if version is None and self.versions:
            rolled_out = self.now_us > ROLLED_OUT_US
            version = self.versions[-1] if rolled_out else self.chance.pick(self.versions)
        made = Machine(self, f"w{self.spawned}", ["gpu"] if has_gpu else [], version)
        self.machines.append(made)
        code = " with newer code" if version is bodies.edited_since else ""
        self.note(f"{made.name} begins{' with a gpu' if has_gpu else ''}{code}")
        return made

    def occasions(self) -> list[tuple[int, str, Callable[[], None]]]:
        """Return what may go on, and when."""
        found: list[tuple[int, str, Callable[[], None]]] = []
        for who in self.machines:
            if who.dead:
                continue
            later = who.frozen_until_us
            if (at := who.next_us()) is not None:
                found.append((max(at, later), f"turn of {who.name}", who.turn))
            if who.done:
                continue
            for lease in who.leases:
                if lease.beats:
                    found.append((max(lease.next_us, later), f"{who.name} renews", self._beat(who, lease)))
            for job in who.flying:
                if not job.running:
                    found.append((max(job.next_us, later), f"{who.name} {job.job.path}", self._body(who, job)))
        for each in self.extra:
            if (more := each()) is not None:
                found.append((more[0], "client", more[1]))
        return found

    def _beat(self, who: Machine, lease: QuietLease) -> Callable[[], None]:
        def beat() -> None:
            if self.chance.fault(("late renewal",), who.name):
                lease.next_us = self.now_us + LEASE_US
                return
            try:
                lease.beat(self.now_us)
            except Killed:
                return

        return beat

    def _body(self, who: Machine, job: Flying) -> Callable[[], None]:
        def body() -> None:
            job.go_on()
            if who.dead:
                who.die()

        return body

    def step(self, until_us: int | None = None) -> None:
        """Let one thing happen."""
        if self.judge.violations:
            raise Over
        self.steps += 1
        self.calls_now = 0
        if self.depth == 0:
            self.ticks = 0
            self._trouble()
        found = self.occasions()
        ready = [each for each in found if each[0] <= self.now_us]
        if not ready:
            next_us = min((each[0] for each in found), default=self.now_us + POLL_US)
            self.now_us = max(self.now_us, next_us if until_us is None else min(next_us, until_us))
            return
        _, name, action = self.chance.pick(ready)
        self.note(name)
        action()
        self.judge.step()

    def _trouble(self) -> None:
        """What goes wrong between two steps."""
        troubles: dict[str, Callable[[Machine], None]] = {
            "kill": self.kill,
            "freeze": self._freeze,
            "outage": self._outage,
            "drain": self._drain,
            "leave": self._leave,
            "clock step": self._step_clock,
            "pass by": self._pass_by,
        }
        kind = self.chance.fault(tuple(troubles), f"step {self.steps}")
        if kind and (alive := [each for each in self.alive() if not each.busy]):
            troubles[kind](self.chance.pick(alive))
        if len(self.alive()) < self.most_machines and (not self.alive() or self.chance.maybe(0.05)):
            self.spawn()

    def _freeze(self, who: Machine) -> None:
        who.frozen_until_us = self.now_us + self.chance.between(LEASE_US // 2, LEASE_US * 3)
        self.note(f"{who.name} freezes until {who.frozen_until_us / 1e6:.2f}")

    def _outage(self, who: Machine) -> None:
        self.out_until_us = self.now_us + self.chance.between(10_000, LEASE_US * 2)
        self.note(f"the store is out until {self.out_until_us / 1e6:.2f}")

    def _drain(self, who: Machine) -> None:
        self.note(f"{who.name} drains")
        who.drain()

    def _leave(self, who: Machine) -> None:
        self.note(f"{who.name} leaves")
        self.judge.leaves(who)
        who.leave()

    def _step_clock(self, who: Machine) -> None:
        who.clock.skew_us += self.chance.between(0, 5_000_000)
        who.worker._mailbox.put(None)

    def _pass_by(self, who: Machine) -> None:
        self.now_us += self.chance.span_us(LEASE_US)

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self.note("calm")
        self.chance.calm = True
        self.out_until_us = 0
        for who in self.machines:
            who.frozen_until_us = min(who.frozen_until_us, self.now_us + LEASE_US)

    def note(self, text: str) -> None:
        if self.log is not None:
            self.log.append(f"{self.now_us / 1e6:9.4f} {'  ' * self.depth}{text}")


class _Time:
    def __init__(self, world: World) -> None:
        self.perf_counter_ns = world.perf_ns


@contextmanager
def installed(world: World) -> Iterator[None]:
    """Let the runtime's own short looks at the time, and its spreading, be the world's."""
    assert threading.current_thread() is threading.main_thread()
    changes: list[tuple[Any, str, Any]] = [
        *((place, "time", _Time(world)) for place in (drive, pooling, claiming, serving, invoke)),
        *((place, "random", random.Random(world.chance.seed)) for place in (pooling, worker)),
        (invoke, "_clock_ns", world.perf_ns),
        (pooling.Pace.__init__, "__defaults__", pooling.Pace.__init__.__defaults__ and (world.perf_ns,)),
    ]
    before = [getattr(place, name) for place, name, _ in changes]
    log = logging.getLogger("stepwell")
    level = log.level
    log.setLevel(logging.CRITICAL)
    gc.disable()  # what is left of an earlier world would end in the middle of this one
    for place, name, new in changes:
        setattr(place, name, new)
    try:
        yield
    finally:
        gc.enable()
        for (place, name, _), old in zip(changes, before, strict=True):
            setattr(place, name, old)
        log.setLevel(level)
