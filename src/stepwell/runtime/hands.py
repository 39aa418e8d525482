"""Where bodies run when not on the caller's own thread: daemon threads, and one private event loop.

Both take batches and deliver outcomes into a mailbox, so that a small task costs microseconds. Neither ever delays the
exit of the process. A thread that does not come back (its attempt timed out) stays counted, as Python cannot end it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

from stepwell.errors import StepCancelled
from stepwell.observe.logs import extras

from .context import CURRENT, Cell
from .invoke import Job, Outcome, failed, perform, perform_async

if TYPE_CHECKING:
    import asyncio

_LOG: Final = logging.getLogger("stepwell.runtime")


class Flight(NamedTuple):
    """A job handed over: how to stop it, if it can be stopped, and whether stopping ends it for certain."""

    job: Job
    stop: Callable[[], None] | None


class Fatal(NamedTuple):
    """A body raised something that is not an attempt's failure (Ctrl-C, SystemExit); the caller must see it."""

    job: Job
    error: BaseException


Deliver = Callable[[object], None]


FEW: Final = 4  # a batch of so many orders gets a thread for each at once
PACE_S: Final = 0.001


class Threads:
    """Up to ``limit`` daemon threads that share one queue of orders.

    Waking a thread for each small task costs more than the task. So a large batch wakes one thread, and while orders
    wait, a pacemaker looks in every millisecond and doubles the number of busy threads whenever the queue has not
    moved. Bodies that block soon all run side by side; bodies that return at once stay on one thread.

    Who holds ``quiet`` keeps threads from taking up the next job. A commit does: its many short calls each let go
    of the interpreter, and would each wait for a busy thread's whole time slice to get it back.
    """

    def __init__(self, limit: int, quiet: AbstractContextManager[object]) -> None:
        self._limit, self._quiet = limit, quiet
        self._jobs: deque[tuple[Job, Deliver]] = deque()
        self._rousings: SimpleQueue[bool] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = threading.Event()
        self._count = self._idle = self._taken = self._lost = 0
        self._pacing = self._closed = False

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        """Run each job in its context on some thread and deliver its :class:`Outcome`."""
        self._jobs.extend([(job, deliver) for job in jobs])
        if len(jobs) <= FEW:
            self._rouse(len(jobs))
        else:
            self._rouse(1)
            self._keep_pace()

    def abandon(self, job: Job) -> None:
        """Take note that a job will not be waited for; its thread ends with it."""
        self._lost += 1
        _LOG.warning(
            "a thread is still running %s of %s after its timeout (%d of %d threads are lost this way)",
            job.path,
            job.live.instance_id,
            self._lost,
            self._limit,
            extra=extras(job.live, job.path, job.number),
        )

    def close(self) -> None:
        """Let idle threads end."""
        self._closed = True
        self._waiting.set()
        for _ in range(self._count):
            self._rousings.put(False)

    def _rouse(self, wanted: int) -> None:
        with self._lock:
            for _ in range(wanted):
                if self._idle:
                    self._idle -= 1
                elif self._count < self._limit:
                    self._count += 1
                    threading.Thread(target=self._work, name=f"stepwell-task-{self._count}", daemon=True).start()
                else:
                    return
                self._rousings.put(True)

    def _work(self) -> None:
        cell = Cell()
        while self._rousings.get():
            while (order := self._next()) is not None:
                job, deliver = order
                with self._quiet:
                    pass
                deliver(job.context.run(perform_here, cell, job))
                del order, job  # an idle thread must not keep the last run's values alive

    def _next(self) -> tuple[Job, Deliver] | None:
        while True:
            try:
                order = self._jobs.popleft()
            except IndexError:
                with self._lock:  # a job that comes after this look finds the thread counted as idle
                    if not self._jobs:
                        self._idle += 1
                        return None
            else:
                self._taken += 1
                return order

    def _keep_pace(self) -> None:
        with self._lock:
            if not self._pacing:
                self._pacing = True
                threading.Thread(target=self._pace, name="stepwell-pace", daemon=True).start()
        self._waiting.set()

    def _pace(self) -> None:
        while not self._closed:
            self._waiting.wait()
            taken = self._taken
            time.sleep(PACE_S)
            if not self._jobs:
                self._waiting.clear()
                if self._jobs:
                    self._waiting.set()
            elif self._taken == taken:
                self._rouse(max(1, self._count - self._idle))


