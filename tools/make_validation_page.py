"""Write ``docs/validation.md``: the laws against the measured rows that ship with Zhenfa.

``python tools/make_docs.py --validation`` calls it. What was found is kept in ``docs/validation.json``, so that the
page can be written, and held to the code by a test, without running for minutes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zhenfa.cli.scatter import draw
from zhenfa.cli.validate_report import FEW, KINDS, NARROW
from zhenfa.estimate import bands
from zhenfa.estimate.coefficients import library
from zhenfa.validation.kinds import KINDS as EVERY
from zhenfa.validation.kinds import outcomes as outcomes_of
from zhenfa.validation.rows import Fault, packaged
from zhenfa.validation.run import Validation, read_sorted, validate
from zhenfa.validation.summary import Summary, spread, summarise, targets

DOCS = Path(__file__).parent.parent / "docs"
FOUND = DOCS / "validation.json"
PAGE = DOCS / "validation.md"
REASONS = 12
SAMPLE = 30
"""Rows of each kind that a test runs again."""
MARKS = ("<!-- accuracy: written by tools/make_docs.py --validation -->", "<!-- end of accuracy -->")
READMES = {
    "README.md": "| what | figures | median of abs(ln ratio) | p90 | in band | aim (median / p90) |",
    "README.zh-CN.md": "| 对象 | 数据点 | abs(ln 比值) 的中位数 | p90 | 落入区间 | 目标（中位数 / p90） |",
}

HEAD = """\
# Validation

<!-- Written by `python tools/make_docs.py --validation`; a test holds it to the code. -->

How far are the laws from what was measured? Zhenfa ships measured rows of published runs (facts, each with its source)
and this page is what `zhenfa validate` makes of them. Anyone can run it, on these rows or on their own:
[how](guide/validating.md).

* ratio: predicted over measured. median and p90 are of abs(ln ratio): 0.10 is about 10 %.
* bias: the median of ln ratio; above 0 the laws predict too much of the metric.
* in band: share of measurements between p10 and p90 of the prediction; 80 % is right.
* No coefficient is set by hand for a row. Coefficients belong to a library's kernel on a generation of chips, to a
  chip, a link family or an engine, and are written by the scripts in `tools/`. Some link families were measured once;
  their file says which.
* Rows that may not be passed on are not packaged, so a run over your own copy of them counts more rows than this page.
"""


def found() -> tuple[dict[str, Any], Validation]:
    """Run the laws over the packaged rows and return what the page says of it, as plain data."""
    result = validate()
    groups = summarise(result.outcomes)
    kinds = {}
    for kind in EVERY:
        mine = [one for one in result.outcomes if one.kind == kind]
        if mine:
            reasons = Counter(one.skipped for one in mine if one.skipped is not None)
            held = [one.covered for one in mine if one.skipped is None and one.covered is not None]
            kinds[kind] = {
                "coverage": _round(sum(held) / len(held)) if held else None,
                "rows": len({one.id for one in mine}),
                "figures": len(mine),
                "skipped": reasons.total(),
                "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASONS]),
            }
    shown = {name: plain(one) for name, one in groups.items() if worth(name, one)}
    return {"kinds": kinds, "groups": shown, "sample": sample()}, result


def sample() -> dict[str, dict[str, Any]]:
    """Return, for a few rows of each kind, how many figures are predicted and how far off they are."""
    rows: dict[str, list[Any]] = {}
    for item in read_sorted(packaged()):
        if not isinstance(item, Fault):
            rows.setdefault(item[1], []).append(item[0])
    found = {}
    for kind, members in rows.items():
        some = members[:: max(len(members) // SAMPLE, 1)]
        outcomes = [one for row in some for one in outcomes_of(row.record, kind, row.place) if one.skipped is None]
        middle, tail = spread([one.log_ratio or 0.0 for one in outcomes])
        found[kind] = {"n": len(outcomes), "median": _round(middle), "p90": _round(tail)}
    return found


def worth(name: str, one: Summary) -> bool:
    """Return whether a group stands on the page: aimed at, or broad and with more than a few figures."""
    return one.target is not None or (name.count(" / ") < NARROW and one.n >= FEW)


def plain(one: Summary) -> dict[str, Any]:
    """Return a group as plain data, rounded as it is shown."""
    return {
        "kind": one.kind, "n": one.n, "skipped": one.skipped, "median": _round(one.median), "p90": _round(one.p90),
        "bias": _round(one.bias), "coverage": _round(one.coverage), "gate": one.gate,
        "gate_predicted": one.gate_predicted, "met": one.met,
        "aim": None if one.target is None else [one.target.median, one.target.p90],
    }  # fmt: skip


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def page(data: dict[str, Any]) -> str:
    """Return the text of the page."""
    parts = [HEAD, "## What is aimed at", table(aimed(data))]
    for kind, title in KINDS.items():
        if kind in data["kinds"]:
            parts += section(kind, title, data)
    parts += ["## Bands", BANDS, bands_table()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def section(kind: str, title: str, data: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of the section of one kind."""
    counts = data["kinds"][kind]
    yield f"## {title.capitalize()}"
    yield (
        f"{counts['rows']:,} rows, {counts['figures']:,} figures, of which {counts['skipped']:,} are skipped; "
        f"{counts['coverage']:.0%} of the measurements lie in their band. `zhenfa validate --kind {kind}` prints this."
    )
    yield table((name, one) for name, one in data["groups"].items() if one["kind"] == kind)
    yield f"![Measured against predicted: {title}](images/validation-{kind}.png)"
    if kind == "op":
        yield left_out()
    if counts["reasons"]:
        lines = "\n".join(f"- {count:,}: {_cell(reason)}" for reason, count in counts["reasons"].items())
        yield f"Skipped, and why:\n\n{lines}"


