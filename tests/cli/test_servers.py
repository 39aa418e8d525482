"""The command on a PostgreSQL database, named by a URL with a schema."""

from __future__ import annotations

import pytest

from .conftest import Command


@pytest.fixture
def served(postgres_place, tmp_path, monkeypatch):
    """The command on a fresh schema of the tests' own server."""
    monkeypatch.chdir(tmp_path)
    dsn, schema = postgres_place
    return Command(f"{dsn}{'&' if '?' in dsn else '?'}schema={schema}")


def test_everything_works_on_a_server_too(served):
    """Migrate, start, work, signal, look, check."""
    assert served("migrate", "--json").json["applied"]
    assert served("migrate", "--json").json["applied"] == []
    assert served("start", served.shop("gate"), '{"sku": "pens"}', "--id", "g-1", "--label", "a=b").code == 0
    assert served("worker", "--once", served.shop("gate")).code == 0
    (row,) = served("ps", "--json", "--label", "a=b").json["instances"]
    assert (row["state"], row["next"]) == ("waiting", "signal go")
    assert served("signal", "g-1", "go", "true").code == 0
    assert served("run", served.shop("gate"), "--resume", "g-1").out == "true\n"
    for words in (
        ["tree", "g-1"],
        ["show", "g-1", "--values"],
        ["explain", "g-1"],
        ["watch", "g-1"],
        ["result", "g-1"],
    ):
        assert served(*words).code == 0
    said = served("doctor", "--json").json
    assert [f["text"][:12] for f in said["findings"] if f["level"] != "ok"] == ["fsync is off"]  # as tests run faster
    assert "PostgreSQL" in said["findings"][0]["text"]


@pytest.mark.parametrize("words", [["ps"], ["show", "g-1"], ["signal", "g-1", "go", "true"], ["purge", "--keep", "1"]])
def test_looking_makes_no_schema(served, words):
    """A wrong name is said, and nothing is written where it leads."""
    for _ in range(2):  # what the first had made the second would find
        said = served(*words)
        assert (said.code, said.out) == (5, "")
        assert "is the name right?" in said.err
        assert len(said.err.splitlines()) == 1
    assert served("start", served.shop("gate"), '{"sku": "pens"}', "--id", "g-1").code == 0
    assert served("ps").code == 0


def test_what_migrate_would_do_can_be_read(served):
    """--sql prints it and changes nothing."""
    said = served("migrate", "--sql")
    assert said.out.startswith("BEGIN;\n")
    assert "CREATE TABLE" in said.out
    assert served("migrate", "--json").json["applied"]
