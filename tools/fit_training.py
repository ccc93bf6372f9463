"""Fit the few free traits of training engines to measured steps: ``python tools/fit_training.py [ROWS.jsonl]``.

Each trait is physical, belongs to a generation of cards, an engine, or an engine on a generation, and never to a row.
How much cards of one kind differ comes first, from steps of one layout on growing numbers of cards: a step waits for
the slowest. The others are fitted one after the other, several rounds, to the mean of a loss that grows with the
logarithm of predicted over measured time and forgives outliers. Rows of one engine and model count as one group, so
that a table with many sizes of one model does not outweigh others. ``--check`` leaves out one engine family, then one
model, at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zhenfa.estimate import engines
from zhenfa.estimate.traits import WIDE_BYTES
from zhenfa.laws import recovery
from zhenfa.spec.machine import BYTES
from zhenfa.validation import training
from zhenfa.validation.rows import MEASUREMENTS
from zhenfa.validation.train_engine import engine_of

ROUNDS = 3
LONGEST = 8000
"""Stages times micro-batches of the longest pipeline that is followed while fitting."""
KNEE = 0.15
"""Above this |ln ratio| the loss grows linearly."""


@dataclass
class Free:
    """One free trait: the key it stands under, its start, bounds, and how far from the start it costs one unit."""

    key: str
    trait: str
    start: float
    low: float
    high: float
    spread: float
    value: float = field(default=0.0)
    why: str = ""

    def touches(self, row: Row) -> bool:
        """Return whether the trait matters for a row."""
        engine, _, generation = self.key.partition("/")
        if self.trait == "matmul_share_low" and BYTES[row.run.plan.precision] >= WIDE_BYTES:
            return False
        if self.key in {row.generation, engines.EVERY}:
            return True
        return engine in row.lineage and generation in {"", row.generation}


@dataclass
class Row:
    """One measured step: the record, its groups, and what it was when last predicted."""

    record: Mapping[str, Any]
    family: str
    model: str
    generation: str
    lineage: tuple[str, ...]
    run: training.Run
    error: float = math.nan


WAITS = "cards of one kind differ, a step waits for the slowest"
SPREAD = Free(engines.EVERY, "card_spread", 0.015, 0.0, 0.06, 0.01, why=WAITS)

FREE: tuple[Free, ...] = (
    SPREAD,
    Free("ampere", "matmul_share", 0.87, 0.6, 1.1, 0.1, why="clock under power"),
    Free("hopper", "matmul_share", 0.82, 0.6, 1.1, 0.1, why="clock under power"),
    Free("hopper", "matmul_share_low", 0.85, 0.6, 1.1, 0.1, why="clock under power, in 8 bits and fewer"),
    Free("hopper-500w", "matmul_share", 0.7, 0.4, 1.1, 0.1, why="clock under a lower power cap"),
    Free("blackwell", "matmul_share", 0.92, 0.6, 1.1, 0.1, why="clock under power"),
    Free("blackwell", "matmul_share_low", 0.92, 0.6, 1.1, 0.1, why="clock under power, in 8 bits and fewer"),
    Free("ascend", "matmul_share", 0.75, 0.5, 1.1, 0.1, why="clock under power"),
    Free("megatron-core", "tensor_overlap", 0.8, 0.0, 1.0, 0.2, why="collectives cut and run beside their matmul"),
    Free("megatron-core", "expert_pace", 2.2, 1.0, 3.0, 0.4, why="HybridEP against the fabric's law"),
    Free("megatron-core", "expert_wait_s", 1.5e-3, 1e-5, 5e-3, 5e-4, why="host waits for tokens per expert"),
    Free("megatron-legacy", "step_overhead_s", 0.05, 0.0, 0.5, 0.05, why="loss scaling, logging"),
    Free("sailor", "host_s_per_kernel", 9e-5, 0.0, 2e-4, 5e-6, why="host time to issue a kernel"),
    Free("fsdp", "gather_overlap", 0.95, 0.0, 1.0, 0.1, why="gathers behind arithmetic"),
    Free("llm-foundry/ampere", "attention_share", 0.6, 0.1, 1.5, 0.2, why="FlashAttention-1 in Triton"),
    Free("llm-foundry/hopper", "attention_share", 0.38, 0.1, 1.5, 0.2, why="FlashAttention-1 in Triton"),
    Free("jax/hopper", "busy", 0.95, 0.6, 1.0, 0.1, why="gaps between kernels"),
    Free("tpu", "matmul_share", 1.1, 0.8, 1.6, 0.15, why="XLA's kernels against the prior over chips"),
    Free("deepspeed", "busy", 0.85, 0.5, 1.0, 0.15, why="gaps between eager kernels and in hooks"),
    Free("mindspeed/ascend", "attention_share", 0.8, 0.2, 1.5, 0.2, why="flash attention on Ascend"),
    Free("paddle/ampere", "matmul_share", 0.8, 0.4, 1.1, 0.1, why="kernels of the time"),
)


def loss(error: float) -> float:
    """Return the loss of one row: quadratic, then linear."""
    size = abs(error)
    return size * size / (2 * KNEE) if size < KNEE else size - KNEE / 2


def read(paths: Iterable[Path], tiers: str) -> list[Row]:
    """Return the rows to fit: those with a step time that can be compared."""
    rows = []
    for path in paths:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        rows += [row for line in text.splitlines() if (row := _row(json.loads(line), tiers))]
    return rows


LEAST_ROWS = 4
"""A trait that fewer rows would decide is not fitted: it would belong to a row."""


def thin(rows: list[Row]) -> list[Row]:
    """Return rows that teach something new: of those that differ only in replicas or release, the first and the last;
    tier B only of families that have no tier A, and no pipelines so long that following them takes seconds."""
    found: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    with_gate = {row.family for row in rows if row.record.get("tier") == "A"}
    for row in rows:
        plan, record = row.run.plan, row.record
        (pipeline,) = plan.pipelines
        cut = pipeline.stages[0].cut
        if record.get("tier") != "A" and row.family in with_gate:
            continue
        if not _long(row):
            size = (len(pipeline.stages), pipeline.micro_batch_size, plan.sequence_length, plan.precision)
            found[row.family, row.model, row.generation, cut, size, plan.zero].append(row)
    return [row for group in found.values() for row in ([group[0], group[-1]] if len(group) > 1 else group)]


def _long(row: Row) -> bool:
    (pipeline,) = row.run.plan.pipelines
    return len(pipeline.stages) * pipeline.micro_batches > LONGEST


def _row(record: Mapping[str, Any], tiers: str) -> Row | None:
    if str(record.get("tier")) not in tiers or record.get("split") == "held-out":
        return None
    try:
        run = training.read(record)
    except ValueError:
        return None
    if run.measured is None:
        return None
    generation = engines.generation(run.formation.pools[0].accelerator.id)
    model = str(record["model"].get("name"))
    return Row(record, run.engine.family, model, generation, engines.lineage(run.engine.id), run)


def apply(free: Iterable[Free]) -> None:
    """Make the engines use the present values."""
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for one in free:
        table[one.key][one.trait] = one.value
    engines.use_fits(table)


def predict(rows: Iterable[Row]) -> None:
    """Predict rows anew with the present values."""
    for row in rows:
        run = row.run
        if run.layout is None or run.measured is None:
            continue
        engine = engine_of(row.record, run.layout, run.formation.pools[0].accelerator.id, [])
        step = dataclasses.replace(run, engine=engine).cost().step
        row.error = math.log(step / run.measured.seconds) if 0 < step < math.inf else math.nan


def total(rows: Iterable[Row]) -> float:
    """Return the mean loss over groups of engine and model."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        if not math.isnan(row.error):
            groups[row.family, row.model, row.generation].append(loss(row.error))
    return statistics.fmean(statistics.fmean(found) for found in groups.values()) if groups else 0.0


