"""Work and time of arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.laws import attention, compute, experts, matmul

CARD = {
    "peak": 1e15, "bandwidth": 3e12, "cores": 128, "weight_bytes": 2.0, "input_bytes": 2.0, "share": 0.8,
    "memory_share": 0.9, "fixed": 0.0, "fill": 64.0, "wave": 0.2,
}  # fmt: skip
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
    time = matmul.matmul_time(rows, inputs, outputs, **CARD)
    arithmetic = compute.matmul_flops(rows, inputs, outputs) / 0.8e15
    memory = 2 * (inputs * outputs + rows * (inputs + outputs)) / 2.7e12
    assert time >= max(arithmetic, memory) * (1 - 1e-12)


@given(size, size, size, st.integers(1, 500))
def test_more_rows_never_take_less_time(rows: int, inputs: int, outputs: int, more: int) -> None:
    few, many = matmul.matmul_time(np.array([rows, rows + more]), inputs, outputs, **CARD)
    assert many >= few * (1 - 1e-12)


def test_tiles_are_padded_and_rounds_counted() -> None:
    card = {**CARD, "cores": 1, "wave": 1.0, "bandwidth": 1e30, "fill": 0}
    small, one_more, two = (matmul.matmul_time(rows, 4096, 128, **card) for rows in (128, 129, 256))
    assert one_more == two == pytest.approx(2 * small)
    assert matmul.matmul_time(64, 4096, 128, **card) == pytest.approx(small / 2)
    many = {**card, "cores": 100}
    assert matmul.matmul_time(150 * 128, 4096, 128, **many) == matmul.matmul_time(200 * 128, 4096, 128, **many)
    assert matmul.waves(150, 100, 0.0) == 1.5


def test_one_row_is_bound_by_the_weights() -> None:
    time = matmul.matmul_time(1, 8192, 8192, **CARD)
    assert time == pytest.approx(2 * 8192**2 / 2.7e12, rel=0.05)


def test_grouped_matmuls_are_one_launch() -> None:
    card = {**CARD, "fixed": 1e-3, "wave": 0.0}
    together = matmul.matmul_time(64, 2048, 1408, **card, groups=16)
    alone = matmul.matmul_time(64, 2048, 1408, **card)
    assert together == pytest.approx(16 * alone - 15e-3)


def test_no_rows_cost_the_weights_only() -> None:
    assert compute.matmul_flops(0, 8, 8) == 0
    assert matmul.matmul_time(0, 8192, 8192, **CARD) == pytest.approx(2 * 8192**2 / 2.7e12)


DECODE = {
    "peak": 1e15, "bandwidth": 3e12, "share": 0.3, "memory_share": 0.9, "fixed": 0.0, "keys": 0.0, "chunk": 512,
    "walk": 0.0, "sequence": 0.0, "head": 0.0,
}  # fmt: skip


def test_decode_is_bound_by_the_cache() -> None:
    time = attention.decode_time(64, 8192, 64, 128, 128, key_heads=8, cached=256, **DECODE)
    assert time == pytest.approx(64 * 8192 * 8 * 256 * 2 / 2.7e12, rel=0.05)


def test_groups_too_large_to_share_a_read_each_read_for_themselves() -> None:
    shared, apart = (
        attention.decode_time(64, 8192, 64, 128, 128, key_heads=1, cached=256, pack=pack, **DECODE)
        for pack in (np.inf, 32)
    )
    assert apart > 10 * shared


@given(st.integers(1, 4096), st.integers(1, 16), st.sampled_from([8, 64, 256]), st.sampled_from([1, 2, 8]))
def test_uneven_popularity_is_no_relief(tokens: int, active: int, experts_in_all: int, ranks: int) -> None:
    even = experts.busiest_rank(tokens, active, experts_in_all, ranks, 0.0)
    uneven = experts.busiest_rank(tokens, active, experts_in_all, ranks, 1.2)
    assert even == 1.0 <= uneven <= ranks
    held = experts_in_all / ranks
    copies = tokens * active / ranks
    all_of_them = experts.touched_experts(copies, held, tokens, active, experts_in_all, 0.0)
    some = experts.touched_experts(copies, held, tokens, active, experts_in_all, 1.2)
    assert 0 < some <= all_of_them == min(held, copies)


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
