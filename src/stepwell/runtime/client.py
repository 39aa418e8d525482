"""Looking after instances from anywhere: another process, without the workflows' code, with nothing of its own running.

This is the public surface; the work is done in the files it imports. A client has no session and holds nothing: what it
asks of an instance that nobody holds is done when the call returns, else it is posted to the holder (:mod:`.control`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar, Unpack, overload

from stepwell.backend.base import Backend, Stuck
from stepwell.errors import UsageError
from stepwell.flow.task import kind_of
from stepwell.timing import Duration
from stepwell.types import ENDED, Decision, check_instance_id

from . import deciding, explaining, inspection, selecting, starting, stored, waiting
from .clock import Clock, Mailbox
from .control import Control, same_name
from .drivers import check_no_loop
from .ending import InstanceStatus, status_of
from .explaining import Explanation
from .inspection import Attempt, HistoryEvent
from .live import frontier_of
from .requests import decision as decision_message
from .requests import event_of
from .room import Room
from .selecting import StateFilter

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow, Workflow

    from .checkpointing import StartOptions
    from .moving import ChangePreview

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")

AsyncFunction: TypeAlias = Callable[[In], Coroutine[Any, Any, Out]]

# In a class that has a method called list, the name means that method.
Statuses: TypeAlias = list[InstanceStatus]
Events: TypeAlias = list[HistoryEvent]
Attempts: TypeAlias = list[Attempt]
StuckOnes: TypeAlias = list[Stuck]
Previews: TypeAlias = "list[ChangePreview]"


POLL_US: Final = 10_000  # the longest pause of a client that waits between two looks; a look costs next to nothing


def client_room(backend: Backend, clock: Clock | None) -> Room:
    """Return a room without hands. Raises UsageError for what is no backend."""
    if not hasattr(backend, "codec"):
        raise UsageError(f"a client is given a backend, not {kind_of(backend)}; write SqliteBackend('file.db')")
    return Room(backend, clock=clock, hands=False, poll_us=POLL_US)


class WorkflowClient(Control):
    """Starts, watches, controls and mends the instances of a store, whoever works on them. Thread-safe.

    It needs no workflow code except to start, move and compare; a step's result is read as it was stored unless its
    type is given. A runner offers the same over its own store as ``runner.client``.

    Args:
        backend: where the instances rest; it stays open when the client is closed.
        clock: a test's own clock.

    Raises:
        UsageError: not a backend.

    Example:
        >>> with WorkflowClient(SqliteBackend("orders.db")) as client:  # doctest: +SKIP
        ...     client.signal("order-42", "approval", True)
        ...     print(client.explain("order-42").text)
    """

    def __init__(self, backend: Backend, *, clock: Clock | None = None) -> None:
        super().__init__(client_room(backend, clock))
        self._owns_room = True

    @classmethod
    def over(cls, room: Room) -> WorkflowClient:
        """Return a client that shares a runner's room: it knows the workflows that have run there."""
        client = cls.__new__(cls)
        Control.__init__(client, room)
        client._owns_room = False
        return client

    # --- starting ---

    @overload
    def start(
        self, workflow: Workflow[None, Any], /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    def start(
        self, workflow: Workflow[In, Any], value: In, /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    def start(
        self, task: AsyncFunction[In, Any], value: In, /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    @overload
    def start(
        self, task: Callable[[In], Any], value: In, /, *, connection: object = None, **options: Unpack[StartOptions]
    ) -> InstanceStatus: ...
    def start(
        self, workflow: Any, value: Any = starting.NO_INPUT, /, *, connection: object = None, **options: Any
    ) -> InstanceStatus:
        """Create an instance for whoever runs its workflow next, and return at once. No dependency is needed here.

        Args:
            workflow: what to run; a task or named function is a workflow of one step.
            value: its input.
            connection: one of the backend's ``connect()``: the instance exists if and only if the transaction that is
                open on it commits.
            options: ``instance_id``, ``on_conflict``, ``on_mismatch``, ``labels`` and ``lane``, as of ``runner.start``.

        Raises:
            UsageError, EncodeError: the value is not the workflow's input; or, with ``connection``, a policy other
                than FAIL and USE_EXISTING.
            InstanceExists, InstanceConflict, InputMismatch: about the id.
            OptionError: an unknown option, or a connection that is not to this store.

        Example:
            >>> client.start(checkout, order, instance_id="order-42").state  # doctest: +SKIP
            'pending'
        """
        return self._start(workflow, [starting.start_of(value, options)], connection)[0]

    def start_many(
        self,
        workflow: Workflow[In, Any],
        values: Sequence[In],
        *,
        instance_ids: Sequence[str] | None = None,
        on_conflict: str | None = None,
        labels: Mapping[str, str] | None = None,
        connection: object = None,
    ) -> Statuses:
        """Create an instance for each input, all in one transaction, and return their statuses in order.

        Args:
            values: the inputs.
            instance_ids: one for each input; default fresh ones.
            on_conflict: as of :meth:`start`. If an id is refused, the others are there all the same.
            labels: given to all of them.

        Raises:
            OptionError: the ids are not as many as the inputs.
            UsageError, EncodeError, InstanceExists, InstanceConflict, InputMismatch: as :meth:`start`.

        Example:
            >>> client.start_many(checkout, orders, labels={"batch": "july"})  # doctest: +SKIP
        """
        options = {"on_conflict": on_conflict, "labels": labels}
        plain = starting.starts_of(values, instance_ids)
        starts = [starting.start_of(s.value, {**options, "instance_id": s.instance_id}) for s in plain]
        return self._start(workflow, starts, connection)

    def _start(self, workflow: object, starts: Sequence[starting.Start], connection: object) -> Statuses:
        backend = self._backend()
        within = backend.within(connection) if connection is not None else None
        prepared = self._room.prepare(workflow, register=within is None)
        return [status_of(header) for header in starting.start_unheld(self._room, prepared, starts, within)]

    # --- ends ---

    @overload
    def result(self, instance_id: str, workflow: None = None, *, timeout: Duration | None = None) -> object: ...
    @overload
    def result(self, instance_id: str, workflow: Workflow[Any, Out], *, timeout: Duration | None = None) -> Out: ...
    def result(
        self, instance_id: str, workflow: AnyWorkflow | None = None, *, timeout: Duration | None = None
    ) -> object:
        """Return an instance's output, waiting until it has one.

        Args:
            workflow: whose declared output it is read as; without, records come as :class:`stepwell.Record`.
            timeout: the longest wait: seconds, ``timedelta`` or ``"30s"``; default for ever, 0: do not wait.

        Raises:
            WorkflowFailed: a step failed; ``__cause__`` is its recorded error.
            WorkflowCancelled, InstanceHeld, InstancePaused: it came to rest without an output.
            TimeoutError: it has not come to rest by then; it goes on all the same.
            InstanceNotFound, InstanceConflict: no such instance, or it is of another workflow.
            DecodeError: the output is not what the workflow declares.

        Example:
            >>> client.result("order-42", checkout, timeout="30s")  # doctest: +SKIP
            Receipt(number=7)
        """
        check_no_loop("WorkflowClient.result()")
        self._backend()
        rest = waiting.Rest(self._room, instance_id, workflow, timeout)
        mailbox = Mailbox()
        with waiting.woken(self._room, mailbox):
            while not rest.reached():
                mailbox.wait(rest.pause_s())
        return rest.output()

    # --- mending ---

    def retry(self, instance_id: str, *, by: str = "") -> None:
        """Let a failed or cancelled instance go on where it stopped; finished results are kept, attempts count afresh.

        It is due at once, for whoever runs its workflow next.

        Raises:
            InstanceNotFound: there is no such instance.
            InstanceEnded: it has completed.
            UsageError: it has not ended; the message says what to do instead.

        Example:
            >>> client.retry("order-42", by="ann")  # doctest: +SKIP
        """
        self._request("retry", instance_id, "", by)

    def decide(
        self,
        instance_id: str,
        path: str,
        decision: Decision,
        *,
        by: str = "",
        workflow: AnyWorkflow | None = None,
    ) -> None:
        """End a hold: say what becomes of the step that an instance is held for.

        Args:
            path: the step, as :meth:`explain` names it, so that nobody decides about another one by mistake; ``""``
                where the run itself is held.
            decision: ``Rerun()``: do it again. ``Complete(value)``: it was done, with this result; in place of a
                loop's last step the value is ``Again(…)`` or ``Done(…)``, of a route the case's name.
                ``Fail(reason)``: it has failed, and no attempt follows.
            by: who decides; kept in the history.
            workflow: the instance's workflow, to check the value's type; not needed where this runner has run it.

        Raises:
            InstanceNotFound, InstanceEnded: there is no such instance, or it has ended.
            UsageError: it is not held, or for another path; or the value is not of the step's type.
            EncodeError: the value cannot be stored.
            OptionError: not a decision.

        Example:
            >>> client.decide("order-42", "charge", Complete(Receipt("r-7")), by="ann")  # doctest: +SKIP
        """
        loaded = stored.load(self._room, instance_id)
        self._check_takes(instance_id, loaded.header.state, "decide")
        plan = stored.stored_plan(self._room, loaded.header)
        state, now_us = frontier_of(plan, loaded), self._room.clock.now_us()
        held = deciding.held_of(plan, state, instance_id, path)
        known = self._room.workflow_of(plan) if workflow is None else same_name(plan, workflow)
        with deciding.about(instance_id):
            verdict, value = deciding.written(self._room.codec, plan, held, decision, by, known)
            message = decision_message(verdict, value, now_us)
            deciding.check_follows(plan, state, event_of(message, plan), now_us)
        self._send(instance_id, message, lambda plan, state: deciding.held_of(plan, state, instance_id, path))

    def move(self, instance_id: str, workflow: AnyWorkflow) -> InstanceStatus:
        """Let an instance that nobody holds go on under this graph of its workflow, if that fits what it has done.

        A runner does so by itself where the graph is newer; this goes back to an older one too. What has failed or was
        cancelled is moved and stays ended, so that a :meth:`retry` goes on under the new graph.

        Raises:
            InstanceNotFound, InstanceEnded: there is no such instance, or it has completed.
            InstanceConflict: it is of another workflow, or the graphs do not fit; the message says what differs.
            AlreadyRunning: a live process works on it.

        Example:
            >>> client.move("order-42", checkout).state  # doctest: +SKIP
            'waiting'
        """
        from . import moving

        self._backend()
        moving.move(self._room, check_instance_id(instance_id), self._room.prepare(workflow))
        return self.status(instance_id)

    def preview_change(self, workflow: AnyWorkflow) -> Previews:
        """Say for each unfinished instance of a workflow whether it could go on under its present graph.

        Nothing is written. Instances that have that graph already are left out.

        Example:
            >>> [p.instance_id for p in client.preview_change(checkout) if not p.moves]  # doctest: +SKIP
            ['order-42']
        """
        from . import moving

        self._backend()
        return moving.preview(self._room, self._room.workflow_in(workflow))

    # --- finding ---

    def list(
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
        """Return a page of instances, newest first. What is created meanwhile does not shift the pages.

        Args:
            state: a state, several, or ``"unfinished"``. Of an instance that a process works on it is the one in
                which it was left last.
            workflow: a workflow or its name.
            labels: what an instance must be labelled with, at least.
            created_after, created_before: aware moments; the first one counts, the second does not.
            limit: how many at most, 1 to 10 000.
            after: the last status of the page before this one.

        Raises:
            OptionError: not a state, a limit out of range, or a moment without a time zone.

        Example:
            >>> page = client.list(state="failed", workflow="checkout")  # doctest: +SKIP
            >>> more = client.list(state="failed", workflow="checkout", after=page[-1])  # doctest: +SKIP
        """
        where = selecting.where(state, workflow, labels, created_after, created_before, limit, after)
        return selecting.page(self._room, self._backend(), where)

    def iterate(
        self,
        *,
        state: StateFilter | None = None,
        workflow: str | AnyWorkflow | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[InstanceStatus]:
        """Yield every instance that :meth:`list` would find on all its pages.

        Example:
            >>> for status in client.iterate(state="failed"):  # doctest: +SKIP
            ...     client.retry(status.instance_id)
        """
        after: InstanceStatus | None = None
        while found := self.list(
            state=state,
            workflow=workflow,
            labels=labels,
            created_after=created_after,
            created_before=created_before,
            after=after,
        ):
            yield from found
            after = found[-1]

    def count(
        self,
        *,
        state: StateFilter | None = None,
        workflow: str | AnyWorkflow | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> int:
        """Return how many instances match; arguments and errors are those of :meth:`list`.

        Example:
            >>> client.count(state=["failed", "held"])  # doctest: +SKIP
            3
        """
        return self._backend().count(selecting.where(state, workflow, labels, created_after, created_before))

    # --- looking closely ---

    def history(self, instance_id: str, *, after: int = 0, limit: int | None = None) -> Events:
        """Return what has happened to an instance, in order.

        Args:
            after: leave out the entries up to this ``seq``.
            limit: how many events at most; default all.

        Raises:
            InstanceNotFound, InstanceDamaged: there is no such instance, or its rows cannot be read.

        Example:
            >>> print(*client.history("order-42"), sep="\\n")  # doctest: +SKIP
        """
        self._backend()
        return inspection.history(self._room, instance_id, after, limit)

    def attempts(self, instance_id: str, path: str | None = None) -> Attempts:
        """Return the recorded attempts of an instance's steps, in order of their ends, with their errors.

        Args:
            path: one step only; ``refine/draft`` is that step in all turns of its loop, ``refine[3]/draft`` in one.

        Raises:
            InstanceNotFound, InstanceDamaged: there is no such instance, or its rows cannot be read.
            UsageError: its workflow has no such step.

        Example:
            >>> [attempt.outcome for attempt in client.attempts("order-42", "charge")]  # doctest: +SKIP
            ['failed', 'succeeded']
        """
        self._backend()
        return inspection.attempts(self._room, instance_id, path)

    @overload
    def task_result(self, instance_id: str, path: str, *, type: type[T]) -> T: ...
    @overload
    def task_result(self, instance_id: str, path: str, *, type: object = Any) -> Any: ...
    def task_result(self, instance_id: str, path: str, *, type: object = Any) -> Any:
        """Return the recorded result of a finished step, whether or not the instance has ended.

        Args:
            path: a task, signal, child, route or loop; inside a loop with its turn: ``refine[3]/draft``. What a step
                returned in ``Again`` or ``Done`` is returned without it.
            type: what to read it as; without, records come as :class:`stepwell.Record`.

        Raises:
            StepNotFinished: it has no result, which is not the same as the result ``None``.
            UsageError: the workflow has no such step.
            InstanceNotFound, InstanceDamaged: there is no such instance, or its rows cannot be read.
            DecodeError: the result is not of ``type``.

        Example:
            >>> client.task_result("order-42", "charge", type=Receipt).number  # doctest: +SKIP
            'r-7'
        """
        self._backend()
        return inspection.task_result(self._room, instance_id, path, type)

    def explain(self, instance_id: str) -> Explanation:
        """Say why an instance stands where it stands: a typed reason for each open step, and what would move it.

        Raises:
            InstanceNotFound, InstanceDamaged: there is no such instance, or its rows cannot be read.

        Example:
            >>> print(client.explain("order-42").text)  # doctest: +SKIP
            order-42 is waiting
            charge: attempt 2 is due at 2030-01-01 00:00:02 UTC, after OSError: no route
        """
        self._backend()
        return explaining.explain(self._room, instance_id)

    def stuck(self) -> StuckOnes:
        """Return the unfinished instances that nothing will ever move; there is none in a sound store.

        Example:
            >>> client.stuck()  # doctest: +SKIP
            []
        """
        return [*self._backend().stuck(self._room.clock.now_us())]

    # --- upkeep ---

    def delete(self, instance_id: str) -> None:
        """Remove an ended instance with all its runs, results and messages.

        Raises:
            InstanceNotFound: there is no such instance.
            UsageError: it has not ended; cancel it first.

        Example:
            >>> client.delete("order-42")  # doctest: +SKIP
        """
        backend = self._backend()
        while not backend.delete(check_instance_id(instance_id)):
            header = backend.header(instance_id)
            if header is None:
                raise stored.missing(backend, instance_id)
            if header.state not in ENDED:
                raise UsageError(f"instance {instance_id!r} is {header.state}; cancel it first, then delete it")

    def purge(self, *, older_than: Duration | None = None, keep: int | None = None, limit: int | None = None) -> int:
        """Remove ended instances in small transactions, those that ended first before others, and return how many.

        Args:
            older_than: remove those that ended longer ago than this.
            keep: remove all but so many that ended last. With ``older_than`` what either asks for goes.
            limit: how many at most; default all.

        Raises:
            OptionError: neither ``older_than`` nor ``keep`` says what may go, or a number is negative.

        Example:
            >>> client.purge(older_than="30d")  # doctest: +SKIP
            1204
        """
        return selecting.purge(self._backend(), self._room.clock.now_us(), older_than, keep, limit)

    def snapshot(self, instance_id: str) -> bytes:
        """Return an instance's last run as bytes: history, values, inbox and plans, for :meth:`restore` in any store.

        Raises:
            InstanceNotFound, InstanceDamaged: there is no such instance, or its rows cannot be read.

        Example:
            >>> Path("order-42.stepwell").write_bytes(client.snapshot("order-42"))  # doctest: +SKIP
        """
        from . import snapshot

        self._backend()
        return snapshot.snapshot_of(self._room, instance_id)

    def restore(self, data: bytes, *, instance_id: str | None = None) -> InstanceStatus:
        """Put a snapshot into this store as an instance that nobody holds; no step that is done runs again.

        Args:
            instance_id: another id than the one it had; then it is another instance, with other idempotency keys.

        Raises:
            InstanceExists: the id is taken.
            CorruptValue: the bytes are damaged or no snapshot.
            UnknownFormat: a newer stepwell wrote them, or the values cannot be rewritten for this store's codec.
            ValueTooLarge: a value exceeds the limits of this store's codec.
            OptionError: not bytes, or ``instance_id`` cannot name an instance.

        Example:
            >>> client.restore(Path("order-42.stepwell").read_bytes()).state  # doctest: +SKIP
            'waiting'
        """
        from . import snapshot

        self._backend()
        return self.status(snapshot.restore_into(self._room, data, instance_id).instance_id)

    def close(self) -> None:
        """Let the client go; the backend stays open. A runner's own client stays usable as long as the runner."""
        if self._owns_room:
            self._room.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
