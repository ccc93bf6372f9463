"""Matrices whose weight gradient can be left for later, and what the experts among them have done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass
class Routed:
    """What the experts of a card did. ``flops``: so far, which differ from one micro-batch to the next.

    While ``counting``, ``chosen`` adds up how often each expert of a layer was chosen by the card's own tokens, and
    ``loads`` the copies on the busiest card of the group over the mean, exchange by exchange.
    """

    flops: float = 0.0
    counting: bool = False
    chosen: dict[int, Any] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)

    def add(self, flops: float) -> None:
        """Count FLOPs of an expert."""
        self.flops += flops

    def choose(self, layer: int, counts: Any) -> None:
        """Count how often the experts of a layer were chosen."""
        if self.counting:
            self.chosen[layer] = self.chosen[layer] + counts if layer in self.chosen else counts

    def told(self) -> dict[str, Any]:
        """Return what was counted as plain data."""
        return {"chosen": {str(layer): counts.tolist() for layer, counts in self.chosen.items()}, "loads": self.loads}

    def load(self, copies: Any) -> None:
        """Note the copies on each card of a group."""
        if self.counting and int(copies.sum()):
            self.loads.append(float(copies.max() / copies.double().mean()))


@dataclass(frozen=True)
class Delayed:
    """What the gradient of one weight needs, kept until it is time to compute it."""

    weight: Any
    features: Any
    gradient: Any
    collect: Callable[[Any], None] | None
    count: Callable[[float], None] | None = None

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def add(self) -> None:
        """Compute the gradient and add it to the weight's, as the backward pass would have done."""
        found = self.gradient.flatten(0, -2).t() @ self.features.flatten(0, -2)
        if self.count is not None:
            self.count(2.0 * self.features.numel() * len(self.weight))
        self.weight.grad = found if self.weight.grad is None else self.weight.grad.add_(found)
        if self.collect is not None:
            self.collect(self.weight)


class Kept(torch.autograd.Function):  # type: ignore[misc]
    """Keeps the features that the product after it needs in its backward pass; they pass through as they are.

    Apart from the product, so that a layer that is computed again stops before its last one.
    """

    @staticmethod
    def forward(ctx: Any, features: Any, holder: list[Any]) -> Any:
        """Return the features, and put into ``holder`` where they are kept."""
        ctx.save_for_backward(features)
        holder.append(ctx)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None]:
        """Return the gradient as it is."""
        return gradients[0], None


class Product(torch.autograd.Function):  # type: ignore[misc]
    """``features @ weight.T``, whose weight gradient can be left for later. Source: Qi et al. 2024, section 2.

    ``holder`` is where :class:`Kept` put the features; ``count``, if given, is told the FLOPs of every product.
    """

    @staticmethod
    def forward(ctx: Any, features: Any, weight: Any, decoder: Any, holder: list[Any], count: Any) -> Any:
        """Return the product."""
        ctx.weight, ctx.decoder, ctx.holder, ctx.count = weight, decoder, holder, count  # the parameter itself
        if count is not None:
            count(2.0 * features.numel() * len(weight))
        return functional.linear(features, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, None, None, None]:
        """Return the gradients of features and weight."""
        (features,), weight = ctx.holder.pop().saved_tensors, ctx.weight
        (gradient,), decoder = gradients, ctx.decoder
        of_features = gradient @ weight if ctx.needs_input_grad[0] else None
        delayed = decoder.delayed is not None
        if ctx.count is not None:
            ctx.count(2.0 * features.numel() * len(weight) * ((of_features is not None) + (not delayed)))
        if delayed:
            decoder.delayed.append(Delayed(weight, features, gradient, decoder.collect, ctx.count))
            return of_features, None, None, None, None
        return of_features, gradient.flatten(0, -2).t() @ features.flatten(0, -2), None, None, None


def product(features: Any, weight: Any, decoder: Any) -> Any:
    """Return ``features @ weight.T``; torch's own operator unless the decoder may leave weight gradients for later."""
    if decoder is None or not decoder.splits:
        return functional.linear(features, weight)
    holder: list[Any] = []
    return Product.apply(Kept.apply(features, holder), weight, decoder, holder, None)


class Linear(nn.Linear):  # type: ignore[misc]
    """A matrix without bias whose weight gradient can be left for later."""

    def __init__(self, features: int, results: int) -> None:
        super().__init__(features, results, bias=False)

    def forward(self, features: Any) -> Any:
        """Return the product of features and matrix."""
        return product(features, self.weight, self.__dict__.get("decoder"))


class ExpertLinear(Linear):
    """A matrix of an expert: its FLOPs are counted as they come, for no two micro-batches give it as many rows."""

    def forward(self, features: Any) -> Any:
        """Return the product of features and matrix."""
        return self.multiply(*self.keep(features))

    def keep(self, features: Any) -> tuple[Any, list[Any]]:
        """Return what :meth:`multiply` takes, and keep for the backward pass what that needs."""
        holder: list[Any] = []
        return Kept.apply(features, holder), holder

    def multiply(self, features: Any, holder: list[Any]) -> Any:
        """Return the product of what was kept."""
        decoder = self.__dict__["decoder"]
        return Product.apply(features, self.weight, decoder, holder, decoder.routed.add)
