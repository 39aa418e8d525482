"""``stepwell completion``: what a shell needs to complete commands, options and instance ids."""

from __future__ import annotations

import click

from .common import json_option, subcommand
from .page import say_json


@subcommand(
    "completion",
    'eval "$(stepwell completion bash)"          # in ~/.bashrc',
    'eval "$(stepwell completion zsh)"           # in ~/.zshrc',
    "stepwell completion fish | source           # in ~/.config/fish/config.fish",
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@json_option
def command(shell: str, as_json: bool) -> None:
    """Print what completes commands, options and instance ids in your shell.

    Ids are read from the database that --db or STEPWELL_DB names.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(click.get_current_context().find_root().command, {}, "stepwell", "_STEPWELL_COMPLETE").source()
    if as_json:
        say_json({"shell": shell, "script": script})
    else:
        click.echo(script)
