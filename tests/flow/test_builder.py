"""The fluent form: what it builds, that nothing leaks between flows, and every mistake it tells the author about."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from stepwell.errors import GraphError
from stepwell.flow.builder import Chain, Flow
from stepwell.flow.plan import Built, PlanNode, Ref
from stepwell.flow.task import inject, task
from stepwell.flow.trace import workflow
from stepwell.flow.workflow import Workflow
from stepwell.types import Again, Done


@dataclass
class Doc:
    text: str


@task
def fetch(url: str) -> Doc: ...
@task
async def clean(doc: Doc) -> Doc: ...
@task
def summarise(doc: Doc) -> str: ...
@task
def polish(text: str) -> str: ...
@task
def entities(doc: Doc) -> list[str]: ...
@task
def gather(parts: dict[str, Any]) -> str: ...
@task
def merge(polish: str, entities: list[str], *, db: dict[str, str] = inject()) -> str: ...
@task
def kind(doc: Doc) -> Literal["long", "short"]: ...
@task
def refine(text: str) -> Again[str] | Done[int]: ...
@task
def start() -> Doc: ...
@task
def nothing() -> str: ...


@workflow
def digest(doc: Doc) -> str:
    return summarise(doc)


def node(flow: Workflow[Any, Any], path: str) -> PlanNode:
    """Return the plan's row at a path."""
    found = flow.plan.find(path)
    assert found is not None, path
    return flow.plan.nodes[found[0]]


def number(flow: Workflow[Any, Any], path: str) -> int:
    """Return the row's number at a path."""
    found = flow.plan.find(path)
    assert found is not None, path
    return found[0]


def refused(build: Callable[[], object], message: str, at: str = "") -> None:
    """Check that a flow is refused with a message, at the line of ``build`` that contains ``at``."""
    with pytest.raises(GraphError, match=message) as caught:
        build()
    lines, first = inspect.getsourcelines(build)
    expected = {f"{__file__}:{first + i}" for i, line in enumerate(lines) if at in line}
    assert caught.value.where in expected


class TestThen:
    """Each step feeds the next."""

    def test_chain(self) -> None:
        """Tasks, async tasks, plain functions and named lambdas stand one after the other."""
        flow = (
            Flow("digest", metadata={"team": "search"})
            .then(fetch)
            .then(clean)
            .then(summarise, name="short", was="summary")
            .then(lambda s: s.strip(), name="strip")
            .then(len)
            .build()
        )
        assert flow.draw() == "digest\n├─ fetch\n├─ clean\n├─ short\n├─ strip\n└─ len"
        assert node(flow, "strip").args == (Ref(number(flow, "short")),)
        assert (node(flow, "short").task, node(flow, "short").was) == ("summarise", "summary")
        assert (flow.input_type, dict(flow.metadata)) == (str, {"team": "search"})

    def test_no_input(self) -> None:
        """A first step without required parameters begins a workflow without input."""
        flow = Flow("x").then(start).then(summarise).build()
        assert (flow.has_input, flow.output_type) == (False, str)
        assert node(flow, "start").args == ()

    def test_declared_input(self) -> None:
        """``input=`` declares what the first step does not."""
        flow = Flow("x", input=str).then(lambda s: s, name="same").build()
        assert (flow.has_input, flow.input_type) == (True, str)

    def test_delay_first(self) -> None:
        """A delay passes the input on, so the next step says its type."""
        flow = Flow("x").delay("rest", "1h").then(fetch).build()
        assert (flow.input_type, node(flow, "fetch").args) == (str, (Ref(number(flow, "fetch") - 2),))
        assert not Flow("x").delay("rest", "1h").then(start).build().has_input

    def test_workflow_step(self) -> None:
        """A workflow is a child, under its own name or another."""
        flow = Flow("x").then(start).then(digest).build()
        assert flow.draw() == "x\n├─ start\n└─ digest (child)\n   └─ summarise"
        assert Flow("x").then(digest, name="short").build().plan.find("short/summarise") is not None

    def test_chain_step(self) -> None:
        """A chain is put in as it is."""
        tail = Flow().then(summarise).then(polish)
        assert Flow("x").then(start).then(tail).build().draw() == "x\n├─ start\n├─ summarise\n└─ polish"

    def test_output_type(self) -> None:
        """The workflow yields what the last step declares."""
        assert Flow("x").then(fetch).build().output_type is Doc


