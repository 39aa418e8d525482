"""A worker: one process among many that work on the instances of one store.

``run`` is a drive in a loop. An outage of the store is waited out inside of it (:mod:`.patience`), a lost lease ends it
and the next one begins with a fresh session. Whoever asks it to stop leaves word in its mailbox.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import signal
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from stepwell.backend.liveness import lease_clock
from stepwell.engine.events import MAX_CRASHES
from stepwell.errors import BackendError, Closed, LeaseLost, OptionError, UsageError
from stepwell.timing import SECOND_US, Duration, duration_us

from .clock import Clock, Mailbox, Wait
from .drive import Turns_
from .drivers import check_no_loop, sit_through
from .lease import TRUSTED
from .patience import patient
from .pooling import Drain, Leave, Pool
from .room import Room
from .upkeep import Retention

if TYPE_CHECKING:
    from types import FrameType

    from stepwell.backend.base import Backend
    from stepwell.flow.workflow import AnyWorkflow

_LOG: Final = logging.getLogger("stepwell.worker")

SHORT_POLL_US: Final = 10_000  # a store that tells of nothing is asked at least so often whether anybody has written
CONCURRENCY_MAX: Final = 4_096
_PAUSE_S: Final = (0.05, 2.0)  # between tries to reach a store, doubled from the first to the last

WorkerState: TypeAlias = Literal["new", "running", "draining", "stopped"]


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """How a worker is. ``healthy`` is what a probe asks for.

    Attributes:
        name: what others see as holder.
        state: ``new``, ``running``, ``draining`` or ``stopped``.
        workflows: the names of those it serves.
        tags: what it can do besides.
        concurrency: how many bodies it runs at a time at most.
        running: how many run now.
        held: how many instances it holds.
        guests: how many of the running bodies are steps of instances that other workers hold.
        lease_left_s: for how long its claims are safe if it cannot reach the store any more, ``None`` without a claim.
        trouble: what the store's trouble is while it cannot be reached, else ``""``.

    Example:
        >>> health = worker.health()  # doctest: +SKIP
        >>> 200 if health.healthy else 503, health.trouble  # doctest: +SKIP
        (200, '')
    """

    name: str
    state: WorkerState
    workflows: tuple[str, ...]
    tags: tuple[str, ...]
    concurrency: int
    running: int
    held: int
    guests: int
    lease_left_s: float | None
    trouble: str

    @property
    def healthy(self) -> bool:
        """Whether it works, or is about to end as it was asked to, and reaches its store."""
        return self.state in ("running", "draining") and not self.trouble


class PooledWorker:
    """Works on the instances of some workflows, beside any number of other workers on the same store.

    Instances of older graphs than its code's are left to live workers that have theirs, until there are none.

    Args:
        backend: the store that all workers and clients share: PostgreSQL, or one SQLite file on one machine.
        workflows: what it serves, also two versions of one; instances of other workflows are left to others.
        concurrency: how many bodies run at a time, 1 to 4 096. Instances that only wait take no place.
        tags: what this worker can do besides: a task with ``tags=["gpu"]`` runs only where they are all given.
        lease: how long its claims outlive its last sign of life, at least 1 s. Bodies are told to stop after four
            fifths of it without one.
        poll: how long it takes at most to find work that nobody told it about, at least 10 ms.
        deps: values for ``inject()``, by type.
        name: what others see as the holder of an instance; ``host:pid`` by default. It guards nothing, so two workers
            of one name do no harm.
        max_crashes: after so many deaths of a process in one step, default 5, tried apart from other suspects, the
            instance is held as ``quarantined``; ``client.decide`` ends that.
        max_running: by workflow name, how many of its instances may be held by all workers together, in each lane
            (``client.start(..., lane=)``). All workers should be given the same.
        retention: which ended instances are kept; any worker removes the others.
        clock: a test's own clock.

    Raises:
        UsageError: not a backend, or no workflow.
        MissingDependency: a task needs what ``deps`` does not have.
        OptionError: an option is out of range.

    Example:
        >>> worker = PooledWorker(backend, [checkout], concurrency=16)
        >>> worker.run()  # until SIGTERM or Ctrl-C
    """

    def __init__(
        self,
        backend: Backend,
        workflows: Iterable[AnyWorkflow],
        *,
        concurrency: int = 32,
        tags: Sequence[str] = (),
        lease: Duration = "30s",
        poll: Duration = "5s",
        deps: Mapping[Any, object] | None = None,
        name: str = "",
        max_crashes: int = MAX_CRASHES,
        max_running: Mapping[str, int] | None = None,
        retention: Retention | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not hasattr(backend, "codec"):
            raise UsageError(
                f"a worker is given a backend, not a {type(backend).__name__}; write SqliteBackend('file.db')"
            )
        self._workflows = list(workflows)
        self._concurrency = _whole(concurrency, "concurrency", CONCURRENCY_MAX)
        self._tags = _checked_tags(tags)
        self._most = {key: _whole(most, f"max_running of {key!r}") for key, most in (max_running or {}).items()}
        self._poll_us = duration_us(poll, "poll", least_us=10_000)
        self._store, self._trouble = backend, ""
        self._room = Room(
            backend,
            deps=deps,
            threads=self._concurrency,
            lease_us=duration_us(lease, "lease", least_us=SECOND_US),
            poll_us=min(SHORT_POLL_US, self._poll_us),
            clock=clock,
            retention=retention,
            max_crashes=max_crashes,
            name=name or f"{platform.node()}:{os.getpid()}",
        )
        self._room.backend = patient(backend, self._bear, self._well)
        self._names = self._checked_workflows()
        self._state: WorkerState = "new"
        self._lock = threading.RLock()  # a signal handler may find its own thread inside
        self._leaving = threading.Event()
        self._stopped = threading.Event()
        self._mailbox = Mailbox()
        self._pool: Pool | None = None

    def _checked_workflows(self) -> tuple[str, ...]:
        names = [self._room.prepare(each, register=False).workflow.name for each in self._workflows]
        if not names:
            raise UsageError("a worker serves at least one workflow; pass a list of them")
        if unknown := sorted(set(self._most) - set(names)):
            raise OptionError(f"max_running names {unknown[0]!r}, which this worker does not serve")
        return tuple(dict.fromkeys(names))

    # --- working ---

    def run(self) -> None:
        """Work until asked to stop. In the main thread, SIGTERM and Ctrl-C ask it: once to drain, twice to leave.

        Draining takes up nothing more, lets what runs come to its end (30 s at most) and gives the rest back at once.
        Leaving waits for nothing; what was not recorded runs again elsewhere.

        Raises:
            UsageError: it has run already.
            BackendError: the store is damaged, or of a newer stepwell. An outage is waited out and not raised.
        """
        check_no_loop("PooledWorker")
        with self._signals():
            self._work()

    async def run_async(self) -> None:
        """As :meth:`run`, awaited; it works in a thread of its own. When it is cancelled it drains, and then ends."""
        import asyncio

        working = asyncio.ensure_future(asyncio.to_thread(self._work))
        try:
            await asyncio.shield(working)
        except asyncio.CancelledError:
            self.shutdown()
            await working
            raise

    def start(self) -> WorkerHandle:
        """Work in a thread of its own, and return a handle to it at once."""
        return WorkerHandle(self)

    def _work(self) -> None:
        with self._lock:
            if self._state != "new":
                raise UsageError(f"this worker is {self._state}; a worker runs once, make another one")
            self._state = "running"
        _LOG.debug("worker %s serves %s", self._room.name, ", ".join(self._names))
        try:
            sit_through(self._turns(), self._mailbox, self._room.clock)
        finally:
            self._state = "stopped"
            self._stopped.set()
            self._close()

    def _close(self) -> None:
        """End the session, so that nobody has to wait for its lease; if the store is out of reach they have to."""
        try:
            self._room.close()
        except (BackendError, LeaseLost, Closed) as error:
            _LOG.warning("worker %s could not end its session: %s", self._room.name, error)

    def _turns(self) -> Turns_:
        while not self._leaving.is_set() and (yield from self._spell()):
            pass

    def _spell(self) -> Generator[Wait, Sequence[object], bool]:
        """Work with one session; return whether to go on with another one."""
        try:
            pool = Pool(
                self._room,
                self._mailbox,
                self._workflows,
                concurrency=self._concurrency,
                tags=self._tags,
                poll_us=self._poll_us,
                most=self._most,
            )
            with pool:
                self._pool = pool
                if self._state == "draining":
                    return False
                yield from pool.turns()
        except LeaseLost as error:
            _LOG.warning("worker %s begins anew: %s", self._room.name, error)
            return self._state == "running"
        except Closed:
            if not self._leaving.is_set():
                raise
        finally:
            self._pool = None
        return False

    # --- the store's troubles ---

    def _bear(self, error: Exception, tries: int) -> None:
        """Wait a little for a store that cannot be reached; give up when the lease is over or the worker leaves."""
        if not self._trouble:
            _LOG.warning("worker %s cannot reach its store, and waits for it: %s", self._room.name, error)
        self._trouble = str(error)
        if self._pool is not None:
            self._pool.in_doubt = True
        lease = self._room.lease
        if lease is not None and not lease.check():
            self._room.lost(lease.session)
            raise LeaseLost("the store was out of reach for too long")
        pause_s = min(_PAUSE_S[0] * 2 ** min(tries, 16), _PAUSE_S[1]) * random.uniform(0.5, 1.0)  # noqa: S311  # spreads
        if self._leaving.wait(pause_s):
            raise Closed("the worker was stopped while its store was out of reach") from error

    def _well(self) -> None:
        _LOG.warning("worker %s reaches its store again", self._room.name)
        self._trouble = ""

    # --- stopping ---

    def shutdown(self, grace: Duration = "30s") -> None:
        """Ask it to drain, from any thread: take up nothing, let what runs end, give the rest back. Returns at once.

        Args:
            grace: how long bodies may take; then it leaves all the same.
        """
        grace_us = duration_us(grace, "grace", least_us=0)
        with self._lock:
            if self._state != "running":
                self._state = "stopped" if self._state == "new" else self._state
                return
            self._state = "draining"
        self._mailbox.put(Drain())
        timer = threading.Timer(grace_us / 1e6, self.leave)
        timer.daemon = True
        timer.start()

    def leave(self) -> None:
        """Ask it to end at once, from any thread. What runs is not waited for; its outcome is refused."""
        self._leaving.set()
        self._mailbox.put(Leave())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._state == "running":
            self.shutdown()
        else:
            self.leave()

    @contextmanager
    def _signals(self) -> Generator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- looking ---

    def health(self) -> WorkerHealth:
        """Return how it is now. Asks nobody and waits for nothing, so a probe may call it from any thread."""
        pool, lease = self._pool, self._room.lease
        left_us = None
        if lease is not None and not lease.lost:
            left_us = lease.renewed_us + TRUSTED * lease.session.lease_us - lease_clock()
        return WorkerHealth(
            name=self._room.name,
            state=self._state,
            workflows=self._names,
            tags=tuple(self._tags),
            concurrency=self._concurrency,
            running=pool.running if pool is not None else 0,
            held=pool.held if pool is not None else 0,
            guests=pool.guests if pool is not None else 0,
            lease_left_s=None if left_us is None else max(0.0, left_us / 1e6),
            trouble=self._trouble,
        )


class WorkerHandle:
    """A worker that runs in a thread of its own.

    Example:
        >>> with worker.start() as handle:  # leaving the block drains it
        ...     client.start(checkout, order)
    """

    def __init__(self, worker: PooledWorker) -> None:
        self._worker = worker
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="stepwell-worker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._worker._work()  # pyright: ignore[reportPrivateUsage]
        except BaseException as error:  # noqa: BLE001  # it is raised by join()
            self._error = error

    def shutdown(self, grace: Duration = "30s") -> None:
        """Ask it to drain; returns at once. See :meth:`PooledWorker.shutdown`."""
        self._worker.shutdown(grace)

    def join(self, timeout: Duration | None = None) -> None:
        """Wait until it has ended.

        Args:
            timeout: the longest wait: seconds, ``timedelta`` or ``"30s"``; default for ever.

        Raises:
            TimeoutError: it has not ended by then; it goes on all the same.
            BackendError: what ended it before it was asked to.
        """
        self._thread.join(None if timeout is None else duration_us(timeout, "timeout") / 1e6)
        if self._thread.is_alive():
            raise TimeoutError("the worker has not ended within the timeout; leave() ends it at once")
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Ask it to end at once. See :meth:`PooledWorker.leave`."""
        self._worker.leave()

    def health(self) -> WorkerHealth:
        """Return how it is now."""
        return self._worker.health()

    def __enter__(self) -> WorkerHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.join()


def _whole(number: object, what: str, most: int = 1_000_000) -> int:
    if type(number) is not int or not 1 <= number <= most:
        raise OptionError(f"{what} must be a whole number from 1 to {most}, not {number!r}")
    return number


def _checked_tags(tags: object) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise OptionError(f"tags must be a list or tuple of str, not {tags!r}")
    given = list(cast(Iterable[object], tags))
    if not all(isinstance(tag, str) and tag for tag in given):
        raise OptionError(f"tags must be a list or tuple of str, not {tags!r}")
    return tuple(sorted({str(tag) for tag in given}))
