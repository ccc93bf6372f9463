"""The torch work behind each task. Imported in a card's process alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.nn import functional

from zhenfa.live.calibrate.clock import Call, Clock
from zhenfa.live.calibrate.samples import Task

TYPES: Final = {
    "fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip

COLD_BYTES: Final = 96 * 2**20
"""Bytes over which operands that shall come from memory rotate on a processor: three times a usual last-level cache."""
MOST_COPIES: Final = 64


def call_of(task: Task, device: Any) -> Call:
    """Return the work of a task, its tensors made. Raises ``RuntimeError`` where the device cannot do it."""
    torch.manual_seed(0)
    return BUILDERS[task.kind](task.sizes, TYPES[task.precision], device)


def _matmul(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    """Multiply as a linear layer does: ``x W'``, ``g W`` for the input's gradient, ``g' x`` for the weight's."""
    rows, inputs, outputs = sizes["rows"], sizes["inputs"], sizes["outputs"]
    match sizes["layout"]:
        case 0:
            left, right = _normal(device, kind, rows, inputs), _rotating(device, kind, outputs, inputs)
            return lambda: left @ next(right).t()
        case 1:
            left, right = _normal(device, kind, rows, inputs), _rotating(device, kind, inputs, outputs)
            return lambda: left @ next(right)
        case _:
            left, right = _normal(device, kind, inputs, rows), _rotating(device, kind, inputs, outputs)
            return lambda: left.t() @ next(right)


def _attention(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    heads = _heads(sizes, kind, device)
    return lambda: _attended(heads)


def _attention_backward(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    heads = [item.requires_grad_() for item in _heads(sizes, kind, device)]
    result = _attended(heads)
    gradient = torch.randn_like(result)
    return lambda: torch.autograd.grad(result, heads, gradient, retain_graph=True)


def _decode(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    """Let one query of each sequence look at all of its cache, which comes from memory."""
    sequences, length, heads, dim = (sizes[name] for name in ("sequences", "length", "heads", "dim"))
    query = _normal(device, kind, sequences, heads, 1, dim)
    caches = _rotating(device, kind, 2, sequences, heads, length, dim)

    def call() -> object:
        key, value = next(caches)
        return functional.scaled_dot_product_attention(query, key, value)

    return call


def _attended(heads: Sequence[Any]) -> Any:
    query, key, value = heads
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def _heads(sizes: Mapping[str, int], kind: Any, device: Any) -> list[Any]:
    shape = (sizes["sequences"], sizes["length"], sizes["heads"], sizes["dim"])
    return [_normal(device, kind, *shape).transpose(1, 2) for _ in range(3)]


def _stream(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    """Multiply two tensors into a new one; the first comes from memory, the second has just been used."""
    far, near = _rotating(device, kind, sizes["elements"]), _normal(device, kind, sizes["elements"])
    return lambda: next(far) * near


def _launch(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    del sizes
    small = torch.ones(16, dtype=kind, device=device)
    return lambda: small * small


def _optimizer(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    pieces = sizes["tensors"]
    each = [torch.nn.Parameter(_normal(device, kind, sizes["parameters"] // pieces)) for _ in range(pieces)]
    for item in each:
        item.grad = torch.randn_like(item)
    step: Call = torch.optim.AdamW(each, fused=True).step
    return step


def _yardstick(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    side = sizes["side"]
    left, right = _normal(device, kind, side, side), _normal(device, kind, side, side)
    return lambda: left @ right


def _normal(device: Any, kind: Any, *shape: int) -> Any:
    return torch.randn(*shape, device=device).to(kind)


def _rotating(device: Any, kind: Any, *shape: int) -> Iterator[Any]:
    """Yield tensors of a shape over and over, on a processor so many that each has left the caches when it returns."""
    first = _normal(device, kind, *shape)
    copies = 1 if device.type != "cpu" else min(max(COLD_BYTES // max(first.nbytes, 1), 1), MOST_COPIES)
    return itertools.cycle([first, *(first.clone() for _ in range(copies - 1))])


BUILDERS: Final[dict[str, Callable[[Mapping[str, int], Any, Any], Call]]] = {
    "matmul": _matmul, "attention": _attention, "attention backward": _attention_backward, "decode": _decode,
    "stream": _stream, "launch": _launch, "host": _launch, "optimizer": _optimizer, "yardstick": _yardstick,
}  # fmt: skip

SMALL: Final = 200
"""Calls queued together where one alone is too short for a clock."""


def seconds_of(task: Task, call: Call, clock: Clock, count: int) -> list[float]:
    """Return the seconds of each of ``count`` calls; those of very short kernels are means over :data:`SMALL`."""
    with torch.no_grad() if task.kind != "attention backward" else torch.enable_grad():
        if task.kind == "launch":
            return [clock.batch(call, SMALL) for _ in range(count)]
        if task.kind == "host":
            return [clock.host(call, SMALL) for _ in range(count)]
        return clock.times(call, count)
