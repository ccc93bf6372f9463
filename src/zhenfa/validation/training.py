"""Training rows: measured steps of published runs, and what the laws say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from zhenfa.errors import InputError, ZhenfaError
from zhenfa.estimate import engines, priors
from zhenfa.estimate.engines import Engine
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.spec.graph import Graph
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import Plan
from zhenfa.validation import train_mixed
from zhenfa.validation.outcome import Outcome
from zhenfa.validation.train_engine import engine_of
from zhenfa.validation.train_layout import Layout, layout_of
from zhenfa.validation.train_machine import formation_of, precision_of
from zhenfa.validation.train_memory import Tool, impossible, memory_of, shown, tool_of
from zhenfa.validation.train_metric import Measured, out_of_memory, speed_of
from zhenfa.validation.train_model import model_of, sequence_of
from zhenfa.validation.train_plan import plan_of
from zhenfa.validation.train_spelling import canonical
from zhenfa.validation.train_words import number, part, text, unstated


@dataclass(frozen=True)
class Run:
    """A row as the planner would have it: model, machine, plan; and what was measured."""

    graph: Graph
    formation: Formation
    plan: Plan
    engine: Engine
    measured: Measured | None
    notes: tuple[str, ...]
    layout: Layout | None = None

    def setting(self) -> Setting:
        """Look everything up that the estimate needs."""
        workload = Workload(
            sequence_length=self.plan.sequence_length, global_batch=self.plan.global_batch,
            precision=self.plan.precision,
        )  # fmt: skip
        return look_up(self.graph, workload, self.formation, self.engine.traits)

    def cost(self) -> PlanCost:
        """Return what the laws say of the run."""
        return cost(self.plan, self.setting())

    def capacity(self) -> float:
        """Return the bytes of the largest card: makers' gigabytes of device memory are binary."""
        sizes = [pool.accelerator.memory.capacity.require("memory") for pool in self.formation.pools]
        return max(sizes) * priors.MAKERS_GIGABYTE


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a training row: a model, a layout and metrics; or one of unequal cards."""
    if train_mixed.accepts(record):
        return True
    own = canonical(record)
    return all(part(own, key) for key in ("model", "parallel", "hardware", "metrics")) and "layers" in part(
        own, "model"
    )


def read(record: Mapping[str, Any]) -> Run:
    """Return a row as model, machine and plan. Raises :class:`ZhenfaError` where it cannot be read."""
    notes: list[str] = []
    if train_mixed.accepts(record):
        return _read_mixed(record, notes)
    record = canonical(record)
    graph = model_of(record, notes).graph()
    layout = layout_of(record, len(graph.layers), notes, traits=_named(record).traits)
    formation = formation_of(record, layout.cards, notes)
    sequence = sequence_of(record)
    if sequence is None:
        sequence = 4096
        notes.append("sequences of 4096 tokens assumed")
    precision = precision_of(record, formation.pools[0].accelerator, notes)
    engine = engine_of(record, layout, formation.pools[0].accelerator.id, notes)
    if layout.recompute == "selective" and not layout.modules:
        layout = replace(layout, modules=engine.traits.selective)
    plan = plan_of(record, layout, sequence, precision, notes)
    run = Run(graph, formation, plan, engine, speed_of(record, layout, sequence, graph), tuple(notes), layout)
    return _recomputed(run) if unstated(part(record, "parallel").get("recompute")) else run


TOO_MUCH: Final = 1.25
"""Bytes needed over bytes usable from which a run without recomputation is not believed; memory is known better."""


def _recomputed(run: Run) -> Run:
    """Return a run that says nothing of recomputation: with whole layers recomputed where its software knows no other
    way, and where otherwise it would need far more memory than a card has and that way it fits."""
    if run.layout is None or run.plan.pipelines[0].stages[0].recompute != "none" or 1 in run.engine.traits.recompute:
        return run
    full = run.cost().fullest
    if full.bytes <= TOO_MUCH * full.capacity:
        return run
    notes = tuple(note for note in run.notes if not note.startswith("recomputation not stated"))
    stages = tuple(stage.model_copy(update={"recompute": "full"}) for stage in run.plan.pipelines[0].stages)
    pipelines = (run.plan.pipelines[0].model_copy(update={"stages": stages}),)
    again = replace(
        run, plan=run.plan.model_copy(update={"pipelines": pipelines}),
        notes=(*notes, "recomputation not stated: full assumed, since without it the run does not fit"),
    )  # fmt: skip
    found = again.cost().fullest
    return again if found.bytes <= found.capacity else run


def _read_mixed(record: Mapping[str, Any], notes: list[str]) -> Run:
    why = train_mixed.skip_reason(record)
    if why:
        raise InputError(why)
    graph, formation, plan = train_mixed.read_mixed(record, notes)
    step = number(part(record, "measured").get("iter_s")) or 0.0
    engine = engines.find(str(record.get("software") or ""), hint=str(record.get("source") or ""))
    return Run(graph, formation, plan, engine, Measured("iter_s", "s", step, step) if step else None, tuple(notes))


def outcomes(record: Mapping[str, Any]) -> list[Outcome]:
    """Return the step time (or rate) and the memory of a row beside what the laws say of them."""
    if not train_mixed.accepts(record):
        record = canonical(record)
    name, groups = str(record.get("id") or "unnamed"), groups_of(record)
    gate = text(record.get("tier")) == "a"
    try:
        run = read(record)
        if run.measured is None:
            why = "out of memory: a label, not a time" if out_of_memory(record) else "no speed that can be compared"
            return [Outcome(name, "train", groups, "iter_s", "s", skipped=why, gate=gate)]
        found = run.cost()
    except (ZhenfaError, ArithmeticError, LookupError, TypeError, ValueError) as problem:
        return [Outcome(name, "train", groups, "iter_s", "s", skipped=_first_line(problem), gate=gate)]
    measured = run.measured
    note = "; ".join((*([measured.note] if measured.note else []), *run.notes)) or None
    if not found.step > 0 or found.step == float("inf"):
        why = found.problem or "no finite time"
        return [Outcome(name, "train", groups, measured.metric, measured.unit, measured.value, skipped=why, gate=gate)]
    result = [
        Outcome(
            name, "train", groups, measured.metric, measured.unit, measured.value, measured.predicted(found.step),
            gate=gate, note=note,
        )
    ]  # fmt: skip
    held = memory_of(record)
    if held is not None:
        result.append(_memory(name, run, found, held, tool_of(record, held[0]), note))
    return result


def _memory(name: str, run: Run, found: PlanCost, held: tuple[str, float], tool: Tool, note: str | None) -> Outcome:
    """Return the memory of a row beside what the laws say that its tool shows."""
    (key, measured), groups = held, ("train / memory",)
    why = impossible(found, tool, run.engine.traits, measured)
    if why is not None:
        return Outcome(name, "train", groups, key, "B", measured, skipped=why, gate=False, note=note)
    size = shown(found, tool, run.engine.traits, run.capacity())
    return Outcome(name, "train", groups, key, "B", measured, size, gate=False, note=note)


def _first_line(problem: Exception) -> str:
    """Return one line of words; of a document's many problems the first."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if isinstance(problem, ValidationError):
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problem.errors()]
    return lines[0][:300] if lines else type(problem).__name__


