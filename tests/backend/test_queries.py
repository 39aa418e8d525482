"""What SQLite does for the hot queries: which index it walks, and that parked instances are not walked at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec.structs import replace

from stepwell.backend import queries as sql
from stepwell.backend import queries_offers as offer_sql
from stepwell.backend.base import Filter, Session, Want
from stepwell.backend.sqlite import SKIM, SqliteBackend
from stepwell.testing.sample import (
    COMPLETED,
    FAILED,
    RUNNING,
    T0,
    change,
    claim_offers,
    create,
    creation,
    definition_of,
    ids,
    offer,
    session_of,
    start,
)

FEW, MANY = 100, 100_000


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteBackend]:
    backend = SqliteBackend(tmp_path_factory.mktemp("empty") / "store.db", durability="fast")
    yield backend
    backend.close()


def steps_of_plan(backend: SqliteBackend, query: str, values: list[object] | None = None) -> list[str]:
    """Return what EXPLAIN QUERY PLAN says, line by line."""
    numbered = [int(number) for number in re.findall(r"\?(\d)", query)]
    bound = [None] * (max(numbered) if numbered else query.count("?")) if values is None else values
    rows = backend._database.connection.execute(f"EXPLAIN QUERY PLAN {query}", bound).fetchall()
    return [row[3] for row in rows]


# --- the plans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "DUE", "DUE_IN_LANE", "DUE_IN_NO_LANE", "HELD", "HOLDS", "ADMITTED", "STANDING", "LEAVE", "WAKE", "REST",
        "FREE_SESSION", "TAKE_OVER", "FREE", "KNOWN", "LAST_RUN", "HEADER_LAST",
        "HEADER_OF", "IMAGE", "ENTRIES_AFTER", "HISTORY", "MAIL", "RECEIVED", "PLAN", "DEFINITION_ID", "ENDED_BEFORE",
        "NEWEST_ENDED", "LAST_ENDED", "LABELS", "REMOVE_LABEL",
    ],
)  # fmt: skip
def test_no_hot_query_scans(empty: SqliteBackend, name: str) -> None:
    """Every table is entered through an index or a primary key, and nothing is sorted."""
    plan = steps_of_plan(empty, getattr(sql, name))
    assert plan
    assert not [step for step in plan if step.startswith(("SCAN", "USE TEMP"))]


@pytest.mark.parametrize(
    "name",
    [
        "OFFER", "OFFERED", "HOLDS", "FREE", "CLAIM", "CLAIMED", "SETTLE", "HELD_BY", "HELD_ONE", "FREE_AGAIN",
        "REMOVE", "STANDING", "CALL_OFF", "GOES_ON", "REMOVE_ALL", "MOVE",
    ],
)  # fmt: skip
def test_no_query_of_offers_scans(empty: SqliteBackend, name: str) -> None:
    """An offer is found by its number, its instance and step, who has it, or what it asks for."""
    plan = steps_of_plan(empty, getattr(offer_sql, name))
    assert plan
    assert not [step for step in plan if step.startswith(("SCAN", "USE TEMP"))]


@pytest.mark.parametrize(
    ("query", "index"),
    [(sql.LANES, "agenda_lane (definition=? AND lane>?)"), (offer_sql.TAGS, "offer_free (definition=?")],
)
def test_lanes_and_tags_are_one_seek_each(empty: SqliteBackend, query: str, index: str) -> None:
    """The next one is looked up from the one before; what lies between is not walked."""
    plan = steps_of_plan(empty, query)
    entered = [step for step in plan if "agenda" in step or "offer" in step]
    assert entered
    assert all(step.startswith("SEARCH") and index in step for step in entered)
    assert {step for step in plan if step.startswith("SCAN")} == {"SCAN next", "SCAN CONSTANT ROW"}


def test_what_is_due_in_a_lane_is_one_walk_of_it(empty: SqliteBackend) -> None:
    """In the order of due times, past no other lane."""
    (step,) = steps_of_plan(empty, sql.DUE_IN_LANE)
    assert step.startswith("SEARCH agenda USING INDEX agenda_lane (definition=? AND lane=? AND due_us")


@pytest.mark.parametrize("statement", sql.REMOVE)
def test_removing_scans_nothing(empty: SqliteBackend, statement: str) -> None:
    """An instance is removed through its id."""
    assert not [step for step in steps_of_plan(empty, statement) if step.startswith("SCAN")]


def test_the_due_query_is_one_walk_of_one_index(empty: SqliteBackend) -> None:
    """Of what is free and has a due time."""
    (step,) = steps_of_plan(empty, sql.DUE)
    assert step.startswith("SEARCH agenda USING INDEX agenda_due (definition=?")


def test_mail_walks_unread_messages_and_nothing_else(empty: SqliteBackend) -> None:
    """They are few, as they wait for one turn of their holder; each finds its holder through an index."""
    first, *others = steps_of_plan(empty, sql.MAIL_OF_SESSION)
    assert first == "SCAN m"
    assert len(others) == 1
    assert others[0].startswith("SEARCH a USING INTEGER PRIMARY KEY")


def test_stuck_looks_at_instances_and_never_at_the_journal(empty: SqliteBackend) -> None:
    """Once over the instances, and what belongs to each through an index."""
    plan = steps_of_plan(empty, sql.STUCK)
    assert [step for step in plan if step.startswith("SCAN")] == ["SCAN i"]
    assert not [step for step in plan if "journal" in step]


def test_stuck_looks_at_offers_and_what_they_belong_to(empty: SqliteBackend) -> None:
    """Once over the offers, which are few."""
    plan = steps_of_plan(empty, offer_sql.STUCK)
    assert [step.split()[1] for step in plan if step.startswith("SCAN")] == ["o", "(subquery-2)"]


@pytest.mark.parametrize(
    ("where", "way_in"),
    [
        (Filter(labels={"k": "v"}), "SEARCH l USING PRIMARY KEY (key=? AND value=?)"),
        (Filter(labels={"k": "v"}, states=("failed",)), "SEARCH l USING PRIMARY KEY (key=? AND value=?)"),
        (Filter(labels={"k": "v", "l": "w"}, after=9), "SEARCH l USING PRIMARY KEY (key=? AND value=? AND instance<?)"),
        (Filter(states=("failed",)), "SEARCH i USING INDEX instance_rare (state=?)"),
        (Filter(states=("held",), after=9), "SEARCH i USING INDEX instance_rare (state=? AND rowid<?)"),
        (Filter(states=("waiting",), after=9), "SEARCH o USING INTEGER PRIMARY KEY (rowid<?)"),
        (Filter(unfinished=True), "SCAN o"),
        (Filter(), "SCAN i"),
        (Filter(states=("completed",), after=9), "SEARCH i USING INTEGER PRIMARY KEY (rowid<?)"),
    ],
    ids=str,
)
def test_a_page_is_read_in_its_order(empty: SqliteBackend, where: Filter, way_in: str) -> None:
    """From the newest on, so that it ends with its last row; few are walked where few can match."""
    plan = steps_of_plan(empty, *sql.page(where))
    assert plan[0] == way_in
    assert not [step for step in plan[1:] if step.startswith(("SCAN", "USE TEMP"))]


def test_several_rare_states_are_sorted_among_themselves(empty: SqliteBackend) -> None:
    """What is in neither of them is not looked at."""
    plan = steps_of_plan(empty, *sql.page(Filter(states=("failed", "held"))))
    assert plan[0] == "SEARCH i USING INDEX instance_rare (state=?)"


# --- the work -------------------------------------------------------------------------------------------


def park(backend: SqliteBackend, count: int) -> None:
    """Insert instances that wait, half of them for a message and half for a time."""
    definition = definition_of(backend)
    connection = backend.connect()
    with connection:
        connection.executemany(
            "INSERT INTO instance (id, instance_id, run, definition, state, created_us, updated_us, input_digest,"
            " trace, origin) VALUES (?1, 'parked-' || ?1, 1, ?2, 'waiting', ?3, ?3, x'', '', '')",
            ((number, definition, T0) for number in range(1, count + 1)),
        )
        connection.executemany(
            "INSERT INTO agenda (instance, definition, due_us, lane) VALUES (?, ?, ?, ?)",
            (
                (number, definition, T0 + 10**9 if number % 2 else None, f"lane-{number}" if number % 3 else "")
                for number in range(1, count + 1)
            ),
        )
    connection.close()


def populated(backend: SqliteBackend, parked: int) -> SqliteBackend:
    """Add, to what is parked, a few that are due, failed, labelled or ended."""
    park(backend, parked)
    for name in ("due-1", "due-2", "due-3"):
        start(backend, None, name)
    avoided = start(backend, None, "avoided")
    backend.commit(None, [change(avoided, rest=replace(RUNNING, avoid="ann"))])
    holder = session_of(backend, "holder")
    many, one = (start(backend, holder, name, workflow="offering") for name in ("many offers", "one offer"))
    for_others = [offer(b"%d" % number, 1, ["gpu", f"{number % 3}"]) for number in range(parked // 20)]
    backend.offer(holder, {many.instance: for_others, one.instance: [offer(tags=["eu"])]})
    create(backend, None, replace(creation(backend, "labelled"), labels={"k": "v"}, due_us=None, state="waiting"))
    for name, rest in (("failed", FAILED), ("done-1", COMPLETED), ("done-2", COMPLETED)):
        backend.commit(None, [change(start(backend, None, name), rest=rest)])
    return backend


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[SqliteBackend]]:
    folder = tmp_path_factory.mktemp("parked")
    stores = [SqliteBackend(folder / f"{parked}.db", durability="fast") for parked in (FEW, MANY)]
    yield [populated(store, parked) for store, parked in zip(stores, (FEW, MANY), strict=True)]
    for store in stores:
        store.close()


def work(backend: SqliteBackend, action: Callable[[], Any]) -> tuple[Any, int]:
    """Return what an action gave, and how many steps SQLite's machine made for it."""
    steps = 0

    def profile(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

    connection: Any = backend._database.connection
    connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, profile, id="work")
    try:
        return action(), steps
    finally:
        connection.trace_v2(0, None, id="work")


