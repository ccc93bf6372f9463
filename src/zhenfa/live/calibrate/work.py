"""The torch work behind each task. Imported in a card's process alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

from zhenfa.live.calibrate.clock import Call, Clock
from zhenfa.live.calibrate.samples import CHAINS, Task
from zhenfa.live.calibrate.tiny import HEAD, tiny_sizes

TYPES: Final = {
    "fp64": torch.float64, "fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip

COLD_BYTES: Final = 96 * 2**20
"""Bytes over which operands that shall come from memory rotate on a processor, unless its cache asks for more."""
TIMES_CACHE: Final = 3
MOST_COLD_BYTES: Final = 2**30
DEPTH: Final = 12
"""Graphs of a backward pass that take turns, so that what they keep has left the caches."""


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
    return _backward(_attended, lambda: _heads(sizes, kind, device), device)


def _backward(forward: Callable[[list[Any]], Any], inputs: Callable[[], list[Any]], device: Any) -> Call:
    """Return the backward pass of a function whose gradient has just been made and what it kept lies in memory."""
    graphs = []
    for _ in range(DEPTH if device.type == "cpu" else 1):
        given = [item.detach().requires_grad_(item.is_floating_point()) for item in inputs()]
        graphs.append(([item for item in given if item.requires_grad], forward(given)))
    results = graphs[0][1] if isinstance(graphs[0][1], list) else [graphs[0][1]]
    gradients, by_turns = [torch.randn_like(one) for one in results], itertools.cycle(graphs)

    def call() -> object:
        given, result = next(by_turns)
        return torch.autograd.grad(result, given, gradients if isinstance(result, list) else gradients[0],
                                   retain_graph=True)  # fmt: skip

    return call


def _chain(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    """Run a chain of element-wise operators as the runtime does, its operands from memory."""
    forward, shapes = _chained(sizes)
    rows = [_rotating(device, kind, *shape) for shape in shapes]
    rest = _besides(sizes, kind, device)
    return lambda: forward([next(row) for row in rows] + rest)


def _chain_backward(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    forward, shapes = _chained(sizes)
    rest = _besides(sizes, kind, device)
    return _backward(forward, lambda: [_normal(device, kind, *shape) for shape in shapes] + rest, device)


def _besides(sizes: Mapping[str, int], kind: Any, device: Any) -> list[Any]:
    """Return the small operands of a chain, which stay in the cache."""
    match CHAINS[sizes["what"]]:
        case "norm":
            return [torch.ones(sizes["features"], dtype=kind, device=device)]
        case "cross-entropy":
            return [torch.randint(0, sizes["features"], (1, sizes["tokens"]), device=device)]
        case _:
            return []


def _chained(sizes: Mapping[str, int]) -> tuple[Callable[[list[Any]], Any], list[tuple[int, ...]]]:
    """Return a chain as a function of its operands, and the shapes of the large ones."""
    from zhenfa.live.decoder import loss_of, rotate, turns
    from zhenfa.live.fused import GatedSilu, RmsNorm

    tokens, features = sizes["tokens"], sizes["features"]
    match CHAINS[sizes["what"]]:
        case "norm":
            return lambda given: RmsNorm.apply(*given, 1e-5), [(1, tokens, features)]
        case "activation":
            return lambda given: GatedSilu.apply(*given), [(1, tokens, features)] * 2
        case "rope":
            turn = turns(tiny_sizes(1, features // HEAD, HEAD), tokens, torch.device("cpu"))
            both: list[tuple[int, ...]] = [(1, tokens, features // HEAD, HEAD)] * 2
            return lambda given: [rotate(one, turn) for one in given], both
        case _:
            return lambda given: loss_of(given[0], given[1], tokens), [(1, tokens, features)]


def _eager_decode(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    """Decode one token of one sequence with a model that has next to no work."""
    from zhenfa.live.calibrate.cache import Cache
    from zhenfa.live.decoder import StageModule

    small = tiny_sizes(sizes["layers"])
    module = StageModule(small, 0, small.layers, stem=True, head=True, seed=0).to(device=device, dtype=kind)
    with torch.inference_mode():
        cache = Cache(module, small, 1, sizes["length"] + 1, device)
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)

    def call() -> object:
        with torch.inference_mode():
            return cache.forward(token, sizes["length"])

    return call


def _eager_step(sizes: Mapping[str, int], kind: Any, device: Any) -> Call:
    """Train a model that has next to no work on a few tokens, its weights not updated."""
    from zhenfa.live.decoder import StageModule, loss_of

    small = tiny_sizes(sizes["layers"])
    module = StageModule(small, 0, small.layers, stem=True, head=True, seed=0).to(device=device, dtype=kind)
    tokens = torch.zeros(1, sizes["length"], dtype=torch.int64, device=device)

    def call() -> object:
        module.zero_grad(set_to_none=True)
        return loss_of(module(tokens), tokens, sizes["length"]).backward()

    return call


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
    """Multiply two tensors: one comes from memory, the other has just been used, and the product goes to memory.

    The one at hand is all ones: products of products would end in numbers so small that processors slow down.
    """
    far, out = (_rotating(device, kind, sizes["elements"]) for _ in range(2))
    near = torch.ones(sizes["elements"], dtype=kind, device=device)
    next(out)
    return lambda: torch.mul(next(far), near, out=next(out))


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
    count = math.prod(shape)
    if device.type != "cpu" or count > arena(kind).numel() // 2:
        return itertools.cycle([_normal(device, kind, *shape)])
    return itertools.cycle([part.view(shape) for part in arena(kind).split(count) if part.numel() == count])


@cache
def arena(kind: Any) -> Any:
    """Return the numbers on the host that all rotating operands are views of: several times its last cache."""
    wanted = min(max(COLD_BYTES, TIMES_CACHE * last_cache()), MOST_COLD_BYTES)
    return torch.randn(wanted // torch.empty((), dtype=kind).element_size()).to(kind)


def last_cache() -> int:
    """Return the bytes of the first processor's last cache; 0 where the system does not tell."""
    units, found = {"K": 2**10, "M": 2**20, "G": 2**30}, 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            found = max(found, int(text.rstrip("KMG")) * units.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return found


BUILDERS: Final[dict[str, Callable[[Mapping[str, int], Any, Any], Call]]] = {
    "matmul": _matmul, "attention": _attention, "attention backward": _attention_backward, "decode": _decode,
    "stream": _stream, "chain": _chain, "chain backward": _chain_backward, "launch": _launch, "host": _launch,
    "eager decode": _eager_decode, "eager step": _eager_step, "optimizer": _optimizer, "yardstick": _yardstick,
}  # fmt: skip

BACKWARD: Final = frozenset({"attention backward", "chain backward", "eager step"})
"""Tasks that autograd takes part in."""

SMALL: Final = 200
"""Calls queued together where one alone is too short for a clock."""


def seconds_of(task: Task, call: Call, clock: Clock, count: int) -> list[float]:
    """Return the seconds of each of ``count`` calls; those of very short kernels are means over :data:`SMALL`."""
    with torch.enable_grad() if task.kind in BACKWARD else torch.no_grad():
        if task.kind.startswith("eager"):
            return [clock.host(call, 1) for _ in range(count)]
        if task.kind == "launch":
            return [clock.batch(call, SMALL) for _ in range(count)]
        if task.kind == "host":
            return [clock.host(call, SMALL) for _ in range(count)]
        return clock.times(call, count)
