"""Time on the wire: collectives and messages over a fabric of nested tiers.

A group is ``group`` cards that sit ``stride`` apart, its first card at the start of an instance of every tier. Every
collective is costed for several algorithms, and the fastest is taken, as communication libraries do:

* *ring*: one flat ring per card of the innermost group (multi-channel, so that every card's port at every tier works);
  bandwidth-optimal, the slowest tier sets the pace, latency grows with the group (Patarasuk & Yuan);
* *hierarchical*: reduce-scatter tier by tier outwards, all-gather back inwards, one tier after the other, each by
  halving and doubling on a switch, in one step on a full mesh, or in the switch where it can reduce (Thakur et al.);
* *tree*: two binary trees, each with half of the buffer, all tiers at once: twice the buffer through every card, less
  where the switch reduces, and 2 log2(n) latencies (Sanders et al.; NVIDIA).

Every law here omits the start of the kernel, contention with other groups and, for trees, the pipeline's filling.
An undisclosed bandwidth or latency is NaN and makes the time of every group that crosses its tier NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.laws.arrays import Array, ceil_ratio, plain

THAKUR: Final = cite.declare(
    "thakur2005",
    "R. Thakur, R. Rabenseifner, W. Gropp. Optimization of collective communication operations in MPICH. IJHPCA 2005.",
)
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

SWITCH_GAIN: Final = 1.25
"""How much faster than a ring the same ports reduce in the switch. Fitted: 1.29 and 1.23 were measured (bekman-nvls),
where the bytes on the wire would allow 2 (n - 1)/(n + 1) = 1.56 for 8 cards."""


@dataclass(frozen=True, eq=False)
class Fabric:
    """Nested tiers, inside-out, as arrays with one entry per tier.

    ``sizes``: cards in one instance; each at least the one before, the last covers the pool. ``bandwidths``: B/s per
    card and direction, NaN where undisclosed. ``latencies``: seconds for one message. ``full_mesh``: the bandwidth is
    the sum over direct links to the cards outside the tier below, so that in an innermost tier one pair has
    ``bandwidth / (size - 1)``. ``in_network_reduction``: the switch adds.
    """

    sizes: npt.NDArray[np.float64]
    bandwidths: npt.NDArray[np.float64]
    latencies: npt.NDArray[np.float64]
    full_mesh: npt.NDArray[np.bool_]
    in_network_reduction: npt.NDArray[np.bool_]

    @property
    def tiers(self) -> int:
        """Return how many tiers there are."""
        return len(self.sizes)


@dataclass(frozen=True, eq=False)
class _Tier:
    """One tier as a group sees it: arrays of the group's shape."""

    inside: Any
    """Members inside one instance of this tier."""
    below: Any
    """Members inside one instance of the tier below."""
    ports: Any
    """Members inside the emptiest instance of the tier below: fewer than ``below`` where the group does not fill it."""
    branches: Any
    """Instances of the tier below that one instance of this tier joins."""
    bandwidth: Any
    latency: float
    full_mesh: bool
    reduces: bool

    @property
    def crossed(self) -> Any:
        return self.branches > 1

    @property
    def gain(self) -> Any:
        """Speed of an all-reduce among the branches over that of a ring: 1 without a switch that adds."""
        if not self.reduces:
            return 1.0
        return np.clip(2 * (self.branches - 1) / (self.branches + 1), 1.0, SWITCH_GAIN)

    @property
    def steps(self) -> Any:
        """Messages in a row that one phase takes: one on a full mesh or in a switch that adds, else of halving."""
        once = self.full_mesh or self.reduces
        return np.minimum(self.branches - 1, 1.0) if once else np.ceil(np.log2(self.branches) - 1e-12)


def reach(group: Array, stride: Array, fabric: Fabric) -> npt.NDArray[np.float64]:
    """Return how many members of a group one instance of each tier holds.

    Arguments: ``group`` cards; ``stride`` cards between neighbours; any shapes that broadcast.
    Returns: members, shape ``[tiers, ...]``, not decreasing from inside out; the last tier holds the whole group.
    Counts groups that start where an instance starts; omits groups that straddle instances.

    >>> fabric = Fabric(np.array([8.0, 64]), np.array([450e9, 50e9]), np.array([1e-6, 5e-6]), np.zeros(2, bool),
    ...                 np.zeros(2, bool))
    >>> reach(16, 2, fabric)
    array([ 4., 16.])

    Source: counted.
    """
    group, stride = np.broadcast_arrays(np.asarray(group, float), np.asarray(stride, float))
    held = [np.clip(np.floor(size / stride), 1, group) for size in fabric.sizes[:-1]]
    return np.maximum.accumulate(np.stack([*held, group]), axis=0)