def limited(store: SqliteBackend, now_us: int, most: int) -> Want:
    work = definition_of(store)
    return Want([work], now_us, 1, avoid="ann", patience_us=9, most={work: most})


QUERIES: dict[str, Callable[[SqliteBackend, Session], object]] = {
    "an idle poll": lambda store, ann: ids(store.claim_due(ann, Want([definition_of(store)], 0, 10))),
    "an idle poll within lanes": lambda store, ann: ids(store.claim_due(ann, limited(store, 0, 5))),
    "a claim within lanes": lambda store, ann: ids(store.claim_due(ann, limited(store, T0, 5))),
    "an idle poll in full lanes": lambda store, ann: ids(store.claim_due(ann, limited(store, T0, 0))),
    "a claim of what is due": lambda store, ann: ids(store.claim_due(ann, Want([definition_of(store)], T0, 10))),
    "a poll for offers": lambda store, ann: claim_offers(store, ann),
    "a claim of an offer": lambda store, ann: [
        each.step for each in claim_offers(store, ann, workflow="offering", tags=["eu"])
    ],
    "the next due time": lambda store, _: store.next_due(["work"]),
    "who serves a graph": lambda store, ann: [
        store.serve(ann, [definition_of(store)]),
        store.served([definition_of(store)]),
    ],
    "a claim by id": lambda store, ann: store.claim(ann, "parked-7") is not None,
    "mail": lambda store, ann: store.mail(ann),
    "list by label": lambda store, _: [header.instance_id for header in store.list(Filter(labels={"k": "v"}))],
    "list failed": lambda store, _: [header.instance_id for header in store.list(Filter(states=("failed",)))],
    "the newest": lambda store, _: [header.instance_id for header in store.list(Filter(limit=3))],
    "count labelled": lambda store, _: store.count(Filter(labels={"k": "v"})),
    "purge by number": lambda store, _: store.purge(None, 2, 10),
    "purge by time": lambda store, _: store.purge(T0 + 10**9, None, 10),
    "the end of a session": lambda store, ann: store.end_session(ann),
}


