"""What ``doctor`` asks a PostgreSQL server before a store is opened there, which could make or mend what is looked at.

All is asked in one transaction that only reads, on a connection with what server, database and role set by themselves:
stepwell overrides much of that for its own connections, and a task's ``transaction()`` has it as it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from stepwell.backend.postgres_errors import Place
from stepwell.backend.postgres_lines import POSTGRES_LEAST, BoundedConnection, Server
from stepwell.backend.urls import Place as Named
from stepwell.timing import SECOND_US

from .checks import AHEAD_US, Finding, Level
from .checks_tables import Tables
from .text import counted
from .times import span

Connection = psycopg.Connection[Any]

EACH: Final = 5  # connections that a process opens
SHORT_MS: Final = 5_000  # a task's transaction may take as long on SQLite
LONG_S: Final = 15 * 60
AGED: Final = 1_000_000_000  # transactions; at 2 100 000 000 the server refuses to write
OLD: Final = 1_600_000_000
HEARD_S: Final = 2.0
NAMED: Final = 3

_TIMEOUTS: Final = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")
_NAMES: Final = (
    "autovacuum",
    "track_counts",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "synchronous_standby_names",
    "max_connections",
    "superuser_reserved_connections",
    "default_transaction_read_only",
    *_TIMEOUTS,
)
_SETTINGS: Final = "SELECT name, setting, source FROM pg_catalog.pg_settings WHERE name = ANY(%s)"
_LIMITS: Final = "SET LOCAL search_path = pg_catalog; SET LOCAL statement_timeout = '10s'; SET LOCAL bytea_output = hex"
_SELF: Final = """
SELECT current_setting('server_version'), quote_ident(current_user), quote_ident(current_database()),
    pg_is_in_recovery(), pg_backend_pid()
"""
_USED: Final = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL),
    (SELECT count(*) FROM pg_stat_activity a WHERE a.datid IS NOT NULL AND a.usesysid = r.oid), r.rolconnlimit,
    (SELECT count(*) FROM pg_stat_activity a WHERE a.datid = d.oid AND a.usesysid IS NOT NULL), d.datconnlimit,
    r.rolsuper
FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()
"""
_AGES: Final = "SELECT age(datfrozenxid), mxid_age(datminmxid) FROM pg_database WHERE datname = current_database()"
_KEEPING: Final = """
SELECT 'a transaction of ' || coalesce(usename, '?') || ' (pid ' || pid || ', ' || coalesce(state, '?') || ')',
    extract(epoch FROM now() - xact_start)::float8, format('SELECT pg_terminate_backend(%%s);', pid)
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND coalesce(backend_xid, backend_xmin) IS NOT NULL
    AND xact_start < now() - make_interval(secs => %(long)s)
UNION ALL
SELECT 'the prepared transaction ' || gid, extract(epoch FROM now() - prepared)::float8,
    format('ROLLBACK PREPARED %%L;', gid)
FROM pg_prepared_xacts WHERE database = current_database() AND prepared < now() - make_interval(secs => %(long)s)
UNION ALL
SELECT 'the replication slot ' || slot_name || ', which nobody reads', 0,
    format('SELECT pg_drop_replication_slot(%%L);', slot_name)
FROM pg_replication_slots WHERE NOT active AND xmin IS NOT NULL
ORDER BY 2 DESC
"""
_HIDDEN: Final = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_start IS NULL"
_STANDBYS: Final = """
SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')),
    count(*) FILTER (WHERE pid IS NOT NULL AND state IS NULL)
FROM pg_stat_replication
"""
_CLOCK: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class Setting(NamedTuple):
    """A setting as a new connection has it, and where that comes from."""

    value: str = ""
    source: str = ""

    @property
    def number(self) -> int:
        return int(self.value or 0)


class Self(NamedTuple):
    """Who is asked, and as whom; names as SQL takes them."""

    version: str
    role: str
    database: str
    standby: bool
    pid: int


def server_findings(
    named: Named, command: Callable[..., str], now_us: Callable[[], int], findings: list[Finding]
) -> bool:
    """Add what is found to the list. Returns whether a store can be opened without changing anything.

    Raises:
        BackendError: the server cannot be asked.
    """
    server = Server(Place(named.target, named.schema), None, "on", 0)
    try:
        with server.open(BoundedConnection) as connection:
            if (version := connection.info.server_version) < POSTGRES_LEAST:
                findings.append(_too_old(named, version))
                return False
            connection.read_only = True
            examined = Examined(connection, named, command)
            findings += examined.all()
            connection.rollback()
            findings += _clock(connection, now_us)
            if not examined.pooled and not examined.me.standby:
                findings.append(_listening(server))
            return examined.tables.usable
    except psycopg.Error as error:
        server.fail(error)


