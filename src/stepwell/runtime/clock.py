"""Time and waiting: the only place that reads a clock, and the mailbox that ends a wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    import asyncio


class Wait(NamedTuple):
    """A drive has nothing to do before one of these.

    ``until_us`` is the next timer; ``busy`` says that bodies are running and will report; ``poll_us`` bounds the wait
    where news may come from outside this process. A clock that is moved by hand calls ``wake(None)`` to end the wait.
    """

    until_us: int | None
    busy: bool
    poll_us: int | None
    wake: Callable[[object], None] | None = None


class Polling:
    """When to look again for what nobody tells of: soon at first, then ever later, as long as nothing comes.

    Whoever has waited for a second is kept waiting for a fiftieth of it more, and never longer than ``longest_us``.
    """

    def __init__(self, longest_us: int) -> None:
        self._longest_us, self._since_ns = longest_us, 0

    def came(self, now_ns: int) -> None:
        """Something has come just now, so there may soon be more."""
        self._since_ns = now_ns

    def pause_us(self, now_ns: int) -> int:
        """Return how long to wait until the next look."""
        waited_us = (now_ns - self._since_ns) // 1_000
        return min(max(waited_us // _SHARE, _SHORTEST_US), self._longest_us)


class Clock(Protocol):
    """Where moments come from. A test gives its own and moves it by hand."""

    def now_us(self) -> int:
        """Return the wall clock in microseconds since the epoch."""
        ...

    def timeout_s(self, wait: Wait) -> float | None:
        """Return how long to wait in real seconds; ``None``: until something is put into the mailbox."""
        ...


class SystemClock:
    """The computer's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def timeout_s(self, wait: Wait) -> float | None:
        ends = [] if wait.until_us is None else [max(0, wait.until_us - self.now_us())]
        if wait.poll_us is not None:
            ends.append(wait.poll_us)
        return min(min(ends) / 1e6, _LONGEST_WAIT_S) if ends else None


_SHARE: Final = 50
_SHORTEST_US: Final = 1_000
_LONGEST_WAIT_S: Final = 3_600.0  # a suspended machine or a stepped clock is noticed within the hour


class Mailbox:
    """What other threads left for a drive. Putting is safe from any thread; one thread drains and waits."""

    def __init__(self) -> None:
        self._items: SimpleQueue[object] = SimpleQueue()
        self.empty = self._items.empty

    def put(self, item: object) -> None:
        self._items.put(item)

    def drain(self) -> list[object]:
        items: list[object] = []
        while not self._items.empty():  # this thread alone takes out, so what is seen here stays
            items.append(self._items.get())
        return items

    def wait(self, timeout_s: float | None) -> list[object]:
        """Return what is there, waiting until there is something or the time is over."""
        try:
            first = self._items.get(timeout=timeout_s)
        except Empty:
            return []
        return [first, *self.drain()]


class AsyncMailbox:
    """The same for a drive on an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        self._loop, self._bell = loop, asyncio.Event()
        self._items: deque[object] = deque()
        self._rung = False

    def empty(self) -> bool:
        return not self._items

    def put(self, item: object) -> None:
        self._items.append(item)
        if not self._rung:  # one wake-up for a whole batch
            self._rung = True
            try:
                self._loop.call_soon_threadsafe(self._bell.set)
            except RuntimeError:  # the loop was closed while a thread finished; nobody waits any more
                self._rung = False

    def drain(self) -> list[object]:
        self._rung = False
        self._bell.clear()
        items: list[object] = []
        while self._items:
            items.append(self._items.popleft())
        return items

    async def wait(self, timeout_s: float | None) -> list[object]:
        import asyncio

        if not self._items:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._bell.wait()
            except TimeoutError:
                return self.drain()
        else:
            await asyncio.sleep(0)  # a drive that is never idle lets others have the loop all the same
        return self.drain()


AnyMailbox = Mailbox | AsyncMailbox
