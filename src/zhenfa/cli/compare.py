"""``zhenfa compare``."""

from __future__ import annotations

from pathlib import Path

from zhenfa.cli.console import Output
from zhenfa.cli.wanted import CompareWanted
from zhenfa.errors import InfeasibleError


def compare_machines(wanted: CompareWanted, output: Output) -> None:
    """Plan a job on several machines and print them side by side.

    Raises :class:`InfeasibleError`, the answer printed, if none of them has a plan.
    """
    from zhenfa.plan.compare import compare, read_contest

    job, contenders = read_contest(
        wanted.job, wanted.machines, assume=wanted.assume, cards=wanted.cards, settings=wanted.settings
    )
    with output.progress(f"planning on {len(contenders)} machines") as progress:
        found = compare(
            job, contenders, by=wanted.by, processes=wanted.jobs, cards=wanted.cards, progress=progress
        )  # fmt: skip
    if output.as_json:
        from zhenfa.plan.contest_documents import to_document

        output.document(to_document(found))
    else:
        from zhenfa.cli.compare_report import print_comparison

        print_comparison(found, wanted, output)
    if not found.planned:
        raise InfeasibleError(
            f"none of the {len(found.entries)} machines has a plan for {job.name}.",
            hint="each machine's reason, and the way out, stands in the answer.",
        )
    if wanted.picture:
        from zhenfa.cli.compare_picture import draw

        output.say(f"picture written to {draw(found, Path(wanted.picture))}")
