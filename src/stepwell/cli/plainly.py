"""Why an instance stands where it stands, in a person's words, with the commands that would move it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from stepwell import reasons as r
from stepwell.runtime.ending import died_text
from stepwell.runtime.explaining import in_offer
from stepwell.runtime.stored import load, stored_plan
from stepwell.timing import duration_us

from .mistakes import in_commands
from .values import native_type, signal_type

if TYPE_CHECKING:
    from stepwell.flow.plan import Plan
    from stepwell.runtime.explaining import Explanation

    from .common import Open
    from .times import Times


class Saying(NamedTuple):
    """One reason: which step it is about (``""``: the run), what is the case, and what would move it."""

    path: str
    state: str
    text: str
    commands: tuple[str, ...] = ()


class Sayer:
    """Puts the reasons of one instance into words."""

    def __init__(self, at: Open, explanation: Explanation, times: Times) -> None:
        self._at, self._of, self._times = at, explanation, times
        self._id = explanation.instance_id
        self._stopped = any(isinstance(x, r.Paused | r.Held | r.Cancelled) for x in explanation.reasons)
        self._known: Plan | None = None

    def all(self) -> list[Saying]:
        return [self.one(reason) for reason in self._of.reasons]

    def one(self, reason: r.Reason) -> Saying:
        match reason:
            case r.Running(path, worker, attempt, since):
                again = f" (attempt {attempt})" if attempt > 1 else ""
                began = f" since {self._times.at(since)}, for {self._times.age(since)}" if since else ""
                return Saying(path, "running", f"{worker} works on it{again}{began}.")
            case r.Offered(path, attempt, tags):
                again = f"Attempt {attempt} is" if attempt > 1 else "It is"
                flags = [word for tag in tags for word in ("--tag", tag)]
                worker = self._at.command("worker", "MODULE:WORKFLOW", *flags)
                return Saying(path, "ready", f"{again} {in_offer(tags)}.", (worker,))
            case r.Ready(path, attempt):
                begins = "as soon as the instance goes on" if self._stopped else "as soon as a worker takes it up"
                again = f"Attempt {attempt} starts" if attempt > 1 else "It starts"
                return Saying(path, "ready", f"{again} {begins}.")
            case r.CutOff(path):
                text = "It was cut off, and may run at most once: the next worker that comes will ask for a decision."
                return Saying(path, "stopped", text)
            case r.Crashed(path, attempt, crashes):
                before = f", and {died_text(crashes)} before that" if crashes else ""
                text = f"The process that ran attempt {attempt} is gone{before}. Whoever takes it up tries it again"
                return Saying(path, "ready", f"{text}, or holds it if that was one too many.")
            case r.DueAt(path, at):
                return Saying(path, "waits", f"A delay, over at {self._when(at)}.")
            case r.AwaitsSignal():
                return self._signal(reason)
            case r.Backoff(path, until, attempt, error):
                text = f"It failed with {_sentence(error)} Attempt {attempt} follows at {self._when(until)}."
                return Saying(path, "retries", text)
            case r.Closing(path, worker):
                text = f"It has to end first; {worker or 'nobody yet'} is at it. Its result will move nothing."
                return Saying(path, "closing", text)
            case _:
                return self._of_run(reason)

    def _of_run(self, reason: r.Reason) -> Saying:
        match reason:
            case r.Failed(path, error):
                text = f"It failed with {_sentence(error)} A retry goes on from here and keeps all results."
                return Saying(path, "failed", text, (self._command("retry"),))
            case r.Cancelling(why, by):
                return Saying("", "closing", f"It is being cancelled{_because(why, by)} It ends when what runs has.")
            case r.Cancelled(why, by):
                text = f"It was cancelled{_because(why, by)} A retry lets it go on and keeps all results."
                return Saying("", "cancelled", text, (self._command("retry"),))
            case r.Paused(why, by):
                text = f"It was paused{_because(why, by)} Nothing starts until it is resumed."
                return Saying("", "paused", text, (self._command("resume"),))
            case r.Held():
                return self._held(reason)
            case r.NoWorker(workflow):
                text = f"There is something to do, and nobody is at it: no worker for {workflow} runs."
                return Saying("", "pending", text, (self._at.command("worker", "MODULE:WORKFLOW"),))
            case r.Queued(workflow, graph, workers):
                live = "1 live worker has" if workers == 1 else f"{workers} live workers have"
                text = f"It is queued. {live} the code of its graph ({graph[:8]} of {workflow}); newer ones leave it to"
                return Saying("", "pending", f"{text} {'it' if workers == 1 else 'them'}.")
            case _:
                return Saying(getattr(reason, "path", ""), "", in_commands(reason.text, self._id))

    def _signal(self, reason: r.AwaitsSignal) -> Saying:
        text = f'It waits for somebody to send the signal "{reason.name}".'
        if reason.buffered:
            text = f'The signal "{reason.name}" has come ({reason.buffered}) and is kept until the instance goes on.'
        if reason.until is not None:
            text += f" Its time is over at {self._when(reason.until)}."
        if reason.buffered:
            return Saying(reason.path, "waits", text)
        return Saying(reason.path, "waits", text, (self._command("signal", reason.name, *self._payload(reason.name)),))

    def _payload(self, name: str) -> tuple[str, ...]:
        """Say what the signal's payload may look like."""
        wanted = signal_type(self._plan(), name)
        example = _EXAMPLES.get(wanted)
        if example is not None:
            return (example,) if example else ()
        return ("JSON",) if native_type(wanted)[0] else (f"{wanted.upper()}_AS_JSON", "--workflow", "MODULE:WORKFLOW")

    def _plan(self) -> Plan:
        if self._known is None:
            self._known = stored_plan(self._at.room, load(self._at.room, self._id).header)
        return self._known

    def _held(self, reason: r.Held) -> Saying:
        why = _HELD.get(reason.reason, "Going on would be a guess.")
        said = f" ({reason.detail.rstrip('.')})" if reason.detail else ""
        decide = ("decide", self._id, reason.path)
        ways = [self._at.command(*decide, "rerun")]
        if reason.reason == "changed":  # a rerun alone only lets it be compared anew
            ways.insert(0, self._at.command("worker", "MODULE:WORKFLOW"))
        if reason.path:
            ways.append(self._at.command(*decide, "complete", "--value", "JSON"))
        ways.append(self._at.command(*decide, "fail", "--reason", "WHY"))
        return Saying(reason.path, "held", f"It is held for your decision: {reason.reason}{said}. {why}", tuple(ways))

    def _command(self, verb: str, *words: str) -> str:
        return self._at.command(verb, self._id, *words)

    def _when(self, at: object) -> str:
        from datetime import datetime

        assert isinstance(at, datetime)
        ahead = self._times.until(at)
        return self._times.at(at) + (", which is past" if ahead == "now" else f" ({ahead})")


