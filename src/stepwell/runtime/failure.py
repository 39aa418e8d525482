"""A task's error as data: what is written down, and what is raised from it later."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, cast

from stepwell.errors import RecordedError, StepwellError

CAUSES_MAX: Final = 8
MESSAGE_CHARS_MAX: Final = 4_000
_PACKAGE: Final = __name__.partition(".")[0]


def error_record(error: BaseException, limit_bytes: int) -> dict[str, object]:
    """Return what is stored of an error: type name, message, the traceback of the task's own frames, and causes.

    The text is made storable everywhere (no NUL, no lone surrogate) and cut to ``limit_bytes``.
    """
    chain = list(_chain(error))
    return {
        "type": type_text(error),
        "message": message_of(error),
        "traceback": _clean(_frames(error))[-limit_bytes // 2 :],
        "causes": [{"type": type_text(cause), "message": message_of(cause)} for cause in chain[1:CAUSES_MAX]],
    }


def type_text(error: BaseException) -> str:
    """Return a class's qualified name; builtins and our own without their module."""
    kind = type(error)
    own = kind.__module__ == "builtins" or kind.__module__.partition(".")[0] == _PACKAGE
    return kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def message_of(error: BaseException) -> str:
    """Return an error's text, storable and cut to a bound, whatever its ``__str__`` does."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  # a broken __str__ must not hide the failure it belongs to
        text = "(its __str__ raised)"
    return _clean(text)[:MESSAGE_CHARS_MAX]


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _frames(error: BaseException) -> str:
    ours = str(Path(__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    return "".join(traceback.format_list(frames))


def recorded_error(record: object) -> RecordedError:
    """Return the exception that stands for a stored record; the cause chain is rebuilt from its texts."""
    fields: Mapping[str, object] = cast(Mapping[str, object], record) if isinstance(record, Mapping) else {}
    error = RecordedError(
        str(fields.get("type", "Error")), str(fields.get("message", "")), str(fields.get("traceback", ""))
    )
    if error.traceback:
        error.add_note(f"Recorded traceback of the task:\n{error.traceback.rstrip()}")
    last: StepwellError = error
    for cause in cast(list[Mapping[str, object]], fields.get("causes") or []):
        last.__cause__ = RecordedError(str(cause.get("type", "")), str(cause.get("message", "")))
        last = last.__cause__
    return error
