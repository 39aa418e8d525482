"""Every misuse of the table is told with what, where and how to mend it. ``-s`` prints all messages as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepwell

from . import building, looking_after, options, running, storing
from .table import SECRET, Case, Desk, cases_of

CASES = cases_of(building, options, running, storing, looking_after)
CHARS_MAX = 600
CASES_MIN = 90
HERE = Path(__file__).parent
PRIVATE = re.compile(r"(?<![\w/.\\])_[A-Za-z]\w*")

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def raised(case: Case, desk: Desk) -> BaseException:
    """Make the mistake, and return the error."""
    with pytest.raises(case.error) as caught:
        case.act(desk)
    assert type(caught.value) is case.error
    return caught.value


def shortened(text: str, desk: Desk) -> str:
    """Leave out the folders, which differ from machine to machine."""
    for folder in (HERE, desk.folder):
        text = text.replace(f"{folder}/", "").replace(str(folder), folder.name)
    return text


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from: a traceback shows them all."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@every
def test_it_says_what_where_and_how(case: Case, desk: Desk) -> None:
    """The names of the user's things; the user's line, or the step, instance or option; and what to write instead."""
    line, text = case.line(), str(raised(case, desk))
    assert case.what
    assert case.how
    assert case.where or line
    assert [part for part in (*case.what, *case.where, *case.how, line) if part not in text] == [], text


@every
def test_it_can_be_read(case: Case, desk: Desk) -> None:
    """One short paragraph, in the user's words: no file or private name of ours."""
    text = str(raised(case, desk))
    short = shortened(text, desk)
    assert str(Path(stepwell.__file__).parent) not in text
    assert (short, PRIVATE.findall(short)) == (short.strip(), [])
    assert "\n" not in short
    assert " object at 0x" not in short
    assert 20 <= len(short) <= CHARS_MAX


@every
def test_it_keeps_what_it_was_given_to_itself(case: Case, desk: Desk) -> None:
    """Neither the error nor what it was raised from repeats a value."""
    told = [str(error) + "".join(getattr(error, "__notes__", ())) for error in chain(raised(case, desk))]
    assert [text for text in told if SECRET in text] == []


def test_every_case_is_one_of_its_own() -> None:
    """Names differ, and none is lost."""
    assert len({case.name for case in CASES}) == len(CASES) >= CASES_MIN


def test_the_page(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All messages, to be read by a person with ``-s``."""
    for case in CASES:
        desk = Desk(tmp_path_factory.mktemp("page"))
        error = raised(case, desk)
        print(f"\n{case.name.replace('_', ' ')}\n    {type(error).__name__}: {shortened(str(error), desk)}")  # noqa: T201
        desk.close()
