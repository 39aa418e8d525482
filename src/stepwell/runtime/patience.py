"""A store that is waited for while it cannot be reached.

A worker has nothing better to do without its store. So each call is made again until it comes through, and what waits
above it never hears of an outage. What was ambiguous is settled by the second call: whatever it would repeat is refused
by its seq, token or id.

Three calls are not made again, because a repetition would do more than the first: they claim or offer something, and
nobody knows whether they did. They answer as if they had done nothing, and whoever is told of the trouble compares what
it believes with what the store says, once that can be reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from stepwell.errors import BackendReadOnly, BackendUnavailable, StorageFull

if TYPE_CHECKING:
    from stepwell.backend.base import Backend

PASSING: Final = (BackendUnavailable, BackendReadOnly, StorageFull)
_ONCE: Final[dict[str, object]] = {"claim_due": (), "claim_offers": (), "offer": None}
_AT_ONCE: Final = frozenset({"capabilities", "codec", "codec_id", "backend_id", "hint", "watch", "close"})


def patient(store: Backend, bear: Callable[[Exception, int], None], well: Callable[[], None]) -> Backend:
    """Return the store with calls that wait out its troubles.

    Args:
        bear: called with the trouble and how often in a row it has come; waits a while, or raises to give up.
        well: called when a call has come through after trouble.
    """
    return cast("Backend", _Patient(store, bear, well))


class _Patient:
    def __init__(self, store: Backend, bear: Callable[[Exception, int], None], well: Callable[[], None]) -> None:
        self._store, self._bear, self._well = store, bear, well

    def __repr__(self) -> str:
        return repr(self._store)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name in _AT_ONCE or not callable(found):
            return found
        method = self.__dict__[name] = self._tried_once(found, _ONCE[name]) if name in _ONCE else self._enduring(found)
        return method  # looked up once

    def _tried_once(self, method: Callable[..., Any], nothing: object) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except PASSING as error:
                self._bear(error, 1)
                return nothing

        return call

    def _enduring(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            tries = 0
            while True:
                try:
                    answer = method(*args, **kwargs)
                except PASSING as error:
                    tries += 1
                    self._bear(error, tries)
                else:
                    if tries:
                        self._well()
                    return answer

        return call
