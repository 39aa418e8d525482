"""What a process says to a PostgreSQL server, statement by statement, and each time that it waits for an answer.

Everything goes through two doors: psycopg's ``Connection.wait``, which the user's connections use too, and
:class:`stepwell.backend.postgres_lines.Db`, which sends what it has prepared by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import psycopg

from stepwell.backend.postgres_lines import Db


def watch(about_to: Callable[[str], None], waiting: Callable[[], None]) -> None:
    """Call ``about_to`` before each statement that this process sends, and ``waiting`` when it waits for the server."""
    _watch_texts(about_to)
    _watch_waits(waiting)


def _watch_texts(about_to: Callable[[str], None]) -> None:
    execute, wait, prepared, say = psycopg.Cursor.execute, psycopg.Connection.wait, Db._run_prepared, Db.say
    known = threading.local()

    def executing(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
        about_to(query.decode() if isinstance(query, bytes) else str(query))
        known.text = True
        try:
            return execute(cursor, query, *args, **options)
        finally:
            known.text = False

    def waiting(connection: Any, gen: Any, *args: Any, **options: Any) -> Any:
        if not getattr(known, "text", False):
            about_to("COMMIT")  # or its like: what psycopg says by itself
        return wait(connection, gen, *args, **options)

    def running(db: Any, query: str, values: Any) -> int:
        about_to(query)
        return prepared(db, query, values)

    def saying(db: Any, text: str) -> str:
        about_to(text)
        return say(db, text)

    for owner, name, made in (
        (psycopg.Cursor, "execute", executing),
        (psycopg.Connection, "wait", waiting),
        (Db, "_run_prepared", running),
        (Db, "say", saying),
    ):
        setattr(owner, name, made)


def _watch_waits(waiting: Callable[[], None]) -> None:
    wait, pause = psycopg.Connection.wait, Db._wait

    def watched(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            wanted, ready = next(gen), True
            while True:
                if ready:  # else nothing came, and it waits still
                    waiting()
                ready = yield wanted
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value

    def waiting_for(connection: Any, gen: Any, *args: Any, **options: Any) -> Any:
        return wait(connection, watched(gen), *args, **options)

    def pausing(db: Any, deadline: float, events: int) -> None:
        waiting()
        pause(db, deadline, events)

    setattr(psycopg.Connection, "wait", waiting_for)  # noqa: B010 - mypy knows it as a method
    setattr(Db, "_wait", pausing)  # noqa: B010 - so too
