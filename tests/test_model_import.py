"""Import of Hugging Face configurations: defaults, second names, wrappers, quantised weights, every way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zhenfa.errors import CapabilityError, DocumentError, ZhenfaError
from zhenfa.spec.huggingface import from_huggingface, known_types
from zhenfa.spec.huggingface.reader import defaults_table
from zhenfa.spec.model import Model, read_model

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
UNKNOWN = LLAMA | {"model_type": "brandnew", "tie_word_embeddings": False}


def parameters(**config: Any) -> int:
    return from_huggingface(config).graph().parameters


MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}

PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama 4 Maverick, language model": (
        {
            "model_type": "llama4",
            "text_config": {"no_rope_layers": [], "num_local_experts": 128, "interleave_moe_layer_step": 2},
        },
        400_711_848_960,
    ),
    "DeepSeek-V2-Lite": (
        {
            "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "num_hidden_layers": 27,
            "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "first_k_dense_replace": 1,
            "moe_layer_freq": 1, "vocab_size": 102400, **MLA,
        },
        15_706_484_224,
    ),
    "DeepSeek-V2": (
        {
            "model_type": "deepseek_v2", "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536,
            "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "num_hidden_layers": 60,
            "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "first_k_dense_replace": 1,
            "vocab_size": 102400, **MLA,
        },
        235_741_434_880,
    ),
    "Phi-3.5-MoE": ({"model_type": "phimoe", "attention_bias": True, "lm_head_bias": True}, 41_873_153_344),
    "DBRX": (
        {
            "model_type": "dbrx", "d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352,
            "attn_config": {"kv_n_heads": 8},
            "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
        },
        131_596_523_520,
    ),
    "ChatGLM3-6B": (
        {
            "model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28,
            "num_attention_heads": 32, "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2,
            "padded_vocab_size": 65024, "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True,
        },
        6_243_584_000,
    ),
    "InternLM2-7B": (
        {
            "model_type": "internlm2", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 92544, "bias": False,
            "tie_word_embeddings": False,
        },
        7_737_708_544,
    ),
    "Qwen-7B": (
        {
            "model_type": "qwen", "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
            "num_attention_heads": 32, "vocab_size": 151936, "kv_channels": 128, "no_bias": True,
            "tie_word_embeddings": False,
        },
        7_721_324_544,
    ),
    "Baichuan2-13B": (
        {
            "model_type": "baichuan", "hidden_size": 5120, "intermediate_size": 13696, "num_hidden_layers": 40,
            "num_attention_heads": 40, "vocab_size": 125696, "tie_word_embeddings": False,
        },
        13_896_668_160,
    ),
}  # fmt: skip
"""Configurations as checkpoints carry them, with the counts that their hub pages state.