def penalty(free: Iterable[Free], count: int) -> float:
    """Return what it costs that traits leave their starts: times by their logarithm, shares by their spread."""
    away = (
        math.log(max(one.value, 1e-9) / one.start) if one.spread < 1e-3 else (one.value - one.start) / one.spread
        for one in free
    )  # fmt: skip
    return sum(0.02 * size * size for size in away) / max(count, 1)


def fit(free: list[Free], rows: list[Row], rounds: int, report: Callable[[str], None]) -> None:
    """Fit every trait in turn by a shrinking search around its present value."""
    for one in free:
        one.value = one.start if one.trait != SPREAD.trait else one.value
    apply(free)
    predict(rows)
    groups = len({(row.family, row.model, row.generation) for row in rows})
    for turn in range(rounds):
        for one in free:
            touched = [row for row in rows if one.touches(row)]
            if touched and one.trait != SPREAD.trait:
                _search(one, free, rows, touched, turn, groups)
        report(f"round {turn + 1}: loss {total(rows):.4f}")


def _search(one: Free, free: list[Free], rows: list[Row], touched: list[Row], turn: int, groups: int) -> None:
    best, kept = total(rows) + penalty(free, groups), one.value
    before = [row.error for row in touched]
    for candidate in _candidates(one, turn):
        one.value = candidate
        apply(free)
        predict(touched)
        now = total(rows) + penalty(free, groups)
        if now < best - 1e-6:
            best, kept, before = now, candidate, [row.error for row in touched]
    one.value = kept
    apply(free)
    for row, error in zip(touched, before, strict=True):
        row.error = error


