"""Starting an instance, and what becomes of one that exists: conflict policies are decided here, and only here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from stepwell.backend.base import Change, Created, Creation, Header, Loaded, Rest
from stepwell.codec import digest, type_name
from stepwell.engine import events as e
from stepwell.engine.facts import Fixed
from stepwell.engine.frontier import Frontier, to_image
from stepwell.errors import (
    AlreadyRunning,
    CodecError,
    EncodeError,
    InputMismatch,
    InstanceConflict,
    InstanceDamaged,
    InstanceExists,
    InstanceNotFound,
    OptionError,
    UsageError,
)
from stepwell.flow.spelling import meant
from stepwell.types import ENDED, ConflictPolicy, check_instance_id, check_labels

from .live import Live, frontier_of
from .outside import left_at_rest, settled
from .ranking import queued_us
from .session import Action, Entered, reopen, resume
from .stored import stored_plan

if TYPE_CHECKING:
    from stepwell.backend.base import Backend, Joined
    from stepwell.observe.watching import Beginning

    from .drive import Drive
    from .invoke import Prepared
    from .room import Room


class NoInput:
    """Stands for "no value was given"; a workflow may well take None."""

    def __repr__(self) -> str:
        return "<no input>"


NO_INPUT = NoInput()


class Start(NamedTuple):
    """What a caller asks for when starting one instance."""

    value: object = NO_INPUT
    instance_id: str | None = None
    on_conflict: ConflictPolicy | str | None = None
    on_mismatch: str = "fail"
    labels: Mapping[str, str] = {}
    lane: str = ""


def start_of(value: object, options: Mapping[str, Any]) -> Start:
    """Return one start from the options of a runner's method. Raises OptionError for one that does not exist."""
    if unknown := set(options) - set(Start._fields[1:]):
        name, known = sorted(unknown)[0], Start._fields[1:]
        raise OptionError(
            f"{name!r} is not an option here{meant(name, known, '{}=')}; the options are {', '.join(known)}"
        )
    if options.get("on_mismatch", "fail") not in ("fail", "ignore"):
        raise OptionError(f"on_mismatch must be 'fail' or 'ignore', not {options['on_mismatch']!r}")
    given = {k: v for k, v in options.items() if v is not None}
    if "labels" in given:
        given["labels"] = check_labels(given["labels"])
    start = Start(value, **given)
    if start.lane:
        check_instance_id(start.lane, "instance's lane")
    _policy(start)
    return start


def starts_of(values: Sequence[object], instance_ids: Sequence[str] | None) -> list[Start]:
    """Return one start for each input."""
    if instance_ids is None:
        return [Start(value) for value in values]
    if isinstance(instance_ids, str):
        raise OptionError("instance_ids must be a list with one id for each input, not a str")
    if len(instance_ids) != len(values):
        raise OptionError(
            f"{len(values)} inputs and {len(instance_ids)} instance_ids were given; give one id for each input, or none"
        )
    return [Start(value, instance_id) for value, instance_id in zip(values, instance_ids, strict=True)]


# --- policies -------------------------------------------------------------------------------------------


def decide(policy: ConflictPolicy, header: Header, workflow: str, input_digest: bytes, on_mismatch: str) -> Action:
    """Say what a policy does with an instance that exists; ``workflow`` and ``input_digest`` are the caller's.

    The graph does not count here: whoever goes on with the instance compares it, and a client does not.

    Raises:
        InstanceExists: the policy is FAIL.
        InstanceConflict: the id is another workflow's.
        InputMismatch: the policy attaches, and the input is another one.
    """
    if policy == ConflictPolicy.FAIL:
        raise InstanceExists(
            header.instance_id,
            f"it exists already ({header.state}); on_conflict='use_existing' attaches to it, "
            "on_conflict='terminate_existing' replaces it",
        )
    if header.workflow != workflow:
        raise InstanceConflict(
            header.instance_id, f"it belongs to workflow {header.workflow!r}, not {workflow!r}; choose another id"
        )
    if policy == ConflictPolicy.TERMINATE_EXISTING:
        return "replace"
    if on_mismatch == "fail" and header.input_digest != input_digest:
        raise InputMismatch(
            header.instance_id, "it was started with another input; on_mismatch='ignore' attaches to it all the same"
        )
    restarts = policy == ConflictPolicy.RESTART_IF_FAILED and header.state in ("failed", "cancelled")
    return "restart" if restarts else "attach"


