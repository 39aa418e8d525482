"""``stepwell watch``: an instance's tree, or the list of instances, redrawn as they move.

The store is asked for its hint, a number that is cheap to read and changes when somebody may have written; only then,
and once a second for the clocks, is anything read again. What is no terminal gets what happens as lines.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from stepwell.types import ENDED

from .common import InstanceId, Open, database_option, json_option, labels_of, opened, subcommand, times_of, utc_option
from .mistakes import FAILED, OK, refuse
from .page import NARROWEST, UNBOUNDED, Line, Span, as_rich, columns_of_terminal, cropped, say, say_json_line
from .ps import Asked, filters
from .text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from .times import Times

CLOCKS_S: Final = 1.0
LOUD: Final = "bold"  # the style of a step's name that is open: the picture keeps those in sight


class Frame(NamedTuple):
    """What is shown at one moment, and whether nothing will follow."""

    lines: list[Line]
    over: bool


@subcommand(
    "watch",
    "stepwell watch order-42",
    "stepwell watch --state running --workflow checkout",
    "stepwell watch order-42 --json      # one line for each thing that happens",
)
@click.argument("instance_id", metavar="[ID]", required=False, type=InstanceId())
@filters
@click.option("--interval", type=click.FloatRange(0.02, 60), default=0.1, metavar="SECONDS", help="Between two looks.")
@database_option
@utc_option
@json_option
def command(
    instance_id: str | None,
    states: tuple[str, ...],
    workflow: str | None,
    labels: tuple[str, ...],
    since: str | None,
    limit: int,
    interval: float,
    db: str | None,
    utc: bool,
    as_json: bool,
) -> int:
    """Follow an instance until it ends, or the list of instances until Ctrl-C.

    On a terminal the picture moves, and its last state stays. Elsewhere each thing that happens is a line. Exits with 1
    if the instance ends as failed or cancelled, with 0 after Ctrl-C.
    """
    from .ps import since_of

    times = times_of(utc)
    with opened(db) as at:
        if instance_id is not None:
            if states or workflow or labels or since:
                refuse("filters choose from a list; leave them out to watch one instance")
            return _watch_one(at, instance_id, times, interval, as_json)
        asked = Asked(states, workflow, labels_of(labels), since_of(since, times), limit, None)
        return _watch_list(at, asked, times, interval, as_json)


def _watch_one(at: Open, instance_id: str, times: Times, interval: float, as_json: bool) -> int:
    if as_json or not sys.stdout.isatty():
        show = _teller(at, instance_id, times, as_json)
        follow(at, show, lambda frame: None, interval)
    else:
        _live(at, lambda: drawn(at, instance_id, times.renewed(), columns_of_terminal()), interval)
    return FAILED if at.client.status(instance_id).state in ("failed", "cancelled") else OK


def _watch_list(at: Open, asked: Asked, times: Times, interval: float, as_json: bool) -> int:
    from .ps import lines, listed

    def draw() -> Frame:
        now = times.renewed()
        return Frame(lines(listed(at, asked, now), now, columns_of_terminal()), over=False)

    if as_json or not sys.stdout.isatty():
        follow(at, _changes(at, asked, times, as_json), lambda frame: None, interval)
    else:
        _live(at, draw, interval)
    return OK


# --- looking --------------------------------------------------------------------------------------


def follow(
    at: Open,
    draw: Callable[[], Frame],
    show: Callable[[Frame], None],
    interval: float,
    stop: threading.Event | None = None,
) -> None:
    """Draw whenever the store may have changed, until nothing will follow, Ctrl-C, or ``stop``."""
    stop = stop or threading.Event()
    seen, due = -1, 0.0
    try:
        while True:
            begin, last = time.monotonic(), stop.is_set()
            hint = at.backend.hint()
            if hint != seen or begin >= due or last:
                frame = draw()
                show(frame)
                seen, due = hint, begin + CLOCKS_S
                if frame.over or last:
                    return
            stop.wait(max(interval, 3 * (time.monotonic() - begin)))  # a long history is not read without pause
    except KeyboardInterrupt:
        return


def drawn(at: Open, instance_id: str, times: Times, space: int) -> Frame:
    """Return an instance's picture."""
    from .steps import read_run
    from .tree import picture

    run = read_run(at.room, instance_id)
    return Frame(picture(at, run, times, space), run.shown_state in ENDED and not run.header.session)


