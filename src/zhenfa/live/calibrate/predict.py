"""What the laws say of each task on a card that carries given coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from zhenfa.estimate import chip as chips
from zhenfa.estimate import kernels, streams
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.eager import NOWHERE, decoding
from zhenfa.estimate.layer import Card, Cost, Shape, layer_cost, total
from zhenfa.estimate.scores import backward_ratio
from zhenfa.estimate.stage import OPTIMIZER_BYTES_FP32
from zhenfa.estimate.traits import OWN_RUNTIME, Traits
from zhenfa.laws import compute
from zhenfa.live.calibrate.fit import Floats
from zhenfa.live.calibrate.samples import CHAINS, Sample, Task
from zhenfa.live.calibrate.tiny import HEAD, tiny_graph
from zhenfa.spec import fact
from zhenfa.spec.graph import Operator
from zhenfa.spec.machine import BYTES, Accelerator, Achievable, CardPool, Precision

NO_HOST: Final = Achievable().host


def chip_of(accelerator: Accelerator, precision: Precision) -> Chip:
    """Return a card as the laws see it."""
    return chips.chip(CardPool("cards", accelerator, 1, (), fact.undisclosed("power")), precision)


def seconds(tasks: Sequence[Task], accelerator: Accelerator) -> Floats:
    """Return the seconds of every task on a card, in the tasks' order."""
    found = np.zeros(len(tasks))
    kinds: dict[tuple[str, Precision], list[int]] = {}
    for index, task in enumerate(tasks):
        kinds.setdefault((task.kind, task.precision), []).append(index)
    precisions = {precision for _, precision in kinds}
    bare = accelerator.model_copy(update={"achievable": accelerator.achievable.model_copy(update={"host": NO_HOST})})
    chips_by = {precision: chip_of(bare, precision) for precision in precisions}
    eager = {precision: chip_of(accelerator, precision) for precision in precisions}
    for (kind, precision), indices in kinds.items():
        if kind in WHAT:
            chip = chips_by[precision] if kind == "chain" else eager[precision]
            found[indices] = [WHAT[kind](tasks[index].sizes, chip) for index in indices]
            continue
        sizes = _columns(tasks[index].sizes for index in indices)
        found[indices] = np.broadcast_to(_kind(kind, sizes, chips_by[precision]), len(indices))
    return found


def _chained(sizes: Mapping[str, int], chip: Chip) -> tuple[float, float]:
    """Return the seconds of a chain of element-wise operators, forward and backward, as the runtime is estimated."""
    features, what = sizes["features"], CHAINS[sizes["what"]]
    size = streams.width(chip)
    match what:
        case "norm":
            chain = streams.passes(Operator("norm", "norm", 0, features, features), size, OWN_RUNTIME)
        case "activation":
            one = Operator("gate", "elementwise", 0, 2 * features, features, "column")
            chain = streams.passes(one, size, OWN_RUNTIME)
        case "rope":
            heads = features // HEAD
            turned = Operator("core", "attention", heads=heads, kv_heads=heads, key_dim=HEAD, value_dim=HEAD)
            chain = streams.rotary(turned, size, OWN_RUNTIME)
        case _:
            chain = streams.loss(float(features), size, OWN_RUNTIME)
    chain = chain.times(sizes["tokens"]).paced(chip, what)
    forward, backward = chain.seconds(chip)
    if chip.processor is not None:
        backward = backward + chip.processor.autograd * chain.kernels_backward
    return float(forward), float(backward)


def tiny_step(sizes: Mapping[str, int], chip: Chip, traits: Traits = OWN_RUNTIME) -> Cost:
    """Return what a training step of the decoder with next to no work costs, its update aside."""
    graph = tiny_graph(sizes["layers"])
    shape, card = Shape(1.0, float(sizes["length"]), 1.0, 1.0, 1.0), Card(chip, chip, NOWHERE, traits)
    blocks = [layer_cost(kind.operators, shape, card) for kind in graph.kinds]
    ends = [layer_cost(part, shape, card) for part in (graph.stem, (*graph.head, *graph.extra))]
    return total([*(blocks[kind] for kind in graph.layers), *ends])


def _eager_step(sizes: Mapping[str, int], chip: Chip) -> float:
    cost = tiny_step(sizes, chip)
    return float(cost.forward + cost.backward)


def _eager_decode(sizes: Mapping[str, int], chip: Chip) -> float:
    return decoding(tiny_graph(sizes["layers"]), chip, 1, float(sizes["length"]))[0]


WHAT: Final[dict[str, Callable[[Mapping[str, int], Chip], float]]] = {
    "chain": lambda sizes, chip: _chained(sizes, chip)[0],
    "chain backward": lambda sizes, chip: _chained(sizes, chip)[1],
    "eager step": _eager_step,
    "eager decode": _eager_decode,
}
"""The kinds that are predicted as the steps of a model are, the host's part in them included."""


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


def issuing(samples: Sequence[Sample], accelerator: Accelerator) -> float | None:
    """Return the seconds in which the host issues one kernel of a model, by the steps that have next to no work."""
    each = []
    for one in samples:
        if one.seconds and one.task.kind in {"eager decode", "eager step"}:
            chip = chip_of(accelerator, one.task.precision)
            each.append(one.middle / _kernels(one.task, chip))
    return min(each, default=None)


def _kernels(task: Task, chip: Chip) -> float:
    if task.kind == "eager decode":
        return decoding(tiny_graph(task.sizes["layers"]), chip, 1, float(task.sizes["length"]))[1]
    cost = tiny_step(task.sizes, chip, OWN_RUNTIME.but(host_s_per_kernel=1.0))
    return float(cost.host_forward + cost.host_backward)
