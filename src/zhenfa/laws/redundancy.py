"""Spares and units that may be missing: how many to keep, and how often enough are up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain

BYTEROBUST: Final = cite.declare(
    "byterobust2025", "B. Wan et al. Robust LLM training infrastructure at ByteDance. SOSP 2025, arXiv:2509.16293."
)
KOFN: Final = cite.declare(
    "barlow1975", "R. E. Barlow, F. Proschan. Statistical theory of reliability and life testing. 1975: k-out-of-n."
)


MANY: Final = 1e6
"""Events beyond which a Poisson law is taken by Wilson and Hilferty's cube root (1931), right there within 1e-6."""

WIDE: Final = 1e4
"""Standard deviation beyond which a binomial law is taken as normal, right there within 1e-4."""


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _poisson_cdf(count: float, mean: float) -> float:
    """Return P(X <= count), summed outwards from the largest term so that no term underflows before it matters.

    Beyond :data:`MANY` events, where the terms that matter are thousands, by Wilson and Hilferty's cube root.
    """
    if mean == 0:
        return 1.0
    if min(count, mean) > MANY:
        scaled = math.cbrt(mean / (count + 1)) - 1 + 1 / (9 * (count + 1))
        return _normal_cdf(-3 * math.sqrt(count + 1) * scaled)
    if max(count, mean) > MANY:
        return 1.0 if count > mean else 0.0
    top = int(count)
    mode = min(top, int(mean))
    log_mode = mode * math.log(mean) - mean - math.lgamma(mode + 1)
    total, term = 1.0, 1.0
    for k in range(mode, 0, -1):
        term *= k / mean
        total += term
        if term < 1e-18 * total:
            break
    term = 1.0
    for k in range(mode + 1, top + 1):
        term *= mean / k
        total += term
        if term < 1e-18 * total:
            break
    return min(math.exp(log_mode) * total, 1.0)


def _binomial_cdf(count: float, trials: float, chance: float) -> float:
    """Return P(X <= count), summed outwards from the largest term; by the normal law where its spread passes
    :data:`WIDE`."""
    top, n = int(count), int(trials)
    if top >= n or chance <= 0:
        return 1.0
    if chance >= 1:
        return 0.0
    if n * chance * (1 - chance) > WIDE**2:
        return _normal_cdf((top + 0.5 - n * chance) / math.sqrt(n * chance * (1 - chance)))
    mode = min(top, int((n + 1) * chance))
    odds = chance / (1 - chance)
    log_mode = (
        math.lgamma(n + 1) - math.lgamma(mode + 1) - math.lgamma(n - mode + 1)
        + mode * math.log(chance) + (n - mode) * math.log1p(-chance)
    )  # fmt: skip
    total, term = 1.0, 1.0
    for k in range(mode, 0, -1):
        term *= k / ((n - k + 1) * odds)
        total += term
        if term < 1e-18 * total:
            break
    term = 1.0
    for k in range(mode + 1, top + 1):
        term *= (n - k + 1) * odds / k
        total += term
        if term < 1e-18 * total:
            break
    return min(math.exp(log_mode) * total, 1.0)


_poisson = np.vectorize(_poisson_cdf, otypes=[float])
_binomial = np.vectorize(_binomial_cdf, otypes=[float])


def _least(mean: float, spread: float, most: float, quantile: float, cdf: Callable[[int], float]) -> float:
    """Return the least k up to ``most`` with cdf(k) >= quantile, by doubling steps and halving."""
    low, step = -1, max(1, int(spread))
    high = int(min(most, max(mean, 0.0)))
    while high < most and cdf(high) < quantile:
        low, high, step = high, int(min(most, high + step)), 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cdf(middle) >= quantile else (middle, high)
    return float(high)


