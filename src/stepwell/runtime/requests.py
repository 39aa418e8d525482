"""What is asked of an instance from outside, as a message: how it is written, what it says in words, who refuses it.

A message travels in one of two ways, applied by the sender or posted to the holder's inbox, and means the same in both.
So everything about it is in these few fields: ``kind``, ``name``, ``payload``. A decision needs more than a name; its
``name`` is a small JSON array of path, kind, tag and person, its ``payload`` the value or error record that it brings.
The path is resolved by whoever applies it, as the instance may have moved on to another graph in between.

Other sessions that run single steps of an instance tell it of them by messages too; those are :mod:`.offered`'s.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from stepwell.backend.base import LOST, Message
from stepwell.engine import events as e
from stepwell.errors import InstanceEnded, OptionError, StepwellError, UsageError
from stepwell.flow.plan import Plan
from stepwell.types import ENDED

from .offered import CURSOR, DECLINED, OUTCOME, event_of_offered

TEXT_CHARS_MAX: Final = 4_000

Choice: TypeAlias = Literal["rerun", "complete", "fail"]


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """A decision about a held instance, without its value."""

    path: str
    choice: Choice
    tag: str = ""
    by: str = ""


def said(text: object, what: str) -> str:
    """Return a person's words as they are stored. Raises OptionError if they are no text or too long."""
    if not isinstance(text, str):
        raise OptionError(f"{what} must be a str, not {type(text).__name__}")
    if len(text) > TEXT_CHARS_MAX:
        raise OptionError(f"{what} may have {TEXT_CHARS_MAX} characters, this one has {len(text)}")
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def request(kind: str, reason: object, by: object, at_us: int) -> Message:
    """Return a cancel, pause, resume or retry with its reason and actor."""
    return Message(kind, said(reason, "the reason"), said(by, "by").encode(), at_us)


def decision(verdict: Verdict, value: bytes | None, at_us: int) -> Message:
    """Return a decision about a held instance."""
    return Message("decide", msgspec.json.encode(verdict).decode(), value, at_us)


def verdict_of(message: Message) -> Verdict:
    """Return what was decided. Raises ``msgspec.MsgspecError`` for what :func:`decision` has not written."""
    return msgspec.json.decode(message.name, type=Verdict)


def value_of(message: Message) -> bytes | None:
    """Return the stored value that a message brings to the journal, if it brings one."""
    return message.payload if message.kind in _BRING_VALUES else None


_BRING_VALUES: Final = frozenset({"signal", "decide", OUTCOME, CURSOR})
_OF_STEPS: Final = {
    OUTCOME: "a step's outcome",
    CURSOR: "a step's cursor",
    DECLINED: "a step's return",
    LOST: "a step's loss",
}


def event_of(message: Message, plan: Plan, limit: int = e.MAX_CRASHES) -> e.Event:
    """Return the event that a message stands for; ``limit`` crashes in a row quarantine a step."""
    text = (message.payload or b"").decode("utf-8", "replace") if value_of(message) is None else ""
    match message.kind:
        case "outcome" | "lost" | "declined" | "cursor":
            return event_of_offered(message, plan, limit)
        case "signal":
            return e.Signalled(message.name, message.trace)
        case "cancel":
            return e.CancelAsked(message.name, text)
        case "pause":
            return e.PauseAsked(message.name, text)
        case "resume":
            return e.ResumeAsked(text)
        case "retry":
            return e.RetryAsked(text)
        case "decide":
            return _decided(message, plan)
        case other:
            return e.HoldAsked("undecodable", f"its inbox held a message of unknown kind {other!r}")


def _decided(message: Message, plan: Plan) -> e.Event:
    try:
        verdict = verdict_of(message)
    except msgspec.MsgspecError:
        return e.HoldAsked("undecodable", "its inbox held a decision that cannot be read")
    node, turns = plan.find(verdict.path) or (-1, ())  # no step has that number, so nothing follows
    return e.Decided(node, turns, verdict.choice, verdict.tag, verdict.by)


def in_words(message: Message) -> str:
    """Return a short text for a message that its holder has not taken in yet: ``cancel``, ``signal approve``."""
    if message.kind == "signal":
        return f"signal {message.name}"
    if message.kind in _OF_STEPS:
        return _OF_STEPS[message.kind]
    if message.kind != "decide":
        return message.kind
    try:
        verdict = verdict_of(message)
    except msgspec.MsgspecError:
        return "decide"
    return f"decide {verdict.choice} {verdict.path}".rstrip()


def refusal(instance_id: str, state: str, kind: str) -> StepwellError | None:
    """Return why an instance that is stored as ``state`` takes no request of this kind; ``None`` if it may."""
    if kind == "retry":
        return _retry_refusal(instance_id, state)
    if state not in ENDED:
        return None
    mend = ANEW if state == "completed" else "client.retry() lets it go on"
    return InstanceEnded(instance_id, f"it has ended ({state}), so it takes no {kind}; {mend}")


ANEW: Final = "start it with on_conflict='terminate_existing' to run it anew under this id"
_INSTEAD: Final = {
    "held": "it is held, not failed: client.decide() ends a hold",
    "paused": "it is paused, not failed: client.resume() lets it go on",
    "waiting": "it is waiting and has not failed: client.explain() says what for",
}


def _retry_refusal(instance_id: str, state: str) -> StepwellError | None:
    if state in ("failed", "cancelled"):
        return None
    if state == "completed":
        return InstanceEnded(
            instance_id,
            f"it has completed, so there is nothing to retry; {ANEW}",
        )
    return UsageError(f"instance {instance_id!r}: {_INSTEAD.get(state, 'it is going on and has not failed')}")
