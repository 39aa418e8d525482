"""How the demo looks: a table that moves on a terminal, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

import click

from stepwell.cli.demo_stage import Files, Scene
from stepwell.cli.ledger import Execution, Judgement, Story

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

FRAME_S: Final = 0.08
STEP_WIDTH, LIFE_WIDTH, NOTE_WIDTH = 27, 16, 24


class Row(NamedTuple):
    """One line of the table: the steps whose paths begin with ``prefix``."""

    title: str
    prefix: str
    kind: str = "task"


ROWS: Final = (
    Row("list_modules", "list_modules"),
    Row("analyse ┬ find_packages", "analyse/find_packages"),
    Row("        ├ map_imports", "analyse/map_imports"),
    Row("        └ count_lines", "analyse/count_lines"),
    Row("batches (loop)", "batches[", "loop"),
    Row("a-moment (delay)", "", "delay"),
    Row("verdict (route)", "verdict/"),
    Row("write_report", "write_report"),
)
LOOP, AFTER_DELAY = ROWS[4], (ROWS[6], ROWS[7])


class Signs(NamedTuple):
    """The characters of the table."""

    done: str
    cut: str
    idle: str
    block: str
    frames: str


FANCY: Final = Signs("✓", "✗", "·", "■", "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
ASCII: Final = Signs("+", "x", ".", "#", "|/-\\")


class View(Protocol):
    """What shows a scene while the demo runs."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def show(self, scene: Scene) -> None: ...


class Silent:
    """Shows nothing: ``--json``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, scene: Scene) -> None:
        pass


class Plain(Silent):
    """Prints each piece of news once, as a line without control codes."""

    def __init__(self) -> None:
        self._told = 0

    def show(self, scene: Scene) -> None:
        for news in scene.news[self._told :]:
            indent = "  " if news.kind == "step" else ""
            click.echo(f"{news.at_s:6.2f} s  {indent}{news.text}")
        self._told = len(scene.news)


class Moving:
    """Redraws a table of all steps, with one column for each process that worked on them."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console, self._signs = console, signs_for(console)
        self._live = Live(console=console, auto_refresh=False)
        self._next_s = 0.0
        self._moved = (-1, -1)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def show(self, scene: Scene) -> None:
        """Draw at once when something happened, otherwise now and then for the clocks."""
        moved = (len(scene.lines), len(scene.news))
        if moved != self._moved or time.monotonic() >= self._next_s or scene.over:
            self._moved, self._next_s = moved, time.monotonic() + FRAME_S
            self._live.update(picture(scene, self._signs, self._console.width), refresh=True)


def signs_for(console: Console) -> Signs:
    """Return the signs that a terminal can show."""
    return FANCY if console.encoding.lower().startswith("utf") else ASCII


def size_for(kills: int) -> tuple[int, int]:
    """Return the columns and rows that the picture needs; on a smaller terminal lines read better."""
    return STEP_WIDTH + LIFE_WIDTH * (kills + 1), 18 + 3 * kills


def picture(scene: Scene, signs: Signs, width: int) -> Table:
    """Return the whole picture: the table of steps, and below it what happened."""
    from rich.table import Table

    frame = Table.grid(padding=(0, 0))
    frame.add_row(_headline(scene))
    frame.add_row(_steps(scene, signs, notes=width >= size_for(len(scene.pids) - 1)[0] + NOTE_WIDTH))
    frame.add_row(_chronicle(scene))
    return frame


def _headline(scene: Scene) -> Text:
    from rich.text import Text

    return Text.assemble(
        ("stepwell demo", "bold"),
        f"  a survey of the standard library: {scene.modules} modules, read in {scene.turns} batches",
    )


