"""What a card holds: against Korthikanti's law, against counting, and by kind of layer."""

from __future__ import annotations

import pytest

from plan_pools import dense, machine, model, plan_of, pool, sparse
from zhenfa import catalog
from zhenfa.estimate.holding import gathered, holding, working_set
from zhenfa.estimate.layer import Shape
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import MEGATRON_LIKE
from zhenfa.laws import memory
from zhenfa.spec.graph import Graph
from zhenfa.spec.job import Workload
from zhenfa.spec.machine import Tier
from zhenfa.spec.model import read_model
from zhenfa.spec.plan import Pipeline, Stage

GPT, LLAMA, DEEPSEEK = "gpt3-175b", "llama3-8b", "deepseek-v3"
SHAPES = {GPT: (12288, 96, 96, 49152, False), LLAMA: (4096, 32, 8, 14336, True)}


def graph(name: str) -> Graph:
    return read_model(catalog.model_path(name)).graph()


def shape(sequences: int, sequence: int, tensor: int = 1, expert: int = 1, data: int = 1) -> Shape:
    return Shape(float(sequences), float(sequence), float(tensor), float(expert), float(data))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tensor", [1, 2, 8])
@pytest.mark.parametrize("sequence", [2048, 8192])
def test_a_layer_keeps_what_korthikanti_counts(name: str, tensor: int, sequence: int) -> None:
    """Flash attention, sequence parallelism, no dropout: the law's 34 s b h less two masks, exactly."""
    hidden, heads, key_heads, intermediate, gated = SHAPES[name]
    layer = graph(name).kinds[0].operators
    for code, mode in ((0, "none"), (2, "full")):
        held = holding(layer, shape(2, sequence, tensor), "bf16", 0, code, MEGATRON_LIKE, hidden)
        law = memory.layer_activation_bytes(
            2 * sequence, hidden, heads, sequence, tensor_parallel=tensor, sequence_parallel=True, flash=True,
            intermediate=intermediate, gated=gated, recompute=mode, key_heads=key_heads,
        )  # fmt: skip
        assert float(held.activation) == pytest.approx(float(law), rel=1e-12)


def test_the_parts_that_selective_recomputation_spares() -> None:
    """Outputs of norms and activation functions: for GPT, 4 + 8 of 32 bytes a token and hidden unit."""
    layer, at = graph(GPT).kinds[0].operators, shape(1, 2048)
    none, selective = (float(holding(layer, at, "bf16", 0, code, MEGATRON_LIKE, 12288).activation) for code in (0, 1))
    statistics = 2048 * 96 * memory.LOGSUMEXP_BYTES
    assert none == pytest.approx(32 * 2048 * 12288 + statistics)
    assert selective == pytest.approx(20 * 2048 * 12288 + statistics)
    passing = 2 * 2 * 4 * 2048 * 12288  # gradients of what enters and leaves the activation function
    assert float(working_set(layer, at, "bf16", 0)) == pytest.approx(passing)
    assert float(working_set(layer, at, "bf16", 1)) == pytest.approx(none - selective + passing)
    assert float(working_set(layer, at, "bf16", 2)) == pytest.approx(none + passing)


def test_the_loss_is_kept_in_32_bits() -> None:
    whole = graph(LLAMA)
    held = holding(whole.head, shape(1, 1024, 4), "bf16", 0, 0, MEGATRON_LIKE, whole.hidden)
    assert float(held.activation) == pytest.approx(1024 * (2 * 4096 + 4 * 128256) / 4)


def test_experts_keep_one_copy_of_a_token_each() -> None:
    hidden, active = 1024, 2
    layer = sparse(hidden, 8, 8, active)
    kept = float(holding(layer, shape(1, 512), "bf16", 0, 0, MEGATRON_LIKE, hidden).activation) / 512
    attention = 2 * (hidden + 3 * hidden + hidden + hidden + hidden) + 8 * memory.LOGSUMEXP_BYTES
    experts = 2 * (8 + active * hidden + active * hidden + active * hidden + hidden)  # router, in, up, out, stream
    assert kept == pytest.approx(attention + experts)


