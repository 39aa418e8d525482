"""The command as a process: closed pipes, Ctrl-C, a worker that drains, and what is imported for what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from stepwell import SqliteBackend, WorkflowClient

from .conftest import SHOP


def begin(database, *words, **more):
    command = [sys.executable, "-m", "stepwell", *words]
    env = {**os.environ, "STEPWELL_DB": str(database), "PYTHONIOENCODING": "utf-8"}
    env.pop("PYTHONUNBUFFERED", None)  # under it Python itself does not see a pipe that was closed
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True, **more)


def test_a_pipe_that_is_closed_early_is_no_error(stepwell):
    """As with ``| head``: nothing on standard error."""
    from stepwell.cli.loading import load_module

    shop = load_module(str(SHOP))
    with closing(SqliteBackend(stepwell.database)) as backend:
        WorkflowClient(backend).start_many(shop.wide, list(range(400)))
    process = begin(stepwell.database, "ps", "--json", "--limit", "1000")
    assert process.stdout is not None
    assert process.stdout.readline() == "{\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_on_a_terminal_the_picture_is_redrawn_and_its_last_state_stays(stepwell):
    """The cursor is hidden meanwhile and shown again at the end."""
    import pty

    ours, theirs = pty.openpty()
    env = {**os.environ, "STEPWELL_DB": str(stepwell.database), "PYTHONIOENCODING": "utf-8", "TERM": "xterm"}
    command = [sys.executable, "-m", "stepwell", "watch", "done-1"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        told = b""
        try:
            while part := os.read(ours, 4096):
                told += part
        except OSError:  # the other side is closed
            assert told
    os.close(ours)
    assert process.returncode == 0
    assert told.index(b"\x1b[?25l") < told.index(b"\x1b[?25h")
    assert "✓ completed".encode() in told
    assert b"Traceback" not in told


JOB = """
import sys
from stepwell import signal, task, workflow

@task
def greet(name: str) -> str:
    print("working", file=sys.stderr, flush=True)
    return name

@workflow
def job(name: str) -> str:
    greet(name)
    return signal("go", str)
"""


def test_ctrl_c_suspends_a_run_and_says_how_to_go_on(empty, tmp_path):
    """The instance keeps what it has done; the command that is printed goes on with it."""
    (tmp_path / "a_job.py").write_text(JOB, "utf-8")
    process = begin(empty.database, "run", "a_job.py:job", '"ann"', "--id", "j-1", cwd=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert "Suspended: j-1" in told
    assert "stepwell run a_job.py:job --resume j-1" in told
    assert "Traceback" not in told
    assert empty("signal", "j-1", "go", '"bob"').code == 0
    went_on = begin(empty.database, "run", "a_job.py:job", "--resume", "j-1", cwd=tmp_path)
    assert went_on.communicate()[0] == '"bob"\n'


def test_a_worker_serves_until_it_is_told_to_stop(empty, tmp_path):
    """SIGTERM drains; JSON says what it serves and how it left."""
    (tmp_path / "b_job.py").write_text(JOB, "utf-8")
    process = begin(empty.database, "worker", "b_job.py:job", "--name", "w-1", "--json", cwd=tmp_path)
    assert process.stdout is not None
    assert '"worker":"w-1"' in process.stdout.readline()
    assert empty("start", "b_job.py:job", '"ann"', "--id", "j-2").code == 0
    assert process.stderr is not None
    assert process.stderr.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert '"event":"stopped"' in out


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], {"rich", "asyncio", "apsw"}),
        (["ps", "--json"], {"rich", "asyncio"}),
        (["ps"], {"rich", "asyncio"}),
        (["tree", "waiting-1"], {"rich", "asyncio"}),
        (["show", "waiting-1", "--json"], {"rich", "asyncio"}),
    ],
)
def test_a_command_imports_what_it_needs_only(stepwell, words, unwanted):
    """So that it starts fast."""
    program = (
        "import sys\nfrom stepwell.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    env = {**os.environ, "STEPWELL_DB": str(stepwell.database), "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, env=env, check=True)
    assert unwanted & set(ran.stderr.decode().split()) == set()


def test_where_only_ascii_can_be_shown_ascii_is_shown(stepwell):
    """The tree has lines and signs all the same."""
    env = {**os.environ, "STEPWELL_DB": str(stepwell.database), "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    command = [sys.executable, "-m", "stepwell", "tree", "waiting-1"]
    ran = subprocess.run(command, capture_output=True, env=env, check=True)
    assert b"|- + parallel" in ran.stdout
    assert b"|- ~ approve" in ran.stdout
    assert ran.stdout.isascii()
