"""Everything at once, while money is moved: workers, two of which share a name, are killed, stopped and cut off.

Every run has a small one. ``STEPWELL_CHAOS=1 python -m pytest -n 0 -s tests/chaos`` asks for the full storm, with up to
eight workers, which takes a minute and likes to have the machine for itself; a greater number makes it as much longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..proxy import Proxy  # noqa: TID252 - the tests are not installed
from .autopsy import told
from .harness import Chaos, dice, several

Begin = Callable[..., Chaos]
RESTARTS = 20

FULL = "STEPWELL_CHAOS" in os.environ


def names(number: int) -> list[str]:
    """A name guards nothing, so the last two have the same."""
    return [f"w{min(n, number - 2)}" for n in range(number)]


@pytest.fixture
def proxy(own_server: Server) -> Iterator[Proxy]:
    with Proxy(own_server.socket) as made:
        yield made


@pytest.mark.parametrize("number", [2, 3] if FULL else [2])
def test_workers_on_one_file_are_killed_and_stopped(begin: Begin, number: int) -> None:
    """kill -9 and SIGSTOP, on SQLite."""
    chaos, random = begin("sqlite"), dice(f"sqlite {number}")
    for name in names(number):
        chaos.hire(name)
    for fault in [chaos.kill] * several(3) + [chaos.zombie] * several(1):
        chaos.start(4)
        chaos.progress()
        fault(random.choice(chaos.workers))
    chaos.settle()
    chaos.judge()


@pytest.mark.parametrize("number", [2, 3, 8] if FULL else [3])
def test_workers_in_every_trouble(begin: Begin, proxy: Proxy, number: int) -> None:
    """kill -9, SIGSTOP, sessions ended, answers to commits lost, lines half-open, in an order drawn by lot."""
    chaos, random = begin(), dice(f"postgres {number}")
    behind = chaos.behind(proxy)
    for at, name in enumerate(names(number)):
        chaos.hire(name, behind if at % 2 else None)
    proxied = [each for each in chaos.workers if each.place is behind]
    faults: dict[str, Callable[[], object]] = {
        "kill": lambda: chaos.kill(random.choice(chaos.workers)),
        "stop": lambda: chaos.zombie(random.choice(chaos.workers)),
        "terminate": lambda: chaos.terminate(0.5),
        "lose": lambda: chaos.lose(proxy, random.randint(1, 5)),
        "half-open": lambda: chaos.half_open(proxy, proxied, cut=random.random() < 0.5),
    }
    plan = ["kill", "terminate", "lose"] * several(3) + ["stop", "half-open"] * several(1)
    random.shuffle(plan)
    for fault in plan:
        chaos.start(3)
        chaos.progress()
        faults[fault]()
    chaos.settle()
    chaos.judge()


def test_the_server_crashes_again_and_again(begin: Begin) -> None:
    """Nobody has to be restarted because of it."""
    chaos = begin()
    for name in names(3):
        chaos.hire(name)
    pids = [each.pid for each in chaos.workers]
    for _ in range(several(RESTARTS)):
        chaos.start(2)
        chaos.progress(4)
        chaos.restart()
    chaos.settle()
    assert [each.pid for each in chaos.workers] == pids, told(chaos)
    chaos.judge()


def test_clocks_that_are_ten_minutes_off(begin: Begin) -> None:
    """In both directions, while workers are killed: leases go by the server's clock, so nothing runs twice.

    Timers go by the clock of whoever set them, so in the end those who would wait for minutes leave the rest to the one
    for whom all of it is due.
    """
    chaos, random = begin(), dice("clocks")
    for name, skew_s in (("ahead", 600), ("behind", -600), ("right", 0)):
        chaos.hire(name, skew_s=skew_s)
    for _ in range(several(4)):
        chaos.start(4)
        chaos.progress()
        chaos.kill(random.choice(chaos.workers))
    chaos.account.fault("clock ten minutes off", 2, 2)
    for each in [each for each in chaos.workers if each.name != "ahead"]:
        chaos.until(lambda each=each: chaos.sessions()[each.pid], "it has begun")  # type: ignore[misc]
        chaos.dismiss(each)
    chaos.settle()
    chaos.judge(clocks=False)
