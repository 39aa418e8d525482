"""One drive for all runs that await at the same time on one event loop, so that they share turns and commits.

A run joins the drive between two of its turns and awaits its own end. It leaves alone when its caller is cancelled; if
the drive itself fails (the store is gone, the lease was lost), every run that awaits gets that error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import TypeVar

from stepwell.errors import Closed

from .clock import AsyncMailbox
from .drive import Drive
from .drivers import run_async
from .live import Live
from .room import Room

T = TypeVar("T")


class SharedDrive:
    """Begins with the first run and ends with the last; then it cannot be joined any more."""

    def __init__(self, room: Room, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._mailbox = AsyncMailbox(loop)
        self._drive = Drive(room, self._mailbox, stay=True, loop=loop)
        self._drive.on_finish = self._finished
        self._awaited: dict[Live, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return self._task is not None and (self._drive.over or self._task.done())

    async def work(self, enter: Callable[[Drive], T]) -> T:
        """Let ``enter`` join its runs, and await the end of those."""
        before = set(self._drive.lives())
        try:
            entered = enter(self._drive)
        except BaseException:
            self._drive.abandon([live for live in self._drive.lives() if live not in before])
            raise
        mine = [live for live in self._drive.lives() if live not in before]
        futures = {live: self.loop.create_future() for live in mine}
        self._awaited.update(futures)
        self._go_on()
        try:
            for future in futures.values():
                await future
        finally:
            self._drive.abandon(live for live in mine if self._awaited.pop(live, None) is not None)
        return entered

    def _go_on(self) -> None:
        if self._task is None:
            self._task = self.loop.create_task(self._run(), name="stepwell-drive", context=Context())
            self._task.add_done_callback(self._ended)
        else:
            self._mailbox.put(None)

    async def _run(self) -> None:
        try:
            with self._drive:
                await run_async(self._drive, self._mailbox)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # it is raised in every caller's own task
            self._fail(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # perhaps before its first step, so nothing in it could clean up
            with self._drive:
                self._fail(Closed("this runner was closed while the instance was running; it can be resumed"))

    def _finished(self, live: Live) -> None:
        if (future := self._awaited.pop(live, None)) is not None and not future.done():
            future.set_result(None)

    def _fail(self, error: BaseException) -> None:
        waiting: Iterable[asyncio.Future[None]] = list(self._awaited.values())
        self._awaited.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Stop; runs that still await get ``Closed``."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
