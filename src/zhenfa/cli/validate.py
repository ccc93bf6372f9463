"""``zhenfa validate``: the laws on measured rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zhenfa.cli.console import Output
from zhenfa.cli.wanted import ValidateWanted
from zhenfa.errors import InputError, ZhenfaError

if TYPE_CHECKING:
    from zhenfa.cli import validation_documents as documents
    from zhenfa.validation.outcome import Kind, Outcome
    from zhenfa.validation.run import Validation
    from zhenfa.validation.summary import Summary


def validate_rows(wanted: ValidateWanted, output: Output) -> None:
    """Run the laws on measured rows and print how far off they are.

    Raises :class:`InputError` if nothing could be read, and with ``strict`` :class:`ZhenfaError` for a missed target.
    """
    from zhenfa.validation.run import validate
    from zhenfa.validation.summary import summarise

    with output.progress("validating") as progress:
        found = validate(wanted.rows, [cast("Kind", kind) for kind in wanted.kind], progress)
    if not found.outcomes:
        raise _nothing(found, wanted)
    groups = summarise(found.outcomes)
    if wanted.plot:
        from zhenfa.cli.scatter import draw

        draw(found.outcomes, Path(wanted.plot))
        output.say(f"scatter plot written to {wanted.plot}")
    if output.as_json:
        output.document(to_document(found, groups))
    else:
        from zhenfa.cli.validate_report import print_report

        print_report(found, groups, wanted, output)
    missed = [group for group, one in groups.items() if one.met is False]
    if wanted.strict and missed:
        raise ZhenfaError(f"{len(missed)} targets are missed: {'; '.join(missed)}.")


def _nothing(found: Validation, wanted: ValidateWanted) -> InputError:
    first = found.unread[0] if found.unread else None
    if first is None:
        kinds = " or ".join(wanted.kind) or "any kind"
        return InputError(f"the files hold no row of {kinds}.", hint="leave --kind out to validate every row.")
    more = f" (and {len(found.unread) - 1:,} more)" if len(found.unread) > 1 else ""
    return InputError(
        f"nothing could be read: {first.place}: {first.reason}{more}.",
        hint="rows are JSON lines or YAML in the forms that docs/guide/validating.md shows.",
    )


def to_document(found: Validation, groups: dict[str, Summary]) -> documents.Validation:
    """Return the result as the published JSON document ``zhenfa.validation/1``."""
    from zhenfa import cite
    from zhenfa.cli import validation_documents as documents

    return documents.Validation(
        files=found.files,
        rows=tuple(_row(one) for one in found.outcomes),
        summary={name: _group(one) for name, one in groups.items()},
        unread=tuple(documents.Unread(place=one.place, reason=one.reason) for one in found.unread),
        sources=tuple(cite.text(key) for key in found.sources),
        seconds=found.seconds,
    )


def _row(one: Outcome) -> documents.ValidationRow:
    from zhenfa.cli import validation_documents as documents

    return documents.ValidationRow(
        id=one.id, kind=one.kind, group=one.group, groups=one.groups, metric=one.metric, unit=one.unit,
        measured=_finite(one.measured), predicted=_finite(one.predicted),
        ratio=_finite(one.ratio) if one.skipped is None else None, p10=_finite(one.p10), p90=_finite(one.p90),
        tag=one.tag, gate=one.gate, skipped=one.skipped, note=one.note,
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _group(one: Summary) -> documents.GroupAccuracy:
    from zhenfa.cli import validation_documents as documents

    aim = one.target
    return documents.GroupAccuracy(
        kind=one.kind, n=one.n, skipped=one.skipped, median_abs_log_ratio=one.median, p90_abs_log_ratio=one.p90,
        bias=one.bias, coverage=one.coverage, gate_rows=one.gate, gate_rows_predicted=one.gate_predicted,
        reasons=one.reasons, met=one.met,
        target=None if aim is None else documents.AccuracyTarget(
            what=aim.what, median_abs_log_ratio=aim.median, p90_abs_log_ratio=aim.p90,
            gate_predicted_share=aim.predicted,
        ),
    )  # fmt: skip
