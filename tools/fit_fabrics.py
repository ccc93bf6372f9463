"""Fit the coefficients of link families and write ``catalog/data/fabrics.yaml``; print how well they agree.

Truth: the NCCL, all-reduce and DeepEP tables of the wheel ``aiconfigurator-core`` and the packaged rows of
``catalog/data/measurements/fabric.jsonl``. Deterministic: ``python tools/fit_fabrics.py [--check]``. With ``--check``
nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import fabric_tables as tables
import numpy as np
from scipy.optimize import least_squares

from zhenfa.catalog import files
from zhenfa.estimate import wires
from zhenfa.laws import communication, expert_exchange
from zhenfa.spec.link_family import LinkFamily
from zhenfa.validation import fabric as validation

OUT: Final = files.ROOT / "fabrics.yaml"
ROWS: Final = files.ROOT / "measurements" / "fabric.jsonl"
LAWS: Final = {name: law for name, (law, _) in validation.COLLECTIVES.items()}
UNITS: Final = {
    "latency": ("us", 1e-6), "start": ("us", 1e-6), "own_copy": ("GB/s", 1e9), "fill": ("us", 1e-6),
    "fill_bytes": ("MB", 1e6), "switch_fill": ("us", 1e-6), "peer_start": ("us", 1e-6), "peer_step": ("us", 1e-6),
    "forward_start": ("us", 1e-6), "low_latency_start": ("us", 1e-6), "expert_peer": ("us", 1e-6), "step": ("us", 1e-6),
}  # fmt: skip
"""Unit of each coefficient and its base units; the others are ratios."""

BOUNDS: Final = {
    "share": (0.05, 0.97), "write_share": (0.3, 1.0), "latency": (1e-7, 2e-5), "start": (1e-7, 1e-4),
    "own_copy": (1e10, 1e15), "fill": (1e-7, 2e-3), "fill_bytes": (1e5, 1e9), "switch_share": (0.5, 1.0),
    "switch_gain": (1.0, 1.5), "switch_fill": (1e-7, 1e-3), "exchange": (0.3, 1.2), "peer_share": (0.002, 1.0),
    "peer_start": (1e-7, 1e-4), "peer_step": (1e-9, 1e-5), "forward_share": (0.05, 0.97), "forward_start": (1e-6, 3e-4),
    "low_latency_share": (0.05, 0.97), "low_latency_start": (1e-6, 3e-4), "expert_peer": (1e-9, 2e-6),
    "step": (1e-7, 5e-5),
}  # fmt: skip

COLLECTIVE: Final = ("share", "latency", "start", "own_copy", "fill", "fill_bytes", "exchange")
SWITCH: Final = ("switch_share", "switch_gain", "switch_fill")
EXITS: Final = (2, 4, 8, 16, 32, 72)
"""How many cards of a domain a library's collectives may leave it through: a whole number, so that it is tried out."""
FEW: Final = 2
"""So many records or fewer do not decide a coefficient alone: the families that were measured do with them."""
RECORD_SPREAD: Final = 0.09
"""Standard deviation of one record from the law that holds for its family, as a natural logarithm: that of the records
of families with many."""
PRIOR_SPREAD: Final = 0.31
"""Least standard deviation of a coefficient over families: that of the band of families that nobody has measured
(0.4 holds four of five). The measured ones differ by less, but all have switches or one maker's libraries."""
PEER: Final = ("peer_share", "peer_start", "peer_step")
EXPERT: Final = ("forward_share", "forward_start", "low_latency_share", "low_latency_start")


@dataclass(frozen=True)
class Plan:
    """A family: what it is, the systems of the wheel that measured it, link rate, coefficients to fit.

    ``anchors``: beginnings of the ids of packaged rows that are fitted with the tables; ``first``: where the search
    starts, in base units.
    """

    id: str
    protocols: tuple[str, ...]
    place: str
    rate: float = 0.0
    reduces: bool = False
    systems: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    sources: str = "aicdata"
    reaches: tuple[int, ...] = ()
    like: str | None = None
    note: str = ""
    first: Mapping[str, float] = field(default_factory=dict)


