"""Training rows: read into model, machine and plan; odd rows are skipped with a reason, never with an exception."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zhenfa.catalog import files
from zhenfa.estimate import engines
from zhenfa.estimate.traits import Traits
from zhenfa.validation import training
from zhenfa.validation.train_layout import even_chunks, expand_layout
from zhenfa.validation.train_words import bandwidth, one_way

LLAMA: dict[str, Any] = {
    "id": "llama3-70b",
    "tier": "A",
    "task": "pretrain",
    "model": {
        "name": "Llama3-70B", "layers": 80, "hidden": 8192, "ffn": 28672, "heads": 64, "kv_heads": 8, "head_dim": 128,
        "vocab": 128256, "gated_mlp": True, "seq": 8192,
    },
    "precision": "bf16",
    "hardware": {
        "accel": "NVIDIA H100-80GB SXM", "vendor": "nvidia", "mem_gb": 80, "peak_bf16_tf": 989, "per_node": 8,
        "intra": "NVLink4 900 GB/s", "inter": "8x400Gb/s NDR InfiniBand per node (DGX-H100 class)", "count": 64,
    },
    "parallel": {
        "tp": 4, "pp": 4, "vpp": 5, "dp": 2, "ep": 1, "cp": 2, "sp": True, "zero": "dist-optimizer (ZeRO-1)", "mbs": 1,
        "gbs": 128, "ga": 64, "recompute": "none", "schedule": "1F1B-interleaved",
    },
    "metrics": {"iter_s": 14.72, "mfu_pct": 54.1},
    "flops_convention": "model_full",
    "software": "NeMo/Megatron-Core, dgxc v24.11.1",
}  # fmt: skip

MIXTURE: dict[str, Any] = {
    **LLAMA,
    "id": "qwen3-30b",
    "model": {
        "name": "Qwen3-30B-A3B", "layers": 48, "hidden": 2048, "ffn": 6144, "heads": 32, "kv_heads": 4,
        "head_dim": 128, "vocab": 151936, "gated_mlp": True, "seq": 4096,
        "moe": {"experts": 128, "topk": 8, "expert_ffn": 768, "shared_experts": 0, "dense_layers": 0},
        "mla": {"q_lora": 1536, "kv_lora": 512, "qk_nope": 128, "qk_rope": 64, "v_dim": 128}, "mtp_layers": 1,
        "sliding_window": {"window": 128, "layers": "alternate (24 of 48)"},
    },
    "parallel": {
        "tp": 1, "pp": 2, "vpp": 4, "dp": 32, "ep": 16, "etp": 1, "cp": 1, "mbs": 1, "gbs": 512,
        "recompute": "selective: layernorm,moe_act", "moe_dispatcher": "hybridep",
    },
}  # fmt: skip


def test_a_row_becomes_the_plan_that_was_run() -> None:
    run = training.read(LLAMA)
    (pipeline,) = run.plan.pipelines
    assert (pipeline.count, pipeline.micro_batches, pipeline.micro_batch_size) == (2, 64, 1)
    assert (pipeline.virtual_stages, run.plan.schedule) == (5, "interleaved")
    assert [(stage.first, stage.last) for stage in pipeline.stages] == [(at, at + 4) for at in range(0, 80, 4)]
    assert {(stage.tensor_parallel, stage.context_parallel) for stage in pipeline.stages} == {(4, 2)}
    assert (run.plan.zero, run.plan.precision, run.plan.sequence_length) == (1, "bf16", 8192)
    assert run.graph.parameters == pytest.approx(70.6e9, rel=0.01)
    assert run.notes == ()


def test_a_row_becomes_the_machine_that_it_ran_on() -> None:
    (pool,) = training.read(LLAMA).formation.pools
    assert (pool.accelerator.id, pool.count) == ("nvidia-h100-sxm", 64)
    node, network = pool.tiers
    assert (node.size, node.bandwidth.value, node.in_network_reduction) == (8, 450e9, True)
    assert (network.size, network.bandwidth.value) == (64, 50e9)


@pytest.mark.parametrize(
    ("accel", "memory", "peak", "found"),
    [
        ("NVIDIA A100-40GB SXM", 40, 312, "nvidia-a100-sxm-40g"),
        ("NVIDIA A100-80GB SXM", 80, 312, "nvidia-a100-sxm-80g"),
        ("Ascend 910B (Atlas 900 A2 PoDc / Atlas 800T A2)", 64, 376, "ascend-910b2"),
        ("Ascend 910B (Atlas 900 A2 PoDc / Atlas 800T A2)", 64, 313, "ascend-910b3"),
        ("NVIDIA GB200 NVL72", 186, 2450, "nvidia-gb200"),
        ("NVIDIA GB300 NVL72", 279, 2450, "nvidia-gb300"),
        ("NVIDIA B200 (DGX-B200)", 180, 2250, "nvidia-b200-sxm"),
        ("NVIDIA GH200-96GB (Alps Clariden)", 96, 989, "nvidia-gh200-96g"),
        ("NVIDIA H100-96GB HBM2e SXM 500W cap", 96, None, "nvidia-h100-sxm-96g-hbm2e"),
        ("NVIDIA V100-32GB", 32, 125, "nvidia-v100-sxm-32g"),
        ("Google TPU v4", 32, 275, "google-tpu-v4"),
        ("Intel Gaudi2", 96, 432, "intel-gaudi2"),
        ("MetaX C500", None, None, "metax-c500"),
        ("NVIDIA H200 141GB SXM", 141, 989, "nvidia-h200-sxm"),
    ],
)
def test_names_of_cards(accel: str, memory: float | None, peak: float | None, found: str) -> None:
    row = {**LLAMA, "hardware": {**LLAMA["hardware"], "accel": accel, "mem_gb": memory, "peak_bf16_tf": peak}}
    assert training.read(row).formation.pools[0].accelerator.id == found


def test_words_of_links() -> None:
    assert bandwidth("1600 Gb/s RoCE per node", 8) == (25e9, True)
    assert bandwidth("800 Gb/s per node (4x200Gb/s HDR IB per repo config)", 8) == (12.5e9, True)
    assert bandwidth("RoCE 200Gb/s per NPU", 8) == (25e9, True)
    assert bandwidth("3x100GbE RoCE per card", 8) == (37.5e9, True)
    assert bandwidth("Slingshot 200Gb/s per GPU; measured p2p 22.9 GB/s per GPU, 92.5 GB/s per 4-GPU node", 4) == (
        25e9,
        True,
    )
    assert one_way("HCCS full mesh 392 GB/s aggregate per NPU") == 196e9
    assert one_way("PCIe") is None


def test_layers_of_virtual_stages() -> None:
    assert expand_layout("Et*4|(t*4|)*14tmL") == [4] * 15 + [1]
    assert even_chunks(126, 64)[0][0] == even_chunks(126, 64)[0][-1] == 1
    for layers in range(1, 70):
        for stages in range(1, layers + 1):
            counts, _ = even_chunks(layers, stages)
            assert sum(counts) == layers
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("row", [LLAMA, MIXTURE], ids=["dense", "mixture"])
def test_a_step_is_predicted(row: dict[str, Any]) -> None:
    outcome = training.outcomes(row)[0]
    assert outcome.skipped is None
    assert outcome.gate
    assert outcome.predicted is not None
    assert 1 < outcome.predicted < 60


def test_the_third_of_three_batch_figures_is_derived() -> None:
    for gone in ("ga", "gbs", "mbs"):
        row = copy.deepcopy(LLAMA)
        del row["parallel"][gone]
        (pipeline,) = training.read(row).plan.pipelines
        assert (pipeline.micro_batches, pipeline.micro_batch_size) == (64, 1)


_ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**12), st.floats(allow_nan=True), st.text(max_size=12),
    st.sampled_from(["not stated", "8 x 2", "FSDP over 0", "full uniform 0 layers", "1/0", "∞", "E|t", "none"]),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.sampled_from(["a", "window"]), st.integers(), max_size=2),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_row_raises(data: st.DataObject) -> None:
    """Whatever is missing or odd in a row, it is predicted or skipped with a reason."""
    row = copy.deepcopy(data.draw(st.sampled_from([LLAMA, MIXTURE])))
    for _ in range(data.draw(st.integers(1, 4))):
        section = data.draw(st.sampled_from(["model", "hardware", "parallel", "metrics", None]))
        place = row if section is None else row.get(section)
        if not isinstance(place, dict) or not place:
            continue
        key = data.draw(st.sampled_from(sorted(place)))
        if data.draw(st.booleans()):
            place.pop(key)
        else:
            place[key] = data.draw(_ODD)
    found = training.outcomes(row)
    assert found
    for outcome in found:
        assert (outcome.skipped is None) == (outcome.predicted is not None)


def test_every_trait_of_the_engines_exists() -> None:
    """A name in the engines' data that is not a trait would be left out without a word."""
    known = {item.name for item in dataclasses.fields(Traits)}
    document = files.read(engines.FILE)
    groups = [
        *document["engines"],
        *document["cards"],
        *(one for item in document["engines"] for one in item.get("versions", ())),
    ]
    named = {key for group in groups for key in group.get("traits") or ()}
    named |= {key for changes in document["switches"].values() for key in changes}
    named |= {key for changes in files.read(engines.FITS)["fits"].values() for key in changes}
    assert named <= known


