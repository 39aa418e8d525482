"""The examination is itself examined: a store with one planted fault fails where that fault shows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
from msgspec.structs import replace

from stepwell.backend.base import Change, Creation, Filter, Header, Joined, Loaded, Message, Outcome, Posted, Session
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.testing.conformance import BackendConformance
from stepwell.testing.conformance.joining import Joining

from .examiners import ExaminesMemory, ExaminesSqlite

Broken = type[InMemoryBackend] | type[SqliteBackend]

# These stores reach into the reference store on purpose: a fault is easiest to plant in working code.


class NoFence(InMemoryBackend):
    """Never notices that a session is lost."""

    def _live(self, session: Session) -> Any:
        from stepwell.backend.memory_rows import Held
        from stepwell.testing.sample import this_process

        return self._sessions.get(session.id) or Held(session, this_process(), self._clock() + 1)


class NoSeqCheck(InMemoryBackend):
    """Renumbers what it is given instead of refusing it."""

    def _commit(self, held: Any, change: Change) -> Outcome:
        run = self._runs.get(change.instance)
        if run is None:
            return "conflict"
        base = len(run.journal)
        entries = [replace(entry, seq=base + number) for number, entry in enumerate(change.entries, 1)]
        return super()._commit(held, replace(change, base=base, entries=entries))


class LosesMail(InMemoryBackend):
    """Forgets unread messages when an instance is given back."""

    def _drop_claim(self, run: Any) -> None:
        run.mail.clear()
        super()._drop_claim(run)


class AcceptsTwice(InMemoryBackend):
    """Does not remember message ids."""

    def post(self, instance: int, message: Message) -> Posted:
        run = self._runs.get(instance)
        if run is not None:
            run.known.clear()
        return super().post(instance, message)


class ClaimsHeld(InMemoryBackend):
    """Takes what another session holds."""

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        run = self._last.get(instance_id)
        if run is not None:
            self._drop_claim(run)
        return super().claim(session, instance_id)


class LimitsFirst(InMemoryBackend):
    """Takes the first due rows whatever their definition, and filters afterwards."""

    def claim_due(self, session: Session, definitions: Sequence[int], now_us: int, limit: int) -> Sequence[Loaded]:
        everything = [definition.id for definition in self._definitions]
        found = super().claim_due(session, everything, now_us, limit)
        names = {self._definition(definition).fingerprint for definition in definitions}
        return [each for each in found if each.header.fingerprint in names]


class HalfCommits(InMemoryBackend):
    """Writes the entries of a change that it then refuses to bring to rest."""

    def _commit(self, held: Any, change: Change) -> Outcome:
        run = self._runs.get(change.instance)
        if run is not None and len(run.journal) < change.base:
            run.journal.extend(change.entries)
        return super()._commit(held, change)


class PurgesLive(InMemoryBackend):
    """Takes what has not ended as well, once everything that has is gone."""

    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> int:
        removed = super().purge(ended_before_us, keep, limit)
        live = [name for name, run in self._last.items() if not run.ended and not run.session]
        for instance_id in live[: limit - removed]:
            self._remove(instance_id)
        return min(removed + len(live), limit)


class RepeatsAtPages(InMemoryBackend):
    """Begins a page with the last instance of the page before."""

    def list(self, where: Filter) -> Sequence[Header]:
        return super().list(replace(where, after=where.after + 1) if where.after is not None else where)


class ForgetsReceived(InMemoryBackend):
    """Knows the ids of unread messages only."""

    def received(self, instance: int) -> Sequence[str]:
        run = self._runs.get(instance)
        return sorted(message.message_id for message in run.mail if message.message_id) if run is not None else []


class LosesRestored(InMemoryBackend):
    """Creates a restored run as if it were a new one of its own."""

    def _insert(self, creation: Creation, last: Any) -> Any:
        return super()._insert(replace(creation, origin="", run=0, messages=(), message_ids=()), last)


class CommitsForTheUser(SqliteBackend):
    """Ends the user's transaction with each write."""

    def within(self, connection: object) -> Joined:
        return cast(Joined, _Committing(super().within(connection), cast(apsw.Connection, connection)))


