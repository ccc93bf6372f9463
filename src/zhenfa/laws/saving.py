"""What a distributed checkpoint holds, and for how long it stops training."""

from __future__ import annotations

from typing import Final

import numpy as np

from zhenfa import cite
from zhenfa.laws.arrays import Array, Flag, plain

CHECKPOINT: Final = cite.declare(
    "wan2024", "B. Wan et al. ByteCheckpoint: a unified checkpointing system for LLM development. arXiv:2407.20143."
)
FREQUENT: Final = cite.declare(
    "mohan2021", "J. Mohan et al. CheckFreq: frequent, fine-grained DNN checkpointing. FAST 2021."
)


def checkpoint_bytes(parameters: Array, *, weight_bytes: Array = 2, optimizer_bytes: Array = 12) -> Array:
    """Return the bytes of a checkpoint from which training goes on.

    Arguments: trained ``parameters`` of the whole model; ``weight_bytes`` and ``optimizer_bytes`` per parameter (32-bit
    master weight and two moments of AdamW); any shapes that broadcast.
    Returns: bytes, broadcast shape.
    Counts every tensor once, however many replicas hold it; omits the state of data loaders and random numbers.

    >>> checkpoint_bytes(405e9) / 1e12
    5.67

    Source: wan2024, section 2 (states of a checkpoint).
    """
    cite.use(CHECKPOINT)
    return plain(1.0 * np.asarray(parameters) * np.add(weight_bytes, optimizer_bytes))


def checkpoint_stall(
    bytes_: Array,
    *,
    writers: Array,
    copy_rate: Array,
    write_rate: Array,
    store_rate: Array = np.inf,
    interval: Array = np.inf,
    asynchronous: Flag = True,
    least: Array = 0.0,
) -> Array:
    """Return the seconds that one checkpoint stops training.

    Arguments: ``bytes_`` of the whole checkpoint; ``writers``, cards that each write an equal share; ``copy_rate`` B/s
    from a card to its host's memory; ``write_rate`` B/s from a card's host memory to the store, ``store_rate`` B/s that
    the store takes in all; ``interval`` seconds between checkpoints; ``asynchronous``: training goes on once the copy
    in host memory is complete; ``least`` seconds that a stop takes however small the copy (all cards meet, buffers are
    taken); any shapes that broadcast.
    Returns: seconds, broadcast shape: the copy, and, blocking, the write; asynchronous, what of the write is left when
    the next checkpoint is due.
    Counts even shares; omits the planning of the first checkpoint and the slowdown of training beside the write. Agrees
    with 0.34 s to 0.59 s on up to 8,960 GPUs (wan2024, table 8) by ``least``: the copies alone take a tenth of that.

    >>> checkpoint_stall(5.67e12, writers=16384, copy_rate=50e9, write_rate=1e9, store_rate=2e12, asynchronous=False)
    2.841...

    Source: mohan2021, sections 4.1 and 4.2 (snapshot, persist); wan2024, section 4.
    """
    cite.use(CHECKPOINT, FREQUENT)
    share = np.true_divide(bytes_, writers)
    copied = np.maximum(share / copy_rate, least)
    written = np.maximum(share / write_rate, np.true_divide(bytes_, store_rate))
    return plain(copied + np.where(asynchronous, np.maximum(written - interval, 0.0), written))


def load_time(
    bytes_: Array, *, readers: Array, copy_rate: Array, read_rate: Array = np.inf, store_rate: Array = np.inf
) -> Array:
    """Return the seconds to bring a checkpoint back onto the cards.

    Arguments: ``bytes_`` of the whole checkpoint; ``readers``, cards that each read an equal share; ``copy_rate`` B/s
    from a host's memory to its card; ``read_rate`` B/s from the store to a card's host, ``store_rate`` B/s that the
    store gives in all; any shapes that broadcast.
    Returns: seconds, broadcast shape: the read, at the slower of both rates, then the copy.
    Counts every byte read once, replicas handing their share on; omits that hand-over and metadata.

    >>> load_time(5.67e12, readers=16384, copy_rate=50e9, store_rate=2e12)
    2.841...

    Source: wan2024, section 4 (loading without reading a tensor twice).
    """
    cite.use(CHECKPOINT)
    share = np.true_divide(bytes_, readers)
    read = np.maximum(share / read_rate, np.true_divide(bytes_, store_rate))
    return plain(read + share / copy_rate)
