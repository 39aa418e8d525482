"""What ``doctor`` finds wrong with a PostgreSQL server, and that the statement it prints mends it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

import psycopg
import pytest

from stepwell.backend.postgres_schema import migrate
from stepwell.cli import checks_server

from ..postgres import NoServer, Server, until  # noqa: TID252 - the tests are not installed
from .conftest import Command

GRANTS = (
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE ON SEQUENCE {schema}.instance_id_seq TO {role}",
)


def a_server(settings: dict[str, str]) -> Server:
    try:
        return Server(settings)
    except NoServer as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server():
    """A server of this file's own: it is set up badly, and waits for the disk, as one should."""
    with a_server({"max_prepared_transactions": "2"}) as made:
        yield made


class Shop:
    """A database with a schema, and a role that may do with it what it has to, and no more."""

    def __init__(self, server: Server) -> None:
        self.server, self.schema, self.database = server, "shop", server.create_database()
        self.role = f"role_{self.database}"
        migrate(self.dsn("postgres"), schema=self.schema)
        self.run(f"CREATE ROLE {self.role} LOGIN; {'; '.join(GRANTS)}")

    def dsn(self, user: str) -> str:
        return self.server.dsn(self.database, user=user)

    def said(self, text: str) -> str:
        return text.format(schema=self.schema, role=self.role, database=self.database)

    def run(self, statements: str) -> None:
        """Run statements as psql runs them, one after the other."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            for statement in statements.split(";"):
                if statement.strip() and not statement.strip().startswith("--"):
                    connection.execute(self.said(statement).encode())

    @property
    def command(self) -> Command:
        return Command(f"{self.dsn(self.role)}&schema={self.schema}")

    def findings(self, *words: str) -> list[dict[str, Any]]:
        """Return what is not in order."""
        found: list[dict[str, Any]] = self.command("doctor", "--json", *words).json["findings"]
        return [finding for finding in found if finding["level"] != "ok"]


@pytest.fixture
def shop(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Shop(server)
    yield made
    server.execute(f"DROP DATABASE {made.database} (FORCE)")
    server.execute(f"DROP ROLE {made.role}")


def test_a_server_and_a_role_with_what_the_documentation_asks_for_are_sound(shop):
    """And the role can work with it."""
    assert shop.findings() == []
    assert shop.command("doctor", "--strict").code == 0
    command = shop.command
    for words in (
        ["run", command.shop("wide"), "1", "--id", "w-1"],
        ["start", command.shop("gate"), '{"sku": "pens"}', "--id", "g-1", "--label", "a=b"],
        ["signal", "g-1", "go", "true"],
        ["pause", "g-1"],
        ["resume", "g-1"],
        ["worker", "--once", command.shop("gate")],
        ["start", command.shop("gate"), '{"sku": "cups"}', "--id", "g-2"],
        ["cancel", "g-2"],
        ["retry", "g-2"],
        ["cancel", "g-2"],
        ["purge", "--keep", "0"],
    ):
        said = command(*words)
        assert said.code == 0, (words, said)
    assert command("ps", "--json").json["instances"] == []
    assert shop.findings() == []


DAMAGES = [
    # statement, level, check, a part of the text
    ("DROP INDEX {schema}.agenda_due", "problem", "schema", "index {schema}.agenda_due is missing"),
    ("DROP INDEX {schema}.instance_last", "problem", "schema", "there twice"),
    ("ALTER TABLE {schema}.journal DROP CONSTRAINT journal_pkey", "problem", "schema", "journal_pkey is missing"),
    (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{schema}.label_value'::regclass",
        "problem",
        "schema",
        "{schema}.label_value is INVALID",
    ),
    (
        "DROP INDEX {schema}.inbox_instance; CREATE INDEX inbox_instance ON {schema}.inbox (id)",
        "problem",
        "schema",
        "inbox_instance is btree (id), and was made as btree (instance, id)",
    ),
    (
        "ALTER TABLE {schema}.instance ALTER run TYPE smallint",
        "problem",
        "schema",
        "run of {schema}.instance is smallint NOT NULL, and was made as integer NOT NULL",
    ),
    ("ALTER TABLE {schema}.instance ALTER suspect DROP DEFAULT", "problem", "schema", "column suspect"),
    ("ALTER TABLE {schema}.instance ALTER run DROP NOT NULL", "problem", "schema", "column run"),
    ("ALTER TABLE {schema}.inbox DROP payload", "problem", "schema", "column payload of {schema}.inbox is missing"),
    (
        "ALTER TABLE {schema}.inbox ADD theirs int NOT NULL",
        "problem",
        "schema",
        "column theirs of {schema}.inbox is not stepwell's",
    ),
    ("ALTER TABLE {schema}.journal SET UNLOGGED", "problem", "durability", "{schema}.journal is unlogged"),
    (
        "ALTER TABLE {schema}.agenda SET (autovacuum_enabled = off)",
        "problem",
        "vacuum",
        "autovacuum is off for {schema}.agenda",
    ),
    ("ALTER TABLE {schema}.agenda ENABLE ROW LEVEL SECURITY", "problem", "permissions", "row level security"),
    ("REVOKE USAGE ON SCHEMA {schema} FROM {role}", "problem", "permissions", "may not use schema {schema}"),
    (
        "REVOKE INSERT, DELETE ON {schema}.journal, {schema}.label FROM {role}",
        "problem",
        "permissions",
        "role {role} has no INSERT, DELETE on journal, label of schema {schema}; their owner postgres",
    ),
    (
        "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}",
        "problem",
        "permissions",
        "has no SELECT, INSERT, UPDATE, DELETE on any table",
    ),
    ("REVOKE ALL ON SEQUENCE {schema}.instance_id_seq FROM {role}", "problem", "permissions", "can start nothing"),
    ("ALTER ROLE {role} SET default_transaction_read_only = on", "problem", "writes", "of role {role} only read"),
    (
        "ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = on",
        "problem",
        "writes",
        "of role {role} only read",
    ),
    (
        "ALTER DATABASE {database} SET default_transaction_read_only = on",
        "problem",
        "writes",
        "of database {database} only",
    ),
    ("ALTER ROLE {role} SET statement_timeout = '900ms'", "note", "settings", "statement_timeout of role {role} is"),
    (
        "ALTER DATABASE {database} SET idle_in_transaction_session_timeout = 50",
        "note",
        "settings",
        "of database {database} is 50ms",
    ),
    ("ALTER ROLE {role} CONNECTION LIMIT 4", "problem", "connections", "1 of 4 connections in use, by role {role}'s"),
    ("ALTER ROLE {role} CONNECTION LIMIT 9", "note", "connections", "1 of 9 connections in use, by role {role}'s"),
    ("ALTER DATABASE {database} CONNECTION LIMIT 4", "problem", "connections", "4 connections in use, by {database}'s"),
]


@pytest.mark.parametrize(("damage", "level", "check", "text"), DAMAGES, ids=[damage[0][:60] for damage in DAMAGES])
def test_the_statement_that_is_printed_mends_it(shop, damage, level, check, text):
    """Each is found once, said with what and where, and gone when the statement has been run."""
    shop.run(damage)
    (found,) = shop.findings()
    shop.run(found["command"])
    assert shop.findings() == []
    assert (found["level"], found["check"]) == (level, check)
    assert shop.said(text) in found["text"]


def server_has(shop: Shop, name: str, value: str) -> None:
    until(lambda: shop.server.execute(f"SHOW {name}") == [(value,)], f"{name} is {value}")


@pytest.mark.parametrize(
    ("name", "check"),
    [("fsync", "durability"), ("full_page_writes", "durability"), ("autovacuum", "vacuum"), ("track_counts", "vacuum")],
)
def test_a_setting_of_the_server_that_stepwell_cannot_override(shop, name, check):
    """It is a problem, and the statement sets it."""
    try:
        shop.run(f"ALTER SYSTEM SET {name} = off; SELECT pg_reload_conf()")
        server_has(shop, name, "off")
        (found,) = shop.findings()
        shop.run(found["command"])
        server_has(shop, name, "on")
    finally:
        shop.run(f"ALTER SYSTEM RESET {name}; SELECT pg_reload_conf()")
    assert (found["level"], found["check"]) == ("problem", check)
    assert shop.findings() == []


def test_commits_that_wait_for_a_standby_that_is_away(shop):
    """They would hang, and the doctor does not."""
    try:
        shop.run("ALTER SYSTEM SET synchronous_standby_names = 'ann'; SELECT pg_reload_conf()")
        server_has(shop, "synchronous_standby_names", "ann")
        (found,) = shop.findings()
    finally:
        shop.run("ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()")
        server_has(shop, "synchronous_standby_names", "")
    assert found["text"] == "every commit waits for a standby of ann, and none is connected"


def test_what_is_more_than_was_made_is_fine(shop):
    """Indexes and columns of somebody's own, and one of ours under another name."""
    shop.run("CREATE INDEX mine ON {schema}.journal (at_us); ALTER TABLE {schema}.journal ADD mine int")
    shop.run("ALTER INDEX {schema}.agenda_due RENAME TO agenda_soon")
    assert shop.findings() == []