class TestImmutable:
    """Every call returns a new object."""

    def test_two_continuations(self) -> None:
        """A shared beginning is not changed by what follows it."""
        base = Flow("x").then(fetch)
        one, two = base.then(summarise).build(), base.then(entities).build()
        assert (one.draw(), two.draw()) == ("x\n├─ fetch\n└─ summarise", "x\n├─ fetch\n└─ entities")

    def test_built_twice(self) -> None:
        """The same chain gives equal plans that share nothing."""
        chain = Flow("x").then(start).fork().branch(summarise, polish, name="polish").branch(entities).join(merge)
        one, two = chain.build(), chain.build()
        assert one.plan.data == two.plan.data
        assert not {id(n) for n in one.body.nodes} & {id(n) for n in two.body.nodes}

    def test_one_chain_in_two_places(self) -> None:
        """A chain may be a step of the same flow more than once."""
        step = Flow().then(summarise).then(polish)
        flow = Flow("x").then(start).fork().branch(step).branch(step, name="again").branch(step).join(gather).build()
        assert [node(flow, f"parallel/{n}/polish").kind for n in ("summarise", "again", "summarise#2")] == ["task"] * 3

    def test_fork_is_immutable(self) -> None:
        """Branches are added to a copy."""
        fork = Flow("x").then(start).fork().branch(summarise)
        both = fork.branch(entities).join(gather).build()
        assert fork.join(gather).build().draw() != both.draw()

    def test_metadata_is_copied(self) -> None:
        """The author's dict stays the author's."""
        metadata = {"a": 1}
        chain = Flow("x", metadata=metadata).then(start)
        metadata["a"] = 2
        assert dict(chain.build().metadata) == {"a": 1}

    def test_repr(self) -> None:
        """A repr shows the steps so far."""
        chain = Flow("x").then(start).then(summarise)
        assert repr(chain) == "<chain 'x': start -> summarise>"
        assert (repr(Flow("x")), repr(chain.fork())) == ("<flow 'x': empty>", "<fork 'parallel': empty>")