def poisson_quantile(mean: Array, quantile: Array) -> Array:
    """Return the least count that a Poisson number stays within, with a given probability.

    Arguments: ``mean`` events; ``quantile`` from 0 to 1, below 1; any shapes that broadcast.
    Returns: a whole number, broadcast shape.
    Counts independent events at a steady rate.

    >>> poisson_quantile(1280 * 6.5e-3, 0.99)
    16.0

    Source: Poisson distribution.
    """

    def one(mean: float, quantile: float) -> float:
        return _least(mean, math.sqrt(mean), math.inf, quantile, lambda k: _poisson_cdf(k, mean))

    return plain(np.vectorize(one, otypes=[float])(mean, quantile))


def binomial_quantile(trials: Array, chance: Array, quantile: Array) -> Array:
    """Return the least count that a binomial number stays within, with a given probability.

    Arguments: ``trials``; ``chance`` of each; ``quantile`` from 0 to 1; any shapes that broadcast.
    Returns: a whole number, broadcast shape.
    Counts independent trials of one chance.

    >>> binomial_quantile(1024, 1.2e-3, 0.99)
    4.0

    Source: binomial distribution.
    """

    def one(trials: float, chance: float, quantile: float) -> float:
        spread = math.sqrt(max(trials * chance * (1 - chance), 0.0))
        return _least(trials * chance, spread, trials, quantile, lambda k: _binomial_cdf(k, trials, chance))

    return plain(np.vectorize(one, otypes=[float])(trials, chance, quantile))


def standby_nodes(nodes: Array, rate: Array, refill: Array, *, quantile: Array = 0.99) -> Array:
    """Return how many standby nodes carry a job until replacements arrive.

    Arguments: ``nodes`` of the job; ``rate`` failures per node-second; ``refill`` seconds until a standby that was
    used has been replaced (the repair time); ``quantile`` of the time in which they suffice; any shapes that broadcast.
    Returns: nodes, broadcast shape: the least s with P(Poisson(N r t) <= s) at least the quantile.
    Counts independent failures of single nodes; omits a rack that fails whole and standby nodes that are broken too.

    >>> standby_nodes(12500, 3.79e-3 / 86400, 86400)
    64.0

    Source: byterobust2025, warm standby at the 99th percentile; Poisson refill.
    """
    cite.use(BYTEROBUST)
    return poisson_quantile(np.multiply(nodes, rate, dtype=float) * refill, quantile)


def standby_rate(nodes: Array, standbys: Array, *, quantile: Array = 0.99) -> Array:
    """Return the largest failure probability of a node in one refill window that some standby nodes still carry.

    Arguments: ``nodes``; ``standbys``; ``quantile`` of the windows in which they suffice; any shapes that broadcast.
    Returns: failures per node and window, broadcast shape: the r at which P(Poisson(N r) <= s) is the quantile. The
    standbys are called for from ``standby_rate(nodes, standbys - 1)`` on.
    Counts as :func:`standby_nodes`, which it inverts.

    >>> round(1000 * standby_rate(1024, 3), 2), round(1000 * standby_rate(1024, 4), 2)
    (0.8, 1.25)

    Source: byterobust2025, warm standby at the 99th percentile.
    """
    cite.use(BYTEROBUST)

    def one(nodes: float, standbys: float, quantile: float) -> float:
        if standbys < 0:
            return 0.0
        low, high = 0.0, standbys + 10.0
        while high - low > 1e-12 * high:
            mean = 0.5 * (low + high)
            low, high = (mean, high) if _poisson_cdf(standbys, mean) >= quantile else (low, mean)
        return low / nodes

    return plain(np.vectorize(one, otypes=[float])(nodes, standbys, quantile))


def usable_probability(units: Array, needed: Array, unavailability: Array) -> Array:
    """Return the probability that enough units of a supernode are up.

    Arguments: ``units`` (trays, nodes, cards) and how many of them are ``needed``; ``unavailability`` share of time
    in which one is down; any shapes that broadcast.
    Returns: a ratio, broadcast shape: ``sum over j <= n - k of C(n, j) u^j (1 - u)^(n - j)``.
    Counts independent units; omits what they share, such as switch trays, power shelves and the rack itself.

    >>> round(usable_probability(18, 16, 0.01), 6), round(usable_probability(18, 18, 0.01), 4)
    (0.999271, 0.8345)

    Source: barlow1975, k-out-of-n system.
    """
    cite.use(KOFN)
    spare = np.subtract(units, needed)
    found = _binomial(np.maximum(spare, 0), units, np.asarray(unavailability, float))
    return plain(np.where(spare < 0, 0.0, found))


