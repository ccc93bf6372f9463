"""How failures come: rates from counts, ageing, nodes that fail more than others, silent errors."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain

SCHROEDER: Final = cite.declare(
    "schroeder2006",
    "B. Schroeder, G. A. Gibson. A large-scale study of failures in high-performance computing systems. DSN 2006.",
)
FRAILTY: Final = cite.declare(
    "vaupel1979", "J. W. Vaupel, K. G. Manton, E. Stallard. The impact of heterogeneity in individual frailty. 1979."
)

CANN: Final = cite.declare("cann", "Huawei. CANN environment variables: HCCL_CONNECT_TIMEOUT, HCCL_EXEC_TIMEOUT.")

YEAR: Final = 365.25 * 86400.0

_gamma = np.vectorize(math.gamma, otypes=[float])


def failure_rate(failures: Array, units: Array, seconds: Array) -> Array:
    """Return a failure rate from a count, per unit-second.

    Arguments: ``failures`` counted on ``units`` (cards, nodes, jobs) over ``seconds``; any shapes that broadcast.
    Returns: failures per unit-second, broadcast shape.
    Counts a steady rate (maximum likelihood of a Poisson process); its relative standard error is 1/sqrt(failures).

    >>> round(failure_rate(419, 2048, 54 * 86400) * 86400 * 1000, 3)  # Llama 3, per 1,000 node-days
    3.789

    Source: Poisson process.
    """
    return plain(np.true_divide(failures, np.multiply(units, seconds, dtype=float)))


def combined_mtbf(*rates: Array) -> Array:
    """Return the mean time between failures of what any of several things stops, in seconds.

    Arguments: ``rates`` failures per second, one for each kind of part, already times how many there are; any shapes
    that broadcast.
    Returns: seconds, broadcast shape: ``1 / sum(rates)``; infinite when all are 0.
    Counts independent parts in series.

    >>> combined_mtbf(0.25, 0.25)
    2.0

    Source: series system of exponential parts.
    """
    total = sum((np.asarray(rate, float) for rate in rates), np.asarray(0.0))
    with np.errstate(divide="ignore"):
        return plain(np.true_divide(1.0, total))


def weibull_mean(scale: Array, shape: Array) -> Array:
    """Return the mean of a Weibull time, in the unit of ``scale``.

    Arguments: ``scale``; ``shape`` (below 1: failures become rarer with age); any shapes that broadcast.
    Returns: the unit of ``scale``, broadcast shape: ``scale * gamma(1 + 1/shape)``.
    Counts times between failures of one node; public clusters show shapes of 0.7 to 0.8.

    >>> weibull_mean(10.0, 1.0)
    10.0

    Source: schroeder2006, section 5.3 (Weibull fits of times between failures).
    """
    cite.use(SCHROEDER)
    return plain(np.multiply(scale, _gamma(1.0 + np.true_divide(1.0, shape))))


def weibull_hazard(age: Array, scale: Array, shape: Array) -> Array:
    """Return the failure rate at an age, per unit of ``scale``.

    Arguments: ``age`` and ``scale`` in one unit; ``shape``; any shapes that broadcast.
    Returns: failures per that unit, broadcast shape: ``(k/s) (t/s)^(k-1)``; falls with age when the shape is below 1,
    which is infant mortality.
    Counts one unit that has survived to that age.

    >>> round(weibull_hazard(4.0, 1.0, 0.5), 3)
    0.25

    Source: schroeder2006, section 5.3.
    """
    cite.use(SCHROEDER)
    relative = np.true_divide(age, scale)
    return plain(np.true_divide(shape, scale) * np.power(relative, np.subtract(shape, 1.0)))


def weibull_fit(times: npt.ArrayLike) -> tuple[float, float]:
    """Return the Weibull shape and scale most likely to have made some times.

    Arguments: ``times`` between failures, positive, in any unit; those that are 0 are left out.
    Returns: ``(shape, scale)``, the scale in the unit of the times.
    Counts every time once, with equal weight; omits the open gap after the last failure.

    >>> random = np.random.default_rng(1)
    >>> shape, scale = weibull_fit(10 * random.weibull(0.7, 100_000))
    >>> round(shape, 2), round(scale, 1)
    (0.7, 10.0)

    Source: schroeder2006 (maximum likelihood fits of times between failures).
    """
    cite.use(SCHROEDER)
    seen = np.asarray(times, float)
    logs = np.log(seen[seen > 0])
    mean, shape = float(logs.mean()), 1.0
    for _ in range(200):
        weights = np.exp(shape * (logs - logs.max()))
        better = 1.0 / (float((weights * logs).sum() / weights.sum()) - mean)
        if abs(better - shape) < 1e-12 * shape:
            break
        shape = 0.5 * (shape + better)
    scale = math.exp(logs.max()) * float(np.exp(shape * (logs - logs.max())).mean()) ** (1.0 / shape)
    return shape, scale


def frailty_variance(failures: npt.ArrayLike) -> float:
    """Return how unequal nodes are, from how often each of them failed in one time.

    Arguments: ``failures`` of every node, those that never failed included.
    Returns: the variance of the rate between nodes over the mean squared: ``(var - mean) / mean^2``, never below 0,
    which is what equal nodes show.
    Counts what chance alone does not explain.

    >>> round(frailty_variance([0, 0, 1, 0, 9, 1, 0, 1]), 2)
    3.0

    Source: vaupel1979, gamma frailty; moments of the negative binomial.
    """
    cite.use(FRAILTY)
    counts = np.asarray(failures, float)
    mean = float(counts.mean())
    return max(float((counts.var() - mean) / mean**2), 0.0) if mean > 0 else 0.0


def lognormal_mean(median: Array, spread: Array) -> Array:
    """Return the mean of a lognormal time, in the unit of ``median``.

    Arguments: ``median``; ``spread`` standard deviation of the logarithm; any shapes that broadcast.
    Returns: the unit of ``median``, broadcast shape: ``median * exp(spread^2 / 2)``.
    Counts repair and recovery times, whose mean is several times the median: a constant repair time is wrong.

    >>> round(lognormal_mean(222, 2.17), 0)  # a median of 3 min 42 s
    2338.0

    Source: schroeder2006, section 6 (lognormal repair times).
    """
    cite.use(SCHROEDER)
    return plain(np.multiply(median, np.exp(np.multiply(spread, spread) / 2.0)))


def frail_survival(seconds: Array, rate: Array, variance: Array) -> Array:
    """Return the probability that a node of unknown quality lives through some time.

    Arguments: ``seconds``; mean ``rate`` failures per node-second; ``variance`` of the rate between nodes, relative
    to the mean squared (gamma frailty; 0 is nodes alike); any shapes that broadcast.
    Returns: a ratio, broadcast shape: ``(1 + v r t)^(-1/v)``.
    Counts nodes that fail more than others: few bad nodes cause many failures, and taking them out pays.

    >>> round(frail_survival(1.0, 1.0, 0.0), 4), round(frail_survival(1.0, 1.0, 2.0), 4)
    (0.3679, 0.5774)

    Source: vaupel1979, gamma frailty.
    """
    cite.use(FRAILTY)
    load = np.multiply(rate, seconds, dtype=float)
    spread = np.asarray(variance, float)
    safe = np.where(spread > 0, spread, 1.0)
    return plain(np.where(spread > 0, np.exp(-np.log1p(safe * load) / safe), np.exp(-load)))


def unit_years_per_failure(failures: Array, units: Array, seconds: Array) -> Array:
    """Return the unit-years of work between failures, as field studies print them.

    Arguments: as in :func:`failure_rate`.
    Returns: years of 365.25 days, broadcast shape.
    Counts as :func:`failure_rate`.

    >>> round(unit_years_per_failure(6, 16384, 54 * 86400), 1)  # silent data corruption, Llama 3
    403.7

    Source: Poisson process.
    """
    return plain(np.multiply(units, seconds, dtype=float) / failures / YEAR)


def silent_error_loss(cards: Array, rate: Array, found_after: Array, *, rollback: Array = 0.0) -> Array:
    """Return the share of a job's time that silent data corruption undoes.

    Arguments: ``cards``; ``rate`` silent errors per card-second; ``found_after`` seconds until one is noticed;
    ``rollback`` seconds to reload from before it; any shapes that broadcast.
    Returns: a ratio of at most 1, broadcast shape: ``n r (t + R)``.
    Counts all work between error and discovery as lost, one error at a time; omits errors that change nothing.

    >>> round(silent_error_loss(16384, 6 / (16384 * 54 * 86400.0), 3600, rollback=600), 5)
    0.0054

    Source: counted.
    """
    lost = np.multiply(cards, rate, dtype=float) * np.add(found_after, rollback)
    return plain(np.minimum(lost, 1.0))


def restart_time(cards: Array, *, base: Array, per_card: Array, exponent: Array = 1.0) -> Array:
    """Return the time to restart a job, in seconds.

    Arguments: ``cards``; ``base`` seconds whatever the size; ``per_card`` seconds for each; ``exponent`` of the growth;
    any shapes that broadcast.
    Returns: seconds, broadcast shape: ``base + c n^p``.
    Counts what grows with the ranks: rendezvous, communicators, metadata; omits reading the checkpoint from a store
    that is too slow for the job.

    >>> round(restart_time(98304, base=77, per_card=0.0083))
    893

    Source: fthsdp2026, figure 2: cold recovery grows about linearly from 16,384 to 98,304 cards.
    """
    return plain(base + np.multiply(per_card, np.power(np.asarray(cards, float), exponent)))


def effective_timeout(value: Array, *, quantum: Array = 0.0, added: Array = 0.0) -> Array:
    """Return when a timeout really strikes, in seconds.

    Arguments: ``value`` seconds that was set; ``quantum`` to which the library rounds down (0: it does not);
    ``added`` seconds on top; any shapes that broadcast.
    Returns: seconds, broadcast shape.
    Counts what two collective libraries do to the number they are given; where 0 means for ever, infinity is passed.

    >>> effective_timeout(600, quantum=68), effective_timeout(150, added=20)
    (544.0, 170.0)

    Source: cann, environment variables of the collective library.
    """
    cite.use(CANN)
    step = np.asarray(quantum, float)
    safe = np.where(step > 0, step, 1.0)
    with np.errstate(invalid="ignore"):
        down = np.where(np.isinf(value), value, np.floor(np.true_divide(value, safe)) * safe)
    return plain(np.where(step > 0, down, value) + added)
