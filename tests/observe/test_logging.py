"""Log records: who says what, what they carry, and what never is in them."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    CheckpointingRunner,
    InMemoryBackend,
    InProcessRunner,
    InstanceEnded,
    Permanent,
    SqliteBackend,
    StepwellError,
    UsageError,
    WorkflowClient,
    WorkflowFailed,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Holder

from .seen import Seen
from .test_spans import RUNNERS, everywhere, run

CANARY = "canary-8f3a"


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_run_without_trouble_says_nothing_above_debug(
    kind: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Neither stepwell nor what it uses."""
    caplog.set_level(logging.DEBUG)
    run(RUNNERS[kind](tmp_path), everywhere, 1, instance_id="quiet")
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    mine = [record for record in caplog.records if record.name.startswith("stepwell")]
    begun = [record for record in mine if record.getMessage().endswith("begins")]
    assert {(r.instance, r.workflow, r.run, r.attempt) for r in begun} == {("quiet", "everywhere", 1, 1)}  # type: ignore[attr-defined]
    assert sorted(r.path for r in begun) == [  # type: ignore[attr-defined]
        "alone",
        "joined",
        "looped",
        "parallel/inlined",
        "parallel/threaded",
    ]


def test_attempts_are_said_at_debug_with_their_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """An error by its type alone."""

    @task(attempts=1)
    def failing(x: int) -> int:
        raise ValueError(CANARY)

    caplog.set_level(logging.DEBUG, "stepwell")
    with InProcessRunner() as runner, pytest.raises(WorkflowFailed):
        runner.run(failing, 1)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "taken up",
        "attempt 1 of failing begins",
        "attempt 1 of failing failed (ValueError)",
        "let go, failed",
    ]


def test_without_debug_nobody_watches(caplog: pytest.LogCaptureFixture) -> None:
    """So it costs nothing."""
    from stepwell.observe.watching import Facts, Lookout

    facts = Facts("a", 1, "w", "", "")
    caplog.set_level(logging.INFO, "stepwell")
    assert Lookout().run(facts) is None
    caplog.set_level(logging.DEBUG, "stepwell")
    assert Lookout().run(facts) is not None


def test_a_tasks_own_lines_carry_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """With what the task adds to them."""

    @task
    def talking(x: int) -> int:
        task_context().logger.info("said", extra={"mine": 7, "path": "forged"})
        return x

    caplog.set_level(logging.INFO)
    with InProcessRunner() as runner:
        runner.run(talking, 1, instance_id="t")
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("stepwell.task.talking", "said")
    found = {name: vars(record)[name] for name in ("instance", "run", "workflow", "path", "attempt", "mine")}
    assert found == {
        "instance": "t",
        "run": 1,
        "workflow": "talking",
        "path": "talking",
        "attempt": 1,
        "mine": 7,
    }


def test_a_thread_that_is_left_behind_is_said_once_and_which_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """With the attempt it runs for ever."""
    never = threading.Event()

    @task(timeout="20ms")
    def stuck(x: int) -> int:
        never.wait(60)
        return x

    with InProcessRunner() as runner, pytest.raises(WorkflowFailed):
        runner.run(stuck, 1, instance_id="s")
    never.set()
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert (record.instance, record.path, record.attempt) == ("s", "stuck", 1)  # type: ignore[attr-defined]


# --- what is secret ---------------------------------------------------------------------------------------


@task
def keep(secret: str) -> str:
    task_context().heartbeat(secret)
    return secret


@task(attempts=2)
def refuse(secret: str, word: str) -> str:
    raise Permanent(f"sesame {len(secret)} {len(word)}")


@task
def odd(secret: str) -> int:
    return secret  # type: ignore[return-value]


@workflow
def secretive(secret: str) -> str:
    kept = keep(secret)
    word = signal("word", str)
    return refuse(kept, word)


@workflow
def misleading(secret: str) -> int:
    return odd(secret)


def everything(caplog: pytest.LogCaptureFixture, seen: Seen, *things: Any) -> Iterator[str]:
    """Yield all that a program may print of these things, and all that it was told."""
    formatter = logging.Formatter("%(message)s %(name)s")
    for record in caplog.records:
        yield formatter.format(record)
        yield str({name: value for name, value in vars(record).items() if name != "args"})
        yield repr(record.args)
    for span in seen.spans:
        yield span.to_json()
    for thing in things:
        yield repr(thing)
        yield str(thing)
        if isinstance(thing, BaseException):
            yield "".join(line for line in traceback.format_exception(thing) if not line.startswith("    "))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_no_payload_is_ever_shown(kind: str, caplog: pytest.LogCaptureFixture, seen: Seen, tmp_path: Path) -> None:
    """Not an input, output, cursor or signal; not in logs, spans, reprs, errors or tracebacks."""
    caplog.set_level(logging.DEBUG)
    backend: Any = InMemoryBackend() if kind == "memory" else SqliteBackend(tmp_path / "a.db")
    shown: list[Any] = []

    def bad_input() -> object:
        return runner.run(secretive, [CANARY])  # type: ignore[call-overload]

    with CheckpointingRunner(backend) as runner, WorkflowClient(backend) as client:
        runner.start(secretive, CANARY, instance_id="s")
        client.signal("s", "word", CANARY)
        with pytest.raises(WorkflowFailed) as failed:
            runner.resume(secretive, "s")
        with pytest.raises(WorkflowFailed) as misled:
            runner.run(misleading, CANARY, instance_id="m")
        for name in ("s", "m"):
            shown += [client.status(name), client.explain(name), *client.history(name), *client.attempts(name)]
        for wrong, error in ((lambda: client.signal("s", "word", CANARY), InstanceEnded), (bad_input, UsageError)):
            with pytest.raises(error) as caught:
                wrong()
            shown.append(caught.value)
        shown += [runner, client, backend, failed.value, misled.value, failed.value.__cause__, misled.value.__cause__]
    told = list(everything(caplog, seen, *shown))
    assert len(told) > 50
    assert [text for text in told if CANARY in text] == []


def test_a_tasks_own_error_text_is_shown_only_where_it_is_asked_for(
    caplog: pytest.LogCaptureFixture, seen: Seen
) -> None:
    """It is recorded and raised, as a contract; what logs and traces say is its type."""

    @task
    def revealing(x: int) -> int:
        raise ValueError(CANARY)

    caplog.set_level(logging.DEBUG)
    with CheckpointingRunner(InMemoryBackend()) as runner, pytest.raises(WorkflowFailed, match=CANARY):
        runner.run(revealing, 1)
    assert [text for text in everything(caplog, seen) if CANARY in text] == []


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://ann:{CANARY}@127.0.0.1:1/db",
        f"host=127.0.0.1 port=1 password={CANARY}",
        f"postgresql://a:{CANARY}@[b",
    ],
)
def test_a_password_is_shown_to_nobody(dsn: str, caplog: pytest.LogCaptureFixture, seen: Seen) -> None:
    """Not in the error, what led to it, its traceback, or a log."""
    pytest.importorskip("psycopg")
    from stepwell.backend.postgres import PostgresBackend

    caplog.set_level(logging.DEBUG)
    with pytest.raises(StepwellError) as caught:
        PostgresBackend(dsn, timeout="10ms").open_session(Holder("a", "b", 1, 1, ""), 1_000_000)
    assert [text for text in everything(caplog, seen, caught.value) if CANARY in text] == []