def test_work_does_not_grow_with_what_is_parked(stores: list[SqliteBackend]) -> None:
    """The same answers for the same number of machine steps, beside a hundred parked instances or 100 000."""
    sessions = [session_of(store) for store in stores]
    for name, query in QUERIES.items():
        few, many = (work(store, partial(query, store, ann)) for store, ann in zip(stores, sessions, strict=True))
        assert few == many, name
        assert few[1] > 0, name


def queue_in_full_lanes(folder: Path, count: int) -> SqliteBackend:
    """Return a store in which many are due in lanes that are full, and after them one in another lane."""
    backend = SqliteBackend(folder / f"{count}.db", durability="fast")
    ann, made = session_of(backend, "holder"), replace(creation(backend), due_us=1)
    backend.create(ann, [replace(made, instance_id=f"held-{lane}", lane=lane) for lane in ("", "eu")])
    lanes = {f"{number}": "eu" if number % 2 else "" for number in range(count)}
    backend.create(None, [replace(made, instance_id=name, lane=lane) for name, lane in lanes.items()])
    create(backend, None, replace(made, instance_id="last", lane="us", due_us=2))
    return backend


def test_a_queue_in_full_lanes_is_not_walked(tmp_path: Path) -> None:
    """What waits for room costs the same however much it is, and what is due behind it is found."""
    stores = [queue_in_full_lanes(tmp_path, count) for count in (2 * SKIM, 100 * SKIM)]
    sessions = [session_of(store) for store in stores]
    for name, found in (("a claim", ["last"]), ("an idle poll", [])):
        few, many = (
            work(store, lambda store=store, ann=ann: ids(store.claim_due(ann, limited(store, 9, 1))))
            for store, ann in zip(stores, sessions, strict=True)
        )
        assert few == many, name
        assert few[0] == found, name
    for store in stores:
        store.close()


def test_stuck_does_not_find_what_is_parked(stores: list[SqliteBackend]) -> None:
    """Waiting for a message or for a time is no fault."""
    assert [list(store.stuck(T0)) for store in stores] == [[], []]
