"""Reaching an instance from outside: signals and requests, whoever holds it and whether or not anybody does.

An instance that nobody holds is advanced by the sender itself: load, decide, commit with the seq checked. One that a
session holds gets the message in its inbox, and the holder takes it in at its next turn. Which of the two is the case
is checked in the statement that writes, so there is no moment at which a message could be lost. No workflow code is
needed: the plan is stored with the instance.

What a message means does not depend on the way it takes (:mod:`.requests`). If two cross, each is decided again on what
the other has written, and the engine's order holds: cancel beats pause, pause beats resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from stepwell.backend.base import Backend, Change, Loaded, Message
from stepwell.codec import type_name
from stepwell.engine.frontier import Frontier
from stepwell.errors import CodecError, EncodeError, InstanceDamaged, InstanceNotFound, UsageError
from stepwell.flow.plan import Plan
from stepwell.types import ENDED, check_instance_id, check_name

from . import observed, session, stored
from .arrivals import News, Posted
from .ending import InstanceStatus, hold_text
from .live import frontier_of
from .outside import left_at_rest, taken_in
from .requests import refusal, request

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow

    from .room import Room

Check: TypeAlias = Callable[[Plan, Frontier], object]


class Control:
    """Signals, requests and status of instances. Thread-safe. Runners offer it as ``runner.client``."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def signal(
        self,
        instance_id: str,
        name: str,
        payload: object = None,
        *,
        signal_id: str = "",
        workflow: AnyWorkflow | None = None,
    ) -> None:
        """Send a named message to an instance; its effect survives once this returns.

        It waits in the instance's inbox until a ``signal`` node of that name takes it, oldest first. If the caller is
        in an OpenTelemetry span, its context is stored with the message, and the step that it lets go is linked to it.

        Args:
            signal_id: a message with an id is taken once, however often it is sent; sending it again after the end
                is no error.
            workflow: the instance's workflow, to check the payload's type before it is sent; not needed where this
                runner has run it.

        Raises:
            InstanceNotFound: there is no such instance.
            InstanceEnded: it has ended.
            UsageError: its workflow awaits no signal of this name, or one of another type.
            EncodeError: the payload cannot be stored.

        Example:
            >>> client.signal("order-42", "approval", Approval(by="ann"), signal_id="mail-7")  # doctest: +SKIP
        """
        check_name(name, "a signal's name")
        try:
            stored = self._room.codec.encode(payload)
        except CodecError as error:
            what = f"instance {instance_id!r}: the payload of signal {name!r}"
            raise EncodeError(f"{what} cannot be stored: {error}") from error
        message = Message("signal", name, stored, self._room.clock.now_us(), signal_id, trace=self._room.lookout.here())
        self._send(instance_id, message, lambda plan, _: self._check_signal(plan, instance_id, message, workflow))

    def cancel(self, instance_id: str, *, reason: str = "", by: str = "") -> None:
        """Ask an instance to end as cancelled: nothing starts any more, what runs is told to stop.

        It has ended when this returns if nobody holds it; else the request is pending until the holder takes it in.

        Args:
            reason: kept with the instance and shown by ``status``; at most 4 000 characters, as is ``by``.
            by: who asks.

        Raises:
            InstanceNotFound, InstanceEnded: there is no such instance, or it has ended.

        Example:
            >>> client.cancel("order-42", reason="the customer withdrew", by="ann")  # doctest: +SKIP
        """
        self._request("cancel", instance_id, reason, by)

    def pause(self, instance_id: str, *, reason: str = "", by: str = "") -> None:
        """Ask an instance to start nothing more until it is resumed. What runs ends, its result is kept.

        No timer and no signal is lost: a delay that is over meanwhile is over at the resume. Pausing what is paused or
        is being cancelled changes nothing.

        Raises:
            InstanceNotFound, InstanceEnded: there is no such instance, or it has ended.
            UsageError: it is held, so nothing starts anyway.

        Example:
            >>> client.pause("order-42", reason="stock-taking", by="ann")  # doctest: +SKIP
        """
        self._request("pause", instance_id, reason, by)

    def resume(self, instance_id: str, *, by: str = "") -> None:
        """Let a paused instance go on; one that is not paused is left as it is.

        Raises:
            InstanceNotFound, InstanceEnded: there is no such instance, or it has ended.
            UsageError: it is held and not paused; a person's decision ends that.

        Example:
            >>> client.resume("order-42", by="ann")  # doctest: +SKIP
        """
        self._request("resume", instance_id, "", by)

    def status(self, instance_id: str) -> InstanceStatus:
        """Return how an instance stands. Raises InstanceNotFound.

        Example:
            >>> client.status("order-42").state  # doctest: +SKIP
            'waiting'
        """
        self._backend()
        return session.status_from(self._room, instance_id)

    def _backend(self) -> Backend:
        self._room.check_open()
        if self._room.backend is None:
            raise UsageError("an InProcessRunner keeps no instances; use a CheckpointingRunner or a WorkflowClient")
        return self._room.backend

    # --- sending ---

    def _request(self, kind: str, instance_id: str, reason: str, by: str) -> None:
        def check(plan: Plan, state: Frontier) -> None:
            if state.held and not state.paused and kind in ("pause", "resume"):
                raise UsageError(f"instance {instance_id!r}: {hold_text(plan, state.held)}; client.decide() ends that")

        self._send(instance_id, request(kind, reason, by, self._room.clock.now_us()), check)

    def _send(self, instance_id: str, message: Message, check: Check) -> None:
        """Deliver a message, looking again as long as others write in between. ``check`` may refuse it each time."""
        check_instance_id(instance_id)
        self._room.check_open()
        if self._room.backend is None:
            check(self._running_plan(instance_id), Frontier())
            observed.handed_over(self._room, instance_id, message)
            self._room.wake(instance_id, Posted(instance_id, message))
            return
        while not self._sent(self._room.backend, instance_id, message, check):
            pass  # somebody else wrote or claimed it in between: look again
        self._room.wake(instance_id, News(instance_id))

    def _sent(self, backend: Backend, instance_id: str, message: Message, check: Check) -> bool:
        loaded = backend.load(instance_id)
        if loaded is None:
            raise stored.missing(backend, instance_id)
        if loaded.header.state in ENDED and message.message_id:
            if self._accepted(backend, loaded.header.instance, message):
                return True  # it came before the end, and is sent again because its sender cannot know
            if not self._is_last(backend, loaded):
                return False  # it was deleted or replaced in between, and what it had accepted is gone with it
        self._check_takes(instance_id, loaded.header.state, message.kind)
        plan = stored.stored_plan(self._room, loaded.header)
        state = frontier_of(plan, loaded)
        check(plan, state)
        if loaded.header.session:
            posted = backend.post(loaded.header.instance, message)
            if posted == "posted":
                observed.sent(self._room, loaded.header, message, message.at_us)
            return posted in ("posted", "known")
        return self._advanced(backend, plan, state, loaded, message)

    @staticmethod
    def _is_last(backend: Backend, loaded: Loaded) -> bool:
        header = backend.header(loaded.header.instance_id)
        return header is not None and header.instance == loaded.header.instance

    @staticmethod
    def _check_takes(instance_id: str, state: str, kind: str) -> None:
        if error := refusal(instance_id, state, kind):
            raise error

    def _running_plan(self, instance_id: str) -> Plan:
        plan = self._room.running_plan(instance_id)
        if plan is None:
            raise InstanceNotFound(instance_id, "this runner is not running it; an InProcessRunner keeps no instances")
        return plan

    def _check_signal(self, plan: Plan, instance_id: str, message: Message, workflow: AnyWorkflow | None) -> None:
        what = f"instance {instance_id!r}: workflow {plan.name!r} awaits"
        if message.name not in plan.signals:
            known = ", ".join(sorted(plan.signals)) or "none"
            raise UsageError(f"{what} no signal {message.name!r}; the signals it awaits: {known}")
        declared = self._signal_type(plan, message.name, workflow)
        try:
            self._room.codec.decode(message.payload or b"", declared)
        except CodecError as error:
            raise UsageError(f"{what} {message.name!r} as {type_name(declared)}: {error}") from error

    def _signal_type(self, plan: Plan, name: str, workflow: AnyWorkflow | None) -> object:
        known = self._room.workflow_of(plan) if workflow is None else same_name(plan, workflow)
        return known.bodies.payloads.get(name, Any) if known is not None else Any

    # --- advancing what nobody holds ---

    def _advanced(self, backend: Backend, plan: Plan, state: Frontier, loaded: Loaded, message: Message) -> bool:
        """Advance an instance that nobody holds. Returns False if it has to be looked at again.

        That is so if somebody else wrote first, or if a holder that is gone has left messages: those come first. Only
        a retry comes before them.
        """
        if message.kind == "retry":
            change = session.reopening(plan, state, loaded, message, self._room.clock.now_us())
            if not change.entries:  # looking again would say the same for ever
                raise InstanceDamaged(loaded.header.instance_id, "it is stored as ended, and its journal goes on")
            return backend.commit(None, [change])[0] in ("done", "mail")
        if loaded.mail:
            backend.commit(None, [self._change(plan, state, loaded, loaded.mail, [m.id for m in loaded.mail], [])])
            return False
        ids = [message.message_id] if message.message_id else []
        change = self._change(plan, state, loaded, [message], [], ids)
        if not change.entries:
            return True
        outcome = backend.commit(None, [change])[0]
        if outcome in ("done", "mail"):
            observed.sent(self._room, loaded.header, message, change.entries[0].at_us)
            return True
        return self._accepted(backend, change.instance, message)

    @staticmethod
    def _accepted(backend: Backend, instance: int, message: Message) -> bool:
        """Whether a message with an id was accepted before, or is now, by a session that holds the instance again."""
        return bool(message.message_id) and backend.post(instance, message) in ("known", "posted")

    def _change(
        self,
        plan: Plan,
        state: Frontier,
        loaded: Loaded,
        messages: Sequence[Message],
        taken: Sequence[int],
        ids: Sequence[str],
    ) -> Change:
        """Decide what messages lead to in an instance that nobody holds, where nothing runs."""
        now = self._room.clock.now_us()
        return left_at_rest(loaded, state, taken_in(plan, state, messages, now), now, taken=taken, ids=ids)


def same_name(plan: Plan, workflow: AnyWorkflow) -> AnyWorkflow:
    """Return a workflow that was given for an instance. Raises UsageError if it is not the instance's own."""
    if workflow.name != plan.name:
        raise UsageError(f"the instance belongs to workflow {plan.name!r}, not {workflow.name!r}")
    return workflow
