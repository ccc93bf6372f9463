"""From a configuration to a model: find the builder, call it, add what all types share."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import ValidationError

from zhenfa.errors import CapabilityError, DocumentError, near_misses
from zhenfa.spec.huggingface.decoder import Fields
from zhenfa.spec.huggingface.quantization import CONFIG_KEYS, quantization
from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.huggingface.registry import builders
from zhenfa.spec.huggingface.remote_types import common_rules
from zhenfa.spec.huggingface.towers import TOWERS
from zhenfa.spec.model import Model
from zhenfa.spec.model_blocks import Layer, Prediction

TEXT_PARTS: Final = ("text_config", "llm_config", "language_config", "decoder", "thinker_config")

TEXT_TYPES: Final[dict[str, tuple[str, str]]] = {
    "dots3_note": ("text_config", "dots3_note_text"),
    "emu3": ("text_config", "emu3_text_model"),
    "fuyu": ("text_config", "persimmon"),
    "gemma3": ("text_config", "gemma3_text"),
    "gemma3n": ("text_config", "gemma3n_text"),
    "gemma4": ("text_config", "gemma4_text"),
    "gemma4_unified": ("text_config", "gemma4_unified_text"),
    "got_ocr2": ("text_config", "qwen2"),
    "llama4": ("text_config", "llama4_text"),
    "mllama": ("text_config", "mllama_text_model"),
    "moss_transcribe_diarize": ("text_config", "qwen3"),
    "musicgen": ("decoder", "musicgen_decoder"),
    "musicgen_melody": ("decoder", "musicgen_melody_decoder"),
    "qwen3_5": ("text_config", "qwen3_5_text"),
    "qwen3_5_moe": ("text_config", "qwen3_5_moe_text"),
    "qwen4_exp": ("text_config", "qwen4_exp_text"),
}
"""Wrappers: where the language model stands, and its type where the file does not say."""

_TEXT_ALONE: Final = {"dots3_note", "emu3", "llama4", "mllama", "qwen3_5", "qwen3_5_moe", "qwen4_exp"}

_STRANGE: Final = (
    "mamba", "ssm_", "state_size", "rwkv", "linear_att", "attn_type_list", "conv_kernel", "hybrid",
    "is_encoder_decoder",
)  # fmt: skip
"""Parts of keys that tell of layers which the common rules do not know."""


def known_types() -> list[str]:
    """Return every model type that is known by name, wrappers included."""
    return sorted({*builders(), *TEXT_TYPES})


def from_huggingface(config: dict[str, Any], *, name: str | None = None, source: str = "config.json") -> Model:
    """Import a Hugging Face configuration of a decoder-only language model.

    ``config`` is the parsed ``config.json``; keys that it leaves out take the default of its model type. ``source``
    names the file in messages. A type that is not known by name is read by the common rules, and ``notes`` says so.
    Raises :class:`DocumentError` for a value that cannot be, :class:`CapabilityError` for a type that is not known.
    """
    if not isinstance(config, dict):
        raise DocumentError("a Hugging Face configuration is a mapping of keys.", source=source)
    whole = Config(config, source=source)
    notes: list[str] = []
    try:
        text = _language_part(whole, notes)
        fields = _build(text, notes)
        _tie(whole, text, fields)
        _add_towers(whole, fields, notes)
        _add_prediction(text, fields)
        _add_quantization(whole, text, fields, notes)
        return Model(name=_name(name, whole), architecture=whole.model_type or None, notes=tuple(notes), **fields)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or problem.title
        cause = first.get("ctx", {}).get("error", first["msg"])
        raise DocumentError(f"{place} is {_short(first.get('input'))}: {cause}.", source=source, key=place) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else "a mapping" if isinstance(value, dict) else f"{text[:57]}..."


def _name(name: str | None, c: Config) -> str:
    given = name or str(c.data.get("_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1] or c.model_type or "model"
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", given).strip("-._")[:80]
    return clean or "model"


def _language_part(c: Config, notes: list[str]) -> Config:
    """Return the configuration of the language model: the whole, or a part of a wrapper."""
    known = builders()
    if c.model_type in known:
        return c
    if c.model_type in TEXT_TYPES:
        key, kind = TEXT_TYPES[c.model_type]
        return c.sub(key, kind)
    for key in TEXT_PARTS:
        if isinstance(c.data.get(key), dict):
            notes.append(f"only the language model of the {c.model_type} model is counted ({key}).")
            part = c.sub(key)
            return _language_part(part, notes) if key == "thinker_config" else part
    return c


def _build(c: Config, notes: list[str]) -> Fields:
    builder = builders().get(c.model_type)
    if builder is not None:
        return builder(c)
    strange = next((key for key in c.data if any(part in key for part in _STRANGE) and c.data[key]), None)
    if strange or not c.model_type:
        raise _unknown(c, strange)
    fields = common_rules(c)
    notes.append(
        f"the model type {c.model_type!r} is not known by name; it was read by the common rules of decoders, and its "
        "parameters may be off: compare them with the published count."
    )
    return fields


def _unknown(c: Config, strange: str | None) -> CapabilityError:
    known = known_types()
    if not c.model_type:
        return CapabilityError(
            f"{c.source} has no model_type, so its architecture is not known.",
            hint=f"add model_type, one of {len(known)} known ones such as 'llama', or write a zhenfa.model document.",
        )
    near = near_misses(c.model_type, known)
    guess = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
    return CapabilityError(
        f"the model type {c.model_type!r} is not known, and {strange!r} tells of layers that the common rules of "
        f"decoders do not cover.{guess}",
        hint=f"{len(known)} types are known by name; any other model can be written as a zhenfa.model document.",
    )


def _tie(whole: Config, text: Config, fields: Fields) -> None:
    """Settle whether a wrapper ties the ends: its own word, then the language model's, then its default.

    Where transformers builds the language model alone, that one's word comes first.
    """
    if whole is text:
        return
    order = (text, whole) if whole.model_type in _TEXT_ALONE else (whole, text)
    for given in (part.own("tie_word_embeddings") for part in order):
        if isinstance(given, bool):
            break
    else:
        given = whole.defaults.get("tie_word_embeddings")
    if isinstance(given, bool):
        fields["head"] = fields["head"].model_copy(update={"tied": given})


def _add_towers(c: Config, fields: Fields, notes: list[str]) -> None:
    """Add encoders of images and sound where they are known, else say that they are left out."""
    build = TOWERS.get(c.model_type)
    if build is not None:
        fields["encoders"] = (*fields.get("encoders", ()), *build(c, fields["hidden_size"]))
        return
    left = [key for key in ("vision_config", "audio_config", "speech_config") if isinstance(c.data.get(key), dict)]
    if left and not any("language model" in note for note in notes):
        notes.append(f"only the language model is counted; {' and '.join(left)} is left out.")


def _add_prediction(c: Config, fields: Fields) -> None:
    """Add multi-token prediction modules: each a projection, a layer like the model's last, and norms."""
    if "mtp" in fields:
        return
    keys = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
    modules = next((count for count in (c.whole(key, 0) for key in keys) if count), 0)
    if modules:
        last: Layer = fields["layers"][-1]
        layer = last.each[-1] if last.each else last
        fields["mtp"] = Prediction(modules=modules, layer=layer.model_copy(update={"repeat": 1}))


def _add_quantization(whole: Config, text: Config, fields: Fields, notes: list[str]) -> None:
    part = whole if any(whole.get(key) is not None for key in CONFIG_KEYS) else text
    found, note = quantization(part)
    if found is not None:
        fields["quantization"] = found
    if note is not None:
        notes.append(note)