Of Llama 4 Maverick's 401,583,781,376 parameters, 871,932,416 are the image encoder's, as in Scout.
"""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_is_counted_exactly(name: str) -> None:
    config, count = PUBLISHED[name]
    assert parameters(**config) == count


# Reading.


def test_every_known_type_imports_from_its_defaults_or_says_what_it_needs() -> None:
    needing = {}
    for kind in known_types():
        if kind not in defaults_table()["types"]:
            continue
        try:
            model = from_huggingface({"model_type": kind})
        except DocumentError as problem:
            needing[kind] = problem.key
            continue
        assert model.graph().parameters > 0
        assert Model.from_text(model.to_yaml()) == model
    # The defaults of these leave a size empty, or name heads that do not divide the width.
    assert set(needing) <= {
        "deepseek_v2", "dots1", "hunyuan_v1_moe", "nemotron", "qwen3_omni_moe_text", "qwen4_exp", "qwen4_exp_text",
    }  # fmt: skip


def test_a_key_left_out_takes_the_default_of_its_type() -> None:
    whole = dict(defaults_table()["types"]["qwen3"]["defaults"])
    short = {key: value for key, value in whole.items() if key != "num_key_value_heads"}
    assert parameters(model_type="qwen3") == parameters(model_type="qwen3", **whole)
    assert parameters(model_type="qwen3") == parameters(model_type="qwen3", **short)


def test_a_null_is_not_a_default() -> None:
    assert parameters(model_type="qwen3", head_dim=None, hidden_size=2048, num_attention_heads=32) < parameters(
        model_type="qwen3", hidden_size=2048, num_attention_heads=32
    )
    windows = [
        from_huggingface({"model_type": "mistral", "sliding_window": size}).graph().kinds[0].operators[2].window
        for size in (None, 1024)
    ]
    assert windows == [None, 1024]


def test_second_names_mean_the_same() -> None:
    sizes = {"hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8}
    assert parameters(model_type="gpt2", **sizes) == parameters(model_type="gpt2", n_embd=512, n_layer=3, n_head=8)
    experts = {"model_type": "qwen3_moe", "num_hidden_layers": 2}
    assert parameters(**experts, num_experts=16) == parameters(**experts, num_local_experts=16)


@pytest.mark.parametrize(
    ("alias", "kind"), [("kimi_k2", "deepseek_v3"), ("qwen2_5_vl_text", "qwen2"), ("gpt-sw3", "gpt2")]
)
def test_types_built_as_another(alias: str, kind: str) -> None:
    config = defaults_table()["types"][kind]["defaults"]
    assert parameters(model_type=alias, **config) == parameters(model_type=kind, **config)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("llama4", "llama4_text"),
        ("gemma4", "gemma4_text"),
        ("emu3", "emu3_text_model"),
        ("mllama", "mllama_text_model"),
    ],
)
def test_a_wrapper_stands_for_its_language_model(kind: str, part: str) -> None:
    assert parameters(model_type=kind) == parameters(model_type=part)
    assert parameters(model_type=kind, text_config={"num_hidden_layers": 2}) == parameters(
        model_type=part, num_hidden_layers=2
    )


def test_an_unknown_wrapper_is_read_for_its_text_and_says_so() -> None:
    model = from_huggingface({"model_type": "newvl", "text_config": LLAMA, "vision_config": {"depth": 3}})
    assert model.graph().parameters == from_huggingface(LLAMA).graph().parameters
    assert model.notes == ("only the language model of the newvl model is counted (text_config).",)


def test_a_tower_is_held_but_no_token_passes_through_it() -> None:
    whole, text = from_huggingface({"model_type": "gemma3"}).graph(), from_huggingface({"model_type": "gemma3_text"})
    tower = sum(operator.parameters for operator in whole.encoders)
    assert tower > 90_000_000
    assert whole.parameters - tower == text.graph().parameters
    assert whole.active_parameters == text.graph().active_parameters


def test_an_unknown_type_is_read_by_the_common_rules_and_says_so() -> None:
    model = from_huggingface(UNKNOWN)
    assert model.graph().parameters == 8_030_261_248
    assert "'brandnew' is not known by name" in model.notes[0]
    moe = UNKNOWN | {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    assert any(kind.name == "attention+experts" for kind in from_huggingface(moe).graph().kinds)
    latent = UNKNOWN | {"kv_lora_rank": 64, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    assert from_huggingface(latent).graph().kinds[0].operators[-7].kind in {"matmul", "attention"}


def test_an_unknown_type_with_strange_layers_is_refused() -> None:
    with pytest.raises(CapabilityError) as caught:
        from_huggingface(UNKNOWN | {"model_type": "mamba3", "mamba_d_state": 64})
    assert "'mamba3' is not known" in caught.value.message
    assert "Did you mean 'mamba'" in caught.value.message
    assert "zhenfa.model document" in (caught.value.hint or "")


def test_no_model_type_is_refused() -> None:
    with pytest.raises(CapabilityError, match="has no model_type"):
        from_huggingface({"architectures": ["LlamaForCausalLM"]})


def test_layers_of_every_kind_are_seen() -> None:
    kinds = {op.kind for kind in from_huggingface({"model_type": "jamba"}).graph().kinds for op in kind.operators}
    assert {"scan", "convolution", "attention", "grouped_matmul"} <= kinds
    pattern = from_huggingface({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-"}).graph()
    assert [pattern.kinds[kind].name for kind in pattern.layers] == ["mamba2", "dense", "mamba2", "attention", "dense"]


def test_prediction_modules_come_from_the_file() -> None:
    with_one = from_huggingface({"model_type": "glm4_moe", "num_nextn_predict_layers": 1}).graph()
    without = from_huggingface({"model_type": "glm4_moe", "num_nextn_predict_layers": 0}).graph()
    assert with_one.extra_parameters > without.extra_parameters == 0
    assert with_one.parameters == without.parameters


def test_the_cache_of_reusing_layers_is_not_counted_twice() -> None:
    graph = from_huggingface({"model_type": "gemma3n_text"}).graph()
    caches = [
        next(op.cache for op in graph.kinds[kind].operators if op.name == "attention.core") for kind in graph.layers
    ]
    assert caches[:20] == [1024] * 20
    assert caches[20:] == [0] * 15


# Quantised weights.

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        (FP8, 8 + 32 / 128**2),
        ({"quant_method": "fp8"}, 8.0),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, 4 + 20 / 64),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.126953125),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8.0),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32}}},
            },
            4.5,
        ),
        ({"quant_method": "quanto", "weights": "int2"}, 2.0),
    ],
)
def test_quantised_weights_take_their_bits(config: dict[str, Any], bits: float) -> None:
    model = from_huggingface(LLAMA | {"quantization_config": config})
    assert model.quantization is not None
    assert model.quantization.bits == pytest.approx(bits)
    operators = {op.name: op for op in model.graph().kinds[0].operators}
    assert operators["mlp.up"].bits == operators["attention.qkv"].bits == pytest.approx(bits)
    assert {op.bits for op in (*model.graph().stem, *model.graph().head)} == {16.0}


def test_what_is_not_converted_stays_wide() -> None:
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    graph = from_huggingface({"model_type": "gpt_oss", "quantization_config": config}).graph()
    assert {op.bits for op in graph.kinds[0].operators if op.kind == "grouped_matmul"} == {4.25}
    assert {op.bits for op in graph.kinds[0].operators if op.kind == "matmul"} == {16.0}
    kept = {"quant_method": "fp8", "ignored_layers": ["self_attn"]}
    graph = from_huggingface(LLAMA | {"quantization_config": kept}).graph()
    assert {op.name: op.bits for op in graph.kinds[0].operators if op.kind == "matmul"} == {
        "attention.qkv": 16.0, "attention.output": 16.0, "mlp.up": 8.0, "mlp.down": 8.0,
    }  # fmt: skip


def test_an_unknown_method_is_said_and_counted_wide() -> None:
    model = from_huggingface(LLAMA | {"quantization_config": {"quant_method": "magic"}})
    assert model.quantization is None
    assert model.notes == (
        "weights are quantised by 'magic', whose bits are not known here; they are counted at 16 bits.",
    )


# Files.


def test_a_file_and_a_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "Llama-3-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    for path in (folder, folder / "config.json"):
        model = read_model(path)
        assert (model.name, model.architecture) == ("Llama-3-8B", "llama")
        assert model.graph().parameters == 8_030_261_248
    assert read_model(folder, name="mine").name == "mine"
    document = tmp_path / "own.yaml"
    document.write_text(read_model(folder).to_yaml(), encoding="utf-8")
    assert read_model(document) == read_model(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "a model is a mapping"),
        ("{", "config.json"),
        ('{"schema": "zhenfa.machine/1", "name": "x"}', "schema is 'zhenfa.machine/1'"),
        ('{"model_type": "llama", "hidden_size": "big"}', "hidden_size is 'big'"),
    ],
)
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DocumentError) as caught:
        read_model(path)
    assert words in str(caught.value)
    assert "config.json" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="there is no file"):
        read_model(tmp_path / "nothing")


# What cannot be.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": -4096}, "hidden_size is -4096, and at least 1 is wanted"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', and a whole number is wanted"),
        ({"hidden_size": 4096.5}, "hidden_size is 4096.5"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 10**12}, "more than the 1,000,000,000"),
        ({"num_attention_heads": 33, "num_key_value_heads": 33}, "num_attention_heads (33) does not divide"),
        ({"num_key_value_heads": 7}, "num_key_value_heads is 7, which does not divide 32 heads"),
        ({"num_hidden_layers": 20000}, "num_hidden_layers is 20,000"),
        ({"vocab_size": []}, "vocab_size is []"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes', and true or false is wanted"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 items, but there are 32 layers"),
        ({"layer_types": "all"}, "layer_types is 'all', and a list is wanted"),
        ({"quantization_config": []}, "quantization_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": "four"}}, "quantization_config.bits is 'four'"),
    ],
)
def test_a_value_that_cannot_be_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        from_huggingface(LLAMA | change, source="my/config.json")
    assert words in caught.value.message
    assert "my/config.json" in caught.value.message


def test_a_missing_key_of_an_unknown_type_is_named_with_its_near_miss() -> None:
    config = {key: value for key, value in UNKNOWN.items() if key != "hidden_size"} | {"hiden_size": 4096}
    with pytest.raises(DocumentError) as caught:
        from_huggingface(config)
    assert "hidden_size is missing. Did you mean 'hiden_size'?" in caught.value.message
    assert caught.value.key == "hidden_size"


def test_more_active_experts_than_there_are() -> None:
    with pytest.raises(DocumentError, match="num_experts_per_tok is 9, but there are 8 experts"):
        from_huggingface({"model_type": "mixtral", "num_experts_per_tok": 9})


def test_a_part_is_named_with_its_path() -> None:
    with pytest.raises(DocumentError, match=r"text_config\.hidden_size is -1"):
        from_huggingface({"model_type": "llama4", "text_config": {"hidden_size": -1}})


SCALARS = st.none() | st.booleans() | st.integers(-5, 70_000) | st.text(max_size=8)
VALUES = (
    SCALARS
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(SCALARS, max_size=4)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=2)
)
TYPES = sorted(set(known_types()) & set(defaults_table()["types"]))


@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_configuration_is_imported_or_refused_in_words(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(TYPES))
    known = defaults_table()["types"][kind]["defaults"]
    config: dict[str, Any] = {"model_type": kind}
    if known:
        chosen = data.draw(st.lists(st.sampled_from(sorted(known)), max_size=3))
        config |= {key: data.draw(VALUES) for key in chosen}
    try:
        graph = from_huggingface(config).graph()
    except ZhenfaError:
        return  # in words; any other exception fails the test
    assert graph.parameters >= 0
