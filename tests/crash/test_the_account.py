"""What the whole suite came to: counted while it ran, shown and judged here."""

from __future__ import annotations

from collections import Counter

import pytest

from .harness import Processes


def test_the_account(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was lost, duplicated, stuck or out of balance, and no place was left out."""
    points, counts = +processes.points, processes.counts
    with capsys.disabled():
        print(  # noqa: T201 - the account is shown in every run
            f"\ncrash points: {points.total()} points of {len(points)} kinds, {counts['instances']} instances, "
            f"{counts['reruns']} re-runs of steps in flight, lost {counts['lost']}, duplicated {counts['duplicated']}, "
            f"stuck {counts['stuck']}, money drift {counts['drift']}, broken promises {counts['broken']}"
        )
        for name, found in sorted(_by_boundary(points).items()):
            print(f"  {name}: {found}")  # noqa: T201 - the account is shown in every run
    assert not processes.amiss()
    if len(points) > 250:  # else only a part of the suite was asked for
        assert points.total() >= 2_000
        assert counts["reruns"] > 0


def _by_boundary(points: Counter[str]) -> dict[str, str]:
    """Put the kinds of one boundary on one line."""
    lines: dict[str, str] = {}
    for kind, times in sorted(points.items()):
        name, _, where = kind.rpartition(", ")
        boundary, here = name or "the mixed run", f"{where} {times}"
        lines[boundary] = f"{lines[boundary]}, {here}" if boundary in lines else here
    return lines
