"""What starting under an id that exists leads to: the one table that is tested and printed.

``python -m tests.control.conflict_table > docs/conflicts.md`` writes the page anew; a test says when that is due.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

POLICIES: Final = ("fail", "use_existing", "terminate_existing", "restart_if_failed")

# --- the table: what becomes of the instance, by its state and the policy -----------------------------------

STATES: Final = {
    "none": "no instance has the id",
    "pending": "created, and nobody has claimed it yet",
    "running": "begun, and nobody holds it: its process died, or gave it back",
    "running elsewhere": "another live session holds it",
    "waiting": "for a delay or a signal",
    "paused": "until it is resumed",
    "held": "for a person's decision",
    "completed": "",
    "failed": "",
    "cancelled": "",
}

TABLE: Final[dict[str, tuple[str, str, str, str]]] = {
    # state: fail, use_existing, terminate_existing, restart_if_failed
    "none": ("created", "created", "created", "created"),
    "pending": ("exists", "attached", "replaced", "attached"),
    "running": ("exists", "attached", "replaced", "attached"),
    "running elsewhere": ("exists", "attached", "replaced", "attached"),
    "waiting": ("exists", "attached", "replaced", "attached"),
    "paused": ("exists", "attached", "replaced", "attached"),
    "held": ("exists", "attached", "replaced", "attached"),
    "completed": ("exists", "attached", "replaced", "attached"),
    "failed": ("exists", "attached", "replaced", "reopened"),
    "cancelled": ("exists", "attached", "replaced", "reopened"),
}

# The same for an id that does exist, where the caller brings something else than the instance has.
OTHER_WORKFLOW: Final = ("exists", "conflict", "conflict", "conflict")
OTHER_INPUT: Final = ("exists", "mismatch", "replaced", "mismatch")  # with on_mismatch="ignore": as TABLE says

REFUSALS: Final = {"exists": "InstanceExists", "conflict": "InstanceConflict", "mismatch": "InputMismatch"}

# --- how it looks afterwards, through each door -------------------------------------------------------------


class After(NamedTuple):
    """What a call leaves: the state, how many entries the journal has, and which bodies the call ran."""

    state: str
    entries: int
    ran: tuple[str, ...] = ()


#: the instance before the call, for a workflow of first(x), second(x), a signal, last(x, signal)
BEFORE: Final = {
    "pending": After("pending", 1),
    "running": After("running", 2),
    "running elsewhere": After("running", 2),
    "waiting": After("waiting", 3),
    "paused": After("paused", 4),
    "held": After("held", 4),
    "completed": After("completed", 5),
    "failed": After("failed", 3),
    "cancelled": After("cancelled", 4),
}

#: ``run`` and ``start`` go on as far as it goes; at rest or ended, it stays as it was
RUNNER: Final = {
    "created": After("waiting", 3, ("first", "second")),
    "replaced": After("waiting", 3, ("first", "second")),
    "attached pending": After("waiting", 3, ("first", "second")),
    "attached running": After("waiting", 3, ("second",)),
    "reopened failed": After("waiting", 5, ("second",)),
    "reopened cancelled": After("waiting", 5),
}

#: a client leaves it for whoever claims it
CLIENT: Final = {
    "created": After("pending", 1),
    "replaced": After("pending", 1),
    "reopened failed": After("running", 4),
    "reopened cancelled": After("waiting", 5),
}

#: what ``run`` raises where the instance does not go on to an output; ``start`` and the client return its state
ENDS: Final = {
    "failed": "WorkflowFailed",
    "cancelled": "WorkflowCancelled",
    "paused": "InstancePaused",
    "held": "InstanceHeld",
}

# --- another graph of the same workflow ---------------------------------------------------------------------
# It is no matter of the policy: it counts for whoever goes on with the instance. Here the first step has another
# name, so that nothing of the old graph can be moved to the new one.

OTHER_GRAPH: Final[dict[str, str | After]] = {  # of a runner; a client does as TABLE says
    "attached pending": After("held", 2),
    "attached running": After("held", 3),
    "attached waiting": After("held", 4),
    "attached paused": After("held", 5),
    "reopened failed": "conflict",
    "reopened cancelled": "conflict",
}

DOORS: Final = ("run", "start", "client", "unheld")  # the last one is what the client calls


class Cell(NamedTuple):
    """One question to the table."""

    policy: str
    state: str
    workflow: str = "same"
    graph: str = "same"
    input: str = "same"
    on_mismatch: str = "fail"


class Expected(NamedTuple):
    """The answer: what becomes of the instance, the error that says so, and how it looks afterwards."""

    result: str
    error: str | None
    after: After | None


def cells(policy: str, state: str) -> list[Cell]:
    """Return every combination of what the caller may bring."""
    return [
        Cell(policy, state, workflow, graph, value, mismatch)
        for workflow, graph in (("same", "same"), ("same", "other"), ("other", "other"))
        for value in ("same", "other")
        for mismatch in ("fail", "ignore")
    ]


def result_of(cell: Cell) -> str:
    """Look up what becomes of the instance, whichever door is used."""
    column = POLICIES.index(cell.policy)
    if cell.state != "none" and cell.workflow == "other":
        return OTHER_WORKFLOW[column]
    if cell.state != "none" and cell.input == "other" and cell.on_mismatch == "fail":
        return OTHER_INPUT[column]
    return TABLE[cell.state][column]


def expected(cell: Cell, door: str) -> Expected:
    """Return what a call through one of ``DOORS`` comes to."""
    result, before = result_of(cell), BEFORE.get(cell.state)
    if result in REFUSALS:
        return Expected(result, REFUSALS[result], before)
    where = f"{result} {cell.state}" if result in ("attached", "reopened") else result
    if door in ("client", "unheld"):
        return Expected(result, None, CLIENT.get(where, before))
    if where == "attached running elsewhere":
        return Expected(result, "AlreadyRunning", before)
    after = RUNNER.get(where, before)
    if cell.graph == "other" and (otherwise := OTHER_GRAPH.get(where)):
        if isinstance(otherwise, str):
            return Expected(otherwise, REFUSALS[otherwise], before)
        after = otherwise
    assert after is not None
    return Expected(result, ENDS.get(after.state) if door == "run" else None, after)


# --- as a page ----------------------------------------------------------------------------------------------

_WORDS: Final = {
    "created": "a new run",
    "exists": "`InstanceExists`",
    "attached": "attach",
    "replaced": "**replace**",
    "reopened": "**reopen**",
    "conflict": "`InstanceConflict`",
    "mismatch": "`InputMismatch`",
}

_INTRO: Final = """\
# Starting under an id that exists

