"""Reads a Hugging Face configuration: typed values, per-type defaults, other spellings, and errors in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

from zhenfa.errors import DocumentError, near_misses

MAX_VALUE: Final = 1_000_000_000
MAX_LAYERS: Final = 10_000

_MISSING: Final = object()

SPELLINGS: Final[dict[str, tuple[str, ...]]] = {
    "hidden_size": ("n_embd", "d_model", "dim", "n_embed", "embed_dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("n_head_kv", "num_kv_heads", "multi_query_group_num", "num_query_groups"),
    "intermediate_size": ("ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "d_inner"),
    "vocab_size": ("padded_vocab_size", "n_vocab"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"),
    "head_dim": ("kv_channels", "attention_head_dim"),
    "num_experts": ("num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": ("num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k"),
    "moe_intermediate_size": ("expert_ffn_hidden_size", "expert_intermediate_size"),
    "layer_types": ("layers_block_type", "block_types"),
}
"""Other names for the same value, tried in order where the type's own table does not say."""

_LEGACY_LAYERS: Final = {
    "attention": "full_attention",
    "global": "full_attention",
    "local": "sliding_attention",
    "mamba": "linear_attention",
    "mamba2": "linear_attention",
    "recurrent": "linear_attention",
}


@cache
def defaults_table() -> dict[str, Any]:
    """Return the packaged table of default values and spellings by model type (facts from transformers)."""
    text = resources.files("zhenfa.spec.huggingface").joinpath("defaults.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


class Config:
    """One configuration mapping.

    A value is looked up under its own name, under the names by which its model type also knows it, and then among the
    defaults of the type.
    """

    def __init__(self, data: dict[str, Any], *, source: str, model_type: str | None = None, path: str = "") -> None:
        self.data = data
        self.source = source
        self.path = path
        self.model_type = model_type or str(data.get("model_type", ""))
        entry = defaults_table()["types"].get(self.model_type, {})
        self.defaults: dict[str, Any] = entry.get("defaults", {})
        self._map: dict[str, str] = entry.get("names", {})
        self._parts: dict[str, dict[str, Any]] = entry.get("parts", {})
        self.known = bool(entry)
        self._layer_overrides: dict[str, Any] | None = None

    def _names(self, key: str) -> list[str]:
        names = [key]
        if key in self._map:
            names.append(self._map[key])
        names += [alias for alias, real in self._map.items() if real == key]
        if not self.known:
            names += SPELLINGS.get(key, ())
        return names

    def get(self, key: str, default: Any = None) -> Any:
        """Return the raw value, or the type's default, or ``default``; a null in the file stands for ``default``."""
        names = self._names(key)
        for place in (self.data, self.defaults):
            for name in names:
                if name in place:
                    return default if place[name] is None else place[name]
        return default

    def own(self, key: str) -> Any:
        """Return the value that the file itself gives, or None."""
        return next((self.data[name] for name in self._names(key) if self.data.get(name) is not None), None)

    def fail(self, key: str, message: str, hint: str | None = None) -> DocumentError:
        """Return the error for one key of this configuration."""
        return DocumentError(f"{self.path}{message}", hint=hint, source=self.source, key=self.path + key)

    def whole(self, key: str, default: Any = _MISSING, *, least: int = 0) -> int:
        """Return a whole number of at least ``least``; a list of equal numbers counts as one of them.

        Raises :class:`DocumentError` naming key and value.
        """
        value = self.get(key, None if default is _MISSING else default)
        if value is None:
            raise self._missing(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, f"{key} is {value!r}, and a whole number is wanted.")
        if value < least:
            raise self.fail(key, f"{key} is {value}, and at least {least} is wanted.")
        if value > MAX_VALUE:
            raise self.fail(key, f"{key} is {value}, more than the {MAX_VALUE:,} that are read.")
        return value

    def count(self, key: str, default: Any = _MISSING) -> int:
        """Return a whole number of at least 1."""
        return self.whole(key, default, least=1)

    def maybe(self, key: str) -> int | None:
        """Return a whole number of at least 1, or None where it is absent."""
        return None if self.get(key) is None else self.count(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a yes or no."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"{key} is {value!r}, and true or false is wanted.")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"{key} is {value!r}, and a number is wanted.")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """Return text."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.fail(key, f"{key} is {value!r}, and text is wanted.")
        return value

    def sub(self, key: str, model_type: str | None = None) -> Config:
        """Return the mapping under ``key`` as a configuration of its own (empty where it is absent)."""
        value = self.get(key)
        part: dict[str, Any] = self._parts.get(key, {})
        if value is None:
            value = part
        if not isinstance(value, dict):
            raise self.fail(key, f"{key} is {value!r}, and a mapping is wanted.")
        kind = str(value.get("model_type") or part.get("model_type") or model_type or "")
        return Config(value, source=self.source, model_type=kind, path=f"{self.path}{key}.")

    def at(self, layer: int) -> Config:
        """Return this configuration as one layer sees it (``per_layer_config`` overrides by layer index)."""
        if self._layer_overrides is None:
            table = self.get("per_layer_config", {})
            if not isinstance(table, dict):
                raise self.fail("per_layer_config", "per_layer_config is a mapping from layer index to keys.")
            self._layer_overrides = {str(key).lstrip("0") or "0": value for key, value in table.items()}
        own = self._layer_overrides.get(str(layer))
        if not isinstance(own, dict):
            return self
        return Config(self.data | own, source=self.source, model_type=self.model_type, path=self.path)

    def listed(self, key: str, length: int | None = None) -> list[Any] | None:
        """Return a list, or None where it is absent; with ``length``, one of that many items, or None if empty."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.fail(key, f"{key} is {value!r}, and a list is wanted.")
        if len(value) > MAX_LAYERS:
            raise self.fail(key, f"{key} has {len(value):,} items, more than the {MAX_LAYERS:,} that are read.")
        if length is not None and not value:
            return None
        if length is not None and len(value) != length:
            raise self.fail(key, f"{key} has {len(value)} items, but there are {length} layers.")
        return list(value)

    def counts(self, key: str) -> list[int]:
        """Return a list of whole numbers, empty where it is absent."""
        found = self.listed(key) or []
        for item in found:
            if isinstance(item, bool) or not isinstance(item, int):
                raise self.fail(key, f"{key} holds {item!r}, and whole numbers are wanted.")
        return found

    @property
    def layers(self) -> int:
        """Return how many layers there are."""
        count = self.count("num_hidden_layers")
        if count > MAX_LAYERS:
            raise self.fail("num_hidden_layers", f"num_hidden_layers is {count:,}, more than {MAX_LAYERS:,}.")
        return count

    def layer_types(self, otherwise: Callable[[int], str], known: Sequence[str] | None = None) -> list[str]:
        """Return the type of each layer: as listed, else by the rule ``otherwise`` (layer index to type)."""
        given = self.listed("layer_types", self.layers)
        if given is None:
            return [otherwise(index) for index in range(self.layers)]
        types = [_LEGACY_LAYERS.get(str(item), str(item)) for item in given]
        if known is not None:
            for index, item in enumerate(types):
                if item not in known:
                    near = near_misses(item, known)
                    guess = f" Did you mean {near[0]!r}?" if near else ""
                    raise self.fail("layer_types", f"layer_types[{index}] is {item!r}, no layer of this model.{guess}")
        return types

    def divide(self, key: str, by: str) -> int:
        """Return ``key / by``, which must be whole."""
        total, parts = self.count(key), self.count(by)
        if total % parts:
            raise self.fail(by, f"{key} is {total}, which {by} ({parts}) does not divide.", "give head_dim.")
        return total // parts

    def _missing(self, key: str) -> DocumentError:
        near = near_misses(key, [str(name) for name in self.data])
        guess = f" Did you mean {near[0]!r}?" if near else ""
        kind = f"a {self.model_type} configuration" if self.model_type else "a configuration without a model_type"
        return self.fail(key, f"{key} is missing.{guess}", f"{kind} needs it.")
