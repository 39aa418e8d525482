"""What the reference store costs: no walk over everything for one instance, and no heap of stale entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from stepwell.backend.base import Filter, Want
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.memory_rows import STALE_LEAST, Queue
from stepwell.testing.sample import COMPLETED, T0, WAITING, change, create, creation, definition_of, session_of, start


class Unwalked(dict[Any, Any]):
    """A dict that may only be asked for one key at a time."""

    def refuse(self) -> NoReturn:
        raise AssertionError("this walks over everything")

    values = items = keys = __iter__ = refuse  # type: ignore[assignment]


def test_removing_one_instance_looks_at_its_runs_only() -> None:
    """Whatever else there is; so a purge of all is not quadratic."""
    backend = InMemoryBackend()
    for number in range(5):
        old = start(backend, None, str(number))
        new = replace(creation(backend, str(number)), replacing=change(old, rest=COMPLETED), state="completed")
        create(backend, None, new)
    backend._runs, backend._last = Unwalked(backend._runs), Unwalked(backend._last)
    assert backend.purge(None, 2, 99) == 3
    assert backend.delete("4")
    assert (len(backend._runs), len(backend._last), len(backend._ended)) == (2, 1, 1)


def test_what_is_ended_is_sorted_once_for_many_purges() -> None:
    """As long as nothing ends in between."""
    backend = InMemoryBackend()
    for number in range(9):
        create(backend, None, replace(creation(backend, str(number)), state="completed", ended_us=T0 + number % 4))
    assert backend.purge(None, 0, 1) == 1
    order = backend._oldest
    assert [backend.purge(None, 0, 3), backend.purge(T0 + 2, None, 9), backend.purge(None, 3, 9)] == [3, 1, 1]
    assert backend._oldest is order
    create(backend, None, replace(creation(backend, "early"), state="completed", ended_us=T0))
    assert (backend.purge(T0 + 1, None, 9), backend.header("early")) == (1, None)


def test_what_left_since_the_sorting_is_passed_over() -> None:
    """Deleted or reopened: neither is purged, nor counted."""
    backend = InMemoryBackend()
    for name in "abcd":
        create(backend, None, replace(creation(backend, name), state="completed"))
    assert backend.purge(None, 4, 9) == 0
    backend.delete("a")
    header = backend.header("b")
    assert header is not None
    backend.commit(None, [change(header, rest=WAITING)])
    assert (backend.purge(None, 1, 9), backend.purge(None, 0, 9)) == (1, 1)
    assert [each.instance_id for each in backend.list(Filter())] == ["b"]


def test_entries_of_what_is_not_due_any_more_are_swept() -> None:
    """Claiming and releasing leaves an entry behind each time; they never outnumber what is due by much."""
    backend, longest = InMemoryBackend(), 0
    ann, definition = session_of(backend), definition_of(backend)
    for name in "abc":
        start(backend, None, name)
    for _ in range(20 * STALE_LEAST):
        found = backend.claim_due(ann, Want([definition], T0, 9))
        assert len(found) == 3
        backend.release(ann, [each.header.instance for each in found])
        longest = max(longest, len(backend._definition(definition).due[""]))
    assert longest <= STALE_LEAST + 1


def test_entries_of_what_was_deleted_are_swept() -> None:
    """Nobody ever asks for them, so they are not met on the way."""
    backend = InMemoryBackend()
    start(backend, None, "first")
    for number in range(5 * STALE_LEAST):
        header = create(backend, None, replace(creation(backend, str(number)), due_us=T0 + 10**9))
        backend.commit(None, [change(header, rest=COMPLETED)])
        backend.delete(str(number))
    assert len(backend._definition(definition_of(backend)).due[""]) <= STALE_LEAST + 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 200)), max_size=400))
def test_a_queue_gives_the_smallest_that_counts(actions: list[tuple[bool, int, int]]) -> None:
    """Like a set that is searched each time, whatever is pushed, and whatever ceases to count."""
    live: set[tuple[int, int]] = set()
    queue = Queue(lambda at_us, number: (at_us, number) in live)
    for push, at_us, number in actions:
        if push:
            live.add((at_us, number))
            queue.push(at_us, number)
        else:
            live = set(_without(live, number))
        assert queue.first() == min(live, default=None)
        assert len(queue) <= max(STALE_LEAST, 2 * len(actions))


def _without(live: set[tuple[int, int]], number: int) -> Iterator[tuple[int, int]]:
    return (entry for entry in live if entry[1] % 7 != number % 7)
