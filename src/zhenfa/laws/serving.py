"""Serving: which experts a batch touches, how uneven the ranks are, and the closed loop of requests."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain

BALLS: Final = cite.declare(
    "raab1998", "M. Raab, A. Steger. Balls into bins: a simple and tight analysis. RANDOM 1998."
)
LARGEST: Final = cite.declare("gumbel1958", "E. J. Gumbel. Statistics of Extremes. Columbia University Press 1958.")
LITTLE: Final = cite.declare("little1961", "J. D. C. Little. A proof for the queuing formula L = lambda W. 1961.")
DRAFT: Final = cite.declare(
    "leviathan2023", "Y. Leviathan, M. Kalman, Y. Matias. Fast inference via speculative decoding. arXiv:2211.17192."
)


def distinct_experts(tokens: Array, experts: Array, active: Array) -> Array:
    """Return how many experts a batch touches on average.

    Arguments: ``tokens`` routed; ``experts`` there are; ``active`` that each token picks; shapes that broadcast.
    Returns: experts, between ``min(active, experts)`` (one token) and ``experts``.
    Counts independent, even choices of ``active`` different experts per token: ``experts (1 - (1 - active/experts)^
    tokens)``; omits popular experts, which lower it.

    >>> distinct_experts(1, 256, 8)
    8.0
    >>> round(distinct_experts(32, 256, 8), 1)
    163.3

    Source: counted; each expert is missed by a token with probability ``1 - active/experts``.
    """
    share = np.minimum(np.true_divide(active, experts), 1.0)
    missed = (1.0 - share) ** np.maximum(tokens, 0.0)
    return plain(np.maximum(experts * (1.0 - missed), np.minimum(active, experts) * np.minimum(tokens, 1.0)))


def busiest_share(copies: Array, ranks: Array, *, skew: Array = 0.0) -> Array:
    """Return the load of the busiest of ``ranks`` over the mean when ``copies`` are spread at random.

    Arguments: ``copies`` of tokens routed in all; ``ranks`` of experts; ``skew`` lasting excess of the busiest rank
    over the mean that popular experts cause (0: none); shapes that broadcast.
    Returns: a ratio of 1 or more, at most ``ranks``: ``1 + skew + e sqrt((ranks - 1)/copies)``, where ``e`` is the
    expected largest of ``ranks`` normal numbers (Gumbel's limit: 1.5 of 8 ranks, 2.4 of 72).
    Counts the fluctuation of even routing (many copies) and a lasting skew; omits replicated experts.

    >>> busiest_share(1e6, 1)
    1.0
    >>> round(busiest_share(1024, 8), 3)
    1.126

    Source: raab1998 (the busiest bin); gumbel1958 (expected largest of normal numbers).
    """
    cite.use(BALLS, LARGEST)
    several = np.greater(ranks, 1)
    far = np.sqrt(2.0 * np.log(np.maximum(ranks, 2.0)))
    largest = far - (np.log(far**2 / 2) + np.log(4 * np.pi) - 2 * np.euler_gamma) / (2 * far)
    spread = largest * np.sqrt(np.maximum(np.subtract(ranks, 1.0), 0.0) / np.maximum(copies, 1.0))
    return plain(np.where(several, np.minimum(1.0 + skew + spread, ranks), 1.0))


def running_requests(rate: Array, seconds: Array) -> Array:
    """Return how many requests are in a system: what arrives per second times how long it stays.

    Arguments: ``rate`` requests/s; ``seconds`` in the system; shapes that broadcast.
    Returns: requests.

    >>> running_requests(4, 2.5)
    10.0

    Source: little1961.
    """
    cite.use(LITTLE)
    return plain(1.0 * np.multiply(rate, seconds))


def accepted_tokens(drafted: Array, rate: Array) -> Array:
    """Return the tokens that one verifying step yields on average.

    Arguments: ``drafted`` tokens per step; ``rate`` at which one is accepted, given those before it; shapes that
    broadcast.
    Returns: tokens, from 1 to ``drafted + 1``: ``(1 - rate^(drafted + 1)) / (1 - rate)``.
    Counts the token that the model itself adds; omits a rate that falls with position.

    >>> accepted_tokens(1, 0.9)
    1.9

    Source: leviathan2023, equation 1.
    """
    cite.use(DRAFT)
    safe = np.minimum(rate, 1 - 1e-9)
    return plain(
        np.where(np.greater_equal(rate, 1), np.add(drafted, 1.0), (1 - safe ** np.add(drafted, 1.0)) / (1 - safe))
    )


def time_per_token(iteration: Array, accepted: Array) -> Array:
    """Return the seconds per output token of a step that yields ``accepted`` tokens per request.

    Arguments: ``iteration`` seconds of one step, drafting included; ``accepted`` tokens; shapes that broadcast.
    Returns: seconds per token: what a reader of the stream sees on average, while tokens arrive in bursts.

    >>> round(time_per_token(0.095, 1.9), 3)
    0.05

    Source: leviathan2023, section 3.2.
    """
    return plain(np.true_divide(iteration, accepted))
