"""Prediction beside measurement: real training steps, prefill and decode on calibrated cards.

The models are in the catalog, or documents by their path, and carry random weights. They take turns with the timings of
the calibration, so that both meet the same state of the machine: each card the whole model, all at once, and where
there are several cards, plans on all of them together. A check can be kept as measured rows in the forms that
``zhenfa validate`` reads.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from zhenfa import catalog
from zhenfa.errors import RunError
from zhenfa.estimate import chip as chips
from zhenfa.estimate.eager import decoding, prefilling
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.calibrate.card import Calibrated, slug
from zhenfa.live.calibrate.machine import alone, machine_of
from zhenfa.live.calibrate.samples import quantile
from zhenfa.live.calibrate.session import Joint
from zhenfa.live.model import sizes_of
from zhenfa.spec import fact
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import BYTES, CardPool, Formation, Precision, Spread
from zhenfa.spec.model import Model, read_model
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.validation.serving_eager import ENGINE, issued

NARROW: Final = "16-bit states"
"""Said of the software where weights, gradients and optimizer state are all in 16 bits."""
WEIGHTS_ONLY_BYTES: Final = 14.0
"""Bytes per parameter that AdamW moves where weights, gradients and states are all in 16 bits: 4 tensors read, 3
written."""
SHARES: Final = tuple((place + 0.5) / 20 for place in range(20))
"""Quantiles that stand for the steps of one figure, so that each figure counts alike in a spread."""


@dataclass(frozen=True)
class Trial:
    """One thing to run: ``batch`` sequences of ``length`` tokens; ``steps``: tokens decoded before it begins anew.

    ``cards`` together if more than one: ``replicas`` of them, or else as many stages; ``batch`` is then a
    micro-batch, of which each replica takes ``micro_batches``.
    """

    kind: str
    model: str
    precision: Precision
    batch: int
    length: int
    steps: int = 1
    cards: int = 1
    replicas: int = 1
    micro_batches: int = 1

    @property
    def document(self) -> Model:
        """Return the model."""
        path = Path(self.model)
        return read_model(path if path.suffix else catalog.model_path(self.model))

    @property
    def orders(self) -> dict[str, Any]:
        """Return what a card has to know, as plain data."""
        keys = ("kind", "precision", "batch", "length", "steps")
        return {key: getattr(self, key) for key in keys} | {"sizes": asdict(sizes_of(self.document))}

    @property
    def plan(self) -> Plan:
        """Return the plan on as many cards as the trial wants, one stage on each card of a replica."""
        model = self.document
        layers, stages = len(model.graph().layers), self.cards // self.replicas
        edges = [layers * place // stages for place in range(stages + 1)]
        cut = tuple(Stage(pool="cards", first=first, last=last) for first, last in itertools.pairwise(edges))
        one = Pipeline(
            micro_batches=self.micro_batches, micro_batch_size=self.batch, stages=cut, count=self.replicas
        )  # fmt: skip
        return Plan(
            job="check", model=slug(model.name), machine="check", sequence_length=self.length,
            precision=self.precision, pipelines=(one,),
        )  # fmt: skip

    @property
    def joint(self) -> Joint:
        """Return the plan with the sizes of its model."""
        return Joint(self.plan, sizes_of(self.document))


@dataclass(frozen=True)
class Checked:
    """One figure: seconds predicted, and measured of every step on all cards."""

    what: str
    trial: Trial
    predicted: float
    seconds: tuple[float, ...]
    waited: float = 0.0

    @property
    def measured(self) -> float:
        """Return the mean seconds of a step."""
        return sum(self.seconds) / len(self.seconds)

    @property
    def p10(self) -> float:
        """Return the seconds that a tenth of the steps undercut."""
        return quantile(self.seconds, 0.1)

    @property
    def p90(self) -> float:
        """Return the seconds that nine tenths of the steps undercut."""
        return quantile(self.seconds, 0.9)

    @property
    def ratio(self) -> float:
        """Return measured over predicted."""
        return self.measured / self.predicted


def trials_for(device: str, cards: int = 1) -> tuple[Trial, ...]:
    """Return what is tried on a device: small models on processors, one of the 1B class on a card."""
    if device != "cpu":
        return (Trial("train", "dense-1b", "bf16", 4, 2048), Trial("serve", "dense-1b", "bf16", 8, 2048, 64))
    found = [
        Trial("train", "small-byte-gpt", "fp32", 4, 256),
        Trial("train", "small-byte-gpt", "fp32", 1, 768),
        Trial("train", "tiny-byte-gpt", "fp32", 8, 128),
        Trial("serve", "small-byte-gpt", "fp32", 4, 256, 48),
        Trial("serve", "tiny-byte-gpt", "fp32", 2, 64, 48),
    ]
    if cards > 1:
        found += [
            Trial("train", "small-byte-gpt", "fp32", 2, 256, cards=cards, replicas=cards, micro_batches=2),
            Trial("train", "small-byte-gpt", "fp32", 2, 256, cards=2, micro_batches=4),
        ]
    return tuple(found)


def alone_and_together(trials: Sequence[Trial]) -> tuple[list[dict[str, Any]], list[Joint]]:
    """Return the orders of the trials that every card runs alone, and the plans that cards run together."""
    return [one.orders for one in trials if one.cards == 1], [one.joint for one in trials if one.cards > 1]


def compare(calibrated: Calibrated, trials: Sequence[Trial]) -> list[Checked]:
    """Return what was predicted beside what the calibration measured of the same trials, those left out that the
    device refused. Raises :class:`RunError` where it said nothing of one that it ran."""
    measured, found = calibrated.measurements, []
    each, joint = iter(measured.tried), iter(measured.joint)
    for trial in trials:
        rows = {"step": next(joint)} if trial.cards > 1 else next(each)
        if not rows:
            continue
        predicted = predict_training(trial, calibrated) if trial.kind == "train" else predict_serving(trial, calibrated)
        for what, seconds in predicted.items():
            if not rows.get(what) or not min(rows[what]) > 0:
                raise RunError(f"{trial.model} gave no time for {what}.")
            found.append(Checked(_named(what, trial), trial, seconds, tuple(rows[what]), measured.quiet.waited))
    return found


def _named(what: str, trial: Trial) -> str:
    if trial.cards == 1:
        return what
    return f"{what}, {trial.cards} replicas" if trial.replicas > 1 else f"{what}, {trial.cards} stages"


def with_spread(calibrated: Calibrated, checked: Sequence[Checked]) -> Calibrated:
    """Return the calibrated card with the spread of measured over predicted: of training steps if some were run, else
    of the calls of all timings, which are off by more than the steps that they add up to."""
    steps = [one for one in checked if one.what.startswith("step")]
    if steps:
        rows = [[quantile(one.seconds, share) / one.predicted for share in SHARES] for one in steps]
        note, count = "training steps of the check, each figure counted alike", sum(len(one.seconds) for one in steps)
    else:
        rows = [
            [quantile(one.seconds, share) / (one.middle * calibrated.measurements.stretch * ratio) for share in SHARES]
            for one, ratio in zip(calibrated.samples, calibrated.ratios, strict=True)
        ]  # fmt: skip
        note, count = (
            "no step was checked: the calls of all timings",
            sum(len(one.seconds) for one in calibrated.samples),
        )
    pooled = [ratio for row in rows for ratio in row]
    spread = Spread(
        low=min(float(f"{quantile(pooled, 0.1):.3g}"), 1.0), high=max(float(f"{quantile(pooled, 0.9):.3g}"), 1.0),
        steps=count, models=len({one.trial.model for one in steps}), note=note,
    )  # fmt: skip
    return replace(calibrated, accelerator=calibrated.accelerator.model_copy(update={"spread": spread}))


def pool_of(calibrated: Calibrated) -> CardPool:
    """Return one calibrated card as a pool."""
    return CardPool("cards", calibrated.accelerator, 1, (alone(calibrated),), fact.undisclosed("power"))


def predict_training(trial: Trial, calibrated: Calibrated) -> dict[str, float]:
    """Return the seconds of one training step, on one card or on several together."""
    formation = Formation("check", "one calibrated card", (pool_of(calibrated),), None, fact.undisclosed("ratio"))
    if trial.cards > 1:
        formation = catalog.resolve(machine_of(calibrated))
    plan = trial.plan
    workload = Workload(sequence_length=trial.length, global_batch=plan.global_batch, precision=trial.precision)
    traits = OWN_RUNTIME
    if _narrow(trial):
        traits = traits.but(optimizer_bytes_moved=WEIGHTS_ONLY_BYTES, gradient_bytes=2.0)
    return {"step": cost(plan, look_up(trial.document.graph(), workload, formation, traits)).step}


def predict_serving(trial: Trial, calibrated: Calibrated) -> dict[str, float]:
    """Return the seconds of one prefill and of one decode step half-way, on one card without an engine's own costs.

    The host issues every kernel itself, so that on a card a step takes at least as long as its kernels take to issue.
    """
    graph, pool = trial.document.graph(), pool_of(calibrated)
    chip = chips.chip(pool, trial.precision)
    return {
        "prefill": issued(prefilling(graph, chip, trial.batch, trial.length), pool),
        "decode": issued(decoding(graph, chip, trial.batch, trial.length + trial.steps / 2), pool),
    }


def rows(checked: Sequence[Checked], calibrated: Calibrated) -> list[dict[str, Any]]:
    """Return the checks of single cards as measured rows, in the forms of training and serving measurements."""
    alone_ = [one for one in checked if one.trial.cards == 1]
    return [_training_row(one, calibrated) if one.what == "step" else _serving_row(one, calibrated) for one in alone_]


def _training_row(one: Checked, calibrated: Calibrated) -> dict[str, Any]:
    sizes, accelerator = sizes_of(one.trial.document), calibrated.accelerator
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
        "use": "compare", "notes": f"random weights; {len(one.seconds)} steps timed", "acc_id": accelerator.id,
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
