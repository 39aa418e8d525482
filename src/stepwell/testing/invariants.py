"""The promises of stepwell, checked after the fact: S1 to S16 and L2, on any store.

:func:`check_store` reads what a store has, tells each journal from its beginning (:mod:`.story`), and compares where
that leads with the rows as they stand. It writes nothing and needs no workflow code, since plans are stored. Use it at
the end of your own chaos or crash tests, or on a copy of a store that you doubt.

Example:
    >>> from stepwell import CheckpointingRunner, InMemoryBackend, task
    >>> @task
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> store = InMemoryBackend()
    >>> with CheckpointingRunner(store) as runner:
    ...     _ = runner.run(double, 21)
    >>> check_store(store).ok
    True

======  ==========================================================================================================
S1 S2   a step has one outcome and does not start after it      from the journal
S5 S6   entries are numbered 1, 2, 3; rows agree with them      from the journal, the image and the header
S8 S9   messages and timers count once, in order                from the journal and the inbox
S10     nothing starts in a cancelled, paused or held run       as far as the journal shows: an attempt that could only
                                                                begin in a pause, and reported within it
S11     attempts stay within the policy, crashes are counted    from the journal and the plan
S12     an ended run stays as it is                             from the journal
S13     every stored byte can be read                           outputs are decoded as undeclared
S15 16  joins happen once, and nothing overtakes                from the journal and the plan
L2      nothing is stuck                                        from the rows, beside ``Backend.stuck``
======  ==========================================================================================================

S3, S4, S7 and L1 are about who may write and cannot be seen afterwards: :class:`.watched.WatchedBackend` checks them
live. :func:`.outside.check_ledger` compares a store with what bodies wrote outside of it. Of an instance whose run was
replaced only the last run is seen. Times are those of whoever wrote: a clock that was set back shows as S9 or S11.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from stepwell.backend.base import Backend, Entry, Filter, Header, Loaded, Want
from stepwell.backend.liveness import this_process
from stepwell.codec import Codec
from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, fold, from_image, input_of
from stepwell.errors import BackendError, CodecError
from stepwell.flow.plan import NONE, Plan
from stepwell.types import ENDED

from .outside import LedgerLine, check_ledger
from .story import Broken, Story
from .violations import Report, Violation
from .watched import WatchedBackend

__all__ = ["LedgerLine", "Report", "Violation", "WatchedBackend", "check_isolation", "check_ledger", "check_store"]

PAGE: Final = 500
FOREVER_US: Final = 2**62
LAWS_WORK: Final = 1_000_000
SETTLE_LEASE_US: Final = 10_000_000

_HAS_VALUE: Final = (f.StepDone, f.AttemptFailed, f.MessageKept, f.CursorKept)
_DAMAGE: Final = (msgspec.MsgspecError, LookupError, TypeError, ValueError, AttributeError)


def check_store(
    backend: Backend,
    *,
    now_us: int | None = None,
    policies: bool = True,
    max_crashes: int | None = None,
    instances_max: int | None = None,
    entries_max: int | None = None,
    laws_work: int = LAWS_WORK,
) -> Report:
    """Check every instance of a store, newest first, and return what was found.

    Args:
        now_us: wall clock, for what is due; by default this machine's.
        policies: hold runs to the limits of the stored plans (attempts, turns of loops, delivery). These are the limits
            of the code that a graph was seen with last: pass False if they were tuned, which makes no new graph.
        max_crashes: the crash limit that all who worked on the store were given: then no step may have started after so
            many crashes in a row, and none is quarantined after fewer. By default crashes are only counted.
        instances_max: how many instances to check; the others are counted as left out.
        laws_work: how many rows of plans to look at for the engine's laws after each entry, which is nearly all that a
            check costs; beyond that they are checked at the end of each journal only.
        entries_max: do not tell longer journals; their rows are checked all the same.

    Raises:
        BackendError: the store as a whole cannot be read.
    """
    report = Report()
    now_us = time.time_ns() // 1_000 if now_us is None else now_us
    checks = _Checks(backend, report, entries_max, policies, laws_work, max_crashes)
    seen: set[str] = set()
    for header in _headers(backend):
        if instances_max is not None and len(seen) >= instances_max:
            report.left_out += 1
            continue
        if header.instance_id in seen:
            report.add("S7", header.instance_id, "it is listed twice as the last run of its id")
            continue
        seen.add(header.instance_id)
        checks.instance(header.instance_id)
    _check_stuck(backend, report, now_us)
    return report


def check_isolation(backend: Backend, damage: Callable[[], object], instance_id: str) -> Report:
    """Damage the rows of one instance with ``damage`` and check that all others read as before (S14).

    Returns a report in which the damaged instance's own violations are left out.
    """
    others = [header.instance_id for header in _headers(backend) if header.instance_id != instance_id]
    before = [_everything(backend, other) for other in others]
    damage()
    report = Report()
    for other, rows in zip(others, before, strict=True):
        report.examined["S14"] += 1
        try:
            if _everything(backend, other) != rows:
                report.add("S14", other, f"its rows changed with those of {instance_id!r}")
        except BackendError as error:
            report.add("S14", other, f"it cannot be read any more ({type(error).__name__})")
    _check_listed(backend, report, others)
    checks = _Checks(backend, report)
    for other in others:
        if not any(violation.instance_id == other for violation in report.violations):
            checks.instance(other)
    return report


def _check_listed(backend: Backend, report: Report, others: Sequence[str]) -> None:
    try:
        listed = {header.instance_id for header in _headers(backend)}
    except (BackendError, *_DAMAGE) as error:
        report.add("S14", "", f"one damaged row stops the list of all instances ({type(error).__name__})")
        return
    for gone in set(others) - listed:
        report.add("S14", gone, "it is not listed any more")


def _everything(backend: Backend, instance_id: str) -> tuple[Loaded | None, Sequence[Entry]]:
    loaded = backend.load(instance_id)
    return loaded, list(_history(backend, loaded.header)) if loaded is not None else ()


def _headers(backend: Backend) -> Iterator[Header]:
    after: int | None = None
    while page := backend.list(Filter(after=after, limit=PAGE)):
        yield from page
        after = page[-1].instance


def _history(backend: Backend, header: Header) -> Iterator[Entry]:
    """Yield the entries that a header counts; later ones came while we read."""
    after = 0
    while after < header.seq and (page := backend.history(header.instance, after, PAGE)):
        yield from page[: header.seq - after]
        after += len(page)


def _check_stuck(backend: Backend, report: Report, now_us: int) -> None:
    known = {violation.instance_id for violation in report.violations if violation.rule == "L2"}
    report.examined["L2"] += 1
    for stuck in backend.stuck(now_us):
        if stuck.instance_id not in known:
            report.add("L2", stuck.instance_id, f"the store itself says: {stuck.reason}")


class _Checks:
    """The checks of one instance after the other; plans are read once."""

    def __init__(
        self,
        backend: Backend,
        report: Report,
        entries_max: int | None = None,
        policies: bool = True,
        laws_work: int = LAWS_WORK,
        max_crashes: int | None = None,
    ) -> None:
        self.policies, self.laws_work, self.max_crashes = policies, laws_work, max_crashes
        self.backend, self.report, self.entries_max = backend, report, entries_max
        self.codec: Codec = backend.codec
        self.plans: dict[tuple[str, str], Plan] = {}
        self.settled = False

    def instance(self, instance_id: str) -> None:
        """Check one instance; whatever its rows hold, others are checked after it."""
        try:
            self._check(instance_id)
        except Broken as broken:
            self.report.add(broken.rule, instance_id, broken.text)
        except BackendError as error:
            self.report.add("S13", instance_id, f"it cannot be read ({type(error).__name__})")

    def _check(self, instance_id: str) -> None:
        loaded = self.backend.load(instance_id)
        if loaded is None:
            return  # deleted while we read
        header = loaded.header
        self.report.instances += 1
        self._check_inbox(loaded)
        if self.entries_max is not None and header.seq > self.entries_max:
            self.report.left_out += 1
            return
        entries = list(_history(self.backend, header))
        self.report.entries += len(entries)
        if (state := self._told(header, entries)) is not None:
            self._check_rows(loaded, state, self.plan(header.workflow, header.fingerprint))

    def plan(self, name: str, fingerprint: str) -> Plan:
        known = self.plans.get((name, fingerprint))
        if known is None:
            stored = self.backend.plan(fingerprint, name)
            if stored is None:
                raise Broken("S13", f"the plan of workflow {name!r} is missing")
            try:
                known = self.plans[(name, fingerprint)] = Plan.from_bytes(stored)
            except _DAMAGE as error:
                raise Broken("S13", f"the plan of workflow {name!r} is damaged ({type(error).__name__})") from error
        return known

    # --- the journal ------------------------------------------------------------------------------

    def _told(self, header: Header, entries: Sequence[Entry]) -> Frontier | None:
        """Tell the journal; return the state it leads to, or ``None`` if a promise was broken on the way."""
        told = [(entry, self._facts(header, entry)) for entry in entries]
        story = self._story(header, [facts for _, facts in told])
        if entries and entries[0].output is None and _reads_input(story.plan):
            raise Broken("S13", "its input is gone")
        self.laws_work -= len(story.plan.nodes) * len(entries)
        each = self.laws_work >= 0
        found = len(self.report.violations)
        entry = None
        try:
            for entry, facts in told:
                if facts is None:
                    return None
                story.tell(entry, facts, check_laws=each)
            story.check_laws()
        except Broken as broken:
            self.report.add(broken.rule, header.instance_id, broken.text, entry.seq if entry is not None else 0)
        finally:
            self.report.examined.update(story.examined)
        if len(self.report.violations) > found:
            return None
        if len(entries) != header.seq:
            raise Broken("S5", f"it counts {header.seq} entries and has {len(entries)}")
        return story.state

    def _story(self, header: Header, told: Sequence[Sequence[f.Fact] | None]) -> Story:
        """Begin a run's story under its first graph, which is not that of the header once it was moved."""
        moves = (facts[0] for facts in told if facts and isinstance(facts[0], f.RunMoved))
        first = next(moves, None)
        fingerprint = first.source if first is not None else header.fingerprint
        plan_of = partial(self.plan, header.workflow)
        return Story(plan_of(fingerprint), plan_of, policies=self.policies, max_crashes=self.max_crashes)

    def _facts(self, header: Header, entry: Entry) -> Sequence[f.Fact] | None:
        """Return an entry's facts, ``None`` if they are damaged; its value is decoded on the way."""
        self.report.examined["S13"] += 1
        try:
            facts = f.decode(entry.facts)
        except _DAMAGE as error:
            self._damaged(header, entry, f"its facts are damaged ({type(error).__name__})")
            return None
        self.report.facts += len(facts)
        if entry.output is not None:
            try:
                self.codec.decode(entry.output)
            except CodecError as error:
                self._damaged(header, entry, f"its value is damaged ({type(error).__name__})")
        elif facts and isinstance(facts[0], _HAS_VALUE):
            self._damaged(header, entry, f"the value of its {type(facts[0]).__name__} is gone")
        return facts

    def _damaged(self, header: Header, entry: Entry, text: str) -> None:
        self.report.add("S13", header.instance_id, text, entry.seq)

    # --- the rows ---------------------------------------------------------------------------------

    def _hold(self, rule: str, truth: bool, text: str) -> None:
        self.report.examined[rule] += 1
        if not truth:
            raise Broken(rule, text)

    def _check_inbox(self, loaded: Loaded) -> None:
        ids = [message.id for message in loaded.mail]
        self._hold("S8", ids == sorted(set(ids)), "its inbox is out of order or has a message twice")
        given = [message.message_id for message in loaded.mail if message.message_id]
        self._hold("S8", len(given) == len(set(given)), "its inbox has two messages with one id")
        self._hold("S6", loaded.header.mail == len(ids), f"it counts {loaded.header.mail} messages and has {len(ids)}")
        accepted = set(self.backend.received(loaded.header.instance))
        self._hold("S8", accepted.issuperset(given), "its inbox has a message whose id was not accepted")

    def _check_rows(self, loaded: Loaded, state: Frontier, plan: Plan) -> None:
        self._check_image(loaded, state, plan)
        header = loaded.header
        ended = state.ended or None
        self._hold(
            "S6", (header.state if header.state in ENDED else None) == ended, f"it is {header.state}, not {ended}"
        )
        self._hold("S6", (header.ended_us is not None) == bool(ended), "its end has no time, or a time and no end")
        if ended:
            self._hold("S6", header.result_seq == state.result, f"its result is entry {state.result}")
            self._hold("S12", not header.session and header.due_us is None, "it has ended and is held or due")
        elif not header.session:
            self._check_free(loaded, state)

    def _check_image(self, loaded: Loaded, state: Frontier, plan: Plan) -> None:
        """The state that a load would give is the one that the whole journal leads to."""
        if loaded.image is None:
            self._hold("S6", len(loaded.entries) == loaded.header.seq, "it has no image and not all its entries")
            return
        try:
            loads = from_image(loaded.image)
            self._hold("S6", loads.seq == loaded.header.seq - len(loaded.entries), f"its image is of {loads.seq}")
            for entry in loaded.entries:
                fold(plan, loads, f.decode(entry.facts))
        except _DAMAGE as error:
            raise Broken("S13", f"its image is damaged ({type(error).__name__})") from error
        self._hold("S6", loads == state, "its image and the entries after it lead elsewhere than its journal")

    def _check_free(self, loaded: Loaded, state: Frontier) -> None:
        """Check an instance that no live session holds; what one that is over still names is due only once it ends."""
        try:
            self._check_agenda(loaded, state)
        except Broken as broken:
            if broken.rule != "L2" or self.settled:
                raise
            self._end_sessions_that_are_over()
            again = self.backend.load(loaded.header.instance_id)
            if again is not None and again.header.seq == loaded.header.seq and not again.header.session:
                self._check_agenda(again, state)

    def _end_sessions_that_are_over(self) -> None:
        self.settled = True
        session = self.backend.open_session(this_process(), SETTLE_LEASE_US)
        self.backend.claim_due(session, Want([], 0, 0))
        self.backend.end_session(session)

    def _check_agenda(self, loaded: Loaded, state: Frontier) -> None:
        """An unfinished instance that nobody holds is due in time, or waits for a message or a person."""
        header, wanted = loaded.header, state.next_due_us()
        if loaded.mail:
            self._hold("L2", header.due_us == 0, "it has unread messages and is not due at once")
        elif loaded.image is None or loaded.entries:
            self._hold("L2", header.due_us is not None, "it was left in the middle and is never due")
        else:
            self._check_rest(header, state, wanted)

    def _check_rest(self, header: Header, state: Frontier, wanted: int | None) -> None:
        if wanted is not None:
            due = header.due_us is not None and header.due_us <= wanted
            self._hold("L2", due, f"it has to go on at {wanted} and is due at {header.due_us}")
        else:
            self._hold("L2", _is_waiting(state), "it waits for no time, message or person")
        states = {state.status(header.updated_us), state.status(FOREVER_US)}
        self._hold("S6", header.state in states, f"it is said to be {header.state} and is {state.status(FOREVER_US)}")


def _reads_input(plan: Plan) -> bool:
    entrance = input_of(plan, 0)
    return entrance != NONE and plan.used[entrance]


def _is_waiting(state: Frontier) -> bool:
    return bool(state.paused or state.held or any(step.phase == "parked" for step in state.steps.values()))
