"""``ps``, ``show``, ``tree``, ``explain``, ``result``, ``watch`` and ``graph``: what they print, as text and JSON."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

import pytest

EVERY = ["waiting-1", "gate-1", "done-1", "failed-1", "backoff-1", "paused-1", "cancelled-1", "held-1", "pending-1"]


# --- ps -------------------------------------------------------------------------------------------


def test_ps_says_of_each_instance_where_it_is_and_what_moves_it(stepwell):
    """A row has id, workflow, state, step, age, and what is next."""
    rows = {line.split()[0]: line for line in stepwell("ps").out.splitlines()}
    assert rows["ID"].split() == ["ID", "WORKFLOW", "STATE", "STEP", "AGE", "NEXT"]
    assert "failed" in rows["failed-1"]
    assert rows["failed-1"].endswith("retry")
    assert rows["held-1"].endswith("decide")
    assert "approve" in rows["waiting-1"]
    assert "signal approve, or in 1d 23h" in rows["waiting-1"]
    assert rows["gate-1"].endswith("signal go")
    assert rows["pending-1"].endswith("due, no worker")
    assert "flaky" in rows["backoff-1"]


def test_ps_as_json_has_the_same(stepwell):
    """Times are in UTC, the steps are paths."""
    rows = {row["id"]: row for row in stepwell("ps", "--json").json["instances"]}
    assert rows["waiting-1"]["steps"] == ["approve"]
    assert rows["waiting-1"]["labels"] == {"customer": "ann"}
    assert rows["waiting-1"]["created"].endswith("Z")
    assert rows["held-1"]["state"] == "held"
    assert rows["done-1"]["next"] is None


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--state", "failed", "--state", "held"], {"failed-1", "held-1"}),
        (["--state", "unfinished", "--workflow", "checkout"], {"waiting-1"}),
        (["--state", "unfinished", "--state", "completed", "--label", "customer=ann"], {"waiting-1", "done-1"}),
        (["--label", "customer=ann"], {"waiting-1", "done-1"}),
        (["--since", "2099-01-31"], set()),
        (["--since", "1d", "--workflow", "pay"], {"held-1"}),
    ],
)
def test_ps_filters(stepwell, options, found):
    """Each filter narrows the list."""
    assert {row["id"] for row in stepwell("ps", "--json", *options).json["instances"]} == found


def test_ps_has_pages(stepwell):
    """--after goes on below the last one, until nothing follows."""
    seen, after = [], []
    while page := stepwell("ps", "--json", "--limit", "4", *after).json:
        seen += [row["id"] for row in page["instances"]]
        if page["after"] is None:
            break
        after = ["--after", page["after"]]
    assert seen == [row["id"] for row in stepwell("ps", "--json").json["instances"]]
    assert len(seen) > 8


def test_ps_of_nothing_is_no_mistake(stepwell):
    """It says so and exits with 0."""
    said = stepwell("ps", "--workflow", "nobody")
    assert (said.out, said.code) == ("no instance matches\n", 0)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_ps_fits_the_terminal(stepwell, columns):
    """No line is longer than the terminal is wide; id, state and what is next stay."""
    lines = stepwell("ps", env={"COLUMNS": str(columns)}).out.splitlines()
    assert max(map(len, lines)) <= columns
    assert {"ID", "STATE", "NEXT"} <= set(lines[0].split())


# --- tree and show --------------------------------------------------------------------------------


def test_the_tree_shows_each_step_and_how_it_stands(stepwell):
    """Forks count their branches, loops their turns, routes say what they may take."""
    tree = stepwell("tree", "waiting-1").out
    assert "waiting-1  ◔ waiting" in tree
    assert "├─ ✓ parallel" in tree
    assert "▰▰ 2/2" in tree
    assert "│  ├─ ✓ charge" in tree
    assert "5 turns" not in tree
    assert "4 turns" in tree
    assert "├─ ◔ approve" in tree
    assert 'signal "approve", until' in tree
    assert "└─ · decision" in tree
    assert "takes one of: true, false" in tree
    assert tree.splitlines()[-1].startswith("→ stepwell signal waiting-1 approve")


def test_of_long_loops_the_last_turns_are_shown(stepwell):
    """And with --all every one."""
    short, long = stepwell("tree", "waiting-1").out, stepwell("tree", "waiting-1", "--all").out
    assert "✓ turn 1 " in short
    assert "[1] refine" not in short
    assert "[1] refine" in long


def test_of_wide_forks_some_branches_are_shown_and_the_rest_counted(stepwell):
    """Forty branches take a dozen lines."""
    stepwell("worker", "--once", stepwell.shop("wide"))
    tree = stepwell("tree", "wide-1").out
    assert "▰▰▰▰▰▰▰▰▰▰ 40/40" in tree
    assert "30 more" in tree
    assert len(tree.splitlines()) < 20


@pytest.mark.parametrize(
    ("instance_id", "step", "state", "words"),
    [
        ("failed-1", "boom", "failed", "ValueError: no such card"),
        ("held-1", "wire", "held", "a person must decide"),
        ("backoff-1", "flaky", "retries", "OSError: no route to the bank"),
        ("pending-1", "charge", "ready", "for a worker to take it"),
        ("cancelled-1", "go", "stopped", 'signal "go"'),
    ],
)
def test_a_step_says_why_it_stands_so(stepwell, instance_id, step, state, words):
    """The line of the step has its state as a word, and the reason."""
    tree = stepwell("tree", instance_id, env={"COLUMNS": "200"}).out.splitlines()
    (line,) = [line for line in tree if line.startswith(("├", "└")) and f" {step} " in line]
    assert state in line
    assert words in line


def test_the_tree_as_json_nests_as_the_graph_does(stepwell):
    """Each node has its path, kind, state and times."""
    told = stepwell("tree", "waiting-1", "--json").json
    parallel, *others = told["steps"]
    assert [node["path"] for node in parallel["steps"]] == ["parallel/charge", "parallel/reserve"]
    assert parallel["steps"][0]["attempts"] == 1
    by_path = {node["path"]: node for node in others}
    assert by_path["refine"]["turns"] == 4
    assert by_path["approve"]["state"] == "waits"
    assert by_path["decision"]["state"] == "not begun"


def test_show_keeps_values_to_itself_until_asked(stepwell):
    """Without --values no payload is printed."""
    assert "receipt for" not in stepwell("show", "waiting-1").out + stepwell("show", "waiting-1", "--json").out
    shown = stepwell("show", "waiting-1", "--values").out
    assert '"receipt for pens"' in shown
    assert 'input  {"sku":"pens","count":2}' in shown
    assert stepwell("show", "done-1", "--values", "--json").json["values"]["output"] is True


def test_show_has_queue_wait_apart_from_work(stepwell):
    """In the waterfall and in JSON."""
    shown = stepwell("show", "waiting-1").out
    assert "QUEUE" in shown
    assert "WORK" in shown
    assert "In all: work" in shown
    step = stepwell("show", "waiting-1", "--json").json["steps"][0]["steps"][0]
    assert {"queue_seconds", "work_seconds", "wait_seconds"} <= set(step)


def test_show_has_the_error_with_the_lines_of_the_task(stepwell):
    """The user's own frames and none of ours."""
    shown = stepwell("show", "failed-1").out
    assert "boom failed at attempt 1: ValueError: no such card" in shown
    assert "shop.py" in shown
    assert "raise ValueError" in shown
    assert "stepwell/" not in shown.replace("stepwell retry", "")


