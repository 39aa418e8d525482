"""What the simulation has found, each in the smallest world that shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stepwell import Workflow
from stepwell.engine import facts as f
from stepwell.errors import BackendUnavailable

from . import bodies
from .customers import client_of, undisturbed
from .machine import Line
from .schedule import _close
from .world import LEASE_US, Machine, World, installed


class Scene:
    """A world in which only happens what the test says."""

    def __init__(self, world: World) -> None:
        self.world, self.client = world, client_of(world)

    def worker(self, *, gpu: bool = True, concurrency: int = 1, deaf: bool = False) -> Machine:
        made = self.world.spawn()
        made.tags = ["gpu"] if gpu else []
        made.worker._tags, made.worker._concurrency, made.deaf = tuple(made.tags), concurrency, deaf
        return made

    def start(self, workflow: Workflow[int, Any], instance_id: str = "i") -> None:
        self.client.start(workflow, 5, instance_id=instance_id)

    def turns(self, who: Machine, most: int = 20) -> None:
        """Let a worker go on until it has nothing to do at this moment; bodies do not end."""
        for _ in range(most):
            if who.next_us() is None or (who.next_us() or 0) > self.world.now_us:
                return
            self.world.calls_now = self.world.ticks = 0
            who.turn()

    def sharing(self, who: Machine) -> None:
        """Let a worker see that it has more than it can do for some time."""
        for _ in range(4):
            self.turns(who)
            self.world.now_us += 40_000

    def bodies(self, who: Machine, wanted: Callable[[str], bool] = lambda path: True) -> None:
        """Let its bodies come to their end."""
        for flying in [each for each in who.flying if wanted(each.job.path)]:
            flying.start_us = flying.end_us = self.world.now_us
            flying.go_on()

    def to_the_end(self, who: Machine, instance_id: str = "i") -> None:
        for _ in range(400):
            if self.state(instance_id) in ("completed", "failed", "cancelled", "held"):
                return
            self.turns(who)
            self.bodies(who)
            self.world.now_us += 10_000
        raise AssertionError(f"{instance_id} is {self.state(instance_id)}")

    def state(self, instance_id: str = "i") -> str:
        header = self.world.store.header(instance_id)
        assert header is not None
        return header.state

    def facts(self, kind: type, instance_id: str = "i") -> int:
        header = self.world.store.header(instance_id)
        assert header is not None
        rows = self.world.store.history(header.instance, 0, 1_000)
        return sum(isinstance(fact, kind) for row in rows for fact in f.decode(row.facts))

    def ended_rightly(self, workflow: Workflow[int, Any], instance_id: str = "i") -> bool:
        header = self.world.store.header(instance_id)
        assert header is not None
        raw = self.world.store.values(header.instance, [header.result_seq])[header.result_seq]
        self.world.judge.check_rows()
        return bool(self.world.store.codec.decode(raw) == undisturbed()[workflow.fingerprint, 5])


@contextmanager
def scene() -> Iterator[Scene]:
    undisturbed()
    with installed(world := World(1)):
        world.chance.calm, world.skew_us = True, 0
        try:
            yield Scene(world)
        finally:
            _close(world)


def failing(line: Any, method: str) -> None:
    """Let the next call of a method take effect, and its answer be lost."""
    call, done = line._call, list[bool]()

    def once(name: str, action: Callable[[], Any]) -> Any:
        answer = call(name, action)
        if name == method and not done:
            done.append(True)
            raise BackendUnavailable("the connection was lost, and the outcome is unknown")
        return answer

    line._call = once


def line_of(who: Machine) -> Line:
    store: Any = who.worker._store
    assert isinstance(store, Line)
    return store


def test_a_draining_worker_waits_in_peace() -> None:
    """What is due for others does not keep it awake, for as long as its last body runs."""
    with scene() as at:
        who = at.worker()
        at.start(bodies.capped, "a")
        at.turns(who)
        at.start(bodies.capped, "b")
        who.drain()
        at.turns(who)
        assert who.flying
        assert not at.world.judge.violations


def test_a_draining_worker_does_not_wait_for_what_is_on_offer() -> None:
    """Steps that nobody has claimed are left on offer, and the instance is free."""
    with scene() as at:
        who = at.worker()
        at.start(bodies.wide)
        at.sharing(who)
        assert at.world.store.header("i").offered  # type: ignore[union-attr]
        who.drain()
        for _ in range(3):
            at.turns(who)
            at.bodies(who)
        at.turns(who)
        assert who.done
        at.to_the_end(at.worker())
        assert at.ended_rightly(bodies.wide)


def test_the_end_of_an_earlier_guest_is_not_that_of_a_later_one() -> None:
    """A worker that has lost its session, and claims the same offer again, hears of what its first body came to."""
    with scene() as at:
        holder, other = at.worker(), at.worker(gpu=False, concurrency=8)
        at.start(bodies.wide)
        at.sharing(holder)
        at.turns(other)
        earlier = list(other.flying)
        assert earlier
        at.world.store._end(at.world.store._sessions[other.sessions[-1].id], lost=True)
        other.worker._mailbox.put(None)
        at.turns(other)
        for flying in earlier:
            flying.start_us = flying.end_us = at.world.now_us
            flying.go_on()
        at.turns(other)
        assert at.facts(f.AttemptFailed) == 0
        assert other.pool._flights.count >= 0


def test_a_start_in_doubt_is_ours() -> None:
    """An at-most-once step whose recorded start was not acknowledged has not begun, and so is not cut off."""
    with scene() as at:
        who = at.worker()
        at.start(bodies.careful)
        failing(line_of(who), "commit")
        at.to_the_end(who)
        assert at.facts(f.RunHeld) == 0
        assert at.ended_rightly(bodies.careful)


def test_a_pause_and_its_end_in_one_turn_cut_nothing_off() -> None:
    """A begun step that waits on offer is still to begin, whatever was asked meanwhile."""
    with scene() as at:
        who = at.worker(gpu=False, concurrency=4)
        at.start(bodies.tagged)
        at.turns(who)
        assert at.facts(f.StepBegan) == 1
        at.client.pause("i")
        at.client.resume("i")
        who.worker._mailbox.put(None)
        at.turns(who)
        assert at.facts(f.RunHeld) == 0


def test_an_instance_that_is_paused_with_steps_in_the_backlog_is_given_back() -> None:
    """Else it is held by a session that does not work on it, and no resume is ever read."""
    with scene() as at:
        who = at.worker()
        at.start(bodies.careful, "a")
        at.turns(who)
        at.bodies(who)
        at.turns(who)
        at.start(bodies.capped, "b")
        at.turns(who)
        at.client.pause("a")
        who.worker._mailbox.put(None)
        for _ in range(4):
            at.turns(who)
            at.bodies(who)
        header = at.world.store.header("a")
        assert header is not None
        assert (header.state, header.session) == ("paused", 0)


def test_what_was_paused_and_lost_is_taken_up_once() -> None:
    """A row that was left in the middle of a pause is written at rest, and is not due again and again."""
    with scene() as at:
        first = at.worker(concurrency=4)
        at.start(bodies.slow)
        at.turns(first)
        at.client.pause("i")
        first.worker._mailbox.put(None)
        at.turns(first)
        assert at.facts(f.RunPaused) == 1
        at.world.kill(first)
        at.world.now_us += 2 * LEASE_US
        second = at.worker()
        at.turns(second)
        assert not at.world.judge.violations
        assert at.state() == "paused"


def test_a_loss_is_told_at_the_time_when_it_is_heard() -> None:
    """The store gives no time for a lost offer; the journal has one all the same."""
    with scene() as at:
        holder = at.worker()
        at.start(bodies.wide)
        at.sharing(holder)
        for _ in range(2):
            guest = at.worker(gpu=False, concurrency=8)
            at.turns(guest)
            assert guest.flying
            at.world.store._end(at.world.store._sessions[guest.sessions[-1].id], lost=True)
            guest.die()
        holder.worker._mailbox.put(None)
        at.turns(holder)
        header = at.world.store.header("i")
        assert header is not None
        assert at.facts(f.StepCrashed) > 0
        assert all(row.at_us > 0 for row in at.world.store.history(header.instance, 0, 100))


def test_a_worker_that_leaves_in_an_outage_ends() -> None:
    """Its session cannot be ended then, which is no error of its own."""
    with scene() as at:
        who = at.worker()
        at.start(bodies.capped)
        at.turns(who)
        at.world.out_until_us = at.world.now_us + 10 * LEASE_US
        who.leave()
        at.turns(who)
        assert who.done
        assert not at.world.judge.violations


def test_an_outcome_that_waits_in_the_inbox_is_no_cut_off() -> None:
    """A begun step that was run elsewhere has ended, though its holder died before it heard of it."""
    with scene() as at:
        holder, guest = at.worker(gpu=False, concurrency=4), at.worker(concurrency=4)
        at.start(bodies.tagged)
        at.turns(holder)
        at.turns(guest)
        at.bodies(guest)
        at.turns(guest)
        at.world.kill(holder)
        at.world.now_us += 2 * LEASE_US
        at.to_the_end(at.worker(concurrency=4))
        assert at.facts(f.RunHeld) == 0
        assert at.ended_rightly(bodies.tagged)


def test_a_claim_in_doubt_is_not_forgotten() -> None:
    """What was claimed and not heard of is worked on all the same."""
    with scene() as at:
        who = at.worker()
        at.start(bodies.capped)
        failing(line_of(who), "claim_due")
        at.to_the_end(who)
        assert at.ended_rightly(bodies.capped)