def _steps(scene: Scene, signs: Signs, *, notes: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    story = scene.story
    table = Table(box=box.SIMPLE_HEAD if signs is FANCY else box.ASCII2, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("step", min_width=STEP_WIDTH - 3, no_wrap=True)
    for life, pid in enumerate(scene.pids, 1):
        table.add_column(_process(scene, life, pid), min_width=LIFE_WIDTH - 2, no_wrap=True)
    if notes:
        table.add_column("found", no_wrap=True, overflow="ellipsis" if signs is FANCY else "crop")
    for row in ROWS:
        cells = [_cell(row, life, scene, story, signs) for life in range(1, len(scene.pids) + 1)]
        title = row.title if signs is FANCY else row.title.translate(_PLAIN_TREE)
        table.add_row(title, *cells, *([Text(_note(row, story), "dim")] if notes else []))
    return table


_PLAIN_TREE: Final = str.maketrans("┬├└", "|||")


def _process(scene: Scene, life: int, pid: int) -> Text:
    from rich.text import Text

    return Text.assemble(f"process {pid}\n", _fate(scene, life))


def _fate(scene: Scene, life: int) -> tuple[str, str]:
    if life < len(scene.pids) or scene.news[-1].kind == "kill":
        return "killed", "red"
    if not scene.over:
        return "works", "cyan"
    return ("failed", "red") if scene.story.ended is None else ("complete", "green")


def _note(row: Row, story: Story) -> str:
    return next((x.note for x in reversed(story.executions) if _in_row(row, x) and x.note), "")


def _in_row(row: Row, execution: Execution) -> bool:
    return bool(row.prefix) and execution.path.startswith(row.prefix)


# --- cells ---------------------------------------------------------------------------------------


def _cell(row: Row, life: int, scene: Scene, story: Story, signs: Signs) -> Text:
    if row.kind == "loop":
        return _loop_cell(life, scene, story, signs)
    if row.kind == "delay":
        return _delay_cell(life, scene, story, signs)
    return _task_cell([x for x in story.executions if _in_row(row, x)], life, scene, story, signs)


def _task_cell(runs: Sequence[Execution], life: int, scene: Scene, story: Story, signs: Signs) -> Text:
    from rich.text import Text

    here = [x for x in runs if x.life == life]
    if not here:
        return _untouched(runs, life, story, signs)
    last = here[-1]
    if last.through:
        again = last is not runs[0]
        return Text(f"{signs.done} {last.seconds:.2f} s{' again' if again else ''}", "yellow" if again else "green")
    if _is_over(life, scene):
        return Text(f"{signs.cut} cut off", "bold yellow")
    return Text(f"{_spinner(signs)} {max(0.0, time.time() - last.start_us / 1e6):.1f} s", "cyan")


def _untouched(runs: Sequence[Execution], life: int, story: Story, signs: Signs) -> Text:
    from rich.text import Text

    if story.lives >= life and any(x.through and x.life < life for x in runs):
        return Text("kept", "dim green")
    return Text(signs.idle, "dim")


def _loop_cell(life: int, scene: Scene, story: Story, signs: Signs) -> Text:
    """One character for each turn: its last run in this life, or that it is kept from an earlier one."""
    from rich.text import Text

    cell = Text()
    for turn in range(1, scene.turns + 1):
        runs = [x for x in story.executions if x.path.startswith(f"{LOOP.prefix}{turn}]")]
        cell.append_text(_turn(runs, life, scene, story, signs))
    return cell


def _turn(runs: Sequence[Execution], life: int, scene: Scene, story: Story, signs: Signs) -> Text:
    from rich.text import Text

    here = [x for x in runs if x.life == life]
    if not here:
        kept = story.lives >= life and any(x.through and x.life < life for x in runs)
        return Text(signs.block if kept else signs.idle, "dim green" if kept else "dim")
    last = here[-1]
    if last.through:
        return Text(signs.block, "green" if last is runs[0] else "yellow")
    if _is_over(life, scene):
        return Text(signs.cut, "bold yellow")
    return Text(_spinner(signs), "cyan")


def _delay_cell(life: int, scene: Scene, story: Story, signs: Signs) -> Text:
    """A delay runs nothing and so writes no line: it lasts from the end of the loop to the next step's start."""
    from rich.text import Text

    passed = [x.life for x in story.executions if any(_in_row(row, x) for row in AFTER_DELAY)]
    turns = {x.path: x for x in story.executions if _in_row(LOOP, x) and x.through}
    if len(turns) < scene.turns or (passed and min(passed) < life and story.lives < life):
        return Text(signs.idle, "dim")
    if passed and min(passed) <= life:
        return Text(f"{signs.done} passed", "green") if min(passed) == life else Text("kept", "dim green")
    if _is_over(life, scene):
        return Text("waited" if max(x.life for x in turns.values()) <= life else signs.idle, "dim")
    return Text(f"{_spinner(signs)} waits", "cyan")


def _is_over(life: int, scene: Scene) -> bool:
    return life < len(scene.pids) or scene.over


def _spinner(signs: Signs) -> str:
    return signs.frames[int(time.monotonic() / FRAME_S) % len(signs.frames)]


def _chronicle(scene: Scene) -> Text:
    from rich.text import Text

    text = Text()
    for news in scene.news:
        if news.kind != "step":
            text.append(f"{news.at_s:5.1f} s  ", "dim")
            text.append(f"{news.text}\n", "bold red" if news.kind == "kill" else "")
    return text


# --- the end -------------------------------------------------------------------------------------


def summary(judgement: Judgement, seconds: float) -> list[tuple[str, str]]:
    """Return what the ledger proves as lines, each with a style."""
    kill = "the kill" if judgement.lives == 2 else "a kill"
    rows = (
        (f"Finished before {kill}", judgement.before, f"kept: {len(judgement.kept)}"),
        ("Cut off, and run again", judgement.cut_off, _few(judgement.cut_off)),
        ("Ended unrecorded, and run again", judgement.unrecorded, _few(judgement.unrecorded)),
        ("Run for the first time after it", judgement.after, ""),
        ("Finished steps that ran twice", judgement.twice, _few(judgement.twice)),
    )
    lines = [(f"{text:<34}{len(paths):3}  {rest}".rstrip(), "") for text, paths, rest in rows]
    lines[-1] = (lines[-1][0], "bold green" if judgement.holds else "bold red")
    if judgement.rekeyed:
        lines.append((f"Steps with several idempotency keys: {_few(judgement.rekeyed)}", "bold red"))
    if not judgement.complete:
        lines.append(("The job did not complete.", "bold red"))
    return [*lines, *((line, "dim") for line in _HOW_COUNTED), (f"{seconds:.1f} s, {judgement.lives} processes.", "")]


_HOW_COUNTED: Final = (
    "",
    "Counted in a ledger that the tasks wrote; the database was not asked.",
    "A step is finished once something that follows it has started. A step",
    "that is cut off is not, and runs again: what it asks of the world outside",
    "should carry task_context().idempotency_key, the same in every attempt.",
    "",
)


def places(files: Files, source: str, *, keep: bool) -> list[str]:
    """Return lines that say where everything is."""
    if not keep:
        return [f"Its files are removed. The job, a page of plain Python: {source}"]
    return [
        f"  its report    {files.report}",
        f"  the ledger    {files.ledger}",
        f"  the database  {files.database}",
        f"  the job       {source}",
        "Read the report, then the job: it is a page of plain Python. Then try --kills 3.",
    ]


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