FIRST: Final = {
    "share": 0.75, "write_share": 0.85, "latency": 1e-6, "start": 6e-6, "own_copy": 1e12, "fill": 2e-5,
    "fill_bytes": 4e6, "switch_share": 0.85, "switch_gain": 1.25, "switch_fill": 1e-5, "exchange": 0.95,
    "peer_share": 0.7, "peer_start": 4e-6, "peer_step": 1e-7, "forward_share": 0.6, "forward_start": 3e-5,
    "low_latency_share": 0.6, "low_latency_start": 1.5e-5, "expert_peer": 1e-8, "step": 5e-6,
}  # fmt: skip

PLANS: Final = (
    Plan("nvlink3", ("NVLink3",), "scale-up", 300e9, False, ("a100_sxm",), (*COLLECTIVE, *PEER),
         ("azure-nvidia-a100-sxm-80g-ar8", "flagperf-a100-ar8"), "aicdata"),
    Plan("nvlink4", ("NVLink4",), "scale-up", 450e9, True, ("h100_sxm", "h200_sxm"),
         (*COLLECTIVE, *SWITCH, *PEER, *EXPERT),
         ("azure-nvidia-h100-sxm-ar8", "azure-nvidia-h200-sxm-ar8", "stas-h200-nvls", "stas-h200-ring")),
    Plan("nvlink5", ("NVLink5",), "scale-up", 900e9, True, ("b200_sxm", "b300_sxm", "gb200", "gb300"),
         (*COLLECTIVE, *SWITCH, *PEER, *EXPERT), ("stas-b200", "cw-gb200-72", "trtllm-gb200")),
    Plan("nvlink", ("NVLink",), "scale-up", reduces=True, like="nvlink5",
         note="generations after the fifth: nobody has measured them; the fifth's coefficients"),
    Plan("xgmi", ("xGMI / Infinity Fabric", "Infinity Fabric"), "scale-up",
         fitted=("share", "forward_share", "forward_start", "low_latency_share", "low_latency_start"),
         anchors=("stas-mi300x", "mori-amd-mi300x-ep8", "mori-amd-mi355x-ep8", "mori-ll-amd-mi300x-ep8",
                  "mori-ll-amd-mi355x-ep8"), sources="stas, mori"),
    Plan("hccs", ("HCCS",), "scale-up", fitted=("share",), anchors=("hixl-a2-hccs",), sources="hixl"),
    Plan("ub", ("UB",), "scale-up",
         fitted=("share", "write_share", "fill", "fill_bytes", "forward_share", "forward_start", "low_latency_share",
                 "low_latency_start", "expert_peer"),
         anchors=("cm384-", "hixl-a3-same", "hixl-a3-two", "sglkernel-a3"), sources="cm384, hixl, sglkernel"),
    Plan("pcie4", ("PCIe 4", "PCIe4"), "host", 32e9, False, ("l40s",), (*COLLECTIVE, *PEER), reaches=(2, 4, 8),
         note="shares: the middle one of seven servers; the rest: one server without access to peers"),
    Plan("pcie5", ("PCIe",), "host", 63e9, False, ("rtx_pro_6000_server",), (*COLLECTIVE, *PEER), reaches=(2, 4, 8),
         note="shares: the middle one of seven servers; the rest: one server"),
    Plan("rdma", (), "scale-out",
         fitted=("share", "step", "fill", "fill_bytes", "forward_share", "low_latency_share", "low_latency_start"),
         anchors=("nccl1244", "cw-h100-64", "nccltests267", "hixl-a2-rdma", "hixl-a3-rdma", "deepep-normal-ep16",
                  "deepep-normal-ep32", "deepep-normal-ep64", "deepep-ll-ep16", "deepep-ll-ep32", "deepep-ll-ep64",
                  "deepep-ll-ep128",
                  "deepep-ll-ep256", "deepep-v2-sm90"), sources="cwnccl, nccltests267, hixl, deepep",
         first={"share": 0.95, "fill": 1e-4, "fill_bytes": 5e7, "latency": 5e-6},
         note="InfiniBand and RoCE, one interface per card"),
)  # fmt: skip
HOSTS: Final = (
    ("rtx6kpro", 63e9, {8: 41.1e9}), ("rtx6kpro", 63e9, {8: 39.4e9}), ("rtx6kpro", 63e9, {8: 37.6e9}),
    ("rtx6kpro", 63e9, {8: 41.5e9}), ("nccl1639", 63e9, {4: 35e9, 8: 28e9}),
)  # fmt: skip
"""Servers with cards on PCIe that others measured: source, rate of a slot, bus bandwidth of large all-reduces by the
number of cards. Four with RTX PRO 6000 (behind switches, and direct to two processors), one with RTX 5090."""