def _tiers(group: Array, stride: Array, fabric: Fabric, efficiency: Array) -> list[_Tier]:
    members = reach(group, stride, fabric)
    below: Any = np.ones_like(members[0])
    size_below = 1.0
    seen = []
    for tier, inside in enumerate(members):
        bandwidth = fabric.bandwidths[tier] * efficiency
        if fabric.full_mesh[tier]:
            bandwidth = bandwidth * (inside - below) / max(fabric.sizes[tier] - size_below, 1.0)
        branches = ceil_ratio(inside, below)
        seen.append(
            _Tier(
                inside,
                below,
                members[-1] - (ceil_ratio(members[-1], below) - 1) * below,
                branches,
                bandwidth,
                float(fabric.latencies[tier]),
                bool(fabric.full_mesh[tier]),
                bool(fabric.in_network_reduction[tier]),
            )
        )
        below, size_below = inside, float(fabric.sizes[tier])
    return seen


def _sum(terms: list[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _on(tier: _Tier, seconds: Any) -> Any:
    """Keep the seconds where the group crosses the tier: an unused tier costs nothing even if it is undisclosed."""
    return np.where(tier.crossed, seconds, 0.0)


def _bottleneck(tiers: list[_Tier], *, in_switch: bool = False) -> Any:
    """Seconds per byte of a stream that passes every card when all cards of an instance share its way out."""
    slowest: Any = 0.0
    for tier in tiers:
        ways = tier.bandwidth * tier.ports * (tier.gain if in_switch else 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            slowest = np.maximum(slowest, _on(tier, 1.0 / ways))
    return slowest


def _ring_latency(tiers: list[_Tier], group: Any) -> Any:
    """Latencies on the ``group - 1`` hops of a chunk: per tier, the edges of the ring whose ends first meet in it."""
    return _sum([_on(tier, (group / tier.below - group / tier.inside) * tier.latency) for tier in tiers])


def _tree_latency(tiers: list[_Tier]) -> Any:
    return _sum([_on(tier, np.ceil(np.log2(tier.branches) - 1e-12) * tier.latency) for tier in tiers])


def _scatter_phase(tier: _Tier, payload: Any) -> Any:
    """Reduce-scatter or all-gather of what is left of the payload among the branches of one tier."""
    share = (1 - 1 / tier.branches) * payload / tier.ports
    with np.errstate(divide="ignore", invalid="ignore"):
        return _on(tier, share / tier.bandwidth + tier.steps * tier.latency)


def _reduce_phase(tier: _Tier, payload: Any) -> Any:
    """All-reduce of what is left of the payload among the branches of one tier."""
    share = 2 * (1 - 1 / tier.branches) * payload / tier.ports
    with np.errstate(divide="ignore", invalid="ignore"):
        return _on(tier, share / (tier.bandwidth * tier.gain) + 2 * tier.steps * tier.latency)


def all_reduce_time(
    bytes: Array,  # noqa: A002
    group: Array,
    stride: Array,
    fabric: Fabric,
    *,
    efficiency: Array = 1.0,
) -> Array:
    """Return the seconds of an all-reduce.

    Arguments: ``bytes`` in each card's buffer; ``group`` cards ``stride`` apart; ``efficiency`` share of the links'
    bandwidth that the library reaches; any shapes that broadcast.
    Returns: seconds, broadcast shape; 0 for a group of one; NaN where the group crosses an undisclosed tier.
    Counts, at best, ``2 (n - 1)/n`` times the buffer through every card, up to :data:`SWITCH_GAIN` times less where the
    switch reduces; omits the arithmetic. Agrees with bus bandwidth = link bandwidth on one tier (nccl-tests' measure).

    >>> fabric = Fabric(np.array([8.0]), np.array([450e9]), np.array([0.0]), np.zeros(1, bool), np.zeros(1, bool))
    >>> all_reduce_time(450e9, 8, 1, fabric)
    1.75

    Source: patarasuk2009, optimal ring; thakur2005, all-reduce (Rabenseifner); sanders2009, two-tree reduction
    and broadcast; nvidia-sharp; bekman-nvls (gain).
    """
    cite.use(RING, THAKUR, TREE, SWITCH, MEASURED_GAIN)
    tiers = _tiers(group, stride, fabric, efficiency)
    count = np.asarray(group, float)
    ring = 2 * ((1 - 1 / count) * bytes * _bottleneck(tiers) + _ring_latency(tiers, count))
    tree = 2 * (bytes * _bottleneck(tiers, in_switch=True) + _tree_latency(tiers))
    hierarchical = _sum([_reduce_phase(tier, bytes) for tier in tiers])
    return plain(np.minimum(np.minimum(ring, tree), hierarchical))


def _scatter_time(payload: Array, group: Array, stride: Array, fabric: Fabric, efficiency: Array) -> Array:
    tiers = _tiers(group, stride, fabric, efficiency)
    count = np.asarray(group, float)
    worst = _bottleneck(tiers)
    ring = (1 - 1 / count) * payload * worst + _ring_latency(tiers, count)
    tree = payload * worst + _tree_latency(tiers)
    return plain(np.minimum(np.minimum(ring, tree), _sum([_scatter_phase(tier, payload) for tier in tiers])))


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
    Counts, at best, ``(n - 1)/n`` of the full buffer through every card; omits the arithmetic. A switch that reduces
    spares messages but no bytes: every card still sends all but its own part.

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
    Counts, at best, ``(n - 1)/n`` of the full buffer through every card; omits nothing more than the module says.
    Agrees with :func:`reduce_scatter_time`, which is the same traffic backwards.

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
    Counts the bytes for the peers of each tier through the card's port at that tier, one tier after the other (exact
    where the tiers share a port, late where they do not), and one latency per tier, all messages being posted at once;
    omits uneven parts and the forwarding that would send a token once per node.

    >>> fabric = Fabric(np.array([8.0, 16]), np.array([400e9, 50e9]), np.array([0.0, 0.0]), np.zeros(2, bool),
    ...                 np.zeros(2, bool))
    >>> all_to_all_time(16e9, 16, 1, fabric)
    0.1775

    Source: thakur2005, all-to-all.
    """
    cite.use(THAKUR)
    count = np.asarray(group, float)
    terms = []
    for tier in _tiers(group, stride, fabric, efficiency):
        peers = tier.inside - tier.ports
        with np.errstate(divide="ignore", invalid="ignore"):
            terms.append(_on(tier, peers / count * bytes_per_card / tier.bandwidth + tier.latency))
    return plain(_sum(terms))


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
    Counts the buffer once through the slowest tier, never faster than the root's own port, and log2(n) latencies; omits
    the pipeline's filling. Agrees with half of the tree form of all-reduce.

    >>> fabric = Fabric(np.array([8.0]), np.array([450e9]), np.array([0.0]), np.zeros(1, bool), np.zeros(1, bool))
    >>> broadcast_time(450e9, 8, 1, fabric)
    1.0

    Source: sanders2009, two-tree broadcast.
    """
    cite.use(TREE)
    tiers = _tiers(group, stride, fabric, efficiency)
    return plain(bytes * _bottleneck(tiers) + _tree_latency(tiers))


def point_to_point_time(
    bytes: Array,  # noqa: A002
    distance: Array,
    fabric: Fabric,
    *,
    start: Array = 0,
    efficiency: Array = 1.0,
) -> Array:
    """Return the seconds of one message between two cards.

    Arguments: ``bytes`` sent; ``distance`` cards between sender and receiver; ``start`` position of the nearer one,
    which decides whether an instance's border lies between; ``efficiency`` of the link; any shapes that broadcast.
    Returns: seconds, broadcast shape; 0 for no distance; NaN where the tier that joins them is undisclosed.
    Counts one latency and the bytes through one port of the innermost tier that holds both; on a full mesh only the
    pair's own link carries them. Omits messages on the same port.

    >>> fabric = Fabric(np.array([8.0, 64]), np.array([420e9, 50e9]), np.array([0.0, 0.0]), np.array([True, False]),
    ...                 np.zeros(2, bool))
    >>> point_to_point_time(60e9, np.array([1, 8]), fabric)
    array([1. , 1.2])

    Source: thakur2005, cost model (alpha + n beta).
    """
    cite.use(THAKUR)
    first, last = np.asarray(start, float), np.add(start, distance, dtype=float)
    seconds = np.asarray(np.nan)
    size_below = np.append(1.0, fabric.sizes[:-1])
    for tier in reversed(range(fabric.tiers)):
        links = max(fabric.sizes[tier] - size_below[tier], 1.0) if fabric.full_mesh[tier] else 1.0
        here = bytes * links / (fabric.bandwidths[tier] * np.asarray(efficiency, float)) + fabric.latencies[tier]
        together = np.floor(first / fabric.sizes[tier]) == np.floor(last / fabric.sizes[tier])
        seconds = np.where(together | (tier == fabric.tiers - 1), here, seconds)
    return plain(np.where(np.equal(distance, 0), 0.0, seconds))
