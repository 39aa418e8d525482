"""Running a workflow in memory: for scripts and unit tests. Nothing outlives the call."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar, overload

from stepwell.codec import Codec

from . import session, starting
from .clock import AsyncMailbox, Clock, Mailbox
from .control import Control
from .drive import Drive
from .drivers import check_no_loop, run_async, run_sync
from .room import Room

if TYPE_CHECKING:
    from stepwell.flow.workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")
AsyncFunction: TypeAlias = Callable[[In], Coroutine[Any, Any, Out]]


class _Base:
    """What both runners are made of."""

    def __init__(
        self,
        *,
        deps: Mapping[Any, object] | None = None,
        isolate: bool = False,
        codec: Codec | None = None,
        threads: int = 32,
        clock: Clock | None = None,
    ) -> None:
        self._room = Room(None, codec=codec, stored=isolate, deps=deps, threads=threads, clock=clock)

    @property
    def client(self) -> Control:
        """Sends signals and requests to the instances that run right now. Thread-safe."""
        return Control(self._room)


class InProcessRunner(_Base):
    """Runs workflows in memory. Sync tasks run in your own thread where nothing else could run at the same time.

    Args:
        deps: values for ``inject()``, by type.
        isolate: send every value through the codec, as a stored run would, so that a test finds what cannot be stored
            and nobody shares a mutable object.
        codec: used with ``isolate``.
        threads: how many sync tasks of forks may run at once.
        clock: a test's own clock; with :class:`stepwell.testing.VirtualClock` delays take no time.

    Example:
        >>> with InProcessRunner(deps={Bank: bank}) as runner:
        ...     print(runner.run(checkout, order))
    """

    @overload
    def run(self, workflow: Workflow[None, Out], /, *, instance_id: str | None = None) -> Out: ...
    @overload
    def run(self, workflow: Workflow[In, Out], value: In, /, *, instance_id: str | None = None) -> Out: ...
    @overload
    def run(self, task: AsyncFunction[In, Out], value: In, /, *, instance_id: str | None = None) -> Out: ...
    @overload
    def run(self, task: Callable[[In], Out], value: In, /, *, instance_id: str | None = None) -> Out: ...
    def run(self, workflow: Any, value: Any = starting.NO_INPUT, /, *, instance_id: str | None = None) -> Any:
        """Run a workflow to its end, through delays and signals, and return its output.

        Args:
            workflow: what to run; a task or named function is a workflow of one step.
            value: its input.
            instance_id: what tasks see as their instance's id; default a fresh one.

        Raises:
            WorkflowFailed: a step failed; ``__cause__`` is the task's own exception.
            WorkflowCancelled, InstanceHeld, InstancePaused: it came to rest without an output.
            MissingDependency, UsageError: before anything runs.
        """
        return self._run_all(workflow, [starting.Start(value, instance_id)])[0]

    def run_many(self, workflow: Workflow[In, Out], values: Sequence[In]) -> list[Out]:
        """Run one instance for each input, all at the same time, and return their outputs in order.

        Raises as :meth:`run`.
        """
        return self._run_all(workflow, [starting.Start(value) for value in values])

    def _run_all(self, workflow: Any, starts: Sequence[starting.Start]) -> list[Any]:
        check_no_loop("InProcessRunner.run()")
        mailbox = Mailbox()
        drive = Drive(self._room, mailbox, stay=True, loop=None)
        with drive:
            entered = starting.enter_all(drive, workflow, starts)
            run_sync(drive, mailbox)
        return [session.output_of(self._room, each) for each in entered]

    def close(self) -> None:
        """Let the runner's threads end. Closing twice does nothing."""
        self._room.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AsyncInProcessRunner(_Base):
    """The async twin of :class:`InProcessRunner`: async tasks run on the caller's loop, sync ones in threads.

    Example:
        >>> async with AsyncInProcessRunner() as runner:
        ...     print(await runner.run(checkout, order))
    """

    @overload
    async def run(self, workflow: Workflow[None, Out], /, *, instance_id: str | None = None) -> Out: ...
    @overload
    async def run(self, workflow: Workflow[In, Out], value: In, /, *, instance_id: str | None = None) -> Out: ...
    @overload
    async def run(self, task: AsyncFunction[In, Out], value: In, /, *, instance_id: str | None = None) -> Out: ...
    @overload
    async def run(self, task: Callable[[In], Out], value: In, /, *, instance_id: str | None = None) -> Out: ...
    async def run(self, workflow: Any, value: Any = starting.NO_INPUT, /, *, instance_id: str | None = None) -> Any:
        """See :meth:`InProcessRunner.run`."""
        return (await self._run_all(workflow, [starting.Start(value, instance_id)]))[0]

    async def run_many(self, workflow: Workflow[In, Out], values: Sequence[In]) -> list[Out]:
        """See :meth:`InProcessRunner.run_many`."""
        return await self._run_all(workflow, [starting.Start(value) for value in values])

    async def _run_all(self, workflow: Any, starts: Sequence[starting.Start]) -> list[Any]:
        import asyncio

        loop = asyncio.get_running_loop()
        mailbox = AsyncMailbox(loop)
        drive = Drive(self._room, mailbox, stay=True, loop=loop)
        with drive:
            entered = starting.enter_all(drive, workflow, starts)
            await run_async(drive, mailbox)
        return [session.output_of(self._room, each) for each in entered]

    async def close(self) -> None:
        """Let the runner's threads end. Closing twice does nothing."""
        self._room.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
