"""Time on the wire: collectives over a fabric of nested tiers.

Every collective is costed for several algorithms, and the fastest is taken, as communication libraries do:

* *ring*: one flat ring per card of the innermost group (multi-channel, so that every card's port at every tier works);
  bandwidth-optimal, the slowest tier sets the pace, latency grows with the group (Patarasuk & Yuan);
* *hierarchical*: reduce-scatter tier by tier outwards, all-gather back inwards, one tier after the other, in one step
  on a full mesh, in the switch where it can reduce (Thakur et al.);
* *tree*: two binary trees of nodes, the cards of a node in a chain, each tree with half of the buffer, all tiers at
  once: twice the buffer through every card, less where the switch reduces (Sanders et al.; NVIDIA).

To the wire's time comes what the library adds: the kernel's start, the copy of a card's own part, and the filling of
the pipeline of chunks, which a short message escapes through a protocol of small chunks and a long one pays once:
``fill x bytes / (bytes + fill_bytes)``. They are zero for ideal wires (:class:`~zhenfa.laws.fabric.Fabric`).

Every law here omits contention with other groups. An undisclosed bandwidth or latency is NaN and makes the time of
every group that crosses its tier NaN.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain
from zhenfa.laws.fabric import (
    SWITCH_GAIN,
    THAKUR,
    Fabric,
    TierView,
    added,
    point_to_point_time,
    reach,
    views,
    where_crossed,
)

__all__ = [
    "SWITCH_GAIN",
    "Fabric",
    "all_gather_time",
    "all_reduce_time",
    "all_to_all_time",
    "broadcast_time",
    "direct_all_reduce_time",
    "point_to_point_time",
    "reach",
    "reduce_scatter_time",
]

RING: Final = cite.declare(
    "patarasuk2009",
    "P. Patarasuk, X. Yuan. Bandwidth optimal all-reduce algorithms for clusters of workstations. JPDC 2009.",
)
TREE: Final = cite.declare(
    "sanders2009",
    "P. Sanders, J. Speck, J. L. Träff. Two-tree algorithms for full bandwidth broadcast, reduction and scan. "
    "Parallel Computing 2009.",
)
SWITCH: Final = cite.declare(
    "nvidia-sharp", "NVIDIA. Scalable Hierarchical Aggregation and Reduction Protocol; NVLink SHARP in NCCL (NVLS)."
)
MEASURED_GAIN: Final = cite.declare(
    "bekman-nvls",
    "S. Bekman. Machine Learning Engineering, network chapter: all-reduce of 8 GiB over 8 cards with and without NVLS, "
    "H200 473 against 365.6 GB/s, B200 838 against 682 GB/s.",
)
DIRECT: Final = cite.declare(
    "nvidia-custom-all-reduce",
    "NVIDIA TensorRT-LLM, vLLM and SGLang: one-shot and two-shot all-reduce kernels on peer memory.",
)


def _bottleneck(tiers: list[TierView]) -> Any:
    """Seconds per byte of a stream that passes every card when all cards of an instance share its way out."""
    slowest: Any = 0.0
    for tier in tiers:
        with np.errstate(divide="ignore", invalid="ignore"):
            slowest = np.maximum(slowest, where_crossed(tier, 1.0 / (tier.bandwidth * tier.ways)))
    return slowest


def _tree_bottleneck(tiers: list[TierView]) -> Any:
    """Seconds per byte and direction of two trees.

    Beyond the innermost domain, an inner node of one tree passes its half of the buffer to two others and is a leaf of
    the other tree: it sends all of it twice in both directions together. Of two instances each is the root of one tree
    and the leaf of the other, and sends half of that: so on domains that are left through few of many ports, where it
    was measured; two nodes of four cards with four ports showed no more than a ring.
    """
    slowest: Any = 0.0
    for tier in tiers:
        instances = np.ceil(tiers[-1].inside / tier.below - 1e-12)
        halved = (instances == 2) & np.asarray(tier.ways < tier.ports)
        share = np.where(halved, 0.5, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            slowest = np.maximum(slowest, where_crossed(tier, share / (tier.bandwidth * tier.ways * tier.gain)))
    return slowest


def _ring_latency(tiers: list[TierView], group: Any) -> Any:
    """Latencies on the ``group - 1`` hops of a chunk: per tier, the edges of the ring whose ends first meet in it."""
    return added([where_crossed(tier, (group / tier.below - group / tier.inside) * tier.latency) for tier in tiers])


def _tree_latency(tiers: list[TierView]) -> Any:
    return added([where_crossed(tier, tier.steps * tier.latency) for tier in tiers])


def _fill(tiers: list[TierView], carried: Any) -> Any:
    """Seconds that a transfer of so many bytes per card loses to filling the longest pipeline that it crosses."""
    lost: Any = 0.0
    for tier in tiers:
        if tier.fill:
            lost = np.maximum(lost, where_crossed(tier, tier.fill * carried / (carried + tier.fill_bytes)))
    return lost


def _switch_fill(tiers: list[TierView], carried: Any, count: Any, fabric: Fabric) -> Any:
    """Seconds of filling that reduction in a switch adds, where a crossed tier's switch is used."""
    if not fabric.switch_fill:
        return 0.0
    tier = tiers[0]
    used = np.any(np.stack([np.broadcast_to(np.asarray(t.gain) > 1, np.shape(count)) & t.crossed for t in tiers]), 0)
    lost = fabric.switch_fill * np.log2(np.maximum(count, 2.0)) * carried / (carried + tier.fill_bytes)
    return np.where(used, lost, 0.0)


