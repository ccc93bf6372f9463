"""What a card draws at what it is doing: from measured curves where there are any, from rated power where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.catalog import operation
from zhenfa.laws import energy
from zhenfa.laws.arrays import Array
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.graph import Graph, Operator
from zhenfa.spec.machine import Accelerator
from zhenfa.spec.operation import CardPower

KV_BYTES: Final = 2.0
"""Bytes of an element of the cache where a row does not say."""


@dataclass(frozen=True)
class Draw:
    """W of one card at work and while it waits, hosts left out; ``words`` say what the figure rests on."""

    busy: float
    waiting: float
    tag: Tag
    words: str


def card_draw(
    accelerator: Accelerator, *, flops: float, bytes_per_second: float, share: float, rated: float | None = None
) -> Draw | None:
    """Return what a card draws; None where nothing at all is known of it.

    ``flops`` FLOP/s and ``bytes_per_second`` are what the card reaches on average, ``share`` of time its kernels run.
    Asked in turn: its fitted activity (or that of the same silicon), its measured idle and busy power, then ``rated``
    power (its TDP unless given), of which a busy card draws three quarters.
    """
    table = operation.power()
    own = table.card(accelerator.id)
    other = table.card(own.like) if own is not None and own.like is not None else None
    top = accelerator.tdp.value if rated is None else rated
    waiting = _waiting(own, other, top)
    for entry, tag in ((own, "fitted"), (other, "assumed")):
        found = None if entry is None else _measured(entry, top, flops, bytes_per_second, share)
        if found is not None and waiting is not None:
            busy, words = found
            stands = f" ({entry.accelerator} stands in)" if entry is other and entry is not None else ""
            return Draw(busy, min(waiting, busy), weakest("fitted", tag), words + stands)  # type: ignore[arg-type]
    if top is None or waiting is None:
        return None
    busy = top * table.busy_share.require("busy_share")
    return Draw(busy, min(waiting, busy), "assumed", f"{table.busy_share.value:.0%} of rated power")


def _measured(
    entry: CardPower, top: float | None, flops: float, moved: float, share: float
) -> tuple[float, str] | None:
    limit = np.inf if top is None else top
    if entry.activity is not None:
        one = entry.activity
        static = one.static.require(f"{entry.accelerator}.power.static")
        busy = energy.activity_power(
            moved, flops, static=static, joules_per_byte=1e-12 * one.picojoules_per_byte,
            joules_per_flop=1e-12 * one.picojoules_per_flop, limit=limit,
        )  # fmt: skip
        return float(busy), "from FLOP and bytes moved, fitted to measured cards"
    if entry.idle.value is not None and entry.busy.value is not None:
        cite.use(entry.busy.source)
        busy = energy.card_power(share, idle=entry.idle.value, maximum=entry.busy.value)
        return float(busy), "between measured idle and busy power"
    return None


def _waiting(own: CardPower | None, other: CardPower | None, top: float | None) -> float | None:
    """Return the power of a card that waits: measured idle, or a share of its rated power."""
    for entry in (own, other):
        if entry is not None and entry.idle.value is not None:
            return entry.idle.value
    return None if top is None else top * operation.power().idle_share.require("idle_share")


def host_draw() -> tuple[float, float]:
    """Return the W of a server without its cards, per card: busy, and while its cards wait."""
    host = operation.power().host
    return host.busy.require("host.busy"), host.idle.require("host.idle")


def serving_activity(
    graph: Graph,
    *,
    tokens_per_second: Array,
    batch: Array,
    context: Array,
    cards: Array,
    tensor: Array = 1.0,
    prompt_share: Array = 0.0,
    bits: float | None = None,
) -> tuple[Array, Array]:
    """Return bytes and FLOP per second of one card that decodes.

    ``tokens_per_second`` out of all ``cards`` together, ``batch`` sequences in flight, ``context`` mean tokens before
    the one being made, ``tensor`` cards that share the weights that are not experts', ``prompt_share`` prompt tokens
    read for each token made, ``bits`` per weight where they differ from the model's own. Counts weights once a step
    (of experts those that some token chose), the cache of every sequence, matmul and attention.
    """
    steps = np.true_divide(tokens_per_second, batch)
    dense = cached = flops = 0.0
    experts: Array = 0.0
    for operator, count in _operators(graph):
        stored = operator.parameters * (operator.bits if bits is None else min(operator.bits, bits)) / 8
        if operator.kind == "grouped_matmul":
            hit = 1.0 - np.power(1.0 - operator.active_experts / operator.experts, batch)
            experts = experts + count * stored * hit
        elif operator.kind != "embedding":
            dense += count * stored
        cached += count * operator.cache * KV_BYTES
        flops += count * operator.matmul_flops_per_token()
    attention = sum(count * _attention(operator) for operator, count in _operators(graph))
    moved = (
        np.true_divide(dense, tensor) + (np.true_divide(experts, 1.0) + cached * np.multiply(batch, context)) / cards
    )
    work = flops * np.add(1.0, prompt_share) + attention * np.asarray(context, float)
    return moved * steps, work * np.true_divide(tokens_per_second, cards)


def _operators(graph: Graph) -> list[tuple[Operator, int]]:
    """Return every operator of the model with how often it stands there."""
    found = [(operator, 1) for operator in (*graph.stem, *graph.head)]
    for index, kind in enumerate(graph.kinds):
        times = graph.layers.count(index)
        found.extend((operator, times) for operator in kind.operators)
    return found


def _attention(operator: Operator) -> float:
    """Return the FLOP of one token's attention per token of context."""
    if operator.kind != "attention":
        return 0.0
    width = 2 * operator.latent if operator.latent else operator.key_dim + operator.value_dim
    return 2.0 * operator.heads * width
