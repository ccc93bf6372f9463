"""State and activations kept in host memory: what moving them and updating there costs."""

from __future__ import annotations

from typing import Final

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.traits import Traits
from zhenfa.estimate.wires import PCIE_BYTES_PER_S
from zhenfa.laws.arrays import Array
from zhenfa.laws.overlap import exposed_time

HOST_LINK_SHARE: Final = 0.8
"""Share of the host link's rate that large copies from pinned memory reach. Assumed: 50 to 55 of 63 GB/s on PCIe 5."""

HOST_MEMORY_BYTES_PER_S: Final = 14e9
"""Host memory bandwidth that AdamW on the host reaches for each card. Assumed, the middle of: 40e9 (twelve DDR5-4800
channels on each of two sockets, 70 % reached, over eight cards, half of it left by the links; arXiv:2101.06840 found
about that, table 4), 13e9 in long-context runs on eight cards, and 1e9 where a process has one thread."""

UPDATE_BYTES: Final = 28.0
"""Bytes that AdamW on the host reads and writes per parameter: gradient and three states read, states written."""


def link(traits: Traits) -> float:
    """Return the bytes per second between a card and its host."""
    return traits.host_bytes_per_s or PCIE_BYTES_PER_S * HOST_LINK_SHARE


def update(elements: Array, traits: Traits) -> Array:
    """Return the seconds to update ``elements`` weights in host memory: gradients down, AdamW, weights up.

    The copies run beside the update, piece by piece, so that the slowest of the three sets the pace.
    """
    slowest = max(UPDATE_BYTES / HOST_MEMORY_BYTES_PER_S, max(traits.gradient_bytes, 2.0) / link(traits))
    return elements * slowest


def activations(
    setting: Setting, held: Array, moved: Array, forward: Array, backward: Array
) -> tuple[tuple[Array, Array], Array]:
    """Return the seconds that moving ``moved`` of a micro-batch's ``held`` bytes adds to both passes, and the bytes
    that stay."""
    seconds = moved / link(setting.traits)
    return (exposed_time(seconds, forward), exposed_time(seconds, backward)), held - moved
