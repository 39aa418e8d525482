"""The rows: what is measured at which size, and what is to be reached."""

from __future__ import annotations

from typing import Literal, NamedTuple

Against = Literal["", "raw", "sayiir", "growth"]


class Goal(NamedTuple):
    """``reach`` and ``aim`` of a figure: of its own (``""``), of its ratio to raw or to sayiir, or of its growth."""

    against: Against
    reach: float
    aim: float


class Row(NamedTuple):
    """One line of the table.

    ``more`` says that more is better. With ``base``, the line shows how the figure grows from that size to ``size``.
    """

    key: str
    what: str
    method: str
    size: int
    unit: str
    goal: Goal | None = None
    figure: str = ""
    more: bool = False
    base: int | None = None


FLAT = Goal("growth", 1.3, 1.1)  # "flat", with room for noise
IN_MEMORY = Goal("", 2, 0.5)
MEMORY = Goal("", 6, 3)
SQLITE = Goal("raw", 1.4, 1.2)
POSTGRES = SQLITE
SHARE = Goal("raw", 0.20, 0.40)
SHARE_POSTGRES = Goal("raw", 0.15, 0.40)
PICKUP = Goal("", 3_000, 1_500)


def rows(quick: bool) -> list[Row]:
    """Return all rows, in the order of their keys; ``quick`` takes smaller sizes, whose figures mean less."""
    k1, k5, k2 = (200, 1_000, 400) if quick else (1_000, 5_000, 2_000)
    signals = 40 if quick else 100
    few, waiting = (0, 2_000) if quick else (0, 100_000)
    return [
        *(Row("a", "chain, no store", "chain_in_memory", n, "us/task", IN_MEMORY) for n in (4, 10, k1, k5)),
        Row("a", "growth of that", "chain_in_memory", k5, "x", FLAT, base=k1),
        Row("b", "durable chain, memory", "chain_memory", k1, "us/step", MEMORY),
        Row("c", "durable chain, SQLite full", "chain_sqlite", k1, "us/step", SQLITE),
        Row("c", "the same, DBOS put into WAL", "chain_sqlite_wal", k1, "us/step", SQLITE),
        Row("d", "instances x 4 steps, SQLite full", "many_sqlite", k2, "wf/s", SHARE, more=True),
        Row("e", "instances x 4 steps, memory", "many_memory", k2, "wf/s", Goal("sayiir", 1.5, 3), more=True),
        Row("e", "instances x 4 steps, no store", "many_in_memory", k2, "wf/s", more=True),
        Row("f", "resume, finished steps, SQLite", "resume_sqlite", k1, "ms", Goal("", 8, 3)),
        Row("f", "resume, finished steps, memory", "resume_memory", k1, "ms", Goal("", 8, 3)),
        Row("g", "bytes per step, SQLite", "bytes_sqlite", k1, "B/step", Goal("", 450, 350)),
        Row("h", "import", "IMPORT", 0, "ms", Goal("", 60, 30)),
        Row("h", "import of all a durable run needs", "IMPORT_DURABLE", 0, "ms"),
        Row("i", "fork, no store", "fork_in_memory", k1, "us/branch"),
        Row("i", "fork, no store", "fork_in_memory", k5, "us/branch"),
        Row("i", "growth of that", "fork_in_memory", k5, "x", FLAT, base=k1),
        Row("i", "fork, no store, run_in=inline", "fork_inline_in_memory", k1, "us/branch"),
        Row("i", "fork, no store, async", "fork_async_in_memory", k1, "us/branch"),
        Row("i", "fork, memory", "fork_memory", k1, "us/branch"),
        Row("i", "fork, SQLite full", "fork_sqlite", k1, "us/branch"),
        Row("i", "fork, SQLite full, async", "fork_async_sqlite", k1, "us/branch"),
        *(Row("j", "loop, no store", "loop_in_memory", n, "us/turn") for n in (10, k1, k5)),
        Row("j", "growth of that", "loop_in_memory", k5, "x", FLAT, base=k1),
        *(Row("j", "loop, memory", "loop_memory", n, "us/turn") for n in (10, k1, k5)),
        Row("j", "growth of that", "loop_memory", k5, "x", FLAT, base=k1),
        *(Row("j", "loop, SQLite full", "loop_sqlite", n, "us/turn") for n in (10, k1, k5)),
        Row("j", "growth of that", "loop_sqlite", k5, "x", FLAT, base=k1),
        *(Row("k", "chain, no store", "chain_in_memory", n, "us/task") for n in (10, k5)),
        Row("k", "growth of that", "chain_in_memory", k5, "x", FLAT, base=10),
        *(Row("k", "durable chain, memory", "chain_memory", n, "us/step") for n in (10, k5)),
        Row("k", "growth of that", "chain_memory", k5, "x", FLAT, base=10),
        *(Row("k", "durable chain, SQLite full", "chain_sqlite", n, "us/step") for n in (10, k5)),
        Row("k", "growth of that", "chain_sqlite", k5, "x", FLAT, base=10),
        Row("l", "signal to next step, memory, p50", "signal_memory", signals, "us", figure="p50"),
        Row("l", "signal to next step, memory, p99", "signal_memory", signals, "us", figure="p99"),
        Row("l", "signal to next step, SQLite, p50", "signal_sqlite", signals, "us", figure="p50"),
        Row("l", "signal to next step, SQLite, p99", "signal_sqlite", signals, "us", figure="p99"),
        *(
            Row("m", f"signal to a waiting run's next step, {where}, {p}", method, signals // 2, "us", figure=p)
            for where, method in (
                ("memory", "answer_memory"),
                ("SQLite", "answer_sqlite"),
                ("SQLite, two processes", "answer_apart"),
            )
            for p in ("p50", "p99")
        ),
        *(
            Row("n", f"client: {what}, SQLite", "client_calls", k1, unit, figure=figure)
            for what, unit, figure in (
                ("status", "us", "status"),
                ("explain", "us", "explain"),
                ("list, page of 100", "us", "list"),
                ("pause or resume", "us", "pause"),
                ("retry, and the step", "us", "retry"),
                ("preview_change", "us/inst", "preview"),
            )
        ),
        Row("o", "plain step, SQLite full", "transactional", 20, "us/step", figure="plain"),
        Row("o", "step in its own transaction", "transactional", 20, "us/step", figure="own"),
        Row("p", "waiting instances, to create, SQLite", "parked", waiting, "us", figure="create"),
        Row("p", "waiting instances, SQLite", "parked", waiting, "B", figure="bytes"),
        *(
            row
            for what, unit, figure in (
                ("recover beside waiting ones", "ms", "recover"),
                ("memory that takes", "MiB", "mib"),
                ("signal to a served one, p50", "us", "p50"),
                ("signal to a served one, p99", "us", "p99"),
                ("timer of a served one, p50", "us", "timer_p50"),
                ("timer of a served one, p99", "us", "timer_p99"),
                ("run of one step beside them", "us", "run"),
                ("resume by id beside them", "us", "resume"),
            )
            for row in (
                *(Row("p", what, "parked", n, unit, figure=figure) for n in (few, waiting)),
                Row("p", "growth of that", "parked", waiting, "x", FLAT if figure != "mib" else None, figure, base=few),
            )
        ),
        Row("q", "durable chain, PostgreSQL", "chain_postgres", k1, "us/step", POSTGRES),
        Row("q", "resume, finished steps, PostgreSQL", "resume_postgres", k1, "ms", Goal("", 8, 3)),
        Row("q", "bytes per step, PostgreSQL", "bytes_postgres", k1, "B/step", Goal("", 450, 350)),
        Row("r", "instances x 4 steps, PostgreSQL", "many_postgres", k2, "wf/s", SHARE_POSTGRES, more=True),
        *(
            Row("s" if store == "PostgreSQL" else "v", f"{store}, {many}: {what}", method, k2, unit, goal, figure, more)
            for store, many, method in (
                ("PostgreSQL", "1 worker", "pool_postgres"),
                ("PostgreSQL", "2 workers", "pool_two_postgres"),
                ("SQLite", "1 worker", "pool_sqlite"),
                ("SQLite", "2 workers", "pool_two_sqlite"),
            )
            for what, unit, figure, goal, more in (
                ("first submit to last end", "wf/s", "", None, True),
                ("first to last body", "wf/s", "drain", SHARE_POSTGRES, True),
                ("steps run once more", "", "again", None, False),
            )
        ),
        Row("t", "sync tasks in threads", "threads", k1, "us/task"),
        *(
            Row("u", f"{store}, idle worker: submit to {what}, {p}", method, signals, "us", goal, figure + p)
            for store, method in (("PostgreSQL", "pickup_postgres"), ("SQLite", "pickup_sqlite"))
            for what, figure in (("body", ""), ("result", "result_"))
            for p, goal in (("p50", PICKUP if not figure else None), ("p99", None))
        ),
        *(
            Row("w", f"{what}, PostgreSQL: {each}", method, size, unit, figure=figure)
            for what, method, size in (
                ("a chain's step", "cost_chain_postgres", k1),
                ("a step of many", "cost_many_postgres", k2),
                ("a step in a pool of 2", "cost_pool_postgres", k2),
            )
            for each, unit, figure in (("statements", "/step", "statements"), ("WAL", "B/step", "wal"))
        ),
        Row("x", "10 idle workers: statements, all", "idle_postgres", 3 if quick else 10, "/s", figure="statements"),
        Row("x", "10 idle workers: CPU, all", "idle_postgres", 3 if quick else 10, "ms/s", figure="cpu"),
        *(
            row
            for what, figure in (("claim, nothing due", "nothing"), ("claim of the only one due", "one"))
            for row in (
                *(Row("y", f"{what}, beside waiting", "claim_postgres", n, "us", figure=figure) for n in (0, waiting)),
                Row("y", "growth of that", "claim_postgres", waiting, "x", FLAT, figure, base=0),
            )
        ),
    ]
