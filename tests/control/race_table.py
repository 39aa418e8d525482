"""The races: what each begins with, who runs, and every outcome that it may come to."""

from __future__ import annotations

from typing import Final

from .races import (
    Arena,
    Race,
    Told,
    answers,
    answers_once,
    cancels,
    completes,
    deletes,
    fails,
    goes_on,
    held,
    known_and_over,
    left,
    moves,
    nothing,
    over,
    overdue,
    pauses,
    pending,
    purges,
    restores,
    resumes,
    retries,
    starts,
)


def winner(arena: Arena, i: str) -> Told:
    """Say which of message and timeout a signal node took, and that the message is to be seen either way."""
    kinds, pending = arena.kinds(i), arena.referee.client.status(i).pending
    assert kinds["signal taken"] + kinds["time over"] == 1
    assert kinds["signal came"] + len(pending) == 1
    return ("taken" if kinds["signal taken"] else "time over",)


def decided(arena: Arena, i: str) -> Told:
    return (arena.state(i), f"decided {arena.kinds(i)['decided']}")


def came(arena: Arena, i: str) -> Told:
    return (arena.state(i), f"came {arena.kinds(i)['signal came']}")


def retried(arena: Arena, i: str) -> Told:
    return (arena.state(i), f"retried {arena.kinds(i)['retried']}")


def order_of_move(arena: Arena, i: str) -> Told:
    """Say whether the message came under the old graph or the new one."""
    kinds = [event.kind for event in arena.referee.client.history(i)]
    assert (kinds.count("moved"), kinds.count("signal came"), kinds.count("signal taken")) == (1, 1, 1)
    return ("moved first" if kinds.index("moved") < kinds.index("signal came") else "came first",)


def runs(arena: Arena, i: str) -> Told:
    header = arena.backend.header(i)
    return (header.state, f"run {header.run}")


def starts_of(arena: Arena, i: str) -> Told:
    """Say whose instance it is: the restored one has a history, the started one has none yet."""
    return ("restored" if arena.kinds(i)["done"] else "started",)


ENDED, EXISTS, GONE, USAGE = "InstanceEnded", "InstanceExists", "InstanceNotFound", "UsageError"

RACES: Final = [
    Race("signal or timeout", overdue, (answers, goes_on("missing")),
         ("ok", "ok", "taken"), ("ok", "ok", "time over"), marks=winner),
    Race("cancel or finish", pending("chain"), (cancels, goes_on("chain")),
         ("ok", "ok", "cancelled"), (ENDED, "ok", "completed"), frozenset({("ok", "ok", "completed + cancel")})),
    Race("pause or finish", pending("chain"), (pauses, goes_on("chain")),
         ("ok", "ok", "paused"), (ENDED, "ok", "completed"), frozenset({("ok", "ok", "completed + pause")})),
    Race("cancel or pause", left("asking"), (cancels, pauses),
         ("ok", ENDED, "cancelled"), ("ok", "ok", "cancelled")),
    Race("pause or resume", left("asking"), (pauses, resumes),
         ("ok", "ok", "waiting"), ("ok", "ok", "paused")),
    Race("retry or cancel", left("chain"), (retries, cancels),
         ("ok", "ok", "cancelled"), ("ok", ENDED, "running")),
    Race("retry or retry", left("chain"), (retries, retries),
         ("ok", USAGE, "running", "retried 1"), (USAGE, "ok", "running", "retried 1"), marks=retried),
    Race("retry or restart", left("chain"), (retries, starts("restart_if_failed", "chain")),
         ("ok", "ok", "running", "retried 1"), (USAGE, "ok", "running", "retried 1"), marks=retried),
    Race("decide or cancel", held, (completes, cancels),
         ("ok", "ok", "cancelled", "decided 1"), (ENDED, "ok", "cancelled", "decided 0"), marks=decided),
    Race("decide or decide", held, (completes, fails),
         ("ok", USAGE, "waiting", "decided 1"), (ENDED, "ok", "failed", "decided 1"), marks=decided),
    Race("move or signal", left("looping"), (moves, answers),
         ("ok", "ok", "moved first"), ("ok", "ok", "came first"), marks=order_of_move),
    Race("one signal twice", left("missing"), (answers_once, answers_once),
         ("ok", "ok", "waiting", "came 1"), ("ok", "ok", "waiting", "came 1"), marks=came),
    Race("one signal twice, and the runner", overdue, (answers_once, goes_on("missing"), answers_once),
         ("ok", "ok", "ok", "taken"), ("ok", "ok", "ok", "time over"), marks=winner),
    Race("cancel, pause or finish", pending("chain"), (cancels, pauses, goes_on("chain")),
         ("ok", ENDED, "ok", "cancelled"), (ENDED, ENDED, "ok", "completed"),
         frozenset(
             {("ok", "ok", "ok", state) for state in ("cancelled", "paused + cancel", "completed + cancel + pause",
                                                      "completed + pause + cancel", "cancelled + pause")}
             | {("ok", ENDED, "ok", "completed + cancel"), (ENDED, "ok", "ok", "completed + pause")})),
    Race("purge or retry", left("chain"), (purges, retries),
         ("ok", GONE, "gone"), ("ok", "ok", "running")),
    Race("delete or retry", left("chain"), (deletes, retries),
         ("ok", GONE, "gone"), (USAGE, "ok", "running")),
    Race("delete or signal", known_and_over, (deletes, answers_once),
         ("ok", GONE, "gone"), ("ok", "ok", "gone")),
    Race("delete or start", over, (deletes, starts("use_existing", "missing")),
         ("ok", "ok", "waiting"), ("ok", "ok", "gone")),
    Race("delete or replace", over, (deletes, starts("terminate_existing", "missing")),
         ("ok", "ok", "waiting", "run 1"), (USAGE, "ok", "waiting", "run 2"), marks=runs),
    Race("restore or start", nothing, (restores, starts("fail")),
         ("ok", EXISTS, "restored"), (EXISTS, "ok", "started"), marks=starts_of),
    Race("restore or use", nothing, (restores, starts("use_existing")),
         ("ok", "ok", "restored"), (EXISTS, "ok", "started"), marks=starts_of),
    Race("replace or replace", left("asking"), (starts("terminate_existing"), starts("terminate_existing")),
         ("ok", "ok", "pending", "run 3"), ("ok", "ok", "pending", "run 3"), marks=runs),
    Race("replace or signal", left("missing"), (starts("terminate_existing", "missing"), answers),
         ("ok", "ok", "waiting", "run 2", "came 1"), ("ok", "ok", "waiting", "run 2", "came 0"),
         marks=lambda arena, i: (*runs(arena, i), *came(arena, i)[1:])),
]  # fmt: skip
