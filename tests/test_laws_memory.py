"""Bytes on a card, against the terms printed in the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.errors import InputError
from zhenfa.laws import memory

PAPER: dict[str, Any] = {"flash": False, "gated": False, "dropout": True}


def _layer(tokens: int, hidden: int, heads: int, sequence: int, **changes: Any) -> Any:
    settings = {**PAPER, "intermediate": 4 * hidden, "tensor_parallel": 1, "sequence_parallel": False, **changes}
    return memory.layer_activation_bytes(tokens, hidden, heads, sequence, **{"recompute": "none", **settings})


@given(st.integers(1, 8), st.sampled_from([512, 2048]), st.sampled_from([8, 96]), st.sampled_from([1, 2, 8]))
def test_korthikanti_equations(batch: int, sequence: int, heads: int, t: int) -> None:
    """Table 2 of Korthikanti et al. 2022, row by row."""
    hidden = 128 * heads
    sbh, scores = sequence * batch * hidden, 5 * heads * sequence / hidden
    shape = (sequence * batch, hidden, heads, sequence)
    assert _layer(*shape) == pytest.approx(sbh * (34 + scores))
    assert _layer(*shape, tensor_parallel=t) == pytest.approx(sbh * (10 + 24 / t + scores / t))
    assert _layer(*shape, tensor_parallel=t, sequence_parallel=True) == pytest.approx(sbh / t * (34 + scores))
    assert _layer(*shape, tensor_parallel=t, recompute="selective") == pytest.approx(sbh * (10 + 24 / t))
    both = _layer(*shape, tensor_parallel=t, sequence_parallel=True, recompute="selective")
    assert both == pytest.approx(sbh * 34 / t)
    assert _layer(*shape, recompute="full") == pytest.approx(2 * sbh)


def test_korthikanti_relative_memory() -> None:
    """Figure 7, GPT-175B with tensor parallelism 8: selective recomputation and sequence parallelism leave 18.5 %."""
    shape = (2048, 12288, 96, 2048)
    whole = _layer(*shape, tensor_parallel=8)
    both = _layer(*shape, tensor_parallel=8, sequence_parallel=True, recompute="selective")
    assert both / whole == pytest.approx(0.1849, abs=0.005)
    assert _layer(*shape, recompute="full") / whole == pytest.approx(0.0871, abs=0.005)


def test_flash_keeps_what_selective_keeps_and_a_number_per_row() -> None:
    shape = (4096, 4096, 32, 2048)
    spare = _layer(*shape, flash=True) - _layer(*shape, recompute="selective")
    assert spare == 4 * 4096 * 32


def test_fewer_key_heads_and_no_dropout_keep_less() -> None:
    shape = (4096, 4096, 32, 2048)
    assert _layer(*shape, key_heads=8) < _layer(*shape)
    assert _layer(*shape) - _layer(*shape, dropout=False) == 4096 * (2 * 4096 + 3 * 32 * 2048)


@pytest.mark.parametrize(("stage", "printed"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_zero_figure_1(stage: int, printed: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 B parameters on 64 cards, 2 + 2 + 12 bytes, in GB."""
    parts = memory.training_state_bytes(7.5e9, zero=stage, data_parallel=64, gradient_bytes=2)
    assert sum(parts) / 1e9 == pytest.approx(printed, abs=0.06)


def test_zero_stages_as_an_array() -> None:
    weights, gradients, optimizer = memory.training_state_bytes(1e9, zero=np.arange(4), data_parallel=8)
    np.testing.assert_allclose(weights, [2e9, 2e9, 2e9, 2.5e8])
    np.testing.assert_allclose(gradients, [4e9, 4e9, 5e8, 5e8])
    np.testing.assert_allclose(optimizer, [12e9, 1.5e9, 1.5e9, 1.5e9])


@given(st.integers(1, 12), st.integers(1, 40), st.data())
def test_in_flight_equals_counting_the_order(stages: int, micro_batches: int, data: st.DataObject) -> None:
    from zhenfa.laws.pipeline import schedule_order

    stage = data.draw(st.integers(0, stages - 1))
    for schedule in ("gpipe", "1f1b"):
        order = schedule_order(stage, stages, micro_batches, schedule)
        kept = np.cumsum([1 if kind == "forward" else -1 for kind, _ in order])
        assert memory.in_flight_micro_batches(stage, stages, micro_batches, schedule) == kept.max()


def test_wrong_names_are_named() -> None:
    with pytest.raises(InputError, match="'most'"):
        _layer(1, 8, 1, 1, recompute=np.array(["none", "most"]))
    with pytest.raises(InputError, match="zigzag"):
        memory.in_flight_micro_batches(0, 2, 4, "zigzag")
