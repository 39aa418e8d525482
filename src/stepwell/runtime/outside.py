"""Advancing an instance that nobody runs: by whoever asks something of it, moves it, or replaces it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from stepwell.backend.base import Change, Entry, Loaded, Message, Rest
from stepwell.engine import events as e
from stepwell.engine.frontier import Frontier, to_image
from stepwell.flow.plan import Plan

from .live import Live
from .offered import took_of
from .requests import event_of, value_of


def taken_in(plan: Plan, state: Frontier, messages: Iterable[Message], now: int) -> list[Entry]:
    """Let messages have their effect where nothing runs, and return the journal rows for that."""
    rows: list[Entry] = []
    for message in messages:
        written = Live.rows(plan, state, [event_of(message, plan)], now, value_of(message))
        rows += [replace(row, took_us=took_of(message)) for row in written]
    return rows + settled(plan, state, now)


def settled(plan: Plan, state: Frontier, now: int) -> list[Entry]:
    """Return the rows that end closing steps, as nothing runs that could report."""
    closing = tuple(key for key, step in state.steps.items() if step.phase == "closing")
    return Live.rows(plan, state, [e.Settled(closing)] if closing else [], now)


def left_at_rest(
    loaded: Loaded,
    state: Frontier,
    rows: Sequence[Entry],
    now: int,
    *,
    taken: Sequence[int] = (),
    ids: Sequence[str] = (),
) -> Change:
    """Return the change that writes these rows and leaves the instance to whoever comes next."""
    rest = Rest(state.status(now), to_image(state), state.next_due_us(), True, state.result)
    return Change(loaded.header.instance, loaded.header.seq, rows, taken, rest, ids)
