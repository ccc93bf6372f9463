"""A fabric of nested tiers as a group of cards sees it: members, ports, seconds per byte, latencies.

A group is ``group`` cards that sit ``stride`` apart, its first card at the start of an instance of every tier. What the
wires and the library make of a transfer is few numbers per tier (achievable bytes/s, seconds for a step, seconds that
filling the pipeline costs a long transfer) and few per card (seconds to start a kernel, bytes/s of its own copy).
:class:`Fabric` holds them; left out, they are those of ideal wires. The collectives are in :mod:`.communication`, the
exchange of tokens between experts in :mod:`.expert_exchange`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.laws.arrays import Array, ceil_ratio, plain

THAKUR: Final = cite.declare(
    "thakur2005",
    "R. Thakur, R. Rabenseifner, W. Gropp. Optimization of collective communication operations in MPICH. IJHPCA 2005.",
)

SWITCH_GAIN: Final = 1.25
"""How much faster than a ring the same ports reduce in the switch at most, where no fitted value is given."""

CHAIN: Final = 8
"""Members that a tree walks one after the other before it branches: the cards of a node, as NCCL's trees do."""

_SAME_LINK: Final = 0.02
"""Tiers whose bandwidths differ by less are one switched domain behind the same port."""


@dataclass(frozen=True, eq=False)
class Fabric:
    """Nested tiers, inside-out, as arrays with one entry per tier.

    ``sizes``: cards in one instance; each at least the one before, the last covers the pool. ``bandwidths``: B/s per
    card and direction that large transfers reach, NaN where undisclosed. ``latencies``: seconds for one step.
    ``full_mesh``: the bandwidth is the sum over direct links to the cards outside the tier below, so that in an
    innermost tier one pair has ``bandwidth / (size - 1)``. ``in_network_reduction``: the switch adds.

    What follows has the values of ideal wires unless given. ``fills``: seconds that a long transfer loses to filling
    the pipeline of chunks, and ``fill_bytes``: the bytes per card at which it loses half of them. ``start``: seconds
    before the first byte (kernel start, meeting of the cards). ``own_copy``: B/s at which a card copies its own part.
    ``switch_share``: share of the wire that reduction in the switch reaches; ``switch_gain``: its speed over a ring at
    most; ``switch_fill``: seconds that it loses to filling, for each doubling of the group. ``exchange``: share of the
    bandwidth that an all-to-all reaches. ``exits``: cards of an innermost switched domain through which the library's
    collectives leave it at most, however many have a port. ``peer_share``, ``peer_start``, ``peer_step``: share of the
    bandwidth, seconds to start and seconds for each peer of an all-reduce kernel that reads its peers' memory; without
    a start there is no such kernel. ``expert_share`` and ``expert_start``: share of the bandwidth and seconds to start
    of the exchange between experts, in two rows: kernels that forward, kernels of low latency; ``expert_peer``: seconds
    for each peer.
    """

    sizes: npt.NDArray[np.float64]
    bandwidths: npt.NDArray[np.float64]
    latencies: npt.NDArray[np.float64]
    full_mesh: npt.NDArray[np.bool_]
    in_network_reduction: npt.NDArray[np.bool_]
    fills: npt.NDArray[np.float64] | None = None
    fill_bytes: npt.NDArray[np.float64] | None = None
    start: float = 0.0
    own_copy: float = np.inf
    switch_share: float = 1.0
    switch_gain: float = SWITCH_GAIN
    switch_fill: float = 0.0
    exits: float = np.inf
    exchange: npt.NDArray[np.float64] | None = None
    peer_share: float = 1.0
    peer_start: float | None = None
    peer_step: float = 0.0
    expert_share: npt.NDArray[np.float64] | None = None
    expert_start: npt.NDArray[np.float64] | None = None
    expert_peer: npt.NDArray[np.float64] | None = None

    @property
    def tiers(self) -> int:
        """Return how many tiers there are."""
        return len(self.sizes)

    @cached_property
    def outermost(self) -> tuple[int, ...]:
        """Return for every tier the outermost tier behind the same port: same bandwidth, both switched or not."""
        last = self.tiers - 1
        found = [last] * self.tiers
        for tier in reversed(range(last)):
            here, above = self.bandwidths[tier], self.bandwidths[tier + 1]
            same = abs(here - above) <= _SAME_LINK * above and not (self.full_mesh[tier] or self.full_mesh[tier + 1])
            found[tier] = found[tier + 1] if same else tier
        return tuple(found)


