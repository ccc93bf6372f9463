"""What communication costs when arithmetic runs beside it."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, plain

MEGATRON_OVERLAP: Final = cite.declare(
    "wang2023", "S. Wang et al. Overlap communication with dependent computation via decomposition in large deep "
    "learning models. ASPLOS 2023.",
)  # fmt: skip
FSDP: Final = cite.declare(
    "zhao2023", "Y. Zhao et al. PyTorch FSDP: experiences on scaling fully sharded data parallel. arXiv:2304.11277."
)
KORTHIKANTI: Final = cite.declare(
    "korthikanti2022",
    "V. Korthikanti et al. Reducing activation recomputation in large transformer models. arXiv:2205.05198.",
)


def exposed_time(communication: Array, arithmetic: Array, *, share: Array = 1.0, contention: Array = 0.0) -> Array:
    """Return the seconds that communication adds to a step in which arithmetic runs beside it.

    Arguments: ``communication`` and ``arithmetic`` seconds, each alone; ``share`` of the communication that may run
    beside the arithmetic (the rest stands on its own: the first piece, or what nothing is ready to hide);
    ``contention``: seconds that the arithmetic loses for each second that both run (cores that copy, bandwidth); any
    shapes that broadcast.
    Returns: seconds, broadcast shape: ``c - (1 - contention) min(share c, a)``.
    Counts hiding behind arithmetic that does not depend on the communication; omits jitter. Agrees with ``max(c - a,
    0)`` for a share of 1 without contention.

    >>> exposed_time(3.0, 2.0), exposed_time(4.0, 10.0, share=0.5, contention=0.25)
    (1.0, 2.5)

    Source: wang2023, section 3 (decomposed collectives); contention counted.
    """
    cite.use(MEGATRON_OVERLAP)
    hidden = np.minimum(np.multiply(share, communication), arithmetic)
    return plain(communication - (1.0 - np.asarray(contention)) * hidden)


def gathered_pass_time(
    layer: Array, gather: Array, layers: Array, *, share: Array = 1.0, contention: Array = 0.0
) -> Array:
    """Return the seconds of a pass over ``layers`` equal layers whose weights are gathered one layer ahead.

    Arguments: ``layer`` seconds of one layer's arithmetic; ``gather`` seconds of the communication for one layer
    (gathering its weights, and in the backward pass reducing its gradients); ``layers``; ``share`` and ``contention``
    as in :func:`exposed_time`; any shapes that broadcast.
    Returns: seconds, broadcast shape: the first gather, and every layer beside the next one's gather.
    Counts one layer of prefetch and one wire; omits the limit on memory for more. Agrees with ``layers * layer +
    gather`` where the wire is quick and ``layers * gather + layer`` where it is slow.

    >>> gathered_pass_time(2.0, 1.0, 10), gathered_pass_time(1.0, 2.0, 10)
    (21.0, 21.0)

    Source: zhao2023, section 3.3 (overlap and prefetching).
    """
    cite.use(FSDP)
    beside = np.subtract(layers, 1.0)
    return plain(layers * np.asarray(layer) + gather + beside * exposed_time(
        gather, layer, share=share, contention=contention
    ))  # fmt: skip