def test_show_has_the_history(stepwell):
    """What has happened, in order."""
    assert "pause" in stepwell("show", "paused-1", "--history").out
    kinds = [event["kind"] for event in stepwell("show", "done-1", "--history", "--json").json["history"]]
    assert kinds[0] == "started"
    assert kinds[-1] == "completed"


@pytest.mark.parametrize("name", ["tree", "show", "explain"])
@pytest.mark.parametrize("instance_id", EVERY)
def test_every_state_can_be_looked_at_on_any_terminal(stepwell, name, instance_id):
    """Lines fit into 60 columns, but for commands and tracebacks that can be copied; JSON is JSON."""
    said = stepwell(name, instance_id, env={"COLUMNS": "60"})
    assert said.code == 0
    assert [line for line in said.out.splitlines() if len(line) > 60 and "shop.py" not in line] == []
    assert stepwell(name, instance_id, "--json").json["id"] == instance_id


# --- explain --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance_id", "words", "command"),
    [
        ("gate-1", 'waits for somebody to send the signal "go"', "stepwell signal gate-1 go true"),
        ("failed-1", "failed with ValueError: no such card", "stepwell retry failed-1"),
        ("held-1", "Nobody knows whether it happened", "stepwell decide held-1 wire complete --value JSON"),
        ("paused-1", "paused by ann: stock-taking", "stepwell resume paused-1"),
        ("cancelled-1", "cancelled by bob: withdrawn", "stepwell retry cancelled-1"),
        ("pending-1", "nobody is at it", "stepwell worker MODULE:WORKFLOW"),
        ("backoff-1", "Attempt 2 follows at", ""),
        ("done-1", "nothing is left to do", ""),
    ],
)
def test_explain_says_why_and_what_would_move_it(stepwell, instance_id, words, command):
    """In plain words, with the command to copy."""
    said = stepwell("explain", instance_id, env={"COLUMNS": "300"}).out
    assert words in said
    assert (f"→ {command}\n" in said) if command else "→" not in said


