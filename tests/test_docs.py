"""What the pages in docs/ show is run as it is printed. (That on changes needs more around it: tests/control.)"""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGES = {page.stem: BLOCK.findall(page.read_text("utf-8")) for page in DOCS.glob("*.md")}


@pytest.mark.parametrize("page", [name for name, blocks in PAGES.items() if blocks and name != "change"])
def test_a_page_runs_as_it_is_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": f"docs_{page}"}
    for block in PAGES[page]:
        exec(compile(block, f"docs/{page}.md", "exec", dont_inherit=True), names)  # noqa: S102 - our own text
    for name in ("runner", "client", "elsewhere", "backend"):
        if (left := names.pop(name, None)) is not None:
            left.close()  # type: ignore[attr-defined]
    names.clear()
    gc.collect()