def _too_old(named: Named, version: int) -> Finding:
    text = f"{named.shown} is PostgreSQL {version // 10000}, and stepwell needs {POSTGRES_LEAST // 10000} or newer"
    return Finding("problem", "database", text, "pg_upgrade --help")


class Examined:
    """One server, asked on one connection in one transaction."""

    def __init__(self, connection: Connection, named: Named, command: Callable[..., str]) -> None:
        self._connection, self._named, self._command = connection, named, command
        found = connection.execute(_SETTINGS, (list(_NAMES),))
        self._settings = {name: Setting(value, source) for name, value, source in found}
        connection.execute(_LIMITS)
        self.me = Self(*self._row(_SELF))
        self.pooled = self.me.pid != connection.info.backend_pid
        self.tables = Tables(connection, named, self.me.role, command)

    def _row(self, query: LiteralString) -> tuple[Any, ...]:
        (row,) = self._connection.execute(query).fetchall()
        return tuple(row)

    def _setting(self, name: str) -> Setting:
        return self._settings.get(name, Setting())  # a server may not know it yet

    def all(self) -> Iterator[Finding]:
        me = self.me
        text = (
            f"{self._named.shown} answers: PostgreSQL {me.version.split()[0]}, database {me.database}, role {me.role}"
        )
        yield Finding("ok", "database", text)
        yield from self._writes()
        yield from self.tables.findings()
        yield from self._durability()
        yield from self._timeouts()
        yield from self._pooler()
        yield from self._connections()
        yield from self._vacuum()
        yield from self._ages()

    def _writes(self) -> Iterator[Finding]:
        if self.me.standby:
            text = "this server is a standby: it can be read and not written; name the primary, or all servers of it"
            url = "postgresql://USER@HOST,HOST/DATABASE?target_session_attrs=read-write"
            yield Finding("problem", "writes", text, self._command("doctor", "--db", url))
        setting = self._setting("default_transaction_read_only")
        if setting.value != "on":
            return
        # Where it holds for whoever mends it too, that could not be written either.
        mend = f"SET default_transaction_read_only = off; {self._mend('default_transaction_read_only', 'off')}"
        of = f"transactions of {_of(setting, self.me)} only read (default_transaction_read_only)"
        text = f"{of}; stepwell's own say otherwise, and a task's transaction() fails"
        yield Finding("problem", "writes", text, mend)

    def _mend(self, name: str, value: str) -> str:
        """Return the statement that takes a setting away where it comes from."""
        me = self.me
        match self._setting(name).source:
            case "user":
                return f"ALTER ROLE {me.role} RESET {name};"
            case "database user":
                return f"ALTER ROLE {me.role} IN DATABASE {me.database} RESET {name};"
            case "database":
                return f"ALTER DATABASE {me.database} RESET {name};"
            case "client" | "environment variable":
                return f"env | grep PGOPTIONS  # or the URL's options=, which set {name}"
            case _:
                return f"ALTER SYSTEM SET {name} = {value}; SELECT pg_reload_conf();"

    def _durability(self) -> Iterator[Finding]:
        off = [name for name in ("fsync", "full_page_writes") if self._setting(name).value == "off"]
        why = {
            "fsync": "fsync is off: a power cut may take back what was committed, or damage the database",
            "full_page_writes": "full_page_writes is off: a power cut may damage pages of the database",
        }
        for name in off:
            yield Finding("problem", "durability", why[name], self._mend(name, "on"))
        if not off:
            yield Finding("ok", "durability", "what is committed is on the disk: fsync and full_page_writes are on")
        yield from self._standbys()

    def _standbys(self) -> Iterator[Finding]:
        """Commits of ``durability="full"`` wait for synchronous standbys where the server has any."""
        names = self._setting("synchronous_standby_names").value
        if not names:
            return
        there, hidden = self._row(_STANDBYS)
        if not there and not hidden:
            text = f"every commit waits for a standby of {names}, and none is connected"
            yield Finding("problem", "durability", text, "SELECT * FROM pg_stat_replication;")
        elif (usual := self._setting("synchronous_commit").value) == "remote_apply":
            text = f'{usual} is usual here; stepwell waits so only with durability="replicated", else as with on'
            yield Finding("note", "durability", text, "SELECT * FROM pg_stat_replication;")

    def _timeouts(self) -> Iterator[Finding]:
        """Stepwell sets these for itself; the connection of a task's transaction is the user's."""
        short = [name for name in _TIMEOUTS if 0 < self._setting(name).number < SHORT_MS]
        for name in short:
            setting = self._setting(name)
            text = (
                f"{name} of {_of(setting, self.me)} is {span(setting.number * 1_000)}, also in a task's transaction()"
            )
            yield Finding("note", "settings", text, self._mend(name, "'30s'"))

    def _pooler(self) -> Iterator[Finding]:
        if self.pooled:
            text = "a pooler stands between: others' writes are noticed by polling, once a second"
            yield Finding("ok", "pooler", text)

    def _connections(self) -> Iterator[Finding]:
        """Hold what is free under the tightest limit against what one more process opens."""
        used, of_role, role_most, of_database, database_most, is_super = self._row(_USED)
        me, most = self.me, self._setting("max_connections").number
        spare = 0 if is_super else self._setting("superuser_reserved_connections").number
        more = f"ALTER SYSTEM SET max_connections = {2 * most};  -- and restart the server"
        limits = [(most - spare - used, used, most, "the server's max_connections", more)]
        if role_most >= 0 and not is_super:
            more = f"ALTER ROLE {me.role} CONNECTION LIMIT {role_most + 10 * EACH};"
            limits.append((role_most - of_role, of_role, role_most, f"role {me.role}'s limit", more))
        if database_most >= 0 and not is_super:
            more = f"ALTER DATABASE {me.database} CONNECTION LIMIT {database_most + 10 * EACH};"
            limits.append((database_most - of_database, of_database, database_most, f"{me.database}'s limit", more))
        free, used, most, what, more = min(limits)
        text = f"{used} of {most} connections in use, by {what}"
        if free < EACH:
            yield Finding("problem", "connections", f"{text}; a process of stepwell opens up to {EACH}", more)
        elif free < 2 * EACH:
            yield Finding("note", "connections", f"{text}; a process of stepwell opens up to {EACH}", more)
        else:
            yield Finding("ok", "connections", text)

    def _vacuum(self) -> Iterator[Finding]:
        off = [name for name in ("autovacuum", "track_counts") if self._setting(name).value == "off"]
        for name in off:
            text = f"{name} is off: dead rows stay, and claims get slower with each"
            yield Finding("problem", "vacuum", text, self._mend(name, "on"))
        keeping = self._connection.execute(_KEEPING, {"long": LONG_S}).fetchall()
        for who, age_s, mend in keeping[:NAMED]:
            since = f" for {span(int(age_s * SECOND_US))}" if age_s else ""
            yield Finding("note", "vacuum", f"{who} has kept dead rows from being removed{since}", mend)
        if not off and not keeping:
            (hidden,) = self._row(_HIDDEN)
            unseen = f" ({counted(hidden, 'connection')} of other roles cannot be looked at)" if hidden else ""
            yield Finding("ok", "vacuum", f"autovacuum is on, and nothing keeps it from cleaning{unseen}")

    def _ages(self) -> Iterator[Finding]:
        for age, what in zip(self._row(_AGES), ("transaction", "multixact"), strict=True):
            if age >= AGED:
                level: Level = "problem" if age >= OLD else "note"
                text = f"{what} ids are {age / 1e9:.1f} of 2.1 thousand million from where the server stops writing"
                yield Finding(level, "vacuum", text, f"vacuumdb --freeze {self.me.database}")


