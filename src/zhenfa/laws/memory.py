"""Bytes on one card: model state by ZeRO stage, activations by layer, micro-batches in flight."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from zhenfa import cite
from zhenfa.errors import InputError
from zhenfa.laws.arrays import Array, Choice, Flag, plain

ZERO: Final = cite.declare(
    "rajbhandari2020",
    "S. Rajbhandari et al. ZeRO: memory optimizations toward training trillion parameter models. "
    "SC 2020, arXiv:1910.02054.",
)
ACTIVATIONS: Final = cite.declare(
    "korthikanti2022",
    "V. Korthikanti et al. Reducing activation recomputation in large transformer models. arXiv:2205.05198.",
)
SCHEDULES: Final = cite.declare(
    "narayanan2021",
    "D. Narayanan et al. Efficient large-scale language model training on GPU clusters using Megatron-LM. "
    "SC 2021, arXiv:2104.04473.",
)

LOGSUMEXP_BYTES: Final = 4.0
"""Bytes that a flash kernel keeps per query and head: one 32-bit log-sum-exp (dao2023, algorithm 1)."""


def weight_bytes(parameters: Array, bytes_per_parameter: Array) -> Array:
    """Return the bytes of so many weights.

    Arguments: ``parameters``; ``bytes_per_parameter`` (0.5 for 4-bit); any shapes that broadcast.
    Returns: bytes, broadcast shape.
    Counts the weights alone; omits scales of quantised formats and padding.

    >>> weight_bytes(7e9, 2)
    14000000000.0

    Source: counted.
    """
    return plain(1.0 * np.multiply(parameters, bytes_per_parameter))


def training_state_bytes(
    parameters: Array,
    *,
    zero: Array,
    data_parallel: Array,
    weight_bytes: Array = 2,
    gradient_bytes: Array = 4,
    optimizer_bytes: Array = 12,
) -> tuple[Array, Array, Array]:
    """Return the bytes of weights, gradients and optimizer state on one card.

    Arguments: ``parameters`` that the card's model shard holds; ``zero`` ZeRO stage 0 to 3; ``data_parallel`` degree
    over which it partitions; ``weight_bytes``, ``gradient_bytes`` and ``optimizer_bytes`` per parameter (32-bit
    accumulated gradients; 32-bit master weight and two moments of AdamW); any shapes that broadcast.
    Returns: three byte counts, each of the broadcast shape. Stage 1 divides the optimizer state by ``data_parallel``,
    stage 2 the gradients too, stage 3 the weights too.
    Counts steady state; omits communication buffers and the layer that stage 3 gathers.

    >>> [round(part / 1e9, 2) for part in training_state_bytes(7.5e9, zero=2, data_parallel=64, gradient_bytes=2)]
    [15.0, 0.23, 1.41]

    Source: rajbhandari2020, section 5 (2 + 2 + K bytes, K = 12) and figure 1.
    """
    cite.use(ZERO)
    one = 1.0 * np.asarray(parameters)
    parts = ((3, weight_bytes), (2, gradient_bytes), (1, optimizer_bytes))
    weights, gradients, optimizer = (
        plain(one * width / np.where(np.greater_equal(zero, stage), data_parallel, 1)) for stage, width in parts
    )
    return weights, gradients, optimizer


def attention_activation_bytes(
    tokens: Array,
    hidden: Array,
    heads: Array,
    sequence: Array,
    *,
    tensor_parallel: Array = 1,
    sequence_parallel: Flag = False,
    flash: Flag = True,
    scores_kept: Flag = True,
    key_heads: Array | None = None,
    head_dim: Array | None = None,
    activation_bytes: Array = 2,
    dropout: Flag = False,
) -> Array:
    """Return the bytes that one attention block keeps for its backward pass.

    Arguments: ``tokens`` of the micro-batch (sequences times ``sequence``); ``hidden`` width; query ``heads``;
    ``key_heads`` (default: as many); ``head_dim`` (default: hidden / heads); ``tensor_parallel`` cards that split the
    heads; ``sequence_parallel``: they split the rest as well; ``flash``: the scores are never stored; ``scores_kept``:
    false when they are recomputed; ``activation_bytes`` per element; ``dropout``: masks of one byte are kept; any
    shapes that broadcast.
    Returns: bytes per card, broadcast shape.
    Counts the input, queries, keys, values, scores after softmax (and masked, and the mask), the context and the output
    mask; omits rotary tables and buffers of the kernels. Agrees with 11 s b h + 5 a s^2 b.

    >>> attention_activation_bytes(1000, 256, 4, 100, flash=False, dropout=True)
    4816000.0

    Source: korthikanti2022, section 4.1 (attention block) and equations 1, 2 and 4.
    """
    cite.use(ACTIVATIONS)
    width = np.true_divide(hidden, heads) if head_dim is None else head_dim
    pairs_of_heads = np.add(heads, heads if key_heads is None else key_heads)
    whole = 1.0 * tokens * hidden * (activation_bytes + np.where(dropout, 1.0, 0.0))
    split = 2.0 * tokens * width * pairs_of_heads * activation_bytes
    scores = 1.0 * tokens * heads * sequence * np.where(dropout, 2.0 * activation_bytes + 1.0, activation_bytes)
    stored = np.where(flash, LOGSUMEXP_BYTES * tokens * heads, np.where(scores_kept, scores, 0.0))
    return plain(whole / np.where(sequence_parallel, tensor_parallel, 1) + (split + stored) / tensor_parallel)


def mlp_activation_bytes(
    tokens: Array,
    hidden: Array,
    intermediate: Array,
    *,
    gated: Flag = True,
    tensor_parallel: Array = 1,
    sequence_parallel: Flag = False,
    activation_bytes: Array = 2,
    dropout: Flag = False,
) -> Array:
    """Return the bytes that one feed-forward block keeps for its backward pass.

    Arguments: ``tokens`` of the micro-batch; ``hidden`` and ``intermediate`` widths; ``gated``: two up projections
    whose outputs are multiplied; the rest as in :func:`attention_activation_bytes`; any shapes that broadcast.
    Returns: bytes per card, broadcast shape.
    Counts the input, what enters the activation function (two tensors when gated), what enters the down projection and
    the output mask; omits the activated gate, which a fused kernel recomputes (an unfused one keeps it as well). Agrees
    with 19 s b h for an intermediate width of 4 h.

    >>> mlp_activation_bytes(2048, 1024, 4096, gated=False, dropout=True) == 19 * 2048 * 1024
    True

    Source: korthikanti2022, section 4.1 (MLP) and equations 1, 2 and 4.
    """
    cite.use(ACTIVATIONS)
    whole = 1.0 * tokens * hidden * (activation_bytes + np.where(dropout, 1.0, 0.0))
    split = 1.0 * tokens * intermediate * activation_bytes * np.where(gated, 3.0, 2.0)
    return plain(whole / np.where(sequence_parallel, tensor_parallel, 1) + split / tensor_parallel)


def layer_activation_bytes(
    tokens: Array,
    hidden: Array,
    heads: Array,
    sequence: Array,
    *,
    tensor_parallel: Array,
    sequence_parallel: Flag,
    flash: Flag,
    intermediate: Array,
    gated: Flag,
    recompute: Choice,
    key_heads: Array | None = None,
    head_dim: Array | None = None,
    activation_bytes: Array = 2,
    dropout: Flag = False,
) -> Array:
    """Return the bytes that one transformer layer keeps per micro-batch for its backward pass.

    Arguments: those of :func:`attention_activation_bytes` and :func:`mlp_activation_bytes`; ``recompute`` is
    ``"none"``, ``"selective"`` (scores are recomputed) or ``"full"`` (only the layer's input is kept), or an array of
    these; any shapes that broadcast.
    Returns: bytes per card, broadcast shape. Raises :class:`InputError` for another ``recompute``.
    Counts both blocks and the inputs of two normalisations; omits the layer under recomputation, of which one is alive
    at a time. Agrees with s b h (34 + 5 a s/h), (10 + 24/t + 5 a s/(h t)), (34 + 5 a s/h)/t, 34/t and 2 s b h.

    >>> layer_activation_bytes(2048, 1024, 16, 2048, tensor_parallel=1, sequence_parallel=False, flash=False,
    ...     intermediate=4096, gated=False, recompute="selective", dropout=True) == 34 * 2048 * 1024
    True

    Source: korthikanti2022, equations 1 (none), 2 (tensor), 4 (sequence), 6 (selective) and table 2 (full).
    """
    cite.use(ACTIVATIONS)
    none, _, full = one_of("recompute", recompute, "none", "selective", "full")
    attention = attention_activation_bytes(
        tokens,
        hidden,
        heads,
        sequence,
        tensor_parallel=tensor_parallel,
        sequence_parallel=sequence_parallel,
        flash=flash,
        scores_kept=none,
        key_heads=key_heads,
        head_dim=head_dim,
        activation_bytes=activation_bytes,
        dropout=dropout,
    )
    mlp = mlp_activation_bytes(
        tokens,
        hidden,
        intermediate,
        gated=gated,
        tensor_parallel=tensor_parallel,
        sequence_parallel=sequence_parallel,
        activation_bytes=activation_bytes,
        dropout=dropout,
    )
    layer_input = 1.0 * tokens * hidden * activation_bytes / np.where(sequence_parallel, tensor_parallel, 1)
    return plain(np.where(full, layer_input, attention + mlp + 2 * layer_input))


def in_flight_micro_batches(stage: Array, stages: Array, micro_batches: Array, schedule: Choice) -> Array:
    """Return how many micro-batches' activations a pipeline stage keeps at its fullest.

    Arguments: ``stage`` from 0; ``stages``; ``micro_batches``; ``schedule`` ``"gpipe"`` or ``"1f1b"``; any shapes that
    broadcast.
    Returns: micro-batches, broadcast shape. Raises :class:`InputError` for another schedule.
    Counts forwards whose backward has not begun: all under GPipe, ``stages - stage`` at most under 1F1B.

    >>> in_flight_micro_batches(0, 4, 16, "1f1b")
    4.0

    Source: narayanan2021, section 2.2.1.
    """
    cite.use(SCHEDULES)
    gpipe, _ = one_of("schedule", schedule, "gpipe", "1f1b")
    return plain(np.where(gpipe, micro_batches, np.minimum(micro_batches, np.subtract(stages, stage))) * 1.0)


def one_of(field: str, choice: Choice, *names: str) -> tuple[Any, ...]:
    """Return one mask per name; :class:`InputError` when an element is none of them."""
    masks = tuple(np.asarray(choice) == name for name in names)
    if not np.all(np.logical_or.reduce(masks)):
        wrong = np.asarray(choice)[~np.logical_or.reduce(masks)].flat[0]
        raise InputError(f"{field} is {str(wrong)!r}.", hint=f"write one of {', '.join(map(repr, names))}.")
    return masks