def _once(count: Any, seconds: Any, fabric: Fabric) -> Any:
    """Add the kernel's start wherever there is anyone to talk to."""
    return np.where(count > 1, seconds + fabric.start, 0.0) if fabric.start else seconds


def _scatter_phase(tier: TierView, payload: Any) -> Any:
    """Reduce-scatter or all-gather of what is left of the payload among the branches of one tier."""
    share = (1 - 1 / tier.branches) * payload / tier.ways
    with np.errstate(divide="ignore", invalid="ignore"):
        return where_crossed(tier, share / tier.bandwidth + tier.steps * tier.latency)


def _reduce_phase(tier: TierView, payload: Any) -> Any:
    """All-reduce of what is left of the payload among the branches of one tier."""
    share = 2 * (1 - 1 / tier.branches) * payload / tier.ways
    with np.errstate(divide="ignore", invalid="ignore"):
        return where_crossed(tier, share / (tier.bandwidth * tier.gain) + 2 * tier.steps * tier.latency)


def _own_copy(payload: Any, count: Any, fabric: Fabric) -> Any:
    return np.where(count > 1, payload / count / fabric.own_copy, 0.0) if np.isfinite(fabric.own_copy) else 0.0


def all_reduce_time(
    bytes: Array,  # noqa: A002
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    efficiency: Array = 1.0,
) -> Array:
    """Return the seconds of an all-reduce.

    Arguments: ``bytes`` in each card's buffer; ``group`` cards ``stride`` apart; ``efficiency`` share of the fabric's
    bandwidths that the library reaches; any shapes that broadcast.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts, at best, ``2 (n - 1)/n`` times the buffer through every card, up to ``fabric.switch_gain`` times less where
    the switch reduces, and what the library adds; omits the arithmetic. Agrees with bus bandwidth = link bandwidth on
    one tier of ideal wires (nccl-tests' measure).

    >>> fabric = Fabric(np.array([8.0]), np.array([450e9]), np.array([0.0]), np.zeros(1, bool), np.zeros(1, bool))
    >>> all_reduce_time(450e9, 8, 1, fabric)
    1.75

    Source: patarasuk2009, optimal ring; thakur2005, all-reduce (Rabenseifner); sanders2009, two-tree reduction
    and broadcast; nvidia-sharp; bekman-nvls (gain).
    """
    cite.use(RING, THAKUR, TREE, SWITCH, MEASURED_GAIN)
    tiers = views(group, stride, fabric, efficiency)
    count = np.asarray(group, float)
    carried = 2 * (1 - 1 / count) * bytes
    ring = carried * _bottleneck(tiers) + 2 * _ring_latency(tiers, count)
    tree = 2 * (bytes * _tree_bottleneck(tiers) + _tree_latency(tiers))
    hierarchical = added([_reduce_phase(tier, bytes) for tier in tiers])
    switched = np.minimum(tree, hierarchical) + _switch_fill(tiers, carried, count, fabric)
    library = _own_copy(bytes, count, fabric) + _fill(tiers, carried)
    return plain(_once(count, np.minimum(ring, switched) + library, fabric))


