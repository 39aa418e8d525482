"""However many instances are parked: what is done all the time walks along indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from stepwell.backend.base import Change, Created, Creation, Entry, Offer, Rest, Want
from stepwell.backend.postgres import PostgresBackend
from stepwell.backend.postgres_lines import Db
from stepwell.backend.postgres_pack import type_of
from stepwell.testing.sample import (
    T0,
    change,
    creation,
    definition_of,
    entries,
    header_of,
    outcome,
    session_of,
    signal,
    start,
)

from ..postgres import Server  # noqa: TID252 - the tests are not installed

PARKED = 2_000
SMALL = {"session", "meta"}  # a session is a process


@pytest.fixture
def backend(postgres_server: Server) -> Iterator[PostgresBackend]:
    with PostgresBackend(postgres_server.dsn(), schema=postgres_server.new_schema()) as made:
        work, far = definition_of(made), T0 + 10**12
        made.create(
            None,
            [
                Creation(f"parked-{n}", work, b"digest", entries(1), T0, "waiting", None if n % 2 else far)
                for n in range(PARKED)
            ],
        )
        yield made


def seen(backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[object, ...]]:
    """Remember every statement of ours that runs from now on, with its values."""
    found: dict[str, tuple[object, ...]] = {}

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def note(db: Db, query: str, *values: object) -> Any:
            found[query] = values
            return method(db, query, *values)

        return note

    for name in ("rows", "row", "run"):
        monkeypatch.setattr(Db, name, noting(getattr(Db, name)))
    return found


def plan(connection: psycopg.Connection[Any], text: bytes, values: tuple[object, ...]) -> str:
    """Return the plan that is kept for a prepared statement, whatever its values."""
    kinds = [connection.execute("SELECT %s::oid::regtype::text", [type_of(value) or 25]).fetchone() for value in values]
    types = ", ".join(
        "unknown" if value is None else kind[0] for value, kind in zip(values, kinds, strict=True) if kind
    )
    connection.execute(f"PREPARE it ({types}) AS ".encode() + text if values else b"PREPARE it AS " + text)
    nulls = ", ".join("NULL" for _ in values)
    rows = connection.execute(f"EXPLAIN EXECUTE it ({nulls})" if values else "EXPLAIN EXECUTE it").fetchall()
    connection.execute("DEALLOCATE it")
    return "\n".join(row[0] for row in rows)


def test_the_hot_statements_walk_along_indexes(backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement of a life: created, claimed, stepped, told, offered, parked and ended."""
    found = seen(backend, monkeypatch)
    ann, bob = session_of(backend), session_of(backend, "bob")
    work = definition_of(backend)
    want = Want([work], T0, 5)
    header = start(backend, ann)
    backend.create(None, [creation(backend, "b"), creation(backend, "c")])
    backend.claim_due(ann, want)
    backend.claim_due(ann, Want([work], T0, 5, most={work: 3}))
    backend.commit(ann, [change(header)])
    backend.commit(ann, [change(header, base=2, count=2)])
    backend.post(header.instance, signal(message_id="m"))
    backend.mail(ann)
    backend.offer(ann, {header.instance: [Offer(b"x", b"work", 0)]})
    backend.settle(bob, [(each.id, outcome()) for each in backend.claim_offers(bob, want)])
    backend.commit(ann, [Change(header.instance, 4, [Entry(5, b"f", None, T0)], (), Rest("waiting", b"", None))])
    backend.claim(ann, "a")
    backend.commit(ann, [Change(header.instance, 5, [Entry(6, b"f", None, T0)], (), Rest("completed", b""))])
    backend.renew(ann)
    backend.load("a")
    backend.next_due(["work"])
    backend.holdings(ann)
    backend.end_session(bob)
    assert len(found) > 30
    connection = backend._write._connected(False).connection  # type: ignore[attr-defined]
    bad: dict[str, str] = {}
    for query, values in found.items():
        shown = plan(connection, backend._server.texts[query], values)
        if any(
            "Seq Scan on " in line and line.split("Seq Scan on ")[1].split()[0] not in SMALL
            for line in shown.splitlines()
        ):
            bad[query] = shown
    assert not bad, "\n\n".join(f"{query}\n{shown}" for query, shown in bad.items())


def test_a_loser_costs_its_neighbours_a_few_statements(
    backend: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many share the commit: those that nothing is the matter with land in one statement all the same."""
    ann, counted = session_of(backend), list[int]()
    for many in (3, 60):
        headers = [start(backend, ann, f"of-{many}-{n}") for n in range(many)]
        changes = [change(header, base=1 if n else 7) for n, header in enumerate(headers)]
        changes[-1] = change(headers[-1], rest=Rest("completed", b""))
        sent = list[str]()
        with monkeypatch.context() as patched:
            for name in ("rows", "row", "run"):
                method = getattr(Db, name)
                patched.setattr(Db, name, lambda db, q, *v, m=method, s=sent: s.append(q) or m(db, q, *v))
            assert backend.commit(ann, changes) == ["conflict", *["done"] * (many - 1)]
        counted.append(len(sent))
        assert [header_of(backend, each.instance_id).seq for each in headers] == [1, *[2] * (many - 1)]
    assert counted[0] == counted[1] < 15


def test_a_step_updates_nothing(backend: PostgresBackend, postgres_server: Server) -> None:
    """One row more in the journal; not even the agenda's own is touched."""
    ann = session_of(backend)
    (made,) = backend.create(ann, [creation(backend)])
    assert isinstance(made, Created)
    schema = backend._server.place.schema
    rows = f"SELECT xmin::text, ctid::text FROM {schema}.agenda WHERE instance = {made.header.instance}"  # noqa: S608
    rows += f" UNION ALL SELECT xmin::text, ctid::text FROM {schema}.instance WHERE id = {made.header.instance}"  # noqa: S608
    before = postgres_server.execute(rows)
    for base in range(1, 4):
        assert backend.commit(ann, [change(made.header, base=base)]) == ["done"]
    assert postgres_server.execute(rows) == before


def test_a_step_alone_may_have_no_output(backend: PostgresBackend) -> None:
    """The statement for a single step knows its types whatever came first."""
    ann = session_of(backend)
    header = start(backend, ann)
    for base, output in ((1, None), (2, b""), (3, None), (4, b"out")):
        new = Entry(base + 1, b"facts", output, T0)
        assert backend.commit(ann, [Change(header.instance, base, [new])]) == ["done"]
        assert backend.history(header.instance, base, 1) == [new]
