"""The JSON document of ``zhenfa validate``."""

from __future__ import annotations

from typing import ClassVar, Literal

from zhenfa.cli.documents import Item, Printed

Kind = Literal["train", "serve", "op", "fabric", "reliability", "energy"]
Tag = Literal["measured", "fitted", "datasheet", "claim", "assumed", "derived"]


class ValidationRow(Item):
    """One metric of one row, measured and predicted in ``unit``; ``skipped`` says why there is no prediction.

    ``group`` is the narrowest of ``groups``. ``ratio`` is predicted over measured; ``p10`` and ``p90`` bound the
    prediction. ``gate`` rows must be predicted. ``note`` is what was assumed about the row.
    """

    id: str
    kind: Kind
    group: str
    groups: tuple[str, ...]
    metric: str
    unit: str
    measured: float | None
    predicted: float | None
    ratio: float | None
    p10: float | None
    p90: float | None
    tag: Tag
    gate: bool
    skipped: str | None
    note: str | None


class AccuracyTarget(Item):
    """What is aimed at in a group: at most this median and 90th percentile of abs(ln ratio), and at least this share
    of its gate rows predicted.
    """

    what: str
    median_abs_log_ratio: float
    p90_abs_log_ratio: float
    gate_predicted_share: float


class GroupAccuracy(Item):
    """One group: ``n`` figures with a prediction, ``skipped`` without one for ``reasons``. ``bias`` is the median of
    ln ratio; ``coverage`` the share of the measurements between p10 and p90. ``met`` is null where nothing is aimed at,
    or too few figures are there to judge.
    """

    kind: Kind
    n: int
    skipped: int
    median_abs_log_ratio: float | None
    p90_abs_log_ratio: float | None
    bias: float | None
    coverage: float | None
    gate_rows: int
    gate_rows_predicted: int
    reasons: dict[str, int]
    target: AccuracyTarget | None
    met: bool | None


class Unread(Item):
    """What could not be read, or is of no kind that the laws know: its file and line, and why."""

    place: str
    reason: str


class Validation(Printed):
    """``zhenfa validate``: measured rows beside what the laws say of them, and per group how far off the laws are."""

    schema_name: ClassVar[str] = "zhenfa.validation/1"

    files: tuple[str, ...]
    rows: tuple[ValidationRow, ...]
    summary: dict[str, GroupAccuracy]
    unread: tuple[Unread, ...]
    sources: tuple[str, ...]
    seconds: float
