"""What ``doctor`` finds wrong with an SQLite file, and that looking at it changes nothing."""

from __future__ import annotations

import os

import apsw
import pytest

from stepwell.cli import checks_file


def findings(command, *words):
    """Return what is not in order with the file itself."""
    found = command("doctor", "--json", *words).json["findings"]
    return [f for f in found if f["level"] != "ok" and f["check"] not in ("held", "failed")]


def run(command, statement):
    connection = apsw.Connection(str(command.database))
    connection.execute(statement)
    connection.close()


def test_a_sound_file_is_said_to_be_so(stepwell):
    """With its size, schema, journal mode and codec."""
    told = {f["check"]: f["text"] for f in stepwell("doctor", "--json").json["findings"]}
    assert findings(stepwell) == []
    assert told["database"].endswith("schema 1, journal mode wal, values are JsonCodec's")
    assert told["schema"] == "all tables and indexes are as made"
    assert told["pages"] == "SQLite finds the file sound"


@pytest.mark.broken_store
def test_an_index_that_is_gone_is_named_with_what_makes_it(stepwell):
    """The statement is the migration's."""
    run(stepwell, "DROP INDEX agenda_due")
    (found,) = findings(stepwell)
    assert (found["level"], found["check"]) == ("problem", "schema")
    assert found["text"] == "index agenda_due of orders.db is missing"
    run(stepwell, found["command"].split("'")[1])
    assert findings(stepwell) == []


@pytest.mark.broken_store
def test_an_index_of_somebody_else_is_not_ours(stepwell):
    """One that has our name and other columns is; one more is fine."""
    run(stepwell, "CREATE INDEX mine ON journal (at_us)")
    assert findings(stepwell) == []
    run(stepwell, "DROP INDEX agenda_due; CREATE INDEX agenda_due ON agenda (instance)")
    (found,) = findings(stepwell)
    assert found["text"] == "index agenda_due of orders.db is not as it was made"


@pytest.mark.broken_store
def test_a_table_that_is_gone(stepwell):
    """The store is not looked at then."""
    run(stepwell, "DROP TABLE label")
    said = stepwell("doctor")
    assert said.code == 5
    assert "table label of orders.db is missing; bring back a copy" in said.out
    assert "What is in the store was not looked at." in said.out


@pytest.mark.broken_store
@pytest.mark.parametrize(("version", "code"), [(0, 5), (99, 5)])
def test_a_file_of_another_version_is_left_as_it_is(stepwell, version, code):
    """Neither is an older one brought up to date, nor is a newer one guessed at."""
    run(stepwell, f"PRAGMA user_version = {version}")
    said = stepwell("doctor", "--json")
    assert said.code == code
    assert said.json["findings"][-1]["command"] == ("pip install --upgrade stepwell" if version else "stepwell migrate")
    assert checks_file.schema_version(stepwell.database) == version


def test_an_empty_file_stays_empty(empty):
    """No store is made in it."""
    empty.database.touch(mode=0o600)
    (found,) = findings(empty)
    assert found["text"].endswith("new.db is empty: there is no store in it yet")
    assert empty.database.stat().st_size == 0
    assert empty("doctor").code == 5


def test_a_journal_mode_that_somebody_has_changed(stepwell):
    """It is said, and put right by opening the store."""
    run(stepwell, "PRAGMA journal_mode = delete")
    (found,) = findings(stepwell)
    assert found["text"] == "orders.db was in journal mode delete and not wal; opening it turns it back"


def test_a_file_that_others_may_read(stepwell):
    """Values are in it."""
    os.chmod(stepwell.database, 0o644)
    (found,) = findings(stepwell)
    assert (found["level"], found["check"]) == ("note", "permissions")
    assert found["command"] == f"chmod 600 {stepwell.database}"


def test_a_disk_that_is_nearly_full(stepwell, monkeypatch):
    """The command makes room."""
    monkeypatch.setattr(checks_file, "SPACE_LEAST", 2**62)
    (found,) = findings(stepwell)
    assert found["command"] == "stepwell purge --older-than 30d"


def test_a_log_that_is_never_emptied(stepwell, monkeypatch):
    """A reader that stays keeps it so."""
    monkeypatch.setattr(checks_file, "WAL_MOST", 0)
    reader = apsw.Connection(str(stepwell.database))
    reader.execute("BEGIN; SELECT * FROM meta")
    run(stepwell, "CREATE INDEX mine ON journal (at_us)")
    (found,) = findings(stepwell)
    reader.close()
    assert found["text"].startswith("orders.db-wal has ")
    assert found["command"] == f"fuser -v {stepwell.database}"


@pytest.mark.parametrize(("kind", "wrong"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("overlay", False)])
def test_a_network_file_system(stepwell, monkeypatch, tmp_path, kind, wrong):
    """The innermost mount that the file is under counts."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nserver:/ {tmp_path} {kind} rw 0 0\nother:/ {tmp_path}/else nfs rw 0 0\n"
    )
    monkeypatch.setattr(checks_file, "_MOUNTS", mounts)
    monkeypatch.setattr(checks_file.sys, "platform", "linux")
    found = findings(stepwell)
    assert [f["check"] for f in found] == (["disk"] if wrong else [])
    assert not wrong or f"network file system ({kind})" in found[0]["text"]


@pytest.mark.broken_store
def test_a_large_file_is_read_only_when_asked(stepwell, monkeypatch):
    """By --deep."""
    monkeypatch.setattr(checks_file, "QUICK_CHECK_MOST", 0)
    pages = [f for f in stepwell("doctor", "--json").json["findings"] if f["check"] == "pages"]
    assert "stepwell doctor --deep does" in pages[0]["text"]
    pages = [f for f in stepwell("doctor", "--json", "--deep").json["findings"] if f["check"] == "pages"]
    assert pages[0]["text"] == "SQLite finds the file sound"
