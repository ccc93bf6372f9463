"""The answer of ``zhenfa validate`` in words: accuracy by group, the worst rows, what was skipped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from zhenfa import cite
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.wanted import ValidateWanted
from zhenfa.validation.outcome import Outcome
from zhenfa.validation.run import Validation
from zhenfa.validation.summary import Summary, worst

WORST: Final = 10
REASONS_SHOWN: Final = 12
FAULTS_SHOWN: Final = 10
NARROW: Final = 2
FEW: Final = 10
"""Groups with as many separators in their name, or with fewer figures, are shown with ``--detail`` only."""

KINDS: Final = {
    "train": "training", "serve": "serving", "op": "operators", "fabric": "fabric", "reliability": "reliability",
    "energy": "energy",
}  # fmt: skip


def print_report(found: Validation, groups: dict[str, Summary], wanted: ValidateWanted, output: Output) -> None:
    """Print the result as far as it was asked for."""
    out = output.data
    judged = [one for one in found.outcomes if one.skipped is None]
    names = f"{len(found.files)} file{'s' if len(found.files) != 1 else ''}"
    out.text(
        f"{found.rows:,} measured rows of {names}: {len(judged):,} figures predicted, "
        f"{len(found.outcomes) - len(judged):,} skipped, in {found.seconds:.1f} s"
    )
    out.head("Accuracy", "(|ln| of predicted over measured; bias: median of ln; in band: measured between p10 and p90)")
    shown = {name: one for name, one in groups.items() if wanted.detail or one.target or _broad(name, one)}
    left_out = out.table(group_table(shown))
    if len(shown) < len(groups):
        out.text(f"and {len(groups) - len(shown)} narrower or smaller groups (--detail lists them)", style="dim")
    left_out += _print_rows(found, wanted, output)
    _print_skipped(found, output)
    if output.cite:
        output.sources(cite.text(key) for key in found.sources)
    output.left_out(left_out)


def _broad(name: str, one: Summary) -> bool:
    return name.count(" / ") < NARROW and one.n + one.skipped >= FEW


def group_table(groups: dict[str, Summary]) -> Table:
    """Return one row for each group."""
    columns = (
        Column("group", style="strong", wrap=34), Column("n", right=True), Column("median", right=True),
        Column("p90", right=True), Column("bias", right=True, drop=3), Column("in band", right=True, drop=4),
        Column("skipped", right=True, drop=2), Column("gate rows", right=True, drop=5),
        Column("aim", right=True, drop=1), Column(""),
    )  # fmt: skip
    return table(columns, [_group_row(name, one) for name, one in groups.items()])


def _group_row(name: str, one: Summary) -> tuple[str, ...]:
    share = one.predicted_share
    aim = f"{one.target.median:.2f} / {one.target.p90:.2f}" if one.target else ""
    verdict = {True: "met", False: "missed", None: ""}[one.met]
    return (
        name, f"{one.n:,}", _number(one.median), _number(one.p90), _number(one.bias, sign=True),
        "-" if one.coverage is None else f"{one.coverage:.0%}", f"{one.skipped:,}" if one.skipped else "",
        "" if share is None else f"{share:.0%} of {one.gate:,}", aim, verdict,
    )  # fmt: skip


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" if sign else f"{value:.3f}"


def _print_rows(found: Validation, wanted: ValidateWanted, output: Output) -> list[str]:
    out, left_out = output.data, []
    if wanted.detail:
        for kind, title in KINDS.items():
            rows = [one for one in found.outcomes if one.kind == kind]
            if rows:
                out.head(f"Rows: {title}", f"({len(rows):,})")
                left_out += out.table(row_table(rows))
        return left_out
    farthest = worst(found.outcomes, WORST)
    if farthest:
        out.head("Farthest off", "(--detail lists every row)")
        left_out += out.table(row_table(farthest))
    return left_out


def row_table(rows: Iterable[Outcome]) -> Table:
    """Return one row for each outcome."""
    columns = (
        Column("id", style="strong", wrap=30), Column("metric", drop=3), Column("measured", right=True),
        Column("predicted", right=True), Column("p10 - p90", right=True, drop=2), Column("ratio", right=True),
        Column("tag", drop=1),
    )  # fmt: skip
    listed = list(rows)
    return table(columns, [_outcome_row(one) for one in listed], notes=[one.skipped or "" for one in listed])


def _outcome_row(one: Outcome) -> tuple[str, ...]:
    name = one.id if one.id.isprintable() else ascii(one.id)
    band = f"{one.p10:.3g} - {one.p90:.3g}" if one.p10 is not None and one.p90 is not None else ""
    ratio = f"{one.ratio:.3f}" if one.ratio is not None and one.skipped is None else "-"
    tag = one.tag if one.skipped is None else "skipped"
    return name, one.metric, _value(one.measured, one.unit), _value(one.predicted, one.unit), band, ratio, tag


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}".rstrip()


def _print_skipped(found: Validation, output: Output) -> None:
    out = output.data
    reasons = Counter(one.skipped for one in found.outcomes if one.skipped is not None)
    if reasons:
        out.head("Skipped", f"({reasons.total():,})")
        rows = [(f"{count:,}", reason) for reason, count in reasons.most_common(REASONS_SHOWN)]
        if len(reasons) > REASONS_SHOWN:
            rows.append(("", f"and {len(reasons) - REASONS_SHOWN:,} more reasons (--json lists all)"))
        out.table(table((Column("figures", right=True), Column("because", wrap=30)), rows), indent=2)
    if found.unread:
        out.head("Not read", f"({len(found.unread):,})")
        for fault in found.unread[:FAULTS_SHOWN]:
            out.text(f"{fault.place}: {fault.reason}", first="  - ")
        if len(found.unread) > FAULTS_SHOWN:
            out.text(f"and {len(found.unread) - FAULTS_SHOWN:,} more (--json lists all)", first="  - ")
