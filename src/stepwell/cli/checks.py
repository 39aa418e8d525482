"""What ``doctor`` looks at. Each check yields findings; one that is in order says so in a line."""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
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
SPACE_LEAST: Final = 200 * 1024 * 1024
QUICK_CHECK_MOST: Final = 256 * 1024 * 1024
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
    yield from _database(at, deep=deep)
    yield from _permissions(at)
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


# --- the database ---------------------------------------------------------------------------------


def schema_version(backend: Backend) -> int | None:
    """Return the schema's number, ``None`` where the store does not say."""
    path = _file(backend)
    if path is None:
        return None
    return int(_pragma(backend, "user_version"))


def _file(backend: Backend) -> Path | None:
    from stepwell.backend.sqlite import SqliteBackend

    return Path(_sqlite_path(backend)) if isinstance(backend, SqliteBackend) else None


def _sqlite_path(backend: Any) -> str:
    connection = backend.connect()
    try:
        return str(connection.db_filename("main"))
    finally:
        connection.close()


def _pragma(backend: Any, name: str) -> Any:
    connection = backend.connect()
    try:
        return connection.pragma(name)
    finally:
        connection.close()


def _database(at: Open, *, deep: bool) -> Iterator[Finding]:
    path, codec = _file(at.backend), at.backend.codec.name
    if path is None:
        yield from _server(at, codec)
        return
    size = path.stat().st_size
    version = schema_version(at.backend)
    yield Finding("ok", "database", f"{path} opens: {_bytes(size)}, schema {version}, values are {codec}")
    if size > QUICK_CHECK_MOST and not deep:
        yield Finding("ok", "pages", f"not checked, as the file is large; {at.command('doctor', '--deep')} does")
        return
    said = _pragma(at.backend, "quick_check")
    if said == "ok":
        yield Finding("ok", "pages", "SQLite finds the file sound")
    else:
        text = f"SQLite says: {said}. Stop all workers and bring back a copy"
        yield Finding("problem", "pages", text, f"sqlite3 {path} .recover")


def _server(at: Open, codec: str) -> Iterator[Finding]:
    """Ask the server who it is and what time it has: claims go by its clock, timers by ours."""
    connection: Any = at.backend.connect()
    try:
        asked = "SELECT current_setting('server_version'), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        version, their_us = connection.execute(asked).fetchone()
    finally:
        connection.close()
    yield Finding("ok", "database", f"{at.place.shown} answers: PostgreSQL {version}, values are {codec}")
    apart = abs(int(their_us) - at.room.clock.now_us())
    if apart > AHEAD_US:
        text = f"this machine's clock and the server's are {span(apart)} apart, so timers fire at the wrong time"
        yield Finding("problem", "clock", text, "timedatectl status")


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _permissions(at: Open) -> Iterator[Finding]:
    path = _file(at.backend)
    if path is None:
        return
    folder, mode = path.parent, stat.S_IMODE(path.stat().st_mode)
    if not os.access(folder, os.W_OK):
        text = f"{folder} cannot be written, and SQLite keeps two more files beside its own there"
        yield Finding("problem", "permissions", text, f"chmod u+w {folder}")
    elif mode & 0o077:
        text = f"others on this machine may read or write {path.name} (mode {mode:04o}), with all values in it"
        yield Finding("note", "permissions", text, f"chmod 600 {path}")
    else:
        yield Finding("ok", "permissions", "the file is its owner's alone, and its folder can be written")
    free = shutil.disk_usage(folder).free
    if free < SPACE_LEAST:
        yield Finding("problem", "disk", f"only {_bytes(free)} are free", at.command("purge", "--older-than", "30d"))


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
        told = f"{counted(len(holders), 'process', 'processes')} at work" if holders else "nobody is at work"
        yield Finding("ok", "workers", f"nothing due waits for a worker; {told}")


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