def table(groups: Any) -> str:
    """Return a table of groups."""
    lines = [
        "| group | figures | median | p90 | bias | in band | gate rows predicted | aim (median / p90) |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, one in groups:
        gate = f"{one['gate_predicted'] / one['gate']:.0%} of {one['gate']:,}" if one["gate"] else ""
        verdict = {True: "met", False: "missed", None: ""}[one["met"]]
        aim = f"{one['aim'][0]:.2f} / {one['aim'][1]:.2f} {verdict}" if one["aim"] else ""
        share = "-" if one["coverage"] is None else f"{one['coverage']:.0%}"
        lines.append(
            f"| {_cell(name)} | {one['n']:,} | {_number(one['median'])} | {_number(one['p90'])} | "
            f"{_number(one['bias'], '+')} | {share} | {gate} | {aim} |"
        )
    return "\n".join(lines)


BANDS = """\
Every estimate has a p10 and a p90. They are as wide as the laws were off on measured rows of the same class, and were
fitted by `tools/fit_bands.py` with clusters of one source and model left out whole: coverage is the share of rows left
out that the band of the others held. Times lie between the two factors times the predicted one; of rates, the
reciprocals hold.
"""


def bands_table() -> str:
    """Return the table of the bands."""
    lines = ["| class | rows | p10 | p90 | coverage of rows left out |", "|---|---:|---:|---:|---:|"]
    for one in bands.bands().values():
        name = one.name.replace(" | ", ", ")
        lines.append(f"| {name} | {one.n:,} | x {one.low:.3g} | x {one.high:.3g} | {one.coverage:.0%} |")
    return "\n".join(lines)


LEFT_OUT = """\
The coefficients of operators are fitted to tables of these chips (`tools/fit_kernels.py`). A chip that is left out is
predicted from the others and its data sheet, as a chip that nobody has measured is; aimed at: 0.20 / 0.55. The chips of
a generation left out together show what to expect of the first chip of a new one.

"""


def left_out() -> str:
    """Return the table of the operator laws on chips that were left out of their fit."""
    spread_of = library().document["spread"]
    lines = ["| left out of the fit | points | median | p90 | bias |", "|---|---:|---:|---:|---:|"]
    entries = [
        ("nothing; points that the fit did not see", spread_of["known"]["all"]),
        ("each chip in turn", spread_of["left_out"]["all"]),
        *((f"{chip}", one) for chip, one in spread_of["left_out_chips"].items()),
        ("each generation in turn", spread_of["left_out_generations"]["all"]),
    ]
    for name, one in entries:
        lines.append(f"| {name} | {one['points']:,} | {one['median']:.3f} | {one['p90']:.3f} | {one['bias']:+.3f} |")
    return LEFT_OUT + "\n".join(lines)


def aimed(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the groups in which something is aimed at, in the order of the aims."""
    return [(name, data["groups"][name]) for name in targets() if name in data["groups"]]


def accuracy(data: dict[str, Any], heads: str) -> str:
    """Return the table of the README: what is aimed at and what was found, under these column heads."""
    lines = [heads, "|---|---:|---:|---:|---:|---|"]
    for name, one in aimed(data):
        aim = f"{one['aim'][0]:.2f} / {one['aim'][1]:.2f}"
        lines.append(
            f"| {targets()[name].what} | {one['n']:,} | {_number(one['median'])} | {_number(one['p90'])} | "
            f"{'-' if one['coverage'] is None else format(one['coverage'], '.0%')} | {aim} |"
        )
    return "\n".join([*lines[:3], _chip_left_out(), *lines[3:]])


def _chip_left_out() -> str:
    one = library().document["spread"]["left_out"]["all"]
    found = f"{one['points']:,} | {one['median']:.3f} | {one['p90']:.3f} | -"
    return f"| operators, each chip left out of the fit | {found} | 0.20 / 0.55 |"


def filled(text: str, table: str) -> str:
    """Return a README with the table between its marks."""
    begin, end = MARKS
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def write() -> None:
    """Run, and write page, numbers and pictures."""
    data, result = found()
    FOUND.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for kind in data["kinds"]:
        judged = [one for one in result.outcomes if one.kind == kind and one.ratio is not None and one.skipped is None]
        if judged:
            draw(judged, DOCS / "images" / f"validation-{kind}.png")
    PAGE.write_text(page(data), encoding="utf-8")
    for name, heads in READMES.items():
        path = DOCS.parent / name
        path.write_text(filled(path.read_text(encoding="utf-8"), accuracy(data, heads)), encoding="utf-8")


if __name__ == "__main__":
    write()
