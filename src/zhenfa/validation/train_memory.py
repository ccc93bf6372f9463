"""Memory of published training rows: what was measured, with which tool, and what the laws say that tool shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from zhenfa.estimate.training import PlanCost
from zhenfa.estimate.traits import Traits
from zhenfa.validation.train_words import number, part, positive, text

GIB: Final = float(2**30)

Tool = Literal["reserved", "card"]
"""``reserved``: what the framework's allocator took and keeps; ``card``: what the maker's tool shows, which also counts
the driver, loaded kernels and the buffers of collectives."""

_TOOLS: Final[Mapping[str, Tool]] = {
    "mem_max_gib": "reserved",
    "mem_gib": "reserved",
    "mem_used_over_total_gib": "card",
    "mem_gb": "card",
}
_OF_THE_CARD: Final = ("sailor",)
"""Software whose logs hold what nvidia-smi shows, whatever the key (eth-easl/sailor, deepspeed/pipe_engine.py)."""


def tool_of(record: Mapping[str, Any], key: str) -> Tool:
    """Return what a row's memory was read with: scripts print the allocator's peak, tables of vendors the card's."""
    words = f"{text(record.get('software'))} {text(record.get('id'))} {text(part(record, 'source').get('where'))}"
    return "card" if any(name in words for name in _OF_THE_CARD) else _TOOLS[key]


def memory_of(record: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the key and the bytes of the peak memory of the fullest card that a row measured, or None."""
    metrics = part(record, "metrics") or part(record, "measured")
    for key in ("mem_max_gib", "mem_gib"):
        size = positive(metrics, key)
        if size:
            return key, size * GIB
    printed = metrics.get("mem_used_over_total_gib")
    if isinstance(printed, str) and "/" in printed:
        used = number(printed.split("/")[0])
        if used:
            return "mem_used_over_total_gib", used * GIB
    listed = metrics.get("mem_gb")
    if isinstance(listed, str | int | float) and not isinstance(listed, bool):
        sizes = [float(size) for size in re.findall(r"(\d+(?:\.\d+)?)", re.sub(r"\*\s*\d+", "", str(listed)))]
        if sizes and max(sizes) > 0:
            return "mem_gb", max(sizes) * GIB
    return None


def shown(cost: PlanCost, tool: Tool, traits: Traits, capacity: float) -> float:
    """Return the bytes that a tool shows of the fullest card.

    Both count what a caching allocator keeps: the working sets of the layers and of the loss, which are never needed at
    once, lie in segments of their own. No tool shows more than the card has.
    """
    held = max(stage.bytes + stage.cached for stage in cost.stages)
    return min(held + (traits.runtime_bytes if tool == "card" else 0.0), capacity)


def impossible(cost: PlanCost, tool: Tool, traits: Traits, measured: float) -> str | None:
    """Return why a figure cannot be the peak of the layout that its row describes, or None.

    Every step ends with weights, gradients and the optimizer's state on the card, whatever the passes before it held. A
    figure below them, and what the tool counts beside tensors, is of something else: another layout, or an early step.
    """
    states = ((stage.memory[part] for part in ("weights", "gradients", "optimizer")) for stage in cost.stages)
    least = max(sum(parts) for parts in states) + (traits.runtime_bytes if tool == "card" else 0.0)
    if measured >= least:
        return None
    return (
        f"{measured / GIB:.2f} GiB cannot be the peak of the layout that the row describes: weights, gradients and the "
        f"optimizer's state{' with the driver' if tool == 'card' else ''} are {least / GIB:.2f} GiB"
    )
