"""Numbers packed for the bridge: how far they come back from where they were, and that nonsense stays nonsense."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.live.codec import BLOCK, SMALLEST, STEPS, moved_bytes, pack, packed_bytes, unpack

KINDS = ("none", "bf16", "int8")
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = st.lists(FLOATS, min_size=1, max_size=3 * BLOCK).map(lambda row: torch.tensor(row, dtype=torch.float32))


def there_and_back(kind: str, tensor: torch.Tensor) -> torch.Tensor:
    raw = pack(kind, tensor)
    assert raw.dtype == torch.uint8
    assert len(raw) == packed_bytes(kind, tensor.numel(), tensor.element_size())
    found = unpack(kind, raw, tensor)
    assert found.shape == tensor.shape
    assert found.dtype == tensor.dtype
    return found


@given(VECTORS)
def test_int8_is_off_by_half_a_scale_at_most(vector: torch.Tensor) -> None:
    found = there_and_back("int8", vector)
    for first in range(0, len(vector), BLOCK):
        block, back = (one[first : first + BLOCK].double() for one in (vector, found))
        scale = float(block.abs().max()) / STEPS
        bound = scale / 2 if scale >= SMALLEST else STEPS * SMALLEST
        assert float((block - back).abs().max()) <= bound * (1 + 1e-4), "quotient and product are rounded too"


@given(VECTORS)
def test_bf16_is_rounded_to_nearest(vector: torch.Tensor) -> None:
    vector = vector.clamp(-3e38, 3e38)  # beyond, bf16 has infinity alone
    found = there_and_back("bf16", vector)
    assert torch.equal(found, vector.to(torch.bfloat16).float())
    assert bool(((found - vector).abs() <= vector.abs() * 2**-8 + 1e-40).all())


@given(VECTORS, st.sampled_from(KINDS))
def test_what_came_back_once_comes_back_the_same_to_rounding(vector: torch.Tensor, kind: str) -> None:
    once = there_and_back(kind, vector)
    twice = there_and_back(kind, once)
    assert torch.allclose(once, twice, rtol=1e-5, atol=STEPS * SMALLEST)
    if kind == "none":
        assert torch.equal(once, vector)


@given(VECTORS, st.sampled_from(["bf16", "int8"]), st.sampled_from([math.inf, -math.inf, math.nan]), st.data())
def test_what_is_no_number_stays_none(vector: torch.Tensor, kind: str, poison: float, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(vector) - 1))
    vector[at] = poison
    found = there_and_back(kind, vector)
    assert not math.isfinite(float(found[at]))
    others = torch.ones(len(vector), dtype=torch.bool)
    others[at // BLOCK * BLOCK : (at // BLOCK + 1) * BLOCK] = False
    if kind == "int8":
        assert bool(found[others].isfinite().all()), "other blocks are untouched"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_types_and_zeros(kind: str, dtype: torch.dtype) -> None:
    zeros = torch.zeros(2, 3, 50, dtype=dtype)
    assert torch.equal(there_and_back(kind, zeros), zeros)
    features = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(1)).to(dtype).transpose(0, 1)
    assert torch.allclose(there_and_back(kind, features).float(), features.float(), atol=0.02)


def test_bytes_on_the_bridge_and_in_memory() -> None:
    assert [packed_bytes(kind, 1000, 4) for kind in KINDS] == [4000, 2000, 1000 + 4 * 8]
    assert packed_bytes("none", 1000, 2) == packed_bytes("bf16", 1000, 2) == 2000
    assert moved_bytes("none", 1000, 4) == (0, 0)
    assert moved_bytes("bf16", 1000, 4) == (6000, 6000)
    assert moved_bytes("int8", 1000, 4) == (9032, 5032)
