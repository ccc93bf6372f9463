"""Power and energy, from one card to the meter of the building."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain

RAPS: Final = cite.declare(
    "brewer2024",
    "W. Brewer et al. A digital twin framework for liquid-cooled supercomputers as demonstrated at exascale. "
    "SC 2024, arXiv:2410.05133.",
)
PUE: Final = cite.declare(
    "iso30134-2", "ISO/IEC 30134-2:2016. Data centres: key performance indicators: power usage effectiveness (PUE)."
)


def card_power(utilisation: Array, *, idle: Array, maximum: Array, exponent: Array = 1.0) -> Array:
    """Return the power of one card, in W.

    Arguments: ``utilisation`` from 0 to 1; ``idle`` and ``maximum`` W; ``exponent`` of the curve between them; any
    shapes that broadcast.
    Returns: W, broadcast shape: ``idle + (maximum - idle) * utilisation ** exponent``.
    Counts the card; omits fans, hosts and power supplies, and the bends of real curves: 21 of 63 measured curves are
    not even monotone in the batch. ``maximum`` is a measured draw where there is one: a TDP over-states by a third.

    >>> card_power(0.5, idle=100, maximum=700)
    400.0

    Source: brewer2024, power model (linear in utilisation).
    """
    cite.use(RAPS)
    share = np.power(np.asarray(utilisation, float), exponent)
    return plain(idle + np.subtract(maximum, idle) * share)


def facility_power(it_power: Array, pue: Array) -> Array:
    """Return the power at the building's meter, in W.

    Arguments: ``it_power`` W of all equipment; ``pue`` at least 1; any shapes that broadcast.
    Returns: W, broadcast shape.
    Counts cooling and conversion through the one ratio; omits that the ratio changes with load and weather.

    >>> facility_power(13.76e6, 1.25)
    17200000.0

    Source: iso30134-2, definition of PUE.
    """
    cite.use(PUE)
    return plain(1.0 * np.multiply(it_power, pue))


def step_energy(cards: Array, power: Array, step_time: Array, *, pue: Array = 1.0, host_power: Array = 0.0) -> Array:
    """Return the energy of one step, in J.

    Arguments: ``cards``; mean ``power`` W of one; ``step_time`` seconds; ``pue``; ``host_power`` W of everything else,
    per card; any shapes that broadcast.
    Returns: J, broadcast shape.
    Counts a step that ends well; omits lost work (see :func:`energy_per_token`).

    >>> step_energy(8, 500, 2, pue=1.25)
    10000.0

    Source: iso30134-2, definition of PUE.
    """
    cite.use(PUE)
    return plain(1.0 * cards * np.add(power, host_power) * step_time * pue)


def energy_per_token(energy: Array, tokens: Array, *, ettr: Array = 1.0) -> Array:
    """Return the energy of one token that counts, in J.

    Arguments: ``energy`` J of one step; ``tokens`` of that step; ``ettr`` effective training time ratio; any shapes
    that broadcast.
    Returns: J per token, broadcast shape; infinite where ``ettr`` is 0.
    Counts lost work and waiting at the power of the step: what a failure undoes has been paid for; omits that cards
    draw less while they wait.

    >>> energy_per_token(10000, 4096, ettr=0.5)
    4.8828125

    Source: counted.
    """
    with np.errstate(divide="ignore"):
        return plain(np.true_divide(energy, np.multiply(tokens, ettr, dtype=float)))