_EXAMPLES: Final = {"bool": "true", "str": '"text"', "int": "1", "float": "1.5", "None": "", "NoneType": ""}

_HELD: Final = {
    "interrupted": "Nobody knows whether it happened: look outside, then say so.",
    "undecodable": "A stored value does not fit the code: mend the declared type, then rerun; or give the result.",
    "changed": "The workflow was changed so that it does not fit what is done. It goes on once code that fits runs.",
    "quarantined": "Its processes died again and again: find out why, then rerun.",
}


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _because(why: str, by: str) -> str:
    said = f"{f' by {by}' if by else ''}{f': {why}' if why else ''}"
    return _sentence(said)


def summary(explanation: Explanation, sayings: Sequence[Saying]) -> str:
    """Say in one sentence how an instance stands."""
    count = sum(1 for saying in sayings if saying.path)
    stands = _STANDS[explanation.state]
    if explanation.state == "waiting" and count > 1:
        return f"It waits in {count} places."
    return stands


_STANDS: Final = {
    "pending": "It has not begun.",
    "running": "It is under way.",
    "waiting": "It waits.",
    "paused": "It is paused.",
    "held": "It needs your decision.",
    "completed": "It has completed; nothing is left to do.",
    "failed": "It has failed.",
    "cancelled": "It was cancelled.",
}


def span_us(text: str, what: str) -> int:
    """Return a duration as the user wrote it. Raises OptionError."""
    return duration_us(float(text) if text.replace(".", "", 1).isdigit() else text, what)
