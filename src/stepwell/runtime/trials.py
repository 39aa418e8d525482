"""Steps that may have killed a process, each tried with no other such step beside it.

When a process dies, all it held is suspect, and nearly all of that is innocent. So a crash by itself counts against
nobody. An instance that was lost twice with nothing written in between has its runnable steps *tried*: the start is
recorded, and no two steps are tried at the same time in one process. A recorded start that a lost session has left is a
crash of that step; one that was given back is none. The last try before a step counts as the culprit runs with nothing
else in the process, so what is quarantined has killed a process in which it was alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from stepwell.flow.plan import Key, Plan

if TYPE_CHECKING:
    from stepwell.engine.frontier import Frontier

    from .live import Live

SUSPECT_FROM: Final = 2  # sessions lost in a row with nothing written: one may be a power cut, two are a reason to look
_WAITING: Final = frozenset({"ready", "began", "tried"})


def suspects(plan: Plan, state: Frontier, lost: int) -> frozenset[Key]:
    """Return the open steps that have to be tried; ``lost`` sessions in a row were lost with this instance."""
    all_are = lost >= SUSPECT_FROM
    return frozenset(
        key
        for key, step in state.steps.items()
        if (all_are or step.crashes or step.phase == "tried") and step.phase in _WAITING and plan.kind[key[0]] == "task"
    )


class Trials:
    """Which step of one drive is being tried, and what is kept back meanwhile."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._current: tuple[Live, Key] | None = None
        self._alone = False
        self._kept: list[tuple[Live, Key]] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is tried and nothing kept back."""
        return self._current is None and not self._kept

    @property
    def kept(self) -> Sequence[tuple[Live, Key]]:
        """What is kept back."""
        return self._kept

    def admits(self, live: Live, key: Key, running: int) -> bool:
        """Say whether a step may start now, beside so many that run; one that may not is kept back."""
        if self._current is None and key in live.suspects:
            self._current = live, key
            self._alone = live.state.steps[key].crashes >= self._limit - 1
        if self._current == (live, key):
            admitted = not (self._alone and running)
        else:
            admitted = not self._alone and key not in live.suspects
        if not admitted:
            self._kept.append((live, key))
            live.kept += 1
        return admitted

    def ended(self, live: Live, key: Key) -> None:
        """An attempt has come to an end without killing anybody."""
        live.suspects = live.suspects - {key}
        if self._current == (live, key):
            self._current, self._alone = None, False

    def freed(self, works_on: Callable[[Live], bool], running: int) -> list[tuple[Live, Key]]:
        """Return what was kept back and may be asked for again."""
        if self._current is not None and not self._goes_on(works_on, *self._current):
            self._current, self._alone = None, False
        if not self._kept or (self._current is not None and (running or not self._alone)):
            return []
        kept, self._kept = self._kept, []
        for live, _ in kept:
            live.kept -= 1
        return kept

    @staticmethod
    def _goes_on(works_on: Callable[[Live], bool], live: Live, key: Key) -> bool:
        """Whether a tried step is still to run, or runs: it may have been cancelled, or its instance lost."""
        state, step = live.state, live.state.steps.get(key)
        waits = step is not None and step.phase in _WAITING and not (state.paused or state.held)
        return works_on(live) and (waits or key in live.flights)
