"""Weights of a Hugging Face directory, taken into the decoder under its own names.

Reads ``config.json`` and safetensors from local files; nothing is downloaded and no pickle is opened. What the decoder
computes is a Llama, a Mixtral or a Qwen2-MoE without biases (:mod:`zhenfa.live.decoder`); a directory whose model is
another one is refused with the key that makes it so. Names of tensors and keys: transformers 5, the modeling and
configuration files of ``models/llama``, ``models/mixtral`` and ``models/qwen2_moe``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.sizes import Mixture, Sizes

TYPES: Final = ("llama", "mixtral", "qwen2_moe")
"""Model types that the decoder computes, where the keys below stand as they must."""
MUST: Final[dict[str, tuple[object, ...]]] = {
    "hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None), "rope_scaling": (None,),
    "pretraining_tp": (1, None), "quantization_config": (None,), "use_sliding_window": (False, None),
}  # fmt: skip
"""Keys and the values under which the decoder computes what the model does; keys left out are as it does."""
MUST_BY_TYPE: Final[dict[str, dict[str, tuple[object, ...]]]] = {
    "mixtral": {"sliding_window": (None,)}, "qwen2_moe": {"qkv_bias": (False,), "decoder_sparse_step": (1, None)},
}  # fmt: skip
"""Those of one type, which must be there where None is not among their values."""
NAMES: Final = {
    "embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm", "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
MIXED: Final[dict[str, dict[str, str]]] = {
    "mixtral": {
        "router": "block_sparse_moe.gate", "experts": "block_sparse_moe.experts", "gate": "w1", "up": "w3",
        "down": "w2",
    },
    "qwen2_moe": {
        "router": "mlp.gate", "experts": "mlp.experts", "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
        "shared": "mlp.shared_expert", "shared_gate": "mlp.shared_expert_gate",
    },
}  # fmt: skip
"""What the parts of a mixture of experts are called."""
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
    for key, allowed in MUST_BY_TYPE.get(config["model_type"], {}).items():
        if config.get(key) not in allowed:
            raise _refusal(folder, key, config.get(key), str(allowed[0]))
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    mixture = _mixture(config)
    found = {
        "hidden": hidden, "layers": config.get("num_hidden_layers"), "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or (hidden // heads if hidden and heads else None),
        "vocabulary": config.get("vocab_size"), "tied": bool(config.get("tie_word_embeddings", False)),
        "mixture": mixture,
    }  # fmt: skip
    if mixture is None or len(mixture.layers) < sizes.layers:
        found |= {"intermediate": config.get("intermediate_size"), "gated": True}
    for name, value in found.items():
        if getattr(sizes, name) != value:
            raise InputError(
                f"the weights in {str(folder)!r} are of a model with {name} {value}, the job's has "
                f"{getattr(sizes, name)}.",
                hint=f"write model: {folder / 'config.json'} in the job.",
            )
    theta = turned.get("rope_theta", config.get("rope_theta", 10_000.0))
    return replace(sizes, eps=float(config.get("rms_norm_eps", 1e-6)), rope_theta=float(theta))


def _mixture(config: dict[str, Any]) -> Mixture | None:
    """Return the mixture of experts that a ``config.json`` describes, None for a dense model."""
    layers, active = tuple(range(config.get("num_hidden_layers") or 0)), config.get("num_experts_per_tok", 0)
    match config["model_type"]:
        case "mixtral":
            return Mixture(config.get("num_local_experts", 0), active, config.get("intermediate_size", 0), layers)
        case "qwen2_moe":
            dense = config.get("mlp_only_layers") or ()
            shared = config.get("shared_expert_intermediate_size", 0)
            return Mixture(
                config.get("num_experts", 0), active, config.get("moe_intermediate_size", 0),
                tuple(layer for layer in layers if layer not in dense),
                normalized=bool(config.get("norm_topk_prob", False)), shared=shared, shared_gate=bool(shared),
            )  # fmt: skip
    return None


def load_weights(module: Any, folder: Path) -> None:
    """Fill the layers that a card holds from the directory. Raises :class:`InputError` for a tensor that is missing."""
    kind = str(_json(folder / "config.json").get("model_type"))
    crew = module.crew
    names = {theirs(own, kind): own for own, _ in module.named_parameters()}
    weights = {theirs(own, kind): weight for own, weight in module.named_parameters()}
    Directory(folder).fill(weights, lambda name, tensor: crew.part(names[name], tensor))


class Directory:
    """The tensors of a directory's safetensors files. Raises :class:`InputError` for one that cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._where: dict[str, str] | None = None
        if (folder / INDEX).is_file():
            self._where = _json(folder / INDEX).get("weight_map", {})

    def __contains__(self, name: str) -> bool:
        """Return whether there is a tensor of that name."""
        if self._where is not None:
            return name in self._where
        with self._opened(WHOLE) as tensors:
            return name in tensors.keys()  # noqa: SIM118

    def fill(self, wanted: Mapping[str, Any], part: Callable[[str, Any], Any] = lambda _, tensor: tensor) -> None:
        """Copy tensors, or a ``part`` of each, into the weights that stand for them."""
        import torch

        rows: dict[str, list[str]] = {}
        for name in wanted:
            file = WHOLE if self._where is None else self._where.get(name)
            if file is None or Path(file).name != file:
                raise InputError(f"{str(self._folder / INDEX)!r} does not say where {name!r} lies.")
            rows.setdefault(file, []).append(name)
        for file, names in rows.items():
            with self._opened(file) as tensors, torch.no_grad():
                for name in names:
                    found, weight = part(name, tensors.get_tensor(name)), wanted[name]
                    if found.shape != weight.shape:
                        raise InputError(f"{name!r} in {file!r} is {list(found.shape)}, not {list(weight.shape)}.")
                    weight.copy_(found)

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise CapabilityError("safetensors is not installed.", hint="pip install 'zhenfa[huggingface]'.") from None
        try:
            with safe_open(self._folder / file, framework="pt") as tensors:
                yield tensors
        except (OSError, SafetensorError) as problem:
            raise InputError(f"{str(self._folder / file)!r} cannot be read: {problem}.") from None


def theirs(name: str, kind: str = "llama") -> str:
    """Return the name of a weight in a Hugging Face directory of a type.

    >>> theirs("layers.3.attention.query.weight"), theirs("layers.3.mlp.experts.5.down.weight", "mixtral")
    ('model.layers.3.self_attn.q_proj.weight', 'model.layers.3.block_sparse_moe.experts.5.w2.weight')
    """
    stem, _, leaf = name.rpartition(".")
    if not stem.startswith("layers."):
        return f"{NAMES[stem]}.{leaf}"
    _, number, block = stem.split(".", 2)
    return f"model.layers.{number}.{NAMES.get(block) or _mixed(block, MIXED[kind])}.{leaf}"


def _mixed(block: str, names: Mapping[str, str]) -> str:
    """Return the name of a part of a mixture of experts, such as ``mlp.experts.5.down``."""
    _, part, *rest = block.split(".")
    *number, matrix = rest or [""]
    return ".".join([names[part], *number, *([names[matrix]] if matrix else [])])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as problem:
        words = problem.strerror if isinstance(problem, OSError) else f"it is no JSON: {problem}"
        raise InputError(
            f"{str(path)!r} cannot be read: {words}.",
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
