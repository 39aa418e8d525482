"""What ``@task`` makes of a function, and what it refuses."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import Any

import pytest

from stepwell.errors import GraphError, OptionError, UsageError
from stepwell.flow.task import Task, TaskOptions, as_task, inject, task
from stepwell.retry import Retry


class Stock:
    """A dependency."""


@task
def charge(order: str, amount: int = 1, *, note: str | None = None) -> bytes:
    """Charge an order."""
    return f"{order}{amount}{note}".encode()


@task("reserve-stock", attempts=3, timeout="30s", tags=["eu", "fast"], priority=2, version="2", description="holds")
async def reserve(order: str, *, stock: Stock = inject()) -> int:
    return len(order)


class TestBareFunction:
    """A task is still the function it was made from."""

    def test_calls_the_function(self) -> None:
        """A direct call runs the body with all its arguments."""
        assert charge("a", 2, note="n") == b"a2n"

    def test_async_call_gives_the_coroutine(self) -> None:
        """A direct call of an async task is awaited like the function."""
        assert asyncio.run(reserve("abc", stock=Stock())) == 3

    def test_keeps_signature_doc_and_wrapped(self) -> None:
        """Tools that look at the task see the function."""
        assert (charge.__name__, charge.__doc__, charge.__module__) == ("charge", "Charge an order.", __name__)
        assert charge.__wrapped__ is charge.fn
        assert list(inspect.signature(charge).parameters) == ["order", "amount", "note"]

    def test_direct_call_without_dependency_says_so(self) -> None:
        """The marker default never reaches the body."""
        with pytest.raises(UsageError, match=r"'reserve-stock' was called directly without stock="):
            reserve("abc")

    def test_repr_names_the_place(self) -> None:
        """The repr leads to the source."""
        assert repr(charge).startswith("<task 'charge' at ")
        assert charge.where.rpartition(":")[0] == __file__


class TestDeclarations:
    """What the signature says about values."""

    def test_params(self) -> None:
        """Each parameter has its resolved annotation and whether it must be given."""
        found = {p.name: (p.annotation, p.required) for p in charge.params.values()}
        assert found == {"order": (str, True), "amount": (int, False), "note": (str | None, False)}

    def test_returns(self) -> None:
        """Sync and async tasks declare what is there after awaiting."""
        assert (charge.returns, reserve.returns) == (bytes, int)

    def test_nothing_declared_is_any(self) -> None:
        """Missing annotations are Any, not a guess."""
        bare = task(lambda_like)
        assert (bare.params["x"].annotation, bare.returns) == (Any, Any)

    def test_injected_is_not_a_param(self) -> None:
        """A dependency is found by its annotation and hidden from the workflow."""
        assert dict(reserve.injected) == {"stock": Stock}
        assert list(reserve.params) == ["order"]

    def test_parameters_behind_an_injected_one_go_by_name(self) -> None:
        """A positional argument cannot slip into the dependency's place."""

        @task
        def late(a: int, stock: Stock = inject(), b: int = 0) -> int:
            return a + b

        assert late.bind((1,), {"b": 2}, "") == ((1,), {"b": 2})
        with pytest.raises(GraphError, match="too many positional"):
            late.bind((1, 2), {}, "")

    def test_local_class_is_found(self) -> None:
        """A class of the function around the decorator resolves, though annotations are text here."""

        class Local:
            pass

        @task
        def take(x: Local) -> Local:
            return x

        assert take.params["x"].annotation is Local is take.returns

    def test_class_defined_later_is_found(self) -> None:
        """A module-level class may follow the task that mentions it."""
        assert takes_later.params["x"].annotation is Later

    def test_unresolvable_annotation_is_an_error(self) -> None:
        """A type only a checker can see would make values decode as something else."""
        with pytest.raises(GraphError, match=r"task 'lost': its annotations cannot be resolved .*'Nowhere'"):
            _ = lost.params

    def test_partial_and_callable_object(self) -> None:
        """They work once they are named; the partial's given argument is optional."""

        class Adder:
            def __call__(self, a: int, b: int) -> int:
                return a + b

        assert task("three")(functools.partial(plus, 3))(4) == 7
        assert task("adder")(Adder())(1, 2) == 3
        assert task("adder")(Adder()).returns is int

    def test_async_callable_object(self) -> None:
        """An object with an async __call__ is an async task."""

        class Fetch:
            async def __call__(self, url: str) -> str:
                return url

        assert task("fetch")(Fetch()).is_async
        assert task("fetch")(functools.partial(Fetch().__call__, "u")).is_async

    def test_staticmethod(self) -> None:
        """Either order of the decorators gives a task."""

        class Box:
            @task
            @staticmethod
            def one(x: int) -> int:
                return x

            @staticmethod
            @task
            def two(x: int) -> int:
                return x

        assert (Box.one(1), Box().two(2), Box.one.name) == (1, 2, "one")


