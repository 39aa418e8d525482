"""From the author's tree to the plan: numbering, naming, wiring, and every check a build makes.

The compiler walks the tree once, gives each node a row and each source an argument in terms of rows, and keeps what is
not data (callables, types, constants, source lines) in :class:`Bodies`. A workflow used as a child is walked again at
each use, with its input standing for the caller's argument, so a child costs no decision or storage of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from enum import Enum
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin

import msgspec

from stepwell.codec import JsonCodec, assignable, digest, type_name
from stepwell.errors import CodecError, GraphError
from stepwell.retry import Retry
from stepwell.types import NEST_MAX, NODES_MAX

from . import nodes as n
from .declared import declared, may_say_again, misspelt, spelt
from .fingerprint import fingerprint_of
from .plan import NONE, PLAN_VERSION, Arg, Built, Constant, Plan, PlanData, PlanNode, Ref, RetryNumbers, Selected, refs
from .task import AnyTask, Task

_SHOWN_MAX: Final = 10  # route keys in a message
HIDDEN: Final = frozenset({"case", "turn", "timeout"})  # values inside may not exist, or exist many times


class Bodies(msgspec.Struct, eq=False):
    """What belongs to a plan but is not data, by node.

    Attributes:
        tasks: the user's tasks.
        types: the declared type of each value that a node yields.
        payloads: the declared type of each signal's payload, by the signal's name.
        wanted: the declared types of a task's arguments, positional then by name; ``Any`` where none is declared.
        cases: for each route, the case's name by typed key.
        constants: values written in the workflow, by :class:`~stepwell.flow.plan.Constant` index.
        where: ``file:line`` of the user's call.
    """

    tasks: dict[int, AnyTask] = {}
    types: dict[int, object] = {}
    payloads: dict[str, object] = {}
    wanted: dict[int, tuple[tuple[object, ...], dict[str, object]]] = {}
    cases: dict[int, dict[tuple[type, object], str]] = {}
    constants: list[object] = []
    where: dict[int, str] = {}


class _Row(msgspec.Struct, eq=False):
    kind: Any
    name: str
    parent: int
    depth: int
    children: list[int] = []
    more: dict[str, Any] = {}


_Env: TypeAlias = dict[int, Arg]


def compile_workflow(name: str, body: n.Body, input_type: object, has_input: bool, where: str) -> tuple[Plan, Bodies]:
    """Return the plan of a workflow and what belongs to it.

    Raises:
        GraphError: with the file and line of the user's call that cannot be built.
    """
    compiler = _Compiler()
    compiler.root(name, body, input_type if has_input else None, has_input, where)
    nodes = compiler.nodes()
    return Plan(PlanData(PLAN_VERSION, name, nodes, fingerprint_of(name, nodes))), compiler.bodies


class _Compiler:
    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.bodies = Bodies()
        self.codec = JsonCodec()
        self.names: dict[int, Counter[str]] = {}
        self.callables: dict[str, AnyTask] = {}

    # --- rows ---

    def row(self, kind: str, name: str, parent: int, depth: int, where: str = "", **more: Any) -> int:
        if len(self.rows) >= NODES_MAX:
            raise GraphError(f"a workflow has at most {NODES_MAX} nodes; use a loop or several instances", where)
        index = len(self.rows)
        self.rows.append(_Row(kind, self._unique(parent, name), parent, depth, more=more))
        if parent >= 0:
            self.rows[parent].children.append(index)
        self.bodies.where[index] = where
        return index

    def _unique(self, parent: int, name: str) -> str:
        counts = self.names.setdefault(parent, Counter())
        counts[name] += 1
        return name if counts[name] == 1 else f"{name}#{counts[name]}"

    def nodes(self) -> tuple[PlanNode, ...]:
        self._find_needs()
        return tuple(
            PlanNode(row.kind, row.name, row.parent, row.depth, tuple(row.children), **row.more) for row in self.rows
        )

    # --- sequences ---

    def root(self, name: str, body: n.Body, input_type: object, has_input: bool, where: str) -> None:
        if not body.nodes:
            raise GraphError(f"workflow {name!r} has no steps; call a task in it, or add one with then()", where)
        self.sequence("root", name, NONE, 0, body, {}, where, entrance=(input_type,) if has_input else ())
        self.rows[0].more["interface"] = _interface(
            f"in={type_name(input_type) if has_input else '-'}", f"out={type_name(declared(body.output))}"
        )

    def sequence(
        self,
        kind: str,
        name: str,
        parent: int,
        depth: int,
        body: n.Body,
        env: _Env,
        where: str,
        entrance: tuple[object, ...] = (),
    ) -> int:
        """Add a body as a sequence. ``entrance`` holds the type of the value it is entered with, if it takes one."""
        index = self.row(kind, name, parent, depth, where)
        self._check_nesting(index, where)
        if entrance:
            entered_with = _interface("input", type_name(entrance[0]))
            place = self.row("input", "input", index, depth, where, interface=entered_with)
            self.bodies.types[place] = entrance[0]
            env[id(body)] = Ref(place)
        for node in body.nodes:
            self.node(node, index, depth, env)
        if body.output is not None:
            self.rows[index].more["output"] = self.value_of(body.output, "result", index, depth, env, where)
        return index

    def _check_nesting(self, index: int, where: str) -> None:
        deep = sum(1 for _ in self._upwards(index))
        if deep > 3 * NEST_MAX:
            raise GraphError(f"nodes are nested more than {NEST_MAX} deep; make a part its own workflow", where)

    def _upwards(self, index: int) -> Iterator[int]:
        while index >= 0:
            yield index
            index = self.rows[index].parent

    # --- sources ---

    def value_of(self, source: n.Source, name: str, parent: int, depth: int, env: _Env, where: str) -> int:
        """Return the node whose value ``source`` is, packing it into one where it is more than a reference."""
        arg = self.arg(source, parent, env, where)
        if isinstance(arg, Ref):
            return arg.node
        index = self.row("pack", name, parent, depth, where, args=(arg,), interface=_interface("pack"))
        self.bodies.wanted[index], self.bodies.types[index] = ((Any,), {}), declared(source)
        return index

    def arg(self, source: n.Source, reader: int, env: _Env, where: str) -> Arg:
        match source:
            case n.Value(node):
                return self._visible(env.get(id(node)), node.name, reader, where)
            case n.Input(body):
                return self._visible(env.get(id(body)), "the input", reader, where)
            case n.Select(base, steps):
                if name := misspelt(declared(base), steps):
                    known = f"{_describe(base)} is declared as {type_name(declared(base))}"
                    mend = spelt(declared(base), steps, name)
                    raise GraphError(f"nothing is called .{name} there: {known}{mend}", where)
                return Selected(self.arg(base, reader, env, where), steps)
            case n.Const(value):
                return self._constant(value, where)
            case n.Display(kind, items, keys):
                return Built(
                    kind,
                    tuple(self.arg(item, reader, env, where) for item in items),
                    tuple(self._constant(key, where) for key in keys),
                )

    def _constant(self, value: object, where: str) -> Constant:
        try:
            text = digest(self.codec, value).hex()
        except CodecError as error:
            mend = f"; to run the task, call it: {value.name}(…)" if isinstance(value, Task) else ""
            raise GraphError(f"a constant of a workflow must be storable: {error}{mend}", where) from None
        self.bodies.constants.append(deepcopy(value))  # what the author does to it later changes nothing here
        return Constant(len(self.bodies.constants) - 1, text)

    def _visible(self, arg: Arg | None, what: str, reader: int, where: str) -> Arg:
        if arg is None:
            raise GraphError(
                f"the value of {what!r} is not known here: it belongs to another workflow or comes later; "
                f"call its step in this workflow, before this line",
                where,
            )
        around = set(self._upwards(reader))
        for producer in refs(arg):
            scope = next(
                (s for s in self._upwards(self.rows[producer].parent) if s in around or self.rows[s].kind in HIDDEN), 0
            )
            if scope not in around:
                kind = {"case": "a route's case", "turn": "a loop's body", "timeout": "a timeout branch"}[
                    self.rows[scope].kind
                ]
                raise GraphError(
                    f"the value of {what!r} lives inside {kind}; return it from there to use it outside", where
                )
        return arg

    # --- nodes ---

    def node(self, node: n.Node, parent: int, depth: int, env: _Env) -> None:
        match node:
            case n.TaskNode():
                index = self._task(node, parent, depth, env)
            case n.ParallelNode():
                index = self._parallel(node, parent, depth, env)
            case n.BranchNode():
                index = self._branch(node, parent, depth, env)
            case n.RouteNode():
                index = self._route(node, parent, depth, env)
            case n.LoopNode():
                index = self._loop(node, parent, depth, env)
            case n.DelayNode():
                index = self.row("delay", node.name, parent, depth, node.where, duration_us=node.duration_us)
            case n.SignalNode():
                index = self._signal(node, parent, depth, env)
            case n.ChildNode():
                index = self._child(node, parent, depth, env)
        row = self.rows[index]
        row.more.setdefault("interface", _interface(row.kind))
        if node.was:
            row.more["was"] = node.was
        self.bodies.types[index] = declared(n.Value(node))
        env[id(node)] = Ref(index)

    def _task(self, node: n.TaskNode, parent: int, depth: int, env: _Env) -> int:
        task, options = node.task, node.task.options
        self._check_same_callable(task, node.where)
        args = tuple(self.arg(a, parent, env, node.where) for a in node.args)
        kwargs = tuple((k, self.arg(a, parent, env, node.where)) for k, a in node.kwargs.items())
        wanted = wanted_types(task, len(args), node.kwargs)
        index = self.row(
            "task", node.name, parent, depth, node.where, args=args, kwargs=kwargs, task=task.name,
            retry=_numbers(options.retry), timeout_us=options.timeout_us, delivery=options.delivery,
            priority=options.priority, tags=options.tags, interface=_task_interface(task),
        )  # fmt: skip
        self.bodies.tasks[index], self.bodies.wanted[index] = task, wanted
        self._check_types(node, *wanted)
        return index

    def _check_same_callable(self, task: AnyTask, where: str) -> None:
        known = self.callables.setdefault(task.name, task)
        if known.fn is not task.fn:
            raise GraphError(
                f"two functions are called {task.name!r} in one workflow, at {known.where} and {task.where}; "
                f"give one of them a name: @task('other-name')",
                where,
            )

    def _check_types(self, node: n.TaskNode, wanted: Sequence[object], wanted_by_name: Mapping[str, object]) -> None:
        names = list(node.task.params)
        pairs = [(names[min(i, len(names) - 1)], a, w) for i, (a, w) in enumerate(zip(node.args, wanted, strict=True))]
        for name, source, declared_type in [*pairs, *((k, a, wanted_by_name[k]) for k, a in node.kwargs.items())]:
            produced = declared(source)
            if assignable(produced, declared_type) is False:
                raise GraphError(
                    f"{node.name!r} wants {name}: {type_name(declared_type)}, but it is given {type_name(produced)} "
                    f"by {_describe(source)}; convert it in a task, or mend the annotation that is wrong",
                    node.where,
                )

    def _parallel(self, node: n.ParallelNode, parent: int, depth: int, env: _Env) -> int:
        if not node.children:
            raise GraphError("parallel() holds no steps; call a task in it, or leave it out", node.where)
        index = self.row("parallel", node.name, parent, depth, node.where, on_error=node.on_error)
        self.rows[index].more["interface"] = _interface("parallel", node.on_error)
        for child in node.children:
            self.node(child, index, depth, env)
        return index

    def _branch(self, node: n.BranchNode, parent: int, depth: int, env: _Env) -> int:
        if not node.body.nodes:
            raise GraphError(f"branch {node.name!r} holds no steps; call a task in it, or leave it out", node.where)
        return self.sequence("branch", node.name, parent, depth, node.body, env, node.where)

    def _route(self, node: n.RouteNode, parent: int, depth: int, env: _Env) -> int:
        if not node.cases and node.default is None:
            raise GraphError(
                f"route {node.name!r} has no cases; give it a dict of key and step, or default=", node.where
            )
        key = self.arg(node.key, parent, env, node.where)
        check_cases(node)
        index = self.row("route", node.name, parent, depth, node.where, args=(key,))
        self.bodies.wanted[index] = ((node.key_type if node.key_type is not None else Any,), {})
        self.bodies.cases[index] = {}
        for key_value, body in node.cases:
            self._case(index, node, key_value, body, depth, env)
        if node.default is not None:
            self.sequence("case", "else", index, depth, node.default, env, node.where)
        self.rows[index].more["interface"] = _interface("route", node.label)
        return index

    def _case(self, route: int, node: n.RouteNode, key: object, body: n.Body, depth: int, env: _Env) -> None:
        segment = f"{node.label}={key_text(key)}"
        if any(self.rows[c].name == segment for c in self.rows[route].children):
            raise GraphError(
                f"route {node.name!r} has two cases that read {segment!r} in paths; give one of them another key",
                node.where,
            )
        self.bodies.cases[route][(type(key), key)] = segment
        self.sequence("case", segment, route, depth, body, env, node.where)

    def _loop(self, node: n.LoopNode, parent: int, depth: int, env: _Env) -> int:
        first = self.value_of(node.first, f"{node.name}-first", parent, depth, env, node.where)
        if node.was and self.rows[first].kind == "pack":
            self.rows[first].more["was"] = f"{node.was}-first"
        index = self.row(
            "loop", node.name, parent, depth, node.where,
            first=first, max_iterations=node.max_iterations, on_max=node.on_max,
        )  # fmt: skip
        entered_with = node.body.input_type if node.body.input_type is not None else Any
        turn = self.sequence("turn", "turn", index, depth + 1, node.body, env, node.where, entrance=(entered_with,))
        self._check_says_again(self.rows[turn].more.get("output", NONE), turn, node)
        self.rows[index].more["interface"] = _interface("loop", node.on_max)
        return index

    def _check_says_again(self, output: int, turn: int, node: n.LoopNode) -> None:
        """A turn's value must come from a task of this turn: nothing else can say Again or Done."""
        inside = output != NONE and turn in self._upwards(output)
        kind = self.rows[output].kind if inside else "none"
        if kind == "task":
            returns = self.bodies.types[output]
            if not may_say_again(returns):
                raise GraphError(
                    f"loop {node.name!r} goes on by what its body returns: {self.rows[output].name!r} returns "
                    f"{type_name(returns)}, not Again or Done; return Again(value) to take another turn, Done(value) "
                    f"to leave the loop",
                    node.where,
                )
        elif kind in ("route", "child", "branch"):
            inner = [c for c in self.rows[output].children if self.rows[c].kind == "case"] or [output]
            for sequence in inner:
                self._check_says_again(self.rows[sequence].more.get("output", NONE), turn, node)
        else:
            raise GraphError(
                f"loop {node.name!r}: its body must end with a task that returns Again or Done; return the handle of "
                f"such a task as its last line",
                node.where,
            )

    def _signal(self, node: n.SignalNode, parent: int, depth: int, env: _Env) -> int:
        self._check_signal_type(node)
        index = self.row(
            "signal", node.name, parent, depth, node.where, signal=node.signal, timeout_us=node.timeout_us or 0,
            interface=_interface("signal", node.signal, type_name(node.payload_type)),
        )  # fmt: skip
        if node.on_timeout is not None:
            self.sequence("timeout", "timeout", index, depth, node.on_timeout, env, node.where)
        return index

    def _check_signal_type(self, node: n.SignalNode) -> None:
        known = self.bodies.payloads.setdefault(node.signal, node.payload_type)
        if known != node.payload_type:
            raise GraphError(
                f"signal {node.signal!r} is awaited with two payload types, {type_name(known)} and "
                f"{type_name(node.payload_type)}; one name has one type, so give one of them another name",
                node.where,
            )

    def _child(self, node: n.ChildNode, parent: int, depth: int, env: _Env) -> int:
        workflow = node.workflow
        inner: _Env = {}
        if node.arg is not None:
            inner[id(workflow.body)] = self.arg(node.arg, parent, env, node.where)
            produced = declared(node.arg)
            if assignable(produced, workflow.input_type) is False:
                raise GraphError(
                    f"workflow {workflow.name!r} wants {type_name(workflow.input_type)}, but it is given "
                    f"{type_name(produced)}; convert it in a task, or mend the annotation that is wrong",
                    node.where,
                )
        index = self.sequence("child", node.name, parent, depth, workflow.body, inner, node.where)
        self.rows[index].more["interface"] = _interface("child", workflow.name)
        return index

    # --- data flow inside parallels ---

    def _find_needs(self) -> None:
        """Say which siblings a child of a parallel must wait for: those whose values anything inside it reads."""
        for reader, row in enumerate(self.rows):
            for read in _reads(row):
                above = {parent: child for child, parent in self._steps_up(read)}
                for child, parent in self._steps_up(reader):
                    producer = above.get(parent)
                    if self.rows[parent].kind == "parallel" and producer is not None and producer != child:
                        needs = self.rows[child].more.get("needs", ())
                        self.rows[child].more["needs"] = tuple(sorted({*needs, producer}))

    def _steps_up(self, index: int) -> Iterator[tuple[int, int]]:
        while (parent := self.rows[index].parent) >= 0:
            yield index, parent
            index = parent


