"""A checkpoint as a Hugging Face directory: ``config.json`` and safetensors that transformers and its heirs read.

The runtime's decoder computes what a Llama, a Mixtral or a Qwen2-MoE does (:mod:`zhenfa.live.weights`, the way back);
what is none of them is refused. A model that transformers built keeps its own ``config.json`` and names; of a module of
a Python file there are the weights under its own names, and no ``config.json``. The tensors of one file at a time are
in memory. The directory is written whole or not at all. A tokenizer is not part of a checkpoint, and none is written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live import checkpoint
from zhenfa.live.sizes import Mixture, Sizes
from zhenfa.live.weights import INDEX, WHOLE, theirs

Kind = Literal["llama", "mixtral", "qwen2_moe"]
Name = Callable[[str], str]
Width = Literal["fp32", "bf16"]
CLASSES: Final[dict[Kind, str]] = {
    "llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM",
}  # fmt: skip
WIDTHS: Final[dict[Width, tuple[str, int]]] = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2)}
SOURCE: Final = "transformers 5, the modeling and configuration files of models/llama, mixtral and qwen2_moe"
FILE_BYTES: Final = 4 * 10**9
"""Bytes of tensors in a file at most, unless one tensor alone is larger."""


@dataclass(frozen=True)
class Exported:
    """What was written: from which checkpoint after which step, as which model type and architecture, how much of it,
    and the files. A module of a Python file has no model type."""

    checkpoint: Path
    step: int
    model_type: str | None
    architecture: str
    parameters: int
    precision: Width
    folder: Path
    files: tuple[str, ...]


def export(source: Path, folder: Path, *, precision: Width = "fp32", file_bytes: int = FILE_BYTES) -> Exported:
    """Write the newest whole checkpoint of a run's folder, or the checkpoint that ``source`` is, as a directory.

    Raises :class:`InputError` where there is no whole checkpoint, or ``folder`` is there already;
    :class:`CapabilityError` for a model that no architecture of transformers known here computes.
    """
    path = _checkpoint(source)
    manifest = checkpoint.verify(path)
    sizes = Sizes(**manifest["sizes"])
    config, architecture, named = _target(sizes, precision)
    if folder.exists():
        raise InputError(f"{str(folder)!r} is there already.", hint="name another folder with --to.")
    names = checkpoint.shapes(path, "model")
    files = _files(names, WIDTHS[precision][1], file_bytes)
    partial = folder.with_name(f"{folder.name}{checkpoint.PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(0o750, parents=True)
        if config is not None:
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, row in files.items():
            _write(path, {one: names[one] for one in row}, named, precision, partial / name)
        _write_index(partial, files, names, named, WIDTHS[precision][1])
        partial.rename(folder)
    except OSError as problem:
        words = os.strerror(problem.errno or 0)
        raise InputError(
            f"{str(folder)!r} cannot be written: {words}.", hint="name another folder with --to."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    count = sum(math.prod(shape) for shape in names.values())
    there = tuple(sorted(one.name for one in folder.iterdir()))
    model_type = None if config is None else str(config["model_type"])
    return Exported(path, int(manifest["step"]), model_type, architecture, count, precision, folder, there)


def _target(sizes: Sizes, precision: Width) -> tuple[dict[str, Any] | None, str, Name]:
    """Return the ``config.json`` of a model, its architecture, and what its weights are called there."""
    if sizes.source is None:
        kind = kind_of(sizes)
        return config_of(sizes, kind, precision), CLASSES[kind], lambda name: theirs(name, kind)
    source = sizes.source
    if source.kind == "python":
        return None, Path(source.label).name, str
    path = Path(source.path)
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise InputError(
            f"{source.path!r}, from which the model was built, cannot be read: {os.strerror(problem.errno or 0)}.",
            hint="put it back: it says what the weights are of.",
        ) from None
    if hashlib.sha256(content).hexdigest() != source.digest:
        raise InputError(
            f"{source.path!r} has changed since the run: the weights may be of another model.", hint="put it back."
        )
    config = json.loads(content) | dict.fromkeys(("dtype", "torch_dtype"), WIDTHS[precision][0])
    return config, next(iter(config.get("architectures") or [config["model_type"]])), str


def kind_of(sizes: Sizes) -> Kind:
    """Return the model type that computes what the decoder does. Raises :class:`CapabilityError` if there is none."""
    mixture = sizes.mixture
    if mixture is None:
        if not sizes.gated:
            raise _refusal("MLPs of two matrices without biases")
        return "llama"
    if not (mixture.gated and sizes.gated and mixture.shared_gated):
        raise _refusal("experts or MLPs of two matrices without biases")
    if mixture.shared:
        if not mixture.shared_gate:
            raise _refusal("a shared expert that no learnt number scales")
        return "qwen2_moe"
    if not mixture.normalized or len(mixture.layers) < sizes.layers:
        what = "dense layers among them" if mixture.normalized else "weights that are not normalized"
        raise _refusal(f"experts without a shared one, {what}")
    return "mixtral"


def config_of(sizes: Sizes, kind: Kind, precision: Width) -> dict[str, Any]:
    """Return the ``config.json`` of a model."""
    config = {
        "architectures": [CLASSES[kind]], "model_type": kind, "hidden_act": "silu", "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim, "intermediate_size": sizes.intermediate, "vocab_size": sizes.vocabulary,
        "rms_norm_eps": sizes.eps, "rope_theta": sizes.rope_theta, "tie_word_embeddings": sizes.tied,
        "attention_bias": False, "dtype": WIDTHS[precision][0], "torch_dtype": WIDTHS[precision][0], "use_cache": True,
    }  # fmt: skip
    return config if sizes.mixture is None else config | _of_experts(sizes, sizes.mixture, kind)


def _of_experts(sizes: Sizes, mixture: Mixture, kind: Kind) -> dict[str, Any]:
    if kind == "mixtral":
        return {
            "num_local_experts": mixture.experts, "num_experts_per_tok": mixture.active,
            "intermediate_size": mixture.size, "sliding_window": None,
        }  # fmt: skip
    return {
        "num_experts": mixture.experts, "num_experts_per_tok": mixture.active, "moe_intermediate_size": mixture.size,
        "norm_topk_prob": mixture.normalized, "shared_expert_intermediate_size": mixture.shared,
        "mlp_only_layers": [index for index in range(sizes.layers) if index not in mixture.layers],
        "decoder_sparse_step": 1, "qkv_bias": False, "use_sliding_window": False,
    }  # fmt: skip


def _checkpoint(source: Path) -> Path:
    """Return the checkpoint that a path is, or the newest whole one in it."""
    if (source / checkpoint.MANIFEST).is_file():
        return source
    if not source.is_dir():
        raise InputError(f"there is no folder {str(source)!r}.", hint="name the folder of a run, such as runs/NAME-1.")
    found, refused = checkpoint.newest(source)
    if found is None:
        why = f": {refused[0]}" if refused else ""
        raise InputError(
            f"there is no whole checkpoint in {str(source)!r}{why}.".replace("..", "."),
            hint="`zhenfa run JOB` writes one at the end; execution.checkpoint_every writes some on the way.",
        )
    return found


def _files(names: Mapping[str, tuple[int, ...]], width: int, most: int) -> dict[str, list[str]]:
    """Return which weights go into which file."""
    rows: list[list[str]] = [[]]
    filled = 0
    for name in sorted(names, key=_order):
        size = math.prod(names[name]) * width
        if rows[-1] and filled + size > most:
            rows.append([])
            filled = 0
        rows[-1].append(name)
        filled += size
    if len(rows) == 1:
        return {WHOLE: rows[0]}
    return {f"model-{number:05d}-of-{len(rows):05d}.safetensors": row for number, row in enumerate(rows, start=1)}


def _order(name: str) -> tuple[int, int, str]:
    """Return what puts the embedding first, then the layers by number, then the head; other models' weights by the
    first number in their names."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return (0 if name.startswith("embedding") else 1 if numbers else 2, next(iter(numbers), 0), name)


def _write(path: Path, names: Mapping[str, tuple[int, ...]], named: Name, precision: Width, file: Path) -> None:
    import torch

    try:
        from safetensors.torch import save_file
    except ImportError:
        raise CapabilityError("safetensors is not installed.", hint="pip install 'zhenfa[huggingface]'.") from None

    found = checkpoint.load_tensors(path, "model", {name: torch.empty(shape) for name, shape in names.items()})
    kept = getattr(torch, WIDTHS[precision][0])
    save_file({named(name): one.to(kept) for name, one in found.items()}, file, metadata={"format": "pt"})


def _write_index(
    partial: Path, files: Mapping[str, list[str]], names: Mapping[str, tuple[int, ...]], named: Name, width: int
) -> None:
    """Write which file holds which tensor, where there are several."""
    if len(files) == 1:
        return
    total = sum(math.prod(shape) for shape in names.values()) * width
    where = {named(name): file for file, row in files.items() for name in row}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2)
    (partial / INDEX).write_text(text + "\n", encoding="utf-8")


def _refusal(what: str) -> CapabilityError:
    return CapabilityError(
        f"the checkpoint is of a model with {what}, which no architecture of transformers known here computes.",
        hint=f"what can be exported: {', '.join(CLASSES.values())}.",
    )
