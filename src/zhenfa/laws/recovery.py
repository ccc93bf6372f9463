"""Where the time of a long job goes, and what else than a full restart can be done about a failure.

Terms as in :mod:`zhenfa.laws.reliability`: failures are exponential; ``interval`` is the period from the start of one
stretch of work to the start of the next; ``down`` lasts from a failure until reloading starts.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.account import closed
from zhenfa.laws.arrays import Array, plain
from zhenfa.laws.reliability import AUPY

FTHSDP: Final = cite.declare(
    "fthsdp2026", "Fault-tolerant hybrid-shared data parallelism at 100,000 cards. arXiv:2602.00277."
)
GOODPUT: Final = cite.declare(
    "goodput2025", "A. Wongpanich et al. Machine learning fleet efficiency: ML productivity goodput. arXiv:2502.06982."
)
MEGASCALE: Final = cite.declare(
    "megascale2024", "Z. Jiang et al. MegaScale: scaling LLM training to more than 10,000 GPUs. NSDI 2024."
)

SPREAD: Final = cite.declare(
    "sinha2022",
    "P. Sinha et al. Not all GPUs are created equal: characterizing variability in large-scale, accelerator-rich "
    "systems. SC 2022, arXiv:2208.11035.",
)


def time_account(
    interval: Array, *, mtbf: Array, checkpoint: Array, down: Array = 0.0, restart: Array = 0.0, lag: Array = 0.0
) -> dict[str, Array]:
    """Return where the wall-clock time of a long job goes, in shares that sum to 1.

    Arguments: all in seconds, as in :func:`zhenfa.laws.reliability.ettr`; any shapes that broadcast.
    Returns: shares by name: ``work`` that is kept, ``checkpoint``, ``rework`` (work and checkpoints that a failure
    undid), ``down``, ``restart`` (whole or broken off). With n = exp(T/mu) - 1 failures a period, each followed by
    exp((R + L)/mu) times down: down D n exp((R + L)/mu), restart mu n (exp(R/mu) - 1) exp(L/mu), rework mu n - T and,
    of what a checkpoint lagged behind, mu n (exp(L/mu) - 1).
    Counts all time exactly, and checks that it is conserved to 1e-9; omits failures while down. ``work`` is ``ettr``.

    >>> {name: round(share, 4) for name, share in
    ...  time_account(1800, mtbf=3 * 3600, checkpoint=20, down=180, restart=180).items()}
    {'work': 0.8791, 'checkpoint': 0.0099, 'rework': 0.0784, 'down': 0.0164, 'restart': 0.0163}

    Source: aupy2013, expected time of a period under exponential failures, term by term.
    """
    cite.use(AUPY)
    mean = np.asarray(mtbf, float)
    rate = 1.0 / mean
    risk, again, late = np.multiply(interval, rate), np.multiply(restart, rate), np.multiply(lag, rate)
    failures = np.expm1(risk)
    # mu (exp(x) - 1 - x), by its series where the difference would lose its digits
    excess = np.where(risk < 1e-4, risk * risk / 2 * (1 + risk / 3), failures - risk)
    with np.errstate(invalid="ignore"):
        rework = np.where(np.isinf(mean), 0.0, mean * (excess + failures * np.expm1(late)))
        reload = np.where(np.isinf(mean), 0.0, failures * mean * np.expm1(again) * np.exp(late))
    kept = np.minimum(checkpoint, interval)
    parts = {
        "work": np.subtract(interval, kept),
        "checkpoint": 1.0 * kept,
        "rework": rework,
        "down": down * failures * np.exp(again + late),
        "restart": reload,
    }
    with np.errstate(invalid="ignore"):
        growth = np.where(risk > 0, failures / np.where(risk > 0, risk, 1.0), 1.0)
    whole = np.asarray(interval, float) * growth * (1.0 + down * rate) * np.exp(again + late)
    return {name: plain(part / whole) for name, part in closed("time", parts, whole).items()}


def detection_loss(mtbf: Array, detection: Array) -> Array:
    """Return the share of time lost to not knowing that a job has stopped.

    Arguments: ``mtbf`` and ``detection`` seconds (a timeout, or the period of a probe); any shapes that broadcast.
    Returns: a ratio, broadcast shape: ``t / (mu + t)``.
    Counts detection alone: the clock of failures stands still until the job runs again; omits diagnosis and restart.

    >>> round(detection_loss(10384.6, 1836), 3)
    0.15

    Source: renewal of up time mu and down time t.
    """
    return plain(np.true_divide(detection, np.add(mtbf, detection, dtype=float)))


def linear_efficiency(mtbf: Array, lost: Array) -> Array:
    """Return the share of time kept when each failure costs a fixed time.

    Arguments: ``mtbf`` seconds between failures by the wall clock; ``lost`` seconds per failure, all in; any shapes
    that broadcast.
    Returns: a ratio, broadcast shape: ``1 - lost / mtbf``, never below 0.
    Counts one price per failure; omits checkpoints and failures during recovery.

    >>> round(linear_efficiency(15, 10.62), 3)
    0.292

    Source: counted. Agrees with per-step recovery of replicas (torchft) down to a failure every 15 s.
    """
    return plain(np.maximum(1.0 - np.true_divide(lost, mtbf), 0.0))


def elastic_ettr(
    *,
    mtbf: Array,
    stall: Array,
    degraded: Array,
    replicas: Array,
    interval: Array = np.inf,
    checkpoint: Array = 0.0,
    down: Array = 0.0,
    restart: Array = 0.0,
    full_restart: Array = 0.0,
) -> Array:
    """Return the effective training time ratio of a job that goes on without a replica that failed.

    Arguments: ``mtbf`` seconds between failures; ``stall`` seconds in which nobody works; ``degraded`` seconds until
    the replica is back; ``replicas`` that can leave alone; ``interval``, ``checkpoint``, ``down`` and ``restart``
    seconds; ``full_restart`` share of failures that stop everybody; any shapes that broadcast.
    Returns: a ratio, broadcast shape: ``1 - s/mu - g/(d mu) - q (T/2 + D + R)/mu - C/T``, never below 0.
    Counts each failure by itself; omits two at once and a step that waits for a replica to catch up.

    >>> round(elastic_ettr(mtbf=18, stall=3, degraded=7, replicas=12), 3)
    0.801

    Source: fthsdp2026, to first order.
    """
    cite.use(FTHSDP)
    whole = np.where(np.isinf(interval), 0.0, np.true_divide(interval, 2))
    lost = np.add(stall, np.true_divide(degraded, replicas))
    lost = lost + np.multiply(full_restart, whole + down + restart)
    return plain(np.maximum(1.0 - lost / mtbf - np.true_divide(checkpoint, interval), 0.0))


def elastic_account(
    *,
    mtbf: Array,
    stall: Array,
    degraded: Array,
    replicas: Array,
    interval: Array,
    checkpoint: Array = 0.0,
    down: Array = 0.0,
    restart: Array = 0.0,
    lag: Array = 0.0,
    full_restart: Array = 0.0,
) -> dict[str, Array]:
    """Return where the wall-clock time goes of a job that goes on without a replica that failed, in shares.

    Arguments: as in :func:`elastic_ettr`, ``interval`` finite; ``lag`` seconds until a checkpoint is safe in the store.
    Returns: shares by name that sum to 1: ``work``, ``checkpoint``, ``rework``, ``down`` (the stall, and what stops
    everybody), ``restart`` (reloading, and what the replica that is away would have done). ``work`` is
    ``elastic_ettr`` where nothing lags.
    Counts each failure by itself; losses of more than all time are cut to it, in proportion.

    >>> shares = elastic_account(mtbf=18, stall=3, degraded=7, replicas=12, interval=100)
    >>> {name: round(share, 3) for name, share in shares.items()}
    {'work': 0.801, 'checkpoint': 0.0, 'rework': 0.0, 'down': 0.167, 'restart': 0.032}

    Source: fthsdp2026, to first order.
    """
    cite.use(FTHSDP)
    rate = 1.0 / np.asarray(mtbf, float)
    lost = {
        "checkpoint": np.true_divide(checkpoint, interval),
        "rework": rate * np.multiply(full_restart, np.true_divide(interval, 2) + lag),
        "down": rate * np.add(stall, np.multiply(full_restart, down)),
        "restart": rate * np.add(np.true_divide(degraded, replicas), np.multiply(full_restart, restart)),
    }
    total = np.asarray(sum(lost.values()), float)
    cut = np.where(total > 1.0, 1.0 / np.maximum(total, 1.0), 1.0)
    parts = {"work": np.maximum(1.0 - total, 0.0), **{name: part * cut for name, part in lost.items()}}
    return {name: plain(part) for name, part in closed("time", parts, 1.0).items()}


def goodput(scheduling: Array, runtime: Array, program: Array) -> Array:
    """Return the share of a fleet's peak that becomes kept work.

    Arguments: ratios: ``scheduling`` share of time in which the job holds all its cards; ``runtime`` share of that
    which is progress (ETTR); ``program`` share of peak while it progresses (MFU); any shapes that broadcast.
    Returns: a ratio, broadcast shape: the product.
    Counts three losses that follow one another; each is a share of what the one before left.

    >>> round(goodput(0.95, 0.9, 0.4), 3)
    0.342

    Source: goodput2025, the decomposition.
    """
    cite.use(GOODPUT)
    return plain(1.0 * np.multiply(scheduling, runtime) * program)


def straggler_slowdown(nodes: Array, slow_share: Array, slow_by: Array) -> Array:
    """Return the expected time of a synchronous step over that without slow nodes.

    Arguments: ``nodes`` that step together; ``slow_share`` of all nodes that are slow; ``slow_by`` how much longer
    they take (0.1 is a tenth); any shapes that broadcast.
    Returns: a ratio of at least 1, broadcast shape: ``1 + x (1 - (1 - s)^N)``.
    Counts the longest of N independent draws; at N s of a few it is 1 + x. Holds for links as for nodes.

    >>> round(straggler_slowdown(1000, 0.005, 0.1), 4)
    1.0993

    Source: megascale2024: 0.5 % of machines slower by a tenth cost everybody; expected maximum counted here.
    """
    cite.use(MEGASCALE)
    none = np.power(1.0 - np.asarray(slow_share, float), nodes)
    return plain(1.0 + np.multiply(slow_by, 1.0 - none))


def slowest_card(cards: Array, spread: Array) -> Array:
    """Return the expected time of a synchronous step over that of a mean card, where cards of one kind differ.

    Arguments: ``cards`` that step together, at least 1; ``spread`` standard deviation of their step times over the
    mean; any shapes that broadcast.
    Returns: a ratio of at least 1, broadcast shape: ``1 + s z((n - 3/8)/(n + 1/4))`` with the normal quantile z.
    Counts the expected largest of n normal numbers (Blom's approximation, within 1 % from 2 cards on); omits cards that
    are broken, see :func:`straggler_slowdown`, and that cards of one rack are alike.

    >>> slowest_card(1, 0.03), round(slowest_card(16384, 0.03), 3)
    (1.0, 1.119)

    Source: sinha2022, cards of one kind differ by 8 % (at most 22 %) between the ends of the box plot's whiskers; Blom
    1958, expected order statistics.
    """
    cite.use(SPREAD)
    count = np.asarray(cards, float)
    return plain(1.0 + np.multiply(spread, _quantile((count - 0.375) / (count + 0.25))))


_quantile = np.vectorize(lambda share: max(NormalDist().inv_cdf(share), 0.0), otypes=[float])


def lost_card_seconds(
    *,
    domains: Array,
    rate: Array,
    cards: Array,
    repair: Array,
    gang: Array,
    detection: Array = 0.0,
    down: Array = 0.0,
    restart: Array = 0.0,
    interval: Array = 0.0,
) -> Array:
    """Return the card-seconds that failures of one kind of domain cost each second (its blast radius at work).

    Arguments: ``domains`` of the kind; ``rate`` failures per domain-second; ``cards`` in one domain; ``repair``
    seconds until its cards are back; ``gang`` cards that stop with it (a replica's where replicas leave alone);
    ``detection``, ``down``, ``restart`` and ``interval`` seconds; any shapes that broadcast.
    Returns: cards out of work on average, broadcast shape: ``n r (b t + G (t_d + D + R + T/2))``. Sum over the kinds.
    Counts what is broken and what waits for it; omits spares, which end the wait, and domains that fail together.

    >>> round(lost_card_seconds(domains=2048, rate=5.7e-4 / 86400, cards=8, repair=4 * 3600, gang=16384,
    ...                         detection=30, down=150, restart=180, interval=480), 1)
    134.4

    Source: counted.
    """
    stop = np.add(detection, down) + restart + np.true_divide(interval, 2)
    return plain(1.0 * np.multiply(domains, rate) * (np.multiply(cards, repair) + np.multiply(gang, stop)))
