"""Giving jobs away: to threads, to a loop or to a process, whichever their task asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .clock import AnyMailbox
from .hands import start_here
from .invoke import Job

if TYPE_CHECKING:
    import asyncio

    from .room import Room


class Launcher:
    """One drive's way to the hands. What is launched in one turn is handed over as one batch each."""

    def __init__(self, room: Room, mailbox: AnyMailbox, loop: asyncio.AbstractEventLoop | None) -> None:
        self._room, self._mailbox, self._loop = room, mailbox, loop
        self._for_threads: list[Job] = []
        self._for_loop: list[Job] = []

    def launch(self, job: Job) -> None:
        job.context = job.live.context.copy()
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
