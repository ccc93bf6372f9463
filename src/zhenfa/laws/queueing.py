"""Waiting in line: requests that come all at once, at random, or each when another one has ended."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain

MEAN_VALUES: Final = cite.declare(
    "reiser1980", "M. Reiser, S. S. Lavenberg. Mean-value analysis of closed multichain queuing networks. JACM 1980."
)
SCHWEITZER: Final = cite.declare(
    "schweitzer1979", "P. J. Schweitzer. Approximate analysis of multiclass closed networks of queues. 1979."
)
SEVERAL: Final = cite.declare(
    "sakasegawa1977", "H. Sakasegawa. An approximation formula Lq = a rho^b/(1 - rho). Ann. Inst. Stat. Math. 1977."
)

HALVINGS: Final = 60
"""Times that the interval of a quantile is halved."""


def wave_wait(requests: Array, rate: Array) -> Array:
    """Return the mean wait of requests that all come at once, until the service of each begins.

    Arguments: ``requests`` that come; ``rate`` requests/s that are served one after the other; shapes that broadcast.
    Returns: seconds: ``(requests - 1) / (2 rate)``, 0 for one request or none.
    Counts that the last waits for all others and the first for nobody; omits its own service.

    >>> wave_wait(11, 10.0)
    0.5

    Source: counted; the mean of 0 to ``requests - 1`` services.
    """
    return plain(np.maximum(np.subtract(requests, 1.0), 0.0) / np.multiply(2.0, rate))


def open_wait(rate: Array, service: Array, *, servers: Array = 1.0, variation: Array = 0.0) -> Array:
    """Return the mean wait of requests that come at random, until the service of each begins.

    Arguments: ``rate`` requests/s that come (Poisson); ``service`` seconds of one on a server; ``servers`` that are
    equal; ``variation`` coefficient of variation of the service, squared (0: all alike); shapes that broadcast.
    Returns: seconds: ``(1 + variation)/2 rho^(sqrt(2 (servers + 1)) - 1) / (servers (1 - rho)) service`` with ``rho =
    rate service / servers``; infinite where ``rho`` is 1 or more.
    Counts, for one server, exactly Pollaczek and Khinchine's formula; omits bursts of arrivals.

    >>> open_wait(5.0, 0.1)
    0.05

    Source: sakasegawa1977.
    """
    cite.use(SEVERAL)
    busy = np.multiply(rate, service) / servers
    stable = np.less(busy, 1.0)
    safe = np.where(stable, busy, 0.5)
    queue = safe ** (np.sqrt(2.0 * np.add(servers, 1.0)) - 1.0) / (servers * (1.0 - safe))
    return plain(np.where(stable, np.add(1.0, variation) / 2.0 * queue * service, np.inf))


def boundary_wait(busy: Array, service: Array, *, slots: Array, servers: Array = 1.0, steps: Array = 1.0) -> Array:
    """Return the mean wait until a step has ended, of requests that are taken in only between the steps of a server.

    Arguments: ``busy`` share of all slots that are taken; ``service`` seconds of a request in its slot, ``steps`` equal
    steps; ``slots`` of one of ``servers`` that are equal, which step together; shapes that broadcast.
    Returns: seconds: ``(1 - (1 - busy)^slots)^(sqrt(2 (servers + 1)) - 1) service / (2 servers steps)``.
    Counts half of a step where some slot of every server is taken, each with one chance; omits the line for a slot.

    >>> boundary_wait(0.5, 1.0, slots=1)
    0.25
    >>> boundary_wait(0.5, 1.0, slots=2)
    0.375

    Source: sakasegawa1977 for the chance that every server works; counted.
    """
    cite.use(SEVERAL)
    working = 1.0 - (1.0 - np.asarray(busy)) ** np.asarray(slots)
    everyone = working ** (np.sqrt(2.0 * np.add(servers, 1.0)) - 1.0)
    return plain(everyone * service / (2.0 * np.multiply(servers, steps)))


def stepped_wait(
    load: Array, busy: Array, service: Array, full: Array, *, slots: Array, servers: Array = 1.0, steps: Array = 1.0
) -> Array:
    """Return the mean wait of requests that come at random at servers whose slots step together.

    Arguments: ``load`` requests that come over the most that can be served, below 1; ``busy`` share of the slots that
    are taken; ``service`` seconds of a request in its slot at that share, ``full`` where all are taken; ``slots`` of
    one of ``servers`` that are equal; ``steps`` of one request; shapes that broadcast.
    Returns: seconds: :func:`boundary_wait`, and of :func:`open_wait` for ``servers slots`` that take ``full`` the part
    ``1 - (1 - load)/steps``.
    Counts, for one slot, exactly what :func:`open_wait` does; for several that all are taken at once. Omits that a
    request is bound to a slot before it is free. Replays of up to 16 slots and servers are within 20 % of the wait and
    service together, 50 % (and below) where a full step takes nearly as long as one step for each slot.

    >>> round(float(stepped_wait(0.5, 0.5, 1.0, 1.0, slots=1)), 9)
    0.5

    Source: sakasegawa1977; one slot: Pollaczek and Khinchine.
    """
    whole = np.multiply(servers, slots)
    line = open_wait(np.multiply(load, whole) / full, full, servers=whole)
    at_boundary = boundary_wait(busy, service, slots=slots, servers=servers, steps=steps)
    return plain(at_boundary + line * (1.0 - np.subtract(1.0, load) / steps))


def closed_wait(requests: Array, away: Array, service: Array, *, servers: Array = 1.0) -> Array:
    """Return the mean wait for service where each request comes back when it has been away for a time.

    Arguments: ``requests`` in the loop; ``away`` mean seconds from the end of a service to the next arrival;
    ``service`` seconds on a server; ``servers`` that are equal; shapes that broadcast.
    Returns: seconds until the service of a request begins; 0 for one request, and never more than when all others
    stand in line.
    Counts that a request never waits for itself, and that a full line slows arrivals: mean-value analysis with the
    queue found on arrival taken as ``(requests - 1)/requests`` of the mean queue, which makes it a quadratic equation;
    times away and of service taken as random. Several servers are one that is as fast, and the rest of the service is
    spent in it without waiting. Omits waves: see :func:`wave_wait`.

    >>> closed_wait(1, 1.0, 0.1)
    0.0
    >>> round(closed_wait(100, 1.0, 0.1), 2)  # nearly all stand in line: 100 services of 0.1 s less one second away
    8.91

    Source: reiser1980 (arrival theorem), schweitzer1979 (its approximation).
    """
    cite.use(MEAN_VALUES, SCHWEITZER)
    each = np.true_divide(service, servers)
    rest = np.add(away, service) - each
    others = np.maximum(np.subtract(requests, 1.0), 0.0) / np.maximum(requests, 1e-9)
    # time at the server r = each (1 + others q), q = requests r / (rest + r): others requests each = the load of others
    load = np.maximum(np.subtract(requests, 1.0), 0.0) * each
    half = (each + load - rest) / 2.0
    stay = half + np.sqrt(half**2 + each * rest)
    return plain(np.where(np.greater(others, 0), np.maximum(stay - each, 0.0), 0.0))


def wait_quantile(level: Array, wave: Array, share: Array, wait: Array) -> Array:
    """Return the time within which a share of requests is served, of those in a first wave and all later ones.

    Arguments: ``level`` from 0 to 1; ``wave`` seconds until the last request of the first wave is served; ``share`` of
    the requests that are in it; ``wait`` mean seconds of a later request; shapes that broadcast.
    Returns: seconds: where ``share min(t/wave, 1) + (1 - share) (1 - exp(-t/wait))`` reaches ``level``.
    Counts even service of the wave and a memoryless wait afterwards; omits what every request takes at least.

    >>> round(wait_quantile(0.5, 10.0, 0.1, 0.2), 3)
    0.161
    >>> round(wait_quantile(0.95, 10.0, 0.1, 0.2), 1)
    5.0

    Source: a mixture of an even and an exponential distribution, solved by halving.
    """
    wave, wait = np.maximum(wave, 1e-12), np.maximum(wait, 1e-12)
    certain = np.minimum(level, 1.0 - 1e-9)
    low = np.zeros(np.broadcast_shapes(*(np.shape(one) for one in (level, wave, share, wait))))
    high = low + wave + wait * 40.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        reached = share * np.minimum(middle / wave, 1.0) + (1.0 - share) * -np.expm1(-middle / wait) >= certain
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return plain(high)