def _of(setting: Setting, me: Self) -> str:
    """Return whose setting it is."""
    whose = {"user": f"role {me.role}", "database user": f"role {me.role}", "database": f"database {me.database}"}
    return whose.get(setting.source, "the server" if "file" in setting.source else "this connection")


def _clock(connection: Connection, now_us: Callable[[], int]) -> Iterator[Finding]:
    """Compare clocks: claims go by the server's, timers by ours. The answer's way takes part of the difference."""
    before_us = now_us()
    (their_us,) = connection.execute(_CLOCK).fetchone() or (before_us,)
    after_us = now_us()
    apart = max(before_us - their_us, their_us - after_us, 0)
    if apart > AHEAD_US:
        text = f"this machine's clock and the server's are {span(apart)} apart, so timers fire at the wrong time"
        yield Finding("problem", "clock", text, "timedatectl status")
    else:
        yield Finding("ok", "clock", "the server's clock and this machine's agree")


def _listening(server: Server) -> Finding:
    """Find out whether one connection hears of what another one says."""
    channel = f"stepwell_doctor_{secrets.token_hex(8)}"
    with (
        server.open(BoundedConnection, autocommit=True) as hears,
        server.open(BoundedConnection, autocommit=True) as says,
    ):
        hears.execute(f"LISTEN {channel}".encode())
        says.execute(b"SET synchronous_commit = off")  # a standby that is away is not to be waited for
        says.execute(f"NOTIFY {channel}".encode())
        if any(True for _ in hears.notifies(timeout=HEARD_S, stop_after=1)):
            return Finding("ok", "listen", "others' writes are heard of at once")
    text = "LISTEN hears nothing, as behind a pooler; then others' writes are noticed by polling, once a second"
    return Finding("note", "listen", text, "PostgresBackend(..., pooled=True)")
