"""The sizes of a decoder that this runtime can build."""

from __future__ import annotations

from dataclasses import dataclass

from zhenfa.live.foreign.source import Source


@dataclass(frozen=True)
class Mixture:
    """The mixtures of experts of a decoder, all alike, in ``layers``: ``active`` of ``experts`` for each token.

    ``size``: inner features of an expert. ``normalized``: the weights of a token's experts are divided by their sum.
    ``shared``: inner features of what every token passes through besides (0: nothing), which a learnt scalar of the
    token scales where there is a ``shared_gate``. ``gated`` and ``shared_gated`` as in :class:`Sizes`.
    """

    experts: int
    active: int
    size: int
    layers: tuple[int, ...]
    gated: bool = True
    normalized: bool = True
    shared: int = 0
    shared_gated: bool = True
    shared_gate: bool = False

    def expert_parameters(self, hidden: int) -> int:
        """Return the parameters of one expert."""
        return hidden * self.size * (3 if self.gated else 2)

    def parameters(self, hidden: int) -> int:
        """Return the parameters of one layer's router, experts and shared expert."""
        shared = hidden * self.shared * (3 if self.shared_gated else 2) + hidden * self.shared_gate
        return hidden * self.experts + self.experts * self.expert_parameters(hidden) + shared


@dataclass(frozen=True)
class Sizes:
    """A decoder: embedding, ``layers`` of attention and MLP with RMS norm and rotary positions, norm, head.

    Counts are features, heads or layers. ``gated`` says that the MLP is SiLU-gated (three matrices, else GELU and
    two). ``tied`` says that the head uses the embedding's table. ``mixture``: experts instead of the MLP in some of the
    layers; ``intermediate`` is 0 where that is all of them. ``source``: where another module than the runtime's own
    comes from, of which only ``hidden``, ``layers`` and ``vocabulary`` are told besides (the rest is 1, or 0).
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
    mixture: Mixture | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        """Take mixture and source from plain data, too."""
        if self.source is not None:
            object.__setattr__(self, "source", Source.from_data(self.source))
        if isinstance(self.mixture, dict):
            known = self.mixture | {"layers": tuple(self.mixture["layers"])}
            object.__setattr__(self, "mixture", Mixture(**known))

    def experts(self, layer: int) -> int:
        """Return how many experts a layer has, 0 for a dense one."""
        return self.mixture.experts if self.mixture is not None and layer in self.mixture.layers else 0

    @property
    def layer_parameters(self) -> int:
        """Return the parameters of one dense layer."""
        return self._attention + self.hidden * self.intermediate * (3 if self.gated else 2)

    def parameters_of(self, layer: int) -> int:
        """Return the parameters of a layer."""
        if self.source is not None:
            return self.source.block_counts[layer]
        if self.mixture is None or not self.experts(layer):
            return self.layer_parameters
        return self._attention + self.mixture.parameters(self.hidden)

    @property
    def parameters(self) -> int:
        """Return all parameters."""
        if self.source is not None:
            return sum(self.source.counts) + sum(self.source.block_counts)
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + sum(self.parameters_of(layer) for layer in range(self.layers)) + self.hidden

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to, as :func:`part_of` says or as the source does."""
        return part_of(name) if self.source is None else self.source.part_of(name)

    @property
    def _attention(self) -> int:
        """Return the parameters of a layer's attention and norms."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads) + 2 * self.hidden


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to.

    >>> part_of("layers.3.mlp.experts.5.up.weight"), part_of("layers.3.mlp.router.weight"), part_of("norm.weight")
    ('layer 3 expert 5', 'layer 3', 'head')
    """
    if name.startswith("layers."):
        _, layer, block, *rest = name.split(".")
        return f"layer {layer} expert {rest[1]}" if (block, rest[0]) == ("mlp", "experts") else f"layer {layer}"
    return "stem" if name.startswith("embedding.") else "head"
