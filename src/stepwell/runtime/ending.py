"""What a caller gets to see of a run that came to rest: its output, or the exception that says why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from stepwell.backend.base import Header
from stepwell.codec import Codec
from stepwell.engine.frontier import Failure, Frontier
from stepwell.errors import (
    InstanceHeld,
    InstancePaused,
    LoopLimit,
    LoopValue,
    SignalTimeout,
    StepError,
    StepwellError,
    WorkflowCancelled,
    WorkflowFailed,
)
from stepwell.flow.plan import Plan
from stepwell.timing import moment
from stepwell.types import State

from .failure import message_of, recorded_error


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """An instance as seen from outside.

    Attributes:
        instance_id: which one.
        run: which life of that id, from 1.
        workflow: the workflow's name.
        state: ``pending running waiting paused held completed failed cancelled``.
        created, updated, ended: moments in UTC; ``ended`` is ``None`` while it is unfinished.
        due: when it wants to go on; ``None``: at once, never, or when a message comes.
        pending: requests and signals that its holder has not taken in yet.
        held_by: the process that works on it now, or ``""``.
        detail: in words: the failed step and error, the reason it is held, paused or cancelled.
    """

    instance_id: str
    run: int
    workflow: str
    state: State
    created: datetime
    updated: datetime
    ended: datetime | None
    due: datetime | None
    pending: int
    held_by: str
    detail: str = ""

    @property
    def finished(self) -> bool:
        """Whether it has ended: completed, failed or cancelled."""
        return self.ended is not None


def status_of(header: Header, detail: str = "") -> InstanceStatus:
    """Return the status that a stored row stands for."""
    return InstanceStatus(
        header.instance_id,
        header.run,
        header.workflow,
        header.state,
        moment(header.created_us),
        moment(header.updated_us),
        moment(header.ended_us) if header.ended_us is not None else None,
        moment(header.due_us) if header.due_us else None,
        header.mail,
        header.held_by,
        detail,
    )


class Ending:
    """A run at rest, and how to read its values."""

    def __init__(
        self,
        instance_id: str,
        plan: Plan,
        state: Frontier,
        value: Callable[[int], Any],
        codec: Codec | None,
        errors: Mapping[int, BaseException],
    ) -> None:
        self.instance_id, self.plan, self.state = instance_id, plan, state
        self.value, self._codec, self._errors = value, codec, errors

    def raise_if_unfinished(self) -> None:
        """Return if the run completed; else raise what it came to instead."""
        state = self.state
        if state.ended == "failed":
            self._raise_failed(state.failure or Failure(0, (), 0, ""))
        if state.cancelling and state.ended == "cancelled":
            raise WorkflowCancelled(
                self.instance_id, f"it was cancelled{_because(state.cancelling.reason, state.cancelling.by)}"
            )
        if state.held:
            where = self.plan.path(state.held.node, state.held.turns)
            text = f"it is held ({state.held.reason}){f' at {where}' if where else ''}: {state.held.by}"
            mend = "mend that and begin anew with on_conflict='terminate_existing', or end it with client.cancel()"
            raise InstanceHeld(self.instance_id, f"{text}; {mend}", state.held.reason)
        if state.paused:
            raise InstancePaused(
                self.instance_id,
                f"it is paused{_because(state.paused.reason, state.paused.by)}; client.resume() lets it go on",
            )
        assert state.ended == "completed", "a run at rest has ended, or is held or paused"

    def _raise_failed(self, failure: Failure) -> NoReturn:
        cause = self.error()
        path = self.plan.path(failure.node, failure.turns)
        text = message_of(cause) or type(cause).__name__
        name = "" if isinstance(cause, StepwellError) else f"{type(cause).__name__}: "
        raise WorkflowFailed(self.instance_id, f"step {path} failed: {name}{text}", path) from cause

    def error(self) -> BaseException:
        """Return the error that failed the run: the exception of this process, or what was recorded of it."""
        failure = self.state.failure or Failure(0, (), 0, "")
        if known := self._errors.get(failure.address):
            return known
        path = self.plan.path(failure.node, failure.turns)
        if not failure.address:
            return refusal(self.plan, failure, path)
        raw = self.value(failure.address)
        return recorded_error(self._codec.decode(raw) if self._codec is not None and raw is not None else raw)

    def detail(self) -> str:
        """Say in words what became of the run; ``""`` where its state says all."""
        try:
            self.raise_if_unfinished()
        except StepwellError as error:
            return str(error).partition(": ")[2]
        except AssertionError:
            return ""
        return ""


def refusal(plan: Plan, failure: Failure, path: str) -> StepError:
    """Return the exception for a failure that the engine itself decided on."""
    row = plan.nodes[failure.node]
    match failure.reason:
        case "signal_timeout":
            return SignalTimeout(f"no message {row.signal!r} came within {row.timeout_us / 1e6:g} s at {path}", path)
        case "loop_limit":
            return LoopLimit(
                f"loop {path} still said Again in its last turn (max_iterations={row.max_iterations})", path
            )
        case _:
            return LoopValue(f"the body of loop {path} returned neither Again nor Done", path)


def _because(reason: str, by: str) -> str:
    return f"{f' by {by}' if by else ''}{f': {reason}' if reason else ''}"
