"""Cells, wrapping, tables that fit, and values as words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.cli import words
from zhenfa.cli.cells import pad, width, wrap
from zhenfa.cli.tables import Column, Line, render, table
from zhenfa.spec import fact
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.result import Figure

TEXT = st.text(st.sampled_from("ab c-卡池，。é·█"), max_size=60)
CELL = st.text(st.sampled_from("abc 卡%"), max_size=24).map(str.strip)


def plain(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


@pytest.mark.parametrize(("text", "cells"), [("", 0), ("abc", 3), ("卡池", 4), ("é", 1), ("e\u0301", 1), ("█░·", 3)])
def test_width(text: str, cells: int) -> None:
    assert width(text) == cells


@given(TEXT, st.integers(4, 40))
def test_wrapping_keeps_every_character_and_the_width(text: str, cells: int) -> None:
    lines = wrap(text, cells)
    assert lines
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(width(line) <= cells for line in lines)
    assert all(line == line.strip() for line in lines)


def test_wrapping_breaks_at_blanks_between_chinese_characters_and_inside_long_words_only() -> None:
    assert wrap("one two three", 7) == ["one two", "three"]
    assert wrap("流水线填充、排空", 10) == ["流水线填", "充、排空"]
    assert wrap("流水线填充、", 10) == ["流水线填", "充、"], "closing punctuation does not begin a line"
    assert wrap("abcdefgh", 3) == ["abc", "def", "gh"]
    assert wrap("", 10) == [""]


@given(CELL, st.integers(24, 60), st.booleans())
def test_padding_fills_the_cells(text: str, cells: int, right: bool) -> None:
    padded = pad(text, 48 + cells, right=right)
    assert width(padded) == 48 + cells
    assert padded.strip() == text


@given(
    st.lists(st.tuples(CELL, CELL, CELL, CELL), min_size=1, max_size=6),
    st.lists(CELL, min_size=6, max_size=6),
    st.integers(60, 160),
)
def test_a_table_with_columns_to_spare_fits(rows: list[tuple[str, ...]], notes: list[str], room: int) -> None:
    columns = (
        Column("a"), Column("b", right=True, drop=2), Column("c", drop=1), Column("d", wrap=8),
    )  # fmt: skip
    lines, left_out = render(table(columns, rows, notes=notes[: len(rows)]), room)
    shown = plain(lines)
    assert all(width(line) <= room for line in shown)
    assert all(line == line.rstrip() for line in shown)
    together = "".join(shown).replace(" ", "")
    for row, note in zip(rows, notes, strict=False):
        assert row[0].replace(" ", "") in together
        assert not note or note.replace(" ", "")[:1] in together
    assert set(left_out) <= {"b", "c"}


def test_the_least_wanted_column_goes_first_and_is_named() -> None:
    columns = (Column("name"), Column("first to go", drop=9), Column("next", drop=1))
    rows = [("x" * 10, "y" * 10, "z" * 10)]
    assert render(table(columns, rows), 40)[1] == []
    assert render(table(columns, rows), 30)[1] == ["first to go"]
    assert render(table(columns, rows), 15)[1] == ["first to go", "next"]


def test_a_narrow_column_returns_to_the_room_that_a_wide_one_left() -> None:
    columns = (Column("name"), Column("wide", drop=1), Column("slim", drop=2))
    rows = [("x" * 10, "y" * 40, "z" * 4)]
    assert render(table(columns, rows), 40)[1] == ["wide"]


def test_a_column_without_entries_is_not_shown() -> None:
    lines, left_out = render(table((Column("a"), Column("empty")), [("1", ""), ("2", "")]), 40)
    assert plain(lines) == ["a", "1", "2"]
    assert left_out == []


def test_notes_stand_beside_or_below() -> None:
    shown = table((Column("a"),), [("1",), ("2",)], notes=["a remark that needs some room to stand", ""])
    assert plain(render(shown, 80)[0]) == ["a  note", "1  a remark that needs some room to stand", "2"]
    assert plain(render(shown, 30)[0]) == ["a", "1", "    a remark that needs some", "    room to stand", "2"]


@pytest.mark.parametrize(
    ("confidence", "shown"),
    [
        ("vendor-datasheet", "64 GB"),
        ("bench-measured", "64 GB"),
        ("derived", "64 GB="),
        ("press", "64 GB!"),
        ("estimate", "64 GB?"),
    ],
)
def test_the_mark_says_how_far_a_number_can_be_trusted(confidence: fact.Confidence, shown: str) -> None:
    assert words.short(fact.Fact(value=64e9, dimension="data", unit="GB", confidence=confidence)) == shown


def test_what_is_undisclosed_is_a_dash_in_lists_and_the_word_on_pages() -> None:
    assert words.short(fact.undisclosed("data")) == words.short(None) == "-"
    assert words.quantity(fact.undisclosed("data")) == "undisclosed"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (671_026_404_352, "671 B"),
        (1_030_000_000_000, "1.03 T"),
        (999_900_000_000, "1,000 B"),
        (70_553_706_496, "70.6 B"),
        (1_640_000, "1.64 M"),
        (1234, "1,234"),
    ],
)
def test_parameters(count: float, shown: str) -> None:
    assert words.parameters(count) == shown


def test_memory_held_of_memory_there_is() -> None:
    assert words.of(94.8e9, 120e9) == "94.8 of 120 GB"
    assert words.of(500e6, 120e9) == "500 MB of 120 GB"


def test_a_band_is_shown_where_there_is_one() -> None:
    assert words.figure(Figure(value=2.5, unit="s")) == "2.5 s"
    assert words.figure(Figure(value=2.5, unit="s", p10=2.25, p90=3.0)) == "2.5 s (2.25-3)"
    assert words.figure(Figure(value=1234.5, unit="tokens/s")) == "1,234 tokens/s"
    assert words.figure(Figure(value=1234.5, unit="tokens/s", p10=1000, p90=2e3)) == "1,234 tokens/s (1,000-2,000)"
    assert words.band(Figure(value=0.98e-3, unit="s", p10=0.9e-3, p90=1.1e-3)) == "900-1,100"
    assert words.band(Figure(value=0.5, p10=0.4, p90=0.55)) == "40-55"
    assert words.band(Figure(value=2.5, unit="s")) == ""
    assert words.figure(Figure(unit="s")) == "-"


def test_two_figures_side_by_side() -> None:
    assert words.difference(3.0, 2.0) == "+1 s"
    assert words.difference(2.0, 3.0) == "-1 s"
    assert words.ratio(3.0, 2.0) == "1.500"
    assert words.ratio(None, 2.0) == words.ratio(3.0, None) == "-"


def test_batches_multiply_to_the_global_batch() -> None:
    stages = (Stage(pool="a", first=0, last=4),)
    entries = [Pipeline(count=count, micro_batches=8, micro_batch_size=2, stages=stages) for count in (3, 2, 1)]
    plan = Plan(job="j", model="m", machine="x", sequence_length=8, precision="bf16", pipelines=tuple(entries))
    assert words.batches(plan) == "3 x 8 x 2 + 2 x 8 x 2 + 1 more"
    assert words.batches(plan.model_copy(update={"pipelines": tuple(entries[:1])})) == "3 x 8 x 2"