`run`, `start` and the client's `start` take an `instance_id` and an `on_conflict` policy. What they do with an instance
that has the id already is this table and nothing else. It is decided on the instance's row as it is in the transaction
that acts on it, so two callers never both create, replace or reopen it.

<!-- written by `python -m tests.control.conflict_table`, from the data that the tests check -->
"""

_MEANING: Final = """
**a new run** is created under the id. **attach** goes on with the run that is there: a runner takes it up and goes as
far as it can, a client returns its status. **replace** cancels the run that is there and begins the next one, in one
transaction; whoever works on the old one can write no more and is told so by `WorkflowCancelled`, and its messages are
gone. **reopen** lets the same run go on where it stopped, with its results kept and its attempts afresh. A refusal
leaves everything as it is.

## How it looks afterwards

The state after the call, and the step bodies that it ran, for a workflow of `first`, `second` and then a signal.
"""

_NOTES: Final = """
A runner cannot attach to what another live session holds: that is `AlreadyRunning`, and `runner.result()` waits for its
end. On an ended, paused or held instance `run` returns or raises its recorded end:
{ends}.

## Another graph of the same workflow

The graph is no matter of the policy. A client takes no notice of it, as it runs nothing. A runner moves an unfinished
instance to the new graph if what it has done is there too, else it is held (`changed`). One that failed or was
cancelled and cannot be moved is not reopened: `InstanceConflict`, and it is left untouched. Reading the end of an
ended one and replacing it need no graph.

## In a transaction of your own

Only `fail` and `use_existing` are allowed there: the others write to a run that another process may be working on.
"""


def page() -> str:
    """Return ``docs/conflicts.md``."""
    ends = ", ".join(f"`{error}` if {state}" for state, error in ENDS.items())
    return "".join([_INTRO, *_policies(), _MEANING, *_afterwards(), _NOTES.format(ends=ends)])


def _policies() -> list[str]:
    lines = [_row("the instance", *(f"`{policy}`" for policy in POLICIES)), _row(*["---"] * 5)]
    for state, meaning in STATES.items():
        lines.append(_row(f"{state}: {meaning}" if meaning else state, *(_WORDS[r] for r in TABLE[state])))
    lines.append(_row("*of another workflow*", *(_WORDS[r] for r in OTHER_WORKFLOW)))
    ignoring = '*of another input*, unless `on_mismatch="ignore"`'
    lines.append(_row(ignoring, *(_WORDS[r] for r in OTHER_INPUT)))
    return ["\n", *lines]


def _afterwards() -> list[str]:
    lines = ["\n", _row("what became of it", "`run`, `start`", "client"), _row(*["---"] * 3)]
    for where in ("created", "replaced", *(f"attached {s}" for s in BEFORE), "reopened failed", "reopened cancelled"):
        result, _, state = where.partition(" ")
        policy = {"reopened": "restart_if_failed", "replaced": "terminate_existing"}.get(result, "use_existing")
        cell = Cell(policy, state or ("none" if result == "created" else "waiting"))
        lines.append(_row(where.replace(" ", ": ", 1), *(_after(cell, door) for door in ("start", "client"))))
    return lines


def _after(cell: Cell, door: str) -> str:
    answer = expected(cell, door)
    if answer.error is not None:
        return f"`{answer.error}`"
    assert answer.after is not None
    ran = ", ".join(f"`{name}`" for name in answer.after.ran)
    return f"{answer.after.state}; ran {ran}" if ran else answer.after.state


def _row(*columns: str) -> str:
    return f"| {' | '.join(columns)} |\n".replace("| --- |", "|---|").replace(" --- |", "---|")


if __name__ == "__main__":
    sys.stdout.write(page())
