"""The model of a published training row as a document: attention, experts, state spaces, windows, prediction heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from zhenfa import catalog
from zhenfa.errors import InputError
from zhenfa.spec.model import Model
from zhenfa.spec.model_blocks import Experts
from zhenfa.validation.train_words import number, part, text, truth, whole

HEAD_DIM: Final = 128
VOCABULARY: Final = 50304
"""Where a row gives neither: the usual width of a head, and GPT-2's vocabulary padded to a multiple of 128."""


def model_of(record: Mapping[str, Any], notes: list[str]) -> Model:
    """Return the model of a row; ``notes`` gains what was assumed of it.

    Raises :class:`InputError` where the row gives no sizes.
    """
    raw = part(record, "model")
    if whole(raw.get("layers")) is None and whole(raw.get("hidden")) is None:
        known = catalog.find_model(str(raw.get("name") or "")) if raw.get("name") else None
        if known is not None:
            notes.append(f"sizes of {known.name} as in the catalog")
            return known
    sizes = _sizes(raw, notes)
    layers = _layers(raw, sizes, notes)
    data: dict[str, Any] = {
        "schema": "zhenfa.model/1",
        "name": re.sub(r"[^A-Za-z0-9._-]", "-", str(raw.get("name") or "model")).strip("-._")[:60] or "model",
        "hidden_size": sizes["hidden"],
        "vocabulary_size": sizes["vocab"],
        "norm": "rms" if sizes["gated"] else "layer",
        "layers": layers,
        "head": {"tied": bool(truth(raw.get("tied")) or truth(raw.get("tie_embeddings")))},
    }
    modules = whole(raw.get("mtp_layers")) or whole(raw.get("mtp"))
    if modules and modules <= 16:
        data["mtp"] = {"modules": modules, "layer": {key: layers[-1][key] for key in layers[-1] if key != "repeat"}}
    if truth(raw.get("parallel_layers")):
        notes.append("attention and feed-forward in parallel: taken one after the other")
    return Model.from_data(data)


