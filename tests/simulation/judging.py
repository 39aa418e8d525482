"""What must hold in every schedule, after each step and at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stepwell.engine import facts as f
from stepwell.runtime.context import task_context
from stepwell.runtime.invoke import Job
from stepwell.runtime.live import frontier_of
from stepwell.testing.invariants import check_store
from stepwell.testing.outside import check_ledger
from stepwell.testing.violations import Violation

if TYPE_CHECKING:
    from .world import Machine, World

_OF_SKEW: Final = ("reports before its attempt was due", "us early", "is due again before it failed")


class LedgerLine(NamedTuple):
    """What a body has left outside."""

    event: str
    instance: str
    path: str
    attempt: int
    key: str
    run: int
    who: str
    zombie: bool


class SimOutside:
    """The outside world as one process sees it."""

    def __init__(self, judge: Judge, who: Machine) -> None:
        self._judge, self._who = judge, who

    def start(self) -> None:
        self._judge.starts(self._who, _job())
        self._line("start")

    def effect(self) -> None:
        self._line("effect")

    def _line(self, event: str) -> None:
        context, key = task_context(), _job()
        if event == "start" and not self._judge.has_claim(self._who, _job().live):
            self._judge.zombies.add(key)
        self._judge.lines.append(
            LedgerLine(
                event, context.instance_id, context.path, context.attempt, context.idempotency_key, context.run,
                self._who.name, key in self._judge.zombies,
            )
        )  # fmt: skip

    def pay(self, cents: int) -> None:
        key = task_context().idempotency_key
        self._judge.tries[key] += 1
        self._judge.paid.setdefault(key, (task_context().instance_id, cents))

    def die(self) -> None:
        job, world = _job(), self._judge.world
        self._judge.seen[f"deaths of {job.live.instance_id}"] += 1
        world.note(f"{job.path} of {job.live.instance_id} kills {self._who.name}")
        world.kill_by_body(self._who)

    def pause(self) -> None:
        world = self._judge.world
        if world.chance.fault(("others first",), "a body") and not self._who.dead:
            world.let_others(4)
        world.check_alive(self._who)


def _job() -> Job:
    job: Any = task_context()._attempt
    assert isinstance(job, Job)
    return job


class Judge:
    """Looks on, and remembers what was wrong.

    Attributes:
        lines: what bodies have left outside.
        paid: by idempotency key, for whom and how much; ``tries``: how often it was asked for.
        permits: how often somebody has allowed a step to start once more.
        blamed: instances with which a session was lost that they did not kill.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[str] = []
        self.error: BaseException | None = None
        self.lines: list[LedgerLine] = []
        self.paid: dict[str, tuple[str, int]] = {}
        self.tries: Counter[str] = Counter()
        self.permits: Counter[tuple[str, str]] = Counter()
        self.blamed: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.zombies: set[Job] = set()
        self._started: Counter[tuple[str, int, str]] = Counter()
        self._attempts: Counter[tuple[int, Any, int]] = Counter()
        self._running: dict[tuple[int, Any], list[tuple[Machine, Job]]] = {}
        self._done: dict[int, tuple[int, set[Any]]] = {}

    def outside(self, who: Machine) -> SimOutside:
        return SimOutside(self, who)

    def found(self, text: str, error: BaseException | None = None) -> None:
        """A promise is broken; the schedule is over."""
        from .world import Over

        self.violations.append(text)
        self.error = self.error or error
        self.world.note(f"VIOLATION: {text}")
        raise Over from error

    # --- who is to blame ---

    def lost(self, session_id: int, instances: Iterable[str]) -> None:
        """A session was lost with these; if a poisonous step has killed it, nothing else of them is excused."""
        world = self.world
        who = next((each for each in world.machines if any(s.id == session_id for s in each.sessions)), None)
        if who is None or not who.poisoned:
            self.blamed.update(instances)

    def leaves(self, who: Machine) -> None:
        """A process goes of its own accord, whatever runs."""
        if (pool := who.pool) is not None:
            self.blamed.update(live.instance_id for live in (*pool._lives.values(), *pool._guests.values()))

    # --- versions ---

    def held_as_changed(self, instance_id: str, served_us: int) -> None:
        """An instance is held as its graph has changed, while others have served it for so long without a break."""
        from .world import LEASE_US

        self.seen["held: changed"] += 1
        if served_us > 3 * LEASE_US:  # whoever is slow may have asked long before, and stood still since
            self.found(f"{instance_id!r} is held as changed beside a worker that has its code")

    # --- bodies ---

    def starts(self, who: Machine, job: Job) -> None:
        """A body begins: nobody else may be at it, its outcome is not stored, and once is once."""
        live, path = job.live, job.path
        self._attempts[(live.instance, job.key, job.number)] += 1
        again = self._attempts[(live.instance, job.key, job.number)] > 1
        self.seen["bodies run again"] += again
        name = f"{path!r} of {live.instance_id!r} (attempt {job.number}, {who.name})"
        if again and not self.world.chance.faults and not self.world.poison:
            self.found(f"{name} begins again although nothing has gone wrong")
        if job.body.at_most_once:
            self._started[(live.instance_id, live.run, path)] += 1
            times = self._started[(live.instance_id, live.run, path)]
            if times > 1 + self.permits[(live.instance_id, path)]:
                self.found(f"{name} is at-most-once and starts for the {times}. time")
        place = (live.instance, job.key)
        others = [each for each in self._running.get(place, []) if self._runs(*each)]
        if self.has_claim(who, live):
            if job.key in self._done_of(live.instance):
                self.found(f"S2: {name} starts although its outcome is stored")
            for other, its in others:
                if its is not job:
                    self.found(f"S3: {name} starts while {other.name} runs attempt {its.number} of it")
            if live.workflow == "capped":
                self._check_capped(live.instance)
        else:
            lease = who.worker._room.lease
            if not live.guest and lease is not None and lease.beats and lease.session.id in self.world.store._sessions:
                self.found(f"{name} starts in the hands of a session that lives and does not hold it")
            self.seen["zombie starts"] += 1
        self._running[place] = [*others, (who, job)]

    def _runs(self, who: Machine, job: Job) -> bool:
        if who.dead or job.live.flights.get(job.key) is not job or job in self.zombies:
            return False
        if job.live.guest:  # until its session is over nobody may begin it anew, whatever has become of its offer
            return any(session.id in self.world.store._sessions for session in who.sessions[-1:])
        return self.has_claim(who, job.live)

    def has_claim(self, who: Machine, live: Any) -> bool:
        """Whether this process has the right to run that."""
        store, mine = self.world.store, {session.id for session in who.sessions}
        if live.guest:
            row = store._offers._rows.get(live.offer)
            return row is not None and row.session in mine and row.session in store._sessions
        run = store._runs.get(live.instance)
        return run is not None and run.session in mine and run.session in store._sessions

    def _done_of(self, instance: int) -> set[Any]:
        run = self.world.store._runs[instance]
        told, done = self._done.get(instance, (0, set()))
        for entry in run.journal[told:]:
            for fact in f.decode(entry.facts):
                if isinstance(fact, (f.StepDone, f.RouteTaken)):
                    done.add((fact.node, fact.turns))
        self._done[instance] = len(run.journal), done
        return done

    # --- after each step ---

    def step(self) -> None:
        world = self.world
        if world.watched.report.violations:
            self.found(f"watched: {world.watched.report.violations[0]}")
        if world.depth == 0 and world.steps % 16 == 0:
            self._check_live()

    def _check_capped(self, starting: int) -> None:
        """Of a workflow that is limited, so many instances run at a time."""
        from .world import MAX_RUNNING

        at_work = {place[0] for place, its in self._running.items() for each in its if self._runs(*each)} | {starting}
        runs = [self.world.store._runs[number] for number in at_work]
        capped = sum(run.definition.name == "capped" for run in runs)
        if capped > MAX_RUNNING:
            self.found(f"{capped} instances of 'capped' run at once, {MAX_RUNNING} may")

    def _check_live(self) -> None:
        """What a worker has in memory is what anybody would read from the store."""
        for who in self.world.alive():
            if (pool := who.pool) is None or who.busy:
                continue
            for live in list(pool._lives.values())[:2]:
                if live.entries or not self.has_claim(who, live):
                    continue
                loaded = self.world.store.load(live.instance_id)
                if loaded is None or loaded.header.instance != live.instance:
                    continue
                if frontier_of(live.plan, loaded) != live.state:
                    self.found(f"{live.instance_id!r} is otherwise in the memory of {who.name} than in the store")

    # --- at the end ---

    def check_rows(self) -> None:
        """Tell every journal and look at every row."""
        world = self.world
        now_us = world.now_us + 1_900_000_000_000_000
        report = check_store(world.store, now_us=now_us, max_crashes=None, laws_work=20_000)
        self._refuse([str(each) for each in report.violations])

    def check_end(self, replaced: Sequence[str]) -> None:
        self.check_rows()
        lines = [line for line in self.lines if line.instance not in replaced and not line.zombie]
        report = check_ledger(lines, self.world.store)
        zombies = {(line.instance, repr(line.path)) for line in self.lines if line.zombie}
        self._refuse(
            [
                str(each)
                for each in report.violations
                if not (
                    "never started" in each.text
                    and any(z == (each.instance_id, p) and p in each.text for z in zombies for p in [z[1]])
                )
            ]
        )
        if left := [row.run.made.instance_id for row in self.world.store._offers]:
            self.found(f"steps of {left} are left on offer")

    def _refuse(self, violations: Sequence[str]) -> None:
        world = self.world
        skewed = bool(world.skew_us or world.chance.counts["clock step"])
        for each in violations:
            if not (skewed and any(text in each for text in _OF_SKEW)):
                self.found(each)


def _is_of_a_zombie(violation: Violation, zombies: Sequence[tuple[str, str]]) -> bool:
    """A zombie's outcome counts if nobody else has taken the step up: it claims what is free, with another session."""
    of_them = any(name == violation.instance_id and path in violation.text for name, path in zombies)
    return of_them and "never started" in violation.text
