"""The server of the tests survives what it is put through, and nothing of it survives the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from .. import postgres  # noqa: TID252 - the tests are not installed
from ..postgres import Server, until  # noqa: TID252 - the tests are not installed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate", "kill"])
def test_what_was_committed_is_there_after_a_restart(own_server: Server, mode: postgres.Mode) -> None:
    """Whatever the way it was stopped in."""
    own_server.execute(f"CREATE TABLE kept_{mode} AS SELECT 7 AS x")
    own_server.restart(mode)
    assert own_server.execute(f"TABLE kept_{mode}") == [(7,)]


def test_databases_are_apart(own_server: Server) -> None:
    """A table of one is not in another."""
    one, other = own_server.create_database(), own_server.create_database()
    own_server.execute("CREATE TABLE t (x int)", database=one)
    with pytest.raises(psycopg.errors.UndefinedTable):
        own_server.execute("TABLE t", database=other)


def test_closing_leaves_nothing() -> None:
    """Neither the folder nor a process."""
    with Server(durable=False) as server:
        (pid,) = server.execute("SELECT pg_backend_pid()")[0]
    assert not server.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.close()


def test_it_goes_with_a_process_that_is_killed() -> None:
    """The watchdog sees the end of the pipe and removes the folder when the server is gone."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.postgres"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        dsn = process.stdout.readline().strip()
        folder = Path(psycopg.conninfo.conninfo_to_dict(dsn)["host"])
        with psycopg.connect(dsn) as connection:
            process.send_signal(signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):  # the server ends its sessions as it ends
                connection.execute("SELECT pg_sleep(60)")
    until(lambda: not folder.exists(), "the folder is gone")


def test_without_an_installed_server_the_wheel_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its binaries are used, even where the server's user may not go."""
    found = [place for place in postgres.places() if postgres.WHEEL in place.parts]
    if not found:
        pytest.skip("the wheel is not installed")
    monkeypatch.setenv("STEPWELL_TEST_PG_BIN", str(found[0]))
    with Server() as server:
        assert server.execute("SELECT 1") == [(1,)]
        server.restart("immediate")


def test_no_server_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The text says what to install."""
    monkeypatch.setenv("STEPWELL_TEST_PG_BIN", str(tmp_path))
    with pytest.raises(postgres.NoServer, match="install"):
        Server()
