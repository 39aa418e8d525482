"""Keeping a session's lease while bodies run, and knowing when it cannot be counted on any more.

Another session may take over once the lease is past on the store's clock. This side cannot read that clock while the
store is out of reach, so it reckons from the moment it *sent* the last renewal that came through, and treats the lease
as lost after four fifths of it. What runs is told to stop then, before anybody else may begin it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from stepwell.backend.liveness import lease_clock
from stepwell.errors import Closed, LeaseLost

if TYPE_CHECKING:
    from stepwell.backend.base import Backend, Session

    from .upkeep import Purger

_LOG: Final = logging.getLogger("stepwell.runtime")

PURGE_PAUSE_S: Final = 0.005  # between two transactions of a purge, so that others get their turn
TRUSTED: Final = 0.8  # of the lease
BEATS: Final = 3  # renewals within one lease …
TRIES: Final = 20  # … and after one that failed


class Lease:
    """One session and the small thread that renews it; one write whatever is held.

    Args:
        session: fresh; ``opened_us`` is the lease clock from before it was opened.
        on_lost: called once, from any thread, when the lease is lost or can no longer be counted on.
    """

    def __init__(
        self,
        backend: Backend,
        session: Session,
        opened_us: int,
        purger: Purger | None,
        on_lost: Callable[[str], None],
        clock: Callable[[], int] = lease_clock,
    ) -> None:
        self.session, self.lost = session, False
        self.renewed_us = opened_us
        self._backend, self._purger, self._on_lost, self._clock = backend, purger, on_lost, clock
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="stepwell-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()

    def check(self) -> bool:
        """Say whether the lease still counts; past four fifths of it without a renewal it is lost."""
        if not self.lost and self._clock() - self.renewed_us > TRUSTED * self.session.lease_us:
            self._lose("it could not be renewed in time")
        return not self.lost

    def _lose(self, why: str) -> None:
        self.lost = True
        _LOG.warning("the lease of session %d is lost: %s; what it held is left to others", self.session.id, why)
        self._on_lost(why)

    def _keep(self) -> None:
        beat_s, again_s = self.session.lease_us / BEATS / 1e6, self.session.lease_us / TRIES / 1e6
        wait_s = beat_s
        while not self._ending.wait(wait_s) and not self.lost:
            wait_s = beat_s if self._renew() else again_s
            if not self.lost and self._purger is not None and wait_s == beat_s:  # well within the lease
                self._purger.beat(self.session.lease_us / 6e6, lambda: self._ending.wait(PURGE_PAUSE_S))

    def _renew(self) -> bool:
        sent_us = self._clock()
        try:
            self._backend.renew(self.session)
        except LeaseLost:
            self._lose("another session has taken over")
        except Closed:
            self._ending.set()
        except Exception as error:  # noqa: BLE001  # whatever the store's trouble is, the lease is not over yet
            if self.check():
                _LOG.warning("the lease could not be renewed, which is tried again: %s", error)
            return False
        else:
            self.renewed_us = sent_us
        return True
