"""Other spellings of a training row's fields, brought to the names of the form.

Rows are written by many hands: a framework's own flag for a field, other cases, dashes, a section under another name,
fields at the top level. A field that stands under its own name wins over any other spelling of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from zhenfa.validation.train_words import number, truth

SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "model": ("architecture", "model_config"),
    "parallel": ("parallelism", "parallel_config", "layout", "strategy"),
    "hardware": ("machine", "system", "cluster_hardware"),
    "metrics": ("metric", "results", "result", "performance"),
}
"""Sections of a row, and what else they are called."""

FIELDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "model": {
        "name": ("model_name",),
        "layers": ("num_layers", "n_layers", "num_hidden_layers"),
        "hidden": ("hidden_size", "d_model", "emb_dim", "dim"),
        "ffn": ("ffn_hidden_size", "intermediate_size", "ffn_size", "mlp_dim"),
        "heads": ("num_attention_heads", "n_heads", "num_heads"),
        "kv_heads": ("num_key_value_heads", "n_kv_heads", "num_query_groups"),
        "head_dim": ("kv_channels", "head_size"),
        "vocab": ("vocab_size", "vocabulary", "vocabulary_size"),
        "seq": ("seq_len", "seq_length", "sequence_length", "max_seq_len"),
        "gated_mlp": ("gated", "swiglu", "gated_linear_unit"),
        "tied": ("tie_embeddings", "tie_word_embeddings"),
        "mtp_layers": ("mtp", "num_nextn_predict_layers", "mtp_num_layers"),
    },
    "parallel": {
        "tp": ("tensor_parallel", "tensor_parallel_size", "tensor_model_parallel_size"),
        "pp": ("pipeline_parallel", "pipeline_parallel_size", "pipeline_model_parallel_size"),
        "vpp": ("vp", "virtual_pipeline", "virtual_pipeline_model_parallel_size", "virtual_stages"),
        "dp": ("data_parallel", "data_parallel_size"),
        "cp": ("context_parallel", "context_parallel_size"),
        "ep": ("expert_parallel", "expert_parallel_size", "expert_model_parallel_size"),
        "etp": ("expert_tensor_parallel", "expert_tensor_parallel_size"),
        "sp": ("sequence_parallel",),
        "mbs": ("micro_batch", "micro_batch_size", "micro_batchsize"),
        "gbs": ("global_batch", "global_batch_size", "global_batchsize"),
        "ga": ("grad_accum", "gradient_accumulation", "gradient_accumulation_steps", "num_microbatches"),
        "zero": ("zero_stage", "sharding", "fsdp"),
        "recompute": ("activation_checkpointing", "recomputation", "gradient_checkpointing", "remat"),
        "schedule": ("pipeline_schedule",),
    },
    "hardware": {
        "accel": ("accelerator", "gpu", "chip", "npu"),
        "count": ("gpus", "num_gpus", "n_gpus", "num_devices", "devices", "cards", "chips", "world_size"),
        "per_node": ("gpus_per_node", "devices_per_node", "cards_per_node"),
        "mem_gb": ("memory_gb", "hbm_gb"),
        "intra": ("intra_node", "scale_up"),
        "inter": ("inter_node", "scale_out", "network"),
    },
    "metrics": {
        "iter_s": ("step_s", "step_time_s", "iteration_s", "iteration_time_s", "train_step_timing_s"),
        "tok_s_dev": ("tok_s_gpu", "tokens_s_gpu", "tokens_per_s_per_gpu", "tokens_per_sec_per_gpu", "tps_gpu", "tgs"),
        "tok_s_total": ("tok_s", "tokens_s", "tokens_per_s", "tokens_per_sec", "tokens_per_second"),
        "samples_s_total": ("samples_s", "samples_per_s", "samples_per_sec", "samples_per_second"),
        "tflops_dev": ("tflops", "tflops_gpu", "tflops_per_gpu", "tflops_per_dev", "model_tflops_gpu"),
        "mfu_pct": ("mfu",),
        "mem_gib": ("memory_gib", "peak_memory_gib", "max_memory_gib"),
    },
}  # fmt: skip
"""Fields of each section, and what else they are called."""

MILLISECONDS: Final = ("iter_ms", "step_ms", "step_time_ms", "iteration_ms", "iteration_time_ms")


def plain(name: str) -> str:
    """Return a name in small letters, its words joined by underscores.

    >>> plain("Tokens / sec / GPU"), plain("micro-batch size"), plain("numLayers")
    ('tokens_sec_gpu', 'micro_batch_size', 'num_layers')
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name)
    return "_".join(re.findall(r"[a-z0-9]+", apart.casefold()))


@cache
def _sections() -> dict[str, str]:
    return {name: section for section, others in SECTIONS.items() for name in (section, *others)}


@cache
def _fields(section: str) -> dict[str, str]:
    return {name: field for field, others in FIELDS[section].items() for name in (field, *others)}


def canonical(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row under the names of the form; what it calls by none of the known names stays as it is."""
    result: dict[str, Any] = {}
    loose: dict[str, dict[str, Any]] = {}
    for key, value in record.items():
        name = plain(str(key))
        section = _sections().get(name)
        if section == "model" and isinstance(value, str):
            loose.setdefault("model", {})["name"] = value
            continue
        if section is not None and isinstance(value, Mapping):
            if section not in result or name == section:
                result[section] = {**result.get(section, {}), **_section(section, value)}
            else:
                result[section] = {**_section(section, value), **result[section]}
            continue
        home = next((each for each in FIELDS if name in _fields(each)), None)
        if home is None or name == "name" or name in SECTIONS:
            result[str(key) if str(key) in record and name not in _TOP else name] = value
        else:
            loose.setdefault(home, {})[name] = value
    for section, found in loose.items():
        held = result.get(section)
        result[section] = {**_section(section, found), **(held if isinstance(held, Mapping) else {})}
    return result


_TOP: Final = frozenset({"id", "tier", "task", "source", "precision", "software", "notes", "check", "flops_convention"})


def _section(section: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section under the names of the form; a field's own name wins, then the first spelling."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        name = plain(str(key))
        field = _fields(section).get(name)
        if section == "metrics" and name in MILLISECONDS:
            field = "iter_s"
        if field is None:
            found[str(key)] = value
        elif name == field or found.get(field) is None:
            found[field] = _value(name, value)
    return found


def _value(name: str, value: Any) -> Any:
    """Return the value of a field that stands under another spelling as the field has it."""
    read = number(value)
    if name in MILLISECONDS:
        return None if read is None else read / 1000
    if name == "mfu" and read is not None and read <= 1.5 and "%" not in str(value):
        return read * 100
    if name == "fsdp":
        return "FSDP" if truth(value) or (read or 0) > 1 else None
    return value
