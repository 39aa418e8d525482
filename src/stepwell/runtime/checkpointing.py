"""Running a workflow so that it survives a crash: every outcome is stored before anything that follows it starts."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypedDict, TypeVar, Unpack, overload

from stepwell.backend.base import Backend
from stepwell.engine.events import MAX_CRASHES
from stepwell.errors import OptionError, UsageError
from stepwell.flow.task import kind_of
from stepwell.timing import SECOND_US, Duration, duration_us
from stepwell.types import ConflictPolicy

from . import session, starting
from .clock import AnyMailbox, AsyncMailbox, Clock, Mailbox
from .drive import Drive
from .drivers import check_no_loop, run_async, run_sync
from .ending import InstanceStatus
from .recovering import Recovery
from .room import Room
from .upkeep import Retention

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow, Workflow

    from .client import WorkflowClient
    from .client_async import AsyncWorkflowClient
    from .shared import SharedDrive

In = TypeVar("In")
Out = TypeVar("Out")

Enter: TypeAlias = Callable[[Drive], list[session.Entered]]
AsyncFunction: TypeAlias = Callable[[In], Coroutine[Any, Any, Out]]


class StartOptions(TypedDict, total=False):
    """What ``run`` and ``start`` may be told about the instance."""

    instance_id: str | None
    on_conflict: ConflictPolicy | str | None
    on_mismatch: str
    labels: Mapping[str, str] | None
    lane: str | None


class _Base:
    """What both runners are made of."""

    def __init__(
        self,
        backend: Backend,
        *,
        deps: Mapping[Any, object] | None = None,
        threads: int = 32,
        lease: Duration = "30s",
        poll: Duration = "50ms",
        clock: Clock | None = None,
        retention: Retention | None = None,
        max_crashes: int = MAX_CRASHES,
    ) -> None:
        if not hasattr(backend, "codec"):
            raise UsageError(f"a runner is given a backend, not {kind_of(backend)}; write SqliteBackend('file.db')")
        lease_us = duration_us(lease, "lease", least_us=SECOND_US)
        poll_us = duration_us(poll, "poll", least_us=1_000)
        if retention is not None and not isinstance(retention, Retention):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(
                f'retention must be a Retention(age="30d", keep=10_000), not a {type(retention).__name__}'
            )
        self._room = Room(
            backend,
            deps=deps,
            threads=threads,
            lease_us=lease_us,
            poll_us=poll_us,
            clock=clock,
            retention=retention,
            max_crashes=max_crashes,
        )

    def _drive(self, mailbox: AnyMailbox, *, stay: bool, loop: Any = None) -> Drive:
        return Drive(self._room, mailbox, stay=stay, loop=loop)

    # --- what a call does before its drive, and reads after it ---

    @staticmethod
    def _entering(workflow: object, starts: Sequence[starting.Start]) -> Enter:
        return lambda drive: starting.enter_all(drive, workflow, starts)

    def _resuming(self, workflow: object, instance_id: str) -> Enter:
        return lambda drive: [session.resume(drive, self._room.prepare(workflow), instance_id)]

    def _statuses(self, entered: Iterable[session.Entered]) -> list[InstanceStatus]:
        return [session.status_from(self._room, each.instance_id) for each in entered]


class CheckpointingRunner(_Base):
    """Runs workflows over a store, in one process. After a crash, ``resume`` or ``recover`` continue at the frontier.

    Args:
        backend: where runs rest; ``SqliteBackend("file.db")`` on a laptop or server.
        deps: values for ``inject()``, by type.
        threads: how many sync tasks of forks may run at once.
        lease: how long this runner's claims outlive its last sign of life, at least 1 s; a runner on the same machine
            sees a dead process at once and does not wait for it.
        poll: the longest pause between two looks of a waiting run for messages from other processes, at least 1 ms. It
            looks more often at first, and pauses for a fiftieth of what it has waited.
        retention: which ended instances are kept; the others are removed about once a minute, in the background, in
            small transactions, as long as this runner is open and has begun to work. Default: all.
        max_crashes: after so many deaths of a process in one step, default 5, tried apart from other suspects, its
            instance is held as ``quarantined``.
        clock: a test's own clock; with :class:`stepwell.testing.VirtualClock` delays take no time.

    Raises:
        UsageError, OptionError: not a backend, or not a duration.

    Example:
        >>> with CheckpointingRunner(SqliteBackend("orders.db")) as runner:
        ...     done = runner.run(checkout, order, instance_id="order-42")
    """

    @property
    def client(self) -> WorkflowClient:
        """Looks after the instances of this store, whoever holds them, as :class:`WorkflowClient` does. Thread-safe."""
        from .client import WorkflowClient

        return WorkflowClient.over(self._room)

    @overload
    def run(self, workflow: Workflow[None, Out], /, **options: Unpack[StartOptions]) -> Out: ...
    @overload
    def run(self, workflow: Workflow[In, Out], value: In, /, **options: Unpack[StartOptions]) -> Out: ...
    @overload
    def run(self, task: AsyncFunction[In, Out], value: In, /, **options: Unpack[StartOptions]) -> Out: ...
    @overload
    def run(self, task: Callable[[In], Out], value: In, /, **options: Unpack[StartOptions]) -> Out: ...
    def run(self, workflow: Any, value: Any = starting.NO_INPUT, /, **options: Any) -> Any:
        """Run a workflow to its end, through delays and signals, and return its output.

        Args:
            workflow: what to run; a task or named function is a workflow of one step.
            value: its input.
            instance_id: names the run; with an id, running again attaches to what exists. Without: a fresh one.
            on_conflict: what to do when the id exists; :class:`ConflictPolicy`, default USE_EXISTING.
            on_mismatch: ``"fail"`` or ``"ignore"`` an existing instance's different input.
            labels: short texts to find the instance by.
            lane: workers can be told how many instances of one workflow and lane may be held at once.

        Raises:
            WorkflowFailed: a step failed; ``__cause__`` is its error.
            WorkflowCancelled, InstanceHeld, InstancePaused: it came to rest without an output.
            InstanceExists, InstanceConflict, InputMismatch, AlreadyRunning: about the id.
            MissingDependency, UsageError, EncodeError: before anything runs.
            BackendError: the store failed; the instance keeps its state and can be resumed.
        """
        entered = self._work(self._entering(workflow, [starting.start_of(value, options)]), stay=True)
        return session.output_of(self._room, entered[0])

    def run_many(
        self, workflow: Workflow[In, Out], values: Sequence[In], *, instance_ids: Sequence[str] | None = None
    ) -> list[Out]:
        """Run one instance for each input, sharing commits, and return their outputs in order.

        With ``instance_ids``, one for each of ``values``, running again attaches to what exists; without, each is a
        fresh one. Raises as :meth:`run`, for the first input that has no output, when all have come to rest.

        Example:
            >>> runner.run_many(checkout, orders, instance_ids=[order.id for order in orders])  # doctest: +SKIP
        """
        entered = self._work(self._entering(workflow, starting.starts_of(values, instance_ids)), stay=True)
        return [session.output_of(self._room, each) for each in entered]

    @overload
    def start(self, workflow: Workflow[None, Any], /, **options: Unpack[StartOptions]) -> InstanceStatus: ...
    @overload
    def start(self, workflow: Workflow[In, Any], value: In, /, **options: Unpack[StartOptions]) -> InstanceStatus: ...
    @overload
    def start(self, task: AsyncFunction[In, Any], value: In, /, **options: Unpack[StartOptions]) -> InstanceStatus: ...
    @overload
    def start(self, task: Callable[[In], Any], value: In, /, **options: Unpack[StartOptions]) -> InstanceStatus: ...
    def start(self, workflow: Any, value: Any = starting.NO_INPUT, /, **options: Any) -> InstanceStatus:
        """Start a workflow, go as far as it can now, and return its status: completed, waiting, failed …

        Arguments and errors about the id are those of :meth:`run`. When this returns, nobody holds the instance.
        """
        return self._statuses(self._work(self._entering(workflow, [starting.start_of(value, options)]), stay=False))[0]

    def resume(self, workflow: Workflow[Any, Out], instance_id: str) -> Out:
        """Continue an instance to its end and return its output; finished steps are kept. Raises as :meth:`run`."""
        return session.output_of(self._room, self._work(self._resuming(workflow, instance_id), stay=True)[0])  # type: ignore[no-any-return]

    def result(self, workflow: Workflow[Any, Out], instance_id: str, *, timeout: Duration | None = None) -> Out:
        """Return the output of an instance that somebody else works on, waiting until it has one.

        Args:
            timeout: the longest wait: seconds, ``timedelta`` or ``"30s"``; default for ever.

        Raises:
            TimeoutError: it has not come to rest by then.
            WorkflowFailed, WorkflowCancelled, InstanceHeld, InstancePaused: as :meth:`run`.
            InstanceNotFound, InstanceConflict: there is no such instance, or it is of another workflow.
        """
        check_no_loop("CheckpointingRunner")
        known: Workflow[Any, Out] = self._room.prepare(workflow).workflow  # of a task or function too
        return self.client.result(instance_id, known, timeout=timeout)

    def recover(self, workflows: Iterable[AnyWorkflow], *, wait: bool = False) -> list[InstanceStatus]:
        """Continue every instance of these workflows that can go on and that no live session holds.

        Those are the ones that a crash cut off, that were started by a client, whose time has come, or that got the
        message they waited for. What only waits is left alone, however much that is, unless its graph has changed: then
        it is moved to the present one or held, also while a worker with its code lives.

        Args:
            wait: stay until none is left but held, paused and ended ones; default: run what is runnable now.

        Returns:
            How each of those stands now, and the paused and held ones; one that cannot be read is reported as it
            stands. What was left alone is left out: ``client.list(state="waiting")``.
        """
        check_no_loop("CheckpointingRunner")
        mailbox = Mailbox()
        with Recovery(self._room, mailbox, workflows, stay=wait) as recovery:
            run_sync(recovery, mailbox)
        return recovery.statuses()

    def _work(self, enter: Enter, *, stay: bool) -> list[session.Entered]:
        check_no_loop("CheckpointingRunner")
        mailbox = Mailbox()
        with self._drive(mailbox, stay=stay) as drive:
            entered = enter(drive)
            run_sync(drive, mailbox)
        return entered

    def close(self) -> None:
        """Give back what this runner holds. Closing twice does nothing; the backend stays open."""
        self._room.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AsyncCheckpointingRunner(_Base):
    """The async twin of :class:`CheckpointingRunner`: async tasks run on the caller's loop, sync ones in threads.

    Runs that await at the same time share commits, so a thousand of them cost little more than one.

    Example:
        >>> async with AsyncCheckpointingRunner(SqliteBackend("orders.db")) as runner:
        ...     done = await runner.run(checkout, order, instance_id="order-42")
    """

    _shared: SharedDrive | None = None

    @property
    def client(self) -> AsyncWorkflowClient:
        """Looks after the instances of this store, whoever holds them, as :class:`AsyncWorkflowClient` does."""
        from .client_async import AsyncWorkflowClient

        return AsyncWorkflowClient.over(self._room)

    @overload
    async def run(self, workflow: Workflow[None, Out], /, **options: Unpack[StartOptions]) -> Out: ...
    @overload
    async def run(self, workflow: Workflow[In, Out], value: In, /, **options: Unpack[StartOptions]) -> Out: ...
    @overload
    async def run(self, task: AsyncFunction[In, Out], value: In, /, **options: Unpack[StartOptions]) -> Out: ...
    @overload
    async def run(self, task: Callable[[In], Out], value: In, /, **options: Unpack[StartOptions]) -> Out: ...
    async def run(self, workflow: Any, value: Any = starting.NO_INPUT, /, **options: Any) -> Any:
        """See :meth:`CheckpointingRunner.run`."""
        entered = await self._share(self._entering(workflow, [starting.start_of(value, options)]))
        return session.output_of(self._room, entered[0])

    async def run_many(
        self, workflow: Workflow[In, Out], values: Sequence[In], *, instance_ids: Sequence[str] | None = None
    ) -> list[Out]:
        """See :meth:`CheckpointingRunner.run_many`."""
        entered = await self._share(self._entering(workflow, starting.starts_of(values, instance_ids)))
        return [session.output_of(self._room, each) for each in entered]

    @overload
    async def start(self, workflow: Workflow[None, Any], /, **options: Unpack[StartOptions]) -> InstanceStatus: ...
    @overload
    async def start(
        self, workflow: Workflow[In, Any], value: In, /, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    async def start(
        self, task: AsyncFunction[In, Any], value: In, /, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    async def start(
        self, task: Callable[[In], Any], value: In, /, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    async def start(self, workflow: Any, value: Any = starting.NO_INPUT, /, **options: Any) -> InstanceStatus:
        """See :meth:`CheckpointingRunner.start`."""
        return self._statuses(
            await self._work(self._entering(workflow, [starting.start_of(value, options)]), stay=False)
        )[0]

    async def resume(self, workflow: Workflow[Any, Out], instance_id: str) -> Out:
        """See :meth:`CheckpointingRunner.resume`."""
        entered = await self._share(self._resuming(workflow, instance_id))
        return session.output_of(self._room, entered[0])  # type: ignore[no-any-return]

    async def result(self, workflow: Workflow[Any, Out], instance_id: str, *, timeout: Duration | None = None) -> Out:
        """See :meth:`CheckpointingRunner.result`."""
        known: Workflow[Any, Out] = self._room.prepare(workflow).workflow  # of a task or function too
        return await self.client.result(instance_id, known, timeout=timeout)

    async def recover(self, workflows: Iterable[AnyWorkflow], *, wait: bool = False) -> list[InstanceStatus]:
        """See :meth:`CheckpointingRunner.recover`."""
        import asyncio

        loop = asyncio.get_running_loop()
        mailbox = AsyncMailbox(loop)
        with Recovery(self._room, mailbox, workflows, stay=wait, loop=loop) as recovery:
            await run_async(recovery, mailbox)
        return recovery.statuses()

    async def _work(self, enter: Enter, *, stay: bool) -> list[session.Entered]:
        import asyncio

        loop = asyncio.get_running_loop()
        mailbox = AsyncMailbox(loop)
        with self._drive(mailbox, stay=stay, loop=loop) as drive:
            entered = enter(drive)
            await run_async(drive, mailbox)
        return entered

    async def _share(self, enter: Enter) -> list[session.Entered]:
        """Work in the drive that all runs awaiting on this loop share."""
        import asyncio

        from .shared import SharedDrive

        loop = asyncio.get_running_loop()
        if self._shared is None or self._shared.over or self._shared.loop is not loop:
            self._shared = SharedDrive(self._room, loop)
        return await self._shared.work(enter)

    async def close(self) -> None:
        """See :meth:`CheckpointingRunner.close`."""
        if self._shared is not None:
            await self._shared.close()
        self._room.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
