"""Serving rows: what the serving laws say of measured prefill, decode, offline and serving figures.

A row's primary metric counts in its groups; the others are reported under ``serve / other metrics``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from zhenfa.errors import InputError, ZhenfaError
from zhenfa.estimate import serving, serving_engine, serving_flood
from zhenfa.estimate.serving import Curves, Served, Service
from zhenfa.estimate.serving_engine import Engine
from zhenfa.spec.serving import ServingEngine, ServingPlan, ServingWorkload
from zhenfa.validation import serving_eager, serving_words
from zhenfa.validation import serving_rows as rows
from zhenfa.validation.outcome import Outcome
from zhenfa.validation.serving_machine import (
    counted_in_dies,
    find_accelerator,
    formation,
    laid_out_in_dies,
    part_of,
)

KINDS: Final = ("serving", "offline", "decode", "prefill", "ablation")
OTHER: Final = "serve / other metrics"
SHAREGPT: Final = (225.0, 210.0)
"""Mean input and output tokens of ShareGPT conversations as benchmarks sample them. Assumed where a row gives none."""

UNITS: Final[dict[str, str]] = {
    "tpot_ms": "ms", "tpot_mean_ms": "ms", "tpot_median_ms": "ms", "tpot_p50_ms": "ms", "itl_mean_ms": "ms",
    "itl_ms": "ms", "iteration_ms": "ms", "user_tok_s": "tok/s", "output_tok_s_total": "tok/s",
    "decode_tok_s_total": "tok/s", "system_tok_s": "tok/s", "output_tok_s_per_acc": "tok/s",
    "tok_s_per_acc_all": "tok/s", "decode_tok_s_per_acc": "tok/s", "output_tok_s_per_decode_acc": "tok/s",
    "tok_s_per_rank": "tok/s", "decode_tok_s_per_node": "tok/s", "decode_tok_s_per_node_tbo_off": "tok/s",
    "decode_tok_s_per_node_tbo_on": "tok/s", "prefill_tok_s_per_acc": "tok/s", "prefill_tok_s_per_node": "tok/s",
    "prefill_tok_s_total": "tok/s", "input_tok_s_total": "tok/s", "input_tok_s": "tok/s", "total_tok_s": "tok/s",
    "total_tok_s_per_acc": "tok/s", "req_s": "1/s", "gen_s": "s", "prefill_s": "s", "total_s": "s", "ttft_ms": "ms",
    "ttft_mean_ms": "ms", "ttft_median_ms": "ms", "ttft_p99_ms": "ms", "e2e_median_s": "s", "e2e_mean_s": "s",
    "e2e_s": "s",
}  # fmt: skip
"""Every metric that the laws say something of, in the order in which a row's primary one is chosen."""

OFFLINE_REQUESTS: Final[dict[tuple[int, int], int]] = {
    (128, 128): 30000, (128, 2048): 3000, (128, 4096): 1500, (500, 2000): 3000, (1000, 1000): 3000, (1000, 2000): 1500,
    (2048, 128): 3000, (2048, 2048): 1500, (5000, 500): 1500, (20000, 2000): 1000,
}  # fmt: skip
"""Requests of TensorRT-LLM's offline runs by input and output length, as its performance overview lists them."""

RATES_FIRST: Final = ("output_tok_s_total", "output_tok_s_per_acc")
"""Where all requests come at once, the throughput is what was measured; time per token mixes ramp and drain."""


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a serving row."""
    kind = serving_words.KINDS.get(str(record.get("kind") or "").casefold().strip())
    return kind in KINDS and isinstance(record.get("metrics"), Mapping) and ("engine" in record or "model" in record)


@dataclass(frozen=True)
class Case:
    """A row as the laws take it."""

    row: Mapping[str, Any]
    service: Service
    workload: ServingWorkload
    load: rows.RowLoad
    notes: tuple[str, ...]
    package: float
    """Devices of the layout per accelerator of the row's figures."""
    told: Mapping[str, float] = field(default_factory=dict)
    """What the row says of its engine."""