class TestFork:
    """Branches side by side, then a join."""

    def test_join_by_name(self) -> None:
        """A join with several required parameters gets them by branch name."""
        flow = (
            Flow("x").then(start).fork().branch(summarise, polish, name="polish").branch(entities).join(merge).build()
        )
        assert flow.draw() == (
            "x\n├─ start\n├─ parallel\n│  ├─ polish (branch)\n│  │  ├─ summarise\n│  │  └─ polish\n"
            "│  └─ entities\n└─ merge"
        )
        assert node(flow, "merge").args == (
            Ref(number(flow, "parallel/polish/polish")),
            Ref(number(flow, "parallel/entities")),
        )

    def test_join_by_dict(self) -> None:
        """A join with one required parameter gets a dict by branch name; the first task's name is the default."""
        flow = Flow("x").then(start).fork(name="split", on_error="wait").branch(summarise, polish).branch(entities)
        built = flow.join(gather).build()
        (argument,) = node(built, "gather").args
        assert isinstance(argument, Built)
        keys = [built.bodies.constants[key.index] for key in argument.keys]
        assert (argument.kind, keys) == ("dict", ["summarise", "entities"])
        assert (node(built, "split").on_error, node(built, "split/entities").kind) == ("wait", "task")

    def test_repeated_names(self) -> None:
        """The dict's keys are the names that paths have."""
        built = Flow("x").then(start).fork().branch(entities).branch(entities).join(gather).build()
        (argument,) = node(built, "gather").args
        assert isinstance(argument, Built)
        assert [built.bodies.constants[key.index] for key in argument.keys] == ["entities", "entities#2"]
        assert node(built, "parallel/entities#2").kind == "task"

    def test_single_step_takes_the_branch_name(self) -> None:
        """A branch of one step has no path of its own."""
        flow = Flow("x").then(start).fork().branch(summarise, name="s").branch(digest, name="d").join(gather).build()
        assert flow.draw() == "x\n├─ start\n├─ parallel\n│  ├─ s\n│  └─ d (child)\n│     └─ summarise\n└─ gather"

    def test_any_step_in_a_branch(self) -> None:
        """Routes, loops, delays and signals stand in branches."""
        routed = Flow().route(kind, {"long": summarise, "short": digest})
        looped = Flow().then(summarise).loop(refine)
        waits = Flow().delay("rest", "1s").signal("go", str)
        flow = Flow("x").then(start).fork().branch(routed).branch(looped, name="l").branch(waits).join(gather).build()
        found = [
            node(flow, p).kind for p in ("parallel/kind/route", "parallel/l/refine", "parallel/rest/go")
        ]  # the first task, else the first node, names a branch
        assert found == ["route", "loop", "signal"]

    def test_fork_first(self) -> None:
        """A fork may begin a flow; its branches say what the input is."""
        flow = Flow("x").fork().branch(lambda d: d, name="same").branch(entities).join(gather).build()
        assert (flow.has_input, flow.input_type) == (True, Doc)
        assert not Flow("x").fork().branch(start).branch(nothing).join(gather).build().has_input

    def test_join_with_defaults_and_rest(self) -> None:
        """Optional parameters may go without a branch; ``**rest`` takes any."""

        def loose(summarise: str, entities: list[str], note: str = "") -> str: ...
        def rest(summarise: str, entities: object, **others: object) -> str: ...

        fork = Flow("x").then(start).fork().branch(summarise).branch(entities)
        assert len(node(fork.join(loose).build(), "loose").args) == 2
        assert "kind" in dict(node(fork.branch(kind).join(rest).build(), "rest").kwargs)

    def test_join_does_not_fit(self) -> None:
        """Names are compared at the join's line."""
        fork = Flow("x").then(start).fork().branch(summarise).branch(entities)
        message = r"join 'merge' takes \(polish, entities\), but the branches are called summarise, entities"
        refused(lambda: fork.join(merge), message, at="join(")
        refused(lambda: fork.join(nothing), r"join 'nothing' takes \(\)", at="join(")

    def test_join_types(self) -> None:
        """Types are compared at build."""
        fork = Flow("x").then(start).fork().branch(clean, name="polish").branch(entities)
        refused(
            lambda: fork.join(merge).build(), "'merge' wants polish: str, but it is given .*Doc by 'polish'", at="join("
        )

    def test_no_branches(self) -> None:
        """A fork without branches is empty, and so is a branch without steps."""
        refused(lambda: Flow("x").then(start).fork().join(gather), "needs at least one branch", at="join(")
        refused(lambda: Flow("x").then(start).fork().branch(), "needs at least one step", at="branch(")

    def test_join_is_a_task(self) -> None:
        """A workflow or chain does not gather."""
        fork = Flow("x").then(start).fork().branch(summarise)
        refused(lambda: fork.join(digest), "join.. takes a task or a function, not a workflow", at="join(")
        refused(lambda: fork.join(Flow().then(gather)), "a chain cannot stand here", at="join(")

    def test_on_error(self) -> None:
        """There are two answers to a failure."""
        refused(lambda: Flow("x").then(start).fork(on_error="x"), "on_error must be", at="fork(")


class TestRoute:
    """A key task, then one case."""

    def test_cases(self) -> None:
        """The key is a step of its own; key and cases read the same value."""
        flow = Flow("x").then(fetch).route(kind, {"long": summarise, "short": Flow().then(digest).then(polish)}).build()
        assert flow.draw() == (
            "x\n├─ fetch\n├─ kind\n└─ route\n   ├─ kind=long\n   │  └─ summarise\n   └─ kind=short\n"
            "      ├─ digest (child)\n      │  └─ summarise\n      └─ polish"
        )
        assert node(flow, "route/kind=long/summarise").args == node(flow, "kind").args == (Ref(number(flow, "fetch")),)
        assert flow.output_type is str

    def test_lambda_key(self) -> None:
        """A lambda as key is named after the route."""
        flow = Flow("x").then(fetch).route(lambda d: bool(d.text), {True: summarise}, default=summarise, name="filled")
        assert flow.build().draw() == (
            "x\n├─ fetch\n├─ filled-key\n└─ filled (route)\n   ├─ filled-key=true\n   │  └─ summarise\n"
            "   └─ else\n      └─ summarise"
        )

    def test_lambda_key_without_name(self) -> None:
        """Without one it has none."""
        refused(lambda: Flow("x").route(lambda d: d, {1: summarise}), "has no name of its own", at="route(")

    def test_workflow_key(self) -> None:
        """A workflow may compute the key."""

        @workflow
        def choose(doc: Doc) -> Literal["long", "short"]:
            return kind(doc)

        flow = Flow("x").then(start).route(choose, {"long": summarise, "short": summarise}).build()
        assert node(flow, "route/choose=short/summarise").kind == "task"

    def test_not_exhaustive(self) -> None:
        """Declared keys are checked at build."""
        refused(lambda: Flow("x").route(kind, {"long": summarise}).build(), "has no case for 'short'", at="route(")

    def test_chain_as_key(self) -> None:
        """A key is one step."""
        refused(lambda: Flow("x").route(Flow().then(kind), {}), "a chain cannot stand here", at="route(")

    def test_cases_are_a_dict(self) -> None:
        """Anything else has no keys."""
        refused(lambda: Flow("x").route(kind, [summarise]), "are a dict of key and step, not a list", at="route(")


