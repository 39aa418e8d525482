"""What the figures depend on besides the code: machine, versions, and what a flush to disk costs there."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("stepwell", "apsw", "orjson", "msgspec", "psycopg", "sayiir", "dbos", "SQLAlchemy", "pgqueuer", "asyncpg")


def describe(folder: Path) -> dict[str, str]:
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "?",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "sqlite": f"{_apsw_sqlite()} (apsw), {sqlite3.sqlite_version} (Python)",
        "files in": f"{folder} ({_file_system(folder)})",
        "flush": sync_cost(folder),
    }


def sync_cost(folder: Path, tries: int = 100) -> str:
    """Return what an ``fdatasync`` after writing 4 KiB costs: at the end of a file, and over what is there."""
    path = folder / "flush.probe"
    sync = getattr(os, "fdatasync", os.fsync)
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        appended = [_flush_us(file, sync, number * 4096) for number in range(tries)]
        written_over = [_flush_us(file, sync, 0) for _ in range(tries)]
    finally:
        os.close(file)
        path.unlink()
    return f"append {_median(appended):.0f} us, overwrite {_median(written_over):.0f} us (4 KiB + fdatasync, median)"


def _flush_us(file: int, sync: object, at: int) -> float:
    began = time.perf_counter()
    os.pwrite(file, b"x" * 4096, at)
    sync(file)  # type: ignore[operator]
    return (time.perf_counter() - began) * 1e6


def _median(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _apsw_sqlite() -> str:
    import apsw

    return apsw.sqlite_lib_version()


def _file_system(folder: Path) -> str:
    """Return the kind of file system, where the system tells: a RAM disk makes flushes free."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    place = str(folder.resolve())
    fitting = [(len(at), kind) for at, kind in mounts if place == at or place.startswith(at.rstrip("/") + "/")]
    return max(fitting)[1] if fitting else "unknown file system"
