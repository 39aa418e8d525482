"""Whether the process behind a session still lives, and the clock its lease is read from.

A script that is restarted after ``kill -9`` should go on at once, not after a lease. So a session records which
process it lives in, and another process on the same machine may prove that one gone. *Proof* is meant: the same boot,
the same pid namespace, and either no such pid or a process that started at another time. Everything else, such as
another container or a kernel that does not tell, proves nothing, and the lease has to run out.

The lease clock must not jump when somebody sets the time. Linux has one that also counts suspended time; elsewhere wall
time has to do, and a step of the clock then shortens or lengthens leases by that much: a shortened lease costs its
holder a takeover, never a wrong write, because writes are fenced by takeover and not by time.
"""

from __future__ import annotations

import os
import platform
import time

from .base import Holder


def this_process(name: str = "") -> Holder:
    """Return the holder that stands for the calling process. ``name`` is what people see, ``host:pid`` by default."""
    host, pid = platform.node(), os.getpid()
    return Holder(name or f"{host}:{pid}", host, pid, _started(pid), boot_id(), _pid_namespace())


def is_dead(holder: Holder) -> bool:
    """Return whether the holder's process is provably gone. ``False`` means "alive or not known"."""
    if not holder.boot_id or holder.boot_id != boot_id() or holder.namespace != _pid_namespace():
        return False
    if not _exists(holder.pid):
        return True
    started = _started(holder.pid)
    return started < 0 or (holder.started > 0 and started > 0 and started != holder.started)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to another user
    return True


def lease_clock() -> int:
    """Return the lease clock in microseconds: time since boot on Linux, wall time elsewhere."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000
    return time.time_ns() // 1_000


def boot_id() -> str:
    """Return what tells this boot of this machine from every other, ``""`` where the kernel does not say."""
    return _read("/proc/sys/kernel/random/boot_id").decode("ascii", "replace").strip()


def _started(pid: int) -> int:
    """Return when a process started in clock ticks since boot, 0 if that is not known, -1 if only its entry is left."""
    _, _, rest = _read(f"/proc/{pid}/stat").rpartition(b")")  # the name before it may itself hold blanks and brackets
    fields = rest.split()
    if len(fields) < 20:
        return 0
    return -1 if fields[0] in (b"Z", b"X") else int(fields[19])


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError:
        return b""
