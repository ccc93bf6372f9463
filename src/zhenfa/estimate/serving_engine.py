"""A serving engine's own costs, laid on top of the cards' time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from zhenfa.catalog import files
from zhenfa.estimate.serving_step import Step
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.machine import Accelerator
from zhenfa.spec.serving import ServingEngine


@dataclass(frozen=True)
class Engine:
    """The coefficients of an engine as plain floats, in seconds and ratios."""

    id: str
    step: float
    request: float
    overlap: float
    layer: float
    dispatch: float
    collective: float
    exchange: float
    pace: float
    imbalance: float
    memory: float
    entry: float
    front: float
    polls: float
    handover: float
    acceptance: float
    found: float
    drafts: tuple[int, ...]
    chunk: int
    max_batch: int
    mixed: bool
    reserves_output: bool
    eager: bool
    static_memory: bool
    kernels: str | None
    tag: Tag

    def time(self, step: Step, running: Array, *, captured: bool = True, overlapped: bool = False) -> Array:
        """Return the seconds of a step with the engine's costs.

        ``captured``: the step is replayed from a graph, so that launching takes no host time. ``overlapped``: two
        half batches take turns, the exchange of one behind the work of the other; each runs every kernel.
        ``running`` requests of one scheduler: of one data-parallel group.
        """
        pieces = -step.launches * self.overlap + step.layers * self.layer + step.collectives * self.collective
        meeting = step.exchanges * self.exchange
        if overlapped:
            work = step.kernels * self.pace
            device = np.maximum(work + step.reduce, step.exchange + meeting) + step.send + 2.0 * pieces
        else:
            device = step.total + step.kernels * (self.pace - 1.0) + pieces + meeting
        host = 0.0 if captured and not self.eager else step.launches * self.dispatch
        return plain(np.maximum(device, host) + self.step + self.request * running)


@cache
def engines() -> dict[str, ServingEngine]:
    """Return every engine of the catalog by id."""
    listed = files.read(files.ROOT / "serving_engines.yaml")["engines"]
    return {item["id"]: ServingEngine.model_validate(item) for item in listed}


def find(name: str, maker: str) -> ServingEngine:
    """Return the engine that a text such as ``dynamo-sglang v0.5.8`` speaks of, on cards of a maker, else ``other``."""
    words = set(re.findall(r"[a-z]+", name.lower().replace("_", "-")))
    text = name.lower()
    fitting = [
        engine for engine in engines().values()
        if any(one in words or ("-" in one and one in text) or (len(one) > 4 and one in text) for one in engine.names)
        and (not engine.makers or any(one in maker.lower() for one in engine.makers))
    ]  # fmt: skip
    fitting.sort(key=lambda engine: (not engine.makers, -max(len(one) for one in engine.names)))
    return fitting[0] if fitting else engines()["other"]


def planned(name: str, maker: str) -> ServingEngine:
    """Return the engine that a plan stands for: that of the name, in the mode that a plan's command asks for.

    >>> find("vllm", "Huawei").id, planned("vllm", "Huawei").id, planned("vllm", "NVIDIA").id
    ('vllm-ascend', 'vllm-ascend-full', 'vllm')
    """
    found = find(name, maker)
    return found if found.planned is None else engines()[found.planned]


def fitted(name: str) -> bool:
    """Return whether the costs of the engine with that id were fitted to measured rows of its own."""
    found = engines().get(name)
    return found is not None and found.step.confidence == "calibrated"


def coefficients(engine: ServingEngine, card: Accelerator | None = None) -> Engine:
    """Return an engine's coefficients as floats, with its defaults on a card."""
    facts = {name: getattr(engine, name) for name in _FACTS}
    values = {name: one.require(f"engine.{engine.id}.{name}") for name, one in facts.items()}
    chunk, batch = defaults(engine, card)
    return Engine(
        id=engine.id, chunk=chunk, max_batch=batch, mixed=engine.mixed,
        reserves_output=engine.reserves_output, eager=engine.eager, static_memory=engine.static_memory,
        drafts=engine.drafts, kernels=engine.kernels,
        tag=weakest(*(facts[name].tag for name in STEP_FACTS)), **values,
    )  # fmt: skip


def defaults(engine: ServingEngine, card: Accelerator | None) -> tuple[int, int]:
    """Return the tokens of prompts in one step, and the requests that run at once, where a user sets neither."""
    less = engine.smaller
    if less is None or card is None:
        return engine.chunk, engine.max_batch
    capacity, least = card.memory.capacity.value, less.below.require(f"engine.{engine.id}.smaller.below")
    named = any(one in card.id.split("-") for one in less.cards)
    small = named or (capacity is not None and capacity / card.devices < least)
    return (less.chunk, less.max_batch) if small else (engine.chunk, engine.max_batch)


STEP_FACTS = (
    "step", "request", "overlap", "layer", "dispatch", "collective", "exchange", "pace", "imbalance", "memory",
)  # fmt: skip
_FACTS = (*STEP_FACTS, "entry", "front", "polls", "handover", "acceptance", "found")