def _scatter_time(payload: Array, group: Array, stride: Array, fabric: Fabric, efficiency: Array) -> Array:
    tiers = views(group, stride, fabric, efficiency)
    count = np.asarray(group, float)
    worst = _bottleneck(tiers)
    carried = (1 - 1 / count) * payload
    ring = carried * worst + _ring_latency(tiers, count)
    tree = payload * worst + _tree_latency(tiers)
    wire = np.minimum(np.minimum(ring, tree), added([_scatter_phase(tier, payload) for tier in tiers]))
    return plain(_once(count, wire + _own_copy(payload, count, fabric) + _fill(tiers, carried), fabric))


def reduce_scatter_time(
    bytes: Array,  # noqa: A002
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    efficiency: Array = 1.0,
) -> Array:
    """Return the seconds of a reduce-scatter.

    Arguments: ``bytes`` of the full buffer on each card before; the rest as in :func:`all_reduce_time`.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts, at best, ``(n - 1)/n`` of the full buffer through every card, and what the library adds; omits the
    arithmetic. A switch that reduces spares no bytes: every card still sends all but its own part.

    >>> fabric = Fabric(np.array([8.0]), np.array([450e9]), np.array([0.0]), np.zeros(1, bool), np.zeros(1, bool))
    >>> reduce_scatter_time(450e9, 8, 1, fabric)
    0.875

    Source: thakur2005, reduce-scatter by recursive halving; patarasuk2009, ring.
    """
    cite.use(THAKUR, RING)
    return _scatter_time(bytes, group, stride, fabric, efficiency)


def all_gather_time(
    bytes: Array,  # noqa: A002
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    efficiency: Array = 1.0,
) -> Array:
    """Return the seconds of an all-gather.

    Arguments: ``bytes`` of the full buffer on each card after; the rest as in :func:`all_reduce_time`.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts, at best, ``(n - 1)/n`` of the full buffer through every card, and what the library adds: with a slow copy of
    its own part two cards gather slower per byte than eight. Agrees with :func:`reduce_scatter_time`, which is the same
    traffic backwards.

    >>> fabric = Fabric(np.array([8.0]), np.array([450e9]), np.array([0.0]), np.zeros(1, bool), np.zeros(1, bool))
    >>> all_gather_time(450e9, 8, 1, fabric)
    0.875

    Source: thakur2005, section 4.1 (all-gather by recursive doubling and ring).
    """
    cite.use(THAKUR, RING)
    return _scatter_time(bytes, group, stride, fabric, efficiency)


