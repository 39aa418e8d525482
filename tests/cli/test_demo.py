"""``stepwell demo`` for real: a job is killed twice and goes on, and its ledger is read here by other code."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from rich.console import Console

from stepwell.cli import COMMANDS, demo_job, demo_source, main
from stepwell.cli.demo_source import Module
from stepwell.cli.demo_stage import Files, Scene, Stage, StageError, aims
from stepwell.cli.demo_view import ASCII, FANCY, Plain, picture
from stepwell.cli.ledger import Reader, judge

MODULES = 60


class Played(NamedTuple):
    told: dict
    errors: str
    lines: list
    folder: Path


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """One demo, played in full by the command itself."""
    folder = tmp_path_factory.mktemp("demo") / "files"
    options = ["--json", "--kills", "2", "--modules", str(MODULES), "--dir", str(folder)]
    command = [sys.executable, "-m", "stepwell", "demo", *options]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return Played(json.loads(ran.stdout), ran.stderr.decode(), lines, folder)


def test_no_finished_step_ran_twice(played):
    """Every step starts once, except those that a kill cut off before they were recorded, which start again."""
    again = set(played.told["cut_off"]) | set(played.told["unrecorded"])
    starts = Counter(line["path"] for line in played.lines if line["event"] == "start")
    assert played.told["finished_steps_that_ran_twice"] == 0
    assert {path for path, times in starts.items() if times > 1} == again


def test_every_step_of_the_job_ended(played):
    """The ledger has the end of each of the job's steps, and the job's own end as its last line."""
    turns = -(-played.told["modules"] // demo_job.batch_size(played.told["modules"]))
    ended = Counter(line["path"] for line in played.lines if line["event"] == "finish")
    assert {path.partition("/")[0] for path in ended} == {
        "list_modules",
        "analyse",
        *(f"batches[{turn}]" for turn in range(1, turns + 1)),
        "verdict",
        "write_report",
    }
    assert len(ended) == 1 + 3 + turns + 2
    assert played.lines[-1]["event"] == "end"


def test_killed_processes_were_followed_by_others(played):
    """Three processes worked on the job, one after the other, and only the last one lived to its end."""
    begun = [line["pid"] for line in played.lines if line["event"] == "begin"]
    order = list(dict.fromkeys(line["pid"] for line in played.lines))
    assert begun == order == played.told["pids"]
    assert len(begun) == 3
    assert {line["pid"] for line in played.lines if line["event"] == "end"} == {begun[-1]}


def test_a_step_has_one_key_for_all_attempts(played):
    """Attempts of one step share their idempotency key, and no two steps share one."""
    keys = {(line["path"], line["key"]) for line in played.lines if line.get("path")}
    assert len(keys) == len({path for path, _ in keys}) == len({key for _, key in keys})


def test_the_report_is_about_what_was_read(played):
    """The report is whole, names the number of modules, and has a row for each of the ten longest functions."""
    text = Path(played.told["files"]["report"]).read_text()
    table = text.partition("## The ten longest functions")[2].partition("\n\n## ")[0]
    assert f"{MODULES} modules" in text
    assert sum(line.startswith("| `") for line in table.splitlines()) == 10
    assert sorted(p.name for p in played.folder.glob("report*")) == ["report.md"]


def test_json_is_all_that_is_printed(played):
    """With --json nothing is printed beside the object, and what it says holds together."""
    assert played.errors == ""
    assert played.told["ok"] is played.told["complete"] is True
    last = played.told["pids"][-1]  # a step that the first kill left unrecorded was kept by the second, once it had run
    begun = {line["path"] for line in played.lines if line["event"] == "start" and line["pid"] == last}
    again = begun & set(played.told["unrecorded"])
    assert played.told["finished_before_kill"] == played.told["kept"] + len(again)


# --- how it looks ----------------------------------------------------------------------------------


def scene_of(played):
    scene = Scene(MODULES, 6)
    reader = Reader(played.folder / "ledger.jsonl")
    reader.poll()
    scene.lines, scene.pids = reader.lines, list(played.told["pids"])
    scene.tell("kill", "SIGKILL to process 1.")
    scene.tell("event", "The job is complete.")
    return scene


@pytest.mark.parametrize("signs", [FANCY, ASCII])
def test_the_picture_has_a_column_for_each_process(played, signs):
    """The picture shows who was killed and who completed the job, and what was kept."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=110, file=nowhere)
        console.print(picture(scene_of(played), signs, 110))
    text = console.export_text()
    assert [text.count(word) for word in ("killed", "complete", "failed", "works")] == [2, 2, 0, 0]
    assert all(f"process {pid}" in text for pid in played.told["pids"])
    assert "kept" in text
    assert signs is FANCY or text.isascii()


def test_an_unfinished_picture_can_be_drawn_at_every_line(played):
    """Whatever the ledger says so far, the picture can be drawn."""
    scene = scene_of(played)
    lines, scene.over = scene.lines, False
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=110, file=nowhere)
        for known in range(len(lines) + 1):
            scene.lines = lines[:known]
            console.print(picture(scene, FANCY, 110))
    assert console.export_text().count("list_modules") == len(lines) + 1