def test_experts_are_sharded_over_their_own_group() -> None:
    hidden, experts = 1024, 8
    layer = sparse(hidden, 8, experts, 2)
    routed = 2 * experts * hidden * hidden
    shared = sum(one.parameters for one in layer) - routed
    for tensor, expert, data in ((1, 4, 8), (2, 8, 8), (4, 2, 1)):
        at = shape(1, 128, tensor, expert, data)
        held = holding(layer, at, "bf16", 1, 0, MEGATRON_LIKE, hidden)
        split = sum(one.parameters for one in layer if one.shard in {"column", "row"}) / tensor
        whole = sum(one.parameters for one in layer if one.shard == "none")
        assert float(held.shared) == pytest.approx(split + whole)
        assert float(held.routed) == pytest.approx(routed / expert)
        peers = data * tensor / expert
        assert float(held.optimizer) == pytest.approx(12 * ((split + whole) / data + routed / expert / max(peers, 1)))
    assert shared > 0


def test_deepseek_keeps_its_published_weights() -> None:
    whole = graph(DEEPSEEK)
    parameters = whole.parameters + whole.extra_parameters
    assert parameters == pytest.approx(671e9 + 11.6e9, rel=0.01)  # arXiv:2412.19437: 671 B, 14 B with shared embeddings
    held = 0.0
    for index, kind in enumerate(whole.kinds):
        one = holding(kind.operators, shape(1, 4096), "bf16", 0, 0, MEGATRON_LIKE, whole.hidden)
        held += float(one.weights) * whole.layers.count(index)
    for block in (whole.stem, (*whole.head, *whole.extra)):
        held += float(holding(block, shape(1, 4096), "bf16", 0, 0, MEGATRON_LIKE, whole.hidden).weights)
    assert held == pytest.approx(2 * parameters, rel=1e-9)


def test_gathered_weights_are_two_layers_and_one_layers_gradients() -> None:
    layer, at = graph(LLAMA).kinds[0].operators, shape(1, 128, data=8)
    held = holding(layer, at, "bf16", 3, 0, MEGATRON_LIKE, 4096)
    count = sum(one.parameters for one in layer)
    assert float(gathered(held, "bf16", 3)) == pytest.approx((2 * 2 + 2 + 4) * count)  # sent in 32 bits
    assert float(gathered(held, "bf16", 3, MEGATRON_LIKE.but(reduced_bytes=2.0))) == pytest.approx((2 * 2 + 2) * count)
    assert float(gathered(held, "bf16", 2)) == 0.0
    assert float(held.weights) == pytest.approx(2 * count / 8)


def small() -> Setting:
    tier = Tier(name="node", size=8, bandwidth="400 GB/s", latency="1 us")
    cards = pool("p0", 8, [tier], peak=300e12, capacity=80e9, bandwidth=2e12, matmul=0.8)
    return look_up(
        model(1024, 32000, [dense(1024, 8, 8, 4096)], [0] * 8), Workload(sequence_length=1024, global_batch=16),
        machine(cards),
    )  # fmt: skip


def test_a_stage_keeps_as_many_micro_batches_as_it_has_in_flight() -> None:
    setting = small()
    stages = tuple(Stage(pool="p0", first=2 * index, last=2 * index + 2) for index in range(4))
    for times in (1, 2, 16):
        found = cost(plan_of(setting, [Pipeline(micro_batches=times, stages=stages)]), setting).stages
        for index, stage in enumerate(found):
            assert stage.memory["activations"] == pytest.approx(
                min(4 - index, times) * stage.activation + stage.working
            )
            assert stage.working > 0
            assert (stage.cached > 0) == (index == 3)  # the loss beside the layers
    gpipe = plan_of(setting, [Pipeline(micro_batches=16, stages=stages)]).model_copy(update={"schedule": "gpipe"})
    for stage in cost(gpipe, setting).stages:
        assert stage.memory["activations"] == pytest.approx(16 * stage.activation + stage.working)
