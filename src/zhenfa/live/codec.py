"""Numbers in fewer bits for the bridge between makers: packed into bytes on one side, unpacked on the other.

``bf16`` rounds to nearest. ``int8`` cuts the numbers into blocks of :data:`BLOCK`; each block has one scale, its
largest absolute value over 127, and each number becomes the nearest of 255 multiples of it. Source: Dettmers et al.
2022 (arXiv:2110.02861), section 2.1, block-wise quantization by the largest absolute value, here with evenly spaced
values and smaller blocks.

What is no number stays none: infinities and NaN make a whole int8 block NaN, so that whoever watches for them still
sees them. Packing is done where the tensor lies; both ends compute the same to the bit.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn import functional

from zhenfa.spec.job import BRIDGE_BLOCK, BridgeFormat

BLOCK: Final = BRIDGE_BLOCK
STEPS: Final = 127
"""Multiples of the scale on either side of zero."""
SMALLEST: Final = float(torch.finfo(torch.float32).tiny)
"""Least scale. A block of smaller numbers, below 2e-36, becomes zero."""
SCALE_BYTES: Final = 4


def packed_bytes(kind: BridgeFormat, count: int, width: int) -> int:
    """Return how many bytes ``count`` numbers of ``width`` bytes each take on the bridge."""
    if kind == "none":
        return count * width
    return 2 * count if kind == "bf16" else count + SCALE_BYTES * -(-count // BLOCK)


def moved_bytes(kind: BridgeFormat, count: int, width: int) -> tuple[int, int]:
    """Return the bytes of the card's memory that packing numbers reads and writes, and those of unpacking them.

    Looking for the largest value of a block reads everything once more.
    """
    if kind == "none":
        return 0, 0
    own, packed = count * width, packed_bytes(kind, count, width)
    return own * (2 if kind == "int8" else 1) + packed, packed + own


@torch.no_grad()  # type: ignore[untyped-decorator]
def pack(kind: BridgeFormat, tensor: Any) -> Any:
    """Return a tensor's numbers as bytes: uint8 of shape ``[packed_bytes]``, on the tensor's device."""
    flat = tensor.detach().contiguous().flatten()
    if kind == "none":
        return flat.view(torch.uint8)
    if kind == "bf16":
        return flat.to(torch.bfloat16).view(torch.uint8)
    count = len(flat)
    blocks = functional.pad(flat.float(), (0, -count % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    scale = largest / STEPS
    scale = torch.where((scale * STEPS).isfinite(), scale, scale * (1 - 2**-23))  # the largest number stays one
    usable = scale.isfinite() & (scale >= SMALLEST)
    whole = (blocks / torch.where(usable, scale, 1.0)).round_().clamp_(-STEPS, STEPS)
    numbers = torch.where(usable, whole, 0.0).to(torch.int8).flatten()[:count]
    scales = torch.where(usable, scale, torch.where(largest.isfinite(), 0.0, torch.nan)).flatten()
    return torch.cat((scales.view(torch.uint8), numbers.view(torch.uint8)))


@torch.no_grad()  # type: ignore[untyped-decorator]
def unpack(kind: BridgeFormat, raw: Any, like: Any) -> Any:
    """Return the numbers that bytes stand for, of shape and type as ``like``, on the bytes' device."""
    if kind == "none":
        return raw.view(like.dtype).view(like.shape)
    if kind == "bf16":
        return raw.view(torch.bfloat16).to(like.dtype).view(like.shape)
    count = int(like.numel())
    blocks = -(-count // BLOCK)
    scales = raw[: SCALE_BYTES * blocks].view(torch.float32)
    numbers = functional.pad(raw[SCALE_BYTES * blocks :].view(torch.int8).float(), (0, -count % BLOCK))
    found = numbers.view(-1, BLOCK).mul_(scales[:, None])
    return found.flatten()[:count].to(like.dtype).view(like.shape)
