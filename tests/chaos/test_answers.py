"""The answer to each commit is lost in turn, the session is ended at each statement in turn.

What ran does not run again, except a step whose own transaction was undone with the session.

Everything runs in this process, so that the places are the same ones each time; they are over when a run met none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest

from stepwell import BackendError, CheckpointingRunner, ConflictPolicy, branch, delay, parallel, signal, workflow
from stepwell.testing import VirtualClock
from stepwell.testing.invariants import check_ledger, check_store

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..proxy import Pooler, Proxy  # noqa: TID252 - the tests are not installed
from .bank import ACCOUNTS, CENTS_EACH, Bank, Ledger, first, later, lines_of, plain, second, shaky, third
from .harness import Account
from .places import Place

PLACES_MAX = 400
STEPS = {"first", "parallel/late/second", "parallel/shaky", "parallel/later", "third", "plain"}
BOOKED = ("first", "parallel/late/second", "third")
JOINED = BOOKED[1:]


@workflow
async def errand(cents: int) -> int:
    a = first(cents)
    with parallel():
        with branch("late"):
            delay("1h")
            moved = second(a)
        b, _ = shaky(a), await later(a)
    word = signal("word", int)
    third(moved, word)
    return plain(b)


class Errands:
    """Runs one errand after the other through a proxy, each with one fault."""

    def __init__(self, server: Server, proxy: Proxy, folder: Path, stack: ExitStack) -> None:
        self.proxy, self.server, self.ended = proxy, server, dict[str, int]()
        direct = Place("postgres", server.dsn(), server.new_schema())
        self.ledger = Ledger(str(folder / "errands"), "here")
        server.execute(f"CREATE SCHEMA {direct.schema}_bank")
        self.looks = stack.enter_context(direct.open())
        self.bank = direct.bank(self.looks)
        self.bank.set_up()
        self.backend = stack.enter_context(direct._replace(at=proxy.dsn()).open())
        # the bank is reached past the proxy: the faults are ours
        self.runner = stack.enter_context(
            CheckpointingRunner(self.backend, deps={Ledger: self.ledger, Bank: self.bank}, clock=VirtualClock())
        )

    def run(self, name: str) -> int:
        """Run one errand to its end, as a caller who calls again would. Returns how often it had to."""
        calls = [
            lambda: self.runner.start(errand, 5, instance_id=name, on_conflict=ConflictPolicy.USE_EXISTING),
            lambda: self.runner.client.signal(name, "word", 3, signal_id="one"),
            lambda: self.runner.run(errand, 5, instance_id=name, on_conflict=ConflictPolicy.USE_EXISTING),
        ]
        again = sum(self.called(call) for call in calls)
        self.ended[name] = again
        return again

    def called(self, call: Callable[[], object]) -> int:
        for tries in range(3):
            try:
                call()
            except BackendError:
                continue
            return tries
        raise AssertionError("the third call fails as well")

    def judge(self) -> dict[str, int]:
        """Hold all errands against the books. Returns the figures."""
        money, booked = self.bank.books()
        lines = lines_of(Path(self.ledger.path))
        starts = [(line.instance, line.path, line.attempt) for line in lines if line.event == "start"]
        reports = check_store(self.looks, now_us=2**62), check_ledger(lines, self.looks)
        steps = {(name, path) for name in self.ended for path in BOOKED}
        times = {(i, path): n for i, path, n in booked}
        found = {
            "lost": len(steps - times.keys()),
            "duplicated": sum(n - 1 for n in times.values()) + len(times.keys() - steps),
            "stuck": sum(self.looks.header(name).state != "completed" for name in self.ended),
            "money drift": money - ACCOUNTS * CENTS_EACH,
            "needless re-runs": sum(n - 1 for (_, path, _), n in Counter(starts).items() if path not in JOINED),
            "broken promises": sum(len(report.violations) for report in reports),
        }
        assert {path for _, path, _ in starts} == STEPS
        assert found == dict.fromkeys(found, 0), [str(each) for report in reports for each in report.violations]
        return {
            "instances": len(self.ended),
            "starts": len(starts),
            "re-runs": len(starts) - len(set(starts)),
            "calls repeated": sum(self.ended.values()),
            **found,
        }


@pytest.fixture
def errands(own_server: Server, tmp_path: Path) -> Iterator[Errands]:
    with ExitStack() as stack:
        yield Errands(own_server, stack.enter_context(Proxy(own_server.socket)), tmp_path, stack)


def each_place(errands: Errands, kind: str, strike: Callable[[int], None]) -> int:
    """Strike at the first place, the second, the third … until a run meets none; return how many there were."""
    for nth in count(1):
        assert nth < PLACES_MAX
        before = errands.proxy.observed[kind]
        strike(nth)
        errands.run(f"e{nth}")
        if errands.proxy.observed[kind] == before:
            return nth - 1
    raise AssertionError


def test_the_answer_to_the_kth_commit_is_lost(errands: Errands, account: Account) -> None:
    """It is read back: nobody runs anything again because of it, and no caller need hear of it."""
    met = each_place(errands, "commit", errands.proxy.drop_commit)
    found = errands.judge()
    account.fault("lost answer to a commit, each in turn", met, met)
    account.counts.update(found)
    assert met > 8
    assert found["re-runs"] == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_session_is_ended_at_the_kth_statement(
    errands: Errands, account: Account, when: Literal["before", "after"]
) -> None:
    """By pg_terminate_backend, while the statement is on its way or when it has been sent."""

    def end(pid: int) -> None:
        errands.server.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    met = each_place(errands, "statement", lambda nth: errands.proxy.at_statement(nth, end, when))
    found = errands.judge()
    account.fault(f"pg_terminate_backend, {when} each statement", met, met)
    account.counts.update(found)
    assert met > 15


def test_through_a_transaction_pooler(own_server: Server, tmp_path: Path, account: Account) -> None:
    """Each transaction is on another session, and nothing that a session was told is known to the next."""
    with ExitStack() as stack:
        pooler = stack.enter_context(Pooler(own_server.socket, size=3))
        errands = Errands(own_server, pooler, tmp_path, stack)
        assert [errands.run(f"e{nth}") for nth in range(6)] == [0] * 6
        found: dict[str, Any] = errands.judge()
        assert pooler.lent > 30
    account.counts.update(found)
    assert found["re-runs"] == 0
