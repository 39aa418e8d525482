"""Every exception stepwell raises, as one tree; the class says whose fault it is.

::

    StepwellError
    ├── UsageError                 the caller's code is wrong; nothing was run
    │   ├── GraphError             a workflow cannot be built (carries file and line)
    │   ├── OptionError            an option, id or number is out of range
    │   ├── MissingDependency      a task's inject() has no value
    │   ├── NoTaskContext          task_context() outside a task
    │   ├── SyncInAsync            a sync runner inside a running event loop
    │   ├── Closed                 a runner or backend used after close()
    │   └── Unsupported            the backend cannot do what was asked
    ├── CodecError
    │   ├── EncodeError            a value cannot be stored exactly
    │   │   └── ValueTooLarge      … because it exceeds a limit
    │   └── DecodeError            stored bytes do not fit the declared type
    │       ├── CorruptValue       … or are damaged
    │       └── UnknownFormat      … or were written by another codec or a newer version
    ├── InstanceError              about one instance (carries instance_id)
    │   ├── InstanceNotFound
    │   ├── InstanceExists         policy FAIL met an existing id
    │   ├── InstanceConflict       the id belongs to another workflow or graph
    │   ├── InputMismatch          the id exists with another input
    │   ├── InstanceEnded          a signal or request came after the end
    │   ├── AlreadyRunning         another live session holds it
    │   ├── InstanceDamaged        its stored rows cannot be read; others are unaffected
    │   ├── StepNotFinished        a step's result was asked for, and there is none yet
    │   ├── WorkflowFailed         it ended in failure; __cause__ is the recorded error
    │   ├── WorkflowCancelled
    │   ├── InstancePaused
    │   └── InstanceHeld           stopped for a person's decision
    ├── StepError                  what a step's failure is recorded as, when it is ours
    │   ├── TaskTimeout
    │   │   └── TransactionTimeout a task's transaction was open for too long
    │   ├── SignalTimeout
    │   ├── NoRoute
    │   ├── LoopLimit
    │   ├── LoopValue              a loop's body said neither Again nor Done
    │   ├── StepCancelled          raised inside a task by raise_if_cancelled()
    │   └── Interrupted            an at-most-once step was cut off
    ├── RecordedError              a task's error read back from storage
    ├── Permanent                  raised by a task: do not retry
    ├── RetryAfter                 raised by a task: try again after a wait (in stepwell.retry)
    └── BackendError               the infrastructure failed; no task did
        ├── BackendUnavailable     locked for too long, unreachable, cannot be opened
        ├── BackendReadOnly
        ├── StorageFull
        ├── DatabaseCorrupt
        └── SchemaTooNew

    LeaseLost (BaseException)      another session took over; user code must not swallow it
"""

from __future__ import annotations


class StepwellError(Exception):
    """Base of every error that stepwell raises on purpose."""


# --- the caller's mistakes ---------------------------------------------------


class UsageError(StepwellError):
    """The calling code is wrong; the message says what, where and how to mend it."""


class GraphError(UsageError):
    """A workflow cannot be built.

    ``where`` is ``"file:line"`` of the user's call, or ``""`` where none is known.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class OptionError(UsageError, ValueError):
    """An option, id, duration or number is not one that stepwell accepts."""


class MissingDependency(UsageError):
    """A task asks for a dependency that the runner was not given."""

    def __init__(self, task: str, parameter: str, type_name: str) -> None:
        super().__init__(
            f"task {task!r} needs {parameter}: {type_name}, but the runner has no value for {type_name}. "
            f"Pass deps={{{type_name}: value}} to the runner."
        )
        self.task, self.parameter, self.type_name = task, parameter, type_name


class NoTaskContext(UsageError, LookupError):
    """``task_context()`` was called outside a running task."""


class SyncInAsync(UsageError, RuntimeError):
    """A sync runner was called from inside a running event loop."""


class Closed(UsageError, RuntimeError):
    """A runner, client or backend was used after it was closed."""


class Unsupported(UsageError):
    """The backend declares that it cannot do what the runner or call needs."""


# --- values --------------------------------------------------------------------


class CodecError(StepwellError):
    """A value could not be encoded or decoded. ``path`` names the place inside the value, ``""`` the value itself."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{message} (at {path})" if path else message)
        self.path = path


class EncodeError(CodecError):
    """The value cannot be stored so that it comes back equal."""


class ValueTooLarge(EncodeError):
    """The value exceeds a limit of :class:`stepwell.Limits`."""


class DecodeError(CodecError):
    """Stored bytes do not fit the type they are read as: an annotation says something else than what was returned."""


class CorruptValue(DecodeError):
    """Stored bytes are damaged: wrong magic, wrong checksum, cut off, or over a limit."""


class UnknownFormat(DecodeError):
    """Stored bytes name a format version or codec that this reader does not know."""


