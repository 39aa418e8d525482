"""How a run ends badly, what is raised then, and what is kept of it."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from stepwell import (
    Again,
    Done,
    Flow,
    InstanceHeld,
    LoopLimit,
    LoopValue,
    NoRoute,
    RecordedError,
    WorkflowFailed,
    loop,
    route,
    task,
    task_context,
    workflow,
)
from stepwell.backend.base import Filter


class Way(Enum):
    UP = "up"
    DOWN = "down"


@task
def key(x: Any) -> Any:
    return x


@task
def took(case: str) -> str:
    return case


@workflow
def by_text(x: Any) -> str:
    return route(key(x), {"up": lambda: took("up"), "down": lambda: took("down")}, name="way")


@workflow
def by_anything(x: Any) -> str:
    return route(key(x), {"1": lambda: took("text"), 1: lambda: took("int")}, default=lambda: took("else"), name="way")


@task
def way(x: Way) -> Way:
    return x


@workflow
def declared(x: Way) -> str:
    return route(way(x), {Way.UP: lambda: took("up"), Way.DOWN: lambda: took("down")})


def failure(runner: Any, made: Any, value: Any, **options: Any) -> WorkflowFailed:
    with pytest.raises(WorkflowFailed) as caught:
        runner.run(made, value, **options)
    return caught.value


# --- routes and loops ---------------------------------------------------------------------------------


def test_a_key_without_a_case_fails_the_step(any_runner: Any) -> None:
    """NoRoute names the key, the path and the cases."""
    error = failure(any_runner(), by_text, "sideways")
    assert isinstance(error.__cause__, NoRoute)
    assert error.path == "way"
    assert "'sideways'" in str(error)
    assert "down" in str(error)


@pytest.mark.parametrize("value", [["up"], None, 1.5, {"a": 1}], ids=repr)
def test_a_key_that_is_no_key_is_told_too(value: Any, any_runner: Any) -> None:
    """Unhashable or not a str, int, bool or Enum."""
    assert isinstance(failure(any_runner(), by_text, value).__cause__, NoRoute)


def test_keys_of_different_types_are_different_keys(any_runner: Any) -> None:
    """1, True and "1" do not stand for each other."""
    runner = any_runner()
    found = [runner.run(by_anything, value) for value in ("1", 1, True, 0, False, "x")]
    assert found == ["text", "int", "else", "else", "else", "else"]


def test_an_enum_chooses_its_case(any_runner: Any) -> None:
    """Also after a trip through a codec, where its type is declared."""
    runner = any_runner()
    assert [runner.run(declared, value) for value in Way] == ["up", "down"]


@task
def counts(x: int) -> Again[int] | Done[str]:
    return Again(x + 1) if x < 5 else Done(f"done at {x}")


@task
def says_neither(x: int) -> Any:
    return x


@task
def says_text(x: int) -> Any:
    return str(x)


@task
def wraps(x: Any) -> list[Any]:
    return [x]


def test_a_loop_ends_with_done(any_runner: Any) -> None:
    """Its value is what Done carries; each turn was fed by the one before."""

    @workflow
    def counting(x: int) -> list[Any]:
        return wraps(loop(counts, x, max_iterations=10))

    assert any_runner().run(counting, 1) == ["done at 5"]


def test_what_a_turn_said_can_be_read_by_a_task_of_the_turn(any_runner: Any) -> None:
    """As the Again or Done that it was, also where a route passed it on."""

    @task
    def note(said: Any) -> None:
        seen.append(said)

    @workflow
    def counting(x: int) -> str:
        def turn(n: int) -> Any:
            said = route(key(n), {1: lambda: counts(n), 2: lambda: counts(4)}, default=lambda: counts(5))
            note(said)
            return said

        return loop(turn, x, max_iterations=9)

    seen: list[Any] = []
    assert any_runner().run(counting, 1) == "done at 5"
    assert seen == [Again(2), Again(5), Done("done at 5")]


def test_a_loop_out_of_turns_fails(any_runner: Any) -> None:
    """LoopLimit names the loop and the number."""

    @workflow
    def counting(x: int) -> str:
        return loop(counts, x, max_iterations=3)

    error = failure(any_runner(), counting, 1)
    assert isinstance(error.__cause__, LoopLimit)
    assert "max_iterations=3" in str(error)


def test_a_loop_out_of_turns_may_keep_its_last_value(any_runner: Any) -> None:
    """on_max="last"."""

    @workflow
    def counting(x: int) -> list[Any]:
        return wraps(loop(counts, x, max_iterations=3, on_max="last"))

    assert any_runner().run(counting, 1) == [4]


def test_a_body_that_says_neither_fails_the_loop(any_runner: Any) -> None:
    """LoopValue says what was expected and which type came, never which value."""

    @workflow
    def wrong(x: int) -> Any:
        return loop(says_neither, x, max_iterations=3)

    cause = failure(any_runner(), wrong, 4711).__cause__
    assert isinstance(cause, LoopValue)
    assert str(cause) == (
        "the body of loop says_neither returned int, neither Again nor Done; "
        "return Again(value) for another turn, Done(value) for the end"
    )


def test_what_a_loop_goes_on_by_may_be_a_scope_s_value(any_runner: Any) -> None:
    """The type is that of the task whose value it is; other tasks' results are no concern of the loop."""

    @task
    def begin(x: int) -> int:
        return x

    @task
    def parity(x: int) -> str:
        return "odd" if x % 2 else "even"

    inner = Flow().then(begin).route(parity, {"odd": says_neither, "even": says_text})
    looping = Flow("looping").loop(inner, name="round", max_iterations=3).build()
    assert "returned int, neither" in str(failure(any_runner(), looping, 3).__cause__)
    assert "returned str, neither" in str(failure(any_runner(), looping, 4).__cause__)


