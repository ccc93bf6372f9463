"""What one row of a table of measured operators asked of the chip: which law, which data type, which shape.

Rows come as columns (arrays by name), in the names of the tables. Dimensions of the attention blocks are those of the
published model configurations, since the tables give only the model's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa.laws import experts
from zhenfa.spec.machine import Precision

Columns = Mapping[str, Any]

DTYPES: Final[dict[str, tuple[Precision, float]]] = {
    "bfloat16": ("bf16", 2.0), "float16": ("fp16", 2.0), "fp8": ("fp8", 1.0), "fp8_block": ("fp8", 1.0),
    "nvfp4": ("fp4", 0.5625), "int8_wo": ("bf16", 1.0), "int4_wo": ("bf16", 0.53125), "sq": ("int8", 1.0),
    "w4a16_mxfp4": ("bf16", 0.53125), "w4a8_mxfp4_mxfp8": ("fp8", 0.53125),
}  # fmt: skip
"""Arithmetic precision and bytes per weight of the tables' data types, scales included."""

SCALED: Final = ("fp8", "fp8_block", "nvfp4", "sq", "w4a8_mxfp4_mxfp8")
"""Data types whose inputs are scaled and written anew before the matmul."""


class NotDescribedError(Exception):
    """A row that the laws do not describe; the message says why."""


@dataclass(frozen=True)
class Work:
    """The law, data type per row, precision of the peak per row, and the law's arguments but for coefficients."""

    law: str
    dtype: Any
    precision: Any
    arguments: dict[str, Any]


def _text(columns: Columns, name: str) -> Any:
    return np.asarray(columns[name]).astype(str)


def _precisions(dtype: Any) -> tuple[Any, Any]:
    unknown = sorted(set(dtype.tolist()) - set(DTYPES))
    if unknown:
        raise NotDescribedError(f"data type {unknown[0]!r} is not one of {', '.join(DTYPES)}")
    pairs = [DTYPES[name] for name in dtype.tolist()]
    return np.array([one for one, _ in pairs]), np.array([size for _, size in pairs])


def _input_bytes(dtype: Any, size: Any) -> Any:
    """Return bytes moved per input element: read, and where it is scaled first, written and read again."""
    return np.where(np.isin(dtype, SCALED), 2.0 + 2.0 * np.maximum(size, 0.5), 2.0)


def _gemm(columns: Columns) -> Work:
    dtype = _text(columns, "gemm_dtype")
    precision, size = _precisions(dtype)
    shape = {"rows": columns["m"], "inputs": columns["k"], "outputs": columns["n"]}
    return Work("matmul", dtype, precision, {**shape, "weight_bytes": size, "input_bytes": _input_bytes(dtype, size)})


def _mla_bmm(columns: Columns) -> Work:
    dtype = _text(columns, "bmm_dtype")
    precision, size = _precisions(dtype)
    before = _text(columns, "op_name") == "mla_gen_pre"
    shape = {
        "rows": columns["num_tokens"], "inputs": np.where(before, 128.0, 512.0),
        "outputs": np.where(before, 512.0, 128.0), "groups": columns["num_heads"],
    }  # fmt: skip
    return Work("matmul", dtype, precision, {**shape, "weight_bytes": size, "input_bytes": _input_bytes(dtype, size)})


def _skew(distribution: Any) -> Any:
    """Return the exponent in names such as ``power_law_1.2`` and ``power_law_1.01_eplb``; placed by load is even."""
    values = {}
    for name in set(distribution.tolist()):
        number = [part for part in name.split("_") if part.replace(".", "").isdigit()]
        values[name] = float(number[0]) if number and "eplb" not in name else 0.0
    return np.array([values[name] for name in distribution.tolist()])


def _experts(columns: Columns) -> Work:
    dtype = _text(columns, "moe_dtype")
    precision, size = _precisions(dtype)
    tokens, active, number = (np.asarray(columns[name], float) for name in ("num_tokens", "topk", "num_experts"))
    ranks = np.asarray(columns["moe_ep_size"], float)
    skew = _skew(_text(columns, "distribution"))
    held = number / ranks
    routed = tokens * active
    copies = np.minimum(routed / ranks * experts.busiest_rank(tokens, active, number, ranks, skew), routed)
    if "rank0_num_tokens" in columns:
        copies = np.asarray(columns["rank0_num_tokens"], float) * active
        copies = np.minimum(copies, routed)
    touched = experts.touched_experts(copies, held, tokens, active, number, skew)
    arguments = {
        "tokens": tokens, "routed": routed, "copies": copies, "touched": touched, "features": columns["hidden_size"],
        "intermediate": np.asarray(columns["inter_size"], float) / columns["moe_tp_size"], "weight_bytes": size,
        "input_bytes": _input_bytes(dtype, size),
        "gated": np.where(np.char.find(_text(columns, "kernel_source"), "nongated") >= 0, 0.0, 1.0),
    }  # fmt: skip
    return Work("experts", dtype, precision, arguments)


