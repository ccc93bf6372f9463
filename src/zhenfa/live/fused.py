"""Norm and gate that keep for the backward pass only what cannot be had again for next to nothing.

Plain torch keeps the normed input of an RMS norm and the activated gate as well; kernels for accelerators do not, and
neither do these. Sums over features are taken in 32 bits where the features have 16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


class RmsNorm(torch.autograd.Function):  # type: ignore[misc]
    """``x / rms(x) * weight`` over the last axis; keeps ``x`` and one number for each row.

    Source: Zhang and Sennrich 2019, equation 4.
    """

    @staticmethod
    def forward(ctx: Any, features: Any, weight: Any, eps: float) -> Any:
        """Return the normed features."""
        wide = widened(features)
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(features, weight, scale)
        return (wide * scale * weight).to(features.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, None]:
        """Return the gradients of features and weight."""
        features, weight, scale = ctx.saved_tensors
        gradient = widened(gradients[0])
        normed = widened(features) * scale
        weighted = gradient * weight
        inner = (weighted * normed).mean(-1, keepdim=True)
        of_weight = (gradient * normed).flatten(0, -2).sum(0)
        of_features = torch.addcmul(weighted, normed, inner, value=-1.0).mul_(scale)
        return of_features.to(features.dtype), of_weight.to(weight.dtype), None


def widened(tensor: Any) -> Any:
    """Return a tensor of 16 bits in 32, any other as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class GatedSilu(torch.autograd.Function):  # type: ignore[misc]
    """``silu(gate) * up``; keeps its two inputs. Source: Shazeer 2020, equation 6."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any) -> Any:
        """Return the gated features."""
        ctx.save_for_backward(gate, up)
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any]:
        """Return the gradients of gate and up."""
        gate, up = ctx.saved_tensors
        (gradient,) = gradients
        of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return of_gate, gradient * functional.silu(gate)


class WeighedSilu(torch.autograd.Function):  # type: ignore[misc]
    """``silu(gate) * up * weight``, one weight for each row; keeps its three inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any, weights: Any) -> Any:
        """Return the gated and weighed features."""
        ctx.save_for_backward(gate, up, weights)
        return functional.silu(gate) * up * weights

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, Any]:
        """Return the gradients of gate, up and weights."""
        gate, up, weights = ctx.saved_tensors
        (gradient,) = gradients
        active, weighed = functional.silu(gate), gradient * weights
        of_gate = torch.ops.aten.silu_backward(weighed * up, gate)
        of_weights = (widened(gradient) * active * up).sum(-1, keepdim=True).to(weights.dtype)
        return of_gate, weighed * active, of_weights
