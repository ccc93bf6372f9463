"""Prediction beside measurement: a real training step, prefill and decode on a calibrated card.

The models are in the catalog and carry random weights. All cards run them at once, each the whole model, as when they
were calibrated. A check can be kept as measured rows in the forms that ``zhenfa validate`` reads.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from zhenfa import catalog
from zhenfa.errors import RunError
from zhenfa.estimate import chip as chips
from zhenfa.estimate import kernels, serving_step, streams
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.serving_cards import Cards
from zhenfa.estimate.serving_step import Layout, Load, Setup, Step
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.estimate.wires import fabric
from zhenfa.live.calibrate.card import Calibrated, slug
from zhenfa.live.calibrate.machine import alone
from zhenfa.live.calibrate.samples import quantile
from zhenfa.live.calibrate.session import PATIENCE_S, Say, placed
from zhenfa.live.engine import Engine, call_all
from zhenfa.live.model import sizes_of
from zhenfa.spec import fact
from zhenfa.spec.graph import Graph
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import BYTES, CardPool, Formation, Precision
from zhenfa.spec.model import Model, read_model
from zhenfa.spec.plan import Pipeline, Plan, Stage

ENGINE: Final = "zhenfa calibrate, torch eager"
NARROW: Final = "16-bit states"
"""Said of the software where weights, gradients and optimizer state are all in 16 bits."""
WEIGHTS_ONLY_BYTES: Final = 14.0
"""Bytes per parameter that AdamW moves where weights, gradients and states are all in 16 bits: 4 tensors read, 3
written."""


@dataclass(frozen=True)
class Trial:
    """One thing to run: ``batch`` sequences of ``length`` tokens; ``steps`` timed."""

    kind: str
    model: str
    precision: Precision
    batch: int
    length: int
    steps: int


@dataclass(frozen=True)
class Checked:
    """One figure: seconds predicted and measured (the median over all cards and steps, with its spread)."""

    what: str
    trial: Trial
    predicted: float
    measured: float
    p10: float
    p90: float
    waited: float

    @property
    def ratio(self) -> float:
        """Return measured over predicted."""
        return self.measured / self.predicted


def trials_for(device: str) -> tuple[Trial, ...]:
    """Return what is tried on a device: a small model on a processor, one of the 1B class on a card."""
    if device == "cpu":
        return (
            Trial("train", "small-byte-gpt", "fp32", 4, 256, 8),
            Trial("serve", "small-byte-gpt", "fp32", 4, 256, 48),
        )
    return (Trial("train", "dense-1b", "bf16", 4, 2048, 12), Trial("serve", "dense-1b", "bf16", 8, 2048, 64))


def check(calibrated: Calibrated, *, trials: Sequence[Trial] | None = None, say: Say | None = None) -> list[Checked]:
    """Run every trial on the cards and return what was predicted beside what was measured.

    Raises :class:`RunError`.
    """
    from zhenfa.live.engine_local import LocalEngine

    measurements = calibrated.measurements
    found: list[Checked] = []
    with LocalEngine() as engine:
        engine.place(placed(measurements.device, measurements.cards))
        engine.start()
        for trial in trials or trials_for(measurements.device.provider):
            if say is not None:
                say(f"{trial.kind}: {trial.model}, {trial.batch} x {trial.length} tokens, {trial.precision}")
            found += _tried(engine, trial, calibrated)
    return found


def _tried(engine: Engine, trial: Trial, calibrated: Calibrated) -> list[Checked]:
    model = read_model(catalog.model_path(trial.model))
    orders = {key: value for key, value in asdict(trial).items() if key not in {"kind", "model"}}
    arguments = [
        {
            "rank": place.rank, "provider": place.provider, "kind": trial.kind,
            "threads": calibrated.measurements.threads, "orders": orders | {"sizes": asdict(sizes_of(model))},
        }
        for place in engine.places
    ]  # fmt: skip
    rows = call_all(engine, "try_model", arguments, PATIENCE_S)
    waited = max(row["waited"] for row in rows)
    predicted = (
        predict_training(trial, model, calibrated)
        if trial.kind == "train"
        else predict_serving(trial, model, calibrated)
    )
    checked = []
    for what, seconds in predicted.items():
        every = [one for row in rows for one in row["found"][what]]
        middle, low, high = (quantile(every, share) for share in (0.5, 0.1, 0.9))
        if not middle > 0:
            raise RunError(f"{trial.model} gave no time for {what}.")
        checked.append(Checked(what, trial, seconds, middle, low, high, waited))
    return checked


def pool_of(calibrated: Calibrated) -> CardPool:
    """Return one calibrated card as a pool."""
    tier = alone(calibrated)
    return CardPool("cards", calibrated.accelerator, 1, (tier,), fact.undisclosed("power"))


def predict_training(trial: Trial, model: Model, calibrated: Calibrated) -> dict[str, float]:
    """Return the seconds of one training step of one micro-batch on one card."""
    graph = model.graph()
    formation = Formation("check", "one calibrated card", (pool_of(calibrated),), None, fact.undisclosed("ratio"))
    stage = Stage(pool="cards", first=0, last=len(graph.layers))
    plan = Plan(
        job="check", model=trial.model, machine="check", sequence_length=trial.length, precision=trial.precision,
        pipelines=(Pipeline(micro_batches=1, micro_batch_size=trial.batch, stages=(stage,)),),
    )  # fmt: skip
    workload = Workload(sequence_length=trial.length, global_batch=trial.batch, precision=trial.precision)
    traits = OWN_RUNTIME
    if _narrow(trial):
        traits = traits.but(optimizer_bytes_moved=WEIGHTS_ONLY_BYTES, gradient_bytes=2.0)
    return {"step": cost(plan, look_up(graph, workload, formation, traits)).step}


def predict_serving(trial: Trial, model: Model, calibrated: Calibrated) -> dict[str, float]:
    """Return the seconds of one prefill and of one decode step half-way, on one card without an engine's own costs.

    The host issues every kernel itself, so that on a card a step takes at least as long as its kernels take to issue.
    """
    graph = model.graph()
    setup = _setup(graph, trial.precision, pool_of(calibrated))
    whole = serving_step.step(setup, Load(prompts=trial.batch, chunk=trial.length, prompt_context=trial.length))
    seen = trial.length + trial.steps / 2
    one = serving_step.step(setup, Load(sequences=trial.batch, context=seen))
    host, chip = _host(calibrated), setup.cards.dense
    extra = {tokens: eager(graph, chip, tokens) for tokens in (trial.batch * trial.length, trial.batch)}
    return {
        "prefill": _issued(whole, extra[trial.batch * trial.length], host),
        "decode": _issued(one, extra[trial.batch], host),
    }


def eager(graph: Graph, chip: Chip, tokens: int) -> tuple[float, float]:
    """Return seconds and kernels that element-wise operators take beyond a serving engine's fused 16-bit ones.

    The trial runs them one by one, as the own runtime does in training: see :mod:`zhenfa.estimate.streams`.
    """
    seconds = count = 0.0
    size = streams.width(chip)
    for index, kind in enumerate(graph.kinds):
        times = graph.layers.count(index)
        for operator in kind.operators:
            fused = 0.0
            if operator.kind in {"norm", "elementwise"}:
                chain = streams.passes(operator, size, OWN_RUNTIME)
                moved = 2.0 * tokens * (operator.inputs + operator.outputs)
                fused = float(kernels.stream(chip, moved)) - (streams.adds(operator) and chip.launch)
            elif operator.kind == "attention":
                chain = streams.rotary(operator, size, OWN_RUNTIME)
            else:
                continue
            seconds += times * (float(chain.times(tokens).seconds(chip)[0]) - fused)
            count += times * (chain.kernels_forward - (fused > 0))
    return seconds, count


def _issued(step: Step, extra: tuple[float, float], host: float) -> float:
    return max(float(step.total) + extra[0], (float(step.launches) + extra[1]) * host)


def _host(calibrated: Calibrated) -> float:
    """Return the seconds that the host needs for a kernel; on a processor they are part of the kernel's own time."""
    if calibrated.measurements.device.provider == "cpu":
        return 0.0
    return min((one.median for one in calibrated.measurements.of("host")), default=0.0)


