"""The time to the first token: what every request takes, its wait, and the wave that a run starts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zhenfa.laws import queueing
from zhenfa.laws.arrays import Array, plain


@dataclass(frozen=True)
class FirstToken:
    """Times to the first token of a run, in seconds.

    ``own``: what every request takes at least; ``wait``: mean beyond that of a request that comes while others run;
    ``wave``: until the last of those is served that come at once when the run starts; ``share`` of all that they are.
    """

    own: Array
    wait: Array
    wave: Array = 0.0
    share: float = 0.0

    @property
    def mean(self) -> Any:
        """Return the mean."""
        later = np.maximum(np.true_divide(self.wave, 2.0), self.wait)
        return plain(self.own + (1.0 - self.share) * np.asarray(self.wait) + self.share * later)

    def within(self, level: float) -> Any:
        """Return the seconds within which a share ``level`` of the requests have their first token."""
        most = np.maximum(self.wave, self.wait)
        return plain(self.own + np.asarray(queueing.wait_quantile(level, most, self.share, self.wait)))


def wave(requests: Array, rate: Array, front: float) -> Array:
    """Return the seconds until ``requests`` that come at once are prefilled, ``rate`` of them per second.

    ``front`` seconds of the front end's one process per request bound the rate.
    """
    slowest = np.minimum(rate, 1.0 / front) if front > 0 else rate
    return 2.0 * queueing.wave_wait(requests, slowest)


def prompt_wait(rate: Array, service: Array, servers: Array, *, requests: float | None, away: Array) -> Array:
    """Return the mean wait of a prompt for the others before it.

    Arguments: ``rate`` prompts/s; ``service`` seconds of one and ``servers`` that are served side by side; ``requests``
    of a closed loop, or None where they come at random; ``away`` seconds that a request of the loop decodes.
    Prompts of one length take equally long: half the wait of services of random length.
    """
    if requests is None:
        busy = np.minimum(np.multiply(rate, service) / servers, SATURATED)
        return queueing.open_wait(busy * servers / service, service, servers=servers)
    return np.divide(queueing.closed_wait(requests, away, service, servers=servers), 2.0)


SATURATED = 0.98
"""Share of the time beyond which a queue is as long as the steady state lets it be."""