class TestLoop:
    """A body feeds itself."""

    def test_bodies(self) -> None:
        """A task, a chain and a workflow may be bodies."""
        assert Flow("x").loop(refine).build().draw() == "x\n└─ refine (loop, at most 10)\n   └─ refine"
        chained = (
            Flow("x").then(nothing).loop(Flow().then(polish).then(refine), max_iterations=2, name="better").build()
        )
        assert chained.draw() == "x\n├─ nothing\n└─ better (loop, at most 2)\n   ├─ polish\n   └─ refine"
        assert chained.output_type is int

    def test_lambda_body(self) -> None:
        """A lambda takes the loop's name."""
        flow = Flow("x", input=int).loop(lambda n: Done(n) if n > 3 else Again(n + 1), name="count").build()
        assert flow.draw() == "x\n└─ count (loop, at most 10)\n   └─ count"

    def test_plain_function_keeps_its_name(self) -> None:
        """``name=`` names the loop, not what is in it."""

        def step(text: str) -> Again[str] | Done[str]: ...

        flow = Flow("x").loop(step, name="steps").build()
        assert flow.draw() == "x\n└─ steps (loop, at most 10)\n   └─ step"

    def test_on_max(self) -> None:
        """``"last"`` is kept, and widens the type."""
        flow = Flow("x").loop(refine, on_max="last").build()
        assert (node(flow, "refine").on_max, flow.output_type) == ("last", int | str)

    @pytest.mark.parametrize("bad", [0, True, 1.5])
    def test_bad_counts(self, bad: Any) -> None:
        """The number of turns is whole and positive."""
        refused(lambda: Flow("x").loop(refine, max_iterations=bad), "max_iterations must be", at="loop(")

    def test_no_value(self) -> None:
        """A loop needs something to start from."""
        refused(lambda: Flow("x").loop(start), "loop 'start' has no value to start from", at="loop(")

    def test_body_must_say_again_or_done(self) -> None:
        """Else the loop could not know what to do."""
        refused(lambda: Flow("x").loop(polish).build(), "not Again or Done", at="loop(")


class TestWaiting:
    """Delays pass the value, signals replace it."""

    def test_delay(self) -> None:
        """What follows a delay reads what was before it."""
        flow = Flow("x").then(fetch).delay("rest", "2d").then(summarise).build()
        assert node(flow, "summarise").args == (Ref(number(flow, "fetch")),)
        assert node(flow, "rest").duration_us == 2 * 86_400_000_000

    def test_signal(self) -> None:
        """What follows a signal reads its payload."""
        flow = Flow("x").then(fetch).signal("approve", str, timeout=5).then(polish).build()
        assert node(flow, "polish").args == (Ref(number(flow, "approve")),)
        assert node(flow, "approve").timeout_us == 5_000_000

    def test_on_timeout(self) -> None:
        """It reads the value before the signal, or none if it takes none."""
        with_value = Flow("x").then(fetch).signal("go", str, timeout=1, on_timeout=summarise).build()
        assert node(with_value, "go/timeout/summarise").args == (Ref(number(with_value, "fetch")),)
        without = (
            Flow("x").then(fetch).signal("go", str, timeout=1, on_timeout=Flow().then(nothing).then(polish)).build()
        )
        assert node(without, "go/timeout/nothing").args == ()

    def test_signal_first(self) -> None:
        """A flow may begin by waiting; it takes no input then."""
        flow = Flow("x").signal("go", str).then(polish).build()
        assert (flow.has_input, node(flow, "polish").args) == (False, (Ref(number(flow, "go")),))

    def test_refusals(self) -> None:
        """Numbers and combinations are checked in the call."""
        refused(lambda: Flow("x").delay("rest", -1), "delay 'rest' must be", at="delay(")
        refused(lambda: Flow("x").then(fetch).delay("rest", "soon"), "delay 'rest' must be", at="delay(")
        refused(lambda: Flow("x").signal("go", str, timeout=0), "timeout of signal 'go' must be", at="signal(")
        refused(lambda: Flow("x").signal("go", str, on_timeout=nothing), "but no timeout=", at="signal(")