def _setup(graph: Graph, precision: Precision, pool: CardPool) -> Setup:
    chip: Chip = chips.chip(pool, precision)
    width = BYTES[precision]
    cards = Cards(
        dense=chip, experts=chip, head=chip, dense_bytes=width, expert_bytes=width, cache_bytes=width, moe_only=False,
        attention=chip, attention_bytes=width,
    )  # fmt: skip
    return Setup(graph, cards, fabric(pool)[0], Layout())


def rows(checked: Sequence[Checked], calibrated: Calibrated) -> list[dict[str, Any]]:
    """Return the checks as measured rows, in the forms of training and serving measurements."""
    return [_training_row(one, calibrated) if one.what == "step" else _serving_row(one, calibrated) for one in checked]


def _training_row(one: Checked, calibrated: Calibrated) -> dict[str, Any]:
    model = read_model(catalog.model_path(one.trial.model))
    sizes, accelerator = sizes_of(model), calibrated.accelerator
    memory = accelerator.memory.capacity.value or 0.0
    return {
        "id": _id(one, calibrated), "tier": "measured here", "evidence": "measured", "task": "pretrain",
        "source": {"title": _title(calibrated), "confidence": "high"},
        "model": {
            "name": one.trial.model, "layers": sizes.layers, "hidden": sizes.hidden, "ffn": sizes.intermediate,
            "heads": sizes.heads, "kv_heads": sizes.kv_heads, "head_dim": sizes.head_dim, "vocab": sizes.vocabulary,
            "gated_mlp": sizes.gated, "tied": sizes.tied, "seq": one.trial.length,
        },
        "precision": one.trial.precision,
        "hardware": {
            "accel": accelerator.name, "vendor": accelerator.maker, "mem_gb": memory / 1e9, "per_node": 1, "count": 1,
            "document": accelerator.model_dump(mode="json"),
        },
        "parallel": {
            "tp": 1, "pp": 1, "dp": 1, "ep": 1, "cp": 1, "zero": 0, "mbs": one.trial.batch, "gbs": one.trial.batch,
            "ga": 1, "recompute": "none",
        },
        "metrics": {"iter_s": one.measured}, "spread": {"p10": one.p10, "p90": one.p90}, "software": _software(one),
    }  # fmt: skip