def _reads(row: _Row) -> Iterator[int]:
    for arg in (*row.more.get("args", ()), *(a for _, a in row.more.get("kwargs", ()))):
        yield from refs(arg)
    for place in ("output", "first"):
        if row.more.get(place, NONE) != NONE:
            yield row.more[place]


# --- texts and types ------------------------------------------------------------------------


def _describe(source: n.Source) -> str:
    match source:
        case n.Value(node):
            return repr(node.name)
        case n.Input():
            return "the workflow's input"
        case n.Select(base, steps):
            selected = "".join(f".{key}" if kind == "attr" else f"[{key!r}]" for kind, key in steps)
            return f"{selected:.80} of {_describe(base)}"
        case _:
            return "a constant"


def _interface(*parts: str) -> str:
    return msgspec.json.encode(parts).decode()


def _task_interface(task: AnyTask) -> str:
    inputs = [f"{p.name}:{type_name(p.annotation)}" for p in task.params.values()]
    return _interface("task", task.options.version, type_name(task.returns), *inputs)


def _numbers(policy: Retry) -> RetryNumbers:
    return RetryNumbers(policy.attempts, policy.delay_us, policy.factor, policy.max_delay_us, policy.jitter)


def wanted_types(
    task: AnyTask, count: int, kwargs: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the declared types of a call's arguments: ``count`` positional ones, then those by name."""
    kinds = [p for p in task.params.values() if p.kind.name in ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")]
    rest = next((p.annotation for p in task.params.values() if p.kind.name == "VAR_POSITIONAL"), Any)
    more = next((p.annotation for p in task.params.values() if p.kind.name == "VAR_KEYWORD"), Any)
    positional = tuple(kinds[i].annotation if i < len(kinds) else rest for i in range(count))
    return positional, {k: task.params[k].annotation if k in task.params else more for k in kwargs}


def key_text(key: object) -> str:
    """Return a route key as it stands in paths: typed, and without the characters that paths use."""
    if isinstance(key, Enum):
        return key.name
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return str(key)
    text = str(key)
    quoted = f"'{text}'" if text in ("true", "false", "", "else") or text.lstrip("-").isdecimal() else text
    return "".join(c if c.isprintable() and c not in "/[]#=%" else _escaped(c) for c in quoted)


def _escaped(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass"))


def check_cases(node: n.RouteNode) -> None:
    """Refuse keys that no value can have, and declared values without a case. Raises GraphError."""
    for key, _ in node.cases:
        if not isinstance(key, str | int | Enum):
            raise GraphError(
                f"route {node.name!r}: a key is a str, int, bool or Enum, not {type(key).__name__}", node.where
            )
    declared = declared_keys(node.key_type)
    if declared is None:
        return
    given = {(type(k), k) for k, _ in node.cases}
    if extra := [k for k, _ in node.cases if (type(k), k) not in declared]:
        raise GraphError(
            f"route {node.name!r}: {_shown(extra[0])} is not one of {type_name(node.key_type)}; its cases are "
            f"{_listed([k for _, k in declared])}",
            node.where,
        )
    missing = [k for t, k in declared if (t, k) not in given]
    if missing and node.default is None:
        listed = _listed(missing)
        raise GraphError(f"route {node.name!r} has no case for {listed}; add one or a default", node.where)


def _listed(keys: Sequence[object]) -> str:
    more = f" and {len(keys) - _SHOWN_MAX} more" if len(keys) > _SHOWN_MAX else ""
    return ", ".join(map(_shown, keys[:_SHOWN_MAX])) + more


def _shown(key: object) -> str:
    return str(key) if isinstance(key, Enum) and not isinstance(key, str | int) else f"{key!r:.80}"


def declared_keys(declared: object) -> list[tuple[type, object]] | None:
    """Return all values of an Enum, Literal or bool type, or ``None`` if the type does not list them."""
    if isinstance(declared, type) and issubclass(declared, Enum):
        return [(declared, member) for member in declared]
    if get_origin(declared) is Literal:
        return [(type(v), v) for v in get_args(declared)]
    if declared is bool:
        return [(bool, True), (bool, False)]
    return None
