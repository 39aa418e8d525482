"""How moments, spans, tables and the axis of time are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.cli.page import Column, Span, hanging, line_width, table
from stepwell.cli.steps import Piece
from stepwell.cli.times import Times, span
from stepwell.cli.waterfall import Axis

NOW = datetime(2030, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0ms"),
        (15, "15us"),
        (12_000, "12ms"),
        (800_000, "800ms"),
        (1_000_000, "1.0s"),
        (12_900_000, "12s"),
        (192_000_000, "3m 12s"),
        (3_600_000_000, "1h"),
        (187_200_000_000, "2d 4h"),
        (-5, "0ms"),
    ],
)
def test_a_span_has_at_most_two_units(us, text):
    """The two that matter."""
    assert span(us) == text


@pytest.mark.parametrize(
    ("ahead", "text"),
    [
        (timedelta(seconds=-5), "11:59:55Z"),
        (timedelta(days=-3), "28 Jan 12:00Z"),
        (timedelta(days=400), "2031-03-07 12:00Z"),
    ],
)
def test_a_moment_says_the_day_if_it_is_another_one(ahead, text):
    """And the year if that is another one."""
    assert Times(utc=True, now=NOW).at(NOW + ahead) == text


def test_what_is_past_is_not_ahead():
    """Ages and waits are never negative."""
    times = Times(utc=True, now=NOW)
    assert (times.until(NOW + timedelta(minutes=4)), times.until(NOW - timedelta(hours=1))) == ("in 4m", "now")
    assert (times.age(NOW - timedelta(hours=2)), times.age(NOW + timedelta(hours=1))) == ("2h", "0ms")


pieces = st.lists(
    st.builds(
        lambda doing, begin, length: Piece(doing, begin, begin + length),
        st.sampled_from(["queue", "work", "failed", "gap", "wait"]),
        st.integers(0, 10**12),
        st.integers(0, 10**11),
    ),
    min_size=1,
    max_size=12,
)


@given(pieces, st.integers(12, 64))
def test_the_axis_keeps_order_and_fits(found, columns):
    """A later moment never stands left of an earlier one, and all stand within the axis, squeezed or not."""
    begin, end = min(p.begin_us for p in found), max(p.end_us for p in found)
    axis = Axis(found, begin, end, columns)
    moments = sorted({at for piece in found for at in (piece.begin_us, piece.end_us)})
    places = [axis.column(at) for at in moments]
    assert places == sorted(places)
    assert places[0] >= -0.01
    assert places[-1] <= columns + 0.01


def test_a_long_wait_leaves_room_for_the_work_around_it():
    """An hour of waiting between two seconds of work is squeezed."""
    second, hour = 1_000_000, 3_600_000_000
    found = [Piece("work", 0, second), Piece("wait", second, hour), Piece("work", hour, hour + second)]
    axis = Axis(found, 0, hour + second, 40)
    assert axis.column(second) > 10
    assert axis.gaps


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=5), st.integers(24, 120))
def test_a_table_fits(rows, space):
    """Whatever stands in it."""
    columns = [Column("id", cut=True), Column("state", cut=True, drop=1)]
    lines = table(columns, [[Span(a), Span(b)] for a, b in rows], space)
    assert len(lines) == len(rows) + 1
    assert all(line_width(line) <= space for line in lines)


@given(st.text(max_size=80), st.text(max_size=200), st.integers(30, 120))
def test_hanging_text_fits_behind_or_below_its_head(head, body, space):
    """Only a head that is too long by itself stands out."""
    lines = hanging([Span(head)], Span(body), space)
    assert all(line_width(line) <= max(space, line_width([Span(head)])) for line in lines)
