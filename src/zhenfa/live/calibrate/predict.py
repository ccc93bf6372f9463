"""What the laws say of each task on a card that carries given coefficients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zhenfa.estimate import chip as chips
from zhenfa.estimate import kernels
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.scores import backward_ratio
from zhenfa.estimate.stage import OPTIMIZER_BYTES_FP32
from zhenfa.laws import compute
from zhenfa.live.calibrate.fit import Floats
from zhenfa.live.calibrate.samples import Task
from zhenfa.spec import fact
from zhenfa.spec.machine import BYTES, Accelerator, CardPool, Precision


def chip_of(accelerator: Accelerator, precision: Precision) -> Chip:
    """Return a card as the laws see it."""
    return chips.chip(CardPool("cards", accelerator, 1, (), fact.undisclosed("power")), precision)


def seconds(tasks: Sequence[Task], accelerator: Accelerator) -> Floats:
    """Return the seconds of every task on a card, in the tasks' order."""
    found = np.zeros(len(tasks))
    kinds: dict[tuple[str, Precision], list[int]] = {}
    for index, task in enumerate(tasks):
        kinds.setdefault((task.kind, task.precision), []).append(index)
    chips_by = {precision: chip_of(accelerator, precision) for precision in {precision for _, precision in kinds}}
    for (kind, precision), indices in kinds.items():
        sizes = _columns(tasks[index].sizes for index in indices)
        found[indices] = np.broadcast_to(_kind(kind, sizes, chips_by[precision]), len(indices))
    return found


def _columns(rows: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    table = list(rows)
    return {name: np.array([float(row[name]) for row in table]) for name in table[0]}


def _kind(kind: str, sizes: Mapping[str, Any], chip: Chip) -> Any:
    width = BYTES[chip.precision]
    match kind:
        case "matmul":
            return kernels.matmul(chip, sizes["rows"], sizes["inputs"], sizes["outputs"])
        case "attention" | "attention backward":
            length, heads, dim = sizes["length"], sizes["heads"], sizes["dim"]
            forward = kernels.attention_prefill(
                chip, length, length, heads, dim, dim, kv_heads=heads, sequences=sizes["sequences"]
            )
            return forward * (1.0 if kind == "attention" else backward_ratio(chip))
        case "decode":
            heads, dim = sizes["heads"], sizes["dim"]
            return kernels.attention_decode(
                chip, sizes["sequences"], sizes["length"], heads, dim, dim, kv_heads=heads, cache_bytes=width
            )
        case "stream":
            return kernels.stream(chip, sizes["elements"] * sizes["tensors"] * width)
        case "optimizer":
            return compute.optimizer_time(
                sizes["parameters"], bytes_per_parameter=OPTIMIZER_BYTES_FP32, bandwidth=chip.bandwidth,
                memory_share=chip.memory_share,
            )  # fmt: skip
        case "yardstick":
            return kernels.matmul(chip, sizes["side"], sizes["side"], sizes["side"])
        case _:
            return kernels.stream(chip, 0.0)