def _judge(prepared: Prepared, start: Start, header: Header) -> Action:
    digest = input_digest(prepared, start.value)
    return decide(_policy(start), header, prepared.workflow.name, digest, start.on_mismatch)


def _policy(start: Start) -> ConflictPolicy:
    try:
        return ConflictPolicy(start.on_conflict) if start.on_conflict is not None else ConflictPolicy.USE_EXISTING
    except ValueError:
        known = ", ".join(repr(policy.value) for policy in ConflictPolicy)
        raise OptionError(
            f"on_conflict must be a ConflictPolicy or one of {known}, not {start.on_conflict!r}"
        ) from None


# --- what a start is made of ----------------------------------------------------------------------------


def _encode_input(prepared: Prepared, value: object) -> Any:
    workflow = prepared.workflow
    if workflow.has_input is isinstance(value, NoInput):
        wanted = "an input; give it after the workflow" if workflow.has_input else "no input; leave the value out"
        raise UsageError(f"workflow {workflow.name!r} takes {wanted} (it is defined at {workflow.where})")
    if isinstance(value, NoInput):
        return None
    if not prepared.stored:
        return value
    try:
        stored = prepared.codec.encode(value)
    except CodecError as error:
        raise EncodeError(f"the input of workflow {workflow.name!r} cannot be stored: {error}") from error
    try:
        if prepared.input_promised is not None:
            prepared.input_promised("", value, stored)
    except CodecError as error:
        wanted = f"workflow {workflow.name!r} takes {type_name(workflow.input_type)}"
        raise UsageError(f"{wanted}: {error} (it is defined at {workflow.where})") from error
    return stored


def input_digest(prepared: Prepared, value: object) -> bytes:
    """Return what two inputs are compared by; an absent one has none."""
    return b"" if isinstance(value, NoInput) else digest(prepared.codec, value)


def _instance_id(room: Room, start: Start) -> str:
    return room.fresh_id() if start.instance_id is None else check_instance_id(start.instance_id)


def _replacing(room: Room, prepared: Prepared, start: Start, instance_id: str) -> Change | None:
    """Return the change that ends the run which is there, so that a creation may take its place; ``None``: it is gone.

    Whoever holds that run is fenced by its journal. A run that cannot be read is ended as well: nothing else could.
    """
    assert room.backend is not None
    loaded = room.backend.load(instance_id)
    if loaded is None:
        return None
    header = loaded.header
    _judge(prepared, start, header)  # it may be another one than the header that led here
    if header.state in ENDED:
        return Change(header.instance, header.seq, ())
    try:
        return _cancelled(room, loaded)
    except InstanceDamaged:
        return Change(header.instance, header.seq, (), rest=Rest("cancelled", loaded.image or b""))


def _cancelled(room: Room, loaded: Loaded) -> Change:
    """Return the change that ends a run at once, whatever still runs of it: its late results meet a taken seq."""
    plan = stored_plan(room, loaded.header)
    state = frontier_of(plan, loaded)
    now = room.clock.now_us()
    entries = Live.rows(plan, state, [e.CancelAsked("replaced by a new run")], now)
    entries += settled(plan, state, now)
    return left_at_rest(loaded, state, entries, now, taken=[m.id for m in loaded.mail])


# --- starting in a drive --------------------------------------------------------------------------------


