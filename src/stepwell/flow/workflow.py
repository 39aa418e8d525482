"""A finished workflow: immutable, typed, and independent of what runs it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar, cast, overload

import msgspec

from stepwell.codec import assignable, type_name
from stepwell.errors import GraphError, OptionError, UsageError
from stepwell.types import METADATA_BYTES_MAX, check_name

from .compile import Bodies, compile_workflow
from .declared import declared
from .nodes import Body
from .plan import Plan
from .tracer import active_tracer

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class Workflow(Generic[In, Out]):
    """A named, typed graph, made by ``@workflow`` or ``Flow.build()``; given to a runner or called in another workflow.

    Attributes:
        name: what instances are recorded under.
        plan: the graph as data.
        metadata: what the author attached; tasks see it in their context.
        input_type: the declared type of the input; meaningless without one.
        output_type: the declared type of the result.
        has_input: whether it is run with a value.
        where: ``"file:line"`` of its definition.

    Raises:
        GraphError: the graph cannot be built; the message carries the user's line.

    Example:
        >>> from stepwell import Flow
        >>> words = Flow("words").then(str.split, name="split").then(len).build()
        >>> print(words.draw())
        words
        ├─ split
        └─ len
    """

    __slots__ = ("bodies", "body", "has_input", "input_type", "metadata", "name", "output_type", "plan", "where")

    def __init__(
        self,
        name: str,
        body: Body,
        *,
        input_type: object,
        output_type: object,
        has_input: bool,
        metadata: Mapping[str, object],
        where: str,
    ) -> None:
        self.name = check_name(name, "a workflow's name")
        self.body, self.input_type, self.output_type = body, input_type, output_type
        self.has_input, self.where = has_input, where
        self.metadata: Mapping[str, object] = MappingProxyType(_checked_metadata(name, metadata))
        self.plan: Plan
        self.bodies: Bodies
        self.plan, self.bodies = compile_workflow(name, body, input_type, has_input, where)
        _check_output(name, declared(body.output), output_type, where)

    @overload
    def __call__(self: Workflow[None, Out]) -> Out: ...
    @overload
    def __call__(self, value: In, /) -> Out: ...
    def __call__(self, *args: object) -> Out:
        """Stand as a child in the workflow that is being traced. Raises UsageError anywhere else."""
        tracer = active_tracer()
        if tracer is None:
            raise UsageError(
                f"workflow {self.name!r} is not called directly: InProcessRunner().run({self.name}, …) runs it "
                f"in memory, CheckpointingRunner(SqliteBackend('file.db')).run(…) so that it survives a crash"
            )
        return cast(Out, tracer.child(cast("AnyWorkflow", self), args))

    def __repr__(self) -> str:
        return f"<workflow {self.name!r} of {len(self.plan.nodes)} nodes at {self.where}>"

    @property
    def fingerprint(self) -> str:
        """The graph's fingerprint: names, types and wiring, not tuning or function bodies."""
        return self.plan.fingerprint

    def draw(self) -> str:
        """Return the graph as an indented text tree."""
        from .draw import text

        return text(self.plan)

    def mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        from .draw import mermaid

        return mermaid(self.plan)


AnyWorkflow: TypeAlias = Workflow[Any, Any]


def _check_output(name: str, produced: object, output_type: object, where: str) -> None:
    if assignable(produced, output_type) is False:
        told = type_name(produced)
        mend = "; is a `return` missing?" if produced is type(None) else ""
        raise GraphError(
            f"workflow {name!r} declares to return {type_name(output_type)}, but it returns {told}{mend}", where
        )


def _checked_metadata(name: str, metadata: Mapping[str, object]) -> dict[str, object]:
    try:
        size = len(msgspec.json.encode(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise OptionError(f"metadata of workflow {name!r} must be what JSON can hold: {error}") from None
    if size > METADATA_BYTES_MAX:
        raise OptionError(f"metadata of workflow {name!r} has {size} bytes; at most {METADATA_BYTES_MAX} are allowed")
    return dict(metadata)