# --- what keeps a store from being opened ----------------------------------------------------------


def test_where_there_is_no_schema_none_is_made(shop):
    """It is said which there are, and who may make one."""
    command = Command(f"{shop.dsn(shop.role)}&schema=nothing")
    said = command("doctor", "--json")
    (found,) = [finding for finding in said.json["findings"] if finding["level"] != "ok"]
    assert said.code == 5
    assert "there is no store in schema nothing yet; there is one in " in found["text"]
    assert shop.schema in found["text"]
    assert f"role {shop.role} may not make it" in found["text"]
    assert found["command"] == "stepwell migrate"
    assert shop.server.execute("SELECT to_regnamespace('nothing')", database=shop.database) == [(None,)]


@pytest.mark.parametrize(
    ("version", "text", "mend"),
    [
        (0, "has version 0, and this stepwell wants", "stepwell migrate"),
        (99, "has version 99, and this stepwell knows up to", "pip install --upgrade stepwell"),
    ],
)
def test_a_schema_of_another_version_is_left_as_it_is(shop, version, text, mend):
    """An older one is not brought up to date by looking at it."""
    shop.run(f"UPDATE {{schema}}.meta SET value = '{version}' WHERE key = 'schema'")  # noqa: S608
    said = shop.command("doctor", "--json")
    (found,) = [finding for finding in said.json["findings"] if finding["level"] != "ok"]
    assert said.code == 5
    assert text in found["text"]
    assert found["command"] == mend
    query = "SELECT value FROM shop.meta WHERE key = 'schema'"
    assert shop.server.execute(query, database=shop.database) == [(str(version),)]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("DROP TABLE {schema}.label", "table {schema}.label is missing"),
        ("DROP TABLE {schema}.meta", "table {schema}.meta is missing"),
        ("UPDATE {schema}.meta SET value = 'shop' WHERE key = 'application'", "meta is another application's"),
    ],
)
def test_tables_that_are_not_there_or_not_ours(shop, damage, text):
    """No statement brings their rows back; the page says that the store was not looked at."""
    shop.run(damage)
    (found,) = shop.findings()
    said = shop.command("doctor")
    assert said.code == 5
    assert shop.said(text) in found["text"]
    assert said.out.endswith("1 problem to mend. What is in the store was not looked at.\n")