def all_to_all_time(
    bytes_per_card: Array, group: Array, stride: Array, fabric: Fabric, *, efficiency: Array = 1.0
) -> Array:
    """Return the seconds of an all-to-all with equal parts.

    Arguments: ``bytes_per_card`` in each card's send buffer, its own part included; the rest as in
    :func:`all_reduce_time`.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts the bytes for the peers of each tier through the card's port at that tier; tiers behind the same port one
    after the other, ports side by side, so that the slowest port sets the pace; one latency, all messages being posted
    at once. Omits uneven parts, and the forwarding that sends a token once per node (:mod:`.expert_exchange`).

    >>> fabric = Fabric(np.array([8.0, 16]), np.array([400e9, 50e9]), np.array([0.0, 0.0]), np.zeros(2, bool),
    ...                 np.zeros(2, bool))
    >>> all_to_all_time(16e9, 16, 1, fabric)
    0.16

    Source: thakur2005, all-to-all.
    """
    cite.use(THAKUR)
    count = np.asarray(group, float)
    tiers = views(group, stride, fabric, efficiency)
    busy: dict[int, Any] = {}
    latest: Any = 0.0
    for place, tier in enumerate(tiers):
        rate = tier.bandwidth if fabric.exchange is None else tier.bandwidth * fabric.exchange[place]
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = where_crossed(tier, (tier.inside - tier.ports) / count * bytes_per_card / rate)
        busy[tier.domain] = busy.get(tier.domain, 0.0) + seconds
        latest = np.maximum(latest, where_crossed(tier, tier.latency))
    wire: Any = 0.0
    for seconds in busy.values():
        wire = np.maximum(wire, seconds)
    extra = _own_copy(bytes_per_card, count, fabric) + _fill(tiers, (1 - 1 / count) * bytes_per_card)
    return plain(_once(count, wire + latest + extra, fabric))


def broadcast_time(
    bytes: Array,  # noqa: A002
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    efficiency: Array = 1.0,
) -> Array:
    """Return the seconds of a broadcast from one card to its group.

    Arguments: ``bytes`` to spread; the rest as in :func:`all_reduce_time`.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts the buffer once through the slowest tier, never faster than the root's own port, the latencies of a tree, and
    what the library adds. Agrees with half of the tree form of all-reduce.

    >>> fabric = Fabric(np.array([8.0]), np.array([450e9]), np.array([0.0]), np.zeros(1, bool), np.zeros(1, bool))
    >>> broadcast_time(450e9, 8, 1, fabric)
    1.0

    Source: sanders2009, two-tree broadcast.
    """
    cite.use(TREE)
    tiers = views(group, stride, fabric, efficiency)
    seconds = bytes * _bottleneck(tiers) + _tree_latency(tiers) + _fill(tiers, np.asarray(bytes, float))
    return plain(_once(np.asarray(group, float), seconds, fabric))


def direct_all_reduce_time(
    bytes: Array,  # noqa: A002
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    start: Array | None = None,
) -> Array:
    """Return the seconds of an all-reduce by a kernel that reads its peers' memory, as inference engines use.

    Arguments: ``bytes`` in each card's buffer; ``group`` cards ``stride`` apart; ``start``: seconds
    before the kernel's first byte, the fabric's ``peer_start`` if None (give 0 where the start is charged elsewhere);
    any shapes that broadcast. ``peer_share`` and ``peer_step`` of the fabric describe the kernel.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts the faster of one shot (every card reads all buffers: ``n - 1`` of them), two shots (each card reduces a part
    and reads the others' parts: ``2 (n - 1)/n`` of a buffer, one more meeting) and the library
    (:func:`all_reduce_time`), which is left alone where the fabric has no such kernel and beyond the innermost switched
    domain, whose memory peers can read. Omits engines' limits of size.

    >>> fabric = Fabric(np.array([8.0]), np.array([400e9]), np.array([5e-6]), np.zeros(1, bool), np.zeros(1, bool),
    ...                 peer_start=4e-6)
    >>> 1e6 * direct_all_reduce_time(64e3, 8, 1, fabric)
    5.12

    Source: nvidia-custom-all-reduce.
    """
    cite.use(DIRECT)
    library = all_reduce_time(bytes, group, stride, fabric)
    begun = fabric.peer_start if start is None else start
    if begun is None:
        return library
    tiers = views(group, stride, fabric, fabric.peer_share)
    count, worst = np.asarray(group, float), _bottleneck(tiers)
    met = begun + fabric.peer_step * (count - 1)
    one = met + (count - 1) * bytes * worst
    two = 2 * met + 2 * (1 - 1 / count) * bytes * worst
    within = count <= tiers[fabric.outermost[0]].inside
    return plain(np.where((count > 1) & within, np.minimum(np.minimum(one, two), library), library))
