"""Reaching an instance from outside: signals and requests, whoever holds it and whether or not anybody does.

An instance that nobody holds is advanced by the sender itself: load, decide, commit with the seq checked. One that a
session holds gets the message in its inbox, and the holder takes it in at its next turn. Which of the two is the case
is checked in the statement that writes, so there is no moment at which a message could be lost. No workflow code is
needed: the plan is stored with the instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stepwell.backend.base import Change, Entry, Loaded, Message, Rest
from stepwell.codec import type_name
from stepwell.engine import events as e
from stepwell.engine.frontier import to_image
from stepwell.errors import CodecError, EncodeError, InstanceEnded, InstanceNotFound, UsageError
from stepwell.flow.plan import Plan
from stepwell.types import ENDED, check_instance_id, check_name

from . import session
from .arrivals import News, Posted
from .ending import InstanceStatus
from .live import Live, event_of, frontier_of

if TYPE_CHECKING:
    from .room import Room


class Control:
    """Signals, requests and status of instances. Thread-safe. Runners offer it as ``runner.client``."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def signal(self, instance_id: str, name: str, payload: object = None, *, signal_id: str = "") -> None:
        """Send a named message to an instance; its effect survives once this returns.

        It waits in the instance's inbox until a ``signal`` node of that name takes it, oldest first.

        Args:
            signal_id: a message with an id is taken once, however often it is sent.

        Raises:
            InstanceNotFound: there is no such instance.
            InstanceEnded: it has ended.
            UsageError: its workflow awaits no signal of this name, or one of another type (checked here if this runner
                knows the workflow's code).
            EncodeError: the payload cannot be stored.
        """
        check_name(name, "a signal's name")
        try:
            stored = self._room.codec.encode(payload)
        except CodecError as error:
            raise EncodeError(f"the payload of signal {name!r} cannot be stored: {error}") from error
        self._send(instance_id, Message("signal", name, stored, self._room.clock.now_us(), signal_id))

    def cancel(self, instance_id: str, *, reason: str = "", by: str = "") -> None:
        """Ask an instance to end as cancelled. Raises InstanceNotFound, InstanceEnded."""
        self._request("cancel", instance_id, reason, by)

    def pause(self, instance_id: str, *, reason: str = "", by: str = "") -> None:
        """Ask an instance to start nothing more until it is resumed. Raises InstanceNotFound, InstanceEnded."""
        self._request("pause", instance_id, reason, by)

    def resume(self, instance_id: str, *, by: str = "") -> None:
        """Let a paused instance go on. Raises InstanceNotFound, InstanceEnded."""
        self._request("resume", instance_id, "", by)

    def status(self, instance_id: str) -> InstanceStatus:
        """Return an instance's status. Raises InstanceNotFound."""
        return session.status_from(self._stored_room(), instance_id)

    def _stored_room(self) -> Room:
        if self._room.backend is None:
            raise UsageError("an InProcessRunner keeps no instances; use a CheckpointingRunner for status()")
        return self._room

    # --- sending ---

    def _request(self, kind: str, instance_id: str, reason: str, by: str) -> None:
        self._send(instance_id, Message(kind, reason, by.encode(), self._room.clock.now_us()))

    def _send(self, instance_id: str, message: Message) -> None:
        check_instance_id(instance_id)
        if self._room.backend is None:
            self._check_signal(self._running_plan(instance_id), instance_id, message)
            self._room.wake(instance_id, Posted(instance_id, message))
            return
        while not self._sent(self._room.backend, instance_id, message):
            pass  # somebody else wrote or claimed it in between: look again
        self._room.wake(instance_id, News(instance_id))

    def _sent(self, backend: Any, instance_id: str, message: Message) -> bool:
        loaded = backend.load(instance_id)
        if loaded is None:
            raise InstanceNotFound(instance_id, "no such instance")
        if loaded.header.state in ENDED:
            raise InstanceEnded(instance_id, f"it has ended ({loaded.header.state}), so it takes no {message.kind}")
        plan = session.stored_plan(self._room, loaded.header)
        self._check_signal(plan, instance_id, message)
        if loaded.header.session:
            return backend.post(loaded.header.instance, message) in ("posted", "known")
        return self._advanced(backend, plan, loaded, message)

    def _running_plan(self, instance_id: str) -> Plan:
        plan = self._room.running_plan(instance_id)
        if plan is None:
            raise InstanceNotFound(instance_id, "this runner is not running it; an InProcessRunner keeps no instances")
        return plan

    def _check_signal(self, plan: Plan, instance_id: str, message: Message) -> None:
        if message.kind != "signal":
            return
        what = f"instance {instance_id!r}: workflow {plan.name!r} awaits"
        if message.name not in plan.signals:
            known = ", ".join(sorted(plan.signals)) or "none"
            raise UsageError(f"{what} no signal {message.name!r}; the signals it awaits: {known}")
        declared = self._room.signal_type(plan, message.name)
        try:
            self._room.codec.decode(message.payload or b"", declared)
        except CodecError as error:
            raise UsageError(f"{what} {message.name!r} as {type_name(declared)}: {error}") from error

    def _advanced(self, backend: Any, plan: Plan, loaded: Loaded, message: Message) -> bool:
        """Advance an instance that nobody holds. Returns False if it has to be looked at again.

        That is so if somebody else wrote first, or if a holder that is gone has left messages: those come first.
        """
        if loaded.mail:
            backend.commit(None, [self._change(plan, loaded, loaded.mail, [m.id for m in loaded.mail], [])])
            return False
        ids = [message.message_id] if message.message_id else []
        change = self._change(plan, loaded, [message], [], ids)
        if not change.entries:
            return True
        outcome = backend.commit(None, [change])[0]
        return outcome in ("done", "mail") or (bool(ids) and self._known(backend, loaded, message))

    def _change(
        self, plan: Plan, loaded: Loaded, messages: Sequence[Message], taken: Sequence[int], ids: Sequence[str]
    ) -> Change:
        """Decide what messages lead to in an instance that nobody holds, where nothing runs."""
        state, now = frontier_of(plan, loaded), self._room.clock.now_us()
        entries: list[Entry] = []
        for message in messages:
            payload = message.payload if message.kind == "signal" else None
            entries += Live.rows(plan, state, [event_of(message)], now, payload)
        closing = tuple(k for k, s in state.steps.items() if s.phase == "closing")
        entries += Live.rows(plan, state, [e.Settled(closing)] if closing else [], now)
        rest = Rest(state.status(now), to_image(state), state.next_due_us(), True, state.result)
        return Change(loaded.header.instance, loaded.header.seq, entries, taken, rest, ids)

    def _known(self, backend: Any, loaded: Loaded, message: Message) -> bool:
        return bool(backend.post(loaded.header.instance, message) == "known")