@dataclass(frozen=True, eq=False)
class TierView:
    """One tier as a group sees it: arrays of the group's shape."""

    inside: Any
    """Members inside one instance of this tier."""
    below: Any
    """Members inside one instance of the tier below."""
    ports: Any
    """Members inside the emptiest instance of the tier below: fewer than ``below`` where the group does not fill it."""
    ways: Any
    """Members through which a collective leaves that instance: as many as have ports, or as the library uses."""
    branches: Any
    """Instances of the tier below that one instance of this tier joins."""
    bandwidth: Any
    latency: float
    full_mesh: bool
    gain: Any
    """Speed of an all-reduce in the switch over that of a ring: 1 without a switch that adds."""
    fill: float
    fill_bytes: float
    domain: int
    """The outermost tier behind the same port."""

    @property
    def crossed(self) -> Any:
        """Return whether the group crosses this tier."""
        return self.branches > 1

    @property
    def steps(self) -> Any:
        """Return the messages in a row of one phase: one on a full mesh, else a chain of cards, then halving."""
        if self.full_mesh:
            return np.minimum(self.branches - 1, 1.0)
        chain = np.minimum(self.branches, CHAIN)
        return chain - 1 + np.ceil(np.log2(self.branches / chain) - 1e-12)


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


def _gain(fabric: Fabric, members: Any) -> Any:
    """Bytes that a ring sends over those that a card sends when the switch adds, as far as hardware reaches it."""
    return np.clip(fabric.switch_share * 2 * (members - 1) / (members + 1), 1.0, fabric.switch_gain)


def views(group: Array, stride: Array, fabric: Fabric, efficiency: Array = 1.0) -> list[TierView]:
    """Return every tier as a group sees it, inside-out.

    Arguments: ``group`` cards ``stride`` apart; ``efficiency`` share of the fabric's bandwidths; shapes that broadcast.
    Returns: one view per tier.
    Counts ports of the emptiest instance, links of a mesh that the group uses, the switched domain that tiers with the
    same port form. Omits groups that straddle instances.

    >>> fabric = Fabric(np.array([8.0, 64]), np.array([450e9, 50e9]), np.array([1e-6, 5e-6]), np.zeros(2, bool),
    ...                 np.zeros(2, bool))
    >>> [float(view.branches) for view in views(16, 1, fabric)]
    [8.0, 2.0]

    Source: counted.
    """
    members = reach(group, stride, fabric)
    below: Any = np.ones_like(members[0])
    limited = np.isfinite(fabric.exits)
    size_below, base, seen = 1.0, below, []
    for tier, inside in enumerate(members):
        if tier and fabric.outermost[tier - 1] != fabric.outermost[tier]:
            base = below
        bandwidth = fabric.bandwidths[tier] * efficiency
        if fabric.full_mesh[tier]:
            bandwidth = bandwidth * (inside - below) / max(fabric.sizes[tier] - size_below, 1.0)
        domain = fabric.outermost[tier]
        ports = members[-1] - (ceil_ratio(members[-1], below) - 1) * below
        seen.append(
            TierView(
                inside,
                below,
                ports,
                np.minimum(ports, fabric.exits) if limited and tier > fabric.outermost[0] else ports,
                ceil_ratio(inside, below),
                bandwidth,
                float(fabric.latencies[tier]),
                bool(fabric.full_mesh[tier]),
                _gain(fabric, members[domain] / base) if fabric.in_network_reduction[tier] else 1.0,
                0.0 if fabric.fills is None else float(fabric.fills[tier]),
                1.0 if fabric.fill_bytes is None else float(fabric.fill_bytes[tier]),
                domain,
            )
        )
        below, size_below = inside, float(fabric.sizes[tier])
    return seen


def added(terms: list[Any]) -> Any:
    """Return the sum of terms of any shapes.

    Arguments: ``terms``, one at least.
    Returns: their sum.

    >>> added([1.0, 2.0])
    3.0

    Source: counted.
    """
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def where_crossed(tier: TierView, seconds: Any) -> Any:
    """Keep the seconds where the group crosses the tier: an unused tier costs nothing even if it is undisclosed.

    Arguments: ``tier`` as the group sees it; ``seconds`` of any shape.
    Returns: the seconds, 0 where the group stays below.

    >>> nowhere = Fabric(np.array([8.0]), np.array([np.nan]), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool))
    >>> float(where_crossed(views(1, 1, nowhere)[0], np.nan))
    0.0

    Source: counted.
    """
    return np.where(tier.crossed, seconds, 0.0)


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
    Counts the kernel's start, one latency, the filling of the pipeline and the bytes through one port of the innermost
    tier that holds both; on a full mesh only the pair's own link carries them. Omits messages on the same port.

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
        if fabric.fills is not None and fabric.fill_bytes is not None:
            here = here + fabric.fills[tier] * np.true_divide(bytes, bytes + fabric.fill_bytes[tier])
        together = np.floor(first / fabric.sizes[tier]) == np.floor(last / fabric.sizes[tier])
        seconds = np.where(together | (tier == fabric.tiers - 1), here, seconds)
    return plain(np.where(np.equal(distance, 0), 0.0, seconds + fabric.start))
