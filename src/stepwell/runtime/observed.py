"""What a runner tells those who watch a run (:mod:`stepwell.observe`), in their words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from stepwell.backend.base import Header, Loaded, Message
from stepwell.engine import causes
from stepwell.engine import facts as f
from stepwell.errors import BackendError, TaskTimeout
from stepwell.observe.watching import Arrival, Facts

from .invoke import Job, Outcome, Undecodable

if TYPE_CHECKING:
    from stepwell.flow.plan import Key

    from .live import Live
    from .room import Room


_CUT_OFF: Final = ("interrupted", "quarantined")
_PAGES: Final = (8, 32, 128)  # entries, from the last one back, among which is looked for why a step was opened


# --- attempts --------------------------------------------------------------------------------------------


def watch(job: Job) -> None:
    """Have an attempt watched that is about to be given to whoever runs it."""
    live = job.facts
    if live.observed is not None and job.body.kind != "pack":  # that one is the engine's own, not an attempt
        step = live.state.steps.get(job.key)
        job.watch = live.observed.attempt(job, step.due_us if step is not None else 0, live.room.clock.now_us())


def ended(outcome: Outcome) -> None:
    """Tell of the outcome of an attempt, which counts once it is committed."""
    job = outcome.job
    if job.watch is None or isinstance(outcome.error, Undecodable):
        return  # one that cannot read what it is given has not begun, and begins under its number once that is mended
    if outcome.stored and job.live.observed is not None:
        job.live.observed.committed(job.live.base)
    job.watch.ended(*_in_words(outcome), outcome.stored)


def _in_words(outcome: Outcome) -> tuple[str, str]:
    error = outcome.error
    if error is None:
        return "succeeded", ""
    kind = outcome.record["type"] if outcome.record else type(error).__name__
    if isinstance(error, TaskTimeout):
        return "timed_out", kind
    return ("cancelled" if outcome.job.stopped else "failed"), kind


def dropped(job: Job) -> None:
    """Tell of an attempt that is not waited for any more. If its run goes on elsewhere, it begins anew there."""
    if job.watch is not None and (job.live.ended or job.live.state.stopping):
        job.watch.ended("cancelled", "", False)


def cut_off(live: Live, fact: f.StepCrashed | f.RunHeld | f.RunPaused) -> None:
    """Tell of an attempt that was lost with its process, if that is what the fact says."""
    if isinstance(fact, f.RunPaused) or (isinstance(fact, f.RunHeld) and fact.reason not in _CUT_OFF):
        return
    step = live.state.steps.get((fact.node, fact.turns))
    if live.observed is not None and step is not None:
        number = fact.attempt if isinstance(fact, f.StepCrashed) else step.attempt
        path, task = live.plan.path(fact.node, fact.turns), live.prepared.workflow.bodies.tasks.get(fact.node)
        name = task.name if task is not None else live.plan.nodes[fact.node].name
        live.observed.crashed(path, step.path or path, name, number)


def settled(guest: Live | None, there: bool) -> None:
    """Tell of an attempt that was run for another session, whose outcome is in the inbox if it was still wanted."""
    if guest is not None and guest.observed is not None and there:
        guest.observed.committed(-1)


# --- signals ---------------------------------------------------------------------------------------------


def arrived(live: Live, message: Message, address: int) -> None:
    """Tell of a message that was taken in, as the entry ``address``."""
    if live.observed is not None and message.kind == "signal":
        live.observed.arrived(address, Arrival(message.name, message.at_us, message.trace))


def let_go(live: Live, facts: Sequence[f.Fact]) -> None:
    """Tell of the steps that an entry has opened because of signals, whenever those have come."""
    if live.observed is not None and live.plan.signals and (steps := causes.let_go(live.plan, facts)):
        live.observed.let_go(steps)


def signals_read(job: Job) -> list[int]:
    """Return the addresses of the signals whose payloads an attempt reads."""
    state, plan = job.facts.state, job.facts.plan
    found = (state.values.get((ref, job.turns[: plan.depth[ref]])) for ref in job.body.refs if _is_signal(job, ref))
    return [address for address in found if address]


def _is_signal(job: Job, ref: int) -> bool:
    return job.facts.plan.kind[ref] == "signal"


def arrival(job: Job, address: int) -> Arrival | None:
    """Return the signal that a journal entry brought; ``None`` if it brought none."""
    for at_us, (head, *_) in _history(job.facts, address - 1, 1):
        if isinstance(head, f.MessageKept):
            return Arrival(head.name, at_us, head.trace if isinstance(head, f.MessageTraced) else "")
    return None


def let_go_by(job: Job) -> Sequence[int]:
    """Return the addresses of the signals that let a step go, as the journal has it, but not from long ago."""
    live = job.facts
    if not causes.signals_before(live.plan, job.node):
        return ()
    before = live.state.seq
    for page in _PAGES:
        for _, facts in reversed(_history(live, max(0, before - page), min(page, before))):
            if isinstance(facts[0], f.RunMoved):
                return ()  # rows had other numbers before
            if any(isinstance(fact, f.Opened) and (fact.node, fact.turns) == job.key for fact in facts):
                return causes.let_go(live.plan, facts).get(job.key, ())
        before -= page
    return ()


def _history(live: Live, after: int, limit: int) -> list[tuple[int, Sequence[f.Fact]]]:
    """Return when entries were written, and their facts."""
    backend = live.room.backend
    if backend is None or after < 0 or limit <= 0:
        return []
    try:
        return [(entry.at_us, f.decode(entry.facts)) for entry in backend.history(live.instance, after, limit)]
    except (BackendError, msgspec.MsgspecError):  # the store has troubles of its own; a link is not worth one more
        return []


def sent(room: Room, header: Header, message: Message, at_us: int) -> None:
    """Tell of a signal that has been sent from here, and counts as having arrived at ``at_us``."""
    if message.kind == "signal":
        origin = header.origin or room.backend_id
        run = Facts(header.instance_id, header.run, header.workflow, origin, header.trace)
        room.lookout.signalled(run, message.name, at_us)


def handed_over(room: Room, instance_id: str, message: Message) -> None:
    """Tell of a signal to a run in memory."""
    live = room.running(instance_id)
    if live is not None and message.kind == "signal":
        room.lookout.signalled(live, message.name, message.at_us)


# --- runs ------------------------------------------------------------------------------------------------


def taken_over(guest: Live) -> None:
    """Tell of a step that is run for another session: what let it go is known to the journal alone."""
    if guest.observed is not None:
        guest.observed.restored(0, _open_steps(guest))


def restored(live: Live, loaded: Loaded) -> None:
    """Tell since when a loaded instance could have gone on, as far as its rows say."""
    if live.observed is None:
        return
    last_us = loaded.entries[-1].at_us if loaded.entries else loaded.header.updated_us
    live.observed.restored(max(last_us, loaded.header.due_us or 0), _open_steps(live))


def _open_steps(live: Live) -> Iterable[Key]:
    """Return the steps that a signal may have let go."""
    return live.state.steps if live.plan.signals else ()