@pytest.mark.parametrize(
    ("software", "family"),
    [
        ("NeMo 26.02 / Megatron-Bridge", "Megatron-Core"),
        ("NeMo/Megatron-Core, dgxc v25.05", "Megatron-Core"),
        ("NeMo AutoModel", "PyTorch FSDP"),
        ("torchtitan Apr 2024", "PyTorch FSDP"),
        ("llm-foundry (Composer, FSDP, FlashAttention-1 Triton)", "llm-foundry"),
        ("Megatron-LM Apr 2021", "Megatron-LM 2020-2022"),
        ("Megatron-core 0.6.0", "Megatron-Core"),
        ("Sailor fork of Megatron-DeepSpeed", "Megatron-DeepSpeed fp32"),
        ("DeepSpeed 0.19.2, torch 2.13", "DeepSpeed"),
        ("MaxText/JAX", "JAX"),
        ("MindSpeed-LLM 1.0.RC3", "MindSpeed"),
        ("PaddlePaddle 2.5.1", "PaddlePaddle"),
    ],
)
def test_names_of_engines(software: str, family: str) -> None:
    assert engines.find(software).family == family
    assert engines.find(software).known


def test_an_unknown_engine_is_the_default_and_says_so() -> None:
    row = {**LLAMA, "software": "Frobnicator 9"}
    assert not engines.find("Frobnicator 9").known
    assert "engine Frobnicator 9: taken as Megatron-Core" in training.read(row).notes