def _sizes(raw: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    hidden, layers = whole(raw.get("hidden"), most=10**6), whole(raw.get("layers"), most=10_000)
    if hidden is None or layers is None:
        raise InputError("the row does not give the model's layers and hidden size.")
    head_dim = whole(raw.get("head_dim"), most=4096)
    heads = whole(raw.get("heads"), most=10**5)
    if heads is None:
        heads = max(hidden // (head_dim or HEAD_DIM), 1)
        notes.append(f"{heads} heads assumed")
    head_dim = head_dim or max(hidden // heads, 1)
    kv_heads = whole(raw.get("kv_heads"), most=10**5) or heads
    if heads % kv_heads:
        notes.append(f"{kv_heads} key-value heads do not divide {heads}: taken as {heads}")
        kv_heads = heads
    gated = truth(raw.get("gated_mlp"))
    if gated is None:
        gated = "gelu" not in text(raw.get("activation")) and "relu" not in text(raw.get("activation"))
        notes.append(f"feed-forward taken as {'gated' if gated else 'not gated'}")
    ffn = whole(raw.get("ffn"), most=10**7)
    if ffn is None:
        ffn = hidden * 8 // 3 // 64 * 64 if gated else 4 * hidden
        notes.append(f"feed-forward of {ffn} assumed")
    vocabulary = whole(raw.get("vocab"), most=10**8)
    if vocabulary is None:
        vocabulary = VOCABULARY
        notes.append(f"vocabulary of {vocabulary} assumed")
    return {
        "hidden": hidden, "layers": layers, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "gated": gated, "ffn": max(ffn, 1), "vocab": vocabulary, "name": str(raw.get("name") or "")[:80],
    }  # fmt: skip


def _mixer(raw: Mapping[str, Any], sizes: dict[str, Any], window: int | None = None) -> dict[str, Any]:
    latent = part(raw, "mla")
    if latent:
        return {
            "kind": "latent-attention",
            "heads": sizes["heads"],
            "query_rank": whole(latent.get("q_lora")),
            "latent_rank": whole(latent.get("kv_lora")) or 512,
            "nope_dim": whole(latent.get("qk_nope")) or 128,
            "rope_dim": whole(latent.get("qk_rope")) or 64,
            "value_dim": whole(latent.get("v_dim")) or 128,
            "window": window,
        }
    return {
        "kind": "attention", "heads": sizes["heads"], "kv_heads": sizes["kv_heads"], "head_dim": sizes["head_dim"],
        "window": window,
    }  # fmt: skip


def _dense(sizes: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "dense", "size": sizes["ffn"], "gated": sizes["gated"]}


def _experts(moe: Mapping[str, Any], sizes: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    count = whole(moe.get("experts"), most=10**5)
    if count is None:
        raise InputError("the row's mixture of experts does not say how many experts there are.")
    active = min(whole(moe.get("topk"), most=10**4) or 2, count)
    size = whole(moe.get("expert_ffn"), most=10**7) or sizes["ffn"]
    block: dict[str, Any] = {
        "kind": "experts", "count": count, "active": active, "size": size, "gated": sizes["gated"],
    }  # fmt: skip
    if truth(moe.get("bias")) or _known_biases(sizes["name"]):
        block |= {"bias": True, "router_bias": True}
    shared = whole(moe.get("shared_experts"), most=1000)
    if shared:
        block["shared"] = {"size": shared * (whole(moe.get("shared_ffn"), most=10**7) or size), "gated": sizes["gated"]}
    if whole(moe.get("topk")) is None:
        notes.append("two active experts assumed")
    return block


def _known_biases(name: str) -> bool:
    """Return whether a model of that name in the catalog has biases on its experts."""
    known = catalog.find_model(name) if name else None
    blocks = (
        [block for run in known.layers for layer in (run, *run.each) for block in layer.feed_forward] if known else []
    )
    return any(isinstance(block, Experts) and block.bias for block in blocks)


def _layers(raw: Mapping[str, Any], sizes: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    hybrid = part(raw, "hybrid")
    if hybrid:
        return _hybrid(raw, hybrid, sizes, notes)
    moe = part(raw, "moe")
    count = sizes["layers"]
    windows = _windows(raw.get("sliding_window"), count, notes)
    routed = _routed(moe, count)
    feed = {False: _dense(sizes), True: _experts(moe, sizes, notes) if moe else None}
    whole_model = [
        {"mixer": _mixer(raw, sizes, window), "feed_forward": feed[bool(is_routed)]}
        for window, is_routed in zip(windows, routed, strict=True)
    ]
    return _runs(whole_model)


def _runs(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put layers alike that follow each other into one run."""
    runs: list[dict[str, Any]] = []
    for layer in layers:
        if runs and {key: runs[-1][key] for key in runs[-1] if key != "repeat"} == layer:
            runs[-1]["repeat"] += 1
        else:
            runs.append({"repeat": 1, **layer})
    return runs


def _routed(moe: Mapping[str, Any], count: int) -> list[bool]:
    """Return which layers have experts: all but the first ``dense_layers``, or every so many."""
    if not moe:
        return [False] * count
    dense = whole(moe.get("dense_layers"), least=0, most=count) or 0
    every = next(
        (step for key in ("every", "layer_freq", "moe_layer_freq", "interleave") if (step := whole(moe.get(key)))), 1
    )
    return [index >= dense and (index - dense) % every == every - 1 for index in range(count)]


def _windows(raw: Any, count: int, notes: list[str]) -> list[int | None]:
    """Return the window of each layer. A share of the layers ("18 of 36", "alternate") is spread evenly."""
    window = whole(raw.get("window") if isinstance(raw, Mapping) else raw, most=10**8)
    if window is None:
        return [None] * count
    words = text(raw.get("layers")) if isinstance(raw, Mapping) else ""
    found = re.search(r"(\d+) of (\d+)", words)
    held = whole(raw.get("layers"), most=count) if isinstance(raw, Mapping) and not words else None
    if found and 0 < int(found[1]) <= int(found[2]):
        share = int(found[1]) / int(found[2])
    elif held:
        share = held / count
    elif "alternat" in words or "every other" in words:
        share = 0.5
    else:
        share = 1.0
        if words and "all" not in words:
            notes.append("sliding window taken for all layers")
    return [window if int((index + 1) * share + 1e-9) > int(index * share + 1e-9) else None for index in range(count)]


def _hybrid(
    raw: Mapping[str, Any], hybrid: Mapping[str, Any], sizes: dict[str, Any], notes: list[str]
) -> list[dict[str, Any]]:
    moe = part(raw, "moe")
    scan = {"norms": 1, "mixer": _mamba(hybrid, sizes, notes)}
    mix = {"norms": 1, "mixer": _mixer(raw, sizes)}
    dense = {"norms": 1, "feed_forward": _dense(sizes)}
    experts = {"norms": 1, "feed_forward": _experts(moe, sizes, notes)} if moe else dense
    blocks = {"M": scan, "*": mix, "A": mix, "E": experts, "-": dense, "F": dense}
    pattern = [blocks[mark] for mark in str(hybrid.get("pattern") or "").upper() if mark in blocks]
    if not pattern:
        pattern = _spread(
            hybrid, {"mamba_layers": scan, "mlp_layers": dense if not moe else experts, "attn_layers": mix}
        )
    if not pattern:
        raise InputError("the row's hybrid model gives neither a pattern nor the number of layers of each kind.")
    if len(pattern) != sizes["layers"]:
        notes.append(f"{sizes['layers']} layers stated, {len(pattern)} in the hybrid pattern: the pattern is taken")
    return _runs(pattern)


def _spread(hybrid: Mapping[str, Any], blocks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return layers of each kind in the numbers given, each kind spread evenly over the depth."""
    places = []
    for order, (key, block) in enumerate(blocks.items()):
        count = whole(hybrid.get(key), least=0, most=10_000) or 0
        places += [((index + 0.5) / count, order, block) for index in range(count)]
    return [block for _, _, block in sorted(places, key=lambda place: place[:2])]


def _mamba(hybrid: Mapping[str, Any], sizes: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return a Mamba-2 mixer (arXiv:2405.21060, section 6): one projection to gate, values, keys, queries, steps."""
    width = whole(hybrid.get("mamba_head_dim"), most=4096) or 64
    heads = whole(hybrid.get("mamba_heads"), most=10**5) or max(2 * int(sizes["hidden"]) // width, 1)
    state = whole(hybrid.get("mamba_state"), most=4096) or 128
    groups = whole(hybrid.get("groups"), most=heads) or whole(hybrid.get("mamba_groups"), most=heads)
    if groups is None:
        groups = min(8, heads)
        notes.append(f"{groups} groups of the state space assumed")
    inner, shared = heads * width, groups * state
    return {
        "kind": "recurrent",
        "family": "mamba2",
        "projections": [
            {"name": "input", "outputs": 2 * inner + 2 * shared + heads},
            {"name": "output", "inputs": inner, "shard": "row"},
        ],
        "convolution": {"channels": inner + 2 * shared, "width": whole(hybrid.get("conv")) or 4, "bias": True},
        "heads": heads, "groups": groups, "key_dim": state, "value_dim": width, "parameters": 3 * heads,
        "norm": inner,
    }  # fmt: skip


def sequence_of(record: Mapping[str, Any]) -> int | None:
    """Return the tokens of a training sequence; of ``4096 (C500: 2048)`` the first; ``8K`` are 8192."""
    raw = part(record, "model")
    for value in (raw.get("seq"), part(record, "parallel").get("seq")):
        seq = number(value)
        if seq and re.match(r"\s*[\d.,]+\s*k\b", str(value), re.IGNORECASE):
            seq *= 1024
        if seq:
            return int(seq) if 1 <= seq <= 10**8 else None
    return None