def test_a_server_that_is_too_old(shop, monkeypatch):
    """Nothing else is asked of it."""
    monkeypatch.setattr(checks_server, "POSTGRES_LEAST", 990000)
    said = shop.command("doctor", "--json")
    assert said.code == 5
    assert [finding["check"] for finding in said.json["findings"]] == ["database"]
    assert "stepwell needs 99 or newer" in said.json["findings"][0]["text"]


def test_a_standby_is_read_and_said_to_be_one(tmp_path, monkeypatch):
    """With the hint how libpq finds the primary."""
    monkeypatch.chdir(tmp_path)
    with a_server({"wal_level": "replica"}) as server:
        shop = Shop(server)
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        said = shop.command("doctor", "--json")
    (found,) = [finding for finding in said.json["findings"] if finding["level"] != "ok"]
    assert said.code == 1
    assert (found["check"], found["text"][:23]) == ("writes", "this server is a standb")
    assert "target_session_attrs=read-write" in found["command"]
    assert "instances" in {finding["check"] for finding in said.json["findings"]}


# --- what changes from moment to moment ------------------------------------------------------------


def test_a_transaction_that_keeps_dead_rows(shop, monkeypatch):
    """It is named with the statement that ends it."""
    monkeypatch.setattr(checks_server, "LONG_S", 0)
    with closing(psycopg.connect(shop.dsn(shop.role))) as other:
        pid = other.info.backend_pid
        other.execute("CREATE TEMPORARY TABLE mine ()")
        (found,) = shop.findings()
        shop.run(found["command"])
        until(lambda: shop.findings() == [], "it has ended")
    assert (found["level"], found["check"]) == ("note", "vacuum")
    assert f"a transaction of {shop.role} (pid {pid}, idle in transaction)" in found["text"]


