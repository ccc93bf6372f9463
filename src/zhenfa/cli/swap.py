"""``zhenfa swap``."""

from __future__ import annotations

from zhenfa.cli.console import Output
from zhenfa.cli.wanted import SwapWanted


def swap_cards(wanted: SwapWanted, output: Output) -> None:
    """Say how many cards replace those of a machine. Raises what :func:`zhenfa.plan.swap.swap` raises."""
    from zhenfa.plan.swap import read_swap, swap

    asked = read_swap(
        wanted.job, wanted.machine, wanted.to, cards=wanted.cards, shape=wanted.shape, step=wanted.step,
        assume=wanted.assume, settings=wanted.settings,
    )  # fmt: skip
    with output.progress("planning counts of cards") as progress:
        found = swap(asked, progress)
    if output.as_json:
        from zhenfa.plan.contest_documents import swap_document

        output.document(swap_document(found))
        return
    from zhenfa.cli.swap_report import print_swap

    print_swap(found, wanted, output)
