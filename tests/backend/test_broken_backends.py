"""The examination is itself examined: a store with one planted fault fails where that fault shows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwell.backend.base import Backend, Change, Loaded, Message, Outcome, Posted, Session
from stepwell.backend.memory import InMemoryBackend
from stepwell.testing.conformance import BackendConformance

# These stores reach into the reference store on purpose: a fault is easiest to plant in working code.


class NoFence(InMemoryBackend):
    """Never notices that a session is lost."""

    def _live(self, session: Session) -> Any:
        from stepwell.backend.memory import _Held
        from stepwell.testing.sample import this_process

        return self._sessions.get(session.id) or _Held(session, this_process(), self._clock() + 1)


class NoSeqCheck(InMemoryBackend):
    """Renumbers what it is given instead of refusing it."""

    def _commit(self, held: Any, change: Change) -> Outcome:
        from msgspec.structs import replace

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
    ],
)
def test_a_planted_fault_is_caught(broken: type[InMemoryBackend], caught_by: set[str], tmp_path: Path) -> None:
    """The tests that are about the fault fail, and most others do not."""
    failed = _failures(broken, tmp_path)
    assert caught_by <= failed
    assert len(failed) < 20


def test_the_reference_store_has_no_fault(tmp_path: Path) -> None:
    """What is run above fails for the planted faults only."""
    assert _failures(InMemoryBackend, tmp_path) == set()


def _failures(kind: type[InMemoryBackend], tmp_path: Path) -> set[str]:
    """Run the examination by hand and return the names of the tests that fail."""
    failed: set[str] = set()
    for name, test in inspect.getmembers(BackendConformance, inspect.isfunction):
        if name.startswith("test_") and "tmp_path" not in inspect.signature(test).parameters and "race" not in name:
            suite = BackendConformance()
            suite.setup_method()
            backend: Backend = kind(lease_clock=suite.clock)
            try:
                test(suite, backend)
            except BaseException:  # noqa: BLE001 - LeaseLost and pytest.fail are no Exceptions, and any failure counts
                failed.add(name)
    return failed
