"""What a run costs, in CNY."""

from __future__ import annotations

import numpy as np

from zhenfa.laws.arrays import Array, plain


def run_cost(cards: Array, seconds: Array, *, price: Array) -> Array:
    """Return the cost of holding cards for some time, in CNY.

    Arguments: ``cards``; ``seconds`` from allocation to release, lost time included; ``price`` CNY/s of one card (an
    hourly price over 3600); any shapes that broadcast.
    Returns: CNY, broadcast shape; NaN where the price is undisclosed.
    Counts rented time; omits storage, traffic and discounts.

    >>> run_cost(1024, 3600, price=18 / 3600)
    18432.0

    Source: counted.
    """
    return plain(1.0 * np.multiply(cards, seconds) * price)


def token_cost(cards: Array, tokens_per_second: Array, *, price: Array, ettr: Array = 1.0) -> Array:
    """Return the cost of one token that counts, in CNY.

    Arguments: ``cards``; ``tokens_per_second`` of all of them while they work; ``price`` CNY/s of one card; ``ettr``
    effective training time ratio; any shapes that broadcast.
    Returns: CNY per token, broadcast shape; infinite where ``ettr`` is 0, NaN where the price is undisclosed.
    Counts paid time over useful tokens. Agrees with :func:`run_cost` over the tokens of the run.

    >>> token_cost(8, 40000, price=18 / 3600, ettr=0.5)
    2e-06

    Source: counted.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return plain(1.0 * np.multiply(cards, price) / np.multiply(tokens_per_second, ettr, dtype=float))
