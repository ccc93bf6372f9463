"""Dispatch and combine: tokens to the cards of their experts and back.

Two kinds of kernel are in use. *Forwarding* ones (training and prefill) send a token once to every card that holds one
of its experts, and across a slower tier once to every node, whose card of the same rail hands it on. *Low-latency* ones
(decode) post one message for every chosen expert straight to its card. Ports of different tiers work side by side, so
the busiest sets the pace.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, Flag, plain
from zhenfa.laws.fabric import Fabric, views

DEEPEP: Final = cite.declare(
    "deepep-library",
    "DeepSeek. DeepEP, expert-parallel communication library: README and docs/legacy.md, commit dd758ca.",
)
DEEPSEEK: Final = cite.declare("deepseek-v3", "DeepSeek-AI. DeepSeek-V3 Technical Report. arXiv 2412.19437.")


def distinct_places(top_k: Array, places: Array, experts: Array = np.inf, chosen: Array = np.inf) -> Array:
    """Return over how many places (cards, nodes) the experts of one token are spread, on average.

    Arguments: ``top_k`` experts of a token; ``places`` that share ``experts`` evenly; ``chosen``: the most places that
    the router lets a token go to; any shapes that broadcast.
    Returns: places, from 1 to the smallest of ``top_k``, ``places``, ``chosen``.
    Counts balanced routing without replacement (exact to 1 % of the hypergeometric); omits skewed routing.

    >>> round(distinct_places(8, 16), 3), distinct_places(2, 8, experts=8)
    (6.452, 1.9911...)

    Source: counted.
    """
    places, top_k = np.maximum(places, 1.0), np.asarray(top_k, float)
    allowed = np.minimum(places, chosen)
    usable = np.maximum(experts * allowed / places, top_k)
    each = np.where(np.isinf(usable), 1.0, usable / allowed)
    drawn = np.where(np.isinf(usable), 0.0, (top_k - 1) / 2)
    whole = np.where(np.isinf(usable), allowed, usable)
    missed = np.clip((whole - each - drawn) / np.maximum(whole - drawn, 1e-9), 0.0, 1.0) ** top_k
    spread = np.minimum(allowed * (1 - missed), top_k)
    return plain(np.where(allowed <= 1, 1.0, np.maximum(spread, 1.0)))


def _exchange_time(
    payload: Array,
    top_k: Array,
    group: Array,
    stride: Array,
    fabric: Fabric,
    experts: Array,
    nodes: Array,
    quick: Flag,
    posted: Any,
) -> Any:
    """Seconds of tokens of ``payload`` bytes a card in all; the same law both ways."""
    tiers, count = views(group, stride, fabric), np.asarray(group, float)
    starts = [place for place in range(fabric.tiers) if place == 0 or fabric.outermost[place - 1] == place - 1]
    node: Any = tiers[fabric.outermost[0]].inside
    wire: Any = 0.0
    started: Any = 0.0
    for place in starts:
        first, last = tiers[place], tiers[fabric.outermost[place]]
        inside, below = last.inside, first.below
        chosen = nodes * (np.where(count > node, node, np.inf) if place == 0 else 1.0)
        # without forwarding every copy for another node passes the network
        sent = np.where(quick, count, count / below)
        once = distinct_places(top_k, sent, experts, np.where(quick, np.inf, chosen)) * np.where(
            quick, (inside - below) / count, (inside - below) / inside
        )
        copies = np.where(posted, top_k * (inside - below) / count, once)
        rate = first.bandwidth * _mode(fabric.expert_share, place, quick, 1.0)
        begun = _mode(fabric.expert_start, place, quick, 0.0) + last.latency
        if fabric.expert_peer is not None:
            begun = begun + fabric.expert_peer[place] * (count - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            wire = np.maximum(wire, np.where(inside > below, payload * copies / rate, 0.0))
        started = np.maximum(started, np.where(inside > below, begun, 0.0))
    return np.where(count > 1, started + wire, 0.0)


def _mode(table: Any, place: int, quick: Any, ideal: float) -> Any:
    """The entry of a tier for kernels that forward or for kernels of low latency."""
    return ideal if table is None else np.where(quick, table[1, place], table[0, place])


def dispatch_time(
    tokens: Array,
    hidden: Array,
    top_k: Array,
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    bytes_per_element: Array = 2.0,
    experts: Array = np.inf,
    nodes_limited: Array = np.inf,
    low_latency: Flag = False,
    per_expert: Flag = True,
) -> Array:
    """Return the seconds to send every token to the cards of its experts.

    Arguments: ``tokens`` on each card; ``hidden`` elements of a token, ``bytes_per_element`` on the wire (1 for FP8 and
    INT8, 2 for BF16; scales included if you want them); ``top_k`` experts of a token among ``experts``; ``group`` cards
    ``stride`` apart; ``nodes_limited``: the most nodes (instances of the innermost switched domain) that the router
    lets a token go to; ``low_latency``: kernels for few tokens, which do not forward; ``per_expert``: these send one
    message per chosen expert (DeepEP), not one per card (TensorRT-LLM, mori); any shapes that broadcast.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts the bytes through the busiest port at the share of it that expert kernels reach, the kernel's start and a
    share per peer. Omits skewed routing and the wait of cards for each other.

    >>> fabric = Fabric(np.array([8.0, 64]), np.array([160e9, 45e9]), np.array([0.0, 0.0]), np.zeros(2, bool),
    ...                 np.zeros(2, bool))
    >>> 1e3 * dispatch_time(4096, 7168, 8, 32, 1, fabric, bytes_per_element=1, nodes_limited=4)
    1.76...

    Source: deepep-library (kernels and their figures); deepseek-v3, section 3.2.2 (node-limited routing, forwarding).
    """
    cite.use(DEEPEP, DEEPSEEK)
    payload = np.multiply(tokens, hidden) * bytes_per_element
    posted = np.logical_and(low_latency, per_expert)
    return plain(_exchange_time(payload, top_k, group, stride, fabric, experts, nodes_limited, low_latency, posted))


def combine_time(
    tokens: Array,
    hidden: Array,
    top_k: Array,
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    bytes_per_element: Array = 2.0,
    experts: Array = np.inf,
    nodes_limited: Array = np.inf,
    low_latency: Flag = False,
    per_expert: Flag = True,
) -> Array:
    """Return the seconds to bring the experts' results back to every token's card and add them.

    Arguments: as in :func:`dispatch_time`; ``bytes_per_element`` is 2 where results come back in BF16, as they do.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts the same copies the other way: forwarding kernels add on the way, so that every card sends one partial sum
    for a token and every node one; low-latency kernels send each expert's result. Omits the same.

    >>> fabric = Fabric(np.array([8.0]), np.array([160e9]), np.array([0.0]), np.zeros(1, bool), np.zeros(1, bool))
    >>> 1e6 * combine_time(128, 7168, 8, 8, 1, fabric, low_latency=True)
    80.28...

    Source: deepep-library.
    """
    cite.use(DEEPEP)
    payload = np.multiply(tokens, hidden) * bytes_per_element
    posted = np.logical_and(low_latency, per_expert)
    return plain(_exchange_time(payload, top_k, group, stride, fabric, experts, nodes_limited, low_latency, posted))