class _Committing:
    def __init__(self, joined: Joined, connection: apsw.Connection) -> None:
        self.joined, self.connection = joined, connection

    def __getattr__(self, name: str) -> Callable[..., object]:
        def method(*args: object) -> object:
            answer = getattr(self.joined, name)(*args)
            if self.connection.in_transaction:
                self.connection.execute("COMMIT")
            return answer

        return method


class NoSavepoint(SqliteBackend):
    """Leaves in the user's transaction what a failed method had written until then."""

    def within(self, connection: object) -> Joined:
        joined = super().within(connection)
        joined._write._undo = lambda: None  # type: ignore[attr-defined]
        return joined


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (NoFence, {"test_renew_is_fenced", "test_commit_is_fenced", "test_a_zombie_writes_nothing"}),
        (NoSeqCheck, {"test_a_stale_base_is_a_conflict", "test_a_base_ahead_is_a_conflict"}),
        (LosesMail, {"test_a_message_that_crosses_a_release_makes_it_due", "test_messages_survive_a_takeover"}),
        (AcceptsTwice, {"test_a_message_id_is_accepted_once", "test_a_message_id_is_remembered_after_the_end"}),
        (ClaimsHeld, {"test_a_lease_keeps_others_away", "test_renewing_extends_the_lease"}),
        (LimitsFirst, {"test_other_definitions_do_not_use_up_the_limit"}),
        (HalfCommits, {"test_a_base_ahead_is_a_conflict"}),
        (PurgesLive, {"test_purge_never_touches_live_instances", "test_purge_keeps_the_newest_ended"}),
        (RepeatsAtPages, {"test_pages_are_stable", "test_filters_are_joined_and_paged"}),
        (ForgetsReceived, {"test_received_ids_are_remembered", "test_restored_message_ids_are_known"}),
        (LosesRestored, {"test_a_restored_header_is_the_stored_one", "test_a_restored_inbox_keeps_its_order"}),
        (CommitsForTheUser, {"test_nothing_lands_before_the_user_commits", "test_what_the_user_rolls_back_never_was"}),
        (NoSavepoint, {"test_a_lost_session_writes_nothing_inside", "test_admission_inside_is_the_same"}),
    ],
)
def test_a_planted_fault_is_caught(broken: Broken, caught_by: set[str], tmp_path: Path) -> None:
    """The tests that are about the fault fail, and most others do not."""
    failed = _failures(broken, tmp_path)
    assert caught_by <= failed
    assert len(failed) < 20


def test_the_reference_store_has_no_fault(tmp_path: Path) -> None:
    """What is run above fails for the planted faults only."""
    assert _failures(InMemoryBackend, tmp_path) == set()


def _failures(kind: Broken, tmp_path: Path) -> set[str]:
    """Run the examination by hand and return the names of the tests that fail; on disk only the part about joining."""
    failed: set[str] = set()
    group = Joining if issubclass(kind, SqliteBackend) else BackendConformance
    for name, test in inspect.getmembers(group, inspect.isfunction):
        if name.startswith("test_") and "tmp_path" not in inspect.signature(test).parameters and "race" not in name:
            suite = _examiner(kind)
            suite.setup_method()
            (folder := tmp_path / name).mkdir()
            backend = suite.make_backend(folder)
            try:
                test(suite, backend)
            except pytest.skip.Exception:
                continue  # what a store does not claim is no fault of it
            except BaseException:  # noqa: BLE001 - LeaseLost and pytest.fail are no Exceptions, and any failure counts
                failed.add(name)
            finally:
                backend.close()
    return failed


def _examiner(kind: Broken) -> BackendConformance:
    if issubclass(kind, SqliteBackend):
        suite = ExaminesSqlite()
        suite.kind = lambda path, **options: kind(path, durability="fast", busy_timeout="1s", **options)  # type: ignore[assignment, misc]
        return suite
    memory = ExaminesMemory()
    memory.kind = kind
    return memory