def enter_all(drive: Drive, runnable: object, starts: Sequence[Start]) -> list[Entered]:
    """Create instances, or do with those that exist as each one's policy says; all creations are one transaction.

    If one is refused, those that were created stay: nobody holds them, and they are due at once.
    """
    room, prepared = drive.room, drive.room.prepare(runnable)
    context = copy_context()
    lives = [_new_live(room, prepared, start, context) for start in starts]
    if room.backend is None:
        return [_begin(drive, live) for live in lives]
    _check_distinct(lives)
    with room.entering:
        answers = _create(room, [_creation_of(live, start) for live, start in zip(lives, starts, strict=True)])
        begun = [  # all of them before one can be refused: what was created for this call is its to give back
            _begin_created(drive, live, answer) if isinstance(answer, Created) else None
            for live, answer in zip(lives, answers, strict=True)
        ]
        return [
            entered or _enter_existing(drive, prepared, start, answer)
            for entered, start, answer in zip(begun, starts, answers, strict=True)
        ]


def _check_distinct(lives: Sequence[Live]) -> None:
    seen: set[str] = set()
    for live in lives:
        if live.instance_id in seen:
            raise AlreadyRunning(live.instance_id, "one call was given this id twice; give each input an id of its own")
        seen.add(live.instance_id)


def _create(room: Room, creations: Sequence[Creation]) -> Sequence[Any]:
    assert room.backend is not None
    return room.fenced(room.backend.create, creations)


def _new_live(room: Room, prepared: Prepared, start: Start, context: Context) -> Live:
    live = Live(room, prepared, _instance_id(room, start), 0, 1, context)
    if (watch := room.lookout.start(live)) is not None:
        live.observed, live.trace = watch, watch.trace
    facts = live.advance(e.Start(), room.clock.now_us(), _encode_input(prepared, start.value))
    if isinstance(facts, Fixed):
        live.upcoming.append(facts.opened)
    return live


def _creation_of(live: Live, start: Start, replacing: Change | None = None) -> Creation:
    state, at_us = live.state, live.entries[0].at_us
    live.resting = state.status(at_us) == "waiting"  # a workflow may begin with a delay or a signal
    return Creation(
        instance_id=live.instance_id,
        definition=live.prepared.definition,
        input_digest=input_digest(live.prepared, start.value),
        entries=live.entries,
        at_us=at_us,
        state="waiting" if live.resting else "running",
        due_us=state.next_due_us() if live.resting else 0,
        image=to_image(state) if live.resting else None,
        labels=dict(start.labels),
        lane=start.lane,
        trace=live.trace,
        replacing=replacing,
    )


def _begin_created(drive: Drive, live: Live, created: Created) -> Entered:
    live.instance, live.run = created.header.instance, created.header.run
    live.committed()
    return _begin(drive, live)


def _begin(drive: Drive, live: Live) -> Entered:
    drive.join(live)
    drive.begin(live)
    return Entered(live.prepared, live, None)


def _enter_existing(drive: Drive, prepared: Prepared, start: Start, header: Header) -> Entered:
    """Take up or replace a run that is there. Others may end, replace or delete it meanwhile: then look again."""
    room, instance_id = drive.room, header.instance_id
    start = start._replace(instance_id=instance_id)
    while True:
        if _judge(prepared, start, header) == "replace":
            replacing = _replacing(room, prepared, start, instance_id)
        else:
            try:
                return resume(drive, prepared, instance_id, judge=partial(_judge, prepared, start))
            except InstanceNotFound:
                replacing = None  # it has ended and was deleted since
        live = _new_live(room, prepared, start, copy_context())
        (answer,) = _create(room, [_creation_of(live, start, replacing)])
        if isinstance(answer, Created):
            return _begin_created(drive, live, answer)
        header = answer if isinstance(answer, Header) else header


# --- starting without a drive ---------------------------------------------------------------------------


