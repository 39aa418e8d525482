"""A run that is killed again and again is one trace, as a real receiver sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import stepwell
from stepwell import SqliteBackend, WorkflowClient
from stepwell.observe import ids

from .receiver import Receiver, check_tree, over_http

SCRIPT = Path(__file__).with_name("dying.py")


def live(receiver: Receiver, file: Path, *arguments: str) -> int:
    """Let the program run once, to its end or death, and return how it ended."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env["PYTHONPATH"] = str(Path(stepwell.__file__).parents[1])
    env["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
    return subprocess.run([sys.executable, SCRIPT, file, *arguments], env=env, check=False).returncode


def test_three_workers_and_two_kills_make_one_tree(tmp_path: Path) -> None:
    """No orphan, nothing twice, nothing open; retries and signals are linked, the task's own spans have joined."""
    file = tmp_path / "runs.db"
    with over_http() as receiver:
        assert live(receiver, file, "start") == 0
        assert live(receiver, file, "one", "first") == -signal.SIGKILL
        assert live(receiver, file, "two", "third") == -signal.SIGKILL
        assert live(receiver, file, "three") == 0
        assert live(receiver, file, "signal") == 0
        assert live(receiver, file, "four", "last") == -signal.SIGKILL
        assert live(receiver, file, "five") == 0
        with WorkflowClient(SqliteBackend(file)) as client:
            assert client.status("one").state == "completed"
            recorded = Counter(attempt.path for attempt in client.attempts("one"))
    spans = {span.name: span for span in receiver.spans}
    mine = spans.pop("approval")  # of the sender, in a trace of its own
    tree = [span for span in receiver.spans if span is not mine]
    assert check_tree(tree).name == "request"
    assert Counter(s.attributes["stepwell.path"] for s in tree if "stepwell.path" in s.attributes) == recorded
    assert {span.service for span in tree} >= {"start", "two", "three", "signal", "five"}
    first, second = sorted((s for s in tree if s.name == "second"), key=lambda s: s.start)
    assert second.links == (first.span_id,)
    assert (first.attributes["stepwell.outcome"], first.status) == ("failed", 2)
    assert spans["signal go"].links == (mine.span_id,)
    assert spans["last"].links == (spans["signal go"].span_id, mine.span_id)
    for name, parent in (("inside third", "third"), ("inside right", "right"), ("almost first", "first")):
        assert spans[name].parent_id == spans[parent].span_id


def test_the_same_attempt_has_the_same_id_in_every_process() -> None:
    """And every other attempt, step, run, instance and store another."""
    run = ids.run_hash("store", "one", 1)
    again = ids.span_id(ids.run_hash("store", "one", 1), "a/b", 1)
    others = [
        ids.span_id(run, "a/b", 2),
        ids.span_id(run, "a", "b/1"),
        ids.span_id(run, "a/b1"),
        ids.span_id(ids.run_hash("store", "one", 2), "a/b", 1),
        ids.span_id(ids.run_hash("store", "on", 1), "e", "a/b", 1),
        ids.span_id(ids.run_hash("other", "one", 1), "a/b", 1),
    ]
    assert ids.span_id(run, "a/b", 1) == again
    assert len({again, *others}) == 7
    assert ids.trace_id(run) == ids.trace_id(ids.run_hash("store", "one", 1))