# --- a picture that moves -------------------------------------------------------------------------


def _live(at: Open, draw: Callable[[], Frame], interval: float) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    with _moving(console) as show:
        follow(at, draw, show, interval)


@contextmanager
def _moving(console: Console, *, above: bool = False) -> Generator[Callable[[Frame], None]]:
    """Yield what redraws a frame in place; the last one stays in full when this is left.

    ``above``: what the process prints meanwhile goes above the picture.
    """
    from rich.live import Live

    last: list[Frame] = []
    options: Any = {"redirect_stdout": above, "redirect_stderr": above}
    with Live(console=console, auto_refresh=False, transient=True, **options) as live:

        def show(frame: Frame) -> None:
            last[:] = [frame]
            columns, rows = max(NARROWEST, console.width), max(5, console.height)
            shown = [cropped(line, columns) for line in fitted(frame.lines, rows - 1)]
            live.update(as_rich(shown), refresh=True)

        yield show
    for frame in last:
        console.print(as_rich(cropped(line, max(NARROWEST, console.width)) for line in frame.lines), soft_wrap=True)


def fitted(lines: list[Line], rows: int) -> list[Line]:
    """Return so many lines that they fit, with what is open in sight and the rest counted."""
    if len(lines) <= rows:
        return lines
    head, body = lines[:2], lines[2:]
    room = max(1, rows - len(head) - 2)
    loud = [at for at, line in enumerate(body) if any(span.style == LOUD for span in line)]
    first = max(0, min((loud[0] if loud else 0) - room // 3, len(body) - room))
    above, below = first, len(body) - first - room
    shown = body[first : first + room]
    return [*head, *_left_out(above, "above"), *shown, *_left_out(below, "below")]


def _left_out(count: int, where: str) -> list[Line]:
    return [[Span(f"… {counted(count, 'line')} {where}", "dim")]] if count else []


@contextmanager
def beside(at: Open, instance_id: str) -> Generator[None]:
    """Show an instance's tree on standard error while this process runs it."""
    from rich.console import Console

    from stepwell.errors import InstanceNotFound

    from .times import Times

    console, stop = Console(stderr=True, highlight=False), threading.Event()

    def draw() -> Frame:
        try:
            return drawn(at, instance_id, Times(utc=False), console.width if console.is_terminal else UNBOUNDED)
        except InstanceNotFound:  # it is just being created
            return Frame([], over=False)

    def work() -> None:
        if console.is_terminal:
            with _moving(console, above=True) as show:
                follow(at, draw, show, 0.1, stop)

    thread = threading.Thread(target=work, name="stepwell-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# --- lines ----------------------------------------------------------------------------------------


def _teller(at: Open, instance_id: str, times: Times, as_json: bool) -> Callable[[], Frame]:
    """Return what says each thing that has happened to an instance once, in order."""
    from .show import event_data, event_lines

    seen = 0

    def tell() -> Frame:
        nonlocal seen
        over = at.client.status(instance_id).state in ENDED  # before its last events are read
        for event in at.client.history(instance_id, after=seen):
            seen = max(seen, event.seq)
            if as_json:
                say_json_line(event_data(event))
            else:
                say(*event_lines(event, times, UNBOUNDED))
        sys.stdout.flush()
        return Frame([], over)

    return tell


def _changes(at: Open, asked: Asked, times: Times, as_json: bool) -> Callable[[], Frame]:
    """Return what says of each instance that was asked for when it stands otherwise than before."""
    from .as_data import status_data
    from .ps import COLUMNS, cells, listed

    seen: dict[int, Any] = {}

    def tell() -> Frame:
        now = times.renewed()
        for row in reversed(listed(at, asked, now)):
            stands = (row.status.state, row.steps)
            if seen.get(row.status.number) != stands:
                seen[row.status.number] = stands
                if as_json:
                    say_json_line(status_data(row.status) | {"steps": list(row.steps)})
                else:
                    say([Span(f"{now.at(now.now)}  "), *_joined(cells(row, now), len(COLUMNS))])
        sys.stdout.flush()
        return Frame([], over=False)

    return tell


def _joined(cells: list[Span], count: int) -> Line:
    return [Span(f"{cell.text}  ", cell.style) for cell in cells[:count] if cell.text]
