"""Who waits for a drive: a thread or a coroutine. Nothing else differs between sync and async runners."""

from __future__ import annotations

import sys

from stepwell.errors import SyncInAsync

from .clock import AsyncMailbox, Clock, Mailbox
from .drive import Drive, Turns_


def run_sync(drive: Drive, mailbox: Mailbox) -> None:
    """Drive from a plain function, in the caller's own thread."""
    sit_through(drive.turns(), mailbox, drive.room.clock)


def sit_through(turns: Turns_, mailbox: Mailbox, clock: Clock) -> None:
    """Wait as often and as long as the turns ask for it, in the caller's own thread."""
    try:
        wait = next(turns)
        while True:
            wait = turns.send(mailbox.wait(clock.timeout_s(wait)))
    except StopIteration:
        return
    finally:
        turns.close()


async def run_async(drive: Drive, mailbox: AsyncMailbox) -> None:
    """Drive from a coroutine, on the running loop."""
    turns = drive.turns()
    try:
        wait = next(turns)
        while True:
            wait = turns.send(await mailbox.wait(drive.room.clock.timeout_s(wait)))
    except StopIteration:
        return
    finally:
        turns.close()


def check_no_loop(what: str) -> None:
    """Refuse to block a running event loop. Raises SyncInAsync naming the async twin."""
    asyncio = sys.modules.get("asyncio")  # who never imported it has no loop
    if asyncio is None or asyncio._get_running_loop() is None:
        return
    raise SyncInAsync(
        f"{what} was called inside a running event loop, which it would block; "
        f"use Async{what.partition('.')[0]} and await it"
    )
