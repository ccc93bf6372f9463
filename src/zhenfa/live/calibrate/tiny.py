"""A decoder with next to no work, as sizes and as a graph: what its steps take is what issuing its kernels takes."""

from __future__ import annotations

from functools import cache
from typing import Final

from zhenfa.live.sizes import Sizes
from zhenfa.spec.graph import Graph
from zhenfa.spec.model import Model

HEAD: Final = 64
"""Elements of a head."""


def tiny_sizes(layers: int, heads: int = 1, head_dim: int = HEAD) -> Sizes:
    """Return the sizes of a decoder as wide as its heads."""
    width = heads * head_dim
    return Sizes(
        hidden=width, layers=layers, heads=heads, kv_heads=heads, head_dim=head_dim, intermediate=2 * width,
        vocabulary=64, gated=True, tied=True,
    )  # fmt: skip


@cache
def tiny_graph(layers: int, heads: int = 1, head_dim: int = HEAD) -> Graph:
    """Return the same decoder as the laws see it."""
    sizes = tiny_sizes(layers, heads, head_dim)
    mixer = {"kind": "attention", "heads": heads, "kv_heads": heads, "head_dim": head_dim}
    dense = {"kind": "dense", "size": sizes.intermediate, "gated": True}
    return Model.from_data(
        {
            "schema": "zhenfa.model/1", "name": "tiny", "title": "next to no work", "source": "made here",
            "max_position": 4096, "hidden_size": sizes.hidden, "vocabulary_size": sizes.vocabulary,
            "layers": [{"repeat": layers, "mixer": mixer, "feed_forward": dense}], "head": {"tied": True},
        }
    ).graph()  # fmt: skip
