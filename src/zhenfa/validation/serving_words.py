"""A serving row in the words of this project: other spellings of fields, metrics and units, as people write them.

Nothing is guessed that a row does not say; what stays unread is skipped with its reason further on.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

KINDS: Final = {
    "serving": "serving", "serve": "serving", "online": "serving", "online serving": "serving", "inference": "serving",
    "serving benchmark": "serving", "offline": "offline", "throughput": "offline", "offline throughput": "offline",
    "decode": "decode", "decoding": "decode", "prefill": "prefill", "prefilling": "prefill", "ablation": "ablation",
}  # fmt: skip
"""Kinds of serving rows by the words that say so."""

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "input_len": ("isl", "input_length", "input_tokens", "prompt_len", "prompt_length", "prompt_tokens", "in_len"),
    "output_len": ("osl", "output_length", "output_tokens", "gen_len", "generation_len", "decode_len", "out_len"),
    "kv_len": ("context_len", "context_length", "kv_length", "cached_tokens"),
    "batch": ("concurrency", "max_concurrency", "num_concurrent", "concurrent_requests", "users", "batch_size", "bs"),
    "spec_decode": ("speculative", "speculation", "speculative_decoding", "mtp"),
    "parallelism": ("parallel", "layout", "deployment", "sharding"),
    "precision": ("dtype", "quantization", "quant"),
    "hardware": ("device", "devices", "machine", "gpus"),
    "engine": ("framework", "serving_engine", "backend", "software", "runtime"),
    "notes": ("note", "comment", "comments"),
}  # fmt: skip
"""Fields of a row and other names that they go by, the likeliest first."""

DEGREES: Final[dict[str, tuple[str, ...]]] = {
    "TP": ("tp", "tensor_parallel", "tensor_parallel_size", "tp_size", "attn_tp"),
    "DP": ("dp", "data_parallel", "data_parallel_size", "dp_size", "attn_dp"),
    "PP": ("pp", "pipeline_parallel", "pipeline_parallel_size", "pp_size"),
    "EP": ("ep", "expert_parallel", "expert_parallel_size", "ep_size", "moe_ep"),
}  # fmt: skip

_SECONDS: Final = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_TIMES: Final = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "tbt": "itl", "e2e": "e2e", "e2el": "e2e"}
_STATISTICS: Final = {
    "mean": "mean", "avg": "mean", "average": "mean", "median": "median", "p50": "median", "p99": "p99", "p90": "p90",
    "p95": "p95",
}  # fmt: skip
_CARDS: Final = {"gpu", "gpus", "acc", "accelerator", "card", "npu", "device", "chip", "dcu", "xpu", "rank"}


def row_of(record: Mapping[str, Any], known: Container[str] = ()) -> dict[str, Any]:
    """Return a record with its fields, degrees and metrics under the names of the published form.

    ``known`` metrics keep their names.
    """
    row = {str(key): value for key, value in record.items()}
    low = {key.casefold().strip().replace("-", "_").replace(" ", "_"): key for key in row}
    for field, others in FIELDS.items():
        if field in row:
            if field == "batch" and isinstance(row[field], Mapping):
                row[field] = _batch(field, row[field])
            continue
        found = next((low[one] for one in (field, *others) if one in low), None)
        if found is not None:
            row[field] = row[found]
            if field == "batch":
                row[field] = _batch(found, row[found])
    if "batch" not in row and (rate := _first(row, low, "request_rate", "qps", "rate")) is not None:
        count = _first(row, low, "num_prompts", "num_requests", "requests") or 1000
        row["batch"] = f"{count:g} requests @ {rate:g} req/s"
    row["kind"] = KINDS.get(str(row.get("kind") or "").casefold().strip(), row.get("kind"))
    for field in ("input_len", "output_len"):
        row[field] = length(row.get(field))
    row["hardware"] = _hardware(row.get("hardware"), row)
    row["parallelism"] = _parallelism(row.get("parallelism"), row)
    if isinstance(row.get("precision"), str):
        row["precision"] = {"weights": row["precision"]}
    if isinstance(row.get("metrics"), Mapping):
        row["metrics"] = metrics(row["metrics"], known)
    return row


def _first(row: Mapping[str, Any], low: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        value = row.get(low.get(name, name))
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
    return None


def _batch(name: str, value: Any) -> Any:
    number = isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[\d,.]+", value.strip()))
    if isinstance(value, Mapping):
        value = next((value[one] for one in FIELDS["batch"] if one in value), value)
        return f"concurrency {value}"
    return f"concurrency {value}" if number and "batch" not in name.casefold() and name != "bs" else value


def length(value: Any) -> Any:
    """Return tokens of a text such as ``8k`` or ``~1,000 tokens``; anything else as it is.

    >>> length("8k"), length("~1,000 tokens"), length("ShareGPT"), length(77)
    (8192.0, 1000.0, 'ShareGPT', 77)
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"[~≈\s]*([\d,]+(?:\.\d+)?)\s*([kK]?)\s*(?:tok\w*)?\s*", value)
    return float(found[1].replace(",", "")) * (1024.0 if found[2] else 1.0) if found else value


