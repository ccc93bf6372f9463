"""An answer as text and as a table for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from zhenfa import units
from zhenfa.estimate.report import batches
from zhenfa.plan.worth import HEADINGS as HEADINGS_OF

if TYPE_CHECKING:
    from zhenfa.plan.answer import Answer, Ranked

HEADINGS: Final = ("#", "layout", "batches", "cards", "step", "tokens/s", "MFU", "memory", "behind by")
NUMBERS: Final = frozenset({"#", "cards", "step", "tokens/s", "MFU", "memory"})


def rows(plans: Sequence[Ranked]) -> list[tuple[str, ...]]:
    """Return one row of :data:`HEADINGS` for each plan."""
    return [_row(one) for one in plans]


def _row(one: Ranked) -> tuple[str, ...]:
    figures = one.estimate.figures
    step, memory, utilisation = figures.step_time_s.value, figures.memory_bytes_per_card.value, figures.mfu.value
    return (
        str(one.rank), one.layout, batches(one.plan), f"{one.plan.cards:,}", units.show(step or 0.0, "time"),
        f"{figures.tokens_per_s.value or 0:,.0f}", "-" if utilisation is None else f"{utilisation:.1%}",
        units.show(memory or 0.0, "data"), one.lost_by,
    )  # fmt: skip


def _subject(answer: Answer) -> str:
    formation = answer.request.formation
    emulated = ", emulated cards" if formation.emulated else ""
    return (
        f"{answer.request.job.name} on {formation.name} ({formation.cards:,} cards{emulated}): {len(answer.plans)} "
        f"of {answer.considered:,} layouts, {HEADINGS_OF[answer.objective]}, estimated"
    )


def as_text(answer: Answer) -> str:
    """Return the answer as lines of text: what was asked, and one line for each plan."""
    table = [HEADINGS, *rows(answer.plans)]
    widths = [max(len(row[at]) for row in table) for at in range(len(HEADINGS))]
    lines = [
        "  ".join(
            text.rjust(size) if name in NUMBERS else text.ljust(size)
            for text, size, name in zip(row, widths, HEADINGS, strict=True)
        ).rstrip()
        for row in table
    ]
    return "\n".join([_subject(answer), *lines])


def as_html(answer: Answer) -> str:
    """Return the answer as a table of HTML; every text is escaped."""
    head = "".join(f'<th style="{_align(name)}">{escape(name)}</th>' for name in HEADINGS)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="{_align(name)}">{escape(text)}</td>' for name, text in zip(HEADINGS, row, strict=True))
        + "</tr>"
        for row in rows(answer.plans)
    )
    caption = f"<caption>{escape(_subject(answer))}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _align(name: str) -> str:
    return f"text-align: {'right' if name in NUMBERS else 'left'}"
