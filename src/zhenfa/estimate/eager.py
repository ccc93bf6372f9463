"""Prefill and decode steps of a model that runs operator by operator, without an engine: as the trials run them."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa.estimate import kernels, serving_step, streams
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.serving_cards import Cards
from zhenfa.estimate.serving_step import Layout, Load, Setup, Step
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.laws.fabric import Fabric
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import BYTES

NOWHERE: Final = Fabric(
    sizes=np.ones(1), bandwidths=np.full(1, np.inf), latencies=np.zeros(1), full_mesh=np.zeros(1, bool),
    in_network_reduction=np.zeros(1, bool),
)  # fmt: skip
"""The fabric of a card that is alone."""


def prefilling(graph: Graph, chip: Chip, prompts: int, length: int) -> tuple[float, float]:
    """Return the seconds of a prefill of ``prompts`` prompts of ``length`` tokens, and how many kernels it takes."""
    step = serving_step.step(_setup(graph, chip), Load(prompts=prompts, chunk=length, prompt_context=length))
    return _with_eager(step, graph, chip, prompts * length)


def decoding(graph: Graph, chip: Chip, sequences: int, context: float) -> tuple[float, float]:
    """Return the seconds of a decode step of ``sequences`` that have seen ``context`` tokens, and its kernels."""
    step = serving_step.step(_setup(graph, chip), Load(sequences=sequences, context=context))
    return _with_eager(step, graph, chip, sequences)


def _with_eager(step: Step, graph: Graph, chip: Chip, tokens: int) -> tuple[float, float]:
    seconds, count = beyond_fused(graph, chip, tokens)
    return float(step.total) + seconds, float(step.launches) + count


def beyond_fused(graph: Graph, chip: Chip, tokens: int) -> tuple[float, float]:
    """Return seconds and kernels that element-wise operators take beyond a serving engine's fused 16-bit ones.

    They run one by one, as the own runtime does in training: see :mod:`zhenfa.estimate.streams`. Keys, values and the
    queries' share of a joint matmul are three matmuls, and keys and values are copied into the cache.
    """
    seconds = count = 0.0
    size = streams.width(chip)
    for index, kind in enumerate(graph.kinds):
        times = graph.layers.count(index)
        for operator in kind.operators:
            fused = 0.0
            if operator.kind in {"norm", "elementwise"}:
                chain = streams.chain_of(operator, size, OWN_RUNTIME, chip)
                moved = 2.0 * tokens * (operator.inputs + operator.outputs)
                fused = float(kernels.stream(chip, moved)) - (streams.adds(operator) and chip.launch)
            elif operator.kind == "attention":
                chain = streams.rotary(operator, size, OWN_RUNTIME).paced(chip, "rope")
            else:
                continue
            seconds += times * (float(chain.times(tokens).seconds(chip)[0]) - fused)
            count += times * (chain.kernels_forward - (fused > 0))
    return seconds, count


def _setup(graph: Graph, chip: Chip) -> Setup:
    width = BYTES[chip.precision]
    cards = Cards(
        dense=chip, experts=chip, head=chip, dense_bytes=width, expert_bytes=width, cache_bytes=width, moe_only=False,
        attention=chip, attention_bytes=width,
    )  # fmt: skip
    return Setup(graph, cards, NOWHERE, Layout())
