"""A backend that fails at a named point: before or after the n-th call of one of its methods.

With the default strike the process dies there and then, as under ``kill -9``; with one that raises, "after" is a lost
acknowledgement: the write landed and the caller hears of a failure. Calls of one method are counted from 1, over all
threads.

Example:
    >>> str(Fault.parse("before:commit:3"))
    'before:commit:3'
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Literal, NoReturn, TypeVar

from stepwell.backend.base import (
    Backend,
    Capabilities,
    Change,
    Created,
    Creation,
    Entry,
    Filter,
    Header,
    Holder,
    Joined,
    Loaded,
    Message,
    Offer,
    Offered,
    Outcome,
    Posted,
    Session,
    Stuck,
    Want,
)
from stepwell.codec import Codec
from stepwell.errors import OptionError

T = TypeVar("T")

FAULT_EXIT: Final = 86
"""The exit status of a process that died at a fault."""

ENVIRONMENT: Final = "STEPWELL_FAULT"


@dataclass(frozen=True, slots=True)
class Fault:
    """One point: before or after call number ``nth`` of ``method``."""

    when: Literal["before", "after"]
    method: str
    nth: int

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``"before:commit:3"``. Raises ``OptionError`` for anything else."""
        match text.split(":"):
            case ["before" | "after" as when, method, nth] if (
                nth.isascii() and nth.isdigit() and hasattr(Backend, method)
            ):
                return cls(when, method, int(nth))
            case _:
                raise OptionError(f"a fault is written like 'before:commit:3', not {text!r}")

    def __str__(self) -> str:
        return f"{self.when}:{self.method}:{self.nth}"


def die() -> NoReturn:
    """End the process at once; nothing is flushed, closed or unwound."""
    os._exit(FAULT_EXIT)


def from_environment(inner: Backend, environ: Mapping[str, str] = os.environ) -> Backend:
    """Return ``inner``, made to die where ``STEPWELL_FAULT`` says, several points parted by commas."""
    text = environ.get(ENVIRONMENT, "")
    return FaultyBackend(inner, [Fault.parse(part) for part in text.split(",")]) if text else inner


