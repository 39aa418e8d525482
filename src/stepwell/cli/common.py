"""What the commands share: options, an open store, help with examples, completion of ids."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from stepwell.backend.urls import Place

from .database import open_place, place_of
from .mistakes import refuse
from .text import quoted
from .times import Times

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from stepwell.backend.base import Backend
    from stepwell.runtime.client import WorkflowClient
    from stepwell.runtime.room import Room

F = TypeVar("F", bound="Callable[..., Any]")

COMPLETED_MAX: Final = 100


class Open(NamedTuple):
    """An open store, and the client that looks after it."""

    place: Place
    backend: Backend
    room: Room
    client: WorkflowClient
    flags: tuple[str, ...] = ()

    def command(self, *words: str) -> str:
        """Return a command on this store that can be copied."""
        return command_line(self.flags, *words)


def command_line(flags: Sequence[str], *words: str) -> str:
    """Return a command that can be copied; the flags stand at its end, unless it names another database."""
    return " ".join(["stepwell", *map(quoted, (*words, *(flags if "--db" not in words else ())))])


@contextmanager
def opened(db: str | None, *, create: bool = False) -> Generator[Open]:
    """Open the store that a command works on, and close it at the end."""
    place = place_of(_named(db))
    with closing(open_place(place, create=create)) as backend:
        from stepwell.runtime.client import WorkflowClient, client_room

        room = client_room(backend, None)
        with closing(room):
            yield Open(place, backend, room, WorkflowClient.over(room), flags_of(db, place))


def flags_of(db: str | None, place: Place) -> tuple[str, ...]:
    """Return what a copied command needs to find the same database: nothing, where STEPWELL_DB names it."""
    return ("--db", place.target if place.kind == "sqlite" else place.shown) if _named(db) else ()


def _named(db: str | None) -> str | None:
    """Return what this command was given, or ``stepwell --db … COMMAND``."""
    context = click.get_current_context(silent=True)
    return db or (context.find_root().params.get("db") if context else None)


def place_named(db: str | None) -> Place:
    """Return the place that a command works on without opening it."""
    return place_of(_named(db))


# --- options --------------------------------------------------------------------------------------

DB_HELP: Final = "The database: sqlite:FILE, a file's path, or postgresql://…  [default: $STEPWELL_DB]"


def database_option(function: F) -> F:
    return click.option("--db", metavar="URL", help=DB_HELP)(function)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def utc_option(function: F) -> F:
    return click.option("--utc", is_flag=True, help="Times in UTC; by default they are local.")(function)


def by_option(function: F) -> F:
    return click.option("--by", default="", metavar="WHO", help="Who asks; kept in the history.")(function)


def labels_option(help_text: str) -> Callable[[F], F]:
    return click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help=help_text)


def labels_of(given: Sequence[str]) -> dict[str, str]:
    """Return labels as a mapping. Raises Mistake for one without a value."""
    for label in given:
        if "=" not in label or label.startswith("="):
            refuse(f"--label {label} is not KEY=VALUE, as in --label customer=ann")
    return dict(label.split("=", 1) for label in given)


class InstanceId(click.ParamType[str]):
    """An instance id; the shell completes those that are there."""

    name = "id"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the newest ids that begin so; none if the store cannot be asked, as a shell shows no errors."""
        from click.shell_completion import CompletionItem

        try:
            with ctx, opened(ctx.params.get("db")) as at:
                found = at.client.list(limit=1_000)
        except Exception:  # noqa: BLE001  # whatever it is, pressing TAB is not the place to say so
            return []
        wanted = [status for status in found if status.instance_id.startswith(incomplete)][:COMPLETED_MAX]
        return [CompletionItem(s.instance_id, help=f"{s.workflow} {s.state}") for s in wanted]


def instance_argument(function: F) -> F:
    return click.argument("instance_id", metavar="ID", type=InstanceId())(function)


# --- commands -------------------------------------------------------------------------------------


class Command(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{line}\n")
        super().format_epilog(ctx, formatter)


def subcommand(name: str, *examples: str) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command with examples. What it returns is the exit code, ``None``: 0."""
    return click.command(name, cls=Command, examples=examples)


def times_of(utc: bool) -> Times:
    return Times(utc=utc)
