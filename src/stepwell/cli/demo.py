"""``stepwell demo``: a real job is killed half-way and goes on, and an outside record says what ran twice."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from stepwell.cli.demo_stage import Files, Scene
    from stepwell.cli.demo_view import View
    from stepwell.cli.ledger import Judgement


@click.command("demo")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its files go; by default a fresh temporary folder.",
)
@click.option("--kills", type=click.IntRange(1, 3), default=1, show_default=True, help="How often the job is killed.")
@click.option(
    "--modules", type=click.IntRange(40, 5_000), default=600, show_default=True, help="The most modules that it reads."
)
@click.option("--keep/--no-keep", default=True, help="Keep the files at the end, or remove them.  [default: keep]")
@click.option("--plain", is_flag=True, help="Plain lines, as when the output is not a terminal or NO_COLOR is set.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end and nothing else.")
def command(folder: Path | None, kills: int, modules: int, keep: bool, plain: bool, as_json: bool) -> None:
    """Run a real job, kill it half-way, and watch it go on.

    The job surveys the source code of Python's standard library: it lists the modules, analyses them in parallel
    branches and in a loop over batches, waits a moment, decides by what it found, and writes a report. It runs in a
    process of its own over an SQLite file. That process is killed with SIGKILL in the middle of a step and the job is
    started again. What ran, and how often, is read from a ledger that the tasks write, not from the database.

    Exits with 1 if a finished step ran twice or the job did not complete.
    """
    from stepwell.cli.demo_stage import Files
    from stepwell.errors import StepwellError

    files, scene = Files(_empty_folder(folder)), _scene(modules)
    try:
        with _view(kills, plain=plain, as_json=as_json) as view:
            judgement = _perform(files, scene, kills, view)
    except StepwellError as error:
        _fail(error, files, as_json=as_json)
    except KeyboardInterrupt:
        _say_how_to_go_on(files, scene)
        sys.exit(130)
    if as_json:
        _print_json(_as_json(judgement, scene) | {"files": _paths(files) if keep else {}})
    else:
        _print_summary(judgement, files, scene, keep=keep)
    if not keep:
        shutil.rmtree(files.folder)
    sys.exit(0 if judgement.holds else 1)


def _empty_folder(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="stepwell-demo-"))
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.BadParameter(f"{folder} is not empty; name a new folder", param_hint="--dir")
    return folder


def _scene(modules: int) -> Scene:
    from stepwell.cli import demo_job, demo_source
    from stepwell.cli.demo_stage import Scene

    found = len(demo_source.find_modules(modules))
    if not found:
        raise click.ClickException("this Python comes without the source files of its standard library")
    return Scene(found, -(-found // demo_job.batch_size(found)))


def _perform(files: Files, scene: Scene, kills: int, view: View) -> Judgement:
    from stepwell.cli.demo_job import PARALLEL
    from stepwell.cli.demo_stage import Stage, StageError, aims
    from stepwell.cli.ledger import judge

    lines = Stage(files, scene, view.show).play(aims(kills, scene.turns))
    if not files.report.exists():
        raise StageError(f"the job says that it is complete, but there is no {files.report}")
    return judge(lines, PARALLEL)


def _fail(error: Exception, files: Files, *, as_json: bool) -> NoReturn:
    if not as_json:
        raise click.ClickException(f"{error}\nThe files are in {files.folder}") from error
    _print_json({"ok": False, "error": str(error), "files": _paths(files)})
    sys.exit(1)


def _say_how_to_go_on(files: Files, scene: Scene) -> None:
    click.echo("\nStopped, and the job with it. To let it go on from where it is:", err=True)
    click.echo(f"  {sys.executable} -m stepwell.cli.demo_job {files.folder} {scene.modules}", err=True)


def _view(kills: int, *, plain: bool, as_json: bool) -> View:
    from stepwell.cli import demo_view

    if as_json:
        return demo_view.Silent()
    if plain or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return demo_view.Plain()
    from rich.console import Console

    console = Console(highlight=False)
    width, height = demo_view.size_for(kills)
    small = console.width < width or console.height < height
    return demo_view.Plain() if small or console.is_dumb_terminal else demo_view.Moving(console)


def _print_summary(judgement: Judgement, files: Files, scene: Scene, *, keep: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from stepwell.cli import demo_job, demo_view

    console = Console(highlight=False, soft_wrap=True)
    for line, style in demo_view.summary(judgement, scene.elapsed_s):
        console.print(Text(line, style))
    for line in demo_view.places(files, demo_job.__file__, keep=keep):
        console.print(Text(line))


def _as_json(judgement: Judgement, scene: Scene) -> dict[str, object]:
    return {
        "ok": judgement.holds,
        "complete": judgement.complete,
        "finished_steps_that_ran_twice": len(judgement.twice),
        "finished_before_kill": len(judgement.before),
        "kept": len(judgement.kept),
        "cut_off": list(judgement.cut_off),
        "unrecorded": list(judgement.unrecorded),
        "first_ran_after_kill": len(judgement.after),
        "twice": list(judgement.twice),
        "other_key": list(judgement.rekeyed),
        "kills": judgement.lives - 1,
        "pids": scene.pids,
        "modules": scene.modules,
        "seconds": round(scene.elapsed_s, 3),
    }


def _paths(files: Files) -> dict[str, str]:
    paths = {"report": files.report, "ledger": files.ledger, "database": files.database, "log": files.log}
    return {name: str(path) for name, path in paths.items()}


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