def groups_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the groups that a row counts in."""
    if train_mixed.accepts(record):
        return ("train / other", "train / unequal cards")
    vendor = text(part(record, "hardware").get("vendor"))
    accel = text(part(record, "hardware").get("accel"))
    tier_a = text(record.get("tier")) == "a"
    mixture = bool(part(part(record, "model"), "moe"))
    if vendor in {"huawei", "ascend"} or "ascend" in accel:
        first = "train / Ascend"
    elif tier_a and mixture:
        first = "train / MoE / tier A"
    elif tier_a and (vendor == "nvidia" or "nvidia" in accel):
        first = "train / dense / NVIDIA / tier A"
    else:
        first = "train / other"
    held_out = ("train / in no fit",) if text(record.get("split")) == "held-out" else ()
    return (first, f"train / {family_of(record)}", *held_out)


def family_of(record: Mapping[str, Any]) -> str:
    """Return the software family of a row."""
    return _named(record).family


def _named(record: Mapping[str, Any]) -> Engine:
    """Return the engine that a row's software, or else its source and notes, name."""
    source = part(record, "source")
    hint = " ".join(str(item) for item in (source.get("title"), source.get("where"), record.get("notes")) if item)
    return engines.find(str(record.get("software") or ""), hint=hint[:2000])
