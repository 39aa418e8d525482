"""Reading, listing and upkeep."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Thread
from typing import get_args

import pytest
from msgspec.structs import replace

from stepwell.backend.base import BROUGHT_BYTES, Backend, Filter, Want
from stepwell.errors import Closed, OptionError
from stepwell.testing.sample import (
    COMPLETED,
    FAILED,
    RUNNING,
    T0,
    WAITING,
    change,
    create,
    creation,
    entries,
    header_of,
    seqs,
    session_of,
    signal,
    start,
)
from stepwell.types import State

from .examiner import Examiner

ODD_IDS = [
    "o'brien", 'say "hi"', "100%", "a_b", "../../etc/passwd", "a;DROP TABLE instance;--", "ünïcödé", "\U0001f600",
    "日本語", " ", "x" * 256, "[a]", "{}", "NULL", "0", "-1", "\\", "a/b", "É", "E\u0301",
]  # fmt: skip


def names(backend: Backend, where: Filter) -> list[str]:
    return [header.instance_id for header in backend.list(where)]


class Reading(Examiner):
    def test_what_does_not_exist_is_none(self, backend: Backend) -> None:
        """Reads of an unknown id or number are empty, not errors."""
        assert (backend.header("nobody"), backend.load("nobody")) == (None, None)
        assert (backend.values(77, [1]), list(backend.history(77, 0, 9))) == ({}, [])
        assert backend.plan("no-fingerprint", "nothing") is None

    def test_odd_ids_are_ids(self, backend: Backend) -> None:
        """Quotes, wildcards, slashes and any script are characters like others, and none equals another."""
        for instance_id in ODD_IDS:
            assert start(backend, None, instance_id).run == 1
        assert names(backend, Filter()) == ODD_IDS[::-1]
        assert all(header_of(backend, instance_id).instance_id == instance_id for instance_id in ODD_IDS)

    def test_values_are_found_by_seq(self, backend: Backend) -> None:
        """Entries without an output, and seqs that do not exist, are left out."""
        header = create(backend, None, replace(creation(backend), entries=[*entries(1), *entries(2, output=None)]))
        assert backend.values(header.instance, [1, 2, 3]) == {1: b"out"}
        assert backend.values(header.instance, []) == {}

    def test_a_load_brings_a_short_first_output_and_no_other(self, backend: Backend) -> None:
        """The input of a new instance comes along, unless it is long; what follows has to be asked for."""
        for name, output in {"short": b"x" * BROUGHT_BYTES, "long": b"x" * (BROUGHT_BYTES + 1)}.items():
            made = replace(creation(backend, name), entries=[*entries(1, output=output), *entries(2)])
            create(backend, None, made)
            found = backend.load(name)
            assert found is not None
            assert [entry.output for entry in found.entries] == [output if name == "short" else None, None]

    def test_history_comes_in_pages(self, backend: Backend) -> None:
        """Each page goes on after the last seq of the one before."""
        header = create(backend, None, creation(backend, count=5))
        pages = [list(backend.history(header.instance, after, 2)) for after in (0, 2, 4, 5)]
        assert pages == [entries(1, 2), entries(3, 2), entries(5), []]

    def test_a_plan_is_stored_once(self, backend: Backend) -> None:
        """The last registration of a name and fingerprint counts, under its first number; others get their own."""
        first = backend.register("w", "f", b"other plan")
        assert backend.register("w", "f", b"plan") == first
        assert len({first, backend.register("w", "g", b"g"), backend.register("v", "f", b"v")}) == 3
        assert (backend.plan("f", "w"), backend.plan("g", "w"), backend.plan("f", "v")) == (b"plan", b"g", b"v")

    def test_a_store_has_an_id(self, backend: Backend) -> None:
        """It is random, so it is not empty, and it stays the same."""
        assert len(backend.backend_id) >= 16
        assert backend.codec_id == backend.codec.id

    def test_nothing_is_stuck(self, backend: Backend) -> None:
        """Whatever waits for a time, a message, a person or its holder is not stuck."""
        ann = session_of(backend)
        for state in ("waiting", "paused", "held", "completed"):
            backend.commit(None, [change(start(backend, None, state), rest=replace(WAITING, state=state))])
        backend.commit(ann, [change(start(backend, ann, "working"), rest=replace(RUNNING, due_us=None, release=False))])
        start(backend, None, "due")
        assert list(backend.stuck(T0)) == []
        backend.end_session(ann)
        assert list(backend.stuck(T0)) == []

    def test_what_nothing_moves_is_stuck(self, backend: Backend) -> None:
        """A running instance that is free and has no due time is reported with a reason."""
        backend.commit(None, [change(start(backend, None), rest=replace(RUNNING, due_us=None))])
        (stuck,) = backend.stuck(T0)
        assert stuck.instance_id == "a"
        assert stuck.reason

    def test_the_hint_changes_with_a_write(self, backend: Backend) -> None:
        """Every kind of write that another session may wait for moves it."""
        ann, seen = session_of(backend), [backend.hint()]
        header = start(backend, None)
        seen.append(backend.hint())
        backend.commit(ann, [change(header, rest=replace(RUNNING, due_us=None, release=False))])
        seen.append(backend.hint())
        backend.post(header.instance, signal())
        seen.append(backend.hint())
        backend.release(ann, [header.instance])
        seen.append(backend.hint())
        assert len(set(seen)) == len(seen)

    def test_the_hint_changes_with_another_thread_s_write(self, backend: Backend) -> None:
        """Runners that share the backend object wake each other."""
        made, before = creation(backend), backend.hint()
        thread = Thread(target=backend.create, args=(None, [made]))
        thread.start()
        thread.join()
        assert backend.hint() != before

    def test_the_hint_rests_while_nothing_is_written(self, backend: Backend) -> None:
        """Polling does not wake the poller."""
        ann, header = session_of(backend), start(backend, None)
        before = backend.hint()
        backend.claim_due(ann, Want([1], 0, 9))
        backend.header("a")
        backend.post(header.instance, signal())
        backend.mail(ann)
        assert backend.hint() == before

    def test_a_closed_backend_says_so(self, backend: Backend) -> None:
        """Using it is the caller's mistake; closing it again is not."""
        backend.close()
        with pytest.raises(Closed):
            backend.header("a")
        with pytest.raises(Closed):
            session_of(backend)
        backend.close()


