"""What is looked at when something does not come to pass: the store, the workers, and who keeps whom waiting."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

if TYPE_CHECKING:
    from .harness import Chaos

SHOWN = 2_500  # of a log, from its end
ACTIVITY = """
SELECT pid, pg_blocking_pids(pid), state, wait_event_type, wait_event, round(extract(epoch FROM now() - xact_start), 1),
       left(regexp_replace(query, '\\s+', ' ', 'g'), 110)
FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid
"""
LEASE = {"sqlite": "round((lease_us - {now_us}) / 1e6, 2)", "postgres": "lease_until - clock_timestamp()"}
ROWS = {
    "sessions": "SELECT id, name, pid, {lease} AS left FROM {at}session ORDER BY id",
    "agenda": "SELECT i.instance_id, a.* FROM {at}agenda a JOIN {at}instance i ON i.id = a.instance ORDER BY 1",
    "offers": "SELECT id, instance, definition, session, rank_us, lives, called_off FROM {at}offer ORDER BY id",
    "inbox": "SELECT id, instance, kind, name, at_us, message_id FROM {at}inbox ORDER BY id",
}


def told(chaos: Chaos) -> str:
    """Return all there is to know. Whatever cannot be found out is said to be so, and hides nothing else."""
    parts: dict[str, Callable[[], str]] = {
        "left": lambda: " ".join(chaos.left_now()),
        "machine": lambda: f"load {os.getloadavg()}, wall clock {time.time_ns() // 1_000} us",
        **{name: lambda query=query: _rows(chaos, query) for name, query in ROWS.items()},  # type: ignore[misc]
        "locks": lambda: _locks(chaos),
        "workers": lambda: _workers(chaos),
        "logs": lambda: logs(chaos.folder),
    }
    return "\n".join(f"=== {name}\n{_tried(part)}" for name, part in parts.items())


def story(chaos: Chaos, instances: Iterable[str]) -> str:
    """Return what the store and the ledger have of some instances."""
    lines = chaos.lines()
    return "\n".join(
        f"=== {each}: {chaos.client.status(each)}\n"
        + "\n".join(str(attempt) for attempt in chaos.client.attempts(each))
        + "\n"
        + "\n".join(str(line) for line in lines if line.instance == each)
        for each in instances
    )


def _tried(part: Callable[[], str]) -> str:
    try:
        return part()
    except Exception as error:  # noqa: BLE001 - a store in trouble is what this is for
        return f"cannot be told: {type(error).__name__}: {error}"


def logs(folder: Path) -> str:
    """Return the last that each worker had to say."""
    files = sorted(folder.glob("worker.*"), key=lambda path: path.stat().st_mtime)[-12:]
    return "\n".join(f"--- {path.name}\n{path.read_text()[-SHOWN:]}" for path in files)


# --- the store ----------------------------------------------------------------------------------------------------


def _rows(chaos: Chaos, query: str) -> str:
    at, now_us = f"{chaos.place.schema}." if chaos.server else "", time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000
    query = query.format(at=at, lease=LEASE[chaos.place.kind].format(now_us=now_us))
    return _lines(_asked(chaos, query))


def _asked(chaos: Chaos, query: str) -> Sequence[Sequence[Any]]:
    if chaos.server is not None:
        return list(chaos.server.execute(query))
    db = apsw.Connection(chaos.place.at, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(db.execute(query))
    finally:
        db.close()


def _lines(rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join(" | ".join(map(str, row)) for row in rows)


def _locks(chaos: Chaos) -> str:
    """Say who waits for whom on a server, and who writes to a file."""
    if chaos.server is not None:
        return _lines(list(chaos.server.execute(ACTIVITY)))
    inodes = {os.stat(path).st_ino: path.name for path in chaos.folder.glob("chaos.db*")}
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    mine = [row for row in held if "->" not in row and int(row[5].rsplit(":", 1)[-1]) in inodes]
    return "\n".join(f"{inodes[int(row[5].rsplit(':', 1)[-1])]}: {' '.join(row[1:5])} bytes {row[6:]}" for row in mine)


# --- the workers --------------------------------------------------------------------------------------------------


def _workers(chaos: Chaos) -> str:
    """Say what each thread of each worker waits for, and have the workers themselves write down where they are."""
    rows: list[str] = []
    for each in chaos.workers:
        rows.append(f"{each.name} is {each.pid}{', stopped by us' if each.stopped else ''}: {_kernel(each.pid)}")
        if not each.stopped:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGUSR1)
                os.kill(each.pid, signal.SIGUSR2)
    threading.Event().wait(0.5)  # the test has failed already; what they write is read next
    return "\n".join(rows)


def states(pid: int) -> set[str]:
    """Return the states of a process's threads, ``T`` for those that are stopped."""
    return {state for _, state, _ in _threads(pid)}


def _kernel(pid: int) -> str:
    return ", ".join(" ".join(thread) for thread in _threads(pid)) or "gone"


def _threads(pid: int) -> Iterator[tuple[str, str, str]]:
    """Yield each thread's number, its state, and what it waits for in the kernel."""
    tasks = Path(f"/proc/{pid}/task")
    for task in sorted(tasks.iterdir()) if tasks.exists() else ():
        with suppress(OSError):
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            yield task.name, state, (task / "wchan").read_text() or "-"
