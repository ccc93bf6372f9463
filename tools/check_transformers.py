"""Check the Hugging Face importer against every causal language model that transformers ships.

For each architecture of ``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`` the default configuration is built on torch's meta device
(no memory, no download) and its parameters are counted, tied ones once. The same configuration, as the JSON that a
checkpoint would carry, goes through :func:`zhenfa.spec.huggingface.from_huggingface`, and the two counts are compared;
so is the count of the configuration with everything left out that is a default::

    python tools/check_transformers.py                  # all, about a minute and a half
    python tools/check_transformers.py --only qwen3     # one
    python tools/check_transformers.py --vary           # also change each key of each configuration, ten minutes
    python tools/check_transformers.py --markdown docs/models.md

Exit 1 when fewer than 95 % of the architectures that can be built are within 0.5 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")

TOLERANCE = 0.005
TARGET = 0.95

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_QSA = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 2048,
    "indexer_compress_ratio": 4,
}  # fmt: skip

ADJUSTED: dict[str, tuple[dict[str, Any], str]] = {
    "cohere_compass_text": (
        {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
        "the default has no rotary settings per layer type",
    ),
    "dbrx": ({"attn_config": {"kv_n_heads": 8, "rope_theta": 10000.0}}, "the default attention has no rope_theta"),
    "deepseek_v2": ({"num_experts_per_tok": 6}, "the default leaves num_experts_per_tok empty"),
    "dots1": (
        {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
        "the default leaves the experts empty",
    ),
    "gemma4_unified_assistant": (
        {"text_config": {"model_type": "gemma4_unified_text", "num_kv_shared_layers": 24}},
        "the default shares the cache of layers that are not there",
    ),
    "hunyuan_v1_dense": ({"head_dim": 128}, "the default leaves head_dim empty"),
    "hunyuan_v1_moe": (
        {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
        "the default leaves head_dim empty and has one expert",
    ),
    "lfm2_moe": (
        {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
        "the default leaves layer_types empty",
    ),
    "ministral": ({"head_dim": 128}, "the default leaves head_dim empty"),
    "nemotron": ({"num_key_value_heads": 8}, "the default leaves num_key_value_heads empty"),
    "qwen4_exp": ({"text_config": _QSA}, "the default leaves the sizes of the indexer empty"),
    "qwen4_exp_text": (_QSA, "the default leaves the sizes of the indexer empty"),
    "reformer": ({"is_decoder": True}, "the default is an encoder"),
}
"""Architectures whose default configuration does not build, with the least change that does, and why."""

DECODER_CLASS: dict[str, tuple[str, str]] = {
    "musicgen": ("MusicgenDecoderConfig", "MusicgenForCausalLM"),
    "musicgen_melody": ("MusicgenMelodyDecoderConfig", "MusicgenMelodyForCausalLM"),
}
"""Wrappers that the automatic class hands a configuration which its model cannot read: built from the decoder's."""

REASONS: dict[str, str] = {
    "longcat_flash": (
        "transformers also allocates the up projections of the 256 zero experts, which hold no weights in the "
        "published checkpoint; the import counts what the checkpoint holds (560 B published)"
    ),
}
"""Known differences, and why they stay."""

NOT_BUILT: dict[str, str] = {
    "gemma3n": "its image encoder needs the package timm; its language model is checked as gemma3n_text",
    "gemma4_assistant": (
        "no configuration passes its own checks: all layers must reuse a cache, and then none is left to keep one"
    ),
}
"""Architectures known not to build, in words of our own."""

WHY: dict[str, str] = {
    "helium": "Such a model is built but cannot run: its output projection does not fit its heads.",
    "zamba": "Untied ends untie the shared blocks too in transformers; the published models tie both.",
    "zamba2": "Untied ends untie the shared blocks too in transformers; the published models tie both.",
}
"""Why a changed configuration differs."""

SKIPPED_KEYS = (
    "token", "dropout", "_act", "initializer", "eps", "rope", "summary", "id2label", "label", "cache", "return",
    "output_", "theta", "torch", "dtype", "chunk_size", "use_bfloat", "coef", "scal", "jitter", "pdrop", "std",
    "softcap", "version", "architectures", "_name", "loss", "mask_", "begin_", "suppress", "time_step_", "end_n_top",
    "start_n_top", "multiplier", "hash", "lsh", "local_attn",
)  # fmt: skip
"""Parts of the names of keys that change no parameter."""