def test_plain_lines_tell_each_piece_of_news_once(played, capsys):
    """Plain output has no control codes and repeats nothing."""
    scene, plain = scene_of(played), Plain()
    plain.show(scene)
    plain.show(scene)
    out = capsys.readouterr().out
    assert out.count("SIGKILL to process 1.") == 1
    assert "\x1b" not in out


# --- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.broken_store
def test_a_store_that_forgets_is_found_out(tmp_path):
    """With the database lost at the kill, every finished step runs again, and the demo must say so."""
    files, scene = Files(tmp_path), Scene(40, 4)

    def forget(scene):
        if scene.news[-1].kind == "kill":
            for file in tmp_path.glob("jobs.db*"):
                file.unlink()

    judgement = judge(Stage(files, scene, forget).play(aims(1, scene.turns)), demo_job.PARALLEL)
    assert judgement.complete
    assert not judgement.holds
    assert {"list_modules", "analyse/map_imports"} <= set(judgement.twice)


def test_a_job_that_fails_by_itself_is_told_with_its_last_words(tmp_path):
    """A job that ends with an error is not taken for a killed one."""
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(StageError, match=r"ended with code 1:\n(.|\n)*jobs\.db"):
        Stage(Files(tmp_path), Scene(40, 4), lambda scene: None).play([])


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    """The demo does not mix its files with others."""
    (tmp_path / "mine.txt").write_text("")
    result = CliRunner().invoke(main, ["demo", "--dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "not empty" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# --- the command ---------------------------------------------------------------------------------------


def test_help_names_every_command():
    """Help lists the commands with a line each, and each of them exists."""
    text = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    for name, line in COMMANDS.items():
        assert f"{name} {line}" in text
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_help_imports_no_command():
    """``stepwell --help`` stays fast: no subcommand, runner or terminal library is imported for it."""
    code = (
        "import sys; from stepwell.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([m for m in ('rich', 'apsw', 'stepwell.cli.demo') if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ran.stderr.decode().strip() == "[]"


def test_unknown_command_is_refused():
    """A name that is no command is a usage error, not an import."""
    assert CliRunner().invoke(main, ["os"]).exit_code == 2


def test_version_is_the_package_s():
    """``--version`` prints the installed version."""
    result = CliRunner().invoke(main, ["--version"])
    assert result.output.split()[0] == "stepwell"
    assert result.output.split()[1][0].isdigit()


# --- what the job computes ------------------------------------------------------------------------------

SOURCE = '''"""Two
lines."""
import os.path, sys
from re import match as m
from . import near


class Box:
    def open(self):
        # why
        if sys:
            return 1
        elif os:
            for _ in ():
                pass

        def inner(): ...
'''


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "box.py"
    path.write_text(SOURCE)
    return Module("box", str(path))


def test_functions_are_found_with_their_sizes(module):
    """Methods and nested functions have qualified names, lines and the number of their decisions."""
    found = {f.name: (f.line, f.lines, f.decisions) for f in demo_source.functions_in(module)}
    assert found == {"Box.open": (9, 9, 3), "Box.open.inner": (17, 1, 0)}


def test_an_elif_is_not_a_deeper_block(module):
    """Nesting counts blocks as they are indented, not as the tree holds them."""
    longest = next(f for f in demo_source.functions_in(module) if f.name == "Box.open")
    assert demo_source.deepest_nesting(longest, [module]) == 2


def test_imports_and_lines_are_counted(module):
    """Imports count by top-level name, relative ones not at all; lines are told apart by what they are."""
    assert demo_source.imports_of(module) == {"os", "sys", "re"}
    size = demo_source.size_of(module)
    assert (size.lines, size.blank, size.comments, size.docstrings) == (17, 3, 1, 2)


def test_a_file_that_is_no_python_counts_as_empty(tmp_path):
    """One unreadable file does not fail the survey."""
    (tmp_path / "odd.py").write_text("def (:\n")
    assert list(demo_source.functions_in(Module("odd", str(tmp_path / "odd.py")))) == []


def test_a_cap_spreads_over_the_alphabet():
    """A capped list has as many modules as asked for, from the first letters to the last."""
    some, everything = demo_source.find_modules(40), demo_source.find_modules(5_000)
    assert len(some) == len(set(some)) == 40
    assert set(some) <= set(everything)
    assert some[-1].name > everything[len(everything) * 9 // 10].name


def test_the_judgement_in_json_is_the_ledger_s(played):
    """The command prints what the judge finds in the ledger, and nothing else."""
    reader = Reader(played.folder / "ledger.jsonl")
    judgement = judge(reader.poll(), demo_job.PARALLEL)
    assert judgement.holds
    assert list(judgement.cut_off) == played.told["cut_off"]
    assert len(judgement.kept) == played.told["kept"]