def test_explain_names_a_step_once_whose_processes_died(stepwell):
    """With how many there were, and what follows."""
    from stepwell import reasons
    from stepwell.cli.common import opened
    from stepwell.cli.plainly import Sayer
    from stepwell.cli.times import Times
    from stepwell.runtime.explaining import Explanation

    crashed = [reasons.Crashed("die", 1), reasons.Crashed("die", 4, 3)]
    with opened(str(stepwell.database)) as at:
        first, later = Sayer(at, Explanation("k", "killer", "running", tuple(crashed), ()), Times(utc=True)).all()
    follows = "Whoever takes it up tries it again, or holds it if that was one too many."
    assert (first.path, later.path) == ("die", "die")
    assert first.text == f"The process that ran attempt 1 is gone. {follows}"
    before = "3 processes in a row died in it before that"
    assert later.text == f"The process that ran attempt 4 is gone, and {before}. {follows}"


def test_explain_as_json_has_typed_reasons(stepwell):
    """One for each open step, with the commands."""
    (reason,) = stepwell("explain", "gate-1", "--json").json["reasons"]
    assert (reason["kind"], reason["name"], reason["path"]) == ("awaits signal", "go", "go")
    assert reason["commands"] == ["stepwell signal gate-1 go true"]


def test_commands_to_copy_name_the_database_if_it_was_named(stepwell):
    """What --db said is in them; what STEPWELL_DB says need not be."""
    said = stepwell("explain", "paused-1", "--db", str(stepwell.database), env={"COLUMNS": "400"}).out
    assert f"stepwell resume paused-1 --db {stepwell.database}" in said


# --- result ---------------------------------------------------------------------------------------


def test_result_prints_what_was_returned(stepwell):
    """The output, or what one step returned."""
    assert stepwell("result", "done-1").out == "true\n"
    assert stepwell("result", "waiting-1", "parallel/charge").json == "receipt for pens"
    assert stepwell("result", "waiting-1", "refine[2]/refine", "--json").json == {
        "id": "waiting-1",
        "step": "refine[2]/refine",
        "result": 4,
    }


@pytest.mark.parametrize(
    ("instance_id", "code"), [("failed-1", 1), ("cancelled-1", 1), ("held-1", 6), ("paused-1", 6), ("gate-1", 6)]
)
def test_result_exits_by_how_the_instance_stands(stepwell, instance_id, code):
    """1 if it failed, 6 if there is no result yet."""
    assert stepwell("result", instance_id).code == code


# --- watch ----------------------------------------------------------------------------------------


