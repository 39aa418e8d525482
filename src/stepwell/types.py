"""Ids, states and limits: the small vocabulary every room shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, Generic, Literal, TypeAlias, TypeVar, cast

from .errors import OptionError

State: TypeAlias = Literal["pending", "running", "waiting", "paused", "held", "completed", "failed", "cancelled"]

ENDED: Final[frozenset[str]] = frozenset({"completed", "failed", "cancelled"})
RESTING: Final[frozenset[str]] = ENDED | {"held", "paused"}

RouteKey: TypeAlias = str | int | bool | Enum

S = TypeVar("S", covariant=True)
R = TypeVar("R", covariant=True)


@dataclass(frozen=True, slots=True)
class Again(Generic[S]):
    """Returned by a loop's body: take another turn with ``value``.

    Example:
        >>> @task
        ... def halve(n: int) -> Again[int] | Done[int]:
        ...     return Again(n // 2) if n > 10 else Done(n)
        >>> halve(25)
        Again(value=12)
    """

    value: S


@dataclass(frozen=True, slots=True)
class Done(Generic[R]):
    """Returned by a loop's body: leave the loop with ``value``. See :class:`Again`.

    Example:
        >>> Done("good enough").value
        'good enough'
    """

    value: R


class ConflictPolicy(StrEnum):
    """What ``run`` and ``start`` do when the instance id exists already; the member or its value is given.

    Attributes:
        FAIL: raise ``InstanceExists``.
        USE_EXISTING: attach to it, the default: an unfinished one goes on, an ended one gives its recorded end.
        TERMINATE_EXISTING: cancel it, fence whoever works on it, and begin a new run under the id.
        RESTART_IF_FAILED: let a failed or cancelled one go on where it stopped, results kept; else as USE_EXISTING.

    Example:
        >>> ConflictPolicy("use_existing")
        <ConflictPolicy.USE_EXISTING: 'use_existing'>
    """

    FAIL = "fail"
    USE_EXISTING = "use_existing"
    TERMINATE_EXISTING = "terminate_existing"
    RESTART_IF_FAILED = "restart_if_failed"


@dataclass(frozen=True, slots=True)
class Rerun:
    """A decision about a held instance: do again what it was held for, and go on. See ``WorkflowClient.decide``.

    Example:
        >>> client.decide("order-42", "charge", Rerun())  # doctest: +SKIP
    """


@dataclass(frozen=True, slots=True)
class Complete:
    """A decision about a held instance: its step was done after all, with ``value`` as its result.

    Example:
        >>> client.decide("order-42", "charge", Complete(Receipt("r-7")))  # doctest: +SKIP
    """

    value: object


@dataclass(frozen=True, slots=True)
class Fail:
    """A decision about a held instance: its step has failed, for ``reason``.

    Example:
        >>> client.decide("order-42", "charge", Fail("the bank has no such payment"))  # doctest: +SKIP
    """

    reason: str


Decision: TypeAlias = Rerun | Complete | Fail
"""What ``WorkflowClient.decide`` takes: one of the three."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers that bound what is stored; checked before memory is taken. Given to a codec, and with it to a store.

    Attributes:
        value_bytes: the size of one encoded value, 8 MiB.
        depth: how deep it may nest.
        keys: the entries of one container.
        int_digits: the decimal digits of one integer.
        error_bytes: the text of one recorded error; what is longer is cut.

    Example:
        >>> codec = JsonCodec(Limits(value_bytes=64 * 1024))
        >>> SqliteBackend("orders.db", codec=codec)  # doctest: +SKIP
    """

    value_bytes: int = 8 * 1024 * 1024
    depth: int = 200
    keys: int = 1_000_000
    int_digits: int = 10_000
    error_bytes: int = 64 * 1024


DEFAULT_LIMITS: Final = Limits()

ID_BYTES_MAX: Final = 256  # fits every database's index key; the same bound as Temporal's practical ids
NAME_CHARS_MAX: Final = 64  # a path of ten nested nodes stays readable on one line
NODES_MAX: Final = 20_000  # a plan is loaded whole; beyond this a loop or a child is the better shape
NEST_MAX: Final = 50  # recursion in the compiler stays far below Python's limit
METADATA_BYTES_MAX: Final = 64 * 1024

_NAME_REFUSED: Final = frozenset("/[]#=")


def check_name(name: object, what: str) -> str:
    """Return ``name`` if it may name a workflow, node or signal, else raise :class:`OptionError`.

    A name has 1 to 64 printable characters, none of ``/ [ ] # =``, which paths use.
    """
    if not isinstance(name, str):
        raise OptionError(f"{what} must be a str, not {type(name).__name__}")
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise OptionError(f"{what} must have 1 to {NAME_CHARS_MAX} characters, {name[:80]!r} has {len(name)}")
    if bad := next((c for c in name if c in _NAME_REFUSED or not c.isprintable()), None):
        raise OptionError(
            f"{what} {name!r} contains {bad!r}; / [ ] # = and control characters are used by paths; "
            "leave it out, or write - instead"
        )
    return name


def check_instance_id(instance_id: object, what: str = "instance id") -> str:
    """Return ``instance_id`` if it may name an instance, else raise :class:`OptionError`.

    ``what`` is what errors call it. An id has 1 to 256 bytes of UTF-8 and no control character.
    """
    if not isinstance(instance_id, str):
        mend = "; write str(…) around it" if isinstance(instance_id, int) else ""
        raise OptionError(f"an {what} must be a str, not {type(instance_id).__name__}{mend}")
    try:
        size = len(instance_id.encode())
    except UnicodeEncodeError:
        raise OptionError(f"{what} {instance_id!r} is not valid Unicode text") from None
    if not 1 <= size <= ID_BYTES_MAX:
        raise OptionError(f"an {what} must have 1 to {ID_BYTES_MAX} bytes, this one has {size}")
    if any(ord(c) < 32 or ord(c) == 127 for c in instance_id):
        raise OptionError(f"{what} {instance_id!r} contains a control character")
    return instance_id


def check_labels(labels: object) -> dict[str, str]:
    """Return labels as a dict if an instance may have them, else raise :class:`OptionError`.

    Keys have 1 to 256 bytes of UTF-8, values up to 256, neither a control character; all of them at most 64 KiB.
    """
    if not isinstance(labels, Mapping):
        raise OptionError(f"labels must be a mapping, as labels={{'customer': 'ann'}}, not a {type(labels).__name__}")
    found: dict[str, str] = {}
    for key, value in cast("Mapping[object, object]", labels).items():
        name = _label(key, "the name of a label", 1)
        found[name] = _label(value, f"the value of label {name!r}", 0)
    if (size := sum(len(text.encode()) for pair in found.items() for text in pair)) > METADATA_BYTES_MAX:
        raise OptionError(f"labels may have {METADATA_BYTES_MAX} bytes in all, not {size}; keep more in the input")
    return found


def _label(text: object, what: str, least: int) -> str:
    """Return one half of a label; as an index finds it, it has an id's limits. Values are nobody else's to read."""
    if not isinstance(text, str):
        mend = "; write str(…) around it" if isinstance(text, int) else ""
        raise OptionError(f"labels are texts: {what} must be a str, not {type(text).__name__}{mend}")
    size = len(text.encode(errors="surrogatepass"))
    plain = text.isascii() or text == text.encode(errors="replace").decode()
    if not least <= size <= ID_BYTES_MAX or not plain or any(ord(c) < 32 or ord(c) == 127 for c in text):
        limits = f"{least} to {ID_BYTES_MAX} bytes of UTF-8 without control characters"
        raise OptionError(f"labels: {what} must have {limits}, this one has {size}")
    return text


Metadata: TypeAlias = Mapping[str, object]