def _candidates(one: Free, turn: int) -> list[float]:
    """Return the values to try: multiples of a time, steps from a share, smaller every round."""
    if one.spread < 1e-3:
        tried = [one.value * factor ** (0.6**turn) for factor in (0.3, 0.6, 1.6, 3.0, 5.0)]
    else:
        tried = [one.value + sign * 2 * one.spread * 0.5**turn for sign in (-1, -0.4, 0.4, 1)]
    kept = (min(max(value, one.low), one.high) for value in tried)
    return [value for value in dict.fromkeys(kept) if value != one.value]


def summary(rows: Iterable[Row]) -> str:
    """Return median and ninth decile of |ln ratio|, and the bias."""
    return _words([row.error for row in rows])


def _words(found: Iterable[float]) -> str:
    errors = [error for error in found if not math.isnan(error)]
    sizes = sorted(abs(error) for error in errors)
    if not sizes:
        return "none"
    ninth = sizes[min(int(0.9 * len(sizes)), len(sizes) - 1)]
    middle, bias = statistics.median(sizes), statistics.fmean(errors)
    return f"n {len(sizes):4d}  median {middle:.3f}  p90 {ninth:.3f}  bias {bias:+.3f}"


def _packaged(one: Free) -> float:
    found = engines.fits().get(one.key, {}).get(one.trait, one.start)
    return float(found["value"] if isinstance(found, Mapping) else found)


