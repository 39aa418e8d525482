"""A store by its URL, as configuration files and environment variables name it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from stepwell.errors import OptionError

if TYPE_CHECKING:
    from stepwell.codec import Codec

    from .base import Backend

Kind = Literal["sqlite", "memory", "postgresql"]

KNOWN: Final = "sqlite:FILE, a file's path, memory:, or postgresql://user@host/database"

# One letter before the colon is a drive of Windows.
_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]{1,20}):(.*)", re.DOTALL)
# What libpq takes besides URLs, and user:password@host: neither may ever become a file's name, which errors show.
_SERVER: Final = re.compile(r"(?:[^\\/:]{2,})?:.*@|.*://|.*\b(?:host|hostaddr|dbname|user|password)\s*=", re.DOTALL)


class Place(NamedTuple):
    """Where a store is: a file's path, or the URL of a server and the schema of our tables."""

    kind: Kind
    target: str
    schema: str = "stepwell"

    @property
    def shown(self) -> str:
        """How it is printed: without a password."""
        return hide_passwords(self.target) if self.kind == "postgresql" else f"{self.kind}:{self.target}"


def open_backend(url: str, *, codec: Codec | None = None) -> Backend:
    """Open the store that a URL names; closing it is the caller's business.

    Args:
        url: ``sqlite:orders.db``, ``sqlite:/var/lib/orders.db`` or ``sqlite:///var/lib/orders.db``; a plain path is an
            SQLite file too. ``postgresql://user@host/database?schema=name``, where ``schema`` is that of stepwell's
            tables and whatever else stands there is libpq's. ``memory:`` for a store that ends with the process.
        codec: how values are encoded; by default as the store says, :class:`~stepwell.codec.JsonCodec` for a new one.

    Raises:
        OptionError: not such a URL, not a codec, or another codec than the store was created with.
        BackendError: the store cannot be used; the subclass and the message say why and what helps.

    Example:
        >>> backend = open_backend("memory:")
        >>> backend.close()
    """
    place = place_of(url)
    if codec is not None:
        from stepwell.codec import check_codec

        check_codec(codec)
    match place.kind:
        case "memory":
            from .memory import InMemoryBackend

            return InMemoryBackend(codec)
        case "postgresql":
            from .postgres import PostgresBackend

            return PostgresBackend(place.target, schema=place.schema, codec=codec)
        case "sqlite":
            from .sqlite import SqliteBackend

            return SqliteBackend(place.target, codec=codec)


def place_of(url: object) -> Place:
    """Return the place that a URL or path names. Raises OptionError, which repeats nothing that may be a password."""
    text = _text(url)
    match = _SCHEME.fullmatch(text)
    if match is None:
        return Place("sqlite", _path(text))
    scheme, rest = match[1].lower(), match[2]
    if scheme == "sqlite":
        return Place("sqlite", _path(_without_slashes(rest)))
    if scheme == "memory":
        return _memory(rest)
    if scheme in ("postgresql", "postgres"):
        return _server(text, rest)
    if os.path.exists(text):
        return Place("sqlite", text)
    raise OptionError(f"stepwell has no database {scheme}:; it is {KNOWN}")


def _text(url: object) -> str:
    text: object = getattr(url, "__fspath__", lambda: url)()
    if not isinstance(text, str):
        raise OptionError(f"a store's URL is a str, not a {type(text).__name__}; it is {KNOWN}")
    return text


def _memory(rest: str) -> Place:
    if rest.strip("/"):
        raise OptionError("memory: has no name, as nobody else can open it; write memory: alone")
    return Place("memory", "")


def _server(url: str, rest: str) -> Place:
    """Return a server's place; ``?schema=`` is ours, the rest of the URL is libpq's."""
    if not rest.startswith("//"):
        raise OptionError("a PostgreSQL URL begins with postgresql://, as postgresql://user@host:5432/database")
    head, _, query = url.partition("?")
    parts = [part for part in query.split("&") if part]
    schemas = [part.partition("=")[2] for part in parts if part.startswith("schema=")]
    if len(schemas) > 1 or "" in schemas:
        raise OptionError("the URL's ?schema= names no schema, or several; write ?schema=stepwell, or leave it out")
    others = "&".join(part for part in parts if not part.startswith("schema="))
    return Place("postgresql", head + (f"?{others}" if others else ""), _decoded(schemas[0] if schemas else "stepwell"))


def _decoded(part: str) -> str:
    from urllib.parse import unquote

    return unquote(part)


def _without_slashes(rest: str) -> str:
    """Return the path that follows ``sqlite:``.

    ``///`` begins an absolute path, as in every URL, and a relative one where SQLAlchemy's users write it. Which of the
    two is meant is told by the folder that is there; if both are, nobody could know which file is in use.
    """
    if "?" in rest and not os.path.exists(rest):
        raise OptionError("an SQLite file's URL takes no options after a ?; give them to SqliteBackend(path, …)")
    if not rest.startswith("//"):
        return rest
    if not rest.startswith("///"):
        raise OptionError(f"a file's URL names no host; write sqlite:FILE, without the slashes; a store is {KNOWN}")
    absolute, relative = rest[2:], rest[3:]
    if os.path.isabs(relative):  # four slashes, or three and a drive of Windows
        return relative
    here, there = (os.path.isdir(os.path.dirname(os.path.abspath(path))) for path in (relative, absolute))
    if os.path.dirname(os.path.normpath(absolute)) == os.sep:
        return relative  # nobody keeps a database in the root folder
    if here and there:
        raise OptionError("sqlite:///FILE may be a path from / or from here, as both folders exist; write sqlite:FILE")
    return relative if here else absolute


def _path(path: str) -> str:
    if not path:
        raise OptionError(f"the URL of a store names no file; it is {KNOWN}")
    if path.startswith((":memory:", "file:")):
        raise OptionError("a store in memory is memory:, and a file is given by its plain path")
    if _SERVER.match(path) is not None and not os.path.exists(path):
        raise OptionError(f"this looks like a server's address and is no URL; a store is {KNOWN}")
    return os.path.expanduser(path)


_USER_PASSWORD: Final = re.compile(r"(\w+://[^/\s:@]*):[^\s]*@")
_OTHER_PASSWORD: Final = re.compile(r"(?i)\b(password|passfile|sslpassword)=('[^']*'|[^\s&']+)")


def hide_passwords(text: str) -> str:
    """Return a text in which no URL or connection string shows a password."""
    return _OTHER_PASSWORD.sub(r"\1=***", _USER_PASSWORD.sub(r"\1:***@", text))
