"""Power and energy, from one card to the meter of the building."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.account import closed
from zhenfa.laws.arrays import Array, plain
from zhenfa.laws.recovery import time_account

RAPS: Final = cite.declare(
    "brewer2024",
    "W. Brewer et al. A digital twin framework for liquid-cooled supercomputers as demonstrated at exascale. "
    "SC 2024, arXiv:2410.05133.",
)
PUE: Final = cite.declare(
    "iso30134-2", "ISO/IEC 30134-2:2016. Data centres: key performance indicators: power usage effectiveness (PUE)."
)
MLENERGY: Final = cite.declare(
    "mlenergy2025",
    "J.-W. Chung et al. The ML.ENERGY benchmark: toward automated inference energy measurement and optimization. "
    "NeurIPS 2025, arXiv:2505.06371.",
)
HONG: Final = cite.declare("hong2010", "S. Hong, H. Kim. An integrated GPU power and performance model. ISCA 2010.")
DVFS: Final = cite.declare(
    "dvfs", "S. Kaxiras, M. Martonosi. Computer architecture techniques for power-efficiency. 2008, chapter 3."
)
GHG: Final = cite.declare(
    "ghgprotocol", "GHG Protocol. Scope 2 guidance: an amendment to the corporate standard. 2015."
)

WORKING: Final = frozenset({"work", "rework"})
"""Shares of the wall clock in which cards are busy."""


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


def curve_power(batch: Array, batches: Sequence[float], powers: Sequence[float]) -> Array:
    """Return the power of one card from a measured curve over the batch, in W.

    Arguments: ``batch`` sequences in flight, positive, any shape; ``batches`` ascending and ``powers`` W, the measured
    points.
    Returns: W, the shape of ``batch``: straight lines over log2(batch) through every point, level beyond both ends.
    Counts what was measured and nothing else: a third of real curves rise and fall again, so none is smoothed.

    >>> curve_power(32, [8, 32, 128], [443.0, 494.0, 572.0]), curve_power(16, [8, 32], [440.0, 500.0])
    (494.0, 470.0)

    Source: mlenergy2025, power against log2 of the batch; interpolation here.
    """
    cite.use(MLENERGY)
    return plain(np.interp(np.log2(np.asarray(batch, float)), np.log2(np.asarray(batches, float)), powers))


def activity_power(
    bytes_per_second: Array,
    flops: Array,
    *,
    static: Array,
    joules_per_byte: Array,
    joules_per_flop: Array,
    limit: Array = np.inf,
) -> Array:
    """Return the power of one card from what it moves and computes, in W.

    Arguments: ``bytes_per_second`` to and from device memory; ``flops`` FLOP/s; ``static`` W of a card that is awake
    with clocks up; ``joules_per_byte``; ``joules_per_flop``; ``limit`` W at which the card throttles; any shapes that
    broadcast.
    Returns: W, broadcast shape: ``min(static + e_b b + e_f f, limit)``.
    Counts memory traffic and arithmetic; omits temperature, links and clocks that fall as power rises.

    >>> activity_power(2e12, 2e14, static=180, joules_per_byte=1e-10, joules_per_flop=7e-13)
    520.0

    Source: hong2010, power as static power plus the rate of each kind of access.
    """
    cite.use(HONG)
    moved = np.multiply(joules_per_byte, bytes_per_second, dtype=float)
    return plain(np.minimum(static + moved + np.multiply(joules_per_flop, flops, dtype=float), limit))


def clock_power(clock: Array, *, static: Array, dynamic: Array, voltage_slope: Array = 0.5) -> Array:
    """Return the power of a busy card at a clock, in W.

    Arguments: ``clock`` as a share of the nominal one, positive; ``static`` W that does not depend on it; ``dynamic``
    W at the nominal clock; ``voltage_slope`` relative fall of the voltage per relative fall of the clock (0: fixed
    voltage, 1: voltage in proportion); any shapes that broadcast.
    Returns: W, broadcast shape: ``static + dynamic f V^2`` with ``V = 1 - slope (1 - f)``.
    Counts switching power; omits leakage that falls with voltage and temperature.

    >>> clock_power(0.8, static=150, dynamic=500)
    474.0

    Source: dvfs, switching power C V^2 f.
    """
    cite.use(DVFS)
    share = np.asarray(clock, float)
    voltage = 1.0 - np.multiply(voltage_slope, 1.0 - share)
    return plain(static + dynamic * share * voltage * voltage)


def clock_time(clock: Array, *, memory: Array, compute: Array) -> Array:
    """Return the time of work at a clock, in seconds.

    Arguments: ``clock`` as a share of the nominal one; ``memory`` seconds that wait for device memory or links;
    ``compute`` seconds of arithmetic at the nominal clock; any shapes that broadcast.
    Returns: seconds, broadcast shape: ``memory + compute / f``.
    Counts a core clock that leaves memory and links alone.

    >>> clock_time(0.8, memory=1.0, compute=1.0)
    2.25

    Source: dvfs, time of the part that the clock bounds.
    """
    cite.use(DVFS)
    return plain(np.add(memory, np.true_divide(compute, clock), dtype=float))


def capped_clock(cap: Array, *, static: Array, dynamic: Array, voltage_slope: Array = 0.5) -> Array:
    """Return the clock that a power cap leaves, as a share of the nominal one.

    Arguments: ``cap`` W; the rest as in :func:`clock_power`; any shapes that broadcast.
    Returns: a ratio from 0 to 1, broadcast shape: 1 where the cap does not bind, 0 where it is below static power.
    Counts a governor that holds average power exactly at the cap.

    >>> round(capped_clock(474, static=150, dynamic=500), 6), capped_clock(700, static=150, dynamic=500)
    (0.8, 1.0)

    Source: dvfs, inverse of the switching power.
    """
    cite.use(DVFS)
    low = np.zeros(np.broadcast(cap, static, dynamic, voltage_slope).shape)
    high = np.ones_like(low)
    for _ in range(52):
        middle = 0.5 * (low + high)
        over = clock_power(middle, static=static, dynamic=dynamic, voltage_slope=voltage_slope) > np.asarray(cap)
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    binds = clock_power(1.0, static=static, dynamic=dynamic, voltage_slope=voltage_slope) > np.asarray(cap)
    return plain(np.where(binds, low, 1.0))


def token_energy(power: Array, tokens_per_second: Array) -> Array:
    """Return the energy of one token, in J.

    Arguments: ``power`` W of all cards that serve or train; ``tokens_per_second`` of all of them together; any shapes
    that broadcast.
    Returns: J per token, broadcast shape.
    Counts whatever the power counts.

    >>> token_energy(1765, 470)
    3.7553...

    Source: mlenergy2025, steady-state energy per token.
    """
    cite.use(MLENERGY)
    return plain(np.true_divide(power, tokens_per_second))


def request_energy(prompt: Array, output: Array, *, prefill: Array, decode: Array) -> Array:
    """Return the energy of one request, in J.

    Arguments: ``prompt`` and ``output`` tokens; ``prefill`` and ``decode`` J per token; any shapes that broadcast.
    Returns: J, broadcast shape.
    Counts each phase at its own energy per token; omits waiting in the queue.

    >>> request_energy(1000, 200, prefill=0.05, decode=1.0)
    250.0

    Source: counted.
    """
    return plain(1.0 * np.multiply(prompt, prefill) + np.multiply(output, decode, dtype=float))


def spent_energy(
    work: Array, shares: Mapping[str, Array], *, cards: Array, busy: Array, waiting: Array, pue: Array = 1.0
) -> dict[str, Array]:
    """Return where the energy of a run goes whose wall-clock time is divided as ``shares`` say, in J by name.

    Arguments: ``work`` seconds of steps that the run needs; ``shares`` of the wall clock by name, summing to 1, with
    ``work`` and ``rework`` among them; ``cards``; ``busy`` W of one at work (with its share of the host); ``waiting``
    W in every other share; ``pue``; any shapes that broadcast.
    Returns: J under the names of the shares, and ``facility`` for cooling and conversion.
    Counts lost work at full power. Conserved to 1e-9, checked.

    >>> parts = spent_energy(90, {"work": 0.9, "rework": 0.05, "down": 0.05}, cards=1, busy=600, waiting=100, pue=1.1)
    >>> round(sum(parts.values()))
    63250

    Source: brewer2024, energy as power over time.
    """
    cite.use(RAPS)
    wall = np.true_divide(work, shares["work"])
    parts: dict[str, Array] = {
        name: cards * (busy if name in WORKING else waiting) * wall * share for name, share in shares.items()
    }
    working = np.add(shares["work"], shares["rework"])
    it_energy = 1.0 * cards * wall * (np.asarray(waiting, float) + np.subtract(busy, waiting) * working)
    parts["facility"] = it_energy * np.subtract(pue, 1.0)
    return {name: plain(part) for name, part in closed("energy", parts, it_energy * pue).items()}


def energy_account(
    work: Array,
    *,
    cards: Array,
    busy: Array,
    waiting: Array,
    interval: Array,
    mtbf: Array,
    checkpoint: Array,
    down: Array = 0.0,
    restart: Array = 0.0,
    lag: Array = 0.0,
    pue: Array = 1.0,
) -> dict[str, Array]:
    """Return where the energy of a run goes, lost work included, in J by name.

    Arguments: ``work`` seconds of steps that the run needs; ``cards``; ``busy`` W of one at work (with its share of
    the host); ``waiting`` W while it checkpoints, is down or reloads; ``pue``; the rest seconds, as in
    :func:`zhenfa.laws.recovery.time_account`; any shapes that broadcast.
    Returns: J: ``work`` that is kept, ``checkpoint``, ``rework``, ``down``, ``restart``, and ``facility`` for cooling
    and conversion. The sum is what the meter shows; ``work * pue`` what it would without failures.
    Counts lost work at full power: the reliability policy changes the energy bill. Conserved to 1e-9, checked.

    >>> parts = energy_account(86400, cards=1024, busy=600, waiting=150, interval=1800, mtbf=36000, checkpoint=20,
    ...                        down=180, restart=180, pue=1.1)
    >>> round(sum(parts.values()) / parts["work"], 4)
    1.1342

    Source: brewer2024, energy as power over time; time split as in aupy2013.
    """
    shares = time_account(interval, mtbf=mtbf, checkpoint=checkpoint, down=down, restart=restart, lag=lag)
    return spent_energy(work, shares, cards=cards, busy=busy, waiting=waiting, pue=pue)


def carbon(energy: Array, factor: Array) -> Array:
    """Return the carbon dioxide of some energy, in kg.

    Arguments: ``energy`` J at the meter; ``factor`` kg per J of the grid it came from (kg/kWh over 3.6e6), of a
    region, or one for each hour; any shapes that broadcast.
    Returns: kg, broadcast shape; over a day, sum the product hour by hour, for the mean factor holds only for a steady
    load.
    Counts the grid's average; omits what the machine cost to make.

    >>> round(carbon(7232e6 * 3600, 0.5306 / 3.6e6) / 1000)  # t
    3837

    Source: ghgprotocol, scope 2, location-based.
    """
    cite.use(GHG)
    return plain(1.0 * np.multiply(energy, factor))