class TestMistakes:
    """A step that does not fit is told where it is added."""

    @pytest.mark.parametrize(
        ("step", "message"),
        [
            (merge, r"task 'merge' takes \(polish, entities\): missing a required argument: 'entities'"),
            (start, "task 'start' takes .*: too many positional arguments"),
            (lambda x: x, "has no name of its own"),
            (3, "a task is made from a function, not from 3"),
            (Flow(), r"an empty Flow\(\) is no step"),
        ],
    )
    def test_then(self, step: Any, message: str) -> None:
        """Whatever comes second takes one value."""
        refused(lambda: Flow("x").then(fetch).then(step), message, at="then(step)")

    def test_first_step(self) -> None:
        """The first takes one value or none."""
        refused(lambda: Flow("x").then(merge), "missing a required argument", at="then(")
        refused(lambda: Flow("x", input=str).then(start), "too many positional arguments", at="then(")

    def test_workflow_without_input(self) -> None:
        """A workflow that takes nothing cannot be fed."""

        @workflow
        def alone() -> Doc:
            return start()

        refused(lambda: Flow("x").then(fetch).then(alone), "workflow 'alone' takes no input", at="then(")

    def test_in_branches_cases_and_timeouts(self) -> None:
        """The same holds for every other place of a step."""
        chain = Flow("x").then(fetch)
        refused(lambda: chain.fork().branch(summarise, merge), "missing a required argument", at="branch(")
        refused(lambda: chain.route(kind, {"long": merge}), "missing a required argument", at="route(")
        refused(lambda: chain.route(kind, {}, default=start), "too many positional", at="route(")
        refused(lambda: chain.signal("go", str, timeout=1, on_timeout=merge), "missing a required", at="signal(")
        refused(lambda: chain.loop(merge), "missing a required argument", at="loop(")

    def test_type_mismatch(self) -> None:
        """Plain classes that cannot fit are refused at build, at the consumer's line."""
        chain: Chain[Any, Any] = Flow("x").then(fetch)
        refused(
            lambda: chain.then(polish).build(),
            "'polish' wants text: str, but it is given .*Doc by 'fetch'",
            at="polish",
        )

    def test_two_callables_one_name(self) -> None:
        """A step's code is found by its task's name."""

        def other(text: str) -> str: ...

        chain = Flow("x").then(fetch).then(summarise)
        refused(
            lambda: chain.then(polish).then(other, name="polish").build(),
            "two functions are called 'polish'",
            at="other",
        )

    def test_chain_has_no_name(self) -> None:
        """A chain's steps have names."""
        refused(lambda: Flow("x").then(Flow().then(fetch), name="f"), "a chain takes no name= or was=", at="then(")

    @pytest.mark.parametrize("make", [lambda: Flow("a/b"), lambda: Flow("x").then(fetch, name="a/b")])
    def test_names(self, make: Callable[[], object]) -> None:
        """Names stand in paths."""
        refused(make, "'a/b' contains '/'")

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Flow("x").then(fetch, was="a/b"),
            lambda: Flow("x").then(fetch).fork(name="a/b"),
            lambda: Flow("x").then(fetch).fork().branch(summarise, name="a/b"),
            lambda: Flow("x").then(fetch).route(kind, {}, name="a/b"),
            lambda: Flow("x").loop(refine, name="a/b"),
            lambda: Flow("x").delay("a/b", 1),
            lambda: Flow("x").signal("a/b"),
        ],
    )
    def test_names_everywhere(self, make: Callable[[], object]) -> None:
        """So do those of all other nodes."""
        refused(make, "'a/b' contains '/'")

    def test_empty(self) -> None:
        """A flow without steps, or without a name, is no workflow."""
        refused(lambda: Flow("x").build(), "workflow 'x' has no steps", at="Flow(")
        refused(lambda: Flow().then(fetch).build(), r"a Flow\(\) without a name is a step of another", at="Flow(")
