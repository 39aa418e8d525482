"""What ``doctor`` finds out about an SQLite file, before a store is opened in it, which could make or change it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, cast

import apsw

from stepwell.backend.sqlite_connection import Connection
from stepwell.backend.sqlite_file import APPLICATION_ID, MIGRATIONS, migration
from stepwell.codec import codec_name

from .checks import Finding
from .text import counted, quoted

SPACE_LEAST: Final = 200 * 1024 * 1024
QUICK_CHECK_MOST: Final = 256 * 1024 * 1024
WAL_MOST: Final = 256 * 1024 * 1024
BUSY_MS: Final = 1_000

#: file systems on which locks or shared memory do not reach every machine that has the file
_NETWORK: Final = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|fuse\.(sshfs|s3fs|rclone|gcsfuse|davfs.*)"
)
_MOUNTS: Final = Path("/proc/mounts")


def file_findings(path: Path, command: Callable[..., str], findings: list[Finding], *, deep: bool) -> bool:
    """Add what is found to the list. Returns whether a store can be opened without changing anything."""
    findings += _permissions(path)
    findings += _disk(path, command)
    findings += _network(path)
    try:
        with closing(_connected(path)) as connection:
            usable = _schema(connection, path, command, findings)
            if usable:
                findings += _pages(connection, path, command, deep=deep)
    except apsw.Error:
        return True  # opening the store fails likewise, and says what it means
    return usable


def schema_version(path: str | os.PathLike[str]) -> int:
    """Return how many migrations a file has seen."""
    with closing(_connected(path)) as connection:
        return int(_pragma(connection, "user_version"))


def _connected(path: str | os.PathLike[str]) -> Connection:
    connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_MS)
    return cast(Connection, connection)


def _pragma(connection: Connection, name: str) -> str:
    row = connection.execute(f"PRAGMA {name}").fetchone()
    return str(row[0]) if row is not None else ""


# --- the file -------------------------------------------------------------------------------------


def _permissions(path: Path) -> Iterator[Finding]:
    folder, mode = path.parent, stat.S_IMODE(path.stat().st_mode)
    beside = [Path(f"{path}{end}") for end in ("-wal", "-shm")]
    locked = [each for each in (path, *beside) if each.exists() and not os.access(each, os.R_OK | os.W_OK)]
    if not os.access(folder, os.W_OK):
        text = f"{folder} cannot be written, and SQLite keeps two more files beside its own there"
        yield Finding("problem", "permissions", text, f"chmod u+w {quoted(str(folder))}")
    elif locked:
        names = ", ".join(each.name for each in locked)
        text = f"{names} cannot be read and written by this user; another one has made it"
        yield Finding("problem", "permissions", text, f"chown $USER {' '.join(quoted(str(each)) for each in locked)}")
    elif mode & 0o077:
        text = f"others on this machine may read or write {path.name} (mode {mode:04o}), with all values in it"
        yield Finding("note", "permissions", text, f"chmod 600 {quoted(str(path))}")
    else:
        yield Finding("ok", "permissions", "the file is its owner's alone, and its folder can be written")


def _disk(path: Path, command: Callable[..., str]) -> Iterator[Finding]:
    free = shutil.disk_usage(path.parent).free
    if free < SPACE_LEAST:
        yield Finding("problem", "disk", f"only {_bytes(free)} are free", command("purge", "--older-than", "30d"))
    wal = Path(f"{path}-wal")
    size = wal.stat().st_size if wal.exists() else 0
    if size > WAL_MOST:
        text = f"{wal.name} has {_bytes(size)}: a reader that has been open for long keeps it from being emptied"
        yield Finding("note", "disk", text, f"fuser -v {quoted(str(path))}")


def _network(path: Path) -> Iterator[Finding]:
    kind = file_system(path)
    if _NETWORK.fullmatch(kind):
        text = f"{path.parent} is on a network file system ({kind}), which cannot share the file safely"
        yield Finding(
            "problem", "disk", f"{text}; move it to a local disk, or use PostgreSQL", f"df -T {quoted(str(path))}"
        )


def file_system(path: Path) -> str:
    """Return the kind of file system that a file is on, ``""`` where that is not told."""
    if sys.platform != "linux":
        return ""
    found = ("", "")
    for line in _MOUNTS.read_text("utf-8", "replace").splitlines():
        _, at, kind, *_ = line.split(" ")
        point = at.replace("\\040", " ")
        if len(point) >= len(found[0]) and path.resolve().is_relative_to(point):
            found = point, kind
    return found[1]


# --- what is in it --------------------------------------------------------------------------------


def _schema(connection: Connection, path: Path, command: Callable[..., str], findings: list[Finding]) -> bool:
    """Hold version, journal mode and tables against what the migrations make."""
    version, newest = int(_pragma(connection, "user_version")), len(MIGRATIONS)
    ours = _pragma(connection, "application_id") == str(APPLICATION_ID)
    if not ours and version == 0 and not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
        findings.append(
            Finding("problem", "schema", f"{path} is empty: there is no store in it yet", command("migrate"))
        )
        return False
    if not ours or version > newest:
        return True  # to be refused with the reason
    if version < newest:
        text = f"{path} has schema {version}, and this stepwell wants {newest}"
        findings.append(Finding("problem", "schema", text, command("migrate")))
        return False
    mode = _pragma(connection, "journal_mode")
    wrong = list(_differences(connection, path))
    size = f"{_bytes(path.stat().st_size)}, schema {version}, journal mode {mode}{_values(connection)}"
    findings.append(Finding("ok", "database", f"{path} opens: {size}"))
    if mode != "wal":
        text = f"{path.name} was in journal mode {mode} and not wal; opening it turns it back"
        findings.append(Finding("note", "database", text, f"sqlite3 {quoted(str(path))} 'PRAGMA journal_mode = wal'"))
    findings += wrong
    if not wrong:
        findings.append(Finding("ok", "schema", "all tables and indexes are as made"))
    return not any(finding.text.startswith("table") for finding in wrong)


def _values(connection: Connection) -> str:
    try:
        rows = connection.execute("SELECT value FROM meta WHERE key = 'codec_id'").fetchall()
    except apsw.SQLError:  # the table is missing, which is told by itself
        return ""
    return f", values are {codec_name(int(rows[0][0]))}'s" if rows else ""


def _differences(connection: Connection, path: Path) -> Iterator[Finding]:
    found = _objects(connection)
    with closing(cast(Connection, apsw.Connection(":memory:"))) as fresh:
        for name in MIGRATIONS:
            fresh.execute(migration(name))
        wanted = _objects(fresh)
    for (kind, name), statement in wanted.items():
        there = found.get((kind, name))
        if there is None or _plain(there) != _plain(statement):
            text = f"{kind} {name} of {path.name} is {'missing' if there is None else 'not as it was made'}"
            mend = f"sqlite3 {quoted(str(path))} {quoted(' '.join(statement.split()))}"
            if kind == "table":
                text, mend = f"{text}; bring back a copy", f"sqlite3 {quoted(str(path))} .schema"
            elif there is not None:
                mend = f"sqlite3 {quoted(str(path))} {quoted(f'DROP INDEX {name}; ' + ' '.join(statement.split()))}"
            yield Finding("problem", "schema", text, mend)


def _objects(connection: Connection) -> dict[tuple[str, str], str]:
    query = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND type IN ('table', 'index')"
    return {(kind, name): said for kind, name, said in connection.execute(query) if not name.startswith("sqlite_")}


def _plain(statement: str) -> str:
    """Return a statement without its comments and spaces."""
    return "".join(re.sub(r"--[^\n]*", "", statement).split()).replace('"', "")


def _pages(connection: Connection, path: Path, command: Callable[..., str], *, deep: bool) -> Iterator[Finding]:
    if path.stat().st_size > QUICK_CHECK_MOST and not deep:
        yield Finding("ok", "pages", f"not checked, as the file is large; {command('doctor', '--deep')} does")
        return
    said = [str(row[0]) for row in connection.execute("PRAGMA quick_check(10)")]
    if said == ["ok"]:
        yield Finding("ok", "pages", "SQLite finds the file sound")
    else:
        text = f"SQLite says: {said[0]} ({counted(len(said), 'fault')}). Stop all workers and bring back a copy"
        yield Finding("problem", "pages", text, f"sqlite3 {quoted(str(path))} .recover")


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
