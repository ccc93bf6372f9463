"""Which builder reads which model type."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Final

from zhenfa.spec.huggingface import (
    classic_types,
    dense_types,
    encoder_types,
    gemma_types,
    hybrid_types,
    latent_types,
    moe_types,
    remote_types,
    seq2seq_types,
    special_types,
    zamba_types,
)
from zhenfa.spec.huggingface.decoder import Fields, decoder
from zhenfa.spec.huggingface.reader import Config

Builder = Callable[[Config], Fields]

_MODULES: Final = (
    dense_types,
    moe_types,
    remote_types,
    latent_types,
    hybrid_types,
    classic_types,
    encoder_types,
    gemma_types,
    seq2seq_types,
    special_types,
    zamba_types,
)


@cache
def builders() -> dict[str, Builder]:
    """Return the builder of every model type that is known by name."""
    found: dict[str, Builder] = {}
    for module in _MODULES:
        for kind, traits in getattr(module, "TRAITS", {}).items():
            found[kind] = partial(decoder, t=traits)
        found |= getattr(module, "BUILDERS", {})
    for kind, other in remote_types.ALIASES.items():
        found[kind] = found[other]
    return found
