"""The examination every backend has to pass, ours and anyone's.

Write a test class and let pytest find it::

    class TestMine(BackendConformance):
        def make_backend(self, tmp_path):
            return MyBackend(tmp_path / "store", lease_clock=self.clock)

        def child_source(self, tmp_path):             # only if it claims to be shared by processes
            return f"from mine import MyBackend; backend = MyBackend({str(tmp_path / 'store')!r})"

        def begin(self, backend): ...                 # both only if it claims user_transactions:
        def finish(self, connection, keep): ...       # a transaction of the user's own

A store whose lease clock cannot be given overrides ``pass_leases`` instead. Each test examines one behaviour of
:class:`stepwell.backend.base.Backend` through that protocol alone. Call
``pytest.register_assert_rewrite("stepwell.testing.conformance")`` in ``conftest.py`` for readable failures.
"""

from .claiming import Claiming, Freeing
from .creating import Creating, Restoring
from .ending_offers import CallingOff, Losing, Vanishing
from .examiner import LeaseClock
from .inbox import Inbox
from .joining import Joining
from .offering import Offering, Settling
from .processes import Processes
from .reading import Listing, Reading, Upkeep
from .sessions import Serving, Sessions
from .suspecting import Suspecting
from .wanting import Avoiding, Lanes, Turns
from .watching import Watching
from .writing import Admission, Resting

__all__ = ["BackendConformance", "LeaseClock"]


class BackendConformance(
    Sessions,
    Serving,
    Creating,
    Restoring,
    Admission,
    Resting,
    Inbox,
    Claiming,
    Freeing,
    Suspecting,
    Turns,
    Avoiding,
    Lanes,
    Offering,
    Settling,
    CallingOff,
    Vanishing,
    Losing,
    Reading,
    Listing,
    Upkeep,
    Watching,
    Joining,
    Processes,
):
    """All groups of the examination in one class."""