class TestBind:
    """Arguments have one form, however they were written."""

    @pytest.mark.parametrize(
        ("args", "kwargs"), [(("o", 2), {}), (("o",), {"amount": 2}), ((), {"amount": 2, "order": "o"})]
    )
    def test_one_form(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Positional where they can be, by name else: so two spellings give one fingerprint."""
        assert charge.bind(args, kwargs, "") == (("o", 2), {})

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((), {}, r"'charge' takes \(order, amount, note=\): missing a required argument: 'order'"),
            (("o",), {"colour": 1}, r"unexpected keyword argument 'colour'"),
            (("o", 1, 2), {}, r"too many positional arguments"),
            (("o",), {"order": 1}, r"multiple values for argument 'order'"),
        ],
    )
    def test_refusals(self, args: tuple[object, ...], kwargs: dict[str, object], message: str) -> None:
        """Each mistake is told with the parameters that exist."""
        with pytest.raises(GraphError, match=message) as caught:
            charge.bind(args, kwargs, "file.py:7")
        assert caught.value.where == "file.py:7"

    def test_injected_by_hand(self) -> None:
        """A workflow leaves dependencies to the runner."""
        with pytest.raises(GraphError, match="stock= is injected by the runner"):
            reserve.bind(("o",), {"stock": 1}, "")

    def test_star_arguments(self) -> None:
        """A task that takes anything is given anything."""

        @task
        def anything(*args: int, **kwargs: int) -> int:
            return len(args) + len(kwargs)

        assert anything.bind((1, 2), {"x": 3}, "") == ((1, 2), {"x": 3})
        assert not any(p.required for p in anything.params.values())


class TestOptions:
    """Options are checked where they are written."""

    def test_defaults(self) -> None:
        """A bare task has one attempt, no timeout and middle priority."""
        assert charge.options == TaskOptions(retry=Retry(attempts=1))

    def test_given(self) -> None:
        """Every option arrives."""
        expected = TaskOptions(Retry(attempts=3), 30_000_000, ("eu", "fast"), 2, "2", "holds")
        assert (reserve.name, reserve.is_async, reserve.options) == ("reserve-stock", True, expected)

    def test_retry_policy(self) -> None:
        """A policy is taken as it is."""
        policy = Retry(attempts=5, delay="500ms", on=(OSError,))
        assert task(retry=policy)(plus).options.retry is policy

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"attempts": 0}, "attempts must be a whole number from 1"),
            ({"attempts": True}, "attempts must be a whole number from 1"),
            ({"attempts": 2, "retry": Retry()}, "attempts= and retry= were both given"),
            ({"retry": 3}, "retry must be a Retry, not 3"),
            ({"timeout": 0}, "timeout must be between"),
            ({"timeout": "soon"}, "timeout must be seconds"),
            ({"tags": "eu"}, "tags must be a list or tuple"),
            ({"tags": ["x"] * 21}, "tags may hold 20 labels, not 21"),
            ({"tags": [""]}, "tags must each have 1 to 64"),
            ({"tags": ["x" * 65]}, "tags must each have 1 to 64"),
            ({"tags": ["a\n"]}, "tags must each have 1 to 64 printable"),
            ({"tags": [1]}, "tags must each have 1 to 64"),
            ({"tags": ["a", "a"]}, "tags must differ"),
            ({"priority": 0}, "priority must be 1"),
            ({"priority": 6}, "priority must be 1"),
            ({"priority": True}, "priority must be 1"),
            ({"version": 2}, "version must be a str"),
            ({"description": "x" * 1001}, "description must be a str of at most 1000"),
            ({"delivery": "exactly_once"}, "delivery must be one of 'at_least_once', 'at_most_once'"),
            ({"delivery": "at_most_once", "attempts": 1}, "allows one start only"),
            ({"delivery": "at_most_once", "retry": Retry()}, "allows one start only"),
            ({"run_in": "fiber"}, "run_in must be one of 'thread', 'inline', 'process'"),
            ({"run_in": "inline", "timeout": 1}, "cannot be stopped"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], message: str) -> None:
        """The message names the task and the option."""
        with pytest.raises(OptionError, match=f"task 'plus': .*{message}"):
            task(**options)(plus)

    def test_unknown_option(self) -> None:
        """A misspelt option is refused as a wrong value is."""
        with pytest.raises(OptionError, match="attemps"):
            task(attemps=3)(plus)

    def test_run_in_is_for_sync_tasks(self) -> None:
        """An async task has its own place."""

        async def coro() -> None: ...

        with pytest.raises(OptionError, match=r"task 'coro': run_in= is for sync tasks"):
            task(run_in="thread")(coro)

    def test_process_needs_an_importable_function(self) -> None:
        """The new process finds the function by module and name, or not at all."""
        assert task(run_in="process")(plus).options.run_in == "process"

        def local() -> None: ...

        for refused in (local, functools.partial(plus, 1)):
            with pytest.raises(OptionError, match="task 'p': run_in='process' needs a module-level function"):
                task("p", run_in="process")(refused)


class TestRefusals:
    """What cannot be a task."""

    @pytest.mark.parametrize("nameless", [lambda x: x, functools.partial(len)])
    def test_nameless(self, nameless: Any) -> None:
        """A task is known by its name, also after a restart."""
        with pytest.raises(OptionError, match="has no name of its own"):
            task(nameless)

    @pytest.mark.parametrize("name", ["", "a/b", "a[1]", "a#2", "a=b", "x" * 65, "a\nb"])
    def test_bad_names(self, name: str) -> None:
        """A name must fit into a path."""
        with pytest.raises(OptionError, match="a task's name"):
            task(name)(plus)

    @pytest.mark.parametrize("thing", [3, int, charge, classmethod(len)])
    def test_not_functions(self, thing: Any) -> None:
        """Values, classes, class methods and tasks are refused."""
        with pytest.raises(OptionError, match=r"made from a function|is a task already"):
            task("x")(thing)

    def test_generators(self) -> None:
        """A task returns one value."""

        def numbers() -> Any:
            yield 1

        async def stream() -> Any:
            yield 1

        for fn in (numbers, stream):
            with pytest.raises(OptionError, match="is a generator"):
                task(fn)

    def test_methods(self) -> None:
        """The instance could not be stored with the workflow."""
        with pytest.raises(OptionError, match="is a method, and no instance can be stored"):

            class Shop:
                @task
                def sell(self, item: str) -> str:
                    return item

    def test_injected_needs_an_annotation(self) -> None:
        """The runner looks dependencies up by type."""

        def bare(x: int, stock=inject()) -> int:
            return x

        with pytest.raises(OptionError, match=r"stock=inject\(\) needs an annotation"):
            task(bare)

    def test_injected_is_passed_by_name(self) -> None:
        """A positional-only dependency could not be."""

        def bare(x: int, stock: Stock = inject(), /) -> int:
            return x

        with pytest.raises(OptionError, match=r"stock=inject\(\) is positional-only"):
            task(bare)


class TestViews:
    """Other names, other wrappings."""

    def test_named(self) -> None:
        """A view changes the node's name and nothing else."""
        view = charge.named("charge-eu", was="charge")
        assert (view.node_name, view.was, view.name, view.fn) == ("charge-eu", "charge", "charge", charge.fn)
        assert (charge.node_name, charge.was) == ("charge", "")
        assert view("a") == charge("a")

    def test_named_checks_the_name(self) -> None:
        """A view's name stands in paths."""
        with pytest.raises(OptionError, match="a node's name"):
            charge.named("a/b")

    def test_as_task_keeps_a_task(self) -> None:
        """A task is itself, whatever name the node is to have."""
        assert as_task(charge, "other", "") is charge

    def test_as_task_makes_one(self) -> None:
        """A plain function becomes a task with default options."""
        made = as_task(plus, None, "")
        assert isinstance(made, Task)
        assert (made.name, made.options) == ("plus", TaskOptions())
        assert as_task(lambda x: x, "same", "").name == "same"

    def test_as_task_points_at_the_user(self) -> None:
        """What cannot be a task is the graph's error."""
        with pytest.raises(GraphError, match=r"^f.py:3: the lambda at .* has no name of its own"):
            as_task(lambda x: x, None, "f.py:3")


def plus(a: int, b: int) -> int:
    return a + b


def lambda_like(x):
    return x


@task
def takes_later(x: Later) -> None: ...


class Later:
    """Defined after the task that mentions it."""


@task
def lost(x: Nowhere) -> None:  # noqa: F821 - a name that does not exist is the point
    ...
