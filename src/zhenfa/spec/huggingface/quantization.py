"""How many bits a quantised weight takes, scales included."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from zhenfa.spec.huggingface.reader import Config
from zhenfa.spec.model_blocks import Quantization

CONFIG_KEYS: Final = ("quantization_config", "compression_config")

Scope = Literal["linear", "experts", "all"]

_KEPT: Final = (
    (re.compile(r"self_attn|attention|\battn\b"), "attention"),
    (re.compile(r"shared_expert"), "shared"),
    (re.compile(r"mlp(?!\.gate)|feed_forward"), "mlp"),
)
"""Parts of module names that stay at 16 bits, and what they are called here."""

_WORDS: Final = {
    "float8": 8.0, "int8": 8.0, "int4": 4.0, "int2": 2.0, "fp8": 8.0, "nf4": 4.0, "fp4": 4.0,
    "float4": 4.0, "uint4": 4.0,
}  # fmt: skip


def quantization(c: Config) -> tuple[Quantization | None, str | None]:
    """Return how the weights are stored, and a note where that cannot be read.

    Block scales count: MXFP4 has one 8-bit scale per 32 weights (OCP Microscaling v1.0), NVFP4 one per 16, GPTQ and AWQ
    a 16-bit scale and a zero point per group, bitsandbytes NF4 a 32-bit constant per 64 weights (an 8-bit one and a
    32-bit one per 256 blocks with double quantisation, arXiv:2305.14314), DeepSeek's FP8 a 32-bit scale per block.
    """
    key = next((name for name in CONFIG_KEYS if c.get(name) is not None), None)
    if key is None:
        return None, None
    q = c.sub(key)
    method = str(q.get("quant_method") or q.get("quant_algo") or "unknown").lower()
    bits = _bits(q, method)
    if bits is None:
        return None, f"weights are quantised by {method!r}, whose bits are not known here; they are counted at 16 bits."
    kept = _kept_modules(q)
    scope: Scope = "all" if q.get("lm_head") is True else "linear"
    if method == "mxfp4" and (not kept or "attention" in kept):
        scope = "experts"
    expert_bits = _expert_bits(c, q)
    found = Quantization(
        method=method, bits=bits, scope=scope, keep=() if scope == "experts" else tuple(kept), expert_bits=expert_bits
    )
    return found, None


def _bits(q: Config, method: str) -> float | None:
    if "mxfp4" in method:
        return 4.25
    if method in {"fp8", "fbgemm_fp8", "finegrained_fp8"}:
        return 8.0 + _block_scale(q)
    if method in {"gptq", "awq", "gptqmodel", "auto-round", "autoround", "intel/auto-round"}:
        return _grouped_bits(q)
    if method in {"bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"}:
        return _bitsandbytes(q)
    if method in {"compressed-tensors", "compressed_tensors"}:
        return _compressed(q)
    if method in {"modelopt", "modelopt_fp4", "nvfp4"}:
        algorithm = str(q.get("quant_algo", "nvfp4" if "4" in method else "")).lower()
        return 4.5 if "fp4" in algorithm else 8.0 if "8" in algorithm else _compressed(q)
    if method in {"quanto", "torchao", "eetq", "hqq", "bitnet", "quark", "ascend", "w8a8_int8"}:
        return _worded(q, method)
    return None


def _block_scale(q: Config) -> float:
    block = q.listed("weight_block_size")
    if not block:
        return 0.0
    size = 1
    for item in block:
        if isinstance(item, bool) or not isinstance(item, int) or item < 1:
            raise q.fail("weight_block_size", f"weight_block_size holds {item!r}, and whole numbers are wanted.")
        size *= item
    return 32.0 / size


def _grouped_bits(q: Config) -> float:
    bits = q.whole("bits" if q.get("bits") is not None else "w_bit", 4, least=1)
    group = q.get("group_size", q.get("q_group_size", 128))
    if isinstance(group, bool) or not isinstance(group, int):
        raise q.fail("group_size", f"group_size is {group!r}, and a whole number is wanted.")
    return bits + ((16 + bits) / group if group > 0 else 0.0)


def _bitsandbytes(q: Config) -> float:
    if not q.flag("load_in_4bit"):
        return 8.0
    return 4.0 + (8 / 64 + 32 / (64 * 256) if q.flag("bnb_4bit_use_double_quant") else 32 / 64)


def _compressed(q: Config) -> float | None:
    groups = q.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        return None
    weights = next((group.get("weights") for group in groups.values() if isinstance(group, dict)), None)
    if not isinstance(weights, dict):
        return None
    w = Config(weights, source=q.source, path=f"{q.path}weights.")
    bits = w.whole("num_bits", 8, least=1)
    group = w.get("group_size")
    if isinstance(group, int) and not isinstance(group, bool) and group > 0:
        scale = 8.0 if str(w.get("type", "int")) == "float" and bits == 4 else 16.0
        return bits + scale / group
    return float(bits)


def _worded(q: Config, method: str) -> float | None:
    if method == "bitnet":
        return 2.0
    if method in {"eetq", "w8a8_int8", "ascend"}:
        return 8.0
    words = " ".join(str(value).lower() for value in (q.get("weights"), q.get("quant_type"), q.get("weight_config")))
    nbits = re.search(r"nbits'?: (\d)", words)
    if nbits:
        return float(nbits[1]) + 16 / 64
    return next((bits for word, bits in _WORDS.items() if word in words), None)


def _kept_modules(q: Config) -> list[str]:
    names: list[Any] = []
    for key in ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules", "llm_int8_skip_modules"):
        names += q.listed(key) or []
    found: list[str] = []
    for name in names:
        text = str(name)
        if re.search(r"layers\.\d", text) or re.search(r"visual|vision|mtp|indexer|lm_head|router", text):
            continue
        for pattern, ours in _KEPT:
            if pattern.search(text) and ours not in found:
                found.append(ours)
                break
    return found


def _expert_bits(c: Config, q: Config) -> float | None:
    kind = str(q.get("expert_dtype") or c.get("expert_dtype") or "").lower()
    return 4.25 if kind in {"fp4", "mxfp4", "float4_e2m1fn_x2"} else None
