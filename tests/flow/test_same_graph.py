"""Both front ends make the same graph: equal plans, equal fingerprints."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.flow.builder import Chain, Flow
from stepwell.flow.task import AnyTask, task
from stepwell.flow.trace import branch, delay, loop, parallel, route, signal, workflow
from stepwell.flow.workflow import Workflow
from stepwell.types import Again, Done


class Size(Enum):
    SMALL = 1
    LARGE = 2


@dataclass
class Doc:
    text: str


@task
def fetch(url: str) -> Doc: ...
@task
async def clean(doc: Doc) -> Doc: ...
@task("tidy", attempts=3, timeout="5s", version="2")
def tidy(doc: Doc) -> Doc: ...
@task
def size(doc: Doc) -> Size: ...
@task
def summarise(doc: Doc) -> str: ...
@task
def polish(text: str) -> str: ...
@task
def merge(left: str, right: Doc) -> str: ...
@task
def gather(parts: dict[str, Any]) -> str: ...
@task
def refine(text: str) -> Again[str] | Done[str]: ...
@task
def escalate(text: str) -> str: ...
@task
def start() -> Doc: ...


@workflow
def digest(doc: Doc) -> str:
    return summarise(doc)


@workflow("sequence")
async def traced_sequence(url: str) -> str:
    return polish.named("shine", was="gloss")(summarise(tidy(await clean(fetch(url)))))


fluent_sequence = (
    Flow("sequence").then(fetch).then(clean).then(tidy).then(summarise).then(polish, name="shine", was="gloss").build()
)


@workflow("fork")
async def traced_fork(url: str) -> str:
    doc = fetch(url)
    with parallel("both", on_error="wait"):
        with branch("left"):
            left = polish(summarise(doc))
        right = await clean.named("right")(doc)
    return merge(left, right)


fluent_fork = (
    Flow("fork")
    .then(fetch)
    .fork(name="both", on_error="wait")
    .branch(summarise, polish, name="left")
    .branch(clean, name="right")
    .join(merge)
    .build()
)


@workflow("gathered")
def traced_gathered(doc: Doc) -> str:
    with parallel():
        first = summarise(doc)
        second = summarise(doc)
        third = digest(doc)
    return gather({"summarise": first, "summarise#2": second, "digest": third})


fluent_gathered = Flow("gathered").fork().branch(summarise).branch(summarise).branch(digest).join(gather).build()


@workflow("route")
def traced_route(url: str) -> str:
    doc = fetch(url)
    by = size(doc)
    return route(by, {Size.SMALL: lambda: summarise(doc), Size.LARGE: lambda: polish(summarise(doc))})


fluent_route = (
    Flow("route")
    .then(fetch)
    .route(size, {Size.SMALL: summarise, Size.LARGE: Flow().then(summarise).then(polish)})
    .build()
)


@workflow("loop")
def traced_loop(text: str) -> str:
    def better(value: str) -> Again[str] | Done[str]:
        return refine(polish(value))

    return loop(better, loop(refine, text), max_iterations=3, on_max="last")


fluent_loop = (
    Flow("loop")
    .loop(refine)
    .loop(Flow().then(polish).then(refine), name="better", max_iterations=3, on_max="last")
    .build()
)


@workflow("waits")
def traced_waits() -> str:
    doc = start()
    delay("1h", name="rest")
    text = summarise(doc)
    return polish(signal("approve", str, timeout="2d", on_timeout=lambda: escalate(text)))


fluent_waits = (
    Flow("waits")
    .then(start)
    .delay("rest", 3600)
    .then(summarise)
    .signal("approve", str, timeout="2d", on_timeout=escalate)
    .then(polish)
    .build()
)

PAIRS = [
    (traced_sequence, fluent_sequence),
    (traced_fork, fluent_fork),
    (traced_gathered, fluent_gathered),
    (traced_route, fluent_route),
    (traced_loop, fluent_loop),
    (traced_waits, fluent_waits),
]


@pytest.mark.parametrize(("traced", "fluent"), PAIRS, ids=lambda w: w.name)
def test_pairs(traced: Workflow[Any, Any], fluent: Workflow[Any, Any]) -> None:
    """Each kind of node, written twice, is one plan of one type."""
    assert traced.plan.data == fluent.plan.data
    assert traced.fingerprint == fluent.fingerprint
    assert (traced.input_type, traced.output_type) == (fluent.input_type, fluent.output_type)
    assert traced.plan.to_bytes() == fluent.plan.to_bytes()


def test_names_and_wiring_count() -> None:
    """The comparison can fail: another name, another order or another source is another graph."""
    base = Flow("sequence").then(fetch).then(clean).then(tidy).then(summarise)
    others = [base.then(polish).build(), base.then(polish, name="gloss").build(), base.build(), fluent_fork]
    assert len({w.fingerprint for w in [fluent_sequence, *others]}) == 5


# --- random pipelines over one type ------------------------------------------------------------------


@task
def one(text: str) -> str: ...
@task
def two(text: str) -> str: ...
@task
def three(text: str) -> str: ...
@task
def pick(text: str) -> bool: ...


Shape = tuple[Any, ...]


def shapes() -> st.SearchStrategy[Shape]:
    """Return pipelines as data: each a tuple of steps, steps holding pipelines."""
    leaf = st.one_of(
        st.sampled_from([one, two, three]).map(lambda t: ("task", t)),
        st.just(("delay",)),
        st.just(("signal",)),
        st.just(("child",)),
        st.just(("loop",)),
    )

    def line(step: st.SearchStrategy[Any]) -> st.SearchStrategy[Shape]:
        return st.lists(step, min_size=1, max_size=3).map(lambda steps: (("task", one), *steps))

    return st.recursive(
        line(leaf),
        lambda inner: line(
            st.one_of(
                leaf,
                st.tuples(st.just("fork"), st.lists(inner, min_size=1, max_size=3)),
                st.tuples(st.just("route"), inner, inner),
            )
        ),
        max_leaves=6,
    )


@workflow
def shared(text: str) -> str:
    return two(text)


def fluent(shape: Shape, chain: Any) -> Chain[str, str]:
    """Write a pipeline in the fluent form."""
    for kind, *parts in shape:
        match kind:
            case "task":
                chain = chain.then(parts[0])
            case "delay":
                chain = chain.delay("wait", "1s")
            case "signal":
                chain = chain.signal("go", str)
            case "child":
                chain = chain.then(shared)
            case "loop":
                chain = chain.loop(refine, max_iterations=2)
            case "route":
                chain = chain.route(pick, {True: fluent(parts[0], Flow()), False: fluent(parts[1], Flow())})
            case _:
                fork = chain.fork()
                for at, inner in enumerate(parts[0]):
                    fork = fork.branch(fluent(inner, Flow()), name=f"b{at}")
                chain = fork.join(gather)
    return chain


def traced(shape: Shape, value: Any) -> Any:
    """Write the same in a workflow function."""
    for kind, *parts in shape:
        match kind:
            case "task":
                value = call(parts[0], value)
            case "delay":
                delay("1s", name="wait")
            case "signal":
                value = signal("go", str)
            case "child":
                value = shared(value)
            case "loop":
                value = loop(refine, value, max_iterations=2)
            case "route":
                yes, no = (lambda p=part, v=value: traced(p, v) for part in parts)
                value = route(pick(value), {True: yes, False: no})
            case _:
                value = traced_forked(parts[0], value)
    return value


def call(step: AnyTask, value: Any) -> Any:
    """Call a task."""
    return step(value)


def traced_forked(branches: list[Shape], value: Any) -> Any:
    """Write a fork in a workflow function."""
    values: dict[str, Any] = {}
    with parallel():
        for at, inner in enumerate(branches):
            with branch(f"b{at}"):
                values[f"b{at}"] = traced(inner, value)
    return gather(values)


@settings(max_examples=100, deadline=None)
@given(shapes())
def test_random_pipelines(shape: Shape) -> None:
    """Whatever a pipeline is made of, both ways of writing it give one plan."""

    @workflow("random")
    def by_trace(text: str) -> str:
        result: str = traced(shape, text)
        return result

    assert fluent(shape, Flow("random")).build().plan.data == by_trace.plan.data
