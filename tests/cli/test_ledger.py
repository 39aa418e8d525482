"""The judge of ``stepwell demo``: it must see a step that ran twice, and must not see one where there is none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell import InProcessRunner, WorkflowFailed, inject, task, workflow
from stepwell.cli.ledger import Ledger, LedgerDamaged, Line, Reader, concurrent, judge, told

ORDER = ("list", "scope/left", "scope/right", "loop[1]/turn", "loop[2]/turn", "report")


def lines(script):
    """Return the lines that a script stands for: ``+path`` is a start, ``-path`` a finish, ``!path`` an error."""
    pid, told_lines = 0, []
    for at, word in enumerate(script.split()):
        pid += word == "begin"
        if word in ("begin", "end"):
            told_lines.append(Line(word, pid, at, "job"))
        else:
            event = {"+": "start", "-": "finish", "!": "error"}[word[0]]
            told_lines.append(Line(event, pid, at, "job", word[1:], 1, f"key of {word[1:]}"))
    return told_lines


def judged(script):
    return judge(lines(script), "scope")


def test_a_job_without_a_kill_holds():
    """Each step once, and the end: nothing to find."""
    judgement = judged("begin +a -a +b -b end")
    assert judgement.holds
    assert (judgement.before, judgement.after, judgement.lives) == ((), ("a", "b"), 1)


def test_a_step_that_ran_again_after_its_follower_started_ran_twice():
    """The follower's start proves that the step was recorded."""
    judgement = judged("begin +a -a +b begin +a -a +b -b end")
    assert judgement.twice == ("a",)
    assert not judgement.holds


def test_a_step_that_was_cut_off_may_run_again():
    """What a kill interrupted was not finished."""
    judgement = judged("begin +a -a +b begin +b -b end")
    assert judgement.holds
    assert (judgement.kept, judgement.cut_off, judgement.twice) == (("a",), ("b",), ())


def test_a_step_that_ended_just_before_the_kill_is_counted_apart():
    """Its body was through, but nothing shows that it was recorded."""
    judgement = judged("begin +a -a +b -b begin +b -b +c -c end")
    assert judgement.holds
    assert (judgement.kept, judgement.unrecorded, judgement.twice) == (("a",), ("b",), ())


def test_a_sibling_s_start_proves_nothing():
    """Branches do not follow each other, so a branch that ended is not known to be recorded when its sibling starts."""
    judgement = judged("begin +scope/x -scope/x +scope/y begin +scope/x +scope/y -scope/x -scope/y end")
    assert (judgement.unrecorded, judgement.cut_off, judgement.twice) == (("scope/x",), ("scope/y",), ())


def test_one_process_may_not_run_a_step_twice():
    """Without a kill between them there is no excuse, whatever followed."""
    assert judged("begin +a -a +a -a end").twice == ("a",)


def test_a_retry_after_an_error_is_no_second_run():
    """An attempt that failed was not finished."""
    assert judged("begin +a !a +a -a +b -b end").holds


def test_a_step_after_the_end_ran_twice():
    """The reported end of the job proves that every step was recorded."""
    assert judged("begin +a -a end begin +a -a end").twice == ("a",)


def test_a_job_that_did_not_end_does_not_hold():
    """No end, or a step left open, is not complete."""
    assert not judged("begin +a -a").complete
    assert not judged("begin +a -a +b end").complete


def test_a_key_that_changes_is_found():
    """Attempts of one step must share a key; otherwise outside calls could not tell that they are the same."""
    told_lines = lines("begin +a begin +a -a end")
    other = Line("start", 1, 1, "job", "a", 1, "another key")
    judgement = judge([told_lines[0], other, *told_lines[2:]], "scope")
    assert judgement.rekeyed == ("a",)
    assert not judgement.holds


def test_branches_are_told_apart_by_the_scope_s_path():
    """Only steps in different branches of the scope are concurrent."""
    assert concurrent("scope/x/a", "scope/y", "scope")
    assert not concurrent("scope/x/a", "scope/x/b", "scope")
    assert not concurrent("scope/x", "scoped/y", "scope")


@settings(max_examples=200)
@given(st.data())
def test_honest_histories_hold_and_repeated_ones_do_not(data):
    """However a job that records each step before the next is killed, it holds; repeating a recorded step breaks it."""
    script, at = ["begin"], 0
    while at < len(ORDER):
        fate = data.draw(st.sampled_from(["ends", "killed inside", "killed unrecorded", "killed after"]))
        script.append(f"+{ORDER[at]}")
        if fate != "killed inside":
            script.append(f"-{ORDER[at]}")
        if fate != "ends":
            script.append("begin")
        at += fate in ("ends", "killed after")
    assert judged(" ".join([*script, "end"])).holds
    again = data.draw(st.sampled_from(ORDER[:-2]))
    assert judged(" ".join([*script, "begin", f"+{again}", f"-{again}", "end"])).twice == (again,)


# --- writing and reading ------------------------------------------------------------------------------


@task
def steady(text: str, *, ledger: Ledger = inject()) -> str:
    with ledger.step() as note:
        note(f"saw {text}")
        return text


@task
def failing(text: str, *, ledger: Ledger = inject()) -> str:
    with ledger.step():
        raise OSError("no")


@workflow
def both(text: str) -> str:
    return failing(steady(text))


def test_steps_write_their_start_and_how_they_ended(tmp_path):
    """A finish only where the body came to its end, an error otherwise; both with the step's path and key."""
    ledger, reader = Ledger(tmp_path / "ledger"), Reader(tmp_path / "ledger")
    with InProcessRunner(deps={Ledger: ledger}) as runner, pytest.raises(WorkflowFailed):
        runner.run(both, "x")
    assert [(x.event, x.path, x.note) for x in reader.poll()] == [
        ("start", "steady", ""),
        ("finish", "steady", "saw x"),
        ("start", "failing", ""),
        ("error", "failing", ""),
    ]
    assert len({x.key for x in reader.lines}) == 2


def test_a_reader_takes_only_whole_lines_and_each_once(tmp_path):
    """A line that is still being written is left for the next look."""
    ledger, reader = Ledger(tmp_path / "ledger"), Reader(tmp_path / "ledger")
    assert reader.poll() == []
    ledger.begin("job")
    whole = (tmp_path / "ledger").read_bytes()
    (tmp_path / "ledger").write_bytes(whole + whole[:20])
    assert [x.event for x in reader.poll()] == ["begin"]
    assert reader.poll() == []
    (tmp_path / "ledger").write_bytes(whole + whole)
    assert [x.event for x in reader.poll()] == ["begin"]
    assert len(reader.lines) == 2


def test_a_damaged_ledger_is_not_judged(tmp_path):
    """A line that cannot be read, or an end without a start, proves nothing and is said so."""
    (tmp_path / "ledger").write_bytes(b"{}\n")
    with pytest.raises(LedgerDamaged, match="cannot be read"):
        Reader(tmp_path / "ledger").poll()
    with pytest.raises(LedgerDamaged, match="never started"):
        told(lines("begin -a"))