def test_memory_that_a_tool_of_the_card_shows_counts_the_driver() -> None:
    printed = {**LLAMA, "metrics": {**LLAMA["metrics"], "mem_used_over_total_gib": "70/80"}}
    allocated = {**LLAMA, "metrics": {**LLAMA["metrics"], "mem_max_gib": 70}}
    shown, counted = (training.outcomes(row)[1] for row in (printed, allocated))
    assert shown.measured == counted.measured == 70 * 2**30
    assert shown.predicted is not None
    assert counted.predicted is not None
    assert shown.predicted - counted.predicted == pytest.approx(3.0e9)  # driver, kernels, buffers of collectives
    assert shown.groups == ("train / memory",)


def test_a_sequence_of_a_million_tokens_is_predicted() -> None:
    row = {**LLAMA, "model": {**LLAMA["model"], "seq": 1_048_576}}
    assert training.outcomes(row)[0].predicted is not None


UNEQUAL: dict[str, Any] = {
    "id": "two-kinds",
    "tier": "A",
    "kind": "absolute",
    "software": "Sailor fork of Megatron-DeepSpeed",
    "cluster": {
        "counts": {"RTX-3090": 8, "Titan-RTX": 8},
        "gpus": {"RTX-3090": "24 GB", "Titan-RTX": "24 GB"},
        "measured_bandwidth_asymptote_GBps": {
            "intra_node_tp8": {"RTX-3090": 5.2, "Titan-RTX": 24.0},
            "inter_node_p2p": {"RTX-3090": 0.115, "Titan-RTX": 2.9},
        },
    },
    "model": {
        "name": "OPT-350M-like", "layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096, "seq": 2048, "vocab": 50272,
    },
    "precision": "fp32",
    "parallel": {
        "tp": 8, "pp": 1, "dp": 2, "mbs": 2, "gbs": 64,
        "stages": [{"n_layers": 26, "replicas": ["RTX-3090 x8 (tp8)", "Titan-RTX x8 (tp8)"]}],
    },
    "measured": {"iter_s": 60.0, "mem_max_gib": 8.0},
}  # fmt: skip


