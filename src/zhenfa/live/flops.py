"""FLOPs that torch really executes, counted operator by operator as they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

T = TypeVar("T")


class FlopCount(TorchDispatchMode):  # type: ignore[misc]
    """Count the FLOPs of everything that runs inside, backward passes included, 2 per multiply-add.

    Counts matrix products, convolutions and fused attention; of causal attention only the half that the mask leaves.
    Omits norms, activations and copies, as published FLOP counts do. Uses torch's own formulas, and adds the fused
    attention of the CPU, which torch leaves out.
    """

    paused: ClassVar[bool] = False
    """Whether nothing is counted for now: a forward runs what another card answers for."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if FlopCount.paused:
            return result
        packet = func._overloadpacket
        formula = ATTENTION.get(packet)
        if formula is not None:
            self.total += formula(*args, **kwargs)
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **kwargs, out_val=result)
        return result


class FlopMeter:
    """Count each kind of operation once and remember it: micro-batches of a stage are all of one shape.

    But for experts, whose work differs: ``routed`` tells their FLOPs so far, which are counted every time.
    """

    def __init__(self, routed: Callable[[], float] = lambda: 0.0) -> None:
        self.counted: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.last = 0.0
        self._routed, self._before = routed, 0.0
        self._marks: dict[str, list[float]] = {}
        self._under_way: tuple[str, FlopCount | None, int] = ("", None, 0)

    def run(self, kind: str, work: Callable[[], T]) -> T:
        """Run ``work``, counting it if ``kind`` has not been counted; ``last`` is then what it took."""
        self._before = self._routed()
        if kind in self.counted:
            self._under_way = (kind, None, 0)
            result = work()
        else:
            self._marks[kind] = []
            with FlopCount() as count:
                self._under_way = (kind, count, 0)
                result = work()
            self.counted[kind] = count.total - self._own()
        self.last = self.counted[kind] + self._own()
        self.spent[kind] = self.spent.get(kind, 0.0) + self.last
        return result

    @property
    def counting(self) -> FlopCount | None:
        """Return the count of the operation under way, None where it has been counted before."""
        return self._under_way[1]

    def so_far(self) -> float:
        """Return the FLOPs of the operation under way until now; it asks at the same places every time."""
        kind, count, asked = self._under_way
        self._under_way = (kind, count, asked + 1)
        if count is not None:
            self._marks[kind].append(count.total - self._own())
        return self._marks[kind][asked] + self._own()

    def _own(self) -> float:
        return self._routed() - self._before


def _pairs(query: Any, key: Any, causal: bool) -> float:
    """Return how many query-key pairs are worked on, over batch and heads."""
    batch, heads, length, _ = query.shape
    context = key.shape[-2]
    return float(batch * heads * (length * (length + 1) / 2 if causal else length * context))


def _attention_flops(
    query: Any, key: Any, value: Any, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> float:
    """Return FLOPs of scores and mixing. Source: Dao 2023, section 3.1 (two products of 2 per pair and feature)."""
    return float(2 * _pairs(query, key, is_causal) * (query.shape[-1] + value.shape[-1]))


def _attention_backward_flops(
    _gradient: Any, query: Any, key: Any, value: Any, _out: Any, _sums: Any, _dropout: float, is_causal: bool, **_: Any
) -> float:
    """Return FLOPs of the backward pass: scores again and dQ, dK over the key features, dP and dV over the values'."""
    return float(2 * _pairs(query, key, is_causal) * (3 * query.shape[-1] + 2 * value.shape[-1]))


ATTENTION: dict[Any, Callable[..., float]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
