"""Steps of a serving engine: they grow with what they carry, shrink with cards, and never beat the memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa import catalog
from zhenfa.estimate import serving_cards, serving_engine, serving_memory, wires
from zhenfa.estimate.serving_step import Layout, Load, Setup, fused, step
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import Machine, Pool
from zhenfa.spec.model import read_model
from zhenfa.spec.serving import WeightFormat

DENSE, SPARSE, LATENT = "llama3-8b", "qwen3-30b-a3b", "deepseek-v3"
MODELS = (DENSE, SPARSE, LATENT, "qwen3-next-80b-a3b", "gpt-oss-120b")


@cache
def graph_of(model: str) -> Graph:
    return read_model(catalog.model_path(model)).graph()


@cache
def setup_of(model: str, tensor: int = 1, data: int = 1, expert: int = 1, weights: WeightFormat = "fp8") -> Setup:
    pool = catalog.resolve(catalog.machine("hgx-h100")).pools[0]
    graph = graph_of(model)
    cards = serving_cards.look_up(pool, graph, weights, "bf16")
    layout = Layout(tensor=float(tensor), data=float(data), expert=float(expert))
    return Setup(graph, cards, wires.fabric(pool)[0], layout)


@pytest.mark.parametrize("model", MODELS)
def test_a_step_takes_longer_with_more_requests_and_longer_caches(model: str) -> None:
    setup = setup_of(model, tensor=8)
    batches = np.array([1.0, 2, 8, 32, 128, 512])
    times = np.asarray(step(setup, Load(sequences=batches, context=2000.0)).total)
    assert np.all(np.diff(times) > -1e-7 * times[:-1])
    assert times[-1] > times[0]
    longer = np.asarray(step(setup, Load(sequences=64.0, context=np.array([100.0, 1e3, 1e4, 1e5]))).total)
    assert np.all(np.diff(longer) >= 0)
    assert longer[-1] > longer[0]


@pytest.mark.parametrize("model", [DENSE, LATENT])
@settings(max_examples=25, deadline=None)
@given(batch=st.floats(1, 512), context=st.floats(1, 20_000))
def test_a_step_is_no_faster_than_reading_weights_and_cache(model: str, batch: float, context: float) -> None:
    setup = setup_of(model, tensor=8)
    graph, chip = setup.graph, setup.cards.dense
    taken = float(step(setup, Load(sequences=batch, context=context)).total)
    cache_bytes = 2.0 * batch * context * sum(
        operator.cache / (1 if operator.latent else max(min(8, operator.kv_heads), 1))
        for layer in graph.layers for operator in graph.kinds[layer].operators
    )  # fmt: skip
    routed = sum(
        operator.parameters for layer in graph.layers for operator in graph.kinds[layer].operators
        if operator.kind == "grouped_matmul"
    )  # fmt: skip
    always = (graph.parameters - routed - graph.vocabulary * graph.hidden) / 8
    assert taken > (always + cache_bytes) / chip.bandwidth


@pytest.mark.parametrize("model", MODELS)
def test_arrays_and_single_steps_agree(model: str) -> None:
    setup = setup_of(model, tensor=4)
    batches, prompts = np.array([0.0, 3.0, 70.0]), np.array([0.0, 1.0, 4.0])
    loads = [(b, p) for b in batches for p in prompts]
    many = step(setup, Load(np.array([b for b, _ in loads]), 900.0, 2.0, np.array([p for _, p in loads]), 256.0, 256.0))
    for index, (batch, prompt) in enumerate(loads):
        one = step(setup, Load(float(batch), 900.0, 2.0, float(prompt), 256.0, 256.0))
        assert float(one.total) == pytest.approx(np.asarray(many.total)[index], rel=1e-12)
        assert float(one.launches) == pytest.approx(np.broadcast_to(many.launches, len(loads))[index])


@pytest.mark.parametrize("model", [DENSE, SPARSE])
def test_tensor_parallelism_cuts_the_weights_each_card_holds(model: str) -> None:
    held = [
        float(serving_memory.held(graph_of(model), setup_of(model, tensor=n).cards, Layout(tensor=float(n))).weights)
        for n in (1, 2, 4)
    ]
    for wide, narrow in zip(held[1:], held, strict=False):
        assert wide == pytest.approx(narrow / 2, rel=0.02)  # norms and routers are not cut
    alone, shared = (step(setup_of(model, tensor=n), Load(sequences=4.0, context=500.0)) for n in (1, 2))
    assert float(shared.kernels) < float(alone.kernels)
    assert float(alone.reduce) == 0.0 < float(shared.reduce)


def test_experts_apart_exchange_tokens_and_hold_fewer_weights() -> None:
    apart = setup_of(LATENT, data=8, expert=8)
    together = setup_of(LATENT, tensor=8)
    load = Load(sequences=256.0, context=1000.0)
    assert float(step(apart, load).exchange) > 0.0 == float(step(together, load).exchange)
    assert float(step(apart, load).exchanges) == 2 * 58
    per_card = serving_memory.held(apart.graph, apart.cards, apart.layout)
    assert float(serving_memory.capacity(per_card, 130e9, 2000.0)) > float(
        serving_memory.capacity(serving_memory.held(together.graph, together.cards, together.layout), 130e9, 2000.0)
    )  # the latent cache is copied to every card of a tensor group


def test_narrow_formats_hold_what_their_checkpoints_hold() -> None:
    whole = float(serving_memory.held(graph_of(DENSE), setup_of(DENSE, weights="bf16").cards, Layout()).weights)
    eight = float(serving_memory.held(graph_of(DENSE), setup_of(DENSE, weights="fp8").cards, Layout()).weights)
    assert whole == pytest.approx(16.06e9, rel=0.01)
    assert eight == pytest.approx(9.08e9, rel=0.02)  # embedding and head stay in 16 bits
    four = setup_of(LATENT, weights="nvfp4")
    assert four.cards.moe_only
    assert four.cards.attention.precision == "bf16"


def test_projections_that_share_an_input_are_one_matmul() -> None:
    layer = graph_of(LATENT).kinds[-1].operators
    joined = {operator.name: operator for operator in fused(layer)}
    assert joined["attention.query_down"].outputs == 1536 + 576
    assert "attention.latent_down" not in joined
    dense = graph_of(DENSE).kinds[0].operators
    assert fused(dense) == dense


def test_an_engine_adds_its_costs() -> None:
    engine = serving_engine.coefficients(serving_engine.find("vLLM v0.11.0", "NVIDIA"))
    cost = step(setup_of(DENSE, tensor=2), Load(sequences=16.0, context=500.0))
    taken = float(engine.time(cost, 16.0))
    pieces = float(cost.layers) * engine.layer - float(cost.launches) * engine.overlap
    pieces += float(cost.collectives) * engine.collective
    expected = float(cost.total) + (engine.pace - 1) * float(cost.kernels) + pieces + engine.step + 16 * engine.request
    assert taken == pytest.approx(expected, rel=1e-12)
    eager = float(engine.time(cost, 16.0, captured=False))
    assert eager >= taken
    assert eager >= float(cost.launches) * engine.dispatch


@pytest.mark.parametrize(
    ("text", "maker", "found"),
    [
        ("dynamo-sglang nan", "NVIDIA", "sglang"), ("mori-sglang rocm/sgl-dev", "AMD", "sglang-rocm"),
        ("TensorRT-LLM v1.0", "NVIDIA", "trtllm"), ("dynamo-trt", "NVIDIA", "trtllm"),
        ("vLLM v0.9.1", "NVIDIA", "vllm"),
        ("vLLM v0.9.1", "Huawei Ascend", "vllm-ascend"), ("CloudMatrix-Infer", "Huawei Ascend", "cloudmatrix"),
        ("ATOM + mooncake", "AMD", "atom"), ("EXO 1.0", "NVIDIA", "other"), ("", "NVIDIA", "other"),
    ],
)  # fmt: skip
def test_engines_are_found_however_they_are_written(text: str, maker: str, found: str) -> None:
    assert serving_engine.find(text, maker).id == found


def test_plans_stand_for_the_mode_that_their_command_asks_for() -> None:
    """vLLM on Ascend captures decode steps in pieces unless it is told to capture them whole; plans tell it."""
    pieces, whole = serving_engine.find("vLLM", "Huawei Ascend"), serving_engine.planned("vLLM", "Huawei Ascend")
    assert (pieces.id, whole.id) == ("vllm-ascend", "vllm-ascend-full")
    assert serving_engine.find("vllm-ascend 0.13, FULL_DECODE_ONLY", "Huawei Ascend") == whole
    assert serving_engine.planned("vLLM", "NVIDIA").id == "vllm"
    cost = step(setup_of(DENSE, tensor=2), Load(sequences=16.0, context=500.0))
    taken = [float(serving_engine.coefficients(one).time(cost, 16.0)) for one in (pieces, whole)]
    assert taken[0] - taken[1] > 0.9 * float(cost.layers) * (667e-6 - 3e-6)
    assert whole.graph_mode == "FULL_DECODE_ONLY"
    assert pieces.graph_mode is None
    assert [serving_engine.fitted(one.id) for one in (pieces, whole)] == [True, False]


def test_attention_over_selected_keys_pads_the_heads_of_a_card() -> None:
    def kernels(tensor: int) -> float:
        setup = setup_of("deepseek-v3.2", tensor=tensor)
        core = next(one for one in setup.graph.kinds[-1].operators if one.name == "attention.core")
        only = replace(setup.graph, stem=(core,), kinds=(), layers=(), head=())
        alone = replace(setup, graph=only)
        return float(step(alone, Load(prompts=1.0, chunk=4096.0, prompt_context=4096.0)).kernels)

    assert kernels(2) == pytest.approx(kernels(8), rel=0.05)  # 64 and 16 heads a card
    assert kernels(1) > 1.15 * kernels(2)  # the keys of each query are read whatever the heads


def test_cut_matrix_units_are_filled_better() -> None:
    def kernels(name: str) -> Mapping[str, Mapping[str, float]]:
        pool = catalog.resolve(
            Machine(name="m", pools=(Pool(name="p", accelerator=catalog.accelerators()[name], count=1, tiers=()),))
        ).pools[0]
        return serving_cards.look_up(pool, graph_of(DENSE), "fp8", "bf16").dense.kernels

    whole, cut = kernels("nvidia-h100-sxm"), kernels("nvidia-h20-sxm")
    assert whole["matmul"]["share"] < cut["matmul"]["share"] < 1.0
    assert whole["latent_prefill"]["share"] < cut["latent_prefill"]["share"] < 1.0
    units = (148 / 78) / (989 / 132)
    for cost in ("fill", "pad"):  # counted in FLOP of whole units
        assert cut["experts"][cost] == pytest.approx(whole["experts"][cost] * units, rel=0.3), cost
