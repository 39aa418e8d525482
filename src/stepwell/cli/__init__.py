"""The ``stepwell`` command. Each subcommand is imported when it is called.

Its one line of help stands here, so that ``stepwell --help`` imports none of them. What goes wrong ends here too: as
one line on standard error and an exit code, which :mod:`.mistakes` lists.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

import click

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Try": {
        "demo": "Run a real job, kill it half-way with SIGKILL, and watch it go on.",
        "graph": "Draw a workflow as text, Mermaid or SVG.",
    },
    "Run": {
        "run": "Run a workflow to its end in this process.",
        "start": "Create an instance for a worker, and return at once.",
        "worker": "Work on instances until told to stop.",
    },
    "Look": {
        "ps": "List instances.",
        "show": "Show one instance: where its time went, errors, values.",
        "tree": "Show one instance as a tree of its steps.",
        "watch": "Follow an instance, or the list of all, live.",
        "explain": "Say why an instance does not move, and what would move it.",
        "result": "Print what an instance or one of its steps returned.",
    },
    "Control": {
        "signal": "Send a message to an instance.",
        "cancel": "End an instance as cancelled.",
        "pause": "Let an instance start nothing more until it is resumed.",
        "resume": "Let a paused instance go on.",
        "retry": "Let a failed or cancelled instance go on, results kept.",
        "decide": "Decide about a step that an instance is held for.",
    },
    "Upkeep": {
        "purge": "Remove instances that have ended.",
        "migrate": "Bring the database to this version's schema.",
        "doctor": "Check the database and all that is in it.",
        "completion": "Print what completes commands and ids in your shell.",
    },
}

COMMANDS: Final[Mapping[str, str]] = {name: line for section in SECTIONS.values() for name, line in section.items()}

_CONTROL: Final = frozenset(SECTIONS["Control"]) - {"decide"}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when the subcommand is wanted, and says mistakes in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(".control" if cmd_name in _CONTROL else f".{cmd_name}", __name__)
        command = getattr(module, cmd_name if cmd_name in _CONTROL else "command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, 1)
            mend = f"did you mean {near[0]}?" if near else "stepwell --help lists them"
            raise click.UsageError(f"there is no command {args[0]}; {mend}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), line) for name, line in commands.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        name = prog_name or "stepwell"
        if not standalone_mode:
            return super().main(words, name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(words, name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except BrokenPipeError:
            code = _pipe_closed()
        except BaseException as error:  # noqa: BLE001  # nothing leaves as a traceback of ours
            code = _ended_by(error, as_json="--json" in words)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click sees it, which has another exit code for it
            sys.exit(_pipe_closed())


def _pipe_closed() -> int:
    """Be quiet when whoever reads has seen enough, as ``head`` has; also when Python flushes at its end."""
    from .mistakes import CLOSED_PIPE

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # it has to last until the end
    return CLOSED_PIPE


def _ended_by(error: BaseException, *, as_json: bool) -> int:
    from stepwell.errors import LeaseLost, StepwellError

    from .mistakes import INTERRUPTED, NO_DATABASE, Mistake, told

    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, click.Abort | KeyboardInterrupt):
        click.echo(err=True)
        return INTERRUPTED
    if isinstance(error, click.UsageError):
        return _say(_with_help(error), error.exit_code, as_json)
    if isinstance(error, click.ClickException):
        return _say(error.format_message(), error.code if isinstance(error, Mistake) else error.exit_code, as_json)
    if isinstance(error, LeaseLost):
        return _say(f"another process has taken over: {error}", NO_DATABASE, as_json)
    if isinstance(error, StepwellError | TimeoutError):
        mistake: Mistake = told(error)
        return _say(mistake.message, mistake.code, as_json)
    return _surprise(error, as_json)


def _with_help(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx is not None else ""
    return f"{message[:1].lower()}{message[1:]} ({path} --help)" if " " in path else message


SURPRISE: Final = 70


def _surprise(error: BaseException, as_json: bool) -> int:
    if os.environ.get("STEPWELL_TRACEBACK"):
        raise error
    kind = f"{type(error).__name__}: {error}"
    return _say(f"stepwell did not expect this: {kind}; STEPWELL_TRACEBACK=1 shows where", SURPRISE, as_json)


def _say(message: str, code: int, as_json: bool) -> int:
    """Say what went wrong: a line for people, and JSON for a program that asked for JSON."""
    from .mistakes import KINDS, one_line

    line = one_line(message)
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    click.echo(f"stepwell: {line}".encode(encoding, "backslashreplace").decode(encoding), err=True)
    if as_json:
        from .page import say_json_line

        say_json_line({"error": {"kind": KINDS.get(code, "unexpected"), "message": line, "exit_code": code}})
    return code


@click.command(
    "stepwell",
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command has --json, and --help with examples. The database comes from --db or STEPWELL_DB.",
)
@click.version_option(package_name="stepwell", prog_name="stepwell", message="%(prog)s %(version)s")
@click.option("--db", metavar="URL", help="The database, for any command: sqlite:FILE or postgresql://…")
@click.pass_context
def main(ctx: click.Context, db: str | None) -> None:
    """Plain Python functions as durable workflows."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
