"""``zhenfa swap``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zhenfa.cli.console import Output


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa swap``."""

    job: str
    machine: str
    to: str
    cards: int | None = None
    shape: str | None = None
    step: int | None = None
    assume: Sequence[str] = ()
    detail: bool = False


def swap_cards(wanted: Wanted, output: Output) -> None:
    """Say how many cards replace those of a machine. Raises what :func:`zhenfa.plan.swap.swap` raises."""
    from zhenfa.plan.swap import read_swap, swap

    asked = read_swap(
        wanted.job, wanted.machine, wanted.to, cards=wanted.cards, shape=wanted.shape, step=wanted.step,
        assume=wanted.assume,
    )  # fmt: skip
    with output.progress("planning counts of cards") as progress:
        found = swap(asked, progress)
    if output.as_json:
        from zhenfa.plan.contest_documents import swap_document

        output.document(swap_document(found))
        return
    from zhenfa.cli.swap_report import print_swap

    print_swap(found, wanted, output)
