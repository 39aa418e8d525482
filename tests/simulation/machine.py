"""One worker's process as the simulation has it: hands that keep what they were given, a lease without a thread, and a
connection to the store on which anything may go wrong.

All of it runs in the one thread of the test. Where a real process would be interrupted, at each call of the store and
in the middle of a body, the world may let others go on before this one does; that is how turns of several processes,
and the threads of one, come to overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec.structs import replace

from stepwell.backend.base import Holder, Session
from stepwell.errors import BackendUnavailable
from stepwell.runtime.clock import Mailbox
from stepwell.runtime.hands import Fatal, perform_here
from stepwell.runtime.invoke import Job, Outcome, failed, perform_async
from stepwell.runtime.lease import BEATS, TRIES, Lease
from stepwell.testing.faults import FaultyBackend

if TYPE_CHECKING:
    from stepwell.runtime.upkeep import Purger

    from .world import Machine, World

T = TypeVar("T")

_FREE: Final = frozenset({"hint", "watch", "close", "plan"})
_ON_A_CALL: Final = (
    "kill before", "kill after", "lost reply", "refused", "others first", "others after", "stall before", "stall after"
)  # fmt: skip
_BODY_US: Final = 1_200_000
_QUICK_US: Final = 300


class Killed(BaseException):
    """The process is gone; nothing of it runs any more."""


class Line(FaultyBackend):
    """A connection to the store that belongs to one process.

    Args:
        who: the process; ``None``: a client, which is never killed.
    """

    def __init__(self, world: World, who: Machine | None) -> None:
        super().__init__(world.watched, ())
        self._world, self._who = world, who

    def _call(self, method: str, action: Callable[[], T]) -> T:
        world, who = self._world, self._who
        world.check_alive(who)
        world.count_call(who, method)
        if method in _FREE:
            return action()
        kind = world.chance.fault(_ON_A_CALL, f"{method} of {who.name if who else 'client'}")
        if world.is_out() or kind == "refused":
            raise BackendUnavailable(f"the store cannot be reached ({method})")
        self._before(kind)
        result = action()
        if kind == "lost reply":
            raise BackendUnavailable(f"the connection was lost, the outcome of {method} is unknown")
        self._after(kind)
        return result

    def _before(self, kind: str) -> None:
        world, who = self._world, self._who
        if kind == "kill before" and who is not None:
            world.kill(who)
        elif kind == "others first":
            world.let_others(6)
        elif kind == "stall before" and who is not None:
            world.stall(who)
        world.check_alive(who)

    def _after(self, kind: str) -> None:
        world, who = self._world, self._who
        if kind == "kill after" and who is not None:
            world.kill(who)
        elif kind == "others after":
            world.let_others(6)
        elif kind == "stall after" and who is not None:
            world.stall(who)
        world.check_alive(who)

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        """Nobody can prove by a pid that a simulated process is gone."""
        session = super().open_session(replace(holder, boot_id=""), lease_us)
        if self._who is not None:
            self._who.sessions.append(session)
        return session

    def watch(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Word of others' writes may not come."""
        world, who = self._world, self._who
        assert who is not None

        def perhaps() -> None:
            if not who.dead and not who.deaf and world.chance.fault(("no word",), f"to {who.name}") != "no word":
                wake()

        if world.chance.maybe(0.07):
            return None
        end = super().watch(perhaps)
        assert end is not None
        who.ends.append(end)
        return end


class QuietLease(Lease):
    """A lease that is renewed when the world says so."""

    def __init__(
        self, who: Machine, backend: Any, session: Session, purger: Purger | None, on_lost: Callable[[str], None]
    ) -> None:
        self.session, self.lost, self.renewed_us = session, False, who.world.now_us
        self._backend, self._purger, self._on_lost, self._clock = backend, purger, on_lost, who.world.lease_us
        self.stopped = False
        self.next_us = who.world.now_us + session.lease_us // BEATS
        who.leases.append(self)

    def stop(self) -> None:
        self.stopped = True

    @property
    def beats(self) -> bool:
        return not self.stopped and not self.lost

    def beat(self, now_us: int) -> None:
        self.next_us = now_us + self.session.lease_us  # while it is under way, no other one is
        renewed = self._renew()
        self.next_us = self._clock() + self.session.lease_us // (BEATS if renewed else TRIES)


class SlowMailbox(Mailbox):
    """A mailbox for which others have to go on before something comes."""

    def __init__(self, who: Machine) -> None:
        super().__init__()
        self._who = who

    def wait(self, timeout_s: float | None) -> list[object]:
        if self.empty() and timeout_s:
            self._who.world.pass_time(int(timeout_s * 1e6))
            self._who.world.check_alive(self._who)
        return self.drain()


class Flying:
    """A body in a thread or on the loop, from ``start_us`` to ``end_us``."""

    def __init__(self, who: Machine, job: Job, deliver: Callable[[object], None]) -> None:
        world = who.world
        self.who, self.job, self.deliver = who, job, deliver
        self.start_us = world.now_us + world.chance.span_us(20_000)
        self.end_us = self.start_us + world.chance.span_us(_QUICK_US if world.quick else _BODY_US)
        if world.chance.maybe(0.3):
            self.start_us = self.end_us
        self.outcome: object = None
        self.running, self.begun_us = False, 0
        if job.body.is_async:
            job.stop = self.stop

    @property
    def next_us(self) -> int:
        return self.end_us if self.outcome is not None else self.start_us

    def stop(self) -> None:
        self.end_us = min(self.end_us, max(self.start_us, self.who.world.now_us))
        if self.outcome is None:
            self.start_us = self.end_us

    def go_on(self) -> None:
        """Begin, or come to an end."""
        world = self.who.world
        if self.outcome is None:
            self.running, self.begun_us = True, world.now_us
            try:
                self.outcome = self._perform()
            finally:
                self.running = False
            if isinstance(self.outcome, Fatal) and isinstance(self.outcome.error, Killed):
                return
            if world.now_us < self.end_us:
                return
        self.who.flying.remove(self)
        self.job.took_us = max(1, self.end_us - self.begun_us) if world.chance.maybe(0.5) else 20
        self.deliver(self.outcome)

    def _perform(self) -> object:
        from stepwell.runtime.context import Cell

        job = self.job
        if not job.body.is_async:
            return job.context.run(perform_here, Cell(), job)
        if job.stopped:
            return failed(job, RuntimeError(job.stopped))
        return job.context.run(_run_at_once, job)


def _run_at_once(job: Job) -> Outcome | Fatal:
    """Run an async body that never waits for anything."""
    running = perform_async(job)
    try:
        running.send(None)
    except StopIteration as done:
        outcome: Outcome = done.value
        return outcome
    except BaseException as error:  # noqa: BLE001  # as on the real loop
        return Fatal(job, error)
    raise AssertionError("no body of the simulation waits")


class Hands:
    """In place of a room's threads and of its loop."""

    def __init__(self, who: Machine) -> None:
        self._who = who

    def submit(self, jobs: Sequence[Job], deliver: Callable[[object], None]) -> None:
        self._who.flying += [Flying(self._who, job, deliver) for job in jobs]

    def abandon(self, job: Job) -> None: ...

    def close(self) -> None: ...
