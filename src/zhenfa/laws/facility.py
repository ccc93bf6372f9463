"""From the cards to the building: conversion, cooling, water, and how fast power may move."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain
from zhenfa.laws.energy import PUE, RAPS

TUE: Final = cite.declare(
    "patterson2013", "M. K. Patterson et al. TUE, a new energy-efficiency metric applied at ORNL's Jaguar. ISC 2013."
)
COOLING: Final = cite.declare(
    "ashrae2021", "ASHRAE TC 9.9. Thermal guidelines for data processing environments. 5th edition, 2021."
)
SWINGS: Final = cite.declare(
    "choukse2025", "E. Choukse et al. Power stabilization for AI training datacenters. arXiv:2508.14318."
)

WATER_DENSITY: Final = 998.0
"""kg per cubic metre, at 20 degrees."""

WATER_HEAT: Final = 4186.0
"""J per kg and kelvin."""

ZERO_CELSIUS: Final = 273.15


def conversion_input(output: Array, *, loss: Array, efficiency: Array) -> Array:
    """Return the power that a converter draws, in W.

    Arguments: ``output`` W; ``loss`` W that it takes idle; ``efficiency`` from 0 to 1; any shapes that broadcast.
    Returns: W, broadcast shape: ``(P + a) / eta``.
    Counts one rectifier or DC-DC stage; chain them outwards, the card's first.

    >>> round(conversion_input(626.26, loss=13, efficiency=0.98), 1)
    652.3

    Source: brewer2024, conversion losses (node DC-DC 13 W and 0.98, rectifier 17 W and 0.96).
    """
    cite.use(RAPS)
    return plain(np.true_divide(np.add(output, loss, dtype=float), efficiency))


def pue_at_load(load: Array, *, fixed: Array, proportional: Array) -> Array:
    """Return the PUE of a building at part load.

    Arguments: ``load`` equipment power as a share of the design's, above 0; ``fixed`` overhead that runs whatever the
    load, as a share of the design load; ``proportional`` overhead per unit of load; any shapes that broadcast.
    Returns: a ratio of at least 1, broadcast shape: ``1 + f/u + p``.
    Counts fans, pumps and transformers that do not turn down: an empty building has a bad PUE.

    >>> round(pue_at_load(0.5, fixed=0.05, proportional=0.1), 2)
    1.2

    Source: iso30134-2, definition; fixed and proportional overhead.
    """
    cite.use(PUE)
    return plain(1.0 + np.true_divide(fixed, load) + proportional)


def chiller_share(
    wet_bulb: Array, *, supply: Array, rise: Array = 10.0, approach: Array = 6.0, carnot: Array = 0.5
) -> Array:
    """Return the power of the chillers per unit of heat, at a wet-bulb temperature.

    Arguments: ``wet_bulb`` and ``supply`` (coolant to the racks) degrees Celsius; ``rise`` K of the coolant;
    ``approach`` K of the tower and exchanger over wet-bulb; ``carnot`` share of the ideal coefficient of performance;
    any shapes that broadcast.
    Returns: a ratio, broadcast shape; 0 while the tower alone cools. The tower takes the part of the rise that lies
    above ``wet_bulb + approach``; the chiller lifts the rest.
    Counts chillers; omits fans and pumps (the fixed and proportional parts of :func:`pue_at_load`). Add the two.

    >>> chiller_share(10, supply=25), round(chiller_share(28, supply=18), 3)
    (0.0, 0.11)

    Source: ashrae2021 (water-side economiser); Carnot's bound on the coefficient of performance.
    """
    cite.use(COOLING)
    tower = np.add(wet_bulb, approach, dtype=float)
    short = np.maximum(tower - supply, 0.0)
    part = np.clip(short / rise, 0.0, 1.0)
    return plain(part * short / (carnot * np.add(supply, ZERO_CELSIUS)))


def tue(itue: Array, pue: Array) -> Array:
    """Return the total-power usage effectiveness: power at the meter over power in the chips.

    Arguments: ``itue`` power of the equipment over that of its computing parts; ``pue``; any shapes that broadcast.
    Returns: a ratio of at least 1, broadcast shape: the product.
    Counts fans and supplies inside the rack too, which PUE books as equipment: liquid racks lower TUE, not PUE alone.

    >>> round(tue(1.16, 1.04), 4)
    1.2064

    Source: patterson2013, the definition.
    """
    cite.use(TUE)
    return plain(1.0 * np.multiply(itue, pue))


def water_flow(heat: Array, rise: Array) -> Array:
    """Return the flow of water that carries some heat away, in litres per minute.

    Arguments: ``heat`` W; ``rise`` K from inlet to outlet; any shapes that broadcast.
    Returns: l/min, broadcast shape: ``60000 P / (rho c dT)``, 14.36 per kW at 1 K.
    Counts water at 20 degrees; glycol mixtures need about a tenth more.

    >>> round(water_flow(860e3, 10))
    1235

    Source: heat balance.
    """
    litres = 1000.0 * 60.0 / (WATER_DENSITY * WATER_HEAT)
    return plain(litres * np.true_divide(heat, rise))


def ramp_limited(power: npt.NDArray[Any], *, step: float, rise: float, fall: float) -> npt.NDArray[np.float64]:
    """Return what the grid sees of a power series behind storage or ballast that limits its ramps, in W.

    Arguments: ``power`` W at equal ``step`` seconds, time last; ``rise`` and ``fall`` W per second.
    Returns: W, same shape: each value moves towards the asked one by at most the ramp.
    Counts a buffer large enough to give or take the difference, whose size is the largest sum of it; omits its losses.

    >>> [float(x) for x in ramp_limited(np.array([0.0, 10.0, 10.0, 0.0]), step=1, rise=4, fall=5)]
    [0.0, 4.0, 8.0, 3.0]

    Source: choukse2025, ramp-up and ramp-down limits.
    """
    cite.use(SWINGS)
    asked = np.asarray(power, float)
    seen = asked.copy()
    for at in range(1, asked.shape[-1]):
        last = seen[..., at - 1]
        seen[..., at] = np.clip(asked[..., at], last - fall * step, last + rise * step)
    return seen


def dynamic_range(power: npt.NDArray[Any]) -> Array:
    """Return the swing of a power series over its peak.

    Arguments: ``power`` W, time last.
    Returns: a ratio, without the time axis: ``(max - min) / max``.
    Counts the extremes: an all-reduce on 100,000 cards swings tens of MW.

    >>> dynamic_range(np.array([300.0, 700.0, 350.0]))
    0.571...

    Source: choukse2025, dynamic power range.
    """
    cite.use(SWINGS)
    series = np.asarray(power, float)
    top = series.max(axis=-1)
    return plain((top - series.min(axis=-1)) / top)


def swing_share(power: npt.NDArray[Any], *, step: float, low: float = 0.1, high: float = 20.0) -> Array:
    """Return the share of a power series' variance inside a band of frequencies.

    Arguments: ``power`` W at equal ``step`` seconds, time last; ``low`` and ``high`` Hz: 0.1 to 20 is where grids and
    generators resonate.
    Returns: a ratio, without the time axis; 0 for a constant series. Training swings once a step, at 0.2 to 3 Hz.
    Counts the band's part of the spectrum without its mean.

    >>> wave = 500 + 100 * np.sin(2 * np.pi * 1.0 * np.arange(0, 100, 0.01))
    >>> round(swing_share(wave, step=0.01), 3)
    1.0

    Source: choukse2025, spectral energy in the critical band.
    """
    cite.use(SWINGS)
    series = np.asarray(power, float)
    spectrum = np.abs(np.fft.rfft(series - series.mean(axis=-1, keepdims=True), axis=-1)) ** 2
    hertz = np.fft.rfftfreq(series.shape[-1], step)
    whole = spectrum[..., 1:].sum(axis=-1)
    part = spectrum[..., (hertz >= low) & (hertz <= high) & (hertz > 0)].sum(axis=-1)
    return plain(np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0))


def buffer_energy(power: npt.NDArray[Any], seen: npt.NDArray[Any], *, step: float) -> Array:
    """Return the storage that lets the grid see one power series while the cards draw another, in J.

    Arguments: ``power`` W drawn and ``seen`` W by the grid at equal ``step`` seconds, time last.
    Returns: J, without the time axis: the range of the running sum of the difference.
    Counts lossless storage.

    >>> buffer_energy(np.array([0.0, 10.0, 10.0, 0.0]), np.array([0.0, 4.0, 8.0, 3.0]), step=1.0)
    8.0

    Source: choukse2025, energy storage for smoothing.
    """
    cite.use(SWINGS)
    charge = np.cumsum(np.subtract(seen, power, dtype=float), axis=-1) * step
    start = np.zeros((*charge.shape[:-1], 1))
    both = np.concatenate([start, charge], axis=-1)
    return plain(both.max(axis=-1) - both.min(axis=-1))
