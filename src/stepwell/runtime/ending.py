"""What a caller gets to see of a run that came to rest: its output, or the exception that says why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NoReturn

from stepwell.backend.base import Header, Message
from stepwell.codec import Codec
from stepwell.engine.frontier import Failure, Frontier, Request
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
from stepwell.timing import moment, span
from stepwell.types import State

from .failure import message_of, recorded_error
from .requests import in_words


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
        pending: what its holder has not taken in yet, oldest first: ``"cancel"``, ``"signal approve"``.
        held_by: the process that works on it now, or ``""``. Meanwhile ``state``, ``updated`` and ``due`` are as it
            was left last.
        detail: in words: the failed step and error, the reason it is held, paused or cancelled, and who can mend it.
        labels: what it was started with.
        seq: how many journal entries it has.
        number: grows with every run that is created in its store; ``client.list(after=)`` goes by it.

    Example:
        >>> status = client.status("order-42")  # doctest: +SKIP
        >>> status.state, status.detail  # doctest: +SKIP
        ('paused', 'it is paused by ann: stock-taking; client.resume() lets it go on')
        >>> print(status)  # doctest: +SKIP
        checkout order-42: paused; it is paused by ann: stock-taking; client.resume() lets it go on
    """

    instance_id: str
    run: int
    workflow: str
    state: State
    created: datetime
    updated: datetime
    ended: datetime | None
    due: datetime | None
    pending: tuple[str, ...]
    held_by: str
    detail: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    seq: int = 0
    number: int = 0

    @property
    def finished(self) -> bool:
        """Whether it has ended: completed, failed or cancelled."""
        return self.ended is not None

    def __str__(self) -> str:
        due = f" until {self.due:%Y-%m-%d %H:%M:%S} UTC" if self.due is not None and self.state == "waiting" else ""
        held = f", in the hands of {self.held_by}" if self.held_by else ""
        pending = f"; pending: {', '.join(self.pending)}" if self.pending else ""
        detail = f"; {self.detail}" if self.detail else ""
        return f"{self.workflow} {self.instance_id}: {self.state}{due}{held}{pending}{detail}"


def status_of(header: Header, detail: str = "", mail: Sequence[Message] = ()) -> InstanceStatus:
    """Return the status that a stored row and its unread messages stand for."""
    return InstanceStatus(
        header.instance_id,
        header.run,
        header.workflow,
        header.state,
        moment(header.created_us),
        moment(header.updated_us),
        moment(header.ended_us) if header.ended_us is not None else None,
        moment(header.due_us) if header.due_us else None,
        tuple(map(in_words, mail)),
        header.held_by,
        detail,
        header.labels,
        header.seq,
        header.instance,
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
            text = hold_text(self.plan, state.held, deaths(state))
            raise InstanceHeld(self.instance_id, f"{text}; {hold_mend(self.plan, state.held)}", state.held.reason)
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
        what = f"step {path} failed" if path else "it was failed by decision"
        raise WorkflowFailed(self.instance_id, f"{what}: {name}{text}", path) from cause

    def error(self) -> BaseException:
        """Return the error that failed the run: the exception of this process, or what was recorded of it."""
        failure = self.state.failure or Failure(0, (), 0, "")
        if known := self._errors.get(failure.address):
            return known
        path = self.plan.path(failure.node, failure.turns)
        if not failure.address:
            return refusal(self.plan, failure.node, failure.reason, path)
        raw = self.value(failure.address)
        return recorded_error(self._codec.decode(raw) if self._codec is not None and raw is not None else raw)

    @property
    def resting(self) -> bool:
        """Whether nothing moves it by itself: it has ended, or is held or paused."""
        return bool(self.state.ended or self.state.held or self.state.paused)

    def detail(self) -> str:
        """Say in words what became of the run and what would move it; ``""`` where its state says all."""
        if asked := self.state.cancelling:
            if not self.state.ended:
                return f"it is being cancelled{_because(asked.reason, asked.by)}"
        elif not self.resting:
            return ""
        try:
            self.raise_if_unfinished()
        except (WorkflowFailed, WorkflowCancelled) as error:
            return f"{_text_of(error)}; client.retry() goes on from there, with all results kept"
        except StepwellError as error:
            return _text_of(error)
        return ""


def hold_text(plan: Plan, held: Request, died: int = 0) -> str:
    """Say why a run is held, and where; ``died`` is how many processes have died in it."""
    where = plan.path(held.node, held.turns)
    said = died_text(died) if died else "" if held.by == where else held.by
    return f"it is held ({held.reason}){f' at {where}' if where else ''}{f': {said}' if said else ''}"


def deaths(state: Frontier) -> int:
    """Return how many processes have died in the step that a run is quarantined for; 0 if that is not why it is held.

    The last of them is the hold itself, and so is not counted in the step.
    """
    held = state.held
    step = state.steps.get((held.node, held.turns)) if held and held.reason == "quarantined" else None
    return step.crashes + 1 if step is not None else 0


def died_text(died: int) -> str:
    """Say how many processes have died in a step."""
    return f"{died} processes in a row died in it" if died > 1 else "a process died in it"


def hold_mend(plan: Plan, held: Request) -> str:
    """Say what ends a hold."""
    decide = f"client.decide(id, {plan.path(held.node, held.turns)!r}, …)"
    first = _MENDS.get(held.reason, "mend that and say Rerun()")
    return f"{first} by {decide}, or end it with client.cancel()"


_MENDS: Final = {
    "interrupted": "nobody knows whether it happened: look, and say Complete(value), Rerun() or Fail(reason)",
    "undecodable": "mend the declared type and say Rerun(), or say Complete(value) or Fail(reason),",
    "changed": "run code whose graph fits, such as that it was started with, or say Rerun()",
    "quarantined": "find out what ends its processes and say Rerun(), or say Complete(value) or Fail(reason),",
}


def _text_of(error: StepwellError) -> str:
    return str(error).partition(": ")[2]


def refusal(plan: Plan, node: int, reason: str, path: str) -> StepError:
    """Return the exception for a failure that the engine itself decided on."""
    row = plan.nodes[node]
    match reason:
        case "signal_timeout":
            what = f"no message {row.signal!r} came within {span(row.timeout_us)} at {path}"
            return SignalTimeout(f"{what}; on_timeout= would say what happens instead", path)
        case "loop_limit":
            what = f"loop {path} still said Again in its last turn (max_iterations={row.max_iterations})"
            return LoopLimit(f"{what}; raise that, or take the last value with on_max='last'", path)
        case _:
            kind = reason.partition(" ")[2]
            what = f"the body of loop {path} returned {f'{kind}, ' if kind else ''}neither Again nor Done"
            return LoopValue(f"{what}; return Again(value) for another turn, Done(value) for the end", path)


def _because(reason: str, by: str) -> str:
    """Return a person's reason as the end of a sentence."""
    return f"{f' by {by}' if by else ''}{f': {reason}' if reason else ''}"
