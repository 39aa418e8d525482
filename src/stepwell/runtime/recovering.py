"""The drive behind ``recover``: it takes up what is due, and remembers it to report on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from stepwell.backend.base import Filter, Header
from stepwell.errors import InstanceError, InstanceNotFound, UsageError
from stepwell.flow.task import kind_of
from stepwell.types import State

from . import session
from .claiming import Claiming
from .clock import AnyMailbox
from .ending import InstanceStatus, status_of

if TYPE_CHECKING:
    import asyncio

    from .invoke import Prepared
    from .room import Room

_MOVABLE: Final[tuple[State, ...]] = ("pending", "running", "waiting")


class Recovery(Claiming):
    """Works on what is due until nothing is, or (``stay=True``) until nothing is left that may become due."""

    def __init__(
        self,
        room: Room,
        mailbox: AnyMailbox,
        runnables: Iterable[object],
        *,
        stay: bool,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if isinstance(runnables, str) or not isinstance(runnables, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"recover() takes a list of workflows, as recover([checkout, approval]), not {kind_of(runnables)}"
            )
        super().__init__(room, mailbox, runnables, stay=stay, loop=loop)
        self._taken: dict[str, None] = {}
        self._refused: dict[str, InstanceStatus] = {}
        self._left: dict[str, str] = {}

    def statuses(self) -> list[InstanceStatus]:
        """Return how what was taken up stands now, and what was refused; what was deleted since is left out."""
        found = (self._refused.get(name) or self._status(name) for name in {**self._taken, **self._refused})
        return [status for status in found if status is not None]

    def _status(self, instance_id: str) -> InstanceStatus | None:
        try:
            return session.status_from(self.room, instance_id)
        except InstanceNotFound:
            return None

    def _took(self, instance_id: str) -> None:
        self._taken[instance_id] = None

    def _refuse(self, header: Header, error: InstanceError) -> None:
        self._refused[header.instance_id] = status_of(header, str(error))

    # --- what is left ---

    def _has_work(self) -> bool:
        self._idle = False
        if self._lives:
            return True
        self._look_at = 0
        if self._take(self._space()) or self._lives:  # what was held or paused and goes on is not counted as due
            return True
        self._idle = self.stay and any(map(self._is_left, self._newest.values()))
        return self._idle

    def _is_left(self, prepared: Prepared) -> bool:
        """Say whether an instance is left that may move. One is proof enough: others are looked for when it is none."""
        name = prepared.workflow.name
        proof = self._backend.header(self._left[name]) if name in self._left else None
        if proof is None or not _may_move(proof, prepared):
            proof = next((each for each in self._found(Filter(_MOVABLE, name)) if _may_move(each, prepared)), None)
        if proof is not None:
            self._left[name] = proof.instance_id
        return proof is not None


def _may_move(header: Header, prepared: Prepared) -> bool:
    """Whether nobody holds it, and time or a message can move it under this code."""
    known = header.workflow == prepared.workflow.name and header.definition <= prepared.definition
    return known and not header.session and header.state in _MOVABLE
