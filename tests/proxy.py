"""A proxy between clients and PostgreSQL that knows the protocol, and does on request what networks do unasked.

Replies are held back until the server has said that it is ready again: so when a reply is dropped, the client has seen
nothing of it, and what it asked for has happened all the same. :class:`Pooler` lends a few server connections to many
clients, each for one transaction, as PgBouncer does: what a session was told before is not known to the next one.

The faults are set from any thread; the proxy lives in a thread of its own.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

CANCEL, SSL, GSS = 80877102, 80877103, 80877104  # what stands in place of a protocol version
IDLE = b"I"
WRITING = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|CREATE|ALTER|DROP|TRUNCATE|GRANT|NEXTVAL)\b", re.IGNORECASE)
LOCKING = re.compile(r"\bFOR\s+(NO\s+KEY\s+)?UPDATE\b", re.IGNORECASE)
STARTUP_KNOWN = frozenset({"user", "database", "client_encoding", "application_name", "datestyle", "timezone"})
GONE = (OSError, asyncio.IncompleteReadError)

When = Literal["before", "after"]


def writes(statement: str) -> bool:
    """Say whether a statement outside a transaction block commits something."""
    return bool(WRITING.search(LOCKING.sub("", statement)))


@dataclass(eq=False)
class Stream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def message(self) -> bytes:
        head = await self.reader.readexactly(5)
        return head + await self.reader.readexactly(int.from_bytes(head[1:]) - 4)

    async def startup(self) -> bytes:
        head = await self.reader.readexactly(4)
        return head + await self.reader.readexactly(int.from_bytes(head) - 4)

    async def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))
        await self.writer.drain()

    def reset(self) -> None:
        """Close at once: the other side reads "connection reset by peer"."""
        linger = struct.pack("ii", 1, 0)
        found = self.writer.get_extra_info("socket")
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


@dataclass(eq=False)
class Cycle:
    """What the client sends up to a Sync or with a simple Query, and the server's answer to it."""

    writes: bool = False
    begun: bool = False
    failed: bool = False
    commit: bool = False
    streamed: bool = False
    held: list[bytes] = field(default_factory=list)


class Asked:
    """What one server session has been asked and has not answered yet, and the state of its transaction."""

    def __init__(self) -> None:
        self.cycles: deque[Cycle] = deque()
        self.status = IDLE
        self._filling: Cycle | None = None
        self._prepared: dict[bytes, bool] = {}

    def ask(self, message: bytes) -> bool:
        """Take in what the client sends. Says whether it makes the server run a statement."""
        kind = message[:1]
        if kind not in b"QPBEDCHSF":
            return False
        if self._filling is None:
            self._filling = Cycle()
            self.cycles.append(self._filling)
        cycle = self._filling
        match kind:
            case b"Q":
                cycle.writes = writes(_text(message[5:]))
            case b"P":
                name, text, _ = message[5:].split(b"\0", 2)
                self._prepared[name] = writes(_text(text))
            case b"B":
                _, name, _ = message[5:].split(b"\0", 2)
                cycle.writes |= self._prepared.get(name, False)
            case b"H":
                cycle.streamed = True
            case _:
                pass
        if kind in b"QS":
            self._filling = None
        return kind in b"QE"

    def answer(self, message: bytes) -> tuple[list[bytes], bool]:
        """Take in what the server sends. Returns what goes on to the client now, and whether it tells of a commit."""
        if not self.cycles:
            return [message], False
        cycle, kind = self.cycles[0], message[:1]
        cycle.held.append(message)
        match kind:
            case b"C":
                tag = message[5:-1]
                cycle.commit |= tag == b"COMMIT"
                cycle.begun |= tag in (b"BEGIN", b"START TRANSACTION")
            case b"E":
                cycle.failed = True
            case b"Z":
                return self._ready(cycle, message[5:6])
            case _:
                pass
        if kind in b"GHW" or (cycle.streamed and not cycle.commit):
            return self._let_go(cycle), False
        return [], False

    def _ready(self, cycle: Cycle, status: bytes) -> tuple[list[bytes], bool]:
        before, self.status = self.status, status
        by_itself = before == status == IDLE and cycle.writes and not cycle.begun and not cycle.failed
        self.cycles.popleft()
        return self._let_go(cycle), cycle.commit or by_itself

    @staticmethod
    def _let_go(cycle: Cycle) -> list[bytes]:
        held, cycle.held = cycle.held, []
        return held

    def last_words(self) -> list[bytes]:
        """Return what a server has said that went away before it was ready again."""
        return self._let_go(self.cycles[0]) if self.cycles else []

    @property
    def idle(self) -> bool:
        return self.status == IDLE and not self.cycles


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


