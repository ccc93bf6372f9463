"""Work and time of arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.laws import compute

CARD = {"peak": 1e15, "achievable": 0.8, "bandwidth": 3e12, "memory_share": 0.9, "activation_bytes": 2.0, "launch": 0.0}
size = st.integers(1, 20000)


@given(st.integers(1, 60), st.integers(0, 60), st.one_of(st.just(np.inf), st.integers(1, 70)))
def test_attention_pairs_equal_counting_the_mask(queries: int, before: int, window: float) -> None:
    context = before + queries
    row, column = np.indices((queries, context))
    position = row + before
    mask = (column <= position) & (column > position - window)
    assert compute.attention_pairs(queries, context, window=window) == mask.sum()


@given(st.integers(1, 100_000))
def test_causal_is_exactly_half_and_the_diagonal(sequence: int) -> None:
    assert compute.attention_pairs(sequence, sequence) == sequence * (sequence + 1) / 2


@given(size, size, size)
def test_matmul_lies_on_or_above_the_roofline(rows: int, inputs: int, outputs: int) -> None:
    share = compute.shape_share(rows, inputs, outputs)
    assert 0 < share < 1
    time = compute.matmul_time(rows, inputs, outputs, **CARD, weight_bytes=2)
    arithmetic = compute.matmul_flops(rows, inputs, outputs) / 0.8e15
    memory = 2 * (inputs * outputs + rows * (inputs + outputs)) / 2.7e12
    assert time >= max(arithmetic, memory) * (1 - 1e-12)
    assert time == pytest.approx(max(arithmetic / share, memory))


@given(size, size, size, st.integers(1, 500))
def test_more_rows_never_take_less_time(rows: int, inputs: int, outputs: int, more: int) -> None:
    few, many = compute.matmul_time(np.array([rows, rows + more]), inputs, outputs, **CARD, weight_bytes=2)
    assert many >= few * (1 - 1e-12)


def test_tiles_are_padded() -> None:
    assert compute.shape_share(129, 1e9, 128) == pytest.approx(129 / 256, rel=1e-6)
    assert compute.shape_share(256, 1e9, 384) == pytest.approx(1, rel=1e-6)


def test_one_row_is_bound_by_the_weights() -> None:
    time = compute.matmul_time(1, 8192, 8192, **CARD, weight_bytes=2)
    assert time == pytest.approx(2 * 8192**2 / 2.7e12, rel=1e-3)


def test_grouped_experts_are_one_launch() -> None:
    card = {**CARD, "launch": 1e-3}
    together = compute.matmul_time(64, 2048, 1408, **card, weight_bytes=2, groups=16)
    alone = compute.matmul_time(64, 2048, 1408, **card, weight_bytes=2)
    assert together == pytest.approx(16 * alone - 15e-3)


def test_no_rows_cost_the_weights_only() -> None:
    assert compute.matmul_flops(0, 8, 8) == 0
    assert compute.matmul_time(0, 8192, 8192, **CARD, weight_bytes=2) == pytest.approx(2 * 8192**2 / 2.7e12)


def test_attention_decode_is_bound_by_the_cache() -> None:
    time = compute.attention_time(1, 8192, 64, 128, 128, key_heads=8, **CARD)
    assert time == pytest.approx(8192 * 8 * 256 * 2 / 2.7e12, rel=1e-2)


def test_window_makes_attention_linear() -> None:
    short, long = compute.attention_flops(np.array([65536, 131072]), np.array([65536, 131072]), 8, 64, 64, window=1024)
    assert long / short == pytest.approx(2, rel=0.01)


def test_scan_is_linear_and_counts_two_products() -> None:
    assert compute.scan_flops(2000, 4, 64, 32) == 2 * compute.scan_flops(1000, 4, 64, 32)
    assert compute.scan_flops(1, 1, 64, 32) == 2 * compute.matmul_flops(1, 64, 32)


def test_mfu_convention_reproduces_megatron() -> None:
    """GPT-175B: 96 B s l h^2 (1 + s/6h + V/16lh) with full recomputation is 4/3 of three forward passes."""
    layers, hidden, sequence, vocabulary = 96, 12288, 2048, 51200
    matmul = 12 * layers * hidden**2 + vocabulary * hidden
    ours = compute.training_flops_per_token(matmul, layers, 96, 128, sequence)
    theirs = 72 * layers * hidden**2 * (1 + sequence / (6 * hidden) + vocabulary / (12 * layers * hidden))
    assert ours == pytest.approx(theirs)
    causal = compute.training_flops_per_token(matmul, layers, 96, 128, sequence, causal=True)
    assert ours - causal == pytest.approx(6 * layers * hidden * (sequence - 1))
