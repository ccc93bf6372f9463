"""Which parts of the model have their whole gradient of a step, told while the last backward passes still run.

A part (a layer, an expert, stem or head) is whole when the last operation of its stage that adds to gradients has come
past it: backward passes go from the last layer to the first. Parts that stand on several stages of a card are whole
when the last of these is through. On an emulated card the moment inside an operation is told by the FLOPs counted until
then, in the first micro-batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from zhenfa.laws.orders import Operation
from zhenfa.live.decoder import Decoder
from zhenfa.live.flops import FlopCount, FlopMeter
from zhenfa.live.linear import Delayed
from zhenfa.live.placement import Chunk

ADDS = ("backward", "input", "weight")
"""Kinds of operations that add to gradients of weights."""


class Told(Protocol):
    """Who is told of parts: when they are whole, and at which time of an emulated card that was."""

    def ready(self, part: str) -> None:
        """Hear of a part that is whole."""

    def was_ready(self, part: str, at: float) -> None:
        """Hear when it was."""


class Readiness:
    """Watches the operations of one card. ``module`` is what backward passes run with; ``order`` all operations of a
    step."""

    def __init__(self, module: Decoder, chunks: Sequence[Chunk], order: Sequence[Operation], told: Told) -> None:
        self._told = told
        names = dict(module.named_parameters())
        self._parts = {id(weight): module.sizes.part_of(name) for name, weight in names.items()}
        self._weights = Counter(self._parts.values())
        stages = {
            part: _stages(part, chunks, tied=module.sizes.tied and module.sizes.source is None)
            for part in self._weights
        }
        last = {stage: number for number, (kind, stage, _) in enumerate(order) if kind in ADDS}
        self._last = {order[number]: stage for stage, number in last.items()}
        self._final = {part: max(own, key=lambda one: last.get(one, -1)) for part, own in stages.items()}
        self._alone = {part for part, own in stages.items() if len(own) == 1}
        self._seen: Counter[str] = Counter()
        self._meter: FlopMeter | None = None
        self._operation: Operation | None = None
        self._whole: list[str] = []
        self._marks: dict[tuple[str, int], tuple[FlopCount, dict[str, float]]] = {}
        self._hooks = [weight.register_post_accumulate_grad_hook(self._added) for weight in names.values()]

    def close(self) -> None:
        """Watch no more. A weight and who watches it keep each other otherwise, and the groups of cards with them: what
        is held through torch's hooks the garbage collector does not see."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def during(self, operation: Operation, meter: FlopMeter) -> Iterator[Callable[[float, float], None]]:
        """Watch an operation; what it yields is called with its start and end on the card's clock."""
        kind, stage, _ = operation
        self._operation, self._meter, self._whole = operation, meter, []
        self._seen.clear()

        def ended(start: float, end: float) -> None:
            if operation not in self._last:
                return
            count, marks = self._marks.get((kind, stage), (None, {}))
            for part in [part for part, final in self._final.items() if final == stage]:
                known = count is not None and count.total and part in marks and part in self._whole
                share = marks[part] / count.total if known and count is not None else 1.0
                self._told.was_ready(part, start + share * (end - start))
                if part not in self._whole:
                    self._told.ready(part)

        try:
            yield ended
        finally:
            self._operation = self._meter = None

    def later(self, delayed: Sequence[Delayed]) -> Iterator[Delayed]:
        """Yield what is left to add to gradients of weights, and notice when a part has no more of it."""
        left = Counter(self._parts[id(one.weight)] for one in delayed)
        for one in delayed:
            yield one
            part = self._parts[id(one.weight)]
            left[part] -= 1
            if not left[part]:
                self._past(part)

    def _added(self, weight: Any) -> None:
        """Notice a gradient that a backward pass has added."""
        if self._operation is None or self._operation[0] != "backward":
            return
        part = self._parts[id(weight)]
        self._seen[part] += 1
        if self._seen[part] == self._weights[part]:
            self._past(part)

    def _past(self, part: str) -> None:
        """An operation has come past a part."""
        operation, meter = self._operation, self._meter
        if operation is None or meter is None or part not in self._alone:
            return
        kind, stage, _ = operation
        if meter.counting is not None:
            count, marks = self._marks.setdefault((kind, stage), (meter.counting, {}))
            if count is meter.counting:
                marks[part] = count.total
        if operation in self._last:
            self._whole.append(part)
            self._told.ready(part)


def _stages(part: str, chunks: Sequence[Chunk], *, tied: bool) -> set[int]:
    """Return the stages that add to the gradients of a part."""
    kind, *rest = part.split()
    if kind == "ends":
        return {chunk.stage for chunk in chunks if chunk.stem or chunk.head}
    if kind == "stem":
        return {chunk.stage for chunk in chunks if chunk.stem or (chunk.head and tied)}
    if kind == "head":
        return {chunk.stage for chunk in chunks if chunk.head}
    return {chunk.stage for chunk in chunks if chunk.first <= int(rest[0]) < chunk.last}