class FaultyBackend:
    """A backend that hands every call on to ``inner`` and calls ``strike`` at each fault.

    ``calls`` counts the calls of each method, so that a test can learn how many points a run has.
    """

    def __init__(self, inner: Backend, faults: Sequence[Fault], strike: Callable[[], object] = die) -> None:
        self.inner = inner
        self.calls: dict[str, int] = {}
        self._faults = frozenset(faults)
        self._strike = strike
        self._lock = Lock()

    def _call(self, method: str, action: Callable[[], T]) -> T:
        with self._lock:
            nth = self.calls[method] = self.calls.get(method, 0) + 1
        if Fault("before", method, nth) in self._faults:
            self._strike()
        result = action()
        if Fault("after", method, nth) in self._faults:
            self._strike()
        return result

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @property
    def codec(self) -> Codec:
        return self.inner.codec

    @property
    def codec_id(self) -> int:
        return self.inner.codec_id

    @property
    def backend_id(self) -> str:
        return self.inner.backend_id

    def open_session(self, holder: Holder, lease_us: int) -> Session:
        return self._call("open_session", lambda: self.inner.open_session(holder, lease_us))

    def renew(self, session: Session) -> None:
        return self._call("renew", lambda: self.inner.renew(session))

    def end_session(self, session: Session) -> None:
        return self._call("end_session", lambda: self.inner.end_session(session))

    def serve(self, session: Session, definitions: Sequence[int]) -> None:
        return self._call("serve", lambda: self.inner.serve(session, definitions))

    def served(self, definitions: Sequence[int]) -> Mapping[int, int]:
        return self._call("served", lambda: self.inner.served(definitions))

    def register(self, name: str, fingerprint: str, plan: bytes) -> int:
        return self._call("register", lambda: self.inner.register(name, fingerprint, plan))

    def create(
        self, session: Session | None, creations: Sequence[Creation]
    ) -> Sequence[Created | Header | Literal["conflict"]]:
        return self._call("create", lambda: self.inner.create(session, creations))

    def commit(self, session: Session | None, changes: Sequence[Change]) -> Sequence[Outcome]:
        return self._call("commit", lambda: self.inner.commit(session, changes))

    def post(self, instance: int, message: Message) -> Posted:
        return self._call("post", lambda: self.inner.post(instance, message))

    def claim(self, session: Session, instance_id: str) -> Loaded | None:
        return self._call("claim", lambda: self.inner.claim(session, instance_id))

    def claim_due(self, session: Session, want: Want) -> Sequence[Loaded]:
        return self._call("claim_due", lambda: self.inner.claim_due(session, want))

    def next_due(self, workflows: Sequence[str]) -> Mapping[str, Mapping[int, int | None]]:
        return self._call("next_due", lambda: self.inner.next_due(workflows))

    def holdings(self, session: Session) -> tuple[Sequence[int], Sequence[int]]:
        return self._call("holdings", lambda: self.inner.holdings(session))

    def release(self, session: Session, instances: Sequence[int]) -> None:
        return self._call("release", lambda: self.inner.release(session, instances))

    def offer(self, session: Session, offers: Mapping[int, Sequence[Offer]]) -> None:
        return self._call("offer", lambda: self.inner.offer(session, offers))

    def offered(self, instance: int) -> Mapping[bytes, str]:
        return self._call("offered", lambda: self.inner.offered(instance))

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        return self._call("claim_offers", lambda: self.inner.claim_offers(session, want))

    def settle(self, session: Session, results: Sequence[tuple[int, Message]]) -> Sequence[bool]:
        return self._call("settle", lambda: self.inner.settle(session, results))

    def hand_back(self, session: Session, offers: Sequence[int]) -> None:
        return self._call("hand_back", lambda: self.inner.hand_back(session, offers))

    def call_off(self, session: Session, instance: int, steps: Sequence[bytes], *, stop: bool) -> Sequence[bytes]:
        return self._call("call_off", lambda: self.inner.call_off(session, instance, steps, stop=stop))

    def called_off(self, session: Session, offers: Sequence[int]) -> Sequence[int]:
        return self._call("called_off", lambda: self.inner.called_off(session, offers))

    def load(self, instance_id: str) -> Loaded | None:
        return self._call("load", lambda: self.inner.load(instance_id))

    def header(self, instance_id: str) -> Header | None:
        return self._call("header", lambda: self.inner.header(instance_id))

    def values(self, instance: int, seqs: Sequence[int]) -> Mapping[int, bytes]:
        return self._call("values", lambda: self.inner.values(instance, seqs))

    def received(self, instance: int) -> Sequence[str]:
        return self._call("received", lambda: self.inner.received(instance))

    def mail(self, session: Session) -> Mapping[int, Sequence[Message]]:
        return self._call("mail", lambda: self.inner.mail(session))

    def plan(self, fingerprint: str, name: str) -> bytes | None:
        return self._call("plan", lambda: self.inner.plan(fingerprint, name))

    def history(self, instance: int, after: int, limit: int) -> Sequence[Entry]:
        return self._call("history", lambda: self.inner.history(instance, after, limit))

    def list(self, where: Filter) -> Sequence[Header]:
        return self._call("list", lambda: self.inner.list(where))

    def count(self, where: Filter) -> int:
        return self._call("count", lambda: self.inner.count(where))

    def stuck(self, now_us: int) -> Sequence[Stuck]:
        return self._call("stuck", lambda: self.inner.stuck(now_us))

    def delete(self, instance_id: str) -> bool:
        return self._call("delete", lambda: self.inner.delete(instance_id))

    def purge(self, ended_before_us: int | None, keep: int | None, limit: int) -> int:
        return self._call("purge", lambda: self.inner.purge(ended_before_us, keep, limit))

    def within(self, connection: object) -> Joined:
        return self._call("within", lambda: self.inner.within(connection))

    def connect(self) -> object:
        return self._call("connect", self.inner.connect)

    def keep_apart(self, thread: int, *, apart: bool) -> None:
        """Tell an ``inner`` that has transactions; no fault strikes here."""
        inner: Any = self.inner
        inner.keep_apart(thread, apart=apart)

    def hint(self) -> int:
        return self._call("hint", self.inner.hint)

    def watch(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        return self._call("watch", lambda: self.inner.watch(wake))

    def close(self) -> None:
        return self._call("close", self.inner.close)