def test_a_prepared_transaction_that_nobody_ends(shop, monkeypatch):
    """As above."""
    monkeypatch.setattr(checks_server, "LONG_S", 0)
    with psycopg.connect(shop.dsn("postgres"), autocommit=True) as other:
        other.execute("BEGIN")
        other.execute("INSERT INTO shop.meta VALUES ('mine', '')")
        other.execute("PREPARE TRANSACTION 'it''s mine'")
    (found,) = shop.findings()
    shop.run(found["command"])
    assert "the prepared transaction it's mine has kept" in found["text"]
    assert shop.findings() == []


def test_the_age_of_transaction_ids(shop, monkeypatch):
    """Near the end the server stops writing; long before that it is said."""
    monkeypatch.setattr(checks_server, "AGED", 1)
    assert {(f["level"], f["check"], f["command"]) for f in shop.findings()} == {
        ("note", "vacuum", f"vacuumdb --freeze {shop.database}")
    }
    monkeypatch.setattr(checks_server, "OLD", 1)
    assert {finding["level"] for finding in shop.findings()} == {"problem"}


def test_connections_that_are_nearly_used_up(shop, monkeypatch):
    """The server's own limit counts too."""
    monkeypatch.setattr(checks_server, "EACH", 1_000)
    (found,) = shop.findings()
    assert (found["level"], found["check"]) == ("problem", "connections")
    assert found["command"].startswith("ALTER SYSTEM SET max_connections = 240;")


@pytest.mark.parametrize("apart_us", [-60_000_000, 60_000_000])
def test_clocks_that_differ(shop, monkeypatch, apart_us):
    """Timers go by ours, leases by the server's."""
    from stepwell.cli import doctor

    ours = doctor.now_us
    monkeypatch.setattr(doctor, "now_us", lambda: ours() + apart_us)
    (found,) = shop.findings()
    assert (found["level"], found["check"]) == ("problem", "clock")
    assert "the server's are" in found["text"]


def test_a_pooler_is_found(shop, monkeypatch):
    """It has a process number of its own to offer, and nobody listens behind it."""
    monkeypatch.setattr(checks_server, "_SELF", checks_server._SELF.replace("pg_backend_pid()", "1"))
    assert shop.findings() == []
    told = shop.command("doctor", "--json").json["findings"]
    assert "a pooler stands between" in next(f["text"] for f in told if f["check"] == "pooler")
    assert "listen" not in {finding["check"] for finding in told}


def test_a_connection_that_hears_nothing(shop, monkeypatch):
    """As behind a pooler that was not found."""
    monkeypatch.setattr(checks_server.BoundedConnection, "notifies", lambda *_, **__: iter(()))
    (found,) = shop.findings()
    assert (found["level"], found["check"]) == ("note", "listen")
    assert "pooled=True" in found["command"]
