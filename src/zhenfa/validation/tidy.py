"""A measured row as people write it, in the one spelling that the readers of each kind know.

What is tidied never changes what a row says: numbers written as text, space around words, other names of a field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

TEXT: Final = frozenset({
    "id", "source", "notes", "note", "model", "engine", "version", "conditions", "where", "title", "kind", "section",
    "config", "ref", "name", "group", "date", "confidence", "conf", "kernel_source",
})  # fmt: skip
"""Fields whose value is text even where it looks like a number."""

LARGEST: Final = 1e15
"""Whole numbers beyond this stay as they are: no quantity of a row is that large and whole."""

_NUMBER: Final = re.compile(r"[~≈]?\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)\s*([^\d\s].*)?")
_UNITS: Final[dict[str, tuple[str, ...]]] = {
    "ms": ("ms",), "us": ("us", "µs", "μs"), "s": ("s", "sec", "seconds"), "w": ("w", "watt", "watts"),
    "pct": ("%", "percent"), "gbps": ("gb/s", "gbps"), "tok_s": ("tok/s", "tokens/s", "tps"),
    "gib": ("gib",), "gb": ("gb",), "len": ("tokens", "tok"),
}  # fmt: skip
"""Units that may stand behind a number, by the end of the field's name that already says them."""

DEGREES: Final[dict[str, str]] = {
    name: own
    for own, names in {
        "TP": "tp tp_size tensor_parallel tensor_parallel_size tensor", "PP": "pp pp_size pipeline_parallel "
        "pipeline_parallel_size", "DP": "dp dp_size data_parallel data_parallel_size",
        "EP": "ep ep_size expert_parallel expert_parallel_size", "moe_TP": "moe_tp moe_tp_size", "GPUs": "gpus",
        "instances": "workers num_workers replicas", "dp_attention": "attention_dp enable_attention_dp",
    }.items()
    for name in (*names.split(), own.casefold())
}  # fmt: skip
"""Our name of a degree of a layout by the names that engines give it."""

METRICS: Final[dict[str, str]] = {
    "mean_ttft_ms": "ttft_mean_ms", "median_ttft_ms": "ttft_median_ms", "mean_tpot_ms": "tpot_mean_ms",
    "median_tpot_ms": "tpot_median_ms", "mean_itl_ms": "itl_mean_ms", "output_throughput": "output_tok_s_total",
    "output_token_throughput": "output_tok_s_total", "output_tok_s": "output_tok_s_total",
    "total_token_throughput": "total_tok_s", "request_throughput": "req_s", "tok_s_per_user": "user_tok_s",
    "output_tok_s_per_gpu": "output_tok_s_per_acc", "prefill_tok_s_per_gpu": "prefill_tok_s_per_acc",
    "decode_tok_s_per_gpu": "decode_tok_s_per_acc",
}  # fmt: skip
"""Our name of a serving metric by the names that benchmark clients give it."""


def tidy(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with text that is a number as one, words without space around them, known names of fields.

    >>> tidy({"batch": " 1,024 ", "metrics": {"mean_tpot_ms": "12.5 ms"}, "parallelism": {"tp": "8"}})
    {'batch': 1024, 'metrics': {'tpot_mean_ms': 12.5}, 'parallelism': {'TP': 8}}
    """
    found = {str(key): _value(str(key), value) for key, value in record.items()}
    for key, names in (("parallelism", DEGREES), ("metrics", METRICS)):
        if isinstance(found.get(key), dict):
            found[key] = _renamed(found[key], names)
    return found


def _renamed(part: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a mapping, and those in it, with our names; a name of ours that is there already stays."""
    known: dict[str, Any] = {}
    for key, value in part.items():
        inside = _renamed(value, names) if isinstance(value, dict) else value
        if isinstance(inside, list):
            inside = [_renamed(one, names) if isinstance(one, dict) else one for one in inside]
        own = names.get(key.casefold(), key)
        known.setdefault(key if own in part else own, inside)
    return known


def _value(key: str, value: Any) -> Any:
    if isinstance(value, str):
        plain = value.strip()
        return plain if key in TEXT else _number(key, plain)
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        return float(value) if abs(value) < 1e300 else math.inf
    if isinstance(value, Mapping):
        return {str(name): _value(str(name), one) for name, one in value.items()}
    if isinstance(value, list):
        return [_value(key, one) for one in value]
    return value


def _number(key: str, text: str) -> Any:
    """Return the number that a text is, with the unit of its field or none; else the text."""
    found = _NUMBER.fullmatch(text) if text[:1] in "~≈+-.0123456789" and text else None
    if found is None or not re.search(r"\d", found[1]):
        return text
    unit = (found[2] or "").strip().casefold()
    name = key.casefold()
    if unit and not any(f"_{name}".endswith(f"_{end}") and unit in words for end, words in _UNITS.items()):
        return text
    read = float(found[1].replace(",", ""))
    if not math.isfinite(read):
        return text
    return int(read) if read.is_integer() and abs(read) < LARGEST else read