MEASURED_RECORDS: Final = {
    "xgmi": ("amd-mi300x", "amd-mi355x"), "hccs": ("huawei-atlas800t-a2",), "ub": ("huawei-cloudmatrix384",),
    "rdma": ("nvidia-hgx-h100-8", "nvidia-hgx-h800-8", "huawei-atlas800t-a2"),
}  # fmt: skip

ACROSS: Final = {"nvlink5": ("cw-gb200-144", "cw-gb200-1440")}
"""Beginnings of the ids of rows whose collectives leave the domains of a family."""

Values = dict[str, float]


def family(plan: Plan, values: Mapping[str, float], spread: Mapping[str, float] | None = None) -> LinkFamily:
    """Return the family with coefficients in base units."""
    data: dict[str, Any] = {"id": plan.id, "protocols": plan.protocols, "place": plan.place, "reduces": plan.reduces}
    for name, value in values.items():
        if name.startswith("within_"):
            size = int(name.removeprefix("within_"))
            share = _fact(plan, "share", value)
            if size > 2:
                share |= {"source": HOSTS[0][0], "note": f"median of {len(HOSTS) + 2} servers by tools/fit_fabrics.py"}
            data.setdefault("reaches", []).append({"size": size, "share": share})
        else:
            data[name] = _fact(plan, name, value)
    data["spread"] = {key: round(value, 3) for key, value in (spread or {}).items()}
    data["measured"] = [*plan.systems, *MEASURED_RECORDS.get(plan.id, ())]
    data["note"] = plan.note or None
    return LinkFamily.model_validate(data)


def _fact(plan: Plan, name: str, value: float) -> dict[str, Any]:
    unit, base = UNITS.get(name, ("", 1.0))
    known = (name in plan.fitted or name == "exits") and not plan.like
    confidence = "bench-measured" if known else "estimate"
    source = "cwnccl" if name == "exits" else plan.sources.split(", ")[0]
    note = "fitted by tools/fit_fabrics.py" if known else "median of the measured families or that of a near one"
    return {
        "value": value / base, "unit": unit, "source": source, "confidence": confidence, "note": note,
    }  # fmt: skip


def names(plan: Plan) -> list[str]:
    """Return the coefficients that are fitted, the share within every reach in place of one share."""
    inside = [f"within_{size}" for size in plan.reaches]
    return [*inside, *(name for name in plan.fitted if not (inside and name == "share"))]


def fabric_of(item: LinkFamily, rate: float, cards: float = 8.0) -> Any:
    """Return one node of cards on links of a family, or several reaches of a host."""
    sizes = [part.size for part in item.reaches] or [cards]
    return wires.assemble([wires.Wire(float(size), rate, None, False, item.reduces, item) for size in sizes])


def predict_timings(item: LinkFamily, rate: float, rows: list[tables.Timing]) -> np.ndarray[Any, Any]:
    """Return the law's seconds of measured collectives."""
    fabric, seconds = fabric_of(item, rate), np.empty(len(rows))
    operation = np.array([row.operation for row in rows])
    sizes, ranks = np.array([row.bytes for row in rows]), np.array([float(row.ranks) for row in rows])
    for name in sorted(set(operation)):
        law = communication.direct_all_reduce_time if name == "direct" else LAWS[name]
        chosen = operation == name
        seconds[chosen] = law(sizes[chosen], ranks[chosen], 1.0, fabric)
    return seconds


