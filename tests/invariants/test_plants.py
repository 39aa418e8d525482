"""Each rule is shown a store that breaks it, and says so; no other rule does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from stepwell import InMemoryBackend
from stepwell.backend.base import Filter, Header, Message
from stepwell.engine import facts as f
from stepwell.engine.advance import advance
from stepwell.engine.change import compare
from stepwell.engine.events import MoveAsked
from stepwell.testing.invariants import check_isolation, check_store

from . import forge
from .forge import HOUR_US, Forge, line_done, row

Plant = Callable[[], InMemoryBackend]
PLANTS: list[Any] = []


def plant(rule: str) -> Callable[[Plant], Plant]:
    def add(make: Plant) -> Plant:
        PLANTS.append(pytest.param(rule, make, id=f"{rule} {make.__name__}"))
        return make

    return add


def started(flow: Any, *paths: str) -> tuple[Forge, list[int]]:
    """Begin a run with the first of these steps open, and return all their rows."""
    made = Forge(flow)
    nodes = [made.node(path) for path in paths]
    made.write(f.RunStarted(), f.Opened(nodes[0]))
    return made, nodes


# --- S1, S2, S16 -------------------------------------------------------------------------------


@plant("S1")
def a_second_outcome() -> InMemoryBackend:
    made = line_done(2)
    return made.write(f.StepDone(made.node("a"))).stored()


@plant("S1")
def a_second_start() -> InMemoryBackend:
    return line_done(2).write(f.RunStarted()).stored()


@plant("S1")
def a_second_way() -> InMemoryBackend:
    made, (way,) = started(forge.either, "route")
    case = made.plan.nodes[way].children[0]
    made.write(f.RouteTaken(way, (), made.plan.nodes[case].name), f.Opened(made.plan.nodes[case].children[-1]))
    return made.write(f.RouteTaken(way, (), made.plan.nodes[case].name)).stored()


@plant("S2")
def an_attempt_after_the_outcome() -> InMemoryBackend:
    made = line_done(2)
    return made.write(f.AttemptFailed(made.node("a"), (), 1, -1, 1)).stored()


@plant("S2")
def opened_after_the_outcome() -> InMemoryBackend:
    made = line_done(1)
    first, second = made.node("a"), made.node("b")
    return made.write(f.StepDone(first), f.Opened(second), f.Opened(first)).stored()


@plant("S2")
def at_most_once_without_a_recorded_start() -> InMemoryBackend:
    made, (only,) = started(forge.paid, "pay")
    return made.write(f.StepDone(only), f.RunEnded("completed", 2)).stored()


@plant("S2")
def at_most_once_begun_twice() -> InMemoryBackend:
    made, (only,) = started(forge.paid, "pay")
    return made.write(f.StepBegan(only, (), 1)).write(f.StepBegan(only, (), 1)).stored()


@plant("S16")
def a_successor_before_its_time() -> InMemoryBackend:
    made = Forge(forge.line)
    return made.write(f.RunStarted(), f.Opened(made.node("b"))).stored()


@plant("S16")
def a_child_before_what_it_needs() -> InMemoryBackend:
    made, (whole, _, second) = started(forge.fork, "parallel", "parallel/a", "parallel/b")
    made.entries.clear()
    return made.write(f.RunStarted(), f.Opened(whole), f.Opened(second)).stored()


@plant("S16")
def an_outcome_before_it_was_opened() -> InMemoryBackend:
    made = line_done(1)
    return made.write(f.StepDone(made.node("b"))).stored()


@plant("S16")
def an_end_before_the_last_step() -> InMemoryBackend:
    return line_done(1).write(f.StepDone(line_done().node("a")), f.RunEnded("completed", 2)).stored()


# --- S5, S6 ------------------------------------------------------------------------------------


@plant("S5")
def a_gap() -> InMemoryBackend:
    store = line_done(3).stored()
    del row(store).journal[1]
    return store


@plant("S5")
def a_last_entry_that_is_gone() -> InMemoryBackend:
    class Shorter(InMemoryBackend):
        def history(self, instance: int, after: int, limit: int) -> Any:
            return [entry for entry in super().history(instance, after, limit) if entry.seq < 2]

    store = line_done(2).stored()
    store.__class__ = Shorter
    return store


@plant("S6")
def an_image_of_another_state() -> InMemoryBackend:
    store = line_done(2).stored()
    row(store).image = line_done(1).stored()._last["i"].image
    row(store).image_seq = 2
    return store


@plant("S6")
def an_image_that_differs_in_one_address() -> InMemoryBackend:
    store, other = line_done(2).stored(), line_done(2)
    state = other.state()
    state.values[(other.node("a"), ())] = 1
    row(store).image = forge.to_image(state)
    return store


@plant("S6")
def a_row_that_says_it_ended() -> InMemoryBackend:
    return line_done(2).stored(state="completed", due_us=None)


@plant("S6")
def a_row_that_does_not_know_of_the_end() -> InMemoryBackend:
    return line_done(3).stored(state="running", due_us=0)


@plant("S6")
def another_result() -> InMemoryBackend:
    return line_done(3).stored(result_seq=2)


@plant("S6")
def another_state() -> InMemoryBackend:
    return line_done(2).stored(state="paused", due_us=0)


@plant("S6")
def a_fact_about_no_node() -> InMemoryBackend:
    return line_done(1).write(f.StepsSettled(((99, ()),))).stored()


@plant("S6")
def an_entry_without_a_head() -> InMemoryBackend:
    made = line_done(1)
    return made.write(f.Opened(made.node("b"))).stored()


# --- S8, S9 ------------------------------------------------------------------------------------


@plant("S8")
def a_message_taken_twice() -> InMemoryBackend:
    made, (first, second) = started(forge.ask, "word", "word#2")
    made.write(f.MessageKept("word"), f.MessageTaken(first, (), 2), f.Opened(second))
    return made.write(f.MessageKept("word"), f.MessageTaken(second, (), 2)).stored()


@plant("S8")
def a_younger_message_first() -> InMemoryBackend:
    made, (first, second) = started(forge.ask, "word", "word#2")
    made.write(f.RunPaused("", "")).write(f.MessageKept("word")).write(f.MessageKept("word"))
    return made.write(f.RunResumed(""), f.MessageTaken(first, (), 4), f.Opened(second)).stored()


@plant("S8")
def a_message_that_nobody_gets() -> InMemoryBackend:
    made, _ = started(forge.ask, "word", "word#2")
    return made.write(f.MessageKept("word")).stored()


@plant("S8")
def an_inbox_with_a_message_twice() -> InMemoryBackend:
    store = started(forge.ask, "word", "word#2")[0].stored(due_us=0)
    row(store).mail += [Message("signal", "word", None, 1, id=7)] * 2
    return store


@plant("S8")
def an_inbox_with_an_unknown_message_id() -> InMemoryBackend:
    store = started(forge.ask, "word", "word#2")[0].stored(due_us=0)
    row(store).mail.append(Message("signal", "word", None, 1, message_id="m", id=7))
    return store


@plant("S9")
def a_timer_before_its_time() -> InMemoryBackend:
    made, nap, after = asleep()
    return made.write(f.TimerFired(nap), f.Opened(after), after_us=HOUR_US - 1).stored()


def asleep() -> tuple[Forge, int, int]:
    made = Forge(forge.nap)
    nap, after = made.plan.nodes[0].children[-2:]
    made.write(f.RunStarted(), f.Opened(nap, (), made.at_us + HOUR_US))
    return made, nap, after


@plant("S9")
def a_timer_twice() -> InMemoryBackend:
    made, nap, after = asleep()
    made.write(f.TimerFired(nap), f.Opened(after), after_us=HOUR_US)
    return made.write(f.TimerFired(nap)).stored()


@plant("S9")
def a_timer_of_what_waits_for_no_time() -> InMemoryBackend:
    made, (first, _) = started(forge.ask, "word", "word#2")
    return made.write(f.TimerFired(first)).stored()


def asked_for_an_hour() -> tuple[Forge, int]:
    made = Forge(forge.ask_for_an_hour)
    word = made.node("word")
    return made.write(f.RunStarted(), f.Opened(word, (), made.at_us + HOUR_US)), word


@plant("S9")
def a_timeout_after_the_message() -> InMemoryBackend:
    made, word = asked_for_an_hour()
    made.write(f.MessageKept("word"), f.MessageTaken(word, (), 2), f.Opened(made.node("b")))
    return made.write(f.TimerFired(word), after_us=HOUR_US).stored()


@plant("S9")
def a_message_after_the_timeout() -> InMemoryBackend:
    made, word = asked_for_an_hour()
    made.write(f.TimerFired(word), f.MessageTaken(word, (), 2), after_us=HOUR_US)
    return made.stored()


@plant("S9")
def a_refusal_without_a_timeout() -> InMemoryBackend:
    made, word = asked_for_an_hour()
    return made.write(f.MessageKept("other"), f.StepRefused(word, (), "signal_timeout")).stored()


# --- S10, S11, S12 -----------------------------------------------------------------------------


@plant("S10")
def a_step_opened_after_the_cancel() -> InMemoryBackend:
    made = line_done(1)
    made.write(f.CancelBegun("", ""))
    return made.write(f.StepDone(made.node("a")), f.Opened(made.node("b"))).stored()


@plant("S10")
def a_retry_after_the_cancel() -> InMemoryBackend:
    made = line_done(1).write(f.CancelBegun("", ""))
    return made.write(f.AttemptFailed(made.node("a"), (), 1, made.at_us + 1, 1)).stored()


@plant("S10")
def a_completed_run_after_the_cancel() -> InMemoryBackend:
    made = line_done(2).write(f.CancelBegun("", ""))
    return made.write(f.StepDone(made.node("b")), f.RunEnded("completed", 4)).stored()


@plant("S10")
def cancelled_by_nobody() -> InMemoryBackend:
    made = line_done(2)
    return made.write(f.MessageKept("x"), f.RunEnded("cancelled")).stored()


@plant("S10")
def a_timer_in_a_pause() -> InMemoryBackend:
    made, nap, after = asleep()
    made.write(f.RunPaused("", ""))
    return made.write(f.TimerFired(nap), f.Opened(after), after_us=HOUR_US).stored()


@plant("S10")
def a_message_in_a_hold() -> InMemoryBackend:
    made, (first, second) = started(forge.ask, "word", "word#2")
    made.write(f.RunHeld("undecodable", "", 0, ()))
    return made.write(f.MessageKept("word"), f.MessageTaken(first, (), 3), f.Opened(second)).stored()


@plant("S10")
def a_step_that_began_in_a_pause() -> InMemoryBackend:
    made = line_done(1).write(f.RunPaused("", ""))
    made.write(f.StepDone(made.node("a")), f.Opened(made.node("b")))  # it ran already, and what follows may be ready
    return made.write(f.StepDone(made.node("b")), f.RunEnded("completed", 4)).stored()


@plant("S11")
def another_attempt_than_the_current() -> InMemoryBackend:
    made = line_done(1)
    return made.write(f.AttemptFailed(made.node("a"), (), 2, made.at_us + 1, 1)).stored()


@plant("S11")
def an_attempt_too_many() -> InMemoryBackend:
    made = line_done(1)
    step = made.node("a")
    made.write(f.AttemptFailed(step, (), 1, made.at_us, 1))
    return made.write(f.AttemptFailed(step, (), 2, made.at_us, 2)).stored()


@plant("S11")
def attempts_that_are_not_counted() -> InMemoryBackend:
    made = line_done(1)
    return made.write(f.AttemptFailed(made.node("a"), (), 1, made.at_us, 2)).stored()


@plant("S11")
def an_attempt_before_its_backoff_is_over() -> InMemoryBackend:
    made = line_done(1)
    made.write(f.AttemptFailed(made.node("a"), (), 1, made.at_us + 1_000_000, 1))
    return made.write(f.StepDone(made.node("a")), f.Opened(made.node("b")), after_us=999_999).stored()


@plant("S12")
def an_entry_after_the_end() -> InMemoryBackend:
    return line_done(3).write(f.MessageKept("word")).stored()


@plant("S12")
def a_completed_run_reopened() -> InMemoryBackend:
    return line_done(3).write(f.RunReopened("")).stored()


@plant("S12")
def a_decision_about_what_is_not_held() -> InMemoryBackend:
    made = line_done(1)
    return made.write(f.HoldDecided(made.node("a"), (), "rerun", "", "")).stored()


# --- another graph -----------------------------------------------------------------------------


def moved() -> Forge:
    """A run of ``line`` that goes on under ``longer`` while its second step is open."""
    made = line_done(2)
    asked = compare(forge.line.plan, forge.longer.plan, made.state(), [f.decode(e.facts) for e in made.entries])
    assert isinstance(asked, MoveAsked), asked
    facts = advance(forge.longer.plan, made.state(), asked, made.at_us)
    made.store.register("line", forge.longer.plan.fingerprint, forge.longer.plan.to_bytes())
    made.definition, made.plan = 2, forge.longer.plan
    return made.write(*facts)


@plant("S1")
def a_second_outcome_in_another_era() -> InMemoryBackend:
    made = moved()
    return made.write(f.StepDone(made.node("a"))).stored(image=b"", state="running", due_us=0)


@plant("S16")
def an_end_as_the_old_graph_had_it() -> InMemoryBackend:
    made = moved()
    made.write(f.StepDone(made.node("b")), f.RunEnded("completed", 4))
    return made.stored(image=b"", state="running", due_us=0)


@plant("S6")
def a_move_from_a_graph_it_was_not_under() -> InMemoryBackend:
    made = moved()
    (first, *_) = f.decode(made.entries[-1].facts)
    assert isinstance(first, f.RunMoved)
    return made.write(first).stored(image=b"", state="running", due_us=0)


# --- S13, S15, L2, S7 --------------------------------------------------------------------------


@plant("S13")
def a_damaged_value() -> InMemoryBackend:
    store = line_done(2).stored()
    journal = row(store).journal
    journal[1] = replace(journal[1], output=journal[1].output[:-1] + b"?")
    return store


@plant("S13")
def a_value_that_is_gone() -> InMemoryBackend:
    store = line_done(2).stored()
    journal = row(store).journal
    journal[1] = replace(journal[1], output=None)
    return store


@plant("S13")
def an_input_that_is_gone() -> InMemoryBackend:
    store = line_done(2).stored()
    journal = row(store).journal
    journal[0] = replace(journal[0], output=None)
    return store


@plant("S13")
def damaged_facts() -> InMemoryBackend:
    store = line_done(2).stored()
    journal = row(store).journal
    journal[1] = replace(journal[1], facts=b"\xff" + journal[1].facts)
    return store


@plant("S13")
def a_damaged_image() -> InMemoryBackend:
    store = line_done(2).stored()
    row(store).image = row(store).image[:-1]
    return store


@plant("S13")
def a_damaged_plan() -> InMemoryBackend:
    store = line_done(2).stored()
    store._definitions[0].plan = b"{}"
    return store


def forked() -> tuple[Forge, int, int, int, int]:
    made = Forge(forge.fork)
    rows = [made.node(f"parallel{path}") for path in ("", "/a", "/b", "/join")]
    made.write(f.RunStarted(), f.Opened(rows[0]), f.Opened(rows[1]))
    return made, rows[0], rows[1], rows[2], rows[3]


@plant("S15")
def a_join_before_its_last_branch() -> InMemoryBackend:
    made, whole, first, second, _ = forked()
    return made.write(f.StepDone(first), f.Opened(second), f.ScopeDone(whole)).stored()


@plant("S15")
def a_join_twice() -> InMemoryBackend:
    made, whole, first, second, third = forked()
    made.write(f.StepDone(first), f.Opened(second)).write(f.StepDone(second), f.Opened(third))
    made.write(f.StepDone(third), f.ScopeDone(whole), f.Opened(made.node("b")))
    return made.write(f.MessageKept("x"), f.ScopeDone(whole)).stored()


@plant("S15")
def a_joining_step_opened_twice() -> InMemoryBackend:
    made, _, first, second, third = forked()
    made.write(f.StepDone(first), f.Opened(second))
    return made.write(f.StepDone(second), f.Opened(third), f.Opened(third)).stored()


@plant("S15")
def a_join_that_never_comes() -> InMemoryBackend:
    made, _, first, second, third = forked()
    made.write(f.StepDone(first), f.Opened(second)).write(f.StepDone(second), f.Opened(third))
    return made.write(f.StepDone(third)).stored()


@plant("S15")
def a_joining_step_that_never_opens() -> InMemoryBackend:
    made, _, first, _, _ = forked()
    return made.write(f.StepDone(first)).stored()


@plant("L2")
def never_due() -> InMemoryBackend:
    return line_done(2).stored(due_us=None)


@plant("L2")
def due_too_late() -> InMemoryBackend:
    made, _, _ = asleep()
    return made.stored(due_us=made.at_us + HOUR_US + 1)


@plant("L2")
def unread_messages_and_no_due_time() -> InMemoryBackend:
    store = started(forge.ask, "word", "word#2")[0].stored()
    row(store).mail.append(Message("signal", "word", None, 1, id=7))
    return store


@plant("L2")
def left_in_the_middle() -> InMemoryBackend:
    return line_done(2).stored(image=None, due_us=None, state="waiting")


@plant("L2")
def a_session_that_does_not_exist() -> InMemoryBackend:
    store = line_done(2).stored()
    row(store).session = 99
    return store


@plant("S7")
def an_id_listed_twice() -> InMemoryBackend:
    class Twice(InMemoryBackend):
        def list(self, where: Filter) -> list[Header]:
            return 2 * list(super().list(where))

    store = line_done(3).stored()
    store.__class__ = Twice
    return store


@pytest.mark.broken_store
@pytest.mark.parametrize(("rule", "make"), PLANTS)
def test_a_planted_violation_is_reported_by_its_rule_alone(rule: str, make: Plant) -> None:
    """And names the instance."""
    report = check_store(make())
    assert report.rules == {rule}, report
    assert {violation.instance_id for violation in report.violations} == {"i"}


@pytest.mark.parametrize("upto", [1, 2, 3])
def test_what_the_plants_are_made_of_is_healthy(upto: int) -> None:
    """The same journals without the plant break no rule."""
    report = check_store(line_done(upto).stored())
    assert report.ok, report
    assert report.instances == 1
    assert report.entries == upto


def test_a_moved_run_is_healthy() -> None:
    """What was done under the old graph counts under the new one."""
    made = moved()
    made.write(f.StepDone(made.node("b")), f.Opened(made.node("a#2")))
    made.write(f.StepDone(made.node("a#2")), f.RunEnded("completed", 5))
    state = line_done(2).state()
    for entry in made.entries[2:]:
        forge.fold(forge.longer.plan, state, f.decode(entry.facts))
    image = forge.to_image(state)
    report = check_store(made.stored(image=image, state="completed", due_us=None, result_seq=5))
    assert report.ok, report


@pytest.mark.broken_store
def test_damage_that_spreads_is_reported() -> None:
    """S14: rows of another instance that change, vanish or stop the list are seen; damage that stays is not."""
    for spread in ("nothing", "change", "remove"):
        store = line_done(2).stored()
        made = replace(row(store).made, instance_id="other")
        store.create(None, [replace(made, entries=row(store).journal)])

        def damage(store: Any = store, spread: str = spread) -> None:
            row(store).journal.clear()
            if spread == "change":
                store._last["other"].updated_us += 1
            elif spread == "remove":
                del store._last["other"]

        report = check_isolation(store, damage, "i")
        assert report.rules == (set() if spread == "nothing" else {"S14"}), (spread, str(report))


@pytest.mark.broken_store
def test_limits_that_were_tuned_since_need_not_count() -> None:
    """With ``policies=False`` an attempt more than the stored plan allows is no violation; all else still is."""
    store = an_attempt_too_many()
    assert check_store(store).rules == {"S11"}
    assert check_store(store, policies=False).ok


def test_what_is_left_out_is_counted() -> None:
    """Limits keep a check short and say so."""
    store = line_done(3).stored()
    assert check_store(store, instances_max=0).left_out == 1
    long = check_store(store, entries_max=2)
    assert (long.left_out, long.instances, long.entries) == (1, 1, 0)