class Listing(Examiner):
    def test_the_newest_comes_first(self, backend: Backend) -> None:
        """A list is in reverse order of creation and holds whole headers."""
        headers = [start(backend, None, name) for name in "abc"]
        assert list(backend.list(Filter())) == headers[::-1]

    def test_pages_are_stable(self, backend: Backend) -> None:
        """Instances that come while somebody pages do not move what is still to come."""
        for name in "abcde":
            start(backend, None, name)
        first = backend.list(Filter(limit=2))
        start(backend, None, "new")
        second = backend.list(Filter(limit=2, after=first[-1].instance))
        third = backend.list(Filter(limit=2, after=second[-1].instance))
        assert [header.instance_id for header in (*first, *second, *third)] == list("edcba")

    def test_states_filter(self, backend: Backend) -> None:
        """Any of the states given will do."""
        _some_states(backend)
        assert names(backend, Filter(states=("waiting", "failed"))) == ["failed", "waiting"]

    def test_unfinished_filters(self, backend: Backend) -> None:
        """Everything that has not ended, newest first."""
        _some_states(backend)
        assert names(backend, Filter(unfinished=True)) == ["held", "paused", "waiting", "pending"]

    def test_workflows_filter(self, backend: Backend) -> None:
        """By the name of the workflow, whatever its fingerprint."""
        start(backend, None, "a", workflow="one")
        start(backend, None, "b", workflow="two")
        assert names(backend, Filter(workflow="one")) == ["a"]

    def test_labels_filter(self, backend: Backend) -> None:
        """All labels given have to be there, whatever characters they have."""
        odd = {"te.am": "se'ar\"ch", "ключ": "$[0]%", "empty": ""}
        create(backend, None, replace(creation(backend, "a"), labels=odd))
        create(backend, None, replace(creation(backend, "b"), labels={"te.am": "other", "empty": ""}))
        start(backend, None, "c")
        assert names(backend, Filter(labels={"empty": ""})) == ["b", "a"]
        assert names(backend, Filter(labels=odd)) == ["a"]
        assert names(backend, Filter(labels={"te": "other"})) == []
        assert header_of(backend).labels == odd

    def test_creation_times_filter(self, backend: Backend) -> None:
        """From a moment on, and up to one that is not included."""
        for number, name in enumerate("abcd"):
            create(backend, None, replace(creation(backend, name), at_us=T0 + number))
        assert names(backend, Filter(created_from_us=T0 + 1, created_to_us=T0 + 3)) == ["c", "b"]

    def test_filters_are_joined_and_paged(self, backend: Backend) -> None:
        """Every field restricts further, and pages of the same filter part the whole list."""
        for number in range(12):
            labels, state = _of_twelve(number)
            made = replace(creation(backend, f"{number:02}"), labels=labels, state=state, at_us=T0 + number)
            create(backend, None, made)
        for where in (
            Filter(labels={"team": "search"}),
            Filter(labels={"team": "shop", "n": "0"}),
            Filter(labels={"team": "search"}, states=("failed",)),
            Filter(states=("failed",)),
            Filter(states=("failed", "waiting"), created_from_us=T0 + 3),
            Filter(states=("waiting",)),
            Filter(unfinished=True, workflow="work", created_to_us=T0 + 9),
        ):
            whole = [f"{number:02}" for number in reversed(range(12)) if _fits(number, where)]
            assert len(whole) == backend.count(where) > 0
            assert names(backend, where) == whole
            assert _paged(backend, replace(where, limit=2)) == whole

    def test_a_label_of_an_earlier_run_does_not_count(self, backend: Backend) -> None:
        """What is listed is the last run, by its own labels."""
        old = create(backend, None, replace(creation(backend), labels={"team": "old"}))
        create(backend, None, replace(creation(backend), labels={"team": "new"}, replacing=change(old, rest=FAILED)))
        assert names(backend, Filter(labels={"team": "new"})) == ["a"]
        assert names(backend, Filter(labels={"team": "old"})) == names(backend, Filter(states=("failed",))) == []

    def test_a_state_filter_follows_the_state(self, backend: Backend) -> None:
        """An instance is found under the state it has now and under no earlier one."""
        header = start(backend, None)
        for seq, state in enumerate(("failed", "waiting", "held", "cancelled", "running", "completed"), 1):
            backend.commit(None, [change(header, base=seq, rest=replace(WAITING, state=state))])
            found = [other for other in get_args(State) if names(backend, Filter(states=(other,)))]
            assert found == [state]

    def test_a_limit_of_zero_lists_nothing(self, backend: Backend) -> None:
        """It does not mean "without limit"."""
        start(backend, None)
        assert (names(backend, Filter(limit=0)), names(backend, Filter(limit=-1))) == ([], [])

    def test_a_count_ignores_the_page(self, backend: Backend) -> None:
        """It says how many there are in all, with the same filter."""
        _some_states(backend)
        assert backend.count(Filter(limit=1, after=1)) == 7
        assert backend.count(Filter(unfinished=True, limit=1)) == 4
        assert backend.count(Filter(states=("completed",), workflow="none")) == 0

    def test_only_the_last_run_is_listed(self, backend: Backend) -> None:
        """An instance is one row, whatever its runs."""
        old = start(backend, None)
        new = create(backend, None, replace(creation(backend), replacing=change(old, rest=COMPLETED)))
        assert list(backend.list(Filter())) == [new]
        assert backend.count(Filter()) == 1


