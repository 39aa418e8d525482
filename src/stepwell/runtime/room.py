"""What all calls of one runner share: the store, the clock, the session, the hands, and who is working on what."""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from stepwell.codec import Codec, JsonCodec, check_codec
from stepwell.engine.events import MAX_CRASHES
from stepwell.errors import AlreadyRunning, BackendError, Closed, LeaseLost, OptionError, UsageError
from stepwell.flow.plan import Plan
from stepwell.flow.task import kind_of
from stepwell.observe.watching import Lookout

from .arrivals import Lapsed, Replaced
from .clock import AnyMailbox, Clock, SystemClock
from .hands import Deliver, LoopThread, Threads
from .invoke import Job, Prepared
from .lease import Lease
from .upkeep import Purger, Retention

if TYPE_CHECKING:
    from stepwell.backend.base import Backend, Session
    from stepwell.engine.frontier import Frontier
    from stepwell.flow.workflow import AnyWorkflow

    from .live import Live
    from .processes import Processes

P = ParamSpec("P")
T = TypeVar("T")

_LOG: Final = logging.getLogger("stepwell.runtime")

THREADS_MAX: Final = 4_096
PLANS_MAX: Final = 256  # definitions a runner remembers at a time; others are read or composed again


class Room:
    """The shared part of a runner. Safe to use from several threads.

    Args:
        backend: where runs rest; ``None``: nowhere, values are passed as objects unless ``stored``.
        stored: send every value through the codec, as a backend would.
        retention: what of the ended instances is kept; the thread that keeps the lease removes the others.
        hands: ``False``: workflows are started and described here, and never run, so no dependency is needed.
        max_crashes: after so many deaths of a process in which a step was tried the run is held.
        name: how others see whoever holds instances here, ``host:pid`` by default.
    """

    def __init__(
        self,
        backend: Backend | None,
        *,
        codec: Codec | None = None,
        stored: bool = True,
        deps: Mapping[Any, object] | None = None,
        clock: Clock | None = None,
        threads: int = 32,
        lease_us: int = 30_000_000,
        poll_us: int = 50_000,
        hands: bool = True,
        retention: Retention | None = None,
        max_crashes: int = MAX_CRASHES,
        name: str = "",
    ) -> None:
        _check_given(codec, deps, clock)
        self.backend, self.hands = backend, hands
        self._store = backend  # as it is, where ``backend`` may be a patient one
        self.check_laws = _law_check()
        self.codec: Codec = codec or (backend.codec if backend is not None else JsonCodec())
        self.stored, self.limits = stored, self.codec.limits
        if not isinstance(threads, int) or not 1 <= threads <= THREADS_MAX:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"threads must be a whole number from 1 to {THREADS_MAX}, not {threads!r}")
        self.deps: Mapping[Any, object] = dict(deps or {})
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.lease_us, self.poll_us = lease_us, poll_us
        if type(max_crashes) is not int or max_crashes < 1:
            raise OptionError(f"max_crashes must be a whole number from 1 on, not {max_crashes!r}")
        self.max_crashes, self.name = max_crashes, name
        self.backend_id = backend.backend_id if backend is not None else secrets.token_hex(8)
        self._random = random.Random()  # noqa: S311  # spreads retries and names runs; guards nothing
        self.draw: Callable[[], float] = self._random.random
        self._threads_limit = threads
        self.quiet = threading.RLock()  # see Threads; a signal handler that commits meets the store, not itself
        self.entering = threading.RLock()  # between a claim in the store and the entry here nobody else may look
        self._lock = threading.RLock()
        self._prepared: dict[int, tuple[object, Prepared]] = {}
        self._plans: dict[tuple[str, str], tuple[bytes, Plan]] = {}
        self._working: dict[str, tuple[AnyMailbox, Live]] = {}
        self.lookout = Lookout()
        self._watching: list[AnyMailbox] = []
        self._closed = False
        self._threads: Threads | None = None
        self._loop_thread: LoopThread | None = None
        self._processes: Processes | None = None
        self._pid = os.getpid()
        self._lease: Lease | None = None
        self.keep_lease = Lease  # a simulation has another way to let time pass
        self._purger = Purger(backend, self.clock, retention) if backend is not None and retention is not None else None

    # --- workflows ---

    def prepare(self, runnable: object, *, register: bool = True) -> Prepared:
        """Return a workflow, task or function composed for this runner.

        Args:
            register: store its plan if that is not done yet; a transaction of the user's own does it by itself.

        Raises:
            MissingDependency, UsageError: before anything runs.
        """
        self.check_open()  # before the lock, which a forked child may have inherited locked
        with self._lock:
            known = self._prepared.get(id(runnable))
            if known is None or known[0] is not runnable:
                deps = self.deps if self.hands else None
                prepared = Prepared(self.workflow_in(runnable), self.codec, deps, self.stored)
                while len(self._prepared) >= PLANS_MAX:  # a program may build workflows without end
                    del self._prepared[next(iter(self._prepared))]
                self._prepared[id(runnable)] = runnable, prepared
            else:
                prepared = known[1]
        if register and self.backend is not None and not prepared.definition:
            # Without the lock: the store may be locked by a transaction whose task needs this room.
            plan = prepared.plan
            prepared.definition = self.backend.register(plan.name, plan.fingerprint, plan.to_bytes())
        return prepared

    @staticmethod
    def workflow_in(runnable: object) -> AnyWorkflow:
        """Return a workflow as it is, and a task or function as a workflow of one step. Raises UsageError."""
        from stepwell.flow.steps import is_workflow

        if is_workflow(runnable):
            return runnable
        if callable(runnable) and not isinstance(runnable, type):
            from stepwell.flow.builder import Flow
            from stepwell.flow.task import as_task
            from stepwell.flow.tracer import call_site

            task = as_task(runnable, None, call_site())
            return Flow(task.name).then(task).build()
        mend = "end it with build()" if hasattr(runnable, "build") else "make one with @workflow or Flow(...).build()"
        raise UsageError(f"a runner runs workflows and tasks, not a {type(runnable).__name__}; {mend}")

    def workflow_of(self, plan: Plan) -> AnyWorkflow | None:
        """Return the workflow with this very plan if this runner knows its code."""
        with self._lock:
            known = (p for _, p in self._prepared.values())
            return next(
                (p.workflow for p in known if (p.plan.fingerprint, p.plan.name) == (plan.fingerprint, plan.name)), None
            )

    def fresh_id(self) -> str:
        """Return an id that no other instance has; drawing it costs next to nothing."""
        return f"{self._random.getrandbits(80):020x}"

    def stored_plan(self, name: str, fingerprint: str) -> Plan | None:
        """Return a definition's plan as the store has it now: its numbers may have been tuned, so it is compared."""
        assert self.backend is not None
        stored = self.backend.plan(fingerprint, name)
        known = self._plans.get((name, fingerprint))
        if stored is None or (known is not None and known[0] == stored):
            return None if stored is None or known is None else known[1]
        if len(self._plans) >= PLANS_MAX:
            self._plans.clear()
        plan = Plan.from_bytes(stored)
        self._plans[(name, fingerprint)] = stored, plan
        return plan

    # --- who works on what ---

    def enter(self, live: Live, mailbox: AnyMailbox) -> None:
        """Note that a drive works on a run. Raises AlreadyRunning if one of this runner does so already."""
        with self._lock:
            self.make_way(live.instance_id, live.instance)
            if live.instance_id in self._working:
                raise AlreadyRunning(
                    live.instance_id, "it is running in this runner already; wait for that call to end"
                )
            self._working[live.instance_id] = mailbox, live
        live.observed = live.observed or self.lookout.run(live)
        if live.observed is not None:
            live.observed.entered(stored=self.backend is not None)

    def make_way(self, instance_id: str, instance: int) -> None:
        """Let a drive that works on an earlier run of an instance know that this one has taken its place."""
        with self._lock:
            working = self._working.get(instance_id)
            if working is not None and 0 < working[1].instance < instance:
                del self._working[instance_id]
                working[0].put(Replaced(working[1]))

    def leave(self, live: Live) -> None:
        with self._lock:
            if self._works_on(live.instance_id) is live:
                del self._working[live.instance_id]
        if live.observed is not None:
            live.observed.left("" if live.entries or live.lost is not None else live.state.ended)

    def holds(self, instance_id: str, instance: int) -> bool:
        """Say whether a drive of this runner works on this very run. Waits for nobody."""
        live = self._works_on(instance_id)
        return live is not None and live.instance == instance

    def _works_on(self, instance_id: str) -> Live | None:
        working = self._working.get(instance_id)
        return working[1] if working is not None else None

    def give_back(self, left: Iterable[Live]) -> None:
        """Store what is still unwritten of instances that were let go, and release their claims."""
        backend, held = self.backend, [live for live in left if live.instance]
        lost = self._lease is None or self._lease.lost  # then nothing is held any more, and others may have taken over
        if backend is None or not held or lost:
            return
        try:
            if late := [live for live in held if live.entries]:
                changes = [live.change(live.rest(True) if live.ended else None) for live in late]
                for live, outcome in zip(late, backend.commit(self.session(), changes), strict=True):
                    if live.observed is not None and outcome != "conflict":
                        live.observed.committed(live.base)
            with self.entering:  # another call of this runner may have taken it up since
                free = [live.instance for live in held if not self.holds(live.instance_id, live.instance)]
                backend.release(self.session(), free)
        except (BackendError, LeaseLost, Closed):
            return  # the claim ends with the session or its lease; the reason we are leaving matters more

    def wake(self, instance_id: str, item: object) -> bool:
        """Put something into the mailbox of the drive that works on an instance, if one does."""
        with self._lock:
            working = self._working.get(instance_id)
            watching = self._watching if working is None else []
            for mailbox in watching:  # it may be due now
                mailbox.put(None)
        if working is None:
            return False
        working[0].put(item)
        return True

    def watch(self, mailbox: AnyMailbox) -> None:
        """Let a drive that takes up what is due hear of messages for instances that nobody works on here."""
        with self._lock:
            self._watching.append(mailbox)

    def unwatch(self, mailbox: AnyMailbox) -> None:
        with self._lock:
            self._watching.remove(mailbox)

    def running(self, instance_id: str) -> Live | None:
        """Return an instance that a drive of this runner works on."""
        with self._lock:
            return self._works_on(instance_id)

    def running_plan(self, instance_id: str) -> Plan | None:
        """Return its plan."""
        live = self.running(instance_id)
        return live.plan if live is not None else None

    # --- the session ---

    def session(self) -> Session:
        """Return this runner's session, opening it at first need."""
        lease = self._lease
        if lease is not None and not lease.lost:
            return lease.session
        assert self.backend is not None
        assert self._store is not None
        with self._lock:
            self.check_open()
            if self._lease is None or self._lease.lost:
                from stepwell.backend.liveness import lease_clock, this_process

                opened_us = lease_clock()
                session = self.backend.open_session(this_process(self.name), self.lease_us)
                on_lost = partial(self._lease_lost, session)
                self._lease = self.keep_lease(self._store, session, opened_us, self._purger, on_lost)
            return self._lease.session

    @property
    def lease(self) -> Lease | None:
        """The lease of the session, ``None`` before the first need of one."""
        return self._lease

    def fenced(self, method: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store with the session. If that is lost, the next need opens another."""
        session = self.session()
        try:
            return method(session, *args, **kwargs)
        except LeaseLost:
            self.lost(session)
            raise

    def lost(self, session: Session) -> None:
        """Forget a session that was taken over. Raises Closed if :meth:`close` has ended it."""
        with self._lock:
            self.check_open()
            if self._lease is not None and self._lease.session == session:  # another drive may have been faster
                self._lease.stop()
                self._lease = None

    def _lease_lost(self, session: Session, why: str) -> None:
        """Let every drive know that what it works on is not its own any more."""
        with self._lock:
            mailboxes = {id(mailbox): mailbox for mailbox, _ in self._working.values()}
            mailboxes.update((id(mailbox), mailbox) for mailbox in self._watching)
        for mailbox in mailboxes.values():
            mailbox.put(Lapsed(why, session))

    # --- hands ---

    def threads(self) -> Threads:
        with self._lock:
            self.check_open()
            if self._threads is None:
                self._threads = Threads(self._threads_limit, self.quiet)
            return self._threads

    def loop_thread(self) -> LoopThread:
        with self._lock:
            self.check_open()
            if self._loop_thread is None:
                self._loop_thread = LoopThread()
            return self._loop_thread

    def in_process(self, job: Job, deliver: Deliver) -> Callable[[], None] | None:
        """Run a job in a worker process, and return how to stop it."""
        with self._lock:
            self.check_open()
            if self._processes is None:
                from .processes import Processes

                self._processes = Processes()
            return self._processes.submit(job, job.context, deliver).stop

    # --- the end ---

    def check_open(self) -> None:
        if self._closed:
            raise Closed(
                f"this {'runner' if self.hands else 'client'} is closed: its `with` block has ended, or close() was "
                f"called; make a new one"
            )
        if os.getpid() != self._pid:
            raise UsageError(
                "this runner was made before a fork, which its threads did not survive; make it afterwards"
            )

    def close(self) -> None:
        """End the session and the hands. Closing twice does nothing."""
        if os.getpid() != self._pid:
            return  # all it has is the parent's
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for mailbox in [*(mailbox for mailbox, _ in self._working.values()), *self._watching]:
                mailbox.put(None)  # whoever waits in another thread sees that it is closed
        try:  # without the lock: a body that is waited for may need it
            if self._lease is not None and self.backend is not None:
                self._lease.stop()
                self.backend.end_session(self._lease.session)
        finally:
            for hand in (self._threads, self._loop_thread, self._processes):
                if hand is not None:
                    hand.close()


def _check_given(codec: object, deps: object, clock: object) -> None:
    """Refuse here, by its name, what would fail somewhere deep inside otherwise. Raises OptionError."""
    if codec is not None:
        check_codec(codec)
    if deps is not None and not isinstance(deps, Mapping):
        raise OptionError(f"deps= takes values by their types, as deps={{Bank: bank}}, not {kind_of(deps)}")
    if clock is not None and (isinstance(clock, type) or not all(hasattr(clock, n) for n in ("now_us", "timeout_s"))):
        raise OptionError(
            f"clock= takes a clock, such as stepwell.testing.VirtualClock(), not {kind_of(clock)}; leave it out for "
            "the computer's own"
        )


def _law_check() -> Callable[[Plan, Frontier], object] | None:
    """Return what checks the engine's state after every event, if ``STEPWELL_CHECK_LAWS`` asks for it."""
    if os.environ.get("STEPWELL_CHECK_LAWS", "") in ("", "0"):
        return None
    from stepwell.engine.laws import check

    return check
