"""How the tests get at the backend under test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend, Holder
from stepwell.backend.liveness import this_process
from stepwell.errors import UsageError
from stepwell.testing.sample import LEASE_US


class LeaseClock:
    """A lease clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_us = 1_000_000_000

    def __call__(self) -> int:
        return self.now_us


class Examiner:
    """How the tests get at the backend under test. A subclass says how one is made."""

    clock: LeaseClock
    wait_s: float = 10.0
    """How long to wait for what has to come."""

    def setup_method(self) -> None:
        self.clock = LeaseClock()

    def make_backend(self, tmp_path: Path) -> Backend:
        """Return the backend in ``tmp_path``, new or the same store again, made with ``lease_clock=self.clock``."""
        raise UsageError(f"{type(self).__name__} must define make_backend(self, tmp_path)")

    def pass_leases(self, backend: Backend) -> None:
        """Let every lease run out that is not renewed. Override it where the lease clock cannot be given."""
        self.clock.now_us += LEASE_US + 1

    def child_source(self, tmp_path: Path) -> str:
        """Return Python statements that bind ``backend`` to the same store in another process."""
        raise UsageError(
            f"{type(self).__name__} must define child_source(self, tmp_path): its backend claims multi_process"
        )

    def begin(self, backend: Backend) -> object:
        """Return a connection of the user's to the same store, with an open transaction that may write."""
        raise UsageError(
            f"{type(self).__name__} must define begin(self, backend) and finish(self, connection, keep): its backend "
            "claims user_transactions"
        )

    def finish(self, connection: object, keep: bool) -> None:
        """Commit the user's transaction, or roll it back, and close the connection. Raises if none is open."""
        raise UsageError(f"{type(self).__name__} must define finish(self, connection, keep), as it defines begin")

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        backend = self.make_backend(tmp_path)
        yield backend
        backend.close()


def dead_holder(name: str = "dead") -> Holder:
    """Return the holder of a process that has just ended. Skips the test where death cannot be proven."""
    me = this_process(name)
    if not me.boot_id:
        pytest.skip("this system does not tell one boot from another")
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return replace(me, pid=child.pid, started=1)
