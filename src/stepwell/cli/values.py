"""Values at the command line: JSON in, converted to the type that the workflow declares; JSON out.

JSON has fewer types than Python, so what comes in is read as a type: that of the code where it is at hand, else the one
that the stored plan names, if JSON itself has it. A value of a type that only code can make is refused rather than
guessed, as it would hold the instance that gets it.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from stepwell.codec import Record, type_name

from .mistakes import refuse
from .text import clip

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepwell.codec import Codec
    from stepwell.flow.plan import Plan

SHOWN_CHARS: Final = 60


class Missing:
    """Stands for "no value was given": ``null`` is one."""


MISSING: Final = Missing()


def read_json(text: str | None, file: str | None, what: str) -> object:
    """Return the JSON of an argument, a file, or standard input (``-``). Raises Mistake."""
    if text is not None and file is not None:
        refuse(f"{what} is given twice, as an argument and by --file")
    if file is not None:
        raw, told = _of_file(file), f"the file {file}"
    elif text == "-":
        raw, told = sys.stdin.buffer.read(), "standard input"
    elif text is not None:
        raw, told = text.encode("utf-8", "surrogateescape"), what
    else:
        return MISSING
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shown = raw.decode("utf-8", "replace").strip()
        mend = f"; a text needs its quotes: '{_as_text(shown)}'" if text not in (None, "-") and _is_word(shown) else ""
        refuse(f"{told} is not JSON: {error}{mend}")


def _of_file(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        refuse(f"{file} cannot be read: {error.strerror}")


def _is_word(text: str) -> bool:
    return bool(text) and text[0] not in '[{"'


def _as_text(text: str) -> str:
    return msgspec.json.encode(clip(text, SHOWN_CHARS)).decode().replace("'", "'\\''")


# --- into a declared type -------------------------------------------------------------------------


def converted(value: object, declared: object, what: str) -> object:
    """Return JSON data as the declared type has it. Raises Mistake naming the place that does not fit."""
    if declared is Any or declared is None or declared is object:
        return value
    try:
        return msgspec.convert(value, declared, dec_hook=_made)
    except msgspec.ValidationError as error:
        refuse(f"{what} is not {_a(type_name(declared))}: {_first_line(error)}")
    except (TypeError, ValueError) as error:
        refuse(f"{what} cannot be made into {_a(type_name(declared))} from JSON: {_first_line(error)}")


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiouAEIO' else 'a'} {name}"


def _first_line(error: Exception) -> str:
    """Return what an error says without the values in it."""
    if (details := getattr(error, "errors", None)) is not None and callable(details):
        first = cast("Callable[[], list[dict[str, Any]]]", details)()[0]  # pydantic's
        return f"{first['msg']} - at `$.{'.'.join(map(str, first['loc']))}`"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _made(kind: Any, value: Any) -> object:
    """Make what msgspec does not know: models of pydantic, and classes that take their fields by name."""
    if hasattr(kind, "model_validate"):
        try:
            return kind.model_validate(value)
        except ValueError as error:
            raise ValueError(_first_line(error)) from None
    if kind is complex and isinstance(value, str):
        return complex(value)
    raise TypeError(f"{type_name(kind)} has no form in JSON that stepwell knows")


# --- without code ---------------------------------------------------------------------------------

_NATIVE: Final[dict[str, Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "None": None,
    "NoneType": None,
    "list": list,
    "dict": dict,
    "Any": Any,
    "object": Any,
}


def native_type(name: str) -> tuple[bool, Any]:
    """Return whether a type's name is one of JSON's own types, and that type: ``list[str]``, ``int | None``."""
    try:
        return True, _native(ast.parse(name, mode="eval").body)
    except (SyntaxError, LookupError, TypeError, ValueError, RecursionError):
        return False, None


def _native(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name):
            return _NATIVE[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _native(left) | _native(right)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return list[_native(item)]  # type: ignore[misc]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return dict[_native(key), _native(item)]  # type: ignore[misc]
        case _:
            raise LookupError("not a type that JSON has")


def signal_type(plan: Plan, name: str) -> str:
    """Return the name of the type that a plan awaits a signal as, ``Any`` if it does not say."""
    row = next((n for n in plan.nodes if n.kind == "signal" and n.signal == name), None)
    return _part(row.interface if row else "", 2)


def returned_type(plan: Plan, node: int) -> str:
    """Return the name of the type that a task's or signal's step yields, ``Any`` if the plan does not say."""
    return _part(plan.nodes[node].interface, 2) if plan.kind[node] in ("task", "signal") else "Any"


def _part(interface: str, at: int) -> str:
    parts: list[str] = msgspec.json.decode(interface, type=list[str]) if interface else []
    return parts[at] if len(parts) > at else "Any"


def without_code(value: object, name: str, what: str) -> object:
    """Return JSON data as a type known by name alone. Raises Mistake if only code can make that type."""
    is_native, declared = native_type(name)
    if not is_native:
        refuse(f"{what} is {_a(name)}, which only your code can make; add --workflow module:workflow")
    return converted(value, declared, what)


# --- out ------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a decoded value as JSON can hold it: records as their fields, sets and tuples as lists."""
    if isinstance(value, Record):
        return {str(name): plain(value.fields[name]) for name in value.fields}
    if isinstance(value, dict):
        return {_key(key): plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and not -_LARGEST <= value <= _LARGEST:
        return repr(value)
    return str(value) if isinstance(value, complex) or _is_long(value) else _leaf(value)


def _is_long(value: Any) -> bool:
    return type(value) is int and abs(value) >= 2**63


_LARGEST: Final = sys.float_info.max


def _leaf(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _key(key: Any) -> str:
    return _leaf(key) if isinstance(key, str) else str(plain(key))


def as_stored(codec: Codec, value: object) -> Any:
    """Return a live value as JSON would show it after it was stored."""
    return plain(codec.decode(codec.encode(value)))