def predict_exchanges(item: LinkFamily, rate: float, rows: list[tables.Exchange]) -> np.ndarray[Any, Any]:
    """Return the law's seconds of measured dispatches and combines."""

    def column(name: str) -> Any:
        return np.array([getattr(row, name) for row in rows])

    return np.asarray(
        expert_exchange.dispatch_time(
            column("tokens"), column("hidden"), column("top_k"), column("ranks").astype(float), 1.0,
            fabric_of(item, rate), bytes_per_element=column("bytes_per_element"),
            experts=column("experts").astype(float), low_latency=column("low_latency"),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What one family is held against."""

    timings: list[tables.Timing]
    exchanges: list[tables.Exchange]
    records: list[dict[str, Any]]


def errors(plan: Plan, item: LinkFamily, truth: Truth, others: Mapping[str, LinkFamily]) -> dict[str, list[float]]:
    """Return natural logarithms of predicted over measured, by what is predicted."""
    found: dict[str, list[float]] = {"large": [], "small": [], "direct": [], "exchange": [], "records": []}
    if truth.timings:
        rows = truth.timings
        logs = np.log(predict_timings(item, plan.rate, rows) / np.array([row.seconds for row in rows]))
        for row, value in zip(rows, logs.tolist(), strict=True):
            kind = "direct" if row.operation == "direct" else "large" if row.bytes >= 1e6 else "small"
            found[kind].append(value)
    if truth.exchanges:
        seconds = np.array([row.seconds for row in truth.exchanges])
        found["exchange"] = np.log(predict_exchanges(item, plan.rate, truth.exchanges) / seconds).tolist()
    known = {**others, plan.id: item}
    for record in truth.records:
        found["records"] += [one.log_ratio for one in validation.outcomes(record, known) if one.log_ratio is not None]
    return found


EVERY: Final = 3
"""Of the many rows of the exchange tables, every third is fitted."""

WEIGHTS: Final = {"large": 1.0, "small": 0.5, "direct": 0.5, "exchange": 0.5, "records": 2.0}


def fit(plan: Plan, truth: Truth, fixed: Values, others: Mapping[str, LinkFamily]) -> Values:
    """Return the coefficients of least error, robustly, in logarithms; ``fixed`` holds those that are not fitted."""
    searched = names(plan)
    bound = [(0.002, 0.97) if name.startswith("within_") else BOUNDS[name] for name in searched]
    start = [plan.first.get(name, FIRST["share" if name.startswith("within_") else name]) for name in searched]

    def residuals(point: Any) -> Any:
        values = {**fixed, **dict(zip(searched, np.exp(point).tolist(), strict=True))}
        found = errors(plan, family(plan, values), truth, others)
        return np.concatenate([WEIGHTS[key] * np.array(values) for key, values in found.items() if values])

    priors = prior_of(plan, truth, others)

    def with_prior(point: Any) -> Any:
        away = [
            WEIGHTS["records"] * RECORD_SPREAD / spread * (point[searched.index(name)] - math.log(middle))
            for name, (middle, spread) in priors.items()
        ]
        return np.concatenate([residuals(point), away])

    low, high = np.log(np.array(bound)).T
    best = least_squares(
        with_prior, np.clip(np.log(start), low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1", f_scale=0.1,
        diff_step=1e-3, max_nfev=30,
    )  # fmt: skip
    found = {**fixed, **dict(zip(searched, np.exp(best.x).tolist(), strict=True))}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def prior_of(plan: Plan, truth: Truth, others: Mapping[str, LinkFamily]) -> dict[str, tuple[float, float]]:
    """Return median and spread over the measured families of each coefficient that only a few records tell."""
    if truth.timings or len(truth.records) > FEW or plan.place != "scale-up":
        return {}
    found = {}
    for name in names(plan):
        values = [
            math.log(getattr(item, name).value)
            for item in others.values()
            if item.measured and item.place == plan.place and getattr(item, name).value
        ]
        if len(values) > 2:
            found[name] = (math.exp(float(np.median(values))), max(float(np.std(values, ddof=1)), PRIOR_SPREAD))
    return found


def exits_of(plan: Plan, values: Values, truth: Truth, others: Mapping[str, LinkFamily]) -> Values:
    """Return the values with the number of exits that tells collectives over several domains best, if any is known."""
    over = [row for row in truth.records if row["id"].startswith(ACROSS.get(plan.id, ())) and plan.id in ACROSS]
    if not over:
        return values
    several = Truth([], [], over)

    def error(exits: float) -> float:
        found = errors(plan, family(plan, {**values, "exits": exits}), several, others)["records"]
        return float(np.mean(np.abs(found)))

    return {**values, "exits": float(min(EXITS, key=error))}


def truth_of(plan: Plan, everything: Truth, systems: Iterable[str], *, newest: bool = True) -> Truth:
    """Return what a family is fitted on: its systems' newest tables and its anchors."""
    chosen = set(systems)
    latest: dict[str, str] = {}
    for row in everything.timings:
        if row.operation != "direct":
            latest[row.system] = max(latest.get(row.system, ""), row.version)
    timings = [
        row
        for row in everything.timings
        if row.system in chosen and (row.operation == "direct" or (row.version == latest[row.system]) == newest)
    ]
    exchanges = [row for row in everything.exchanges if row.system in chosen] if "forward_share" in plan.fitted else []
    exchanges = exchanges[::EVERY]
    records = [row for row in everything.records if row["id"].startswith(plan.anchors)] if plan.anchors else []
    return Truth(timings, exchanges, records)


def show(title: str, found: Mapping[str, list[float]]) -> None:
    """Print one line of accuracy."""
    parts = []
    for key, logs in found.items():
        if logs:
            sizes = np.abs(logs)
            parts.append(f"{key} n={len(logs)} median={np.median(sizes):.3f} p90={np.quantile(sizes, 0.9):.3f}")
    print(f"{title:36}", " | ".join(parts))


UNMEASURED: Final = {"large": 0.4, "small": 0.5, "exchange": 0.6, "point": 0.3}
"""Half width of the band where a family has no measurement to tell it: stated, wider than any that was found."""


def spread_of(found: Mapping[str, list[float]]) -> Values:
    """Return the half width that holds four of five, by what is predicted."""
    widths = {key: float(np.quantile(np.abs(logs), 0.8)) for key, logs in found.items() if len(logs) > 3}
    if "records" in widths:
        widths.setdefault("exchange", widths["records"])
        widths.setdefault("point", widths["records"])
        widths.setdefault("large", widths["records"])
    widths.pop("records", None)
    return UNMEASURED | {key: max(value, 0.03) for key, value in widths.items()}


def everything() -> Truth:
    """Read all the truth."""
    records = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return Truth(tables.collectives() + tables.direct_all_reduces(), tables.exchanges(), records)


def medians(found: Iterable[Values]) -> Values:
    """Return the geometric median of every coefficient over families."""
    every: dict[str, list[float]] = {}
    for values in found:
        for name, value in values.items():
            if name in BOUNDS:
                every.setdefault(name, []).append(value)
    return {name: float(f"{math.exp(float(np.median(np.log(values)))):.4g}") for name, values in every.items()}


def fit_all(truth: Truth, report: Callable[[str, Mapping[str, list[float]]], None]) -> dict[str, LinkFamily]:
    """Fit every family in the order of :data:`PLANS`; what a family lacks is the median of those before it."""
    known: dict[str, LinkFamily] = {}
    values: dict[str, Values] = {}
    prior = medians([{name: value for name, value in FIRST.items() if name in COLLECTIVE}])
    known["other"] = family(Plan("other", (), "scale-up"), prior)
    known["rdma"] = family(Plan("rdma", (), "scale-out"), {"share": 0.95, "latency": 5e-6})
    for plan in PLANS:
        if plan.like:
            values[plan.id] = dict(values[plan.like])
            known[plan.id] = family(plan, values[plan.like], {key: 2 * v for key, v in known[plan.like].spread.items()})
            continue
        links = [values[name] for name in ("nvlink3", "nvlink4", "nvlink5") if name in values]
        lacking = medians(links) if links and plan.place == "scale-up" else {}
        fixed = {name: v for name, v in lacking.items() if name not in plan.fitted and name not in (*SWITCH, *PEER)}
        if plan.id in {"hccs", "ub", "xgmi"}:
            fixed.pop("own_copy", None)
        if plan.id == "rdma":
            fixed = {"latency": 5e-6}
        one = truth_of(plan, truth, plan.systems)
        values[plan.id] = fit(plan, one, fixed, known)
        found = errors(plan, family(plan, values[plan.id]), one, known)
        report(f"{plan.id} fitted", found)
        widths = spread_of(found)
        for left in plan.systems if len(plan.systems) > 1 else ():
            rest = truth_of(plan, truth, [name for name in plan.systems if name != left])
            without = fit(plan, Truth(rest.timings, rest.exchanges, []), fixed, known)
            out = errors(plan, family(plan, without), truth_of(plan, truth, [left]), known)
            report(f"{plan.id} without {left}", {key: logs for key, logs in out.items() if key != "records"})
        if plan.systems:
            old = errors(plan, family(plan, values[plan.id]), truth_of(plan, truth, plan.systems, newest=False), known)
            report(f"{plan.id} other versions", {key: old[key] for key in ("large", "small")})
        known[plan.id] = family(plan, values[plan.id], widths)
    for name in ("nvlink5", "nvlink"):  # the network that joins domains is fitted by now
        (plan,) = (one for one in PLANS if one.id == name)
        values[name] = exits_of(plan, values[name], truth, known) if name in ACROSS else values[name]
        values[name].update({"exits": values["nvlink5"]["exits"]} if "exits" in values["nvlink5"] else {})
        known[name] = family(plan, values[name], known[name].spread)
    typical_hosts(values, known)
    scale_up = [values[name] for name in ("nvlink3", "nvlink4", "nvlink5", "xgmi", "hccs", "ub")]
    plan = Plan("other", (), "scale-up", note="links that nobody has measured: medians over the families that were")
    prior = {name: value for name, value in medians(scale_up).items() if name not in (*SWITCH, *PEER, "write_share")}
    known["other"] = family(plan, prior, UNMEASURED)
    return known


def typical_hosts(values: Mapping[str, Values], known: dict[str, LinkFamily]) -> None:
    """Give every family of slots the shares of the middle one of all servers, where more than two cards talk.

    What stands behind the slots (switches, one processor or two, access to peers) differs far more than slots do: the
    fitted servers are two of those that anybody measured. A server known only for more cards reaches at least as much
    among fewer.
    """
    hosts = [plan for plan in PLANS if plan.place == "host"]
    for plan in hosts:
        own, off = dict(values[plan.id]), []
        for size in (one for one in plan.reaches if one > 2):
            shares = [values[one.id][f"within_{size}"] for one in hosts]
            shares += [next(found[at] / rate for at in sorted(found) if at >= size) for _, rate, found in HOSTS]
            middle = float(np.median(shares))
            own[f"within_{size}"] = float(f"{middle:.4g}")
            off += [abs(math.log(one / middle)) for one in shares]
        known[plan.id] = family(plan, own, {**known[plan.id].spread, "large": float(np.quantile(off, 0.8))})


def text(known: Mapping[str, LinkFamily]) -> str:
    """Return the YAML of the families."""
    lines = [
        "# What wires of one family and the libraries on them reach. Form: zhenfa.spec.link_family.LinkFamily.",
        "# Written by tools/fit_fabrics.py, which prints how well it agrees; do not edit by hand.",
        "# After a change: python -m zhenfa.catalog.compile.",
        "fabrics:",
    ]
    for item in known.values():
        data = item.model_dump(mode="json", exclude_defaults=True)
        lines.append(f"- id: {item.id}")
        for key, value in data.items():
            if key == "id" or (isinstance(value, dict) and value.get("value", 0) is None):
                continue
            shown = getattr(item, key)
            if hasattr(shown, "confidence"):
                lines.append(f"  {key}: {_inline(shown)}")
            elif key == "reaches":
                lines.append("  reaches:")
                lines += [f"  - {{size: {part.size}, share: {_inline(part.share)}}}" for part in shown]
            else:
                lines.append(f"  {key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _inline(fact: Any) -> str:
    base = 1.0
    for name, scale in UNITS.values():
        if name == fact.unit:
            base = scale
    shown = float(f"{fact.value / base:.4g}")
    unit = f"unit: {fact.unit}, " if fact.unit else ""
    return f"{{value: {shown:g}, {unit}source: {fact.source}, confidence: {fact.confidence}, note: {fact.note}}}"


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="print, write nothing")
    known = fit_all(everything(), show)
    if not parser.parse_args().check:
        OUT.write_text(text(known), encoding="utf-8")
        print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