def start_unheld(room: Room, prepared: Prepared, starts: Sequence[Start], within: Joined | None = None) -> list[Header]:
    """Create instances that nobody holds and that are due at once; all creations are one transaction.

    Those that exist are treated as each one's policy says; a run that failed or was cancelled is opened again, so that
    whoever claims it goes on with it. If one is refused, those that were created stay.

    Args:
        within: the store inside a transaction of the user's own, with which everything here lands or not. It allows
            only the policies that write nothing to a run that exists.

    Raises:
        UsageError: ``within`` with TERMINATE_EXISTING or RESTART_IF_FAILED, or not the workflow's input.
        InstanceExists, InstanceConflict, InputMismatch: as :func:`decide` says.
        EncodeError: an input cannot be stored.
    """
    assert room.backend is not None
    if within is not None:
        _check_joined(starts)
    store = within if within is not None else room.backend
    definition = prepared.definition or _registered(store, prepared)
    starts = [start._replace(instance_id=_instance_id(room, start)) for start in starts]
    begun = [_beginning(room, prepared, start) for start in starts]
    creations = [_unheld(room, prepared, start, definition, it) for start, it in zip(starts, begun, strict=True)]
    answers = store.create(None, creations)
    _tell(room, begun, answers)
    return [
        answer.header if isinstance(answer, Created) else _settle(room, prepared, start, answer, definition)
        for start, answer in zip(starts, answers, strict=True)
    ]


def _beginning(room: Room, prepared: Prepared, start: Start) -> Beginning | None:
    return room.lookout.beginning(prepared.workflow.name, start.instance_id or "")


def _tell(room: Room, begun: Sequence[Beginning | None], answers: Sequence[object]) -> None:
    """Tell those who watch which of these creations have come about."""
    for beginning, answer in zip(begun, answers, strict=True):
        if beginning is not None and isinstance(answer, Created):
            beginning.created()
    room.lookout.settle()


def _check_joined(starts: Iterable[Start]) -> None:
    for policy in map(_policy, starts):
        if policy not in (ConflictPolicy.FAIL, ConflictPolicy.USE_EXISTING):
            raise UsageError(
                f"on_conflict={policy.value!r} cannot be part of your own transaction: it writes to a run that another "
                "process may be working on, which would have to wait until you commit; use 'fail' or 'use_existing' "
                "here, or start outside the transaction"
            )


def _registered(store: Backend | Joined, prepared: Prepared) -> int:
    """Store the plan where the instance goes. The number is not remembered: the user may roll it back."""
    plan = prepared.plan
    return store.register(plan.name, plan.fingerprint, plan.to_bytes())


def _unheld(
    room: Room,
    prepared: Prepared,
    start: Start,
    definition: int,
    beginning: Beginning | None,
    replacing: Change | None = None,
) -> Creation:
    state, now = Frontier(), room.clock.now_us()
    entries = Live.rows(prepared.plan, state, [e.Start()], now, _encode_input(prepared, start.value))
    waiting = state.status(now) == "waiting"
    return Creation(
        instance_id=_instance_id(room, start),
        definition=definition,
        input_digest=input_digest(prepared, start.value),
        entries=entries,
        at_us=now,
        state="waiting" if waiting else "pending",
        due_us=state.next_due_us() if waiting else queued_us(prepared.plan, state, now),
        image=to_image(state) if waiting else None,
        labels=dict(start.labels),
        lane=start.lane,
        trace=beginning.trace if beginning is not None else "",
        claim=False,
        replacing=replacing,
    )


def _settle(room: Room, prepared: Prepared, start: Start, header: Created | Header | str, definition: int) -> Header:
    """Do with a run that is there as the policy says. Others may change it meanwhile: then look again."""
    backend = room.backend
    assert backend is not None
    assert isinstance(header, Header), "only a replacing creation can meet a conflict"
    instance_id = header.instance_id
    while (action := _judge(prepared, start, header)) != "attach":
        replacing = None
        if action == "replace":
            replacing = _replacing(room, prepared, start, instance_id)
        elif (loaded := backend.load(instance_id)) is not None:
            if _judge(prepared, start, loaded.header) == "restart":
                reopen(room, loaded)
            return backend.header(instance_id) or loaded.header
        beginning = _beginning(room, prepared, start)
        (answer,) = backend.create(None, [_unheld(room, prepared, start, definition, beginning, replacing)])
        _tell(room, [beginning], [answer])
        if isinstance(answer, Created):
            room.make_way(instance_id, answer.header.instance)
            return answer.header
        header = answer if isinstance(answer, Header) else header
    return header