class Proxy:
    """Stands on a TCP port of the loopback before a server's Unix socket.

    Attributes:
        commits: how many were answered so far, those with a lost answer too.
        statements: how many were sent so far.
        latency_s: added to each message to the server.
        deaf: drop what the server says unasked: NotificationResponse.
        observed: what the faults came to.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.commits = self.statements = 0
        self.latency_s = 0.0
        self.deaf = False
        self.observed: Counter[str] = Counter()
        self._drop: Callable[[int], bool] = lambda nth: False
        self._at_statement: tuple[int, When, Callable[[int], object]] | None = None
        self._links: set[asyncio.Task[Any]] = set()
        self._streams: set[Stream] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._listening = self._do(self._listen())
        self.port: int = self._listening.sockets[0].getsockname()[1]

    def dsn(self, database: str = "postgres", *, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}?sslmode=disable&gssencmode=disable"

    # --- faults -----------------------------------------------------------------------------------------------

    def drop_commit(self, nth: int = 1) -> None:
        """Let the ``nth`` commit from now on happen, keep its answer, and close the connection."""
        wanted = self.commits + nth
        self._drop = lambda number: number == wanted

    def drop_commits(self, which: Callable[[int], bool]) -> None:
        """Drop the answers of all commits whose number, counted from the proxy's beginning, is wanted."""
        self._drop = which

    def at_statement(self, nth: int, then: Callable[[int], object], when: When = "before") -> None:
        """Call ``then`` with the server's process id before or after the ``nth`` statement from now on is sent."""
        self._at_statement = (self.statements + nth, when, then)

    def freeze(self) -> None:
        """Be half-open: forward nothing, close nothing, and accept what comes."""
        self._do(_call(self._open.clear))

    def thaw(self, *, cut: bool = True) -> None:
        """Forward again; what was under way is reset unless it may go on."""
        if cut:
            self.cut()
        self._do(_call(self._open.set))

    def cut(self) -> int:
        """Reset all connections, and return how many there were."""
        return self._do(self._cut())

    def close(self) -> None:
        if self._thread.is_alive():
            self._do(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- connections ------------------------------------------------------------------------------------------

    def _do(self, action: Coroutine[Any, Any, T]) -> T:
        done: Future[T] = asyncio.run_coroutine_threadsafe(action, self._loop)
        return done.result(30)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        client = self._note(Stream(reader, writer))
        try:
            first = await self._first(client)
            await self._serve(client, first)
        except (*GONE, asyncio.CancelledError):
            self.observed["ended"] += 1
        finally:
            self._links.discard(task)
            self._forget(client)

    async def _first(self, client: Stream) -> bytes:
        """Return the startup message, once encryption has been declined."""
        while True:
            first = await client.startup()
            if int.from_bytes(first[4:8]) not in (SSL, GSS):
                return first
            await client.send(b"N")

    async def _serve(self, client: Stream, first: bytes) -> None:
        await self._open.wait()
        server = await self._connect()
        try:
            await server.send(first)
            if int.from_bytes(first[4:8]) != CANCEL:
                await _both(*self._pumps(client, server))
        finally:
            self._forget(server)

    async def _connect(self) -> Stream:
        return self._note(Stream(*await asyncio.open_unix_connection(self.server)))

    def _note(self, stream: Stream) -> Stream:
        self._streams.add(stream)
        return stream

    def _forget(self, stream: Stream) -> None:
        self._streams.discard(stream)
        stream.writer.close()

    async def _cut(self) -> int:
        links = list(self._links)
        for stream in list(self._streams):
            stream.reset()
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        self.observed["cut"] += len(links)
        return len(links)

    async def _end(self) -> None:
        self._listening.close()
        self._open.set()
        await self._cut()
        await asyncio.sleep(0)  # transports close one turn after they were told to

    # --- what is said on them ---------------------------------------------------------------------------------

    def _pumps(self, client: Stream, server: Stream) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        asked = Asked()
        key = [0]
        return self._upward(client, server, asked, key), self._downward(client, server, asked, key)

    async def _upward(self, client: Stream, server: Stream, asked: Asked, key: list[int]) -> None:
        while True:
            message = await client.message()
            await self._pass(server, message, asked, key[0])

    async def _pass(self, server: Stream, message: bytes, asked: Asked, pid: int) -> None:
        """Send a message of the client's to the server."""
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        await self._open.wait()
        counted = asked.ask(message)
        self.statements += counted
        then = self._then() if counted else None
        if then and then[0] == "before":
            await asyncio.to_thread(then[1], pid)
        await server.send(message)
        if then and then[0] == "after":
            await asyncio.to_thread(then[1], pid)

    def _then(self) -> tuple[When, Callable[[int], object]] | None:
        if self._at_statement is None or self.statements < self._at_statement[0]:
            return None
        (_, when, then), self._at_statement = self._at_statement, None
        self.observed["statement"] += 1
        return when, then

    async def _downward(self, client: Stream, server: Stream, asked: Asked, key: list[int]) -> None:
        try:
            while True:
                message = await server.message()
                if message[:1] == b"K":
                    key[0] = int.from_bytes(message[5:9])
                await self._reply(client, message, asked)
        except asyncio.IncompleteReadError:
            await client.send(*asked.last_words())
            raise

    async def _reply(self, client: Stream, message: bytes, asked: Asked) -> None:
        """Send a message of the server's to the client, or hold it back, or lose it."""
        if self.deaf and message[:1] == b"A":
            self.observed["unheard"] += 1
            return
        ready, committed = asked.answer(message)
        if committed:
            self.commits += 1
            if self._drop(self.commits):
                self.observed["commit"] += 1
                client.reset()
                raise ConnectionResetError("the answer to a commit is lost")
        await self._open.wait()
        if ready:
            await client.send(*ready)


async def _call(action: Callable[[], object]) -> None:
    action()


async def _both(*ways: Coroutine[Any, Any, None]) -> None:
    """Run two pumps until one of them ends; then the other ends too."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- a transaction pooler -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Client:
    """What a client has said and nobody has passed on yet; ``news`` is set when there is more, or an answer came."""

    stream: Stream
    said: deque[bytes] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    left: bool = False

    async def listen(self) -> None:
        try:
            while (message := await self.stream.message())[:1] != b"X":
                self.said.append(message)
                self.news.set()
        except GONE:
            pass
        self.left = True
        self.news.set()


@dataclass(eq=False)
class Lent:
    """A server connection of the pool; it has a client while a transaction is under way."""

    stream: Stream
    hello: list[bytes]
    asked: Asked = field(default_factory=Asked)
    client: Client | None = None
    dead: bool = False


@dataclass(eq=False)
class Pool:
    """The server connections of one user and database, the longest unused first; ``None`` is one to be opened."""

    startup: bytes
    free: asyncio.Queue[Lent | None] = field(default_factory=asyncio.Queue)


class Pooler(Proxy):
    """Lends ``size`` server connections to its clients, each for one transaction, the longest unused first.

    It knows nothing of prepared statements or of what a session was told, and refuses the startup parameters that
    PgBouncer refuses. ``lent`` counts the transactions.
    """

    def __init__(self, server: str, size: int = 4) -> None:
        self.size, self.lent = size, 0
        self._pools: dict[bytes, Pool] = {}
        self._answering: set[asyncio.Task[None]] = set()
        super().__init__(server)

    async def _serve(self, client: Stream, first: bytes) -> None:
        if int.from_bytes(first[4:8]) == CANCEL:
            return
        words = first[8:].split(b"\0")
        asked = dict(zip(words[0::2], words[1::2], strict=False))
        if unknown := {name.decode().lower() for name in asked if name} - STARTUP_KNOWN:
            await client.send(_refusal(f"unsupported startup parameter: {min(unknown)}"))
            return
        pool = self._pool(asked[b"user"], asked.get(b"database", asked[b"user"]))
        lent = await self._take(pool)
        pool.free.put_nowait(lent)
        await client.send(*lent.hello)
        await self._lend(Client(client), pool)

    def _pool(self, user: bytes, database: bytes) -> Pool:
        body = struct.pack("!i", 3 << 16) + b"\0".join((b"user", user, b"database", database, b"", b""))
        startup = struct.pack("!i", len(body) + 4) + body
        if startup not in self._pools:
            pool = self._pools[startup] = Pool(startup)
            for _ in range(self.size):
                pool.free.put_nowait(None)
        return self._pools[startup]

    async def _take(self, pool: Pool) -> Lent:
        lent = await pool.free.get()
        if lent is not None and not lent.dead:
            return lent
        try:
            return await self._fresh(pool.startup)
        except BaseException:
            pool.free.put_nowait(None)
            raise

    async def _fresh(self, startup: bytes) -> Lent:
        stream = await self._connect()
        await stream.send(startup)
        hello: list[bytes] = []
        while not hello or hello[-1][:1] != b"Z":
            hello.append(await stream.message())
            if hello[-1][:1] == b"E":
                self._forget(stream)
                raise ConnectionResetError("the server refuses the pooler")
        lent = Lent(stream, hello)
        task = asyncio.ensure_future(self._answers(lent))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        return lent

    async def _answers(self, lent: Lent) -> None:
        """Bring a server's answers to whoever it is lent to; what it says unasked in between is lost."""
        try:
            while True:
                message = await lent.stream.message()
                if lent.client is not None:
                    await self._reply(lent.client.stream, message, lent.asked)
                    lent.client.news.set()
        except GONE:
            lent.dead = True
            self._forget(lent.stream)
            if lent.client is not None:
                lent.client.news.set()

    async def _lend(self, client: Client, pool: Pool) -> None:
        """Carry a client's transactions to the server, each on the connection whose turn it is."""
        listening = asyncio.ensure_future(client.listen())
        try:
            while not client.left:
                await client.news.wait()
                client.news.clear()
                while client.said:
                    await self._transaction(client, pool)
        finally:
            listening.cancel()

    async def _transaction(self, client: Client, pool: Pool) -> None:
        lent = await self._take(pool)
        self.lent += 1
        lent.client = client
        try:
            await self._pass(lent.stream, client.said.popleft(), lent.asked, 0)
            while not lent.asked.idle:
                while client.said and not lent.asked.idle:
                    await self._pass(lent.stream, client.said.popleft(), lent.asked, 0)
                await client.news.wait()
                client.news.clear()
                if lent.dead or client.left:
                    raise ConnectionResetError("one side is gone")
        finally:
            lent.client = None
            lent.dead |= not lent.asked.idle
            if lent.dead:
                self._forget(lent.stream)
            pool.free.put_nowait(None if lent.dead else lent)

    async def _end(self) -> None:
        await super()._end()
        for task in list(self._answering):
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)


def _refusal(text: str) -> bytes:
    body = b"SFATAL\0C08P01\0M" + text.encode() + b"\0\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body
