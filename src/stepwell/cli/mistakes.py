"""What goes wrong, as one line and an exit code that scripts can rely on.

The library's messages speak of Python calls; to somebody at a terminal the same thing is said in commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NoReturn

import click

from stepwell import errors as e
from stepwell.backend.urls import hide_passwords

from .text import quoted, safe

OK: Final = 0
FAILED: Final = 1  # the run failed or was cancelled; doctor found something
USAGE: Final = 2
NOT_FOUND: Final = 3
NOT_ALLOWED: Final = 4  # the instance's state, or another one with its id, does not allow it
NO_DATABASE: Final = 5
UNFINISHED: Final = 6  # held, paused, or not ended when the wait was over: there is no output yet
UNREADABLE: Final = 7  # what is stored cannot be read
INTERRUPTED: Final = 130
CLOSED_PIPE: Final = 141

KINDS: Final = {
    FAILED: "failed",
    USAGE: "usage",
    NOT_FOUND: "not_found",
    NOT_ALLOWED: "not_allowed",
    NO_DATABASE: "database",
    UNFINISHED: "unfinished",
    UNREADABLE: "unreadable",
    INTERRUPTED: "interrupted",
}

_CODES: Final[tuple[tuple[tuple[type[BaseException], ...], int], ...]] = (
    ((e.WorkflowFailed, e.WorkflowCancelled), FAILED),
    ((e.InstanceHeld, e.InstancePaused, e.StepNotFinished, TimeoutError), UNFINISHED),
    ((e.InstanceNotFound,), NOT_FOUND),
    ((e.InstanceDamaged, e.DecodeError), UNREADABLE),
    ((e.InstanceError,), NOT_ALLOWED),
    ((e.BackendError,), NO_DATABASE),
)


class Mistake(click.ClickException):
    """One line for the user, and the code that the command exits with."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: BaseException) -> int:
    """Return the exit code that an error of the library stands for."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), USAGE)


def told(error: BaseException, instance_id: str = "") -> Mistake:
    """Return an error of the library as a mistake."""
    named = error.instance_id if isinstance(error, e.InstanceError) else instance_id
    return Mistake(in_commands(str(error), named), code_of(error))


def refuse(message: str, code: int = USAGE) -> NoReturn:
    """Raise a mistake."""
    raise Mistake(message, code)


def one_line(text: str) -> str:
    """Return a message as one harmless line without passwords."""
    return safe(hide_passwords(" ".join(text.split())))


# --- in the words of the command ------------------------------------------------------------------


def in_commands(text: str, instance_id: str) -> str:
    """Return a message of the library with its calls written as commands."""
    who = quoted(instance_id) if instance_id else "ID"
    for pattern, written in _CALLS:
        text = pattern.sub(written(who), text)
    return text


def _call(pattern: str, command: str) -> tuple[re.Pattern[str], Callable[[str], Callable[[re.Match[str]], str]]]:
    def written(who: str) -> Callable[[re.Match[str]], str]:
        return lambda match: match.expand(command).replace("WHO", who)

    return re.compile(pattern), written


_CALLS: Final = (
    _call(r"(by )?client\.decide\(id, ['\"]{2}, …\)", r"\1'stepwell decide WHO \"\" …'"),
    _call(r"(by )?client\.decide\(id, ['\"](.*?)['\"], …\)", r"\1'stepwell decide WHO \2 …'"),
    _call(r"client\.signal\(id, ['\"](.*?)['\"], …\)", r"'stepwell signal WHO \1 …'"),
    _call(r"in SqliteBackend\('(.*?)'\)", r"in \1"),
    _call(r"in <PostgresBackend (.*?)>", r"in \1"),
    _call(r"client\.list\(\)", "'stepwell ps'"),
    _call(r"client\.(\w+)\(\)", r"'stepwell \1 WHO'"),
    _call(r"runner\.recover\(\[(.*?)\]\) or runner\.resume\(\)", r"a worker for \1, or 'stepwell run … --resume WHO',"),
    _call(r"Complete\((value|…)\)", "complete"),
    _call(r"Rerun\(\)", "rerun"),
    _call(r"Fail\((reason|…)\)", "fail"),
    _call(r"on_conflict='(\w+)'", r"--on-conflict \1"),
    _call(r"on_mismatch='ignore'", "--ignore-input"),
    _call(r"start\(\) creates one", "'stepwell start' creates one"),
)