def _cached(columns: Columns) -> tuple[Any, Any]:
    cache = _text(columns, "kv_cache_dtype")
    narrow = np.char.startswith(cache, "fp8")
    return np.where(narrow, "fp8", "bfloat16"), np.where(narrow, 1.0, 2.0)


def _window(columns: Columns) -> Any:
    window = np.asarray(columns.get("window_size", 0.0), float)
    return np.where(np.isnan(window) | (window <= 0), np.inf, window)


def _join(first: Any, second: Any) -> Any:
    return np.char.add(np.char.add(first.astype(str), "/"), second.astype(str))


def _prefill(columns: Columns) -> Work:
    dtype = _text(columns, "attn_dtype")
    cache, size = _cached(columns)
    heads = np.asarray(columns["num_heads"], float)
    key_heads = np.asarray(columns["num_key_value_heads"], float)
    arguments = {
        "queries": columns["isl"], "context": np.add(columns["isl"], columns.get("step", 0.0)), "heads": heads,
        "key_heads": np.where(key_heads > 0, key_heads, heads), "key_dim": columns["head_dim"],
        "value_dim": columns["head_dim"], "cache_bytes": size, "sequences": columns["batch_size"],
        "window": _window(columns),
    }  # fmt: skip
    return Work("prefill", _join(dtype, cache), _precisions(dtype)[0], arguments)


def _encoder(columns: Columns) -> Work:
    dtype = _text(columns, "attn_dtype")
    arguments = {
        "queries": columns["isl"], "context": columns["isl"], "heads": columns["num_heads"],
        "key_heads": columns["num_heads"], "key_dim": columns["head_dim"], "value_dim": columns["head_dim"],
        "sequences": columns["batch_size"], "causal": False,
    }  # fmt: skip
    return Work("prefill", dtype, _precisions(dtype)[0], arguments)


def _mla_prefill(columns: Columns) -> Work:
    dtype = _text(columns, "mla_dtype")
    cache, size = _cached(columns)
    arguments = {
        "queries": columns["isl"], "context": np.add(columns["isl"], columns["step"]), "heads": columns["num_heads"],
        "key_heads": columns["num_heads"], "key_dim": 192.0, "value_dim": 128.0, "cache_bytes": size,
        "sequences": columns["batch_size"],
    }  # fmt: skip
    return Work("prefill", _join(dtype, cache), _precisions(dtype)[0], arguments)


def _decode(columns: Columns) -> Work:
    dtype = _text(columns, "attn_dtype")
    cache, size = _cached(columns)
    heads = np.asarray(columns["num_heads"], float)
    key_heads = np.asarray(columns["num_key_value_heads"], float)
    features = np.asarray(columns["head_dim"], float)
    arguments = {
        "sequences": columns["batch_size"], "context": np.add(columns["isl"], columns["step"]), "heads": heads,
        "key_heads": np.where(key_heads > 0, key_heads, heads), "key_dim": features, "value_dim": features,
        "cached": 2.0 * features, "cache_bytes": size, "window": _window(columns),
    }  # fmt: skip
    return Work("decode", _join(dtype, cache), _precisions(dtype)[0], arguments)


def _mla_decode(columns: Columns) -> Work:
    dtype = _text(columns, "mla_dtype")
    cache, size = _cached(columns)
    arguments = {
        "sequences": columns["batch_size"], "context": np.add(columns["isl"], columns["step"]),
        "heads": columns["num_heads"], "key_heads": 1.0, "key_dim": 576.0, "value_dim": 512.0, "cached": 576.0,
        "cache_bytes": size,
    }  # fmt: skip
    return Work("decode", _join(dtype, cache), _precisions(dtype)[0], arguments)


def _scan(columns: Columns) -> Work:
    kernel = _text(columns, "kernel_source")
    phase = _text(columns, "phase")
    tokens = np.asarray(columns["num_tokens"], float)
    sequences = np.asarray(columns["batch_size"], float)
    if "num_v_heads" in columns:
        heads, width = np.asarray(columns["num_v_heads"], float), np.asarray(columns["head_v_dim"], float)
        state = np.asarray(columns["head_k_dim"], float)
        keys = np.asarray(columns["num_k_heads"], float) * state
    else:
        heads, width, state = (np.asarray(columns[name], float) for name in ("nheads", "head_dim", "d_state"))
        keys = np.asarray(columns["n_groups"], float) * state
    channels = heads * width + 2.0 * keys
    convolution = np.char.find(kernel, "conv1d") >= 0
    states = sequences * heads * width * state
    work = np.where(convolution, 2.0 * tokens * channels * columns["d_conv"], 8.0 * tokens * heads * width * state)
    moved = np.where(convolution, 4.0 * tokens * channels, 2.0 * tokens * (channels + heads * width) + 8.0 * states)
    arguments = {"tokens": tokens, "sequences": sequences, "work": work, "moved": moved}
    return Work(
        "scan",
        np.where(convolution, np.char.add(phase, "/convolution"), phase),
        np.full(len(kernel), "bf16"),
        arguments,
    )


