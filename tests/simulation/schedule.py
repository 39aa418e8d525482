"""One schedule from its seed to its verdict, and how a failing one is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from stepwell.backend.base import Filter

from . import bodies
from .chance import Fault
from .customers import Customer, client_of, undisturbed
from .world import LEASE_US, POLL_US, Over, World, installed

RATES: Final[Mapping[str, float]] = {
    "kill": 0.006,
    "freeze": 0.006,
    "outage": 0.003,
    "drain": 0.004,
    "leave": 0.003,
    "clock step": 0.004,
    "pass by": 0.02,
    "kill before": 0.003,
    "kill after": 0.003,
    "lost reply": 0.02,
    "refused": 0.02,
    "others first": 0.05,
    "others after": 0.05,
    "stall before": 0.003,
    "stall after": 0.003,
    "late renewal": 0.05,
    "no word": 0.5,
}
MANY: Final = {"capped": 5, "edited": 4}  # instances of a workflow; of others one or two
STEPS_MAX: Final = 4_000
SETTLE_US: Final = 45_000_000
SETTLE_STEPS: Final = 12_000
IDLE_US: Final = 6_000_000


@dataclass
class Told:
    """What one schedule came to."""

    seed: int
    steps: int = 0
    now_us: int = 0
    violations: list[str] = field(default_factory=list[str])
    faults: list[Fault] = field(default_factory=list[Fault])
    seen: Counter[str] = field(default_factory=Counter[str])
    instances: int = 0
    states: Counter[str] = field(default_factory=Counter[str])
    log: Sequence[str] = ()
    error: BaseException | None = None


def tell(
    seed: int, *, only: Sequence[int] | None = None, trace: bool = False, kinds: Sequence[str] | None = None,
    workflows: Sequence[str] | None = None,
    meddling: bool | None = None,
) -> Told:  # fmt: skip
    """Tell one schedule.

    Args:
        only: the occasions on which something may go wrong; default all.
        kinds: what may go wrong at all; default what the seed says.
        workflows: what is run; default what the seed says.
        meddling: whether clients pause, resume and cancel; default what the seed says.
    """
    undisturbed()
    with installed(world := World(seed, only, trace=trace)):
        try:
            _play(world, kinds, workflows, meddling)
        except Over:
            pass
        finally:
            _close(world)
    states = Counter(header.state for header in world.store.list(Filter(limit=1_000)))
    judge = world.judge
    judge.seen.update(world.chance.counts)
    return Told(
        seed, world.steps, world.now_us, judge.violations, world.chance.faults, judge.seen, sum(states.values()),
        states, world.log or (), judge.error,
    )  # fmt: skip


def _play(world: World, kinds: Sequence[str] | None, workflows: Sequence[str] | None, meddling: bool | None) -> None:
    chance = world.chance
    drawn = [kind for kind in RATES if chance.maybe(0.4)]
    wild = chance.pick([0.3, 1.0, 1.0, 2.5])
    names = [each.name for each in bodies.SERVED if each.name != "sleeper"]
    chosen = chance.rng.sample(names, chance.between(2, 5))
    world.meddling = chance.maybe(0.4) if meddling is None else meddling
    chosen = list(workflows) if workflows is not None else chosen
    if workflows is None and chance.maybe(0.3):
        chosen.append("edited")
    world.versions = bodies.VERSIONS if "edited" in chosen else ()
    world.poison = "poison" in chosen or "exiting" in chosen
    client = client_of(world)
    customers = _customers(world, client, chosen)
    world.extra += [customer.occasion for customer in customers]
    for version in world.versions:
        world.store.register(version.name, version.fingerprint, version.plan.to_bytes())
    client.start(bodies.sleeper, 1, instance_id="sleeper")
    client.start(bodies.foreign, 1, instance_id="foreign")
    untouched = world.store.header("foreign"), world.store.history(2, 0, 99)
    if kinds is not None:
        drawn, wild = list(kinds), 3.0
    chance.rates = {kind: RATES[kind] * wild for kind in drawn}
    while world.steps < STEPS_MAX and not all(customer.over for customer in customers):
        world.step()
    _settle(world, customers)
    world.judge.check_end([])
    _idle(world)
    if untouched != (world.store.header("foreign"), world.store.history(2, 0, 99)):
        world.judge.found("an instance of a workflow that nobody serves was touched")


def _customers(world: World, client: object, chosen: Sequence[str]) -> list[Customer]:
    served = {each.name: [each] for each in bodies.SERVED} | {"edited": [*bodies.VERSIONS]}
    found = [name for name in chosen for _ in range(MANY.get(name) or world.chance.between(1, 2))]
    return [
        Customer(world, client, served[name][number % len(served[name])], number)
        for number, name in enumerate(found, 1)
    ]  # type: ignore[arg-type]


def _settle(world: World, customers: Sequence[Customer]) -> None:
    """Let the faults end; from then on everything must end within bounds."""
    world.calm()
    if not any(who.tags for who in world.alive()):
        world.spawn()
        world.machines[-1].tags = ["gpu"]
    if world.versions and not any(who.version is world.versions[-1] for who in world.alive()):
        world.spawn(world.versions[-1])
    until_us, until = world.now_us + SETTLE_US, world.steps + SETTLE_STEPS
    while left := [each for each in customers if not each.over]:
        if world.now_us > until_us or world.steps > until:
            headers = [world.store.header(each.instance_id) for each in left]
            told = [
                f"{each.instance_id} {each.state} due {each.due_us} held by {each.held_by!r} mail {each.mail}"
                for each in headers
                if each
            ]
            world.judge.found(f"it does not end, {world.now_us - until_us + SETTLE_US} us after the last fault: {told}")
        world.step()


def _idle(world: World) -> None:
    """Where there is nothing to do, next to nothing is done."""
    world.now_us += 2 * LEASE_US
    for _ in range(50):
        world.step()
    world.calls.clear()
    until_us = world.now_us + IDLE_US
    while world.now_us < until_us:
        world.step()
    most = 3 * (IDLE_US // POLL_US + 5) * (len(bodies.SERVED) + 8)
    for who, calls in world.calls.items():
        if calls > most:
            world.judge.found(f"{who} has made {calls} calls in {IDLE_US / 1e6} idle seconds, {most} are enough")


def _close(world: World) -> None:
    """Leave no generator to the garbage collector."""
    world.chance.calm = True
    world.depth = 99
    for who in world.machines:
        who.dead = True
        who._gone()


def shrink(seed: int, told: Told, **how: object) -> tuple[list[int], Told]:
    """Return as few faults as still lead to a violation, by leaving out more and more of them."""
    kept, best, size = [fault.nth for fault in told.faults], told, max(1, len(told.faults) // 2)
    while size:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            again = tell(seed, only=fewer, **how)  # type: ignore[arg-type]
            if again.violations:
                kept, best = [fault.nth for fault in again.faults], again
            else:
                at += size
        size //= 2
    return kept, best


def shown(told: Told, kept: Sequence[int], lines: int = 40) -> str:
    """Return a failing schedule in words, with the command that tells it again."""
    only = ",".join(map(str, kept))
    again = tell(told.seed, only=kept, trace=True)
    log = list(again.log or told.log)
    return "\n".join(
        [
            f"seed {told.seed}: {'; '.join(again.violations or told.violations)}",
            f"faults: {', '.join(f'{fault.kind} ({fault.where})' for fault in again.faults) or 'none'}",
            *(["..."] if len(log) > lines else []),
            *log[-lines:],
            f"replay: PYTHONPATH=src python -m tests.simulation.replay {told.seed} --only {only or 'none'}",
        ]
    )
