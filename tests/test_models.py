"""Model documents: what they compile to, and that the packaged ones count what their makers say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa import catalog
from zhenfa.errors import DocumentError
from zhenfa.spec.graph import Graph, Operator
from zhenfa.spec.huggingface.decoder import runs
from zhenfa.spec.model import Model, read_model
from zhenfa.spec.model_blocks import (
    Attention,
    Convolution,
    Dense,
    Embedding,
    Experts,
    Head,
    Indexer,
    LatentAttention,
    Layer,
    Prediction,
    Projection,
    Quantization,
    Recurrent,
    SharedExpert,
)

EXACT = {
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-235b-a22b": 235_093_634_560,
    "mixtral-8x7b": 46_702_792_704,
    "smollm2-135m": 134_515_008,
    "glm-4.5-air": 106_852_245_504,
    "mamba-2.8b": 2_768_345_600,
}
"""Counts of the published checkpoints, to the parameter."""


def load(name: str) -> Model:
    return read_model(catalog.model_path(name))


# The packaged models.


@pytest.mark.parametrize("name", catalog.models())
def test_packaged_model_counts_what_its_makers_say(name: str) -> None:
    model = load(name)
    assert model.name == name
    assert model.source
    graph = model.graph()
    if model.published is None:
        assert name in {"dense-1b", "small-byte-gpt", "tiny-byte-gpt", "tiny-byte-moe"}
        return
    stated = model.published.parameters.require(name)
    exact = len(f"{stated:.0f}".rstrip("0")) > 3
    assert graph.parameters == pytest.approx(stated, rel=1e-3 if exact else 0.03)
    if model.published.active.value is not None:
        # Makers count the input table, the output projection, both or neither among the active.
        tables = graph.stem[0].parameters + graph.head[-1].parameters
        assert graph.active_parameters - tables <= 1.1 * model.published.active.value
        assert model.published.active.value <= 1.03 * graph.active_parameters


@pytest.mark.parametrize(("name", "count"), EXACT.items())
def test_packaged_model_is_exact(name: str, count: int) -> None:
    assert load(name).graph().parameters == count


def test_packaged_models_hold_every_kind_of_layer() -> None:
    kinds = {op.kind for name in catalog.models() for kind in load(name).graph().kinds for op in kind.operators}
    assert kinds >= {"matmul", "grouped_matmul", "attention", "scan", "convolution", "norm", "elementwise"}


def test_deepseek_v3_is_as_published() -> None:
    graph = load("deepseek-v3").graph()
    assert graph.parameters == pytest.approx(671e9, rel=1e-3)
    assert graph.active_parameters == pytest.approx(37e9, rel=0.02)
    core = one(graph, "attention.core")
    assert (core.heads, core.kv_heads, core.cache, core.latent) == (128, 1, 576, 512)
    assert one(graph, "experts.up", 1).bits == pytest.approx(8, abs=0.01)
    assert one(graph, "experts.router", 1).bits == 16
    assert graph.stem[0].bits == 16
    # The module is published as 14 B with copies of embedding and head, which the main model holds already.
    copies = 2 * graph.hidden * graph.vocabulary
    assert graph.extra_parameters + copies == pytest.approx(14e9, rel=0.05)


def test_gpt_oss_stores_experts_in_four_bits() -> None:
    graph = load("gpt-oss-120b").graph()
    assert one(graph, "experts.up").bits == 4.25
    assert one(graph, "attention.qkv").bits == 16
    stored = sum(op.parameters * op.bits / 8 for kind in graph.layers for op in graph.kinds[kind].operators) + 2 * sum(
        op.parameters for op in (*graph.stem, *graph.head)
    )
    assert stored == pytest.approx(65.2e9, rel=0.02)  # the checkpoint: 60.8 GiB, arXiv:2508.10925, table 1
    assert {one(graph, "attention.core", index).window for index in (0, 1)} == {128, None}


def one(graph: Graph, name: str, kind: int = 0) -> Operator:
    (found,) = [operator for operator in graph.kinds[kind].operators if operator.name == name]
    return found


# Compiling.


def model(*layers: Layer, **fields: Any) -> Model:
    return Model(**{"name": "m", "hidden_size": 64, "vocabulary_size": 100, "layers": layers} | fields)


PLAIN = Layer(mixer=(Attention(heads=4, kv_heads=2, head_dim=16),), feed_forward=(Dense(size=128),))


def test_plain_layer_is_counted_by_hand() -> None:
    graph = model(PLAIN).graph()
    qkv, output, mlp = 64 * (64 + 32 + 32), 64 * 64, 3 * 64 * 128
    assert graph.kinds[0].parameters == qkv + output + mlp + 2 * 64
    assert graph.parameters == graph.kinds[0].parameters + 2 * 100 * 64 + 64
    shards = {operator.name: operator.shard for operator in graph.kinds[0].operators}
    assert shards["attention.qkv"] == shards["mlp.up"] == "column"
    assert shards["attention.output"] == shards["mlp.down"] == "row"
    assert shards["attention.core"] == "heads"
    assert shards["norm"] == "none"
    assert graph.stem[0].shard == graph.head[-1].shard == "vocabulary"
    core = one(graph, "attention.core")
    assert (core.heads, core.kv_heads, core.key_dim, core.value_dim, core.cache) == (4, 2, 16, 16, 64)


def test_tied_head_has_no_parameters_but_works() -> None:
    graph = model(PLAIN, head=Head(tied=True)).graph()
    assert graph.tied
    assert graph.head[-1].parameters == 0
    assert graph.head[-1].matmul_flops_per_token() == 2 * 64 * 100
    assert graph.parameters == model(PLAIN).graph().parameters - 6400


def test_experts_are_sharded_over_experts_and_cost_what_is_active() -> None:
    layer = PLAIN.model_copy(
        update={"feed_forward": (Experts(count=8, active=2, size=32, shared=SharedExpert(size=48, gate=True)),)}
    )
    graph = model(layer).graph()
    up = one(graph, "experts.up")
    assert (up.kind, up.shard, up.parameters, up.active_parameters) == ("grouped_matmul", "expert", 32768, 8192)
    assert up.matmul_flops_per_token() == 2 * 64 * 64 * 2
    assert one(graph, "experts.router").parameters == 512
    assert one(graph, "shared.up").parameters == 64 * 96
    assert one(graph, "shared.gate").parameters == 64


def test_latent_attention_caches_one_latent() -> None:
    block = LatentAttention(
        heads=4, query_rank=24, latent_rank=32, nope_dim=16, rope_dim=8, value_dim=16,
        indexer=Indexer(heads=2, head_dim=8, top=256),
    )  # fmt: skip
    graph = model(Layer(mixer=(block,))).graph()
    core = one(graph, "attention.core")
    assert (core.cache, core.kv_heads, core.key_dim, core.value_dim, core.window) == (40, 1, 24, 16, 256)
    assert one(graph, "attention.latent_up").parameters == 32 * 4 * 32
    assert one(graph, "attention.indexer.core").cache == 8
    free = block.model_copy(update={"indexer": None, "query_rank": None})
    assert one(model(Layer(mixer=(free,))).graph(), "attention.query").parameters == 64 * 96


def test_recurrence_keeps_states() -> None:
    block = Recurrent(
        family="delta", projections=(Projection(name="input", outputs=96), Projection(name="output", inputs=32)),
        convolution=Convolution(channels=96, width=4, bias=True), heads=2, key_dim=8, value_dim=16, parameters=4,
        norm=16,
    )  # fmt: skip
    graph = model(Layer(mixer=(block,))).graph()
    core = one(graph, "delta.core")
    assert (core.kind, core.state, core.parameters) == ("scan", 2 * 8 * 16, 4)
    taps = one(graph, "delta.convolution")
    assert (taps.parameters, taps.state) == (96 * 5, 96 * 3)
    assert graph.kinds[0].parameters == 64 * 96 + 32 * 64 + 4 + 96 * 5 + 16 + 64


def test_shared_weights_are_counted_once() -> None:
    again = PLAIN.model_copy(
        update={
            "mixer": (PLAIN.mixer[0].model_copy(update={"shared": True}),),
            "feed_forward": (PLAIN.feed_forward[0].model_copy(update={"shared": True}),),
            "norms": 0,
        }
    )
    once, twice = model(PLAIN).graph(), model(PLAIN, again).graph()
    assert once.parameters == twice.parameters
    work = [sum(op.matmul_flops_per_token() for op in twice.kinds[kind].operators) for kind in twice.layers]
    assert work[0] == work[1] > 0


def test_prediction_modules_stand_apart() -> None:
    plain, more = model(PLAIN), model(PLAIN, mtp=Prediction(modules=2, layer=PLAIN))
    assert more.graph().parameters == plain.graph().parameters
    one_module = 3 * 64 + 2 * 64 * 64 + plain.graph().kinds[0].parameters
    assert more.graph().extra_parameters == 2 * one_module


@pytest.mark.parametrize(
    ("scope", "quantised"),
    [
        ("linear", {"attention.qkv", "attention.output", "experts.up", "experts.down"}),
        ("experts", {"experts.up", "experts.down"}),
        ("all", {"attention.qkv", "attention.output", "experts.up", "experts.down", "head"}),
    ],
)
def test_quantisation_reaches_its_scope(scope: Any, quantised: set[str]) -> None:
    layer = PLAIN.model_copy(update={"feed_forward": (Experts(count=4, active=1, size=32),)})
    graph = model(layer, quantization=Quantization(method="x", bits=4.5, scope=scope)).graph()
    operators = (*graph.stem, *graph.kinds[0].operators, *graph.head)
    assert {operator.name for operator in operators if operator.bits == 4.5} == quantised
    assert {operator.bits for operator in operators} == {4.5, 16.0}


def test_quantisation_keeps_what_it_is_told_to() -> None:
    kept = Quantization(method="x", bits=8, keep=("attention",))
    graph = model(PLAIN, quantization=kept).graph()
    assert one(graph, "attention.qkv").bits == 16
    assert one(graph, "mlp.up").bits == 8


def test_layers_alike_are_one_kind() -> None:
    windowed = PLAIN.model_copy(update={"mixer": (PLAIN.mixer[0].model_copy(update={"window": 8}),)})
    graph = model(Layer(repeat=3, each=(windowed, PLAIN)), PLAIN.model_copy(update={"repeat": 2})).graph()
    assert graph.layers == (0, 1, 0, 1, 0, 1, 1, 1)
    assert [kind.name for kind in graph.kinds] == ["attention+dense", "attention+dense-2"]


# Laws of compiling, for any model.


@st.composite
def attentions(draw: st.DrawFn) -> Attention | LatentAttention:
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    if draw(st.booleans()):
        sizes = {name: draw(st.integers(1, 32)) for name in ("latent_rank", "nope_dim", "rope_dim", "value_dim")}
        return LatentAttention(heads=heads, query_rank=draw(st.none() | st.integers(1, 32)), **sizes)
    return Attention(
        heads=heads, kv_heads=kv_heads, head_dim=draw(st.integers(1, 32)), bias=draw(st.booleans()),
        window=draw(st.none() | st.integers(1, 64)), sinks=draw(st.booleans()),
        qk_norm=draw(st.sampled_from(["none", "head", "full"])),
        gate=draw(st.sampled_from(["none", "feature", "head"])),
    )  # fmt: skip


@st.composite
def feed_forwards(draw: st.DrawFn) -> Dense | Experts:
    size, gated = draw(st.integers(1, 64)), draw(st.booleans())
    if draw(st.booleans()):
        return Dense(size=size, gated=gated, bias=draw(st.booleans()))
    count = draw(st.integers(1, 16))
    return Experts(count=count, active=draw(st.integers(1, count)), size=size, gated=gated)


LAYERS = st.builds(
    lambda mixer, body, repeat: Layer(mixer=(mixer,), feed_forward=(body,), repeat=repeat),
    attentions(), feed_forwards(), st.integers(1, 4),
)  # fmt: skip
MODELS = st.builds(
    lambda layers, width, rows, tied, norm, positions: Model(
        name="any", hidden_size=width, vocabulary_size=rows, layers=tuple(layers), head=Head(tied=tied), norm=norm,
        embedding=Embedding(positions=positions),
    ),
    st.lists(LAYERS, min_size=1, max_size=4), st.integers(1, 128), st.integers(1, 300), st.booleans(),
    st.sampled_from(["rms", "layer", "layer-no-bias", "plain"]), st.integers(0, 64),
)  # fmt: skip


@settings(deadline=None)
@given(MODELS)
def test_any_model_is_written_and_read_back(any_model: Model) -> None:
    assert Model.from_text(any_model.to_yaml()) == any_model


@settings(deadline=None)
@given(MODELS)
def test_any_graph_keeps_its_laws(any_model: Model) -> None:
    graph = any_model.graph()
    assert len(graph.layers) == any_model.layer_count
    assert 0 < graph.active_parameters <= graph.parameters
    for operator in (op for kind in graph.kinds for op in kind.operators):
        assert 0 <= operator.active_parameters <= operator.parameters
        if operator.kind == "matmul":
            assert 0 <= operator.parameters - operator.inputs * operator.outputs <= operator.outputs
        if operator.kind == "grouped_matmul":
            assert operator.parameters >= operator.experts * operator.inputs * operator.outputs
            assert operator.active_experts <= operator.experts
        if operator.kind == "attention":
            assert operator.heads % operator.kv_heads == 0
            held = operator.latent or operator.kv_heads * operator.value_dim
            assert operator.cache >= held > 0


@settings(deadline=None)
@given(MODELS, st.integers(2, 5))
def test_depth_adds_layers_and_nothing_else(any_model: Model, times: int) -> None:
    deeper = any_model.model_copy(update={"layers": any_model.layers * times})
    before, after = any_model.graph(), deeper.graph()
    ends = sum(operator.parameters for operator in (*before.stem, *before.head))
    assert after.parameters - ends == times * (before.parameters - ends)
    assert after.kinds == before.kinds


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_runs_say_the_same_as_single_layers(sizes: list[int]) -> None:
    singles = [Layer(feed_forward=(Dense(size=size + 1),)) for size in sizes]
    folded = runs(singles)
    unfolded = [
        layer.model_copy(update={"repeat": 1})
        for run in folded
        for _ in range(run.repeat)
        for item in (run.each or (run,))
        for layer in [item] * (item.repeat if run.each else 1)
    ]
    assert unfolded == singles
    assert len(folded) <= len(singles)


# What cannot be.

GOOD = """\
name: m
hidden_size: 64
vocabulary_size: 100
layers:
  - repeat: 2
    mixer: {kind: attention, heads: 4, head_dim: 16}
    feed_forward: {kind: dense, size: 128}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("hidden_size: 64", "hiden_size: 64", "Did you mean 'hidden_size'?"),
        ("hidden_size: 64\n", "", "'hidden_size' is missing"),
        ("hidden_size: 64", "hidden_size: many", "hidden_size is 'many'"),
        ("hidden_size: 64", "hidden_size: -64", "hidden_size is -64"),
        ("heads: 4", "heads: 4, kv_heads: 3", "4 heads cannot share 3 key-value heads evenly"),
        ("kind: dense", "kind: densse", "densse"),
        ("size: 128", "size: 128, gatted: true", "Did you mean 'gated'?"),
        (
            "{kind: dense, size: 128}",
            "{kind: experts, count: 4, active: 5, size: 8}",
            "5 experts cannot be active of 4",
        ),
        ("repeat: 2", "repeat: 0", "repeat is 0"),
        ("layers:", "each: []\nlayers:", "'each' is not a key here"),
    ],
)
def test_faulty_document_is_explained(old: str, new: str, words: str) -> None:
    assert Model.from_text(GOOD).graph().parameters > 0
    with pytest.raises(DocumentError) as caught:
        Model.from_text(GOOD.replace(old, new), source="model.yaml")
    assert words in str(caught.value)
    assert "model.yaml" in str(caught.value)


def test_pattern_and_blocks_do_not_mix() -> None:
    with pytest.raises(DocumentError, match="either a pattern"):
        Model.from_text(GOOD.replace("repeat: 2\n", "repeat: 2\n    each: [{feed_forward: {kind: dense, size: 8}}]\n"))


def test_the_model_in_the_documentation_compiles() -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    shown = re.search(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert shown is not None
    read = Model.from_text(shown[1])
    assert read.layer_count == 32
    assert {kind.name for kind in read.graph().kinds} == {
        "attention+dense", "attention+experts", "latent-attention+experts",
    }  # fmt: skip
