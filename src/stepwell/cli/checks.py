"""What ``doctor`` looks at in an open store. Each check yields findings; one that is in order says so in a line.

What there is to say of the database itself is in ``checks_file`` and ``checks_server``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from stepwell.backend.base import Backend, Filter, Header
from stepwell.errors import StepwellError
from stepwell.timing import SECOND_US

from .text import counted
from .times import span

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow

    from .common import Open

Level: TypeAlias = Literal["ok", "note", "problem"]

INSTANCES_READ: Final = 200  # without --deep; the newest
ENTRIES_READ: Final = 2_000
UNFINISHED_READ: Final = 10_000
LATE_US: Final = 60 * SECOND_US  # a worker that is alive takes up what is due long before
AHEAD_US: Final = 5 * SECOND_US
NAMED: Final = 3


class Finding(NamedTuple):
    """What a check found, and the next command, where there is one."""

    level: Level
    check: str
    text: str
    command: str = ""


def all_findings(at: Open, served: Sequence[AnyWorkflow], *, deep: bool) -> Iterator[Finding]:
    """Yield the findings of every check, in the order in which they should be mended."""
    unfinished = _unfinished(at.backend)
    yield from _clock(at)
    yield from _readable(at, deep=deep)
    yield from _stuck(at)
    yield from _workflows(at, served, unfinished)
    yield from _waiting_for_hands(at, unfinished)
    yield from _waiting_for_people(at)


def _unfinished(backend: Backend) -> list[Header]:
    found: list[Header] = []
    after: int | None = None
    while len(found) < UNFINISHED_READ and (page := backend.list(Filter(unfinished=True, after=after, limit=500))):
        found += page
        after = page[-1].instance
    return found


def _clock(at: Open) -> Iterator[Finding]:
    newest = at.backend.list(Filter(limit=50))
    now_us = at.room.clock.now_us()
    ahead = max((header.updated_us for header in newest), default=0) - now_us
    if ahead > AHEAD_US:
        text = f"the newest write is {span(ahead)} in the future: the clock of this machine or of a worker's is wrong"
        yield Finding("problem", "clock", text, "timedatectl status")
    else:
        yield Finding("ok", "clock", "nothing was written in the future")


# --- what is in it --------------------------------------------------------------------------------


def _readable(at: Open, *, deep: bool) -> Iterator[Finding]:
    """Check that journals, plans and values can be read and tell what the rows say."""
    from stepwell.testing.invariants import check_store

    limits: dict[str, Any] = {} if deep else {"instances_max": INSTANCES_READ, "entries_max": ENTRIES_READ}
    report = check_store(at.backend, policies=False, laws_work=0, **limits)
    read = f"{counted(report.instances, 'instance')}, {counted(report.entries, 'journal entry', 'journal entries')}"
    left = f"; {counted(report.left_out, 'older one')} left out (--deep)" if report.left_out else ""
    broken = [v for v in report.violations if v.rule != "L2"]
    if not broken:
        yield Finding("ok", "values", f"all that was read can be read and agrees: {read}{left}")
    named = {violation.instance_id: violation for violation in reversed(broken)}
    for violation in [*named.values()][:NAMED]:
        text = f"{violation.instance_id}: {violation.text} ({violation.rule})"
        yield Finding("problem", "values", text, at.command("show", violation.instance_id))
    if len(named) > NAMED:
        more = len(named) - NAMED
        yield Finding(
            "problem", "values", f"and {counted(more, 'more instance')} like that", at.command("doctor", "--json")
        )


def _stuck(at: Open) -> Iterator[Finding]:
    stuck = at.client.stuck()
    for each in stuck[:NAMED]:
        yield Finding("problem", "stuck", f"{each.instance_id}: {each.reason}", at.command("explain", each.instance_id))
    if len(stuck) > NAMED:
        yield Finding("problem", "stuck", f"and {counted(len(stuck) - NAMED, 'more instance')} that nothing moves")
    if not stuck:
        yield Finding("ok", "stuck", "everything unfinished has something that will move it")


def _workflows(at: Open, served: Sequence[AnyWorkflow], unfinished: Sequence[Header]) -> Iterator[Finding]:
    """Compare what is unfinished with the code that was named, if any was."""
    if not served:
        return
    known = {workflow.name for workflow in served}
    unknown = Counter(header.workflow for header in unfinished if header.workflow not in known)
    for name, number in unknown.most_common():
        text = f"{counted(number, 'unfinished instance')} of workflow {name}, which the code named here does not have"
        yield Finding("problem", "workflows", text, at.command("ps", "--workflow", name, "--state", "unfinished"))
    changed = 0
    for workflow in served:
        for preview in at.client.preview_change(workflow):
            changed += not preview.moves
            if not preview.moves and changed <= NAMED:
                text = f"{preview.instance_id} does not fit the present graph of {workflow.name}: {preview.obstacle}"
                yield Finding("problem", "workflows", text, at.command("explain", preview.instance_id))
    if not unknown and not changed:
        yield Finding("ok", "workflows", f"all that is unfinished fits {', '.join(sorted(known))}")


def _waiting_for_hands(at: Open, unfinished: Sequence[Header]) -> Iterator[Finding]:
    now_us = at.room.clock.now_us()
    late: defaultdict[tuple[str, str, int], list[int]] = defaultdict(list)
    served = at.backend.served(sorted({header.definition for header in unfinished}))
    for header in unfinished:
        since = max(header.due_us, header.updated_us) if header.due_us is not None else None
        if not header.held_by and since is not None and now_us - since > LATE_US:
            workers = served.get(header.definition, 0)
            late[header.workflow, header.fingerprint if workers else "", workers].append(now_us - since)
    for (name, graph, workers), waits in late.items():
        live = f"queued for {counted(workers, 'live worker')} with its graph {graph[:8]}"
        who = live if workers else "with no worker"
        text = f"{counted(len(waits), 'instance')} of {name} due and {who}, for up to {span(max(waits))}"
        yield Finding("problem", "workers", text, at.command("worker", f"MODULE:{name}"))
    holders = sorted({header.held_by for header in unfinished if header.held_by})
    if not late:
        held = "nothing is held" if not holders else f"{counted(len(holders), 'process', 'processes')} at work"
        yield Finding("ok", "workers", f"nothing has been due for over {span(LATE_US)} without a worker; {held}")


def _waiting_for_people(at: Open) -> Iterator[Finding]:
    held = at.client.count(state="held")
    failed = at.client.count(state="failed")
    if held:
        text = f"{counted(held, 'instance')} held for a person's decision{_ids(at, 'held')}"
        yield Finding("note", "held", text, at.command("ps", "--state", "held"))
    if failed:
        text = f"{counted(failed, 'instance')} failed{_ids(at, 'failed')}; a retry keeps what is done"
        yield Finding("note", "failed", text, at.command("ps", "--state", "failed"))
    total = at.client.count()
    unfinished = at.client.count(state="unfinished")
    yield Finding("ok", "instances", f"{counted(total, 'instance')}, {unfinished} of them unfinished")


def _ids(at: Open, state: Any) -> str:
    newest = [status.instance_id for status in at.client.list(state=state, limit=NAMED)]
    return f", the newest: {', '.join(newest)}" if newest else ""


def unopened(error: StepwellError, shown: str) -> Finding:
    """Return the finding that a database cannot be used."""
    commands = {
        "SchemaTooNew": "pip install --upgrade stepwell",
        "StorageFull": "df -h",
        "BackendReadOnly": "ls -l",
    }
    return Finding("problem", "database", f"{shown}: {error}", commands.get(type(error).__name__, ""))


def worst(findings: Iterable[Finding]) -> Level:
    levels = {finding.level for finding in findings}
    return "problem" if "problem" in levels else "note" if "note" in levels else "ok"
