"""The examination is itself examined: a store with one planted fault fails where that fault shows."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
from msgspec.structs import replace

from stepwell.backend.base import (
    Change,
    Creation,
    Filter,
    Header,
    Joined,
    Loaded,
    Message,
    Offered,
    Outcome,
    Posted,
    Session,
    Want,
)
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.backend.turns import Due
from stepwell.testing.conformance import BackendConformance
from stepwell.testing.conformance.joining import Joining

from .examiners import ExaminesMemory, ExaminesSqlite

LAST = Due(2**63, 0, "")
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

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        everything = [definition.id for definition in self._definitions]
        found = super().claim_due(session, replace(want, definitions=everything))
        names = {self._definition(definition).fingerprint for definition in want.definitions}
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


class CountsItself(InMemoryBackend):
    """Holds it against an instance that its own session has ended."""

    def _end(self, held: Any, *, lost: bool) -> None:
        super()._end(held, lost=True)


class NeverForgives(InMemoryBackend):
    """Goes on counting lost sessions after something was written."""

    def _header(self, run: Any, asking: Any = None) -> Header:
        return replace(super()._header(run, asking), suspect=run.lost)


class OneQueue(InMemoryBackend):
    """Claims what is due longest, whatever its definition."""

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        found = list(super().claim_due(session, replace(want, limit=0)))
        while len(found) < want.limit:
            ones = {each.id: self._due_of(each, want, self._room(want)) for each in self._wanted(want)}
            first = min((rows[0], number) for number, rows in {**ones, 0: [LAST]}.items() if rows)
            if first[0] is LAST:
                break
            found += super().claim_due(session, replace(want, definitions=[first[1]], limit=1))
        return found


class CountsItsOwn(InMemoryBackend):
    """Thinks of what other sessions hold as room."""

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        self.asking = session.id
        return super().claim_due(session, want)

    def _held(self) -> Mapping[tuple[str, str], int]:
        runs = [run for run in self._runs.values() if run.session == self.asking]
        return Counter((run.definition.name, run.made.lane) for run in runs)


class PatientWithAll(InMemoryBackend):
    """Leaves to others whatever asked to avoid anybody."""

    def _is_for(self, want: Want, number: int) -> bool:
        avoid = self._runs[number].avoid
        return super()._is_for(replace(want, avoid=avoid or want.avoid), number)


class AnyTag(InMemoryBackend):
    """Is content with one of the tags that an offer asks for."""

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        for definition in self._definitions:
            for asked in definition.free:
                if asked & set(want.tags):
                    want = replace(want, tags=[*want.tags, *asked])
        return super().claim_offers(session, want)


class SettlesForAnyone(InMemoryBackend):
    """Takes the outcome of an offer from whoever brings it."""

    def _settle(self, held: Any, number: int, message: Message) -> bool:
        row = next((each for each in self._offers if each.id == number), None)
        if row is None:
            return False
        self._offers.remove(row, self._sessions.get(row.session))
        self._tell(row.run, message)
        return True


class SettlesTwice(InMemoryBackend):
    """Posts the outcome of an offer that is gone."""

    def settle(self, session: Session, results: Sequence[tuple[int, Message]]) -> Sequence[bool]:
        for run in [self._runs[number] for number in self._live(session).runs]:
            self._known_offers.update({each.id: run for each in run.offers.values()})
        answers = super().settle(session, results)
        for (number, message), answer in zip(results, answers, strict=True):
            if not answer and number in self._known_offers:
                self._tell(self._known_offers[number], message)
        return answers

    @property
    def _known_offers(self) -> dict[int, Any]:
        return self.__dict__.setdefault("known_offers", {})


class ForgetsToWake(InMemoryBackend):
    """Leaves a free instance asleep when an outcome comes for it."""

    def _tell(self, run: Any, message: Message) -> None:
        due_us = run.due_us
        super()._tell(run, message)
        if not run.session:
            run.due_us = due_us


class OutlivesItsRun(InMemoryBackend):
    """Leaves the offers of a run that has ended to whoever finds them."""

    def _drop_offers(self, run: Any) -> None:
        pass


class DropsWithTheHolder(InMemoryBackend):
    """Takes back all offers of an instance when its claim ends."""

    def _free(self, run: Any) -> None:
        super()._free(run)
        self._drop_offers(run)


class ImmortalOffers(InMemoryBackend):
    """Offers a step again however many sessions were lost with it."""

    def _end(self, held: Any, *, lost: bool) -> None:
        for number in held.offers:
            row = self._offers.claimed(held, number)
            assert row is not None
            row.offer = replace(row.offer, lives=10**9)
        super()._end(held, lost=lost)


class CallsOffQuietly(InMemoryBackend):
    """Does not say that a step was called off and will not come."""

    def hand_back(self, session: Session, offers: Sequence[int]) -> None:
        held = self._live(session)
        for number in offers:
            row = self._offers.claimed(held, number)
            if row is not None and row.called_off:
                self._offers.remove(row, held)
        super().hand_back(session, offers)


class TakesBackClaimed(InMemoryBackend):
    """Calls off by taking the offer from whoever runs it."""

    def _call_off(self, row: Any, stop: bool) -> bool:
        if row is not None:
            self._offers.remove(row, self._sessions.get(row.session))
        return row is not None


class TakesBackNothing(InMemoryBackend):
    """Says that it took back what was not there."""

    def _call_off(self, row: Any, stop: bool) -> bool:
        return row is None or super()._call_off(row, stop)


class WakesInside(InMemoryBackend):
    """Tells its watchers while it keeps its lock."""

    def _watched(self) -> Any:
        @contextmanager
        def watched() -> Iterator[None]:
            with self._lock:
                yield
                for wake in self._watchers.values():
                    wake()

        return watched()


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


class ServesForEver(InMemoryBackend):
    """Counts sessions that are over among those that serve a graph."""

    def served(self, definitions: Sequence[int]) -> Mapping[int, int]:
        return Counter(each for held in self._sessions.values() for each in held.serves.intersection(definitions))


class ServesMoreAndMore(InMemoryBackend):
    """Adds what a session serves to what it served before."""

    def serve(self, session: Session, definitions: Sequence[int]) -> None:
        held = self._sessions.get(session.id)
        super().serve(session, [*definitions, *(held.serves if held is not None else ())])


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (NoFence, {"test_renew_is_fenced", "test_commit_is_fenced", "test_a_zombie_writes_nothing"}),
        (ServesForEver, {"test_a_lease_that_ran_out_serves_nothing"}),
        (ServesMoreAndMore, {"test_what_is_said_last_counts"}),
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
        (
            CountsItself,
            {"test_a_session_that_ends_itself_is_not_counted", "test_a_session_that_ends_itself_costs_no_life"},
        ),
        (NeverForgives, {"test_an_entry_clears_it", "test_a_client_s_entry_clears_it"}),
        (OneQueue, {"test_definitions_take_turns", "test_a_long_queue_delays_no_other"}),
        (CountsItsOwn, {"test_no_more_than_most_are_held", "test_of_many_claimers_none_takes_too_many"}),
        (PatientWithAll, {"test_others_take_it_when_it_is_due"}),
        (AnyTag, {"test_all_tags_are_asked_for"}),
        (SettlesForAnyone, {"test_only_its_claimer_settles_an_offer"}),
        (SettlesTwice, {"test_each_of_a_batch_is_answered", "test_of_many_threads_one_settles"}),
        (ForgetsToWake, {"test_an_outcome_makes_a_free_instance_due", "test_a_loss_makes_a_free_instance_due"}),
        (OutlivesItsRun, {"test_the_end_takes_all_offers", "test_a_replacement_takes_the_offers_of_the_old_run"}),
        (DropsWithTheHolder, {"test_rests_and_releases_keep_offers", "test_a_takeover_of_the_holder_keeps_offers"}),
        (ImmortalOffers, {"test_with_its_last_life_an_offer_is_lost"}),
        (CallsOffQuietly, {"test_what_is_handed_back_after_the_call_is_gone"}),
        (TakesBackClaimed, {"test_what_is_claimed_stays", "test_whoever_runs_it_is_told_to_stop"}),
        (TakesBackNothing, {"test_what_nobody_has_claimed_is_taken_back"}),
        (WakesInside, {"test_whoever_is_woken_may_use_the_store"}),
        (CommitsForTheUser, {"test_nothing_lands_before_the_user_commits", "test_what_the_user_rolls_back_never_was"}),
        (NoSavepoint, {"test_a_lost_session_writes_nothing_inside", "test_admission_inside_is_the_same"}),
    ],
)
def test_a_planted_fault_is_caught(broken: Broken, caught_by: set[str], tmp_path: Path) -> None:
    """The tests that are about the fault fail, and most others do not."""
    failed = _failures(broken, tmp_path)
    assert caught_by <= failed
    assert len(failed) < 25


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
            suite.wait_s = 10.0 if kind is InMemoryBackend else 0.05
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