# --- one instance --------------------------------------------------------------------


class InstanceError(StepwellError):
    """Something about one instance. ``instance_id`` says which."""

    def __init__(self, instance_id: str, message: str) -> None:
        super().__init__(f"instance {instance_id!r}: {message}")
        self.instance_id = instance_id


class InstanceNotFound(InstanceError, LookupError):
    """No instance has this id."""


class InstanceExists(InstanceError):
    """The id is taken and the conflict policy is FAIL."""


class InstanceConflict(InstanceError):
    """The id belongs to an instance of another workflow, or of an older graph of this one that is unfinished."""


class InputMismatch(InstanceError):
    """The id belongs to an instance that was started with another input; ``on_mismatch="ignore"`` attaches anyway."""


class InstanceEnded(InstanceError):
    """The instance has ended, so it takes no signal or request."""


class AlreadyRunning(InstanceError):
    """Another live session holds the instance. ``runner.result`` and ``client.result`` wait for its end."""


class InstanceDamaged(InstanceError):
    """Rows of this instance cannot be read. Other instances are not affected."""


class StepNotFinished(InstanceError, LookupError):
    """A step whose result was asked for has none yet. ``path`` names it."""

    def __init__(self, instance_id: str, message: str, path: str = "") -> None:
        super().__init__(instance_id, message)
        self.path = path


class WorkflowFailed(InstanceError):
    """The instance ended in failure. ``path`` is the failed step; ``__cause__`` the recorded error.

    Example:
        >>> try:  # doctest: +SKIP
        ...     runner.run(checkout, order, instance_id="order-42")
        ... except WorkflowFailed as failed:
        ...     print(failed.path, failed.__cause__)
        charge the card was declined
    """

    def __init__(self, instance_id: str, message: str, path: str = "") -> None:
        super().__init__(instance_id, message)
        self.path = path


class WorkflowCancelled(InstanceError):
    """The instance was cancelled."""


class InstancePaused(InstanceError):
    """The instance is paused; ``runner.client.resume`` lets it go on."""


class InstanceHeld(InstanceError):
    """The instance is stopped for a person's decision; ``reason`` says which.

    It goes on by itself at no time: ``client.decide`` says how it goes on, ``client.cancel`` ends it.
    """

    def __init__(self, instance_id: str, message: str, reason: str = "") -> None:
        super().__init__(instance_id, message)
        self.reason = reason


# --- a step ------------------------------------------------------------------------------


class StepError(StepwellError):
    """A step's failure that stepwell itself decided on. ``path`` names the step."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TaskTimeout(StepError, TimeoutError):
    """An attempt ran longer than the task's timeout."""


class TransactionTimeout(TaskTimeout):
    """A task's transaction was open for longer than it may be, and was undone."""


class SignalTimeout(StepError, TimeoutError):
    """No message came within a signal's timeout, and it has no ``on_timeout`` branch: the step has failed."""


class NoRoute(StepError):
    """A route has no case for its key and no default."""


class LoopLimit(StepError):
    """A loop still said ``Again`` in its last allowed turn."""


class LoopValue(StepError):
    """A loop's body returned neither ``Again`` nor ``Done``."""


class StepCancelled(StepError):
    """Raised inside a task that asked whether it should stop: its instance is being cancelled, or its time is over."""


class Interrupted(StepError):
    """An at-most-once step was cut off; it is never started again by stepwell."""


class RecordedError(StepwellError):
    """A task's error as it was recorded: text only, never a revived object.

    ``type_name`` is the class's qualified name, ``traceback`` the formatted text of the task's own frames.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name, self.message, self.traceback = type_name, message, traceback


class Permanent(StepwellError):
    """Raise it in a task to fail the step at once, whatever its retry policy says.

    Example:
        >>> raise Permanent("the card is blocked")
        Traceback (most recent call last):
        stepwell.errors.Permanent: the card is blocked
    """


# --- infrastructure ---------------------------------------------------------------------------


class BackendError(StepwellError):
    """The store failed. Instances keep their state and can be resumed; no attempt is used up."""


class BackendUnavailable(BackendError):
    """The store cannot be opened or reached, or stayed locked for too long. Try again later; nothing is lost."""


class BackendReadOnly(BackendError):
    """The store cannot be written."""


class StorageFull(BackendError):
    """The disk is full. Make room, and go on; nothing that was recorded is lost."""


class DatabaseCorrupt(BackendError):
    """The database file is damaged or is not a database."""


class SchemaTooNew(BackendError):
    """The database was written by a newer stepwell. Upgrade this environment."""


class LeaseLost(BaseException):
    """This session was taken over by another; nothing it still holds can be written.

    A ``BaseException``, so that a task's ``except Exception`` cannot swallow it.
    """
