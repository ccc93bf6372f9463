"""Failures, checkpoints and the share of time that is useful work.

Failures are exponential. ``interval`` is everywhere the period T from the start of one stretch of work to the start of
the next: useful work followed by a blocking checkpoint of ``checkpoint`` seconds. ``down`` is the time from a failure
until reloading starts; ``restart`` is reloading, in which failures can strike again. ``lag`` is the time from a
checkpoint until it is safe in the store: what was done meanwhile is done again after a failure.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain

AUPY: Final = cite.declare(
    "aupy2013",
    "G. Aupy, Y. Robert, F. Vivien, D. Zaidouni. Checkpointing algorithms and fault prediction. JPDC 2014, "
    "arXiv:1302.3752; see also T. Herault, Y. Robert (eds.), Fault-Tolerance Techniques for HPC, Springer 2015.",
)
YOUNG: Final = cite.declare(
    "young1974", "J. W. Young. A first order approximation to the optimum checkpoint interval. CACM 1974."
)
DALY: Final = cite.declare(
    "daly2006",
    "J. T. Daly. A higher order estimate of the optimum checkpoint interval for restart dumps. FGCS 2006.",
)
KOKOLIS: Final = cite.declare(
    "kokolis2024",
    "A. Kokolis et al. Revisiting reliability in large-scale machine learning research clusters. arXiv:2410.21680.",
)
LLAMA: Final = cite.declare(
    "llama3", "Llama Team. The Llama 3 herd of models. arXiv:2407.21783, table 5: 419 unexpected interruptions."
)

DAY: Final = 86400.0
_CARD_SECONDS: Final = 16384 * 54 * DAY
_NODE_SECONDS: Final = 2048 * 54 * DAY

CARD_RATE: Final = 268 / _CARD_SECONDS
"""Failures per card-second, 3.03e-4 a day: GPU 148, HBM 72, SRAM 19, processor 17, silent errors 6, thermal 6."""

HOST_RATE: Final = 21 / _NODE_SECONDS
"""Failures per node-second, 1.90e-4 a day: NIC 7, SSD 3, supply 3, chassis 2, board 2, CPU 2, DRAM 2."""

NETWORK_RATE: Final = 35 / _NODE_SECONDS
"""Switch and cable failures per node-second, 3.16e-4 a day."""

MAINTENANCE_RATE: Final = 32 / _NODE_SECONDS
"""Unplanned host maintenance per node-second, 2.89e-4 a day."""

SOFTWARE_RATE: Final = 56 / (54 * DAY)
"""Software bugs 54 and dependencies 2 per job-second, 1.04 a day. Left out: 7 watchdog timeouts of unknown cause."""


def job_mtbf(
    cards: Array,
    nodes: Array,
    *,
    card_rate: Array = CARD_RATE,
    host_rate: Array = HOST_RATE,
    network_rate: Array = NETWORK_RATE,
    maintenance_rate: Array = MAINTENANCE_RATE,
    software_rate: Array = SOFTWARE_RATE,
) -> Array:
    """Return the mean time between failures of a job that any failure stops, in seconds.

    Arguments: ``cards`` and ``nodes`` of the job; ``card_rate`` per card-second; ``host_rate``, ``network_rate`` and
    ``maintenance_rate`` per node-second; ``software_rate`` per job-second; any shapes that broadcast. The defaults are
    those of H100 nodes of 8 with InfiniBand-class networks; no public rate exists for the tanks, power shelves and
    optical domains of supernodes.
    Returns: seconds, broadcast shape; infinite when every rate is 0.
    Counts independent failures in series; omits nodes that fail more than others and failures of many nodes at once.

    >>> job_mtbf(16384, 2048) / 3600  # hours
    3.1456...

    Source: llama3, table 5 (rates); series system, 1/sum of rates.
    """
    cite.use(LLAMA)
    of_nodes = np.add(np.add(host_rate, network_rate), maintenance_rate)
    rate = np.multiply(cards, card_rate) + np.multiply(nodes, of_nodes) + software_rate
    with np.errstate(divide="ignore"):
        return plain(np.true_divide(1.0, rate))


def node_mtbf(nodes: Array, rate_per_thousand_node_days: Array) -> Array:
    """Return the mean time between failures of a job from one rate for everything, in seconds.

    Arguments: ``nodes``; ``rate_per_thousand_node_days`` (public clusters: 2.3 to 6.5); any shapes that broadcast.
    Returns: seconds, broadcast shape; infinite when the rate is 0.
    Counts failures of nodes in series.

    >>> round(node_mtbf(2048, 6.5) / 3600, 3)
    1.803

    Source: kokolis2024, MTTF inversely proportional to the job's size.
    """
    cite.use(KOKOLIS)
    with np.errstate(divide="ignore"):
        return plain(np.true_divide(1000 * DAY, np.multiply(nodes, rate_per_thousand_node_days, dtype=float)))


def failure_probability(seconds: Array, mtbf: Array) -> Array:
    """Return the probability that at least one failure strikes within some time.

    Arguments: ``seconds``; ``mtbf`` seconds; any shapes that broadcast.
    Returns: a ratio, broadcast shape.
    Counts exponential failures.

    >>> round(failure_probability(3600, 3600), 4)
    0.6321

    Source: exponential distribution.
    """
    return plain(-np.expm1(-np.true_divide(seconds, mtbf)))


def ettr(
    interval: Array, *, mtbf: Array, checkpoint: Array, down: Array = 0.0, restart: Array = 0.0, lag: Array = 0.0
) -> Array:
    """Return the effective training time ratio: the share of wall time that is work not done again.

    Arguments: all in seconds, as the module says; ``mtbf`` may be infinite; any shapes that broadcast.
    Returns: a ratio from 0 to 1, broadcast shape: ``(T - C) / ((mu + D) exp((R + L)/mu) (exp(T/mu) - 1))``.
    Counts work, checkpoints, lost work, downtime and failures during restart, exactly; omits failures while down and
    the overlap of a checkpoint with work (give only the part that blocks).

    >>> round(ettr(1800, mtbf=3 * 3600, checkpoint=20, down=180, restart=180), 4)
    0.8791

    Source: aupy2013, expected time of a period under exponential failures.
    """
    cite.use(AUPY)
    rate = np.true_divide(1.0, mtbf)
    risk = np.multiply(interval, rate)
    growth = np.divide(np.expm1(risk), risk, out=np.ones_like(np.asarray(risk, float)), where=np.asarray(risk > 0))
    paid = 1.0 * np.asarray(interval) * (1 + down * rate) * np.exp(np.add(restart, lag) * rate) * growth
    return plain(np.maximum(np.subtract(interval, checkpoint), 0.0) / paid)


def first_order_waste(
    interval: Array, *, mtbf: Array, checkpoint: Array, down: Array = 0.0, restart: Array = 0.0
) -> Array:
    """Return the share of wall time that is lost, to first order.

    Arguments: as in :func:`ettr`.
    Returns: a ratio, broadcast shape: ``C/T + (1 - C/T)(D + R + T/2)/mu``.
    Counts one failure per period at most; omits the rest. Agrees with ``1 - ettr`` while the period is far below mtbf.

    >>> round(first_order_waste(1800, mtbf=3 * 3600, checkpoint=20, down=180, restart=180), 4)
    0.1265

    Source: aupy2013, waste to first order.
    """
    cite.use(AUPY)
    fault_free = np.true_divide(checkpoint, interval)
    lost = (np.add(down, restart) + np.true_divide(interval, 2)) / mtbf
    return plain(fault_free + (1 - fault_free) * lost)


def young_interval(mtbf: Array, checkpoint: Array) -> Array:
    """Return Young's period between checkpoints, in seconds.

    Arguments: ``mtbf`` and ``checkpoint`` seconds; any shapes that broadcast.
    Returns: seconds, broadcast shape: ``sqrt(2 mu C) + C``.
    Counts lost work of half a period; omits downtime and restart.

    >>> round(young_interval(3849609, 600))
    68567

    Source: young1974, the paper's result.
    """
    cite.use(YOUNG)
    return plain(np.sqrt(2.0 * np.multiply(mtbf, checkpoint)) + checkpoint)


def daly_interval(mtbf: Array, checkpoint: Array, *, down: Array = 0.0, restart: Array = 0.0) -> Array:
    """Return Daly's first-order period between checkpoints, in seconds.

    Arguments: as in :func:`ettr`.
    Returns: seconds, broadcast shape: ``sqrt(2 (mu + D + R) C) + C``.
    Counts restart as part of the time between failures.

    >>> round(daly_interval(3849609, 600, down=60, restart=600))
    68573

    Source: daly2006, first-order model; aupy2013, table 2.
    """
    cite.use(DALY)
    return plain(np.sqrt(2.0 * (np.add(mtbf, down) + restart) * checkpoint) + checkpoint)


def daly_higher_interval(mtbf: Array, checkpoint: Array) -> Array:
    """Return Daly's higher-order period between checkpoints, in seconds.

    Arguments: ``mtbf`` and ``checkpoint`` seconds; any shapes that broadcast.
    Returns: seconds, broadcast shape: ``sqrt(2 mu C) (1 + sqrt(C/2mu)/3 + C/(2mu)/9)`` while C is below 2 mu, else
    ``mu + C``.
    Counts further terms of the exact optimum. Agrees with :func:`optimal_interval` within half a per cent for C below
    mu/2.

    >>> round(daly_higher_interval(7519, 600))
    3217

    Source: daly2006, equation 37.
    """
    cite.use(DALY)
    half = np.true_divide(checkpoint, np.multiply(2.0, mtbf))
    series = np.sqrt(2.0 * np.multiply(mtbf, checkpoint)) * (1 + np.sqrt(half) / 3 + half / 9)
    return plain(np.where(half < 1, series, np.add(mtbf, checkpoint)))


def first_order_interval(mtbf: Array, checkpoint: Array, *, down: Array = 0.0, restart: Array = 0.0) -> Array:
    """Return the period that minimises :func:`first_order_waste`, in seconds.

    Arguments: as in :func:`ettr`.
    Returns: seconds, broadcast shape: ``sqrt(2 (mu - D - R) C)``, never below C; NaN where mtbf is below D + R.
    Counts what the first-order waste counts.

    >>> round(first_order_interval(3849609, 600, down=60, restart=600))
    67961

    Source: aupy2013, refined first-order formula, table 2.
    """
    cite.use(AUPY)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(2.0 * (np.subtract(mtbf, down) - restart) * checkpoint)
    return plain(np.maximum(root, checkpoint))


def optimal_interval(mtbf: Array, checkpoint: Array) -> Array:
    """Return the period that maximises :func:`ettr` exactly, in seconds.

    Arguments: ``mtbf`` and ``checkpoint`` seconds, positive; any shapes that broadcast.
    Returns: seconds, broadcast shape: ``mu (1 + C/mu + W(-exp(-C/mu - 1)))`` with Lambert's W. Downtime and restart do
    not move it.
    Counts the exact expected time. Agrees with Young for C far below mu.

    >>> round(optimal_interval(3849609, 600))
    68168

    Source: aupy2013, optimum of the exact formula; their table 2 prints values up to 0.11 % off this root.
    """
    cite.use(AUPY)
    return plain(np.multiply(mtbf, _optimal_risk(np.true_divide(checkpoint, mtbf))))


def _optimal_risk(cost: Any) -> Any:
    """Solve x - 1 + exp(-x) = cost for x > 0 by Newton's method, which from the right of the root only comes nearer."""
    risk = np.sqrt(2 * cost) + cost
    for _ in range(8):
        risk = risk - (risk + np.expm1(-risk) - cost) / -np.expm1(-risk)
    return risk


def kokolis_ettr(
    nodes: Array, *, node_failure_rate: Array, restart: Array, interval: Array, checkpoint: Array
) -> Array:
    """Return the expected effective training time ratio for small losses.

    Arguments: ``nodes``; ``node_failure_rate`` per node-second; ``restart`` seconds of initialisation after a failure;
    ``interval`` seconds of work between checkpoints (here without the write); ``checkpoint`` seconds of a write; any
    shapes that broadcast.
    Returns: a ratio, broadcast shape: ``(1 - N r (u + t/2)) / (1 + w/t)``.
    Counts restart and half an interval per failure; omits failures during recovery and queueing. Agrees with
    :func:`ettr` while losses are below a quarter; beyond, use that.

    >>> round(kokolis_ettr(256, node_failure_rate=6.5e-3 / 86400, restart=300, interval=3600, checkpoint=300), 4)
    0.8857

    Source: kokolis2024, expected ETTR, simplified form.
    """
    cite.use(KOKOLIS)
    lost = 1.0 * nodes * node_failure_rate * (np.add(restart, np.true_divide(interval, 2)))
    return plain((1 - lost) / (1 + np.true_divide(checkpoint, interval)))
