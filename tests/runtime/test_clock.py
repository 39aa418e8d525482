"""The virtual clock by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from stepwell import OptionError
from stepwell.runtime.clock import AsyncMailbox, Mailbox, Polling, SystemClock, Wait
from stepwell.testing import VirtualClock


def test_it_jumps_to_the_next_timer_when_nothing_runs() -> None:
    """And says not to wait."""
    clock = VirtualClock(datetime(2031, 2, 3, tzinfo=UTC))
    due = clock.now_us() + 3_600_000_000
    assert clock.timeout_s(Wait(due, False, 50_000)) == 0
    assert clock.now == datetime(2031, 2, 3, 1, tzinfo=UTC)


def test_it_never_goes_back() -> None:
    """A timer that is overdue leaves it where it is."""
    clock = VirtualClock()
    before = clock.now_us()
    assert clock.timeout_s(Wait(before - 5, False, None)) == 0
    assert clock.now_us() == before


def test_it_stands_still_while_bodies_run() -> None:
    """The mailbox decides, without limit."""
    clock = VirtualClock()
    before = clock.now_us()
    assert clock.timeout_s(Wait(before + 5, True, None)) is None
    assert clock.now_us() == before


def test_advance_wakes_who_waits_once() -> None:
    """Each waiting mailbox gets one nudge."""
    clock, mailbox = VirtualClock(), Mailbox()
    clock.timeout_s(Wait(clock.now_us() + 5, True, None, mailbox.put))
    clock.timeout_s(Wait(clock.now_us() + 5, True, None, mailbox.put))
    clock.advance("1s")
    clock.advance("1s")
    assert mailbox.drain() == [None]


def test_advance_before_the_wait_is_not_missed() -> None:
    """A timer that has come meanwhile needs no nudge."""
    clock = VirtualClock()
    due = clock.now_us() + 5
    clock.advance(timedelta(microseconds=5))
    assert clock.timeout_s(Wait(due, True, None)) == 0


def test_advance_takes_durations_only() -> None:
    """As every other span in stepwell."""
    for span in (-1, "soon", None):
        with pytest.raises(OptionError):
            VirtualClock().advance(span)  # type: ignore[arg-type]


def test_news_from_other_processes_are_polled_for() -> None:
    """Where nothing else ends the wait."""
    assert VirtualClock().timeout_s(Wait(None, False, 50_000)) == 0.05


def test_the_system_clock_waits_for_the_first_of_timer_and_poll() -> None:
    """And never longer than an hour, so that a stepped clock is noticed."""
    clock = SystemClock()
    assert clock.timeout_s(Wait(None, True, None)) is None
    assert clock.timeout_s(Wait(0, False, 50_000)) == 0
    assert clock.timeout_s(Wait(2**60, False, 50_000)) == 0.05
    assert clock.timeout_s(Wait(2**60, False, None)) == 3600


def test_an_async_mailbox_outlives_its_loop() -> None:
    """A thread that finishes late puts its outcome where nobody waits, and that is no error."""
    import asyncio

    loop = asyncio.new_event_loop()
    mailbox = AsyncMailbox(loop)
    loop.close()
    mailbox.put("late")
    assert mailbox.drain() == ["late"]


def test_polling_is_quick_at_first_and_never_slower_than_it_may_be() -> None:
    """A fiftieth of what was waited already, a millisecond at least; what comes begins it anew."""
    polling = Polling(50_000)
    polling.came(0)
    waits = [polling.pause_us(seconds * 1_000_000) for seconds in (0, 100, 1_000, 2_500, 9_999_999)]
    assert waits == [1_000, 2_000, 20_000, 50_000, 50_000]
    polling.came(10_000_000_000)
    assert polling.pause_us(10_000_000_000) == 1_000
