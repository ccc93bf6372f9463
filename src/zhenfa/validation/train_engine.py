"""The engine of a published training row: its family's traits, and what the row's own flags change."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

from zhenfa.estimate import engines
from zhenfa.estimate.traits import EVERY_FUSION, Traits
from zhenfa.validation.train_layout import Layout
from zhenfa.validation.train_words import number, part, text, truth, unstated

GRAPHED: Final = {"attn": 0.4, "mamba": 0.4, "mlp": 0.3, "moe_router": 0.15, "moe_preprocess": 0.15, "moe": 0.3}
"""Share of a layer's kernels that a captured graph of one module replays. Counted from the operators of a layer."""


def engine_of(record: Mapping[str, Any], layout: Layout, card: str, notes: list[str]) -> engines.Engine:
    """Return the engine of a row; ``notes`` gains what was assumed of it."""
    software, source = str(record.get("software") or ""), part(record, "source")
    hint = " ".join(str(item) for item in (source.get("title"), source.get("where"), record.get("notes")) if item)
    found = engines.find(software, card=card, hint=f"{hint} {layout.zero_words}"[:2000])
    if not found.known:
        notes.append(f"engine {software or 'not stated'}: taken as {found.family}")
    return dataclasses.replace(found, traits=_with(found.traits, _flags(record, layout, found)))


def _with(traits: Traits, changes: Mapping[str, Any]) -> Traits:
    known = {item.name for item in dataclasses.fields(Traits)}
    return traits.but(**{key: value for key, value in changes.items() if key in known})


def _flags(record: Mapping[str, Any], layout: Layout, engine: engines.Engine) -> dict[str, Any]:
    """Return the traits that a row's own flags set."""
    raw, model = part(record, "parallel"), part(record, "model")
    changes: dict[str, Any] = {}
    if not unstated(raw.get("overlap_grad_reduce")):
        changes |= {"gradient_overlap": float(bool(truth(raw.get("overlap_grad_reduce")))), "summed_alone": ()}
    if not unstated(raw.get("overlap_param_gather")):
        changes["gather_overlap"] = float(bool(truth(raw.get("overlap_param_gather"))))
    if truth(raw.get("use_flash_attn")) is False or _NO_FLASH.search(text(record.get("notes"))):
        changes["attention"] = "unfused"
    if layout.tensor_overlap is not None:
        changes |= engines.switch(engine, "tensor-overlap") if layout.tensor_overlap else {"tensor_overlap": 0.0}
    changes |= _expert_flags(layout, engine)
    if layout.cuda_graph:
        changes["graphed"] = graphed_share(layout.cuda_graph)
    if text(raw.get("mp_mode")) == "pure":  # Composer: parameters, gradients and reduction in 16 bits
        changes |= {"reduced_bytes": 2.0, "gradient_bytes": 2.0}
    elif text(raw.get("mp_mode")) == "default":  # 32-bit parameters under autocast, reduced in 16 bits
        changes |= {"reduced_bytes": 2.0, "gathered_bytes": 4.0, "autocast": True}
    if "alibi" in text(model.get("pos")) or text(model.get("pos")) in {"learned", "absolute", "none"}:
        changes["rotary"] = False
    changes |= _low_precision(record)
    if _compiled(raw):
        changes["fused"] = engine.traits.fused | {"norm", "activation", "rope", "dropout"}
    if "liger" in text(record.get("notes")) or "liger" in text(raw.get("kernels")):
        changes |= {"fused": EVERY_FUSION | {"logits"}, "busy": 1.0}
    if truth(raw.get("use_fused_rmsnorm")) is False:
        changes["fused"] = engine.traits.fused - {"norm"}
    return changes


def _expert_flags(layout: Layout, engine: engines.Engine) -> dict[str, Any]:
    """Return the traits that a row's dispatcher of experts sets."""
    changes: dict[str, Any] = {}
    if layout.expert_overlap:
        changes |= engines.switch(engine, "expert-overlap")
    if layout.dispatcher:
        forwards = "deepep" in layout.dispatcher or "hybridep" in layout.dispatcher
        changes["expert_exchange"] = "forwarding" if forwards else "all-to-all"
    if "hybridep" not in layout.dispatcher:  # the engine's pace is that of its newest kernels
        changes["expert_pace"] = 1.0
    return changes


_NO_FLASH: Final = re.compile(
    r"(\bno|without|not use|disabled?) flash.?attention|flash.?attention (is )?(off|disabled|not used)"
)


def _compiled(raw: Mapping[str, Any]) -> bool:
    return truth(raw.get("compile")) is True


def graphed_share(words: str) -> float:
    """Return the share of kernels that replay from a graph: all of an iteration, or those of the named modules.

    >>> graphed_share("full_iteration:[]"), graphed_share("transformer_engine:['attn', 'moe_router']")
    (1.0, 0.55)
    """
    if "full_iteration" in words:
        return 1.0
    named = set(re.findall(r"[a-z_]+", words.partition(":")[2]))
    return round(min(sum(share for name, share in GRAPHED.items() if name in named), 1.0), 6)


def _low_precision(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return how tensors are scaled, from the precision's words and the recipe's name."""
    words = f"{text(record.get('precision'))} {text(part(record, 'parallel').get('recipe'))}"
    if "mx" in words or "nvfp4" in words or "block" in words or "fp8_sc" in words or "128x128" in words:
        return {"low_precision": "block"}
    if "(cs)" in words or "fp8_cs" in words or "tensorwise" in words or "rowwise" in words or "current" in words:
        return {"low_precision": "tensor"}
    return {}


def imbalance_of(record: Mapping[str, Any]) -> float | None:
    """Return 1 where a row says that its router was forced to balance, a figure where it gives one, else None."""
    given = number(part(record, "parallel").get("expert_imbalance"))
    if given and given >= 1:
        return min(given, 1000.0)
    words = text(record.get("notes"))
    return 1.0 if "force-balanced" in words or "fake gate" in words or "force balanced" in words else None
