"""``stepwell purge``: remove ended instances."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from .common import Open, database_option, json_option, opened, subcommand
from .mistakes import refuse
from .page import say, say_json
from .text import counted

if TYPE_CHECKING:
    from stepwell.runtime.ending import InstanceStatus


@subcommand(
    "purge",
    "stepwell purge --older-than 30d --dry-run",
    "stepwell purge --older-than 30d",
    "stepwell purge --keep 10000",
)
@click.option("--older-than", metavar="TIME", help="Those that ended longer ago: 12h, 30d.")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="All but the N that ended last.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many, those that ended first.")
@click.option("--dry-run", is_flag=True, help="Only say how many would go.")
@database_option
@json_option
def command(
    older_than: str | None, keep: int | None, limit: int | None, dry_run: bool, db: str | None, as_json: bool
) -> None:
    """Remove instances that have ended, with their results and history.

    What has not ended always stays. With both --older-than and --keep, what either asks for goes.
    """
    from .plainly import span_us

    if older_than is None and keep is None:
        refuse("say what may go: --older-than 30d, or --keep 10000, or both")
    age_us = None if older_than is None else span_us(older_than, "--older-than")
    with opened(db) as at:
        if dry_run:
            number = len(_going(at, age_us, keep)[:limit])
        else:
            number = at.client.purge(older_than=None if age_us is None else age_us / 1e6, keep=keep, limit=limit)
    if as_json:
        say_json({"removed": 0 if dry_run else number, "would_remove": number if dry_run else 0})
    else:
        say(f"{counted(number, 'instance')} {'would be removed' if dry_run else 'removed'}")


def _going(at: Open, age_us: int | None, keep: int | None) -> list[InstanceStatus]:
    """Return what a purge would remove, what ended last first."""
    ended = sorted(at.client.iterate(state=("completed", "failed", "cancelled")), key=_ended, reverse=True)
    before_us = None if age_us is None else datetime.now(UTC).timestamp() * 1e6 - age_us
    return [
        status
        for place, status in enumerate(ended)
        if (keep is not None and place >= keep) or (before_us is not None and _ended(status) * 1e6 < before_us)
    ]


def _ended(status: InstanceStatus) -> float:
    return status.ended.timestamp() if status.ended is not None else 0.0
