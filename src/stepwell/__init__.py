"""stepwell: plain Python functions as durable workflows.

Everything public is here. Runners and backends are imported when they are first named, so that ``import stepwell``
stays cheap for programs that only define tasks and workflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    AlreadyRunning,
    BackendError,
    BackendReadOnly,
    BackendUnavailable,
    Closed,
    CodecError,
    CorruptValue,
    DatabaseCorrupt,
    DecodeError,
    EncodeError,
    GraphError,
    InputMismatch,
    InstanceConflict,
    InstanceDamaged,
    InstanceEnded,
    InstanceError,
    InstanceExists,
    InstanceHeld,
    InstanceNotFound,
    InstancePaused,
    Interrupted,
    LeaseLost,
    LoopLimit,
    LoopValue,
    MissingDependency,
    NoRoute,
    NoTaskContext,
    OptionError,
    Permanent,
    RecordedError,
    SchemaTooNew,
    SignalTimeout,
    StepCancelled,
    StepError,
    StepNotFinished,
    StepwellError,
    StorageFull,
    SyncInAsync,
    TaskTimeout,
    TransactionTimeout,
    UnknownFormat,
    Unsupported,
    UsageError,
    ValueTooLarge,
    WorkflowCancelled,
    WorkflowFailed,
)
from .flow.task import Task, inject, task
from .flow.trace import branch, delay, loop, parallel, route, signal, workflow
from .flow.workflow import Workflow
from .retry import Retry, RetryAfter
from .runtime.context import TaskContext, task_context
from .types import Again, Complete, ConflictPolicy, Decision, Done, Fail, Limits, Rerun

if TYPE_CHECKING:
    __version__: str
    from .backend.base import Backend
    from .backend.memory import InMemoryBackend
    from .backend.postgres import PostgresBackend
    from .backend.sqlite import SqliteBackend
    from .backend.urls import open_backend
    from .codec import Codec, JsonCodec, MsgpackCodec, Record
    from .flow.builder import Chain, Flow
    from .observe.tracing import init_tracing, shutdown_tracing
    from .runtime.checkpointing import AsyncCheckpointingRunner, CheckpointingRunner
    from .runtime.client import WorkflowClient
    from .runtime.client_async import AsyncWorkflowClient
    from .runtime.ending import InstanceStatus
    from .runtime.explaining import Explanation
    from .runtime.in_process import AsyncInProcessRunner, InProcessRunner
    from .runtime.inspection import Attempt, ErrorInfo, HistoryEvent
    from .runtime.moving import ChangePreview
    from .runtime.upkeep import Retention
    from .runtime.worker import PooledWorker, WorkerHandle, WorkerHealth

_LATER = {
    "AsyncCheckpointingRunner": "runtime.checkpointing",
    "AsyncInProcessRunner": "runtime.in_process",
    "AsyncWorkflowClient": "runtime.client_async",
    "Attempt": "runtime.inspection",
    "Backend": "backend.base",
    "Chain": "flow.builder",
    "ChangePreview": "runtime.moving",
    "CheckpointingRunner": "runtime.checkpointing",
    "Codec": "codec",
    "ErrorInfo": "runtime.inspection",
    "Explanation": "runtime.explaining",
    "Flow": "flow.builder",
    "HistoryEvent": "runtime.inspection",
    "InMemoryBackend": "backend.memory",
    "InProcessRunner": "runtime.in_process",
    "InstanceStatus": "runtime.ending",
    "JsonCodec": "codec",
    "MsgpackCodec": "codec",
    "PostgresBackend": "backend.postgres",
    "PooledWorker": "runtime.worker",
    "Record": "codec",
    "Retention": "runtime.upkeep",
    "SqliteBackend": "backend.sqlite",
    "WorkerHandle": "runtime.worker",
    "WorkerHealth": "runtime.worker",
    "WorkflowClient": "runtime.client",
    "init_tracing": "observe.tracing",
    "open_backend": "backend.urls",
    "shutdown_tracing": "observe.tracing",
}

__all__ = [
    "Again",
    "AlreadyRunning",
    "AsyncCheckpointingRunner",
    "AsyncInProcessRunner",
    "AsyncWorkflowClient",
    "Attempt",
    "Backend",
    "BackendError",
    "BackendReadOnly",
    "BackendUnavailable",
    "Chain",
    "ChangePreview",
    "CheckpointingRunner",
    "Closed",
    "Codec",
    "CodecError",
    "Complete",
    "ConflictPolicy",
    "CorruptValue",
    "DatabaseCorrupt",
    "Decision",
    "DecodeError",
    "Done",
    "EncodeError",
    "ErrorInfo",
    "Explanation",
    "Fail",
    "Flow",
    "GraphError",
    "HistoryEvent",
    "InMemoryBackend",
    "InProcessRunner",
    "InputMismatch",
    "InstanceConflict",
    "InstanceDamaged",
    "InstanceEnded",
    "InstanceError",
    "InstanceExists",
    "InstanceHeld",
    "InstanceNotFound",
    "InstancePaused",
    "InstanceStatus",
    "Interrupted",
    "JsonCodec",
    "LeaseLost",
    "Limits",
    "LoopLimit",
    "LoopValue",
    "MissingDependency",
    "MsgpackCodec",
    "NoRoute",
    "NoTaskContext",
    "OptionError",
    "Permanent",
    "PooledWorker",
    "PostgresBackend",
    "Record",
    "RecordedError",
    "Rerun",
    "Retention",
    "Retry",
    "RetryAfter",
    "SchemaTooNew",
    "SignalTimeout",
    "SqliteBackend",
    "StepCancelled",
    "StepError",
    "StepNotFinished",
    "StepwellError",
    "StorageFull",
    "SyncInAsync",
    "Task",
    "TaskContext",
    "TaskTimeout",
    "TransactionTimeout",
    "UnknownFormat",
    "Unsupported",
    "UsageError",
    "ValueTooLarge",
    "WorkerHandle",
    "WorkerHealth",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowClient",
    "WorkflowFailed",
    "__version__",
    "branch",
    "delay",
    "init_tracing",
    "inject",
    "loop",
    "open_backend",
    "parallel",
    "route",
    "shutdown_tracing",
    "signal",
    "task",
    "task_context",
    "workflow",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("stepwell")
    if name in _LATER:
        found = globals()[name] = getattr(import_module(f".{_LATER[name]}", __name__), name)
        return found
    raise AttributeError(f"module 'stepwell' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