def by(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Return rows by a key."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return dict(found)


def _family(row: Row) -> str:
    return row.family


def _model(row: Row) -> str:
    return row.model


def _generation(row: Row) -> str:
    return row.generation


def slopes_of(free: list[Free], rows: list[Row]) -> dict[str, list[float]]:
    """Return by generation how measured over predicted time grows with the expected largest of n normal numbers: one
    slope for each layout that was measured on several numbers of cards, with cards of one kind taken as equal."""
    for one in free:
        one.value = 0.0 if one.trait == SPREAD.trait else one.value
    apply(free)
    predict(rows)
    alike: dict[tuple[object, ...], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        plan, (pipeline,) = row.run.plan, row.run.plan.pipelines
        cut = (pipeline.stages[0].cut, len(pipeline.stages), pipeline.micro_batch_size, pipeline.micro_batches)
        key = (str(row.record.get("software")), row.model, cut, plan.sequence_length, plan.precision, plan.zero)
        if not math.isnan(row.error):
            largest = recovery.slowest_card(row.run.formation.cards, 1.0) - 1.0
            alike[row.generation, key, row.run.engine.traits].append((float(largest), -row.error))
    found: dict[str, list[float]] = defaultdict(list)
    for (generation, *_), points in alike.items():
        middle = statistics.fmean(x for x, _ in points)
        across = sum((x - middle) ** 2 for x, _ in points)
        if across > 0.05:
            found[str(generation)].append(sum((x - middle) * y for x, y in points) / across)
    return found


def spreads(free: list[Free], rows: list[Row]) -> None:
    """Set how far cards of one kind differ: the median slope over all layouts, each counting once."""
    slopes = [slope for found in slopes_of(free, rows).values() for slope in found]
    for one in free:
        if one.trait == SPREAD.trait:
            one.value = min(max(statistics.median(slopes), one.low), one.high) if slopes else one.start
            print(f"cards of one kind differ by {one.value:.4f}: median slope of {len(slopes)} layouts on growing jobs")


def write(free: Iterable[Free], rows: list[Row]) -> None:
    """Write the fitted traits beside the engines."""
    lines = [
        "# Written by tools/fit_training.py: do not edit. Traits fitted to measured training rows, by generation of",
        "# cards, by engine, or by engine on a generation. `rows` is how many rows each was fitted to, four at least.",
        "fits:",
    ]
    for key, group in by_key(free).items():
        lines.append(f"  {key}:")
        for one in group:
            count = sum(1 for row in rows if one.touches(row))
            unit = "s" if one.trait.endswith(("_s", "_kernel")) else "ratio"
            lines.append(
                f"    {one.trait}: {{value: {one.value:.4g}, unit: {unit}, source: fit, confidence: calibrated, "
                f"rows: {count}, note: {one.why}}}"
            )
    engines.FITS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def by_key(free: Iterable[Free]) -> dict[str, list[Free]]:
    """Return traits by the key that they stand under."""
    found: dict[str, list[Free]] = defaultdict(list)
    for one in free:
        found[one.key].append(one)
    return dict(found)


def effects(free: list[Free], rows: list[Row]) -> None:
    """Print what each trait gains over its neutral value, all others kept."""
    for one in free:
        touched = [row for row in rows if one.touches(row)]
        before = summary(touched)
        kept, errors = one.value, [row.error for row in touched]
        one.value = 1.0 if one.trait.endswith(("share", "share_low", "imbalance", "pace", "busy")) else 0.0
        apply(free)
        predict(touched)
        print(f"{one.key:22s} {one.trait:18s} {kept:9.4g}   with: {before}   without: {summary(touched)}")
        one.value = kept
        for row, error in zip(touched, errors, strict=True):
            row.error = error
    apply(free)


def check(free: list[Free], rows: list[Row], rounds: int) -> None:
    """Print errors of rows whose engine family, then whose model, was left out of the fit.

    Only the traits that touch the rows left out are fitted anew, from their starts; the others keep their values.
    """
    kept_values = [one.value for one in free]
    for name, key in (("family", _family), ("model", _model)):
        held: list[float] = []
        for value, group in by(rows, key).items():
            others = [row for row in rows if key(row) != value]
            moved = [one for one in free if one.trait != SPREAD.trait and any(one.touches(row) for row in group)]
            for one in moved:
                one.value = one.start
            apply(free)
            predict(rows)
            groups = len({(row.family, row.model, row.generation) for row in others})
            for turn in range(rounds):
                for one in moved:
                    touched = [row for row in others if one.touches(row)]
                    if touched:
                        _search(one, free, others, touched, turn, groups)
            predict(group)
            held += [row.error for row in group]
            print(f"left out {name} {value:40s} {summary(group)}", flush=True)
            for one, value_of in zip(free, kept_values, strict=True):
                one.value = value_of
        print(f"all rows, each with its {name} left out: {_words(held)}", flush=True)
    apply(free)


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "rows",
        nargs="*",
        type=Path,
        default=[MEASUREMENTS / "training.jsonl.gz", MEASUREMENTS / "training_later.jsonl.gz"],
    )
    parser.add_argument("--tiers", default="AB")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--dry", action="store_true", help="do not write")
    given = parser.parse_args()
    whole = read(given.rows, given.tiers)
    rows = thin(whole)
    free = [Free(**{**vars(one)}) for one in FREE if sum(map(one.touches, rows)) >= LEAST_ROWS]
    if given.rounds:
        for one in free:
            one.value = one.start
        spreads(free, [row for row in whole if not _long(row)])
        fit(free, rows, given.rounds, print)
    else:  # as packaged
        for one in free:
            one.value = _packaged(one)
        apply(free)
        predict(rows)
    for name, group in sorted({**by(rows, _family), **by(rows, _generation)}.items()):
        print(f"{name:28s} {summary(group)}")
    effects(free, rows)
    if not given.dry:
        write(free, rows)
    if given.check:
        check(free, rows, 1)


if __name__ == "__main__":
    main()