def _scale(columns: Columns) -> Work:
    moved = np.asarray(columns["m"], float) * np.asarray(columns["k"], float)
    both = np.char.find(_text(columns, "op_name"), "scale_matrix") >= 0
    arguments = {"bytes_moved": moved * np.where(both, 3.0, 2.0), "rows": columns["m"]}
    return Work("stream", _text(columns, "quant_dtype"), np.full(np.size(moved), "bf16"), arguments)


def _streams_of_width(columns: Columns) -> Work:
    tokens = np.asarray(columns["num_tokens"], float)
    moved = 2.0 * tokens * columns["hidden_size"] * np.add(columns["hc_mult"], 2.0) * columns["num_sites"]
    return Work(
        "stream", _text(columns, "op_name"), np.full(np.size(tokens), "bf16"), {"bytes_moved": moved, "rows": tokens}
    )


def _block(columns: Columns) -> Work:
    from zhenfa.validation.operator_blocks import block

    return block(columns)


OPERATORS: Final[dict[str, Callable[[Columns], Work]]] = {
    "gemm": _gemm, "mla_bmm": _mla_bmm, "moe": _experts, "wideep_moe": _experts, "wideep_context_moe": _experts,
    "wideep_generation_moe": _experts, "context_attention": _prefill, "encoder_attention": _encoder,
    "context_mla": _mla_prefill, "generation_attention": _decode, "generation_mla": _mla_decode, "gdn": _scan,
    "kda": _scan, "mamba2": _scan, "scale_matrix": _scale, "mhc_module": _streams_of_width,
    **dict.fromkeys((
        "mla_context_module", "mla_generation_module", "wideep_context_mla", "wideep_generation_mla",
        "dsa_context_module", "dsa_generation_module", "msa_context_module", "msa_generation_module",
        "dsv4_csa_context_module", "dsv4_csa_generation_module", "dsv4_hca_context_module",
        "dsv4_hca_generation_module",
    ), _block),
}  # fmt: skip
"""How to read the rows of each table that the laws describe."""

LEFT_OUT: Final[dict[str, str]] = {
    "computescale": "a difference of two timings, at times zero or less",
    "dsv4_csa_topk_calib": "a part of a block that is measured as a whole elsewhere",
    "dsv4_hca_attn_module": "a part of a block that is measured as a whole elsewhere",
    "dsv4_paged_mqa_logits_module": "a part of a block that is measured as a whole elsewhere",
    "glm5_dsa_attn_module": "a part of a block that is measured as a whole elsewhere",
    "glm5_mqa_logits_module": "a part of a block that is measured as a whole elsewhere",
    "glm5_topk_module": "a part of a block that is measured as a whole elsewhere",
    "dsv4_megamoe_module": "experts and their exchange between cards in one kernel: no law for both at once",
    "wideep_context_mlp": "18 rows of one shape per chip, of an engine release known as bad",
    "wideep_generation_mlp": "18 rows of one shape per chip, of an engine release known as bad",
    **dict.fromkeys((
        "nccl", "oneccl", "custom_allreduce", "trtllm_alltoall", "moe_a2a", "wideep_deepep_ll",
        "wideep_deepep_normal",
    ), "communication: see the fabric laws"),
}  # fmt: skip
"""Tables that are not described as operators, and why."""

_FAMILIES: Final = (
    ("nongated", "nongated"), ("vllm_marlin_int4", "marlin-vllm-0.19"), ("min_latency", "trtllm"),
    ("modular", "trtllm-modular"), ("situ_as_silu", "marlin-silu"),
    ("mxfp4_flashinfer_trtllm", "trtllm-mxfp4"), ("marlin", "marlin"), ("oaitriton", "triton-mxfp4"),
    ("triton", "triton"), ("vllm_fused_moe", "triton"), ("cutlass", "cutlass"), ("deepgemm", "deepgemm"),
    ("fa3", "fa3"), ("fa4", "fa4"), ("flashinfer_trtllm", "trtllm"), ("trtllm_moe", "trtllm"),
    ("torch_flow_flashinfer", "flashinfer"),
)  # fmt: skip


def kernel_family(op: str, source: str) -> str:
    """Return the family of a kernel: the name without release, layer and flavour where the laws need no more.

    >>> kernel_family("moe", "vllm_fp8moe_flashinfer_cutlass_flashinferexperts")
    'cutlass'
    """
    name = source.lower()
    if op in {"gemm", "moe", "context_attention", "generation_attention"}:
        return next((family for part, family in _FAMILIES if part in name), name)
    return name


def work(op: str, columns: Columns) -> Work:
    """Return what rows of a table ask of the chip. Raises :class:`NotDescribedError`."""
    reader = OPERATORS.get(op)
    if reader is None:
        raise NotDescribedError(LEFT_OUT.get(op, f"no law for operator {op!r}"))
    try:
        return reader(columns)
    except KeyError as error:
        raise NotDescribedError(f"operator {op!r} needs the column {error.args[0]!r}") from error
