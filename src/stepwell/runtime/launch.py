"""Bodies in the air: given to threads, a loop or a process, as their task asks, until they report or are let go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .clock import AnyMailbox
from .hands import start_here
from .invoke import Job
from .live import Live
from .observed import dropped

if TYPE_CHECKING:
    import asyncio

    from .room import Room


class Flights:
    """One drive's bodies that run elsewhere. What is launched in one turn is handed over as one batch for each hand.

    Attributes:
        count: how many are in the air; each instance has its own in ``live.flights``.
        away: how many of them other sessions run.
    """

    def __init__(self, room: Room, mailbox: AnyMailbox, loop: asyncio.AbstractEventLoop | None) -> None:
        self._room, self._mailbox, self._loop = room, mailbox, loop
        self._for_threads: list[Job] = []
        self._for_loop: list[Job] = []
        self.count = self.away = 0

    @property
    def here(self) -> int:
        """How many run in this process."""
        return self.count - self.away

    def send_away(self, live: Live, job: Job) -> None:
        """Take note that another session runs a job, or will."""
        self.count += 1
        self.away += 1
        job.away = True
        live.flights[job.key] = job

    def launch(self, live: Live, job: Job) -> None:
        self.count += 1
        live.flights[(job.node, job.turns)] = job
        job.context = live.context.copy()
        if job.body.run_in == "process":
            job.stop = self._room.in_process(job, self._mailbox.put)
        else:
            (self._for_loop if job.body.is_async else self._for_threads).append(job)

    def hand_over(self) -> None:
        """Give away what was launched."""
        if jobs := self._for_threads:
            self._for_threads = []
            self._room.threads().submit(jobs, self._mailbox.put)
        if jobs := self._for_loop:
            self._for_loop = []
            if self._loop is not None:
                start_here(self._loop, jobs, self._mailbox.put)
            else:
                self._room.loop_thread().submit(jobs, self._mailbox.put)

    def land(self, job: Job) -> bool:
        """Take a job out of the air, and say whether it was still there: a late one (timed out) is not."""
        flights, key = job.live.flights, (job.node, job.turns)
        if flights.get(key) is not job:
            return False
        del flights[key]
        self.count -= 1
        self.away -= job.away
        return True

    def stop(self, live: Live, why: str) -> None:
        """Tell an instance's bodies to stop; those in processes are ended, and so have landed."""
        for job in list(live.flights.values()):
            stop(job, why)
            if job.body.run_in == "process" and not job.away:
                self.land(job)
                dropped(job)

    def forget(self, live: Live) -> None:
        """Wait no longer for an instance's bodies."""
        for job in live.flights.values():
            dropped(job)
        self.count -= len(live.flights)
        self.away -= sum(job.away for job in live.flights.values())
        live.flights = {}


def stop(job: Job, why: str) -> bool:
    """Tell a body to stop, and say whether more than telling was possible."""
    job.stopped = why
    if job.stop is not None:
        job.stop()
    return job.stop is not None
