"""``run``, ``start``, ``worker``, the control commands and upkeep: what they do, as text and as JSON."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from stepwell import CheckpointingRunner, SqliteBackend, signal, task, workflow
from stepwell.backend.base import Filter
from stepwell.backend.liveness import this_process


def state_of(stepwell, instance_id: str) -> str:
    return stepwell("show", instance_id, "--json").json["state"]


# --- run, start, worker ---------------------------------------------------------------------------


def test_run_prints_the_output_and_keeps_it(empty):
    """A second run of the id prints what is recorded."""
    first = empty("run", empty.shop("wide"), "1", "--id", "w-1")
    assert (first.out, first.code) == ("160\n", 0)
    assert empty("run", empty.shop("wide"), "1", "--id", "w-1", "--json").json == {
        "id": "w-1",
        "state": "completed",
        "output": 160,
    }


def test_run_makes_an_id_that_names_the_workflow(empty):
    """If none is given."""
    assert empty("run", empty.shop("wide"), "1", "--json").json["id"].startswith("wide-")


def test_run_goes_on_with_what_exists(stepwell):
    """--resume needs no input; results are kept."""
    stepwell("signal", "gate-1", "go", "false")
    assert stepwell("run", stepwell.shop("gate"), "--resume", "gate-1").out == "false\n"


def test_a_run_that_fails_shows_the_lines_of_the_task_and_how_to_go_on(empty):
    """The task's own frames, one line of ours, exit code 1."""
    said = empty("run", empty.shop("failing"), '"no such card"', "--id", "f-1")
    assert said.code == 1
    assert said.out == ""
    assert "raise ValueError" in said.err
    assert said.err.count("stepwell: ") == 1
    assert "stepwell retry f-1 && stepwell run" in said.err


def test_tasks_get_their_dependencies(empty):
    """--deps names a mapping or a function that makes one."""
    said = empty("run", empty.shop("banking"), "7", "--deps", empty.shop("deps"))
    assert said.out == '"first has 7"\n'


@pytest.mark.parametrize("form", ["argument", "file", "stdin"])
def test_input_comes_from_three_places_and_becomes_the_declared_type(empty, form, tmp_path):
    """A dataclass with a default is made of JSON."""
    text = '{"sku": "pens"}'
    (tmp_path / "order.json").write_text(text, "utf-8")
    words = {"argument": [text], "file": ["--file", "order.json"], "stdin": ["-"]}[form]
    said = empty("start", empty.shop("gate"), *words, "--id", "g-1", stdin=text)
    assert said.out == "g-1  pending\n"
    assert empty("show", "g-1", "--values", "--json").json["values"]["input"] == {"sku": "pens", "count": 1}


def test_an_instance_is_started_in_a_lane(empty):
    """Without one it is in none."""
    for lane in ([], ["--lane", "customer-7"]):
        assert empty("start", empty.shop("wide"), "1", "--id", "-".join(["w", *lane[1:]]), *lane).code == 0
    with closing(SqliteBackend(empty.database)) as backend:
        lanes = [(header.instance_id, header.lane) for header in backend.list(Filter())]
    assert lanes == [("w-customer-7", "customer-7"), ("w", "")]


def test_start_returns_at_once_and_a_worker_does_the_work(empty):
    """--once runs what is due, then leaves."""
    started = empty("start", empty.shop("wide"), "2", "--id", "w-2", "--label", "a=b", "--json").json
    assert (started["state"], started["labels"]) == ("pending", {"a": "b"})
    assert empty("worker", "--once", empty.shop("wide"), "--json").json["instances"][0]["state"] == "completed"
    assert empty("result", "w-2").out == "320\n"


def test_what_happens_to_an_id_that_exists_can_be_said(stepwell):
    """FAIL refuses, TERMINATE_EXISTING begins a new run."""
    start = ("start", stepwell.shop("gate"), '{"sku": "cups"}', "--id", "gate-1")
    assert stepwell(*start).code == 0
    assert stepwell(*start, "--on-conflict", "fail").code == 4
    assert stepwell("start", stepwell.shop("gate"), '{"sku": "x"}', "--id", "gate-1").code == 4
    assert stepwell("start", stepwell.shop("gate"), '{"sku": "x"}', "--id", "gate-1", "--ignore-input").code == 0
    assert stepwell(*start, "--on-conflict", "terminate_existing", "--json").json["run"] == 2


# --- control --------------------------------------------------------------------------------------


