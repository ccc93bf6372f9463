"""The import counts as transformers does: forty architectures, built on torch's meta device and counted.

The check of all of them is ``tools/check_transformers.py``; its last result stands in ``docs/models.md``.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_transformers", ROOT / "tools" / "check_transformers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TOOL = _tool()

SAMPLE = (
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gemma4_text", "gemma3n_text", "olmo2", "phi3", "cohere2",
    "gpt2", "gpt_neo", "gptj", "opt", "bloom", "falcon", "mpt",
    "mixtral", "qwen3_moe", "gpt_oss", "glm4_moe", "llama4", "ernie4_5_moe", "mimo_v2_flash", "jetmoe",
    "deepseek_v3", "deepseek_v32", "deepseek_v4", "minicpm3",
    "qwen3_next", "kimi_linear", "minimax", "jamba", "falcon_h1", "nemotron_h", "lfm2_moe", "mamba2", "rwkv",
    "zamba2", "bert",
)  # fmt: skip
"""Dense, older, mixtures of experts, latent attention, recurrent and hybrid, shared weights, an encoder that writes."""


@pytest.mark.parametrize("name", SAMPLE)
def test_parameters_are_those_of_transformers(name: str) -> None:
    row = TOOL.check(name, "")
    assert row.true is not None, row.reason
    assert row.ours is not None, row.reason
    assert abs(row.ours / row.true - 1) <= TOOL.TOLERANCE
    assert row.short == row.ours, "the defaults of the type, left out, do not mean the same"


CHANGED = [
    ("llama", {"num_key_value_heads": 4, "head_dim": 96, "attention_bias": True, "mlp_bias": True}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [1], "num_experts": 16, "head_dim": 32}),
    ("deepseek_v3", {"q_lora_rank": None, "first_k_dense_replace": 2, "num_hidden_layers": 5, "n_shared_experts": 2}),
    ("gemma4_text", {"num_kv_shared_layers": 8, "use_double_wide_mlp": True, "attention_k_eq_v": True}),
    ("gemma4_text", {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 256}),
    ("falcon", {"new_decoder_architecture": True, "num_attention_heads": 64, "num_kv_heads": 8, "hidden_size": 4096}),
    ("nemotron_h", {"moe_latent_size": 512, "layers_block_type": ["moe", "linear_attention", "full_attention", "mlp"]}),
    ("granitemoehybrid", {"layer_types": ["linear_attention", "full_attention"] * 4, "num_hidden_layers": 8}),
    ("bamba", {"attn_layer_indices": [1, 3], "num_hidden_layers": 5}),
    ("jamba", {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 3, "expert_layer_offset": 2}),
    ("zamba2", {"num_mem_blocks": 2, "use_shared_attention_adapter": True}),
    ("lfm2", {"full_attn_idxs": [2, 5], "num_hidden_layers": 8, "block_multiple_of": 64}),
    ("doge", {"is_moe": True}),
    ("cohere2_moe", {"num_shared_experts": 2, "layer_types": None}),
    ("laguna", {"num_attention_heads_per_layer": [32, 64] * 20, "gating": "per-element"}),
    ("kimi_linear", {"num_hidden_layers": 9, "mlp_layer_types": None, "layer_types": None}),
    ("glm_moe_dsa", {"indexer_types": ["full", "shared"] * 39}),
]


@pytest.mark.parametrize(("name", "changes"), CHANGED)
def test_parameters_of_other_configurations_too(name: str, changes: dict[str, Any]) -> None:
    true, whole, short = TOOL.build(name, changes)
    assert TOOL.imported(whole) == true
    assert TOOL.imported(short) == true


def test_every_architecture_of_transformers_has_a_builder_or_a_reason() -> None:
    from zhenfa.spec.huggingface import known_types

    assert set(TOOL.names()) <= set(known_types())
    assert set(TOOL.REASONS) | set(TOOL.ADJUSTED) | set(TOOL.DECODER_CLASS) <= set(TOOL.names())


def test_the_page_of_results_is_above_the_target() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    found = re.search(r"\*\*(\d+) of (\d+)\*\* architectures", page)
    assert found is not None
    assert int(found[1]) >= TOOL.TARGET * int(found[2])
    for name in TOOL.names():
        assert f"| {name} |" in page
