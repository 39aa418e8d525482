"""The ``stepwell`` command. Each subcommand is one module of this package, imported when it is called.

A module that offers a subcommand has a click command named ``command``; its one line of help stands here, so that
``stepwell --help`` imports none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

import click

COMMANDS: Final[Mapping[str, str]] = {
    "demo": "Run a real job, kill it half-way with SIGKILL, and watch it go on.",
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when the subcommand is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f".{cmd_name}", __name__).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="stepwell", prog_name="stepwell", message="%(prog)s %(version)s")
def main() -> None:
    """Plain Python functions as durable workflows."""