def case(row: Mapping[str, Any], *, engine: Engine | None = None, drafted: int | None = None) -> Case:
    """Read a row, with ``drafted`` tokens where it speculates. Raises a :class:`ZhenfaError` saying what it lacks."""
    name, graph = rows.find_graph(rows.model_name(row))
    accelerator = find_accelerator(row)
    known = serving_engine.find(str(row.get("engine") or ""), accelerator.maker)
    form, attention = rows.weights(row, graph, accelerator.maker)
    cached, cache_note = rows.cache_format(row, form, known.id)
    layout = rows.deployment(row)
    if known.id == "trtllm":
        routed = any(one.kind == "grouped_matmul" for kind in graph.kinds for one in kind.operators)
        layout = rows.spread_attention(row, layout, routed=routed)
    dies = laid_out_in_dies(row)
    here = formation(row, layout.cards, dies=dies)
    costs = engine or serving_engine.coefficients(known, accelerator)
    told, front_note = _as_started(row, known, costs)
    costs = replace(costs, **told)  # type: ignore[arg-type]
    open_drafts = rows.drafts(row, costs.drafts)
    guess, guess_note = rows.speculation(row, drafted or open_drafts[0], costs) if open_drafts else (None, None)
    if row.get("spec_decode") and not open_drafts:
        guess_note = "whether it speculates is not recorded; taken as no"
    plan = ServingPlan(
        model=name, machine=here.name, engine=known.id, weights=form, attention_weights=attention, cache=cached,
        prefill=layout.prefill, decode=layout.decode, speculation=guess,
        eager="--enforce-eager" in str(row.get("notes") or ""),
    )  # fmt: skip
    asked = rows.load(row, layout) if row.get("kind") != "prefill" else rows.RowLoad(concurrency=1.0)
    asked, run_note = rows.run_length(row, asked)
    strange = f"engine {row.get('engine')!r}: the prior over engines" if known.id == "other" else None
    notes = tuple(filter(None, (strange, cache_note, guess_note, *layout.notes, *asked.notes, run_note, front_note)))
    service = serving.look_up(graph, plan, here, engine=costs)
    package = accelerator.devices if dies and not counted_in_dies(row) else 1.0
    return Case(row, service, _workload(row, asked), asked, notes, package, told)


def _as_started(row: Mapping[str, Any], known: ServingEngine, costs: Engine) -> tuple[dict[str, float], str | None]:
    """Return what a row's command, benchmark and version say of an engine, and a note where its front end is slower."""
    found: dict[str, float] = {}
    if memory := rows.memory_share(row):
        found["memory"] = memory
    if (polls := rows.polls(row, known.id)) is not None:
        found["polls"] = polls
    slow = known.template
    version = re.search(r"(\d+)\.(\d+)\.(\d+)", str(row.get("engine") or ""))
    if slow is None or version is None or "vllm serve" not in str(row.get("notes") or ""):
        return found, None
    if tuple(map(int, version.groups())) > tuple(map(int, slow.until.split("."))) or "gpt-oss" in rows.model_name(row):
        return found, None
    each = slow.each.require(f"engine.{known.id}.template.each")
    return found | {"front": costs.front + each}, f"its version parses the chat template for {1e3 * each:.0f} ms"


def _workload(row: Mapping[str, Any], asked: rows.RowLoad) -> ServingWorkload:
    text = str(row.get("notes") or "")
    given = row.get("input_len"), row.get("output_len")
    first, last = (None if isinstance(one, str) else one for one in given)
    if any(isinstance(one, str) and "sharegpt" in one.lower() for one in given):
        first, last = SHAREGPT
    context = _length(row.get("kv_len"))
    if first is None or (context and asked.running is not None):
        first = context or first
    if first is None:
        raise InputError("the row gives no length of its input.")
    if asked.running is not None and context:
        last = 1.0
    shortest = 0.8 if re.search(r"0\.8\s*[-,]\s*1\.0", text) else 1.0
    kwargs: dict[str, float | None] = {"concurrency": asked.concurrency or asked.running or 1.0, "total": asked.total}
    if asked.rate:
        kwargs = {"request_rate": asked.rate}
    elif asked.requests:
        kwargs = {"requests": asked.requests}
    elif asked.filled:
        kwargs = {"requests": float(OFFLINE_REQUESTS.get((int(first), int(last or 1)), 1500))}
    return ServingWorkload(
        input_length=float(first), output_length=max(float(last or 1.0), 1.0), shortest=shortest, **kwargs
    )


