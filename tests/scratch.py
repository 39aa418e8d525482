"""Where the files of a test run are: in memory, where the system has a folder for that and room in it.

Thousands of tests make a store each, and would mostly wait for a disk that nobody takes the power from.
What is tested stays the same: every sync is asked for, and a killed process leaves as much in memory as on a disk.
Whoever sets ``TMPDIR`` says himself where the files are. After a run that failed they stay until the next one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which has no such folder either
    fcntl = None  # type: ignore[assignment]

MEMORY = Path("/dev/shm")  # noqa: S108 - each run has a folder of its own in it
PREFIX = "stepwell-tests-"
DISK = "STEPWELL_TEST_DISK"  # where files would be otherwise, for whoever wants to wait for it
ROOM = 2 * 1024**3
"""A whole run takes about a third of this."""


class Scratch:
    """A folder for one run, as the place of all temporary files of this process and of those it starts."""

    def __init__(self, folder: Path, lock: int | None) -> None:
        self.folder, self._lock = folder, lock
        os.environ[DISK] = tempfile.gettempdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)

    def close(self, *, keep: bool) -> None:
        """Give the folder up, and remove it unless somebody will want to look at it."""
        del os.environ["TMPDIR"], os.environ[DISK]
        tempfile.tempdir = None  # which is found again
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)  # from now on the next run may remove what was kept


def open_scratch(memory: Path = MEMORY, room: int = ROOM) -> Scratch | None:
    """Return a folder in memory, or ``None`` if files are to be where they always are."""
    if fcntl is None or "TMPDIR" in os.environ or not os.access(memory, os.W_OK | os.X_OK):
        return None
    for left in memory.glob(f"{PREFIX}*"):
        _remove_if_left(left)
    if shutil.disk_usage(memory).free < room:
        return None
    folder = Path(tempfile.mkdtemp(prefix=".stepwell-", dir=memory))
    folder.chmod(0o755)  # the database server may run as another user
    lock = _locked(folder)
    named = folder.rename(memory / f"{PREFIX}{folder.name.rpartition('-')[2]}")  # only now, or others may take it
    return Scratch(named, lock)


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of a run that is over."""
    lock = _locked(folder)
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """Return a lock on a folder, which ends with this process; ``None`` if another has it or it is not ours."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