def test_a_selection_that_finds_nothing_fails_the_step(any_runner: Any) -> None:
    """The message has the selector and the type, not the value."""

    @workflow
    def selecting(x: Any) -> Any:
        return took(key(x)["secret key"])

    error = failure(any_runner(), selecting, {"private": 1})
    assert "['secret key']" in str(error)
    assert "private" not in str(error)


# --- errors as data -------------------------------------------------------------------------------------


class OutOfStock(Exception):
    def __init__(self, sku: str, left: int) -> None:
        super().__init__(sku, left)
        self.sku = sku

    def __str__(self) -> str:
        return f"{self.sku} is gone"


@task
def breaks(x: int) -> int:
    try:
        deep_inside(x)
    except KeyError as error:
        raise OutOfStock("pen", 0) from error
    return x


def deep_inside(x: int) -> None:
    {}[x]


@workflow
def breaking(x: int) -> int:
    return breaks(x)


def test_the_exception_itself_is_the_cause_in_the_process_that_saw_it(any_runner: Any) -> None:
    """With its class, its attributes and its own cause."""
    error = failure(any_runner(), breaking, 1)
    assert isinstance(error.__cause__, OutOfStock)
    assert error.__cause__.sku == "pen"
    assert isinstance(error.__cause__.__cause__, KeyError)
    assert error.path == "breaks"
    assert "step breaks failed: OutOfStock: pen is gone" in str(error)


def test_another_process_reads_it_as_data(backend: Any, open_runner: Any) -> None:
    """Type name, message, the task's own frames, and the chain of causes; no object is revived."""
    failure(open_runner(backend), breaking, 1, instance_id="i")
    error = failure(open_runner(backend), breaking, 1, instance_id="i")
    recorded = error.__cause__
    assert type(recorded) is RecordedError
    assert recorded.type_name.endswith("test_endings.OutOfStock")
    assert recorded.message == "pen is gone"
    assert "in breaks" in recorded.traceback
    assert "runtime" not in recorded.traceback.replace("tests/runtime", "")
    assert any("in breaks" in note for note in recorded.__notes__)
    assert (type(recorded.__cause__), recorded.__cause__.type_name) == (RecordedError, "KeyError")  # type: ignore[union-attr]


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


@pytest.mark.parametrize(
    "error",
    [
        Rude(),
        ValueError("nul \0 and \ud800"),
        ValueError("long " * 100_000),
        Exception(),
        ExceptionGroup("many", [OSError("a")]),
    ],
    ids=["broken str", "odd text", "long text", "empty", "group"],
)
def test_any_error_can_be_recorded(error: Exception, backend: Any, open_runner: Any) -> None:
    """Whatever its text is; what is stored is bounded."""

    @task
    def fails(x: int) -> int:
        raise error

    @workflow
    def failing(x: int) -> int:
        return fails(x)

    failure(open_runner(backend), failing, 1, instance_id="i")
    recorded = failure(open_runner(backend), failing, 1, instance_id="i").__cause__
    assert isinstance(recorded, RecordedError)
    assert len(str(recorded)) < 5_000
    recorded.message.encode()


def test_causes_that_run_in_a_circle_end(any_runner: Any) -> None:
    """And a long chain is cut."""

    @task
    def fails(x: int) -> int:
        first, second = ValueError("first"), ValueError("second")
        first.__cause__, second.__cause__ = second, first
        raise first

    @workflow
    def failing(x: int) -> int:
        return fails(x)

    assert "first" in str(failure(any_runner(), failing, 1))


def test_failed_instances_can_be_found(runner: Any) -> None:
    """They are rows like others, and nothing of them is stuck."""
    failure(runner, breaking, 1, instance_id="i")
    (header,) = runner._room.backend.list(Filter(states=("failed",)))
    assert header.instance_id == "i"
    assert not runner._room.backend.stuck(0)


# --- at most once ---------------------------------------------------------------------------------------


class Payment:
    """A step that must not be started twice, behind one that may."""

    def __init__(self, error: BaseException | None) -> None:
        self.calls: list[int] = []

        @task
        def prepare(x: int) -> int:
            return x

        @task(delivery="at_most_once")
        def pay(x: int) -> int:
            self.calls.append(task_context().attempt)
            if error:
                raise error
            return x + 1

        @workflow
        def paying(x: int) -> int:
            return prepare(pay(prepare(x)))

        self.workflow = paying


def test_an_at_most_once_step_runs_once(any_runner: Any) -> None:
    """In every runner."""
    payment = Payment(None)
    assert any_runner().run(payment.workflow, 1) == 2
    assert payment.calls == [1]


def test_its_error_is_a_failure(any_runner: Any) -> None:
    """Like any other task's, without a retry."""
    payment = Payment(OSError("declined"))
    assert "declined" in str(failure(any_runner(), payment.workflow, 1))
    assert payment.calls == [1]


def test_a_cut_off_at_most_once_step_is_held_and_not_started_again(backend: Any, open_runner: Any) -> None:
    """Nobody knows whether it took effect; the instance waits for a decision, and says where."""
    payment = Payment(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        open_runner(backend).run(payment.workflow, 1, instance_id="i")
    runner = open_runner(backend)
    for _ in range(2):
        with pytest.raises(InstanceHeld, match=r"interrupted.* at pay") as caught:
            runner.resume(payment.workflow, "i")
        assert caught.value.reason == "interrupted"
    assert payment.calls == [1]
    status = runner.client.status("i")
    assert (status.state, status.held_by) == ("held", "")
    assert [s.state for s in runner.recover([payment.workflow], wait=True)] == ["held"]
    assert not backend.stuck(0)