def test_pause_resume_cancel_retry(stepwell):
    """Each changes the state, and says how the instance stands then."""
    assert stepwell("pause", "gate-1", "--reason", "lunch", "--by", "ann").out == "gate-1  ‖ paused\n"
    assert stepwell("show", "gate-1", "--json").json["detail"].startswith("it is paused by ann: lunch")
    assert stepwell("resume", "gate-1", "--json").json["state"] == "waiting"
    assert stepwell("cancel", "gate-1").out == "gate-1  ⊘ cancelled\n"
    assert stepwell("retry", "gate-1", "failed-1", "--json").json[0]["state"] == "waiting"
    assert state_of(stepwell, "failed-1") != "failed"


@pytest.mark.parametrize(
    "words",
    [
        ["retry", "gate-1"],
        ["retry", "done-1"],
        ["pause", "held-1"],
        ["pause", "failed-1"],
        ["resume", "held-1"],
        ["cancel", "done-1"],
        ["signal", "done-1", "go", "true"],
        ["decide", "gate-1", "go", "rerun"],
    ],
)
def test_what_the_state_does_not_allow_exits_with_4(stepwell, words):
    """And says in one line what would help."""
    said = stepwell(*words)
    assert (said.code, len(said.err.splitlines())) == (4, 1)
    assert "client." not in said.err


def test_a_signal_of_a_type_that_json_has_needs_no_code(stepwell):
    """The stored plan says that it is a bool."""
    assert stepwell("signal", "gate-1", "go", "true", "--signal-id", "m-1", "--json").json["signal"] == "go"
    assert stepwell("worker", "--once", stepwell.shop("gate")).code == 0
    assert stepwell("result", "gate-1").out == "true\n"