def _software(one: Checked) -> str:
    return f"{ENGINE}, {NARROW}" if _narrow(one.trial) else ENGINE


def _narrow(trial: Trial) -> bool:
    return BYTES[trial.precision] == BYTES["bf16"]


def _serving_row(one: Checked, calibrated: Calibrated) -> dict[str, Any]:
    accelerator, trial = calibrated.accelerator, one.trial
    prefill = one.what == "prefill"
    rate = {"prefill_tok_s_per_acc": trial.batch * trial.length / one.measured}
    return {
        "id": _id(one, calibrated), "kind": one.what, "source": _title(calibrated), "source_type": "primary",
        "confidence": "high", "model": trial.model,
        "precision": {"weights": trial.precision, "activations": trial.precision, "kv": trial.precision},
        "hardware": {
            "accelerator": accelerator.name, "count": 1, "node_size": 1,
            "document": accelerator.model_dump(mode="json"),
        },
        "engine": ENGINE, "parallelism": {"mode": one.what, one.what: {"TP": 1}},
        "batch": f"{trial.batch * trial.length:,} tok/card per step" if prefill else f"{trial.batch}/card",
        "input_len": trial.length, "kv_len": trial.length if prefill else trial.length + trial.steps // 2,
        "metrics": rate if prefill else {"tpot_ms": 1e3 * one.measured},
        "use": "compare", "notes": f"random weights; {trial.steps} steps timed", "acc_id": accelerator.id,
        "vendor": accelerator.maker,
    }  # fmt: skip


def _id(one: Checked, calibrated: Calibrated) -> str:
    trial = one.trial
    return slug(f"{calibrated.accelerator.id} {trial.model} {one.what} {trial.batch}x{trial.length} {trial.precision}")


def _title(calibrated: Calibrated) -> str:
    return calibrated.measurements.source


def keep(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Append rows to a file, one JSON document a line. Raises :class:`RunError`."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in found)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        with os.fdopen(file, "a", encoding="utf-8") as out:
            out.write(text)
    except OSError as problem:
        raise RunError(f"{str(path)!r} cannot be written: {os.strerror(problem.errno or 0)}.") from None


def error_of(checked: Sequence[Checked]) -> float:
    """Return the largest abs(ln(measured / predicted)); NaN of nothing."""
    return max((abs(math.log(one.ratio)) for one in checked), default=math.nan)