class Upkeep(Examiner):
    def test_delete_removes_an_ended_instance(self, backend: Backend) -> None:
        """All its runs and messages go, and the id is free again with a number of its own."""
        ann = session_of(backend)
        old = start(backend, ann)
        backend.post(old.instance, signal(message_id="m"))
        new = create(backend, ann, replace(creation(backend), replacing=change(old, rest=COMPLETED)))
        backend.post(new.instance, signal(message_id="m"))
        backend.commit(ann, [change(new, rest=COMPLETED)])
        assert backend.delete("a") is True
        assert (backend.header("a"), seqs(backend, old), seqs(backend, new)) == (None, [], [])
        again = start(backend, ann)
        assert again.run == 1
        assert again.instance not in (old.instance, new.instance)
        assert backend.post(again.instance, signal(message_id="m")) == "posted"

    def test_delete_leaves_live_instances_alone(self, backend: Backend) -> None:
        """Held, due or waiting: what has not ended stays."""
        start(backend, session_of(backend), "held")
        backend.commit(None, [change(start(backend, None, "waiting"), rest=WAITING)])
        start(backend, None, "due")
        assert [backend.delete(name) for name in ("held", "waiting", "due", "nobody")] == [False] * 4
        assert backend.count(Filter()) == 3

    def test_purge_removes_the_oldest_ended_first(self, backend: Backend) -> None:
        """By the time they ended, up to the limit, and says how many."""
        for name, count in (("late", 9), ("early", 2), ("mid", 5)):
            header = start(backend, None, name)
            backend.commit(None, [change(header, count=count, rest=COMPLETED)])
        assert backend.purge(T0 + 100, None, 2) == 2
        assert names(backend, Filter()) == ["late"]
        assert backend.purge(T0 + 100, None, 2) == 1

    def test_purge_keeps_what_ended_later(self, backend: Backend) -> None:
        """An instance that ended at the moment given stays."""
        backend.commit(None, [change(start(backend, None), rest=COMPLETED)])
        ended_us = header_of(backend).ended_us
        assert ended_us is not None
        assert (backend.purge(ended_us, None, 9), backend.purge(ended_us + 1, None, 0)) == (0, 0)
        assert backend.purge(ended_us + 1, None, 9) == 1

    def test_purge_keeps_the_newest_ended(self, backend: Backend) -> None:
        """By the time they ended; unfinished ones are not counted among them."""
        _ended(backend, {"late": 9, "early": 2, "mid": 5})
        start(backend, None, "live")
        assert backend.purge(None, 3, 99) == 0
        assert backend.purge(None, 1, 99) == 2
        assert names(backend, Filter()) == ["live", "late"]
        assert backend.purge(None, 0, 99) == 1
        assert names(backend, Filter()) == ["live"]

    def test_purge_by_time_and_by_number(self, backend: Backend) -> None:
        """What either of the two gives up goes, the oldest first and up to the limit."""
        _ended(backend, {"late": 9, "early": 2, "mid": 5})
        assert backend.purge(T0 + 4, 2, 99) == 1
        assert backend.purge(T0 + 4, 1, 99) == 1
        assert names(backend, Filter()) == ["late"]
        _ended(backend, {"early": 2, "mid": 5})
        assert backend.purge(T0 + 100, 1, 2) == 2
        assert names(backend, Filter()) == ["late"]

    def test_purge_of_equal_ends_goes_by_age(self, backend: Backend) -> None:
        """Of those that ended at one moment, the first created goes first."""
        for name in "abc":
            create(backend, None, replace(creation(backend, name), state="completed"))
        assert backend.purge(None, 2, 99) == 1
        assert backend.purge(T0 + 1, None, 1) == 1
        assert names(backend, Filter()) == ["c"]

    def test_purge_must_be_told_what_may_go(self, backend: Backend) -> None:
        """Neither bound, or less than nothing to keep, is a mistake and not an order to remove all."""
        _ended(backend, {"a": 1})
        for keep in (None, -1):
            with pytest.raises(OptionError):
                backend.purge(None, keep, 99)
        assert backend.count(Filter()) == 1

    def test_purge_takes_everything_of_an_instance(self, backend: Backend) -> None:
        """Labels, messages and message ids too: the id begins anew."""
        ann = session_of(backend)
        header = create(backend, ann, replace(creation(backend), labels={"team": "search"}))
        backend.post(header.instance, signal(message_id="m"))
        backend.commit(ann, [change(header, rest=COMPLETED)])
        assert backend.purge(None, 0, 9) == 1
        assert (seqs(backend, header), list(backend.received(header.instance))) == ([], [])
        start(backend, None)
        assert names(backend, Filter(labels={"team": "search"})) == []

    def test_purge_never_touches_live_instances(self, backend: Backend) -> None:
        """Neither what is unfinished, nor a live instance whose earlier run has ended, nor one reopened."""
        old = start(backend, None, "replaced")
        create(backend, None, replace(creation(backend, "replaced"), replacing=change(old, rest=COMPLETED)))
        header = start(backend, None, "reopened")
        backend.commit(None, [change(header, rest=COMPLETED), change(header, base=2, rest=RUNNING)])
        start(backend, session_of(backend), "held")
        assert backend.purge(10**18, 0, 99) == 0
        assert backend.count(Filter()) == 3


