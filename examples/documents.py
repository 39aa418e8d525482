"""A document pipeline over real files, in the fluent form: each step feeds the next, a fork feeds several branches.

Run ``python examples/documents.py [folder]``; without a folder it reads the pages of this repository's ``docs``. A
document's instance id holds the hash of its text, so running the pipeline again reads only what has changed: for the
rest the recorded result is returned.
"""

import re
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from stepwell import Again, CheckpointingRunner, Done, Flow, SqliteBackend

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 60


@dataclass(frozen=True)
class Page:
    name: str
    text: str


@dataclass(frozen=True)
class Summary:
    name: str
    gist: str
    headings: int
    words: int


def read(path: str) -> Page:
    print(f"  reading {Path(path).name}")
    return Page(Path(path).stem, Path(path).read_text(encoding="utf-8"))


def prose(page: Page) -> str:
    """The first paragraph, without marks."""
    paragraphs = (part for part in page.text.split("\n\n") if part[:1].isalpha())
    return re.sub(r"[`*\[\]]|\(.*?\)", "", next(paragraphs, page.name)).replace("\n", " ")


def shorten(gist: str) -> Again[str] | Done[str]:
    """Leave out the last third, turn by turn, until the line fits; each turn is recorded."""
    if len(gist) <= WIDTH:
        return Done(f"{gist} …")
    return Again(gist[: max(WIDTH, len(gist) * 2 // 3)].rpartition(" ")[0])


def fits(gist: str) -> bool:
    return len(gist) <= WIDTH


def whole(gist: str) -> str:
    return gist


def headings(page: Page) -> int:
    return len(re.findall(r"^#+ ", page.text, re.MULTILINE))


def words(page: Page) -> int:
    return len(page.text.split())


def name(page: Page) -> str:
    return page.name


def summary(name: str, gist: str, headings: int, words: int) -> Summary:
    return Summary(name, gist, headings, words)


gist = Flow().then(prose).route(fits, {True: whole, False: Flow().loop(shorten, max_iterations=20)}, name="length")

digest = (
    Flow("digest", metadata={"team": "docs"})
    .then(read)
    .fork()
    .branch(name)
    .branch(gist, name="gist")
    .branch(headings)
    .branch(words)
    .join(summary)
    .build()
)


def summarise(runner: CheckpointingRunner, folder: Path) -> list[Summary]:
    pages = sorted(folder.glob("*.md"))
    ids = [f"{page.stem}@{sha256(page.read_bytes()).hexdigest()[:16]}" for page in pages]
    return runner.run_many(digest, [str(page) for page in pages], instance_ids=ids)


def main() -> None:
    print(digest.draw())
    with tempfile.TemporaryDirectory() as scratch, closing(SqliteBackend(Path(scratch, "digest.db"))) as store:
        folder = Path(shutil.copytree(sys.argv[1] if sys.argv[1:] else DOCS, Path(scratch, "pages")))
        with CheckpointingRunner(store) as runner:
            print("first run:")
            found = summarise(runner, folder)
            for page in found:
                print(f"{page.name:>10}: {page.words:5} words, {page.headings:2} headings; {page.gist}")
            Path(folder, f"{found[0].name}.md").write_text("One page is new.\n", encoding="utf-8")
            print("second run, after one page was changed:")
            again = summarise(runner, folder)
            kept = Counter(before == after for before, after in zip(found, again, strict=True))
            print(f"{kept[True]} summaries kept, {kept[False]} made anew: {again[0].gist}")


if __name__ == "__main__":
    main()
