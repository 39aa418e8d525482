"""The client for asyncio programs: the sync client's methods, each in a thread, so that the loop goes on meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeAlias, TypeVar, Unpack, overload

from stepwell.backend.base import Backend
from stepwell.timing import Duration
from stepwell.types import Decision

from . import starting, waiting
from .client import Attempts, Events, Previews, Statuses, StuckOnes, WorkflowClient, client_room
from .clock import AsyncMailbox, Clock
from .ending import InstanceStatus
from .explaining import Explanation
from .room import Room
from .selecting import StateFilter

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow, Workflow

    from .checkpointing import StartOptions

P = ParamSpec("P")
T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")

AsyncFunction: TypeAlias = Callable[[In], Coroutine[Any, Any, Out]]


async def _apart(method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a method of the store in a thread, so that the loop goes on meanwhile."""
    import asyncio

    return await asyncio.to_thread(method, *args, **kwargs)


class AsyncWorkflowClient:
    """The async twin of :class:`WorkflowClient`: the same methods, to be awaited.

    Example:
        >>> async with AsyncWorkflowClient(SqliteBackend("orders.db")) as client:  # doctest: +SKIP
        ...     await client.signal("order-42", "approval", True)
        ...     print((await client.explain("order-42")).text)
    """

    def __init__(self, backend: Backend, *, clock: Clock | None = None) -> None:
        self._room, self._owns_room = client_room(backend, clock), True
        self._sync = WorkflowClient.over(self._room)

    @classmethod
    def over(cls, room: Room) -> AsyncWorkflowClient:
        """See :meth:`WorkflowClient.over`."""
        client = cls.__new__(cls)
        client._room, client._owns_room = room, False
        client._sync = WorkflowClient.over(room)
        return client

    # --- starting ---

    @overload
    async def start(
        self, workflow: Workflow[None, Any], /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    async def start(
        self, workflow: Workflow[In, Any], value: In, /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    async def start(
        self, task: AsyncFunction[In, Any], value: In, /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    async def start(
        self, task: Callable[[In], Any], value: In, /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    async def start(
        self, workflow: Any, value: Any = starting.NO_INPUT, /, *, connection: object = None, **options: Any
    ) -> InstanceStatus:
        """See :meth:`WorkflowClient.start`."""
        start: Any = self._sync.start
        return await _apart(start, workflow, value, connection=connection, **options)

    async def start_many(
        self,
        workflow: Workflow[In, Any],
        values: Sequence[In],
        *,
        instance_ids: Sequence[str] | None = None,
        on_conflict: str | None = None,
        labels: Mapping[str, str] | None = None,
        connection: object = None,
    ) -> Statuses:
        """See :meth:`WorkflowClient.start_many`."""
        options = {"instance_ids": instance_ids, "on_conflict": on_conflict, "labels": labels, "connection": connection}
        many: Any = self._sync.start_many
        return await _apart(many, workflow, values, **options)

    # --- ends ---

    @overload
    async def result(self, instance_id: str, workflow: None = None, *, timeout: Duration | None = None) -> object: ...
    @overload
    async def result(
        self, instance_id: str, workflow: Workflow[Any, Out], *, timeout: Duration | None = None
    ) -> Out: ...
    async def result(
        self, instance_id: str, workflow: AnyWorkflow | None = None, *, timeout: Duration | None = None
    ) -> object:
        """See :meth:`WorkflowClient.result`."""
        import asyncio

        rest = waiting.Rest(self._room, instance_id, workflow, timeout)
        mailbox = AsyncMailbox(asyncio.get_running_loop())
        with waiting.woken(self._room, mailbox):
            while not await _apart(rest.reached):
                await mailbox.wait(rest.pause_s())
        return await _apart(rest.output)

    async def status(self, instance_id: str) -> InstanceStatus:
        """See :meth:`WorkflowClient.status`."""
        return await _apart(self._sync.status, instance_id)

    # --- signals and requests ---

    async def signal(
        self,
        instance_id: str,
        name: str,
        payload: object = None,
        *,
        signal_id: str = "",
        workflow: AnyWorkflow | None = None,
    ) -> None:
        """See :meth:`WorkflowClient.signal`."""
        await _apart(self._sync.signal, instance_id, name, payload, signal_id=signal_id, workflow=workflow)

    async def cancel(self, instance_id: str, *, reason: str = "", by: str = "") -> None:
        """See :meth:`WorkflowClient.cancel`."""
        await _apart(self._sync.cancel, instance_id, reason=reason, by=by)

    async def pause(self, instance_id: str, *, reason: str = "", by: str = "") -> None:
        """See :meth:`WorkflowClient.pause`."""
        await _apart(self._sync.pause, instance_id, reason=reason, by=by)

    async def resume(self, instance_id: str, *, by: str = "") -> None:
        """See :meth:`WorkflowClient.resume`."""
        await _apart(self._sync.resume, instance_id, by=by)

    async def retry(self, instance_id: str, *, by: str = "") -> None:
        """See :meth:`WorkflowClient.retry`."""
        await _apart(self._sync.retry, instance_id, by=by)

    async def decide(
        self,
        instance_id: str,
        path: str,
        decision: Decision,
        *,
        by: str = "",
        workflow: AnyWorkflow | None = None,
    ) -> None:
        """See :meth:`WorkflowClient.decide`."""
        await _apart(self._sync.decide, instance_id, path, decision, by=by, workflow=workflow)

    async def move(self, instance_id: str, workflow: AnyWorkflow) -> InstanceStatus:
        """See :meth:`WorkflowClient.move`."""
        return await _apart(self._sync.move, instance_id, workflow)

    async def preview_change(self, workflow: AnyWorkflow) -> Previews:
        """See :meth:`WorkflowClient.preview_change`."""
        return await _apart(self._sync.preview_change, workflow)

    # --- finding ---

    async def list(
        self,
        *,
        state: StateFilter | None = None,
        workflow: str | AnyWorkflow | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 100,
        after: InstanceStatus | int | None = None,
    ) -> Statuses:
        """See :meth:`WorkflowClient.list`."""
        return await _apart(
            self._sync.list,
            state=state,
            workflow=workflow,
            labels=labels,
            created_after=created_after,
            created_before=created_before,
            limit=limit,
            after=after,
        )

    async def iterate(
        self,
        *,
        state: StateFilter | None = None,
        workflow: str | AnyWorkflow | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> AsyncIterator[InstanceStatus]:
        """See :meth:`WorkflowClient.iterate`; to be used with ``async for``."""
        found = self._sync.iterate(
            state=state,
            workflow=workflow,
            labels=labels,
            created_after=created_after,
            created_before=created_before,
        )
        while (status := await _apart(next, found, None)) is not None:
            yield status

    async def count(
        self,
        *,
        state: StateFilter | None = None,
        workflow: str | AnyWorkflow | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> int:
        """See :meth:`WorkflowClient.count`."""
        return await _apart(
            self._sync.count,
            state=state,
            workflow=workflow,
            labels=labels,
            created_after=created_after,
            created_before=created_before,
        )

    # --- looking closely ---

    async def history(self, instance_id: str, *, after: int = 0, limit: int | None = None) -> Events:
        """See :meth:`WorkflowClient.history`."""
        return await _apart(self._sync.history, instance_id, after=after, limit=limit)

    async def attempts(self, instance_id: str, path: str | None = None) -> Attempts:
        """See :meth:`WorkflowClient.attempts`."""
        return await _apart(self._sync.attempts, instance_id, path)

    @overload
    async def task_result(self, instance_id: str, path: str, *, type: type[T]) -> T: ...
    @overload
    async def task_result(self, instance_id: str, path: str, *, type: object = Any) -> Any: ...
    async def task_result(self, instance_id: str, path: str, *, type: object = Any) -> Any:
        """See :meth:`WorkflowClient.task_result`."""
        return await _apart(self._sync.task_result, instance_id, path, type=type)

    async def explain(self, instance_id: str) -> Explanation:
        """See :meth:`WorkflowClient.explain`."""
        return await _apart(self._sync.explain, instance_id)

    async def stuck(self) -> StuckOnes:
        """See :meth:`WorkflowClient.stuck`."""
        return await _apart(self._sync.stuck)

    # --- upkeep ---

    async def delete(self, instance_id: str) -> None:
        """See :meth:`WorkflowClient.delete`."""
        await _apart(self._sync.delete, instance_id)

    async def purge(
        self, *, older_than: Duration | None = None, keep: int | None = None, limit: int | None = None
    ) -> int:
        """See :meth:`WorkflowClient.purge`."""
        return await _apart(self._sync.purge, older_than=older_than, keep=keep, limit=limit)

    async def snapshot(self, instance_id: str) -> bytes:
        """See :meth:`WorkflowClient.snapshot`."""
        return await _apart(self._sync.snapshot, instance_id)

    async def restore(self, data: bytes, *, instance_id: str | None = None) -> InstanceStatus:
        """See :meth:`WorkflowClient.restore`."""
        return await _apart(self._sync.restore, data, instance_id=instance_id)

    async def close(self) -> None:
        """See :meth:`WorkflowClient.close`."""
        if self._owns_room:
            self._room.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
