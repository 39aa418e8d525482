"""A document pipeline in the fluent form: each step feeds the next, and a fork gives one value to several branches.

Plain functions are steps too; a lambda would need a name. ``run_many`` runs one instance for each document, and they
share their commits.
"""

import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

from stepwell import CheckpointingRunner, Flow, SqliteBackend

TEXTS = {
    "well.txt": "A stepwell is a well with steps. The steps lead down to the water.",
    "step.txt": "One step. One more step. A step is a step is a step.",
    "rain.txt": "Rain.",
}


def read(path: str) -> str:
    return Path(path).read_text()


def words(text: str) -> list[str]:
    return [word.strip(".").lower() for word in text.split()]


def common(words: list[str]) -> str:
    return max(Counter(words).items(), key=lambda item: (item[1], item[0]))[0]


def report(common: str, length: int) -> str:
    return f"{length} words, most often {common!r}"


def whole(words: list[str]) -> str:
    return f"only {' '.join(words)!r}"


def is_long(words: list[str]) -> bool:
    return len(words) > 3


summary = Flow().fork().branch(common).branch(len, name="length").join(report)

digest = (
    Flow("digest", metadata={"team": "search"})
    .then(read)
    .then(words)
    .route(is_long, {True: summary, False: whole}, name="depth")
    .build()
)


def main() -> None:
    print(digest.draw())
    with tempfile.TemporaryDirectory() as folder, closing(SqliteBackend(Path(folder, "digest.db"))) as store:
        for name, text in TEXTS.items():
            Path(folder, name).write_text(text)
        with CheckpointingRunner(store) as runner:
            lines = runner.run_many(digest, [str(Path(folder, name)) for name in TEXTS])
    for name, line in zip(TEXTS, lines, strict=True):
        print(f"{name}: {line}")


if __name__ == "__main__":
    main()