def test_a_measured_node_is_the_sum_of_its_pairs() -> None:
    """Half of eight cards send at once: one has a quarter of the figure, and transfers reach it."""
    run = training.read(UNEQUAL)
    rates = {pool.name: pool.tiers[0].bandwidth.value for pool in run.formation.pools}
    assert rates == {"RTX-3090": pytest.approx(1.3e9), "Titan-RTX": pytest.approx(6e9)}
    setting = run.setting()
    assert setting.fabrics["Titan-RTX"].bandwidths[0] == pytest.approx(6e9)
    assert setting.bridge is not None
    assert setting.bridge.bandwidth == pytest.approx(0.115e9 / 8)


def test_the_cards_at_work_share_what_was_measured_of_a_whole_node() -> None:
    """Two of eight cards have the node's sum to themselves, as far as each one's own slot goes."""
    counts = {"RTX-3090": 2, "Titan-RTX": 2}
    stages = [{"n_layers": 26, "replicas": ["RTX-3090 x2 (tp2)", "Titan-RTX x2 (tp2)"]}]
    parallel = {**UNEQUAL["parallel"], "tp": 2, "stages": stages}
    run = training.read({**UNEQUAL, "cluster": {**UNEQUAL["cluster"], "counts": counts}, "parallel": parallel})
    rates = {pool.name: pool.tiers[0].bandwidth.value for pool in run.formation.pools}
    assert rates == {"RTX-3090": pytest.approx(5.2e9), "Titan-RTX": pytest.approx(16e9)}  # PCIe 3.0, sixteen lanes


def test_a_peak_below_the_state_of_the_layout_is_of_something_else() -> None:
    run = training.read(UNEQUAL)
    state = run.cost().stages[0].memory
    least = sum(state[part] for part in ("weights", "gradients", "optimizer")) + run.engine.traits.runtime_bytes
    for share in (0.99, 1.01):
        row = {**UNEQUAL, "measured": {"iter_s": 60.0, "mem_max_gib": share * least / 2**30}}
        _, memory = training.outcomes(row)
        assert (memory.predicted is None) == (share < 1)
        assert ("cannot be the peak" in (memory.skipped or "")) == (share < 1)


def test_unlike_replicas_sum_in_one_ring_over_the_slowest_uplink() -> None:
    run = training.read(UNEQUAL)
    weights = 4 * run.graph.parameters
    (slow, _) = run.cost().groups
    assert slow.tail_parts["bridge"] == pytest.approx(2 * (2 - 1) / 2 * weights / 0.115e9, rel=0.05)
    time, memory = training.outcomes(UNEQUAL)
    assert time.groups == ("train / other", "train / unequal cards")
    assert memory.groups == ("train / memory",)
    assert memory.predicted is not None
    assert memory.predicted > 3e9  # the card's own tool: driver, kernels, collectives


def test_small_messages_leave_at_once_where_large_ones_hold_both_ends_up() -> None:
    stages = [{"n_layers": 13, "replicas": [f"{name} x8 (tp8)"]} for name in ("RTX-3090", "Titan-RTX")]
    waited = {}
    for size in (2, 8):  # 2.1 MB and 8.4 MB from each of eight cards, around the 4 MiB of the library's buffer
        parallel = {**UNEQUAL["parallel"], "pp": 2, "dp": 1, "mbs": size, "stages": stages}
        (group,) = training.read({**UNEQUAL, "parallel": parallel}).cost().groups
        waited[size] = group.stages[0].waited, group.stages[0].transfer
    assert waited[2][0] < 1e-3
    assert waited[2][1] == pytest.approx(2 * 2048 * 1024 * 4 / 0.115e9, rel=0.01)
    assert waited[8][0] == pytest.approx(2 * 8 * 2048 * 1024 * 4 / 0.115e9, rel=0.01)
    assert waited[8][1] == 0.0