def missing_units(units: Array, spares: Array, unavailability: Array) -> Array:
    """Return the mean number of units that are down beyond those that stand by.

    Arguments: ``units`` that are there, ``spares`` of them standing by; ``unavailability`` share of time in which one
    is down; any shapes that broadcast.
    Returns: units, broadcast shape: ``sum over j >= s of P(X > j)``, ``X`` binomial.
    Counts independent units, and that a spare one takes over at once; omits what the switch itself takes.

    >>> round(missing_units(10, 0, 0.01), 9)
    0.1
    >>> round(missing_units(10, 1, 0.01), 5)
    0.00438

    Source: barlow1975, the mean of a binomial tail.
    """
    cite.use(KOFN)
    return plain(_missing(units, spares, unavailability))


def lesser_share(first: Array, up: Array, other: Array, also_up: Array) -> Array:
    """Return the mean of the lesser of two shares that are up: of ``first`` units, and of ``other`` units.

    Arguments: ``first`` and ``other`` units of two sorts, ``up`` and ``also_up`` the share of time in which one of each
    is up; any shapes that broadcast.
    Returns: a ratio, broadcast shape: the integral of ``P(K/n > x) P(L/m > x)``, ``K`` and ``L`` binomial.
    Counts independent units of which every one of both sorts is needed for the whole.

    >>> round(lesser_share(1, 0.9, 1, 0.8), 9)
    0.72
    >>> round(lesser_share(1000, 0.9, 1, 1.0), 9)
    0.9

    Source: barlow1975; the mean of a variable between 0 and 1 is the integral of its tail.
    """
    cite.use(KOFN)
    return plain(_lesser(first, up, other, also_up))


def _tail(units: float, up: float) -> npt.NDArray[np.float64]:
    """Return P(X > k) for k from 0 to ``units``, ``X`` binomial."""
    k = np.arange(int(units) + 1.0)
    if up <= 0 or up >= 1:
        return np.where(k < units, float(up >= 1), 0.0)
    ways = np.concatenate([[0.0], np.cumsum(np.log((units - k[:-1]) / k[1:]))])
    chances = np.exp(ways + k * math.log(up) + (units - k) * math.log1p(-up))
    above: npt.NDArray[np.float64] = np.clip(np.cumsum(chances[::-1])[::-1] - chances, 0.0, 1.0)
    return above


def _missing_one(units: float, spares: float, unavailability: float) -> float:
    return float(np.sum(_tail(units, unavailability)[int(spares) :]))


def _lesser_one(first: float, up: float, other: float, also_up: float) -> float:
    marks = np.union1d(np.arange(first + 1) / first, np.arange(other + 1) / other)
    middle = (marks[1:] + marks[:-1]) / 2.0
    both = _tail(first, up)[(middle * first).astype(int)] * _tail(other, also_up)[(middle * other).astype(int)]
    return float(np.sum(np.diff(marks) * both))


_missing = np.vectorize(_missing_one, otypes=[float])
_lesser = np.vectorize(_lesser_one, otypes=[float])


def availability(mtbf: Array, repair: Array) -> Array:
    """Return the share of time in which a unit is up.

    Arguments: ``mtbf`` seconds of work between failures; ``repair`` mean seconds of repair; any shapes that broadcast.
    Returns: a ratio, broadcast shape: ``mu / (mu + t)``.
    Counts one unit in the long run, whatever the distributions; its complement is the unavailability.

    >>> round(availability(30 * 86400, 4 * 3600), 5)
    0.99448

    Source: barlow1975, limiting availability of an alternating renewal process.
    """
    cite.use(KOFN)
    return plain(np.true_divide(mtbf, np.add(mtbf, repair, dtype=float)))
