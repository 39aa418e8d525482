"""A store by its URL: what is opened, and what is said of a URL that is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stepwell import BackendUnavailable, InMemoryBackend, JsonCodec, MsgpackCodec, OptionError, open_backend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.backend.urls import hide_passwords, place_of

SECRET = "canary-4711"  # noqa: S105 - it is none
SERVER = f"postgresql://ann:{SECRET}@db:5432/shop"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Take note of what a server's store is opened with, without a server."""
    made: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("stepwell.backend.postgres.PostgresBackend", lambda dsn, **options: made.append((dsn, options)))
    return iter([made])


# --- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["{}/a.db", "sqlite:{}/a.db", "sqlite://{}/a.db", "sqlite:///{}/a.db", "SQLite:{}/a.db"]
)
def test_an_absolute_path(folder: Path, url: str) -> None:
    """Plain, after the scheme, and with the slashes of any other URL or of SQLAlchemy's."""
    with closing(open_backend(url.format(folder))) as backend:
        assert isinstance(backend, SqliteBackend)
    assert (folder / "a.db").exists()


@pytest.mark.parametrize(
    "url", ["a.db", "./a.db", "sqlite:a.db", "sqlite:./a.db", "sqlite:///a.db", "sqlite:///./a.db"]
)
def test_a_relative_path(folder: Path, url: str) -> None:
    """It counts from where the program stands."""
    open_backend(url).close()
    assert (folder / "a.db").exists()


def test_a_path_object(folder: Path) -> None:
    """As everywhere else."""
    open_backend(folder / "a.db").close()  # type: ignore[arg-type]
    assert (folder / "a.db").exists()


def test_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ~ in a variable is nobody else's to expand."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert Path(place_of("sqlite:~/a.db").target) == folder / "a.db"


def test_three_slashes_before_a_folder_that_is_here(folder: Path) -> None:
    """SQLAlchemy's users mean it."""
    (folder / "data").mkdir()
    assert place_of("sqlite:///data/a.db").target == "data/a.db"


def test_three_slashes_that_could_mean_two_files(folder: Path) -> None:
    """It is refused rather than guessed."""
    (folder / str(folder).lstrip("/")).mkdir(parents=True)
    with pytest.raises(OptionError, match="both folders exist; write sqlite:FILE"):
        open_backend(f"sqlite://{folder}/a.db")


def test_a_file_whose_name_looks_like_a_url(folder: Path) -> None:
    """What is there is meant."""
    open_backend("./odd:name.db").close()
    with closing(open_backend("odd:name.db")) as backend:
        assert repr(backend) == "SqliteBackend('odd:name.db')"


def test_a_folder_that_is_not_there() -> None:
    """The store itself says so."""
    with pytest.raises(BackendUnavailable, match="there is no directory"):
        open_backend("sqlite:nowhere/a.db")


# --- memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory:", "memory://", "MEMORY:"])
def test_memory(url: str) -> None:
    """Each one is a store of its own."""
    with closing(open_backend(url)) as one, closing(open_backend(url)) as other:
        assert isinstance(one, InMemoryBackend)
        assert one.backend_id != other.backend_id


# --- servers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "dsn", "schema"),
    [
        (SERVER, SERVER, "stepwell"),
        ("postgres://db/shop", "postgres://db/shop", "stepwell"),
        (f"{SERVER}?schema=flows", SERVER, "flows"),
        (f"{SERVER}?sslmode=require&schema=flows&port=1", f"{SERVER}?sslmode=require&port=1", "flows"),
        (f"{SERVER}?schema=my%20flows", SERVER, "my flows"),
    ],
)  # fmt: skip
def test_a_server(asked: Iterator[list[Any]], url: str, dsn: str, schema: str) -> None:
    """The schema is ours, everything else is for libpq."""
    codec = MsgpackCodec()
    open_backend(url, codec=codec)
    assert next(asked) == [(dsn, {"schema": schema, "codec": codec})]


# --- codecs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory:", "sqlite:a.db"])
def test_a_codec(url: str) -> None:
    """It is the store's."""
    codec = MsgpackCodec()
    with closing(open_backend(url, codec=codec)) as backend:
        assert backend.codec is codec


def test_the_codec_of_a_store_that_exists() -> None:
    """Without one the file says which it is; another one is refused."""
    open_backend("a.db", codec=MsgpackCodec()).close()
    with closing(open_backend("a.db")) as backend:
        assert isinstance(backend.codec, MsgpackCodec)
    with pytest.raises(OptionError, match=r"created with MsgpackCodec and is opened with JsonCodec"):
        open_backend("a.db", codec=JsonCodec())


def test_what_is_no_codec_opens_nothing(folder: Path) -> None:
    """It is refused before a file is made."""
    with pytest.raises(OptionError, match=r"codec= takes a codec, not a str"):
        open_backend("a.db", codec="json")  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []


# --- what is no URL ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "names no file"),
        ("sqlite:", "names no file"),
        ("sqlite://", "names no host"),
        (f"sqlite://ann:{SECRET}@db/a.db", "names no host; write sqlite:FILE"),
        (f"sqlite:a.db?password={SECRET}", "takes no options"),
        (":memory:", "in memory is memory:"),
        ("sqlite::memory:", "in memory is memory:"),
        ("file:a.db", "has no database file:"),
        (f"memory:{SECRET}", "write memory: alone"),
        (f"mysql://ann:{SECRET}@db/shop", "no database mysql:; it is sqlite:FILE"),
        (f"postgresql+psycopg://ann:{SECRET}@db/shop", r"no database postgresql\+psycopg:; it is"),
        (f"postgresql:ann:{SECRET}@db/shop", "begins with postgresql://"),
        (f"postgresql:/ann:{SECRET}@db/shop", "begins with postgresql://"),
        (f"{SERVER}?schema=", "names no schema, or several"),
        (f"{SERVER}?schema=a&schema=b", "names no schema, or several"),
        (f"ann:{SECRET}@db/shop", "no database ann:"),
        (f"a_nn:{SECRET}@db/shop", "server's address"),
        (f"a_nn:{SECRET}/{SECRET}@db/shop", "server's address"),
        (f":{SECRET}@db/shop", "server's address"),
        (f"//ann:{SECRET}@db://", "server's address"),
        (f"host=db user=ann password={SECRET}", "server's address"),
        (f"password = '{SECRET}'", "server's address"),
        (None, "is a str, not a NoneType"),
        (b"a.db", "is a str, not a bytes"),
        (7, "is a str, not a int"),
    ],
)  # fmt: skip
def test_what_is_refused(folder: Path, url: Any, message: str) -> None:
    """With what is wrong and what to write; no file is made, and no password is repeated."""
    with pytest.raises(OptionError, match=message) as caught:
        open_backend(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SERVER, "postgresql://ann:***@db:5432/shop"),
        (f"postgresql://db/shop?user=ann&password={SECRET}", "postgresql://db/shop?user=ann&password=***"),
        ("a.db", "sqlite:a.db"),
        ("memory:", "memory:"),
    ],
)
def test_a_place_is_shown_without_its_password(url: str, shown: str) -> None:
    """As commands print it."""
    assert place_of(url).shown == shown
    assert hide_passwords(shown) == shown
