"""Models and accelerators by the names that reports and engines give them, which are rarely the catalog's own."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from zhenfa.catalog import files
from zhenfa.catalog.entries import ACCELERATORS, accelerator, model, models
from zhenfa.spec.machine import Accelerator
from zhenfa.spec.model import Model

ENDINGS: Final = frozenset({
    "instruct", "it", "base", "chat", "hf", "text", "bf16", "fp16", "fp8", "fp4", "nvfp4", "mxfp4", "mxfp8", "int4",
    "int8", "awq", "gptq", "w8a8", "w4a8", "w4a16", "preview", "thinking", "static", "dynamic", "per", "tensor",
    "block", "quantized", "pack",
})  # fmt: skip
"""Words at the end of a model's name that say how it was tuned or stored, not what shape it has."""


def find_model(name: str) -> Model | None:
    """Return the catalog's model of that name, however it is written; None if it has none.

    The organisation before a slash, case, marks between letters, dates and endings such as ``-Instruct`` or ``-FP8``
    do not matter: ``deepseek-ai/DeepSeek-R1-0528`` is ``deepseek-r1``.
    """
    known = _model_names()
    for whole in (name, name.split("/", 1)[-1], name.rsplit("/", 1)[-1]):
        words = re.findall(r"[^\s_-]+", whole.strip(" -").casefold())
        while words:
            found = known.get(_letters(" ".join(words)))
            if found is not None:
                return model(found)
            if words[-1] not in ENDINGS and not re.fullmatch(r"\d{4,8}", words[-1]):
                break
            words.pop()
    return None


@cache
def _model_names() -> dict[str, str]:
    others: dict[str, list[str]] = files.read(files.ROOT / "model_names.yaml")["names"]
    names = {_letters(alias): own for own, aliases in others.items() for alias in aliases}
    return names | {_letters(own): own for own in models()}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9./]", "", text.casefold()).replace("v0.1", "")


def find_accelerator(name: str) -> Accelerator | None:
    """Return the catalog's accelerator that a free text names; None if none or more than one fits equally.

    The entry whose id or alias has all its words in the text wins, the one with the most words first:
    ``NVIDIA A100-40GB SXM`` is ``nvidia-a100-sxm-40g``, ``B200 (DGX-B200)`` is ``nvidia-b200-sxm``.
    """
    words = _words(name)
    best: dict[str, tuple[int, int]] = {}
    for label, key in _accelerator_names():
        if label <= words:
            best[key] = max(best.get(key, (0, 0)), (len(label), sum(map(len, label))))
    if not best:
        return None
    most = max(best.values())
    found = [key for key, score in best.items() if score == most]
    return accelerator(found[0]) if len(found) == 1 else None


def _words(text: str) -> frozenset[str]:
    plain = re.sub(r"(\d+)\s*gi?b\b", r"\1g", text.casefold())
    return frozenset(re.findall(r"[a-z0-9]+", plain))


@cache
def _accelerator_names() -> tuple[tuple[frozenset[str], str], ...]:
    return tuple((_words(name), ACCELERATORS.find(name) or name) for name in ACCELERATORS.names)
