"""An answer as text and as a table for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from zhenfa import units
from zhenfa.estimate.report import batches
from zhenfa.plan.worth import HEADINGS as HEADINGS_OF
from zhenfa.spec.result import Figure

if TYPE_CHECKING:
    from zhenfa.plan.answer import Answer, Ranked
    from zhenfa.plan.serving import ServingAnswer, ServingRanked

TRAINING: Final = ("#", "layout", "batches", "cards", "step", "tokens/s", "MFU", "memory", "behind by")
SERVING: Final = ("#", "layout", "cards", "requests/s", "tokens/s a card", "TTFT", "TPOT", "memory", "behind by")
LEFT: Final = frozenset({"layout", "batches", "behind by"})
"""Columns of words; the others are numbers and stand to the right."""


def rows(answer: Answer | ServingAnswer) -> list[tuple[str, ...]]:
    """Return the headings and one row for each plan."""
    from zhenfa.plan.answer import Answer

    if isinstance(answer, Answer):
        return [TRAINING, *map(_trains, answer.plans)]
    return [SERVING, *map(_serves, answer.plans)]


def _trains(one: Ranked) -> tuple[str, ...]:
    figures = one.estimate.figures
    return (
        str(one.rank), one.layout, batches(one.plan), f"{one.plan.cards:,}", _time(figures.step_time_s),
        _number(figures.tokens_per_s), "-" if figures.mfu.value is None else f"{figures.mfu.value:.1%}",
        _bytes(figures.memory_bytes_per_card), one.lost_by,
    )  # fmt: skip


def _serves(one: ServingRanked) -> tuple[str, ...]:
    figures = one.estimate.figures
    return (
        str(one.rank), one.layout, f"{one.plan.cards:,}", _number(figures.requests_per_s),
        _number(figures.tokens_per_s_per_card), _time(figures.ttft_s), _time(figures.tpot_s),
        _bytes(figures.memory_bytes_per_card), one.lost_by,
    )  # fmt: skip


def _time(figure: Figure) -> str:
    return "-" if figure.value is None else units.show(figure.value, "time")


def _bytes(figure: Figure) -> str:
    return "-" if figure.value is None else units.show(figure.value, "data")


def _number(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    return f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"


def _subject(answer: Answer | ServingAnswer) -> str:
    formation = answer.request.formation
    emulated = ", emulated cards" if formation.emulated else ""
    return (
        f"{answer.request.job.name} on {formation.name} ({formation.cards:,} cards{emulated}): {len(answer.plans)} "
        f"of {answer.considered:,} layouts, {_order(answer)}, estimated"
    )


def _order(answer: Answer | ServingAnswer) -> str:
    """Return how the plans are ordered."""
    from zhenfa.plan.answer import Answer

    return HEADINGS_OF[answer.objective] if isinstance(answer, Answer) else "best first"


def as_text(answer: Answer | ServingAnswer) -> str:
    """Return the answer as lines of text: what was asked, and one line for each plan."""
    table = rows(answer)
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    lines = [
        "  ".join(
            text.ljust(size) if name in LEFT else text.rjust(size)
            for text, size, name in zip(row, widths, table[0], strict=True)
        ).rstrip()
        for row in table
    ]
    return "\n".join([_subject(answer), *lines])


def as_html(answer: Answer | ServingAnswer) -> str:
    """Return the answer as a table of HTML; every text is escaped."""
    head, *body = rows(answer)
    lines = "".join(_line("td", row, head) for row in body)
    caption = f"<caption>{escape(_subject(answer))}</caption>"
    return f"<table>{caption}<thead>{_line('th', head, head)}</thead><tbody>{lines}</tbody></table>"


def _line(cell: str, texts: Sequence[str], head: Sequence[str]) -> str:
    cells = "".join(
        f'<{cell} style="text-align: {"left" if name in LEFT else "right"}">{escape(text)}</{cell}>'
        for text, name in zip(texts, head, strict=True)
    )
    return f"<tr>{cells}</tr>"
