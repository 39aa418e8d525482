"""sayiir as a contestant.

One ``DurableEngine`` is kept for all instances of a measurement: the module-level helpers make one for each call, which
is slower. Every task has a name of its own, because sayiir takes two tasks of one name for one. It has no SQLite store
in Python.
"""

from __future__ import annotations

import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import work
from sayiir import DurableEngine, Flow, InMemoryBackend, LoopResult, Workflow, run_workflow, task
from work import VALUE, Value, check, check_value, us_each

step = task(work.step)


class Reached:
    at_s = 0.0


@task
def last(value: Value) -> Value:
    Reached.at_s = time.perf_counter()
    return work.step(value)


@task
def total(values: dict[str, Value]) -> int:
    return work.total(list(values.values()))


class Durable:
    """Instances of one workflow in one engine, numbered."""

    def __init__(self, flow: Workflow, backend: Any = None, name: str = "run") -> None:
        self.flow = flow
        self.engine = DurableEngine(backend if backend is not None else InMemoryBackend())
        self._name, self._numbers = name, count(1)

    def run(self) -> Any:
        name = f"{self._name}-{next(self._numbers)}"
        status = self.engine.run(self.flow._inner, name, VALUE, self.flow._task_registry)
        return status.output

    def park(self, name: str) -> None:
        status = self.engine.run(self.flow._inner, name, VALUE, self.flow._task_registry)
        check(status.is_completed() or status.is_failed(), False)

    def resume(self, name: str) -> Any:
        return self.engine.resume(self.flow._inner, name, self.flow._task_registry).output


def chain_flow(steps: int) -> Flow:
    flow = Flow(f"chain-{steps}")
    for number in range(steps):
        flow = flow.then(step, name=f"step-{number}")
    return flow


@cache
def chain(steps: int) -> Workflow:
    return chain_flow(steps).build()


@cache
def fork(branches: int) -> Workflow:
    flow = Flow(f"fork-{branches}").fork()
    for number in range(branches):
        flow = flow.branch(step, name=f"branch-{number}")
    return flow.join(total, name="total").build()


@cache
def turns(times: int) -> Workflow:
    @task
    def turn(value: Value) -> LoopResult[Value]:
        value = work.step(value)
        return LoopResult.again(value) if value["n"] < times else LoopResult.done(value)

    return Flow(f"loop-{times}").loop(turn, max_iterations=times).build()


def _plain(flow: Workflow, wanted: object, units: int) -> float:
    check(run_workflow(flow, VALUE), wanted)
    return us_each(lambda: run_workflow(flow, VALUE), units)


def _durable(flow: Workflow, wanted: object, units: int) -> float:
    durable = Durable(flow)
    check(durable.run(), wanted)
    return us_each(durable.run, units)


def after(steps: int) -> Value:
    return {**VALUE, "n": steps}


def chain_in_memory(steps: int, scratch: Path) -> float:
    return _plain(chain(steps), after(steps), steps)


def chain_memory(steps: int, scratch: Path) -> float:
    return _durable(chain(steps), after(steps), steps)


def loop_in_memory(count: int, scratch: Path) -> float:
    return _plain(turns(count), after(count), count)


def loop_memory(count: int, scratch: Path) -> float:
    return _durable(turns(count), after(count), count)


def fork_in_memory(branches: int, scratch: Path) -> float:
    return _plain(fork(branches), branches, branches)


fork_inline_in_memory = fork_in_memory


def fork_memory(branches: int, scratch: Path) -> float:
    return _durable(fork(branches), branches, branches)


def many_in_memory(instances: int, scratch: Path) -> float:
    check_value(run_workflow(chain(4), VALUE), 4)
    return instances / work.seconds(lambda: [run_workflow(chain(4), VALUE) for _ in range(instances)])


def many_memory(instances: int, scratch: Path) -> float:
    durable = Durable(chain(4))
    for _ in range(50):
        check_value(durable.run(), 4)
    return instances / work.seconds(lambda: [durable.run() for _ in range(instances)])


def resume_memory(steps: int, scratch: Path) -> float:
    """Milliseconds to go on after a delay that is over: a cut run cannot be made inside one process."""
    return resumed_ms(steps, InMemoryBackend())


def resumed_ms(steps: int, backend: Any) -> float:
    durable = Durable(chain_flow(steps).delay("pause", 0.001).then(last, name="last").build(), backend)
    durable.park("cut")
    time.sleep(0.01)
    outputs: list[Value] = []
    took = work.seconds(lambda: outputs.append(durable.resume("cut")))
    check_value(outputs[0], steps + 1)
    return took * 1e3


def signal_memory(count: int, scratch: Path) -> dict[str, float]:
    flow = Flow("awaits").then(step, name="first").wait_for_signal("go").then(last, name="last").build()
    durable = Durable(flow)
    names = [f"waits-{i}" for i in range(count)]
    for name in names:
        durable.park(name)
    return work.percentiles_us([_signal(durable, name) for name in names][count // 10 :])


def _signal(durable: Durable, name: str) -> float:
    sent = time.perf_counter()
    durable.engine.send_signal(name, "go", VALUE)
    check_value(durable.resume(name), 1)
    return Reached.at_s - sent
