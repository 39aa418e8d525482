"""The watcher finds what is wrong with a store while it works, and nothing where nothing is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from stepwell import CheckpointingRunner, InMemoryBackend, LeaseLost, delay, task, workflow
from stepwell.backend.base import Change, Created, Creation, Holder, Loaded, Outcome, Session
from stepwell.testing import VirtualClock
from stepwell.testing.conformance import BackendConformance
from stepwell.testing.watched import WatchedBackend
from stepwell.types import ENDED

from ..backend.test_broken_backends import (  # noqa: TID252 - the tests are not installed
    AcceptsTwice,
    ClaimsHeld,
    HalfCommits,
    NoFence,
    NoSeqCheck,
)

pytestmark = pytest.mark.broken_store


class TakesOverTooSoon(InMemoryBackend):
    """Ends another's session as soon as somebody wants what it holds."""

    def _over(self, held: Any) -> bool:
        return True


class NeverTakesOver(InMemoryBackend):
    """Believes that every session lives for ever."""

    def _over(self, held: Any) -> bool:
        return False


class CreatesTwice(InMemoryBackend):
    """Forgets that an id exists."""

    def create(self, session: Session | None, creations: Sequence[Creation]) -> Any:
        for creation in creations:
            self._last.pop(creation.instance_id, None)
        return super().create(session, creations)


class WritesReplacedRuns(InMemoryBackend):
    """Does not close a run whose place was taken."""

    def _replace(self, run: Any) -> None:
        super()._replace(run)
        run.replaced = False


class ClaimsEnded(InMemoryBackend):
    """Grants claims on runs that are over."""

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        loaded = super().claim(session, instance_id)
        if loaded is None or loaded.header.state not in ENDED:
            return loaded
        return replace(loaded, header=replace(loaded.header, session=session.id))


class LosesAndWrites(InMemoryBackend):
    """Writes first, and looks at the session afterwards."""

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        for change in changes:
            run = self._runs.get(change.instance)
            if run is not None and len(run.journal) == change.base:
                run.journal.extend(change.entries)
        return super().commit(session, changes)


def examined(kind: Callable[..., InMemoryBackend]) -> WatchedBackend:
    """Put a store through the examination with watchers around it, and return the last one with all their reports."""
    total = WatchedBackend(InMemoryBackend())
    for name, test in inspect.getmembers(BackendConformance, inspect.isfunction):
        if name.startswith("test_") and "tmp_path" not in inspect.signature(test).parameters and "race" not in name:
            suite = BackendConformance()
            suite.setup_method()
            watched = WatchedBackend(kind(lease_clock=suite.clock), lease_clock=suite.clock)
            try:
                test(suite, watched)
            except pytest.skip.Exception:
                pass  # about what the reference store does not claim to do
            except BaseException:  # noqa: BLE001 - the examination finds the fault too; here the watcher has to
                total.trace.append(name)
            total.report.merge(watched.report)
    return total


def test_the_reference_store_keeps_every_promise() -> None:
    """Over the whole examination; and each rule was asked."""
    watched = examined(InMemoryBackend)
    assert not watched.trace, "the watcher changes what a store answers"
    assert watched.report.ok, watched.report
    assert {rule for rule in ("S3", "S4", "S5", "S7", "S8", "L1", "S12") if not watched.report.examined[rule]} == set()


@pytest.mark.parametrize(
    ("rules", "kind"),
    [
        ({"S3"}, ClaimsHeld),
        ({"S3"}, TakesOverTooSoon),
        ({"S3", "S4"}, NoFence),
        ({"S4"}, HalfCommits),
        ({"S4"}, LosesAndWrites),
        ({"S5"}, NoSeqCheck),
        ({"S7"}, CreatesTwice),
        ({"S7"}, WritesReplacedRuns),
        ({"S8"}, AcceptsTwice),
        ({"S12"}, ClaimsEnded),
        ({"L1"}, NeverTakesOver),
    ],
)
def test_a_faulty_store_is_found_out(rules: set[str], kind: type[InMemoryBackend]) -> None:
    """By the rules that its fault breaks."""
    assert examined(kind).report.rules == rules


def test_a_runner_works_over_it_unhindered() -> None:
    """Threads, timers and a lost session; what each call was is on record."""

    @task
    def step(x: int) -> int:
        return x + 1

    @workflow
    def napping(x: int) -> int:
        delay("1h")
        return step(step(x))

    watched = WatchedBackend(InMemoryBackend())
    with CheckpointingRunner(watched, clock=VirtualClock()) as runner:
        assert runner.run_many(napping, [1, 2, 3]) == [3, 4, 5]
    assert watched.report.ok, watched.report
    assert watched.report.examined["S5"] > 0
    assert "commit" in watched.trace


def test_a_commit_of_a_lost_session_is_looked_at_on_both_sides() -> None:
    """It raises as it would without the watcher."""
    watched = WatchedBackend(InMemoryBackend())
    number = watched.register("w", "f", b"")
    session = watched.open_session(Holder("h", "host", 0, 0, ""), 1_000_000)
    (made,) = watched.create(session, [Creation("i", number, b"", [], 1)])
    assert isinstance(made, Created)
    watched.end_session(session)
    with pytest.raises(LeaseLost):
        watched.commit(session, [Change(made.header.instance, 0, [])])
    assert watched.report.ok
    assert watched.report.examined["S4"] > 0