EMPTY_KEYS: dict[str, int] = {
    "head_dim": 64, "sliding_window": 256, "n_inner": 1000, "d_head": 32, "intermediate_size": 1000,
    "q_lora_rank": 384, "ffn_hidden_size": 1000, "mamba_d_ssm": 512, "embedding_size": 96, "n_shared_experts": 1,
    "lru_width": 512, "attention_hidden_size": 2048, "word_embed_proj_dim": 512, "moe_latent_size": 512,
    "decoder_vocab_size": 5000, "shared_experts_intermediate_size": 777, "num_kv_shared_layers": 8,
}  # fmt: skip
"""What to try where a default is empty."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The result for one architecture. ``short`` is our count from the model type alone, defaults left out."""

    name: str
    cls: str
    true: int | None = None
    ours: int | None = None
    short: int | None = None
    reason: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Return ours over true."""
        return None if self.true is None or self.ours is None else self.ours / self.true

    @property
    def verdict(self) -> str:
        """Return "exact", "close" (within 0.5 %), "off", "unsupported" or "not built"."""
        if self.true is None:
            return "not built"
        if self.ratio is None:
            return "unsupported"
        if self.ours == self.true and self.short == self.true:
            return "exact"
        return "close" if abs(self.ratio - 1) <= TOLERANCE and self.short == self.ours else "off"


def names() -> dict[str, str]:
    """Return the class of every causal architecture by model type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    logging.disable(logging.CRITICAL)
    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def build(name: str, changes: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Build an architecture on the meta device.

    Returns its parameters, its whole configuration as JSON data, and the least configuration that says the same.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if name in DECODER_CLASS:
        config_name, model_name = DECODER_CLASS[name]
        config = getattr(importlib.import_module(f"transformers.models.{name}.configuration_{name}"), config_name)(
            **changes
        )
        model_class = getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), model_name)
        short = {"model_type": name, "decoder": changes}
        make = model_class
    else:
        config = CONFIG_MAPPING[name](**changes)
        short = {"model_type": name, **changes}
        make = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = make(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    del model
    return count, json.loads(config.to_json_string(use_diff=False)), short


def imported(config: dict[str, Any]) -> int | str:
    """Return the parameters of our import of a configuration, or why there is none."""
    from zhenfa.errors import ZhenfaError
    from zhenfa.spec.huggingface import from_huggingface

    try:
        return from_huggingface(config).graph().parameters
    except ZhenfaError as problem:
        return problem.message


def check(name: str, cls: str) -> Row:
    """Compare one architecture in its default configuration, or in the least change of it that builds."""
    changes, note = ADJUSTED.get(name, ({}, ""))
    if name in DECODER_CLASS:
        note = "built from the configuration of its decoder"
    try:
        true, config, short = build(name, changes)
    except Exception as problem:  # any constructor may fail in its own way; the row says how
        first = " ".join(str(problem).split()).split(". ")[0] or type(problem).__name__
        return Row(name, cls, reason=NOT_BUILT.get(name) or f"transformers cannot build it: {first[:160]}")
    ours, brief = imported(config), imported(short)
    gc.collect()
    if isinstance(ours, str):
        return Row(name, cls, true=true, reason=ours, note=note)
    if isinstance(brief, str):
        return Row(name, cls, true=true, ours=ours, reason=f"from the defaults alone: {brief}", note=note)
    return Row(name, cls, true=true, ours=ours, short=brief, reason=REASONS.get(name, ""), note=note)


def variants(name: str, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield changes of one key each: flags flipped, counts doubled and halved, empty values filled."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for item in dataclasses.fields(CONFIG_MAPPING[name]):
        key = item.name
        skip = any(part in key for part in SKIPPED_KEYS) or key.startswith("_")
        if skip or key in {"is_encoder_decoder", "is_decoder", "problem_type", "pretraining_tp"}:
            continue
        value = config.get(key)
        if isinstance(value, bool):
            yield {key: not value}
        elif isinstance(value, int):
            if "layers" in key or key in {"n_layer", "num_blocks"}:
                yield {key: 7}
                continue
            yield {key: 2 * value or 1}
            if value >= 4 and value % 2 == 0:
                yield {key: value // 2}
        elif value is None and key in EMPTY_KEYS:
            yield {key: EMPTY_KEYS[key]}


def vary(name: str) -> tuple[int, int, list[str]]:
    """Return how many changed configurations were compared, how many were equal, and the others in words.

    Changes that transformers refuses are left out, and so are those that only the import refuses because heads do not
    divide, which no model can run with.
    """
    changes, _ = ADJUSTED.get(name, ({}, ""))
    if name in DECODER_CLASS or name in REASONS:
        return 0, 0, []
    tried = equal = 0
    wrong = []
    _, config, _ = build(name, changes)
    for change in variants(name, config):
        try:
            true, whole, _ = build(name, changes | change)
        except Exception:  # noqa: S112 - transformers refuses many combinations
            continue
        ours = imported(whole)
        if isinstance(ours, str) and ("divide" in ours or "evenly" in ours or "there are" in ours):
            continue
        tried += 1
        equal += ours == true
        if ours != true:
            shown = f"{ours:,}" if isinstance(ours, int) else ours
            wrong.append(f"{name} with {change}: true {true:,}, ours {shown}. {WHY.get(name, '')}".strip())
    gc.collect()
    return tried, equal, wrong


def share(rows: list[Row]) -> tuple[int, int]:
    """Return how many architectures are within tolerance, and how many could be built."""
    built = [row for row in rows if row.true is not None]
    return sum(row.verdict in {"exact", "close"} for row in built), len(built)


INTRODUCTION = """\
# Models

A job names a model of the catalog, a model document, or a Hugging Face `config.json` (or the folder that holds it). All
three become the same: blocks that people can read, and from them the operators that the estimate works on.

A model document says what is not plain:

```yaml
schema: zhenfa.model/1
name: my-model
hidden_size: 4096
vocabulary_size: 128256
layers:
  - repeat: 2
    mixer: {kind: attention, heads: 32, kv_heads: 8, head_dim: 128}
    feed_forward: {kind: dense, size: 14336}
  - repeat: 15
    each:
      - mixer: {kind: attention, heads: 32, kv_heads: 8, head_dim: 128, window: 1024}
        feed_forward: {kind: experts, count: 64, active: 8, size: 1024, shared: {size: 1024}}
      - mixer: {kind: latent-attention, heads: 32, query_rank: 1536, latent_rank: 512, nope_dim: 128, rope_dim: 64,
                value_dim: 128}
        feed_forward: {kind: experts, count: 64, active: 8, size: 1024, shared: {size: 1024}}
head: {tied: true}
```

Mixers are `attention`, `latent-attention`, `recurrent` (linear attention, state space, recurrence, short convolution)
and `pieces`, operator by operator; feed-forwards are `dense`, `experts` and `pieces`.

The rest of this page is written by `tools/check_transformers.py`, which checks the import.
"""


def line(row: Row) -> str:
    """Return one row for people."""
    true = "-" if row.true is None else f"{row.true:,}"
    ours = "-" if row.ours is None else f"{row.ours:,}"
    ratio = "-" if row.ratio is None else f"{row.ratio:.5f}"
    return f"{row.name:28s} {true:>20s} {ours:>20s} {ratio:>9s}  {row.verdict}"


def markdown(rows: list[Row], version: str, varied: tuple[int, int] | None, wrong: list[str]) -> str:
    """Return the page of results."""
    from zhenfa.spec.huggingface import known_types

    good, built = share(rows)
    exact = sum(row.verdict == "exact" for row in rows)
    text = [
        INTRODUCTION,
        f"Checked against transformers {version}: every architecture of its causal language model mapping "
        f"({len(rows)} of them), built on torch's meta device from its default configuration, true parameters against "
        "ours, tied ones counted once.",
        "",
        f"- **{good} of {built}** architectures that can be built are within 0.5 % ({100 * good / built:.1f} %), "
        f"{exact} of them to the parameter, from the whole configuration and from the model type alone.",
        f"- {len(rows) - built} cannot be built by transformers here, and are not counted.",
    ]
    if varied:
        text.append(
            "- With one key changed at a time (flags flipped, sizes doubled and halved, empty ones filled), "
            f"{varied[1]:,} of {varied[0]:,} configurations are equal to the parameter. Left out: what transformers "
            "does not build, and what the import refuses because heads do not divide or more experts are active than "
            "there are."
        )
    text += [
        f"- {len(known_types())} model types are known by name. Others are read by the common rules of decoders, and "
        "the import says so; a type with layers that those rules do not cover is refused.",
        "",
        "## Not within 0.5 %, or not built",
        "",
        "| model type | verdict | why |",
        "|---|---|---|",
        *(f"| {row.name} | {row.verdict} | {row.reason} |" for row in rows if row.verdict not in {"exact", "close"}),
        "",
        *(["## Changed by one key, and not equal", "", *(f"- {item}" for item in wrong), ""] if wrong else []),
        "## Built from another configuration than the default",
        "",
        "| model type | why |",
        "|---|---|",
        *(f"| {row.name} | {row.note} |" for row in rows if row.note),
        "",
        "## What is counted how",
        "",
        "- A multimodal wrapper stands for its language model. Encoders of images and sound are counted where the "
        "causal language model of transformers holds them (fuyu, gemma3, git, got_ocr2, moss_transcribe_diarize, "
        "phi4_multimodal); elsewhere the import notes that they are left out.",
        "- Decoders of encoder-decoder models hold their cross-attention; its work is counted as if the encoder were "
        "as long as the context.",
        "- Layers that use the weights of others (Zamba, hierarchical reasoning) hold none of their own.",
        "- Multi-token prediction modules are counted apart.",
        "",
        "## All",
        "",
        "| model type | class | true | ours | ratio | verdict |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = line(row).split()
        text.append(f"| {row.name} | {row.cls} | {cells[1]} | {cells[2]} | {cells[3]} | {row.verdict} |")
    return "\n".join(text) + "\n"


def main() -> int:
    """Run the check. Returns the exit code."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", help="one model type")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--vary", action="store_true", help="also change each key of each configuration")
    parser.add_argument("--markdown", metavar="PATH", type=Path, help="write the page of results")
    arguments = parser.parse_args()
    known = names()
    chosen = {arguments.only: known.get(arguments.only, "")} if arguments.only else known
    if arguments.only and arguments.only not in known:
        sys.stderr.write(f"error: transformers has no causal language model {arguments.only!r}\n")
        return 2
    start, rows = time.monotonic(), []
    tried = equal = 0
    wrong: list[str] = []
    for index, (name, cls) in enumerate(chosen.items(), 1):
        row = check(name, cls)
        rows.append(row)
        if not arguments.json:
            sys.stdout.write(line(row) + "\n")
        if arguments.vary and row.true is not None:
            more, same, others = vary(name)
            tried, equal, wrong = tried + more, equal + same, wrong + others
        sys.stderr.write(f"\r{index}/{len(chosen)} {time.monotonic() - start:.0f} s ")
    sys.stderr.write("\n")
    report(rows, arguments, (tried, equal) if arguments.vary else None, wrong, transformers.__version__)
    good, built = share(rows)
    return 0 if built and good >= TARGET * built else 1


def report(
    rows: list[Row], arguments: argparse.Namespace, varied: tuple[int, int] | None, wrong: list[str], version: str
) -> None:
    """Print the summary, and write the page if it was asked for."""
    good, built = share(rows)
    if arguments.json:
        data = [dataclasses.asdict(row) | {"ratio": row.ratio, "verdict": row.verdict} for row in rows]
        summary = {"within": good, "built": built, "varied": varied, "transformers": version}
        sys.stdout.write(json.dumps({"rows": data, "summary": summary, "wrong": wrong}, indent=1) + "\n")
    else:
        for row in rows:
            if row.verdict not in {"exact", "close"}:
                sys.stdout.write(f"{row.verdict}: {row.name}: {row.reason}\n")
        for item in wrong:
            sys.stdout.write(f"varied: {item}\n")
        if varied:
            sys.stdout.write(f"varied configurations equal: {varied[1]:,} of {varied[0]:,}\n")
        percent = 100 * good / built if built else 0.0
        sys.stdout.write(f"within 0.5 %: {good} of {built} ({percent:.1f} %)\n")
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(markdown(rows, version, varied, wrong), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