def test_watching_what_has_ended_tells_it_and_ends(stepwell):
    """Where there is no terminal, a line for each event; the exit code tells the end."""
    done, failed = stepwell("watch", "done-1"), stepwell("watch", "failed-1")
    assert (done.code, failed.code) == (0, 1)
    assert done.out.splitlines()[-1].endswith("completed")
    lines = stepwell("watch", "done-1", "--json").out.splitlines()
    assert len(lines) == len(done.out.splitlines())
    assert all(line.startswith("{") for line in lines)


def test_what_ended_between_two_reads_stands_as_it_does_afterwards(stepwell):
    """The list is read before the instances; so a listener is told of an end once."""
    from stepwell.cli.common import opened
    from stepwell.cli.ps import _listed
    from stepwell.cli.times import Times

    with opened(str(stepwell.database)) as at:
        status = at.client.status("done-1")
        before, after = (
            _listed(at, replace(status, state=state), Times(utc=True)) for state in ("running", "completed")
        )
    assert (before.status.state, before.steps) == (after.status.state, after.steps) == ("completed", ())


def test_what_does_not_fit_is_counted_and_what_is_open_stays_in_sight():
    """A picture that is higher than the terminal keeps its head and the open step."""
    from stepwell.cli.page import Span
    from stepwell.cli.watch import fitted

    lines = [[Span(f"line {at}", "bold" if at == 50 else "")] for at in range(100)]
    shown = fitted(lines, 20)
    texts = ["".join(span.text for span in line) for line in shown]
    assert len(shown) == 20
    assert texts[:2] == ["line 0", "line 1"]
    assert "line 50" in texts
    assert sum(text.startswith("line") for text in texts) + sum(int(t.split()[1]) for t in texts if "…" in t) == 100


# --- graph ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "begins"), [("text", "checkout\n├─ parallel"), ("mermaid", "flowchart TD\n"), ("svg", "<svg ")]
)
def test_graph_draws_code_and_instances_alike(stepwell, form, begins):
    """As text, Mermaid and SVG; an instance needs no code."""
    assert stepwell("graph", stepwell.shop("checkout"), "--format", form).out.startswith(begins)
    assert stepwell("graph", "--instance", "waiting-1", "--format", form).out.startswith(begins)
    assert stepwell("graph", "--instance", "waiting-1", "--format", form, "--json").json["workflow"] == "checkout"


def test_an_svg_is_xml_and_coloured_by_state(stepwell):
    """It is well formed, and steps that are done look done."""
    import xml.etree.ElementTree as ET

    drawn = stepwell("graph", "--instance", "waiting-1", "--format", "svg").out
    root = ET.fromstring(drawn)  # noqa: S314  # our own text
    classes = [rect.get("class") for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert "t  done" in classes
    assert "t d waits" in classes


def test_graph_writes_a_file(stepwell, tmp_path):
    """With --output nothing is printed."""
    assert stepwell("graph", stepwell.shop("gate"), "--format", "svg", "--output", "gate.svg").out == ""
    assert (tmp_path / "gate.svg").read_text("utf-8").endswith("</svg>\n")


def test_a_step_that_waits_for_a_tag_says_for_which(empty):
    """Not that it is in the hands of the worker that cannot run it; the command starts one that can."""
    from stepwell import Flow, PooledWorker, SqliteBackend, WorkflowClient, task

    @task(tags=["eu", "gpu"])
    def render(x: int) -> int:
        return x

    flow = Flow("render").then(render).build()
    with closing(SqliteBackend(empty.database)) as backend, closing(WorkflowClient(backend)) as client:
        client.start(flow, 1, instance_id="r-1")
        worker = PooledWorker(backend, [flow], name="plain", poll="20ms").start()
        try:
            tick = threading.Event()
            while not backend.header("r-1").offered:
                tick.wait(0.002)
            said = empty("explain", "r-1")
            data = empty("explain", "r-1", "--json").json["reasons"]
        finally:
            worker.shutdown()
            worker.join("30s")
    assert "It is offered to workers with tags eu, gpu; none has taken it yet." in said.out
    assert "stepwell worker MODULE:WORKFLOW --tag eu --tag gpu" in said.out
    assert (data[0]["kind"], data[0]["tags"], data[0]["worker"]) == ("offered", ["eu", "gpu"], "plain")
