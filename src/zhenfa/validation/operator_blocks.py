"""Attention blocks of named models: what one row asks in projections, pairs, index and cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa.validation.operator_work import DTYPES, Columns, NotDescribedError, Work


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model's attention; ``kind`` latent, compressed or grouped. ``top`` positions are attended to."""

    kind: str
    features: float
    heads: float
    query_rank: float = 0.0
    latent: float = 512.0
    key: float = 128.0
    rotary: float = 64.0
    value: float = 128.0
    index_heads: float = 0.0
    index_dim: float = 128.0
    top: float = np.inf
    key_heads: float = 1.0
    output_rank: float = 0.0
    output_groups: float = 0.0


MODELS: Final[dict[str, Dimensions]] = {
    "GLM-5": Dimensions("latent", 6144, 64, 2048, key=192, value=256, index_heads=32, top=2048),
    "DeepSeek-V4-Pro": Dimensions(
        "compressed", 7168, 128, 1536, key=512, index_heads=64, top=1024, output_rank=1024, output_groups=16
    ),
    "DeepSeek-V4-Flash": Dimensions(
        "compressed", 4096, 64, 1024, key=512, index_heads=64, top=512, output_rank=1024, output_groups=8
    ),
    "MiniMax-M3": Dimensions("grouped", 6144, 64, index_heads=4, top=2048, key_heads=4),
    "DeepSeek-V3": Dimensions("latent", 7168, 128, 1536, index_heads=64, top=2048),
    "DeepSeek-R1": Dimensions("latent", 7168, 128, 1536),
    "Kimi-K3": Dimensions("latent", 7168, 96, 1536),
}
"""By the part of the model's name that tells it apart. Source: the published configurations."""

WINDOW: Final = 128.0
"""Positions that compressed attention sees in full."""


def dimensions(model: str) -> Dimensions:
    """Return the sizes of a model's attention. Raises :class:`NotDescribedError`."""
    for name, sizes in MODELS.items():
        if name.lower() in model.lower():
            return sizes
    raise NotDescribedError(f"no attention sizes known for model {model!r}")


def _seen(length: Any, limit: Any) -> Any:
    """Return the sum over positions up to ``length`` of the earlier positions seen, ``limit`` at most."""
    short = np.minimum(length, limit)
    return short * (short + 1) / 2 + (length - short) * short


def block(columns: Columns) -> Work:
    """Return the work of attention blocks, one per row."""
    batch = np.asarray(columns["batch_size"], float)
    op = str(np.asarray(columns["op"]).flat[0]) if "op" in columns else ""
    gemm = np.asarray(columns["mla_dtype"]).astype(str)
    if "gemm_type" in columns:
        given = np.asarray(columns["gemm_type"]).astype(str)
        gemm = np.where(given == "", gemm, given)
    cache = np.asarray(columns["kv_cache_dtype"]).astype(str)
    cached = np.where(np.char.startswith(cache, "fp8"), 1.0, 2.0)
    new = np.asarray(columns["isl"], float)
    before = np.asarray(columns["step"], float)
    if "generation" in op:
        before = before if op != "wideep_generation_mla" else new - 1.0
        new = np.ones_like(new)
    models = np.asarray(columns["model"]).astype(str) if "model" in columns else np.full(len(batch), "")
    if op.startswith("wideep"):  # older tables do not say which: there was only one
        models = np.where(models == "", "DeepSeek-V3", models)
    names, place = np.unique(models, return_inverse=True)
    sizes = [dimensions(str(name)) for name in names]
    fields = {
        name: np.array([getattr(size, name) for size in sizes])[place]
        for name in Dimensions.__dataclass_fields__
        if name != "kind"
    }
    kinds = {size.kind for size in sizes}
    if len(kinds) > 1:
        raise NotDescribedError("one table holds blocks of one kind")
    heads = np.asarray(columns["num_heads"], float)
    part = {"latent": _latent, "compressed": _compressed, "grouped": _grouped}[kinds.pop()]
    arguments = part(columns, op, fields, heads, batch, new, before, cached)
    arguments["moved"] = arguments["moved"] + 2.0 * batch * new * (2.0 * fields["features"] + 600.0 * heads)
    unknown = sorted(set(gemm.tolist()) - set(DTYPES))
    if unknown:
        raise NotDescribedError(f"data type {unknown[0]!r} is not one of {', '.join(DTYPES)}")
    arguments |= {
        "tokens": batch * new,
        "sequences": batch,
        "weight_bytes": np.array([DTYPES[name][1] for name in gemm.tolist()]),
    }
    narrow = np.where(cached == 1.0, "fp8", "bfloat16")
    dtype = np.char.add(np.char.add(gemm, "/"), narrow)
    return Work("block", dtype, np.array([DTYPES[name][0] for name in gemm.tolist()]), arguments)


