"""How TTFT and TPOT are spread over requests that come at random: percentiles beside the means."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from zhenfa.estimate import serving_curves
from zhenfa.estimate.rows import finer
from zhenfa.estimate.serving import Served, Service
from zhenfa.estimate.serving_state import FINE


def wait_factor(percentile: float | None) -> float:
    """Return the wait within which that per cent of requests are taken in over the mean wait; 1 for the mean.

    The wait is taken as memoryless, as :func:`zhenfa.laws.queueing.wait_quantile` does.

    >>> round(wait_factor(99), 3)
    4.605
    """
    return 1.0 if percentile is None else -math.log1p(-percentile / 100.0)


def slowest(running: Any, tpot: Any, percentile: float | None) -> Any:
    """Return the TPOT within which that per cent of requests stay, at each mean number of running requests.

    ``running`` rises along the last axis, with the ``tpot`` of each. Requests come at random, so that the number beside
    one is Poisson; over the life of a request, in which all others are replaced once, its mean varies by two thirds of
    that variance (the share of a window that two requests of equal life have in common). Omits that requests differ in
    length.
    """
    if percentile is None:
        return tpot
    more = running + NormalDist().inv_cdf(percentile / 100.0) * np.sqrt(2.0 * running / 3.0)
    if np.ndim(running) == 1:
        return np.interp(more, running, tpot)
    rows = zip(more, running, np.broadcast_to(tpot, np.shape(running)), strict=True)
    return np.array([np.interp(*row) for row in rows]).reshape(np.shape(running))


def tpot_within(service: Service, served: Served, percentile: float) -> float:
    """Return the TPOT within which that per cent of the requests of a plan stay; of a closed loop, the mean."""
    workload = served.workload
    if workload.request_rate is None:
        return served.tpot
    pace = serving_curves.paces(service, workload, serving_curves.curves(service, workload))
    batch, tpot = finer(pace.running, FINE), finer(pace.tpot, FINE)
    return float(np.interp(served.running, batch, slowest(batch, tpot, percentile)))