def _length(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = re.search(r"([\d.]+)\s*([kK]?)", str(value or ""))
    return float(match[1]) * (1024.0 if match[2] else 1.0) if match else None


def predict(found: Case, *, drawn: Curves | None = None) -> dict[str, float]:
    """Return every metric that the laws give for a row, in the units of :data:`UNITS`.

    ``drawn``: the row's curves, where they are at hand; they do not depend on an engine's costs.
    """
    row, service, workload = found.row, found.service, found.workload
    if row.get("kind") == "prefill":
        return _prefill(found)
    if found.load.running is not None:
        served = serving.hold(service, workload, found.load.running)
    else:
        served = _served(found, drawn)
    return _figures(found, served) | (_apart_prefill(found) if service.apart else {})


def _served(found: Case, drawn: Curves | None) -> Served:
    """Return the steady state, or the walk through all requests where they come at once or faster than they go."""
    service, workload, asked = found.service, found.workload, found.load
    if not workload.requests or service.apart:
        served = serving.serve(service, workload, drawn=drawn)
        kept_up = not asked.rate or served.requests_per_second > 0.98 * asked.rate
        if kept_up or not asked.requests or service.apart:
            return served
        workload = workload.model_copy(update={"request_rate": None, "requests": asked.requests})
    length = found.row.get("output_len")
    natural = not asked.filled and workload.mean_output > 8
    natural = natural and not (isinstance(length, int | float) and float(length).is_integer())
    return serving_flood.flood(service, workload, drawn or serving.curves(service, workload), natural=natural)


def best(row: Mapping[str, Any]) -> tuple[Case, dict[str, float]]:
    """Return a row and its figures; of the draft lengths that it leaves open, with the one that pays best."""
    first = case(row)
    open_drafts = rows.drafts(row, first.service.engine.drafts)
    found = [first, *(case(row, drafted=one) for one in open_drafts[1:])]
    figures = [predict(one) for one in found]
    at = min(range(len(found)), key=lambda index: figures[index].get("tpot_ms", 0.0))
    return found[at], figures[at]


def _prefill(found: Case) -> dict[str, float]:
    row, service, workload = found.row, found.service, found.workload
    stated = re.search(r"([\d,]+) tok/\w+ per step", str(row.get("batch") or ""))
    if service.apart or "ttft_ms" in row["metrics"]:
        served = serving.serve(service, workload)
        return {"ttft_ms": 1e3 * served.ttft}
    instance = service.prefill.instance
    tokens = float(instance.chunk or service.engine.chunk)
    if stated:
        tokens = float(stated[1].replace(",", "")) / found.package * instance.tensor_parallel
    return _prompt_rates(found, serving.prefill_tokens_per_second(service, workload, tokens))


def _apart_prefill(found: Case) -> dict[str, float]:
    tokens = float(found.service.prefill.instance.chunk or found.service.engine.chunk)
    return _prompt_rates(found, serving.prefill_tokens_per_second(found.service, found.workload, tokens))


def _prompt_rates(found: Case, rate: float) -> dict[str, float]:
    instance = found.service.prefill.instance
    node = float(part_of(found.row, "hardware").get("node_size") or 8)
    per_card = rate / instance.cards * found.package
    total = rate * instance.count
    return {
        "prefill_tok_s_per_acc": per_card, "prefill_tok_s_per_node": per_card * node, "prefill_tok_s_total": total,
        "input_tok_s_total": total, "input_tok_s": total,
    }  # fmt: skip


def _figures(found: Case, served: Served) -> dict[str, float]:
    package, out = found.package, served.output_rate
    node = float(part_of(found.row, "hardware").get("node_size") or 8)
    tpot, ttft = 1e3 * served.tpot, 1e3 * served.ttft
    itl = tpot * found.service.accepted if served.itl is None else 1e3 * served.itl
    middle = tpot if served.tpot_median is None else 1e3 * served.tpot_median
    per_decode = out / served.decode_cards * package
    return {
        "tpot_ms": tpot, "tpot_mean_ms": tpot, "tpot_median_ms": middle, "tpot_p50_ms": middle, "itl_mean_ms": itl,
        "itl_ms": itl, "iteration_ms": 1e3 * served.iteration, "user_tok_s": 1.0 / served.tpot,
        "output_tok_s_total": out, "decode_tok_s_total": out, "system_tok_s": out,
        "output_tok_s_per_acc": out / served.cards * package, "tok_s_per_acc_all": out / served.cards * package,
        "decode_tok_s_per_acc": per_decode, "output_tok_s_per_decode_acc": per_decode, "tok_s_per_rank": per_decode,
        "decode_tok_s_per_node": per_decode * node, "decode_tok_s_per_node_tbo_off": per_decode * node,
        "total_tok_s": served.total_rate, "total_tok_s_per_acc": served.total_rate / served.cards * package,
        "req_s": served.requests_per_second, "gen_s": served.workload.mean_decoded * served.tpot,
        "prefill_s": served.ttft, "total_s": served.latency, "ttft_ms": ttft, "ttft_mean_ms": ttft,
        "ttft_median_ms": 1e3 * served.first_within(0.5), "ttft_p99_ms": 1e3 * served.first_within(0.99),
        "e2e_mean_s": served.latency, "e2e_s": served.latency,
        "e2e_median_s": served.latency - served.ttft + served.first_within(0.5),
    }  # fmt: skip


def measured(value: Any) -> float | None:
    """Return a metric as a number: the middle of a range, a figure written as ``~100``; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if 0 < value < 1e300 else None
    if isinstance(value, list | tuple) and value and all(isinstance(one, int | float) for one in value):
        return sum(map(float, value)) / len(value)
    match = re.fullmatch(r"[~≈<>=\s]*([\d.,]+)", value) if isinstance(value, str) else None
    return float(match[1].replace(",", "")) if match else None


def primary(row: Mapping[str, Any]) -> str | None:
    """Return the metric of a row that counts in its groups."""
    given = [name for name in UNITS if measured(row["metrics"].get(name)) is not None]
    flood = "requests" in str(row.get("batch") or "")
    if flood:
        given = [name for name in RATES_FIRST if name in given] + given
    return given[0] if given else None


def groups(row: Mapping[str, Any], family: str, maker: str) -> tuple[str, ...]:
    """Return every group in which a row's primary metric counts."""
    own = f"serve / {family}"
    if row.get("split") == "held-out":
        return ("serve / in no fit", own)
    if row.get("use") != "gate":
        return ("serve / compare", own)
    if isinstance(row.get("spec_decode"), Mapping):
        return ("serve / speculation", own)
    eastern = any(one in maker.lower() for one in ("huawei", "amd"))
    return (*(("serve / Ascend and AMD",) if eastern else ()), "serve / gate / no speculation", own)


def outcomes(record: Mapping[str, Any]) -> list[Outcome]:
    """Return every metric of a row beside what the laws say of it; a skip with its reason where they cannot."""
    record = serving_words.row_of(record, UNITS)
    gate = record.get("use") == "gate"
    first = primary(record)
    name = str(record.get("id") or "?")
    try:
        maker = find_accelerator(record).maker
    except ZhenfaError as problem:
        where = groups(record, "other", "")
        return [Outcome(name, "serve", where, first or "?", "", gate=gate, skipped=problem.message)]
    family = serving_engine.find(str(record.get("engine") or ""), maker).id
    where = groups(record, family, maker)
    if first is None:
        return [Outcome(name, "serve", where, "?", "", gate=gate, skipped="no metric of a kind that the laws give")]
    value = measured(record["metrics"].get(first))
    try:
        if serving_eager.accepts(record):
            return [_eager(record, first, value, where)]
        found, figures = best(record)
    except ZhenfaError as problem:
        return [Outcome(name, "serve", where, first, UNITS[first], measured=value, gate=gate, skipped=problem.message)]
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as problem:
        why = f"the row cannot be read: {str(problem).splitlines()[0]}"
        return [Outcome(name, "serve", where, first, UNITS[first], measured=value, gate=gate, skipped=why)]
    excess = _beyond_peak(found)
    if excess:
        return [Outcome(name, "serve", where, first, UNITS[first], measured=value, gate=gate, skipped=excess)]
    return _compared(record, found, figures, first, where, gate=gate)


def _eager(record: Mapping[str, Any], first: str, value: float | None, where: tuple[str, ...]) -> Outcome:
    figures, tag = serving_eager.predict(record)
    why = None if first in figures else "the laws do not give this metric for such a row"
    name = str(record.get("id") or "?")
    return Outcome(
        name, "serve", where, first, UNITS[first], measured=value, predicted=figures.get(first), tag=tag, skipped=why
    )


def _beyond_peak(found: Case) -> str | None:
    """Return why a row contradicts itself: its times and its load imply more arithmetic than its cards can do.

    That is their peak, or what matmuls were measured to sustain on them.
    """
    metrics, asked = found.row["metrics"], found.load.concurrency
    times = [measured(metrics.get(name)) for name in ("ttft_mean_ms", "tpot_mean_ms")]
    if asked is None or times[0] is None or times[1] is None or found.service.apart:
        return None
    workload, service = found.workload, found.service
    seconds = 1e-3 * (times[0] + times[1] * workload.mean_decoded)
    tokens = workload.mean_input * (1 - workload.cached_prefix) + workload.mean_output
    work = 2.0 * service.graph.active_parameters * tokens * asked / seconds
    chip = service.decode.setup.cards.dense
    known = chip.tag == "fitted"
    limit = chip.peak * (chip.achievable if known else 1.0) * service.plan.cards
    if work <= limit:
        return None
    what = "what matmuls sustain on" if known else "the peak of"
    return (
        f"the row's load and times ask {work / limit:.1f} times {what} its {service.plan.cards} cards: it does not say "
        "over how many replicas the load is spread"
    )


def _compared(
    record: Mapping[str, Any], found: Case, figures: Mapping[str, float], first: str, where: tuple[str, ...], *,
    gate: bool,
) -> list[Outcome]:  # fmt: skip
    note = "; ".join(found.notes) or None
    name, results = str(record.get("id") or "?"), []
    for metric, unit in UNITS.items():
        value = measured(record["metrics"].get(metric))
        if value is None or (metric not in figures and metric != first):
            continue
        counts = metric == first
        results.append(Outcome(
            name, "serve", where if counts else (OTHER,), metric, unit, measured=value, predicted=figures.get(metric),
            tag=found.service.tag, gate=gate and counts, note=note,
            skipped=None if metric in figures else "the laws do not give this metric for such a row",
        ))  # fmt: skip
    return sorted(results, key=lambda one: one.metric != first)
