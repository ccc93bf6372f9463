"""The sizes of a decoder that this runtime can build, and how they are read from a model document."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """A dense decoder: embedding, ``layers`` of attention and MLP with RMS norm and rotary positions, norm, head.

    Counts are features, heads or layers. ``gated`` says that the MLP is SiLU-gated (three matrices, else GELU and
    two). ``tied`` says that the head uses the embedding's table.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    gated: bool = True
    eps: float = 1e-5
    rope_theta: float = 10_000.0
    tied: bool = False

    @property
    def layer_parameters(self) -> int:
        """Return the parameters of one layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = self.hidden * self.intermediate * (3 if self.gated else 2)
        return attention + mlp + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """Return all parameters."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + self.layers * self.layer_parameters + self.hidden
