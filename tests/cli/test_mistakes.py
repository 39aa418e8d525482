"""The user's mistakes: one line, an exit code, no traceback; and nothing that is stored can command the terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.cli import COMMANDS, mistakes
from stepwell.cli.text import clip, clip_middle, safe, safe_json, width, wrapped

from .conftest import EVIL_ID, SHOP

ORDER = '{"sku": "pens"}'

MISTAKES = [
    (["sho"], 2, "did you mean show?"),
    (["frobnicate"], 2, "stepwell --help lists them"),
    (["show"], 2, "missing argument 'ID'"),
    (["show", "gate-1", "--valeus"], 2, "--values"),
    (["show", "nobody"], 3, "no such instance"),
    (["tree", "nobody"], 3, "no such instance"),
    (["explain", "nobody"], 3, "no such instance"),
    (["watch", "nobody"], 3, "no such instance"),
    (["signal", "nobody", "go"], 3, "no such instance"),
    (["cancel", "nobody"], 3, "no such instance"),
    (["ps", "--after", "nobody"], 3, "no such instance"),
    (["graph", "--instance", "nobody"], 3, "no such instance"),
    (["run", f"{SHOP}:gate", "--resume", "nobody"], 3, "no such instance"),
    (["result", "gate-1", "nothing"], 2, "no step 'nothing'"),
    (["result", "gate-1", "go"], 6, "has not finished"),
    (["ps", "--state", "lost"], 2, "is not one of"),
    (["ps", "--since", "yesterday"], 2, "2h or 3d"),
    (["ps", "--label", "ann"], 2, "--label customer=ann"),
    (["purge"], 2, "say what may go"),
    (["purge", "--older-than", "soon"], 2, "'30s'"),
    (["graph"], 2, "--instance ID"),
    (["graph", f"{SHOP}:gate", "--output", "no/such/folder.svg"], 2, "cannot be written"),
    (["start", f"{SHOP}:chekout", ORDER], 2, "did you mean"),
    (["start", f"{SHOP}", ORDER], 2, "several workflows; say which"),
    (["start", f"{SHOP}:no_workflow", ORDER], 2, "is a int, not a workflow"),
    (["start", f"{SHOP.parent}/shopp.py:gate", ORDER], 2, "did you mean shop.py?"),
    (["start", "no_such_module_here:gate", ORDER], 2, "there is no module no_such_module_here"),
    (["start", ":gate"], 2, "module:workflow"),
    (["start", f"{SHOP}:gate"], 2, "takes an input of type Order"),
    (["start", f"{SHOP}:gate", "pens"], 2, "'\"pens\"'"),
    (["start", f"{SHOP}:gate", '{"sku": 1}'], 2, "`$.sku`"),
    (["start", f"{SHOP}:gate", "--file", "nothing.json"], 2, "nothing.json cannot be read"),
    (["start", f"{SHOP}:gate", ORDER, "--file", "x.json"], 2, "given twice"),
    (["start", f"{SHOP}:gate", ORDER, "--id", "a\x1bb"], 2, "control character"),
    (["run", f"{SHOP}:gate", ORDER, "--resume", "gate-1"], 2, "--resume"),
    (["run", f"{SHOP}:banking", "1"], 2, "needs bank: Bank"),
    (["run", f"{SHOP}:banking", "1", "--deps", f"{SHOP}:no_workflow"], 2, "no mapping"),
    (["run", f"{SHOP}:pay", "--resume", "gate-1"], 4, "belongs to workflow 'gate'"),
    (["worker", f"{SHOP}:gate", "--max-running", "gate"], 2, "WORKFLOW=N"),
    (["ps", "--db", "nothing.db"], 5, "there is no database nothing.db"),
    (["ps", "--db", "mysql://x"], 2, "no database mysql:"),
    (["ps", "--db", "sqlite::memory:"], 2, "name a file"),
]


@pytest.mark.parametrize(
    ("words", "code", "message"), MISTAKES, ids=lambda part: " ".join(part)[-50:] if isinstance(part, list) else ""
)
def test_a_mistake_is_one_line_and_an_exit_code(stepwell, words, code, message):
    """On standard error; standard output stays empty."""
    said = stepwell(*words)
    assert (said.code, said.out) == (code, "")
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("stepwell: ")
    assert message in said.err
    assert "Traceback" not in said.err


def test_with_json_a_mistake_is_json_as_well(stepwell):
    """For whoever reads standard output alone."""
    said = stepwell("show", "nobody", "--json")
    assert said.json["error"]["kind"] == "not_found"
    assert said.json["error"]["exit_code"] == said.code == 3
    assert len(said.out.splitlines()) == 1  # as all that `watch --json` prints
    assert len(said.err.splitlines()) == 1


def test_no_database_is_named(stepwell):
    """It says how to name one."""
    said = stepwell("ps", env={"STEPWELL_DB": ""})
    assert said.code == 2
    assert "--db sqlite:FILE" in said.err
    assert "STEPWELL_DB" in said.err


def test_looking_creates_no_database(empty):
    """A name that is mistyped leaves no file behind."""
    assert empty("ps").code == 5
    assert not empty.database.exists()


def test_a_file_that_is_no_database_is_said_to_be_none(empty):
    """By doctor with the next step, by others in a line."""
    empty.database.write_text("this is no database, but a text that is long enough to be looked at", "utf-8")
    assert empty("ps").code == 5
    said = empty("doctor", "--json")
    assert said.code == 5
    assert said.json["worst"] == "problem"


@pytest.mark.parametrize("spelling", ["{}", "sqlite:{}", "sqlite:///{}"])
def test_a_database_may_be_spelled_in_three_ways(stepwell, spelling):
    """A path, sqlite:path, and as other tools write it."""
    name = spelling.format("orders.db")
    assert stepwell("ps", "--db", name).code == stepwell("--db", name, "ps").code == 0


def test_code_that_cannot_be_imported_is_named_with_its_line(stepwell, tmp_path):
    """One line: the file, the line, the error."""
    (tmp_path / "broken_one.py").write_text("x = 1\nimport no_such_thing\n", "utf-8")
    (tmp_path / "broken_two.py").write_text("def (:\n", "utf-8")
    (tmp_path / "random.py").write_text("", "utf-8")
    assert "broken_one.py:2: ModuleNotFoundError" in stepwell("graph", "broken_one.py:x").err
    assert "broken_one.py:2: ModuleNotFoundError" in stepwell("graph", "broken_one:x").err
    assert "broken_two.py:1: " in stepwell("graph", "broken_two.py:x").err
    assert "rename it" in stepwell("graph", "./random.py:x").err


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@%2Fnowhere%2Fsocket/orders",
        "postgresql://ann:s3cret@%2Fnowhere/orders?nonsense=1",
        "postgresql://ann:s3cret@%2Fnowhere/orders?password=s3cret&schema=Not a name",
    ],
)
@pytest.mark.parametrize("words", [["ps"], ["doctor"], ["doctor", "--json"]])
def test_a_password_is_never_printed(stepwell, monkeypatch, url, words):
    """Neither in errors, nor in commands to copy, nor in JSON."""
    monkeypatch.setattr("stepwell.cli.database.IMPATIENT", "20ms")
    said = stepwell(*words, "--db", url)
    assert said.code in (2, 5)
    assert "s3cret" not in said.out + said.err
    assert len(said.err.splitlines()) <= 1


def test_passwords_are_found_wherever_they_stand():
    """URLs, connection strings, and several in one text."""
    text = "postgresql://ann:p@ss:w@db/x and host=db password=hush or password='two words' port=1"
    hidden = mistakes.hide_passwords(text)
    assert not any(secret in hidden for secret in ("p@ss", "hush", "two words"))
    assert "host=db" in hidden


# --- the terminal ---------------------------------------------------------------------------------


def unsafe(text: str) -> list[str]:
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


@pytest.mark.parametrize(
    "words",
    [
        ["ps"],
        ["show", EVIL_ID, "--history", "--values"],
        ["tree", EVIL_ID],
        ["explain", EVIL_ID],
        ["watch", EVIL_ID],
        ["result", EVIL_ID],
        ["retry", EVIL_ID],
        ["graph", "--instance", EVIL_ID, "--format", "svg"],
        ["pause", EVIL_ID],
        ["signal", EVIL_ID, "\x1b[2J"],
        ["decide", EVIL_ID, "\u202e", "rerun"],
        ["show", "values-1", "--values", "--history"],
        ["result", "values-1", "charge"],
        ["explain", "values-1"],
        ["explain", "paused-1"],
        ["cancel", "nobody\x9b2J\u202e"],
        ["doctor"],
        ["\x1b[2J"],
        ["ps", "--state", "\x1b[2J"],
    ],
    ids=lambda words: safe(" ".join(words)),
)
@pytest.mark.parametrize("form", ["text", "colour", "json"])
def test_nothing_that_is_stored_commands_the_terminal(evil, words, form):
    """Ids, labels, errors, reasons, values, names: escapes, returns, C1 and bidi controls are written out."""
    env = {"NO_COLOR": "", "FORCE_COLOR": "1"} if form == "colour" else {}
    said = evil(*words, *(["--json"] if form == "json" else []), env=env)
    out = said.out if form != "colour" else _without_styles(said.out)
    assert unsafe(out) == []
    assert unsafe(said.err) == []
    if form == "json" and words[0] != "watch":
        json.loads(said.out)


def _without_styles(text: str) -> str:
    """Return the text without our own colours, which are all of one narrow form."""
    import re

    return re.sub(r"\x1b\[(?:0|1|2|3[0-7])m", "", text)


@given(st.text())
def test_safe_text_is_safe(text):
    """Whatever it is; and what was harmless stays as it was."""
    assert unsafe(safe(text)) == [c for c in text if c in "\u200c\u200d"]
    assert safe(safe(text)) == safe(text)


@given(st.text())
def test_safe_json_means_the_same(text):
    """It reads back equal."""
    written = safe_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(written) == text
    assert unsafe(written) == [c for c in text if c in "\u200c\u200d"]


@given(st.text(), st.integers(1, 30))
def test_cut_text_fits(text, columns):
    """Wide characters and combining marks are counted as a terminal shows them."""
    assert width(clip(text, columns)) <= columns
    assert width(clip_middle(text, columns)) <= columns


@given(st.text(alphabet="ab c日", max_size=60), st.integers(4, 30))
def test_wrapped_text_fits_and_loses_nothing(text, columns):
    """Only spaces at breaks go."""
    lines = list(wrapped(text, columns))
    assert all(width(line) <= columns for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(stepwell, name):
    """And --json."""
    said = stepwell(name, "--help")
    assert said.code == 0
    assert "--json" in said.out
    assert "Examples:" in said.out or name == "demo"


def test_without_a_command_there_is_help(stepwell):
    """On standard output, as somebody looks around."""
    said = stepwell()
    assert (said.code, said.err) == (0, "")
    assert said.out == stepwell("--help").out


def test_help_has_sections(stepwell):
    """Commands stand by what they are for, in the order in which they are needed."""
    said = stepwell("--help").out
    places = [said.index(f"{title}:") for title in ("Try", "Run", "Look", "Control", "Upkeep")]
    assert places == sorted(places)


def test_every_exit_code_is_documented():
    """In docs/cli.md, by number."""
    page = (SHOP.parents[2] / "docs" / "cli.md").read_text("utf-8")
    for code in (0, *mistakes.KINDS, mistakes.CLOSED_PIPE):
        assert f"| {code} |" in page