def _latent(
    columns: Columns, op: str, size: dict[str, Any], heads: Any, batch: Any, new: Any, before: Any, cached: Any
) -> dict[str, Any]:
    full = batch * (_seen(before + new, np.inf) - _seen(before, np.inf))
    width = size["key"] + size["rotary"] + size["value"]
    stored = size["latent"] + size["rotary"]
    weights = (
        size["features"] * (size["query_rank"] + stored)
        + size["query_rank"] * heads * (size["key"] + size["rotary"])
        + size["latent"] * heads * (size["key"] + size["value"])
        + heads * size["value"] * size["features"]
    )
    expanded, absorbed = 2.0 * heads * width, 2.0 * heads * (size["latent"] + stored)
    nothing = np.zeros_like(batch)
    length = before + new
    if not op.startswith("dsa"):
        if "generation" in op:
            return _part(weights, full * absorbed, nothing, nothing, batch * length * stored * cached)
        return _part(weights, full * expanded, nothing, nothing, 2.0 * batch * new * heads * width)
    dense = np.char.find(np.asarray(columns["kernel_source"]).astype(str), "dense") >= 0
    skipped = np.char.find(np.asarray(columns["op_name"]).astype(str), "skip") >= 0
    scored = ~dense & ~skipped
    weights = weights + np.where(
        skipped, 0.0, (size["query_rank"] * size["index_heads"] + size["features"]) * size["index_dim"]
    )
    top = batch * (_seen(length, size["top"]) - _seen(before, size["top"]))
    index = np.where(scored, 2.0 * full * size["index_heads"] * size["index_dim"], 0.0)
    sparse = batch * np.minimum(length, size["top"] * new) * stored * cached
    moved = np.where(dense, 2.0 * batch * length * heads * width, sparse)
    moved = moved + np.where(scored, batch * length * (size["index_dim"] + 4.0), 0.0)
    return _part(weights, np.where(dense, full * expanded, top * absorbed), index, np.where(scored, full, 0.0), moved)


def _compressed(
    columns: Columns, op: str, size: dict[str, Any], heads: Any, batch: Any, new: Any, before: Any, cached: Any
) -> dict[str, Any]:
    ratio = np.asarray(columns["compress_ratio"], float)
    length = before + new
    weights = (
        size["features"] * (size["query_rank"] + 2.0 * size["key"])
        + size["query_rank"] * heads * size["key"]
        + heads * size["key"] * size["output_rank"] / 8.0
        + size["output_rank"] * size["output_groups"] * size["features"] * heads / size["heads"]
    )
    pairs = batch * (_seen(length, np.inf) - _seen(before, np.inf)) / ratio
    near = batch * (_seen(length, WINDOW) - _seen(before, WINDOW))
    nothing = np.zeros_like(batch)
    if "csa" not in op:
        stored = batch * (length / ratio + WINDOW) * size["key"] * cached
        return _part(weights, (pairs + near) * heads * 4.0 * size["key"], nothing, nothing, stored)
    top = batch * ratio * (_seen(length / ratio, size["top"]) - _seen(before / ratio, size["top"]))
    weights = weights + (size["query_rank"] * size["index_heads"] + 2.0 * size["features"]) * size["index_dim"]
    moved = batch * (np.minimum(length / ratio, size["top"] * new) + WINDOW) * size["key"] * cached
    moved = moved + batch * length / ratio * (size["index_dim"] + 4.0)
    index = 2.0 * pairs * size["index_heads"] * size["index_dim"]
    return _part(weights, (top + near) * heads * 4.0 * size["key"], index, pairs, moved)


def _grouped(
    columns: Columns, op: str, size: dict[str, Any], heads: Any, batch: Any, new: Any, before: Any, cached: Any
) -> dict[str, Any]:
    part = heads / size["heads"]
    key_heads = np.maximum(size["key_heads"] * part, 1.0)
    length = before + new
    weights = size["features"] * 128.0 * (2.0 * heads + 2.0 * key_heads + size["index_heads"] + 1.0)
    full = batch * (_seen(length, np.inf) - _seen(before, np.inf))
    top = batch * (_seen(length, size["top"]) - _seen(before, size["top"]))
    index = 2.0 * full * size["index_dim"] * np.maximum(size["index_heads"] * part, 1.0)
    ranked = full * np.maximum(size["index_heads"] * part, 1.0)
    moved = batch * (
        np.minimum(length, size["top"] * new) * key_heads * 256.0 * cached + length * size["index_dim"] * 2.0
    )
    return _part(weights, top * heads * 4.0 * 128.0, index, ranked, moved)


def _part(weights: Any, pairs: Any, index: Any, ranked: Any, moved: Any) -> dict[str, Any]:
    return {"weights": weights, "pair_work": pairs, "index_work": index, "index_pairs": ranked, "moved": moved}