def _hardware(value: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return accelerator and count of a text such as ``8x H100 SXM``, or of other names of the same fields."""
    found = dict(value) if isinstance(value, Mapping) else {}
    if isinstance(value, str):
        said = re.match(r"\s*(?:(\d{1,6})\s*[xX×*]\s*)?(\S.*?)(?:(?:\s+[xX×]|\s*[×*])\s*(\d{1,6}))?\s*$", value)
        if said:
            found = {"accelerator": said[2], "count": int(said[1] or said[3] or 1)}
    if "accelerator" not in found:
        found["accelerator"] = _pick(found, row, "gpu", "npu", "card", "chip", "accelerator", "gpu_type", "name")
    if found.get("count") is None:
        found["count"] = _pick(found, row, "num_gpus", "n_gpus", "gpus", "cards", "npus", "num_cards", "devices")
    if isinstance(found.get("count"), str) and found["count"].strip().isdigit():
        found["count"] = int(found["count"])
    if not isinstance(found.get("count"), int) or isinstance(found.get("count"), bool):
        found["count"] = None
    return {key: one for key, one in found.items() if one is not None}


def _pick(part: Mapping[str, Any], row: Mapping[str, Any], *names: str) -> Any:
    return next((one[name] for one in (part, row) for name in names if one.get(name) is not None), None)


def _parallelism(value: Any, row: Mapping[str, Any]) -> Any:
    """Return degrees under their short names, out of a text such as ``TP8 EP8`` or out of fields of the row itself."""
    if isinstance(value, str):
        said = re.findall(r"\b(TP|DP|PP|EP)\s*[=:]?\s*(\d+)", value, flags=re.IGNORECASE)
        value = {name.upper(): int(size) for name, size in said}
    if not isinstance(value, Mapping):
        value = {}
    found = {str(key): _parallelism(one, {}) if isinstance(one, Mapping) else one for key, one in value.items()}
    for name, others in DEGREES.items():
        if name not in found:
            given = next((found[one] for one in others if one in found), None)
            given = next((row[one] for one in (name, *others) if one in row), None) if given is None else given
            if given is not None:
                found[name] = int(given) if isinstance(given, str) and given.strip().isdigit() else given
    return found


def metrics(given: Mapping[Any, Any], known: Container[str] = ()) -> dict[str, Any]:
    """Return metrics under the names and in the units of the published form; unknown ones as they are.

    >>> metrics({"mean_ttft_s": 0.5, "p99 TTFT (ms)": 900, "tokens/s/user": "50 tok/s", "output_throughput": 900})
    {'ttft_mean_ms': 500.0, 'ttft_p99_ms': 900, 'user_tok_s': 50.0, 'output_tok_s_total': 900}
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        name, scale = (str(key), 1.0) if key in known else metric(str(key))
        number = _number(value)
        found.setdefault(name, value if number is None or (scale == 1.0 and not isinstance(value, str)) else
                         number * scale)  # fmt: skip
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        said = re.fullmatch(r"\s*([\d,]+(?:\.\d+)?)\s*(?:ms|s|tok\w*/s|tokens/s|req/s|/s)?\s*", value)
        return float(said[1].replace(",", "")) if said else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def metric(name: str) -> tuple[str, float]:
    """Return the published name of a metric, and what its values are multiplied with; unknown ones as they are."""
    low = name.casefold().replace("tokens", "tok").replace("token", "tok")
    words = [one for one in re.split(r"[^a-z0-9µ]+", low) if one]
    time = next((_TIMES[one] for one in words if one in _TIMES), None)
    if "latency" in words and time is None and {"e2e", "end", "request", "total"} & set(words):
        time = "e2e"
    if time is not None and words[0] in {*_TIMES, *_STATISTICS, "latency", "request", "end", "total"}:
        return _time(time, words, name)
    if {"goodput"} & set(words):
        return name, 1.0
    if {"req", "requests", "request", "rps", "qps"} & set(words) and not {"tok"} & set(words):
        plain = {"rps", "qps"} & set(words) or "throughput" in words or words[-1] in {"s", "sec", "second"}
        return ("req_s", 1.0) if plain else (name, 1.0)
    return (_throughput(words) or name), 1.0


def _time(time: str, words: list[str], name: str) -> tuple[str, float]:
    statistic = next((_STATISTICS[one] for one in words if one in _STATISTICS), None)
    unit = next((one for one in reversed(words) if one in _SECONDS), "ms" if time != "e2e" else "s")
    if any(one in {"upper", "target", "slo", "sla"} for one in words) or "/" in name.partition("(")[0]:
        return name, 1.0
    wanted = "s" if time == "e2e" else "ms"
    parts = (time, statistic or ("mean" if time == "e2e" else None), wanted)
    return "_".join(one for one in parts if one), _SECONDS[unit] / _SECONDS[wanted]


def _throughput(words: Iterable[str]) -> str | None:
    """Return the name of a rate of tokens by the words of it, or None if it is none."""
    said = set(words)
    if said & {"tflops", "flops", "watt", "w", "kw", "joule", "j", "dollar", "usd", "sim", "simulated"}:
        return None
    if not (said & {"tps", "throughput", "tput"} or ("tok" in said and said & {"s", "sec", "second"})):
        return None
    if said & {"user", "request"}:
        return "user_tok_s"
    side = "total" if "total" in said or {"input", "output"} <= said else (
        "input" if said & {"input", "prompt", "prefill", "in"} else "output")  # fmt: skip
    if said & _CARDS:
        decoded = "decode" in said or "decoding" in said
        return {"total": "total_tok_s_per_acc", "input": "prefill_tok_s_per_acc"}.get(
            side, "decode_tok_s_per_acc" if decoded else "output_tok_s_per_acc"
        )  # fmt: skip
    if "node" in said:
        return "prefill_tok_s_per_node" if side == "input" else "decode_tok_s_per_node"
    return {"total": "total_tok_s", "input": "input_tok_s_total", "output": "output_tok_s_total"}[side]