def _is_stopped(job: Job) -> bool:
    """Whether a body must not begin any more. A process that was frozen finds its lease over before others tell it."""
    lease = job.facts.room.lease
    if lease is not None and not job.stopped and not lease.check():
        job.stopped = "the lease is over"
    return bool(job.stopped)


def perform_here(cell: Cell, job: Job) -> Outcome | Fatal:
    """Run a sync body in the context that is entered, with ``cell`` as what its task context shows."""
    CURRENT.set(cell)
    try:
        if _is_stopped(job):  # while it waited for a thread
            return failed(job, StepCancelled(f"{job.stopped}: {job.path}", job.path))
        return perform(job, cell)
    except BaseException as error:  # noqa: BLE001  # it is raised again in the caller's thread
        return Fatal(job, error)


def perform_apart(job: Job, cell: Cell) -> Outcome:
    """Run an inline body in its own caller's context: on a loop, one drive serves many callers."""
    outcome: Outcome | Fatal = job.live.context.copy().run(perform_here, cell, job)
    if isinstance(outcome, Fatal):
        raise outcome.error
    return outcome


class LoopThread:
    """One event loop on one daemon thread, for async tasks under a sync runner."""

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stepwell-loop", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job], deliver: Deliver) -> None:
        """Start all jobs with one wake-up of the loop."""
        starts = [_Start(self._loop, job, deliver) for job in jobs]
        for start in starts:
            start.job.stop = start.stop
        self._loop.call_soon_threadsafe(_start_all, starts)

    def close(self) -> None:
        """Stop the loop; what still runs on it is cancelled."""
        self._loop.call_soon_threadsafe(_stop, self._loop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()


class _Start:
    """One async attempt: started and stopped on the loop's own thread."""

    __slots__ = ("began", "deliver", "job", "loop", "stopped", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop, job: Job, deliver: Deliver) -> None:
        self.loop, self.job, self.deliver = loop, job, deliver
        self.task: asyncio.Task[None] | None = None
        self.began = self.stopped = False

    def begin(self) -> None:
        if _is_stopped(self.job):
            self.deliver(failed(self.job, StepCancelled(f"{self.job.stopped}: {self.job.path}", self.job.path)))
        elif not self.stopped:
            self.task = self.loop.create_task(self._run(), context=self.job.context)

    async def _run(self) -> None:
        import asyncio

        self.began = True
        try:
            self.deliver(await perform_async(self.job))
        except asyncio.CancelledError as error:
            if not self.stopped:  # the task cancelled itself: that is its own failure
                self.deliver(failed(self.job, RuntimeError(f"the task was cancelled from inside: {error!r}")))
            else:
                self.deliver(failed(self.job, error))
        except BaseException as error:  # noqa: BLE001  # it is raised again in the caller's thread
            self.deliver(Fatal(self.job, error))

    def stop(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: what ran on it has ended
            self.loop.call_soon_threadsafe(self.stop_here)

    def stop_here(self) -> None:
        self.stopped = True
        if self.task is not None:
            self.task.cancel()
            if not self.began:  # its coroutine will never run, and so not report either
                self.deliver(failed(self.job, StepCancelled(f"{self.job.stopped}: {self.job.path}", self.job.path)))


def _start_all(starts: Sequence[_Start]) -> None:
    for start in starts:
        start.begin()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    ending = asyncio.gather(*tasks, return_exceptions=True)
    ending.add_done_callback(lambda _: loop.stop())


def start_here(loop: asyncio.AbstractEventLoop, jobs: Sequence[Job], deliver: Deliver) -> None:
    """Start async jobs on the loop that is running now."""
    starts = [_Start(loop, job, deliver) for job in jobs]
    for start in starts:
        start.job.stop = start.stop_here
    _start_all(starts)