def test_a_signal_of_a_type_of_the_code_is_made_by_the_code(stepwell):
    """Without it, it is refused, as it would hold the instance."""
    payload = '{"granted": true, "by": "ann"}'
    refused = stepwell("signal", "waiting-1", "approve", payload)
    assert refused.code == 2
    assert "--workflow module:workflow" in refused.err
    assert stepwell("signal", "waiting-1", "approve", payload, "--workflow", stepwell.shop("checkout")).code == 0
    assert stepwell("run", stepwell.shop("checkout"), "--resume", "waiting-1").json.startswith("shipped")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["go", "1"], "not a bool"),
        (["stop", "1"], "the signals it awaits: go"),
        (["go", "{"], "is not JSON"),
        (["go", "yes"], "'\"yes\"'"),
    ],
)
def test_a_signal_that_does_not_fit_is_refused_at_the_sender(stepwell, words, message):
    """With what would fit."""
    said = stepwell("signal", "gate-1", *words)
    assert said.code == 2
    assert message in said.err


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["complete", "--value", '"it left"'], "completed"),
        (["fail", "--reason", "it did not leave"], "failed"),
        (["rerun"], "running"),
    ],
)
def test_a_decision_ends_a_hold(stepwell, words, state):
    """In each of the three ways."""
    said = stepwell("decide", "held-1", "wire", *words, "--by", "ann", "--json")
    assert said.json["state"] == state


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["complete"], "--value"),
        (["fail"], "--reason"),
        (["rerun", "--value", "1"], "--value and --file go with complete"),
        (["complete", "--value", "1"], "not a str"),
        (["maybe"], "is not one of"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused(stepwell, words, message):
    """And the instance stays held."""
    said = stepwell("decide", "held-1", "wire", *words)
    assert said.code == 2
    assert message in said.err
    assert state_of(stepwell, "held-1") == "held"


# --- upkeep ---------------------------------------------------------------------------------------


def test_purge_says_first_what_it_would_remove(stepwell):
    """--dry-run counts what the purge removes, and no more."""
    before = len(stepwell("ps", "--json").json["instances"])
    would = stepwell("purge", "--keep", "1", "--dry-run", "--json").json
    assert would == {"removed": 0, "would_remove": 2}
    assert len(stepwell("ps", "--json").json["instances"]) == before
    assert stepwell("purge", "--keep", "1").out == "2 instances removed\n"
    assert len(stepwell("ps", "--json").json["instances"]) == before - 2
    assert stepwell("purge", "--older-than", "30d").out == "0 instances removed\n"


def test_migrate_says_which_schema_there_is(stepwell):
    """An SQLite file is brought up when it is opened."""
    assert stepwell("migrate").out.startswith("sqlite:")
    assert isinstance(stepwell("migrate", "--json").json["schema"], int)


def test_doctor_finds_a_sound_store_sound(stepwell):
    """Held and failed instances are notes; each names the next command."""
    said = stepwell("doctor", env={"COLUMNS": "200"})
    assert said.code == 0
    assert "Sound, with 2 things to look at." in said.out
    assert "nothing has been due for over" in said.out
    assert "→ stepwell ps --state held" in said.out
    assert stepwell("doctor", "--strict").code == 1
    findings = stepwell("doctor", "--json").json["findings"]
    assert {"database", "permissions", "clock", "values", "stuck", "workers"} <= {f["check"] for f in findings}


def test_doctor_finds_what_no_worker_takes_up(stepwell, monkeypatch):
    """What has been due for too long is a problem, and the next command starts a worker for it."""
    monkeypatch.setattr("stepwell.cli.checks.LATE_US", -1)
    said = stepwell("doctor", "--json")
    late = [finding for finding in said.json["findings"] if finding["check"] == "workers"]
    assert said.code == 1
    assert {finding["level"] for finding in late} == {"problem"}
    assert all(finding["command"].startswith("stepwell worker MODULE:") for finding in late)


def test_a_hold_for_a_changed_graph_is_ended_by_code_that_fits(empty):
    """So that is the first way out; a decision alone only lets the graphs be compared once more."""

    @task
    def first(n: int) -> int:
        return n

    @task
    def other(n: int) -> int:
        return -n

    def graph(step):
        @workflow("parted")
        def parted(n: int) -> int:
            step(n)
            return signal("go", int)

        return parted

    with closing(SqliteBackend(empty.database)) as backend, CheckpointingRunner(backend) as runner:
        runner.start(graph(first), 1, instance_id="p-1")
        runner.recover([graph(other)])
        (held,) = [each for each in empty("explain", "p-1", "--json").json["reasons"] if each["kind"] == "held"]
        assert [command.split()[1] for command in held["commands"]] == ["worker", "decide", "decide"]
        assert "once code that fits runs" in empty("explain", "p-1").out
        assert runner.start(graph(first), 1, instance_id="p-1").state == "waiting"


def test_who_is_waited_for_is_told(stepwell, monkeypatch):
    """Where live workers have the code of a graph, its instances are queued for them."""
    monkeypatch.setattr("stepwell.cli.checks.LATE_US", -1)
    with closing(SqliteBackend(stepwell.database)) as backend:
        session, header = backend.open_session(this_process("slow"), 30_000_000), backend.header("pending-1")
        backend.serve(session, [header.definition])
        findings = stepwell("doctor", "--json").json["findings"]
        told = [each["text"] for each in findings if each["check"] == "workers"]
        graph = header.fingerprint[:8]
        assert any(f"of gate due and queued for 1 live worker with its graph {graph}" in text for text in told), told
        assert all("queued" in text or "with no worker" in text for text in told)
        assert f"1 live worker has the code of its graph ({graph} of gate)" in stepwell("explain", "pending-1").out


def test_doctor_finds_what_the_code_does_not_have(stepwell):
    """Unfinished instances of workflows that are not named."""
    said = stepwell("doctor", stepwell.shop("checkout"))
    assert said.code == 1
    assert "of workflow gate, which the code named here does not have" in said.out


@pytest.mark.broken_store
def test_doctor_finds_a_value_that_cannot_be_read(stepwell):
    """One damaged byte in a journal, and the instance is named with the next command."""
    import apsw

    connection = apsw.Connection(str(stepwell.database))
    connection.execute("UPDATE journal SET output = x'00010203' WHERE output IS NOT NULL AND seq = 1")
    connection.close()
    said = stepwell("doctor", "--json")
    problems = [finding for finding in said.json["findings"] if finding["level"] == "problem"]
    assert said.code == 1
    assert {"values"} == {finding["check"] for finding in problems}
    assert problems[0]["command"].startswith("stepwell show ")


@pytest.mark.broken_store
def test_an_instance_that_cannot_be_read_hides_no_other(stepwell):
    """ps lists all, show says in one line that this one is damaged."""
    import apsw

    connection = apsw.Connection(str(stepwell.database))
    connection.execute(
        "UPDATE instance SET image = NULL, image_seq = 0 WHERE instance_id = 'gate-1'",
    )
    connection.execute(
        "UPDATE journal SET facts = x'ff' WHERE instance = (SELECT id FROM instance WHERE instance_id = 'gate-1')"
    )
    connection.close()
    listed = {row["id"]: row for row in stepwell("ps", "--json").json["instances"]}
    assert len(listed) > 8
    assert listed["gate-1"]["next"] == "cannot be read: doctor"
    for name in ("show", "tree", "explain", "watch"):
        said = stepwell(name, "gate-1")
        assert (said.code, len(said.err.splitlines())) == (7, 1), name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_for_this_command(stepwell, shell):
    """Each shell gets its own."""
    assert "_STEPWELL_COMPLETE" in stepwell("completion", shell).out
    assert json.loads(stepwell("completion", shell, "--json").out)["shell"] == shell


def test_the_shell_completes_ids(stepwell):
    """From the database, those that begin so."""
    said = stepwell(env={"_STEPWELL_COMPLETE": "bash_complete", "COMP_WORDS": "stepwell show pend", "COMP_CWORD": "2"})
    assert sorted(said.out.split()) == ["plain,pending-1", "plain,pending-2"]
