"""Values for the weights of a stage: fresh ones, the same on every layout, or those of a Hugging Face directory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zhenfa.errors import InputError
from zhenfa.live.foreign.build import build, weightless
from zhenfa.live.foreign.source import Source
from zhenfa.live.foreign.stage import ForeignStage
from zhenfa.live.sizes import Sizes


def stage_of(
    sizes: Sizes, source: Source, layers: Sequence[int], *, first: bool, last: bool, seed: int
) -> ForeignStage:  # fmt: skip
    """Return the stage that a card holds, with fresh weights that depend on ``seed`` and their names alone.

    A module of a Python file is built whole, by its own ``__init__`` from ``seed``, and cut. Of a Hugging Face model
    only the stage's weights are ever held; each of its modules is drawn as the model's own initialisation does, from
    the seed and the module's global name.
    """
    parts = source.held(layers, first=first, last=last)
    if source.kind == "python":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inner = build(source)
        return ForeignStage(inner, sizes, source, parts)
    with weightless():
        inner = build(source)
    stage = ForeignStage(inner, sizes, source, parts)
    _hold(stage)
    _draw(stage, seed)
    return stage


def _hold(stage: ForeignStage) -> None:
    """Give memory to the weights that are here, in all places where they stand."""
    held = {id(weight): nn.Parameter(torch.empty(weight.shape)) for weight in stage.parameters()}
    for owner in stage.inner.modules():
        for rows in (owner._parameters, owner.__dict__):
            for name, value in list(rows.items()):
                if id(value) in held:
                    rows[name] = held[id(value)]


@torch.no_grad()  # type: ignore[untyped-decorator]
def _draw(stage: ForeignStage, seed: int) -> None:
    """Draw the weights of a Hugging Face model as its own initialisation does, each module from its global name.

    Children come before what holds them, as in transformers; of what holds blocks only its own weights are drawn.
    """
    root, blocks = stage.inner, stage.source.blocks
    above = {"", *(blocks.rsplit(".", cut)[0] for cut in range(blocks.count(".") + 1))}
    with torch.random.fork_rng(devices=[]):
        for name, module in reversed(list(root.named_modules())):
            own = [weight for weight in module._parameters.values() if weight is not None]
            inside = any(True for _ in module.parameters())
            absent = any(owner is module for owner, _, _ in stage._absent)
            if not inside or absent or (name in above and not own):
                continue
            if not own and not name.startswith(f"{blocks}."):
                continue
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "little"))
            _owner(root, name)._init_weights(module)


def _owner(root: nn.Module, name: str) -> Any:
    """Return the innermost model of transformers that a module stands in: each brings its own initialisation."""
    found = root
    here = root
    for step in name.split(".") if name else []:
        here = getattr(here, step)
        if hasattr(here, "_init_weights"):
            found = here
    return found


def load_directory(stage: ForeignStage, folder: Path) -> None:
    """Fill the stage from a Hugging Face directory. Raises :class:`InputError` for a tensor that is missing."""
    from zhenfa.live.weights import Directory

    directory = Directory(folder)
    prefix = getattr(stage.inner, "base_model_prefix", "")
    aliases = _aliases(stage)
    wanted = {}
    for name, weight in stage.named_parameters():
        names = [one for own in (name, *aliases.get(id(weight), ())) for one in spelt(own, prefix)]
        there = next((one for one in names if one in directory), None)
        if there is None:
            raise InputError(
                f"{str(folder)!r} has no tensor {name!r}.",
                hint="give the directory that the config.json of the job's model comes from.",
            )
        wanted[there] = weight
    for name, buffer in stage.inner.named_buffers():
        if name in directory and not buffer.is_meta:
            wanted[name] = buffer
    directory.fill(wanted)


def _aliases(stage: ForeignStage) -> dict[int, list[str]]:
    """Return further names of weights that stand in several places."""
    found: dict[int, list[str]] = {}
    for prefix, owner in stage.inner.named_modules():
        for name, value in owner.__dict__.items():
            if isinstance(value, nn.Parameter):
                found.setdefault(id(value), []).append(f"{prefix}.{name}" if prefix else name)
    return found


def spelt(name: str, prefix: str) -> list[str]:
    """Return how a directory may call a weight: files of a model without its head leave its prefix out."""
    return [name, name.removeprefix(f"{prefix}.")] if prefix else [name]