def _ended(backend: Backend, times: Mapping[str, int]) -> None:
    """Make instances that have ended so many microseconds after ``T0``."""
    for name, after in times.items():
        create(backend, None, replace(creation(backend, name), state="completed", ended_us=T0 + after))


def _of_twelve(number: int) -> tuple[dict[str, str], State]:
    """Return the labels and the state of one of the instances to be filtered."""
    labels = {"team": "search" if number % 2 else "shop", "n": str(number % 3)}
    return labels, "waiting" if number % 4 == 1 else "failed"


def _fits(number: int, where: Filter) -> bool:
    """Whether the filter selects the instance of this number."""
    labels, state = _of_twelve(number)
    return (
        where.labels.items() <= labels.items()
        and (not where.states or state in where.states)
        and not (where.unfinished and state == "failed")
        and (where.created_from_us or 0) <= T0 + number < (where.created_to_us or T0 + 99)
    )


def _paged(backend: Backend, where: Filter) -> list[str]:
    """Return the ids of all pages, each after the last number of the one before; at most twenty pages."""
    found: list[str] = []
    for _ in range(20):
        page = backend.list(where)
        if not page:
            break
        found += [header.instance_id for header in page]
        where = replace(where, after=page[-1].instance)
    return found


def _some_states(backend: Backend) -> None:
    """Make one instance in each of seven states, named after it."""
    start(backend, None, "pending")
    for state in ("waiting", "paused", "held", "completed", "failed", "cancelled"):
        backend.commit(None, [change(start(backend, None, state), rest=replace(WAITING, state=state))])
