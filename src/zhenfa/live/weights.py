"""Weights of a Hugging Face directory, taken into the decoder under its own names.

Reads ``config.json`` and safetensors from local files; nothing is downloaded and no pickle is opened. What the decoder
computes is a Llama (:mod:`zhenfa.live.decoder`); a directory whose model is another one is refused with the key that
makes it so. Names of tensors and keys: transformers 5, ``models/llama/modeling_llama.py`` and
``configuration_llama.py``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.sizes import Sizes

TYPES: Final = ("llama",)
"""Model types that the decoder computes, where the keys below stand as they must."""
MUST: Final[dict[str, tuple[object, ...]]] = {
    "hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None), "rope_scaling": (None,),
    "pretraining_tp": (1, None), "quantization_config": (None,),
}  # fmt: skip
"""Keys and the values under which the decoder computes what the model does; keys left out are as it does."""
NAMES: Final = {
    "embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm", "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
INDEX: Final = "model.safetensors.index.json"
WHOLE: Final = "model.safetensors"


def sizes_with(folder: Path, sizes: Sizes) -> Sizes:
    """Return the sizes with what the directory says beyond them; raise if it holds another model than ``sizes``.

    Raises :class:`InputError` for a directory that is not there or does not fit, :class:`CapabilityError` for a model
    that the decoder does not compute.
    """
    config = _json(folder / "config.json")
    if config.get("model_type") not in TYPES:
        raise _refusal(folder, "model_type", config.get("model_type"), f"one of {', '.join(TYPES)}")
    for key, allowed in MUST.items():
        if key in config and config[key] not in allowed:
            raise _refusal(folder, key, config[key], str(allowed[0]))
    turned = config.get("rope_parameters") or {}
    if turned.get("rope_type", "default") != "default":
        raise _refusal(folder, "rope_type", turned["rope_type"], "default")
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    found = {
        "hidden": hidden, "layers": config.get("num_hidden_layers"), "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads, "intermediate": config.get("intermediate_size"),
        "head_dim": config.get("head_dim") or (hidden // heads if hidden and heads else None),
        "vocabulary": config.get("vocab_size"), "tied": bool(config.get("tie_word_embeddings", False)), "gated": True,
    }  # fmt: skip
    for name, value in found.items():
        if getattr(sizes, name) != value:
            raise InputError(
                f"the weights in {str(folder)!r} are of a model with {name} {value}, the job's has "
                f"{getattr(sizes, name)}.",
                hint=f"write model: {folder / 'config.json'} in the job.",
            )
    theta = turned.get("rope_theta", config.get("rope_theta", 10_000.0))
    return replace(sizes, eps=float(config.get("rms_norm_eps", 1e-6)), rope_theta=float(theta))


def load_weights(module: Any, folder: Path) -> None:
    """Fill the layers that a card holds from the directory. Raises :class:`InputError` for a tensor that is missing."""
    import torch

    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise CapabilityError("safetensors is not installed.", hint="pip install 'zhenfa[huggingface]'.") from None

    own_names = {theirs(own): own for own, _ in module.named_parameters()}
    wanted: dict[str, list[tuple[str, Any]]] = {}
    where = _json(folder / INDEX).get("weight_map", {}) if (folder / INDEX).is_file() else None
    for own, parameter in module.named_parameters():
        name = theirs(own)
        file = WHOLE if where is None else where.get(name)
        if file is None or Path(file).name != file:
            raise InputError(f"{str(folder / INDEX)!r} does not say where {name!r} lies.")
        wanted.setdefault(file, []).append((name, parameter))
    for file, rows in wanted.items():
        try:
            with safe_open(folder / file, framework="pt") as tensors, torch.no_grad():
                for name, parameter in rows:
                    found = tensors.get_tensor(name)
                    found = module.crew.part(own_names[name], found)
                    if found.shape != parameter.shape:
                        raise InputError(f"{name!r} in {file!r} is {list(found.shape)}, not {list(parameter.shape)}.")
                    parameter.copy_(found)
        except (OSError, SafetensorError) as problem:
            raise InputError(f"{str(folder / file)!r} cannot be read: {problem}.") from None


def theirs(name: str) -> str:
    """Return the name of a weight in a Hugging Face directory.

    >>> theirs("layers.3.attention.query.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    stem, _, leaf = name.rpartition(".")
    if stem.startswith("layers."):
        _, number, block = stem.split(".", 2)
        return f"model.layers.{number}.{NAMES[block]}.{leaf}"
    return f"{NAMES[stem]}.{leaf}"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        raise InputError(
            f"{str(path)!r} cannot be read: {problem}.",
            hint="execution.weights is a local directory with config.json and safetensors files.",
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r} does not hold an object.")
    return found


def _refusal(folder: Path, key: str, value: object, wanted: str) -> CapabilityError:
    return CapabilityError(
        f"the model in {str(folder)!r} has {key} {value!r}; this version trains weights where it is {wanted}.",
        hint="plan and estimate work for this model; leave execution.weights out to train from fresh weights.",
    )
