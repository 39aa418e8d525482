"""A process is called dead only when that is proven."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Holder
from stepwell.backend.liveness import boot_id, is_dead, lease_clock, this_process

pytestmark = pytest.mark.skipif(not boot_id(), reason="this system does not tell one boot from another")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when it is told to, and has said that it runs."""
    text = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-S", "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    yield process
    process.communicate()


def holder_of(process: subprocess.Popen[bytes], started: int = 0) -> Holder:
    return replace(this_process(), pid=process.pid, started=started)


def test_this_process_lives() -> None:
    """We would not be asking otherwise."""
    me = this_process("me")
    assert (me.name, me.pid) == ("me", os.getpid())
    assert me.started > 0
    assert not is_dead(me)


def test_a_holder_has_a_name() -> None:
    """By default it says where and which process."""
    assert this_process().name.endswith(f":{os.getpid()}")


def test_a_living_child_lives(child: subprocess.Popen[bytes]) -> None:
    """A pid that exists proves nothing, with or without a start time."""
    assert not is_dead(holder_of(child))


def test_a_reaped_child_is_dead(child: subprocess.Popen[bytes]) -> None:
    """There is no such pid any more."""
    child.communicate()
    assert is_dead(holder_of(child))


def test_a_child_that_was_killed_and_not_reaped_is_dead(child: subprocess.Popen[bytes]) -> None:
    """Its entry in the process table writes no more rows."""
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(holder_of(child))


def test_a_pid_that_was_given_out_again_is_dead() -> None:
    """A process that started at another time is another process."""
    me = this_process()
    assert is_dead(replace(me, started=me.started - 1))


def test_another_boot_proves_nothing(child: subprocess.Popen[bytes]) -> None:
    """Nor does another pid namespace, nor a holder that did not know its boot."""
    child.communicate()
    dead = holder_of(child)
    unknown = [replace(dead, boot_id="other"), replace(dead, boot_id=""), replace(dead, namespace="pid:[1]")]
    assert [is_dead(holder) for holder in unknown] == [False] * 3


def test_a_process_of_another_user_lives() -> None:
    """The first process of the system exists whether or not we may send it signals."""
    assert not is_dead(replace(this_process(), pid=1, started=0))


def test_the_lease_clock_does_not_go_back() -> None:
    """It counts microseconds."""
    first, second = lease_clock(), lease_clock()
    assert isinstance(first, int)
    assert first <= second
