"""The stages that a card holds, run in the order that the plan's schedule gives.

The order is the one that the planner's laws are about (:mod:`zhenfa.live.operations`), so that what was predicted is
what runs: each operation waits for its message, runs on the card's clock and sends its result on. FLOPs and kept bytes
of a stage are counted in its first micro-batch; the receives of a whole step are posted ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from zhenfa.laws.orders import Operation
from zhenfa.live.decoder import Decoder, Delayed
from zhenfa.live.flops import FlopCount, FlopMeter
from zhenfa.live.operations import homes, operations
from zhenfa.live.pace import Pacer
from zhenfa.live.placement import CardPlace, Chunk
from zhenfa.live.transport import Messages, Received

Loss = Callable[[Any, Any], Any]
"""Takes logits and targets of a micro-batch; its result is already divided by the tokens of the step."""


@dataclass
class StageRun:
    """One stage on this card, and what its forwards keep until their backwards."""

    module: Decoder
    chunk: Chunk
    loss: Loss
    meter: FlopMeter = field(default_factory=FlopMeter)
    saved_bytes: int = 0
    recomputed: list[FlopCount] = field(default_factory=list)
    kept: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    late: dict[int, list[Delayed]] = field(default_factory=dict)

    def forward(self, micro_batch: int, given: Any, targets: Any) -> Any:
        """Return the features for the next stage, or the micro-batch's loss on the last."""
        keeps = torch.is_grad_enabled()
        if keeps and given.is_floating_point():
            given = given.detach().requires_grad_()
        work = self._weighed if keeps and self.saved_bytes == 0 else self.module.run
        output = work(given, self.chunk)
        result = self.loss(output, targets) if self.chunk.head else output
        if keeps:
            self.kept[micro_batch] = (given, result)
        return result

    def backward(self, micro_batch: int, gradient: Any, *, split: bool = False) -> Any:
        """Add to the gradients of weights, or keep that for later (``split``); return the input's, if it has one."""
        given, result = self.kept.pop(micro_batch)
        self.module.delayed = [] if split else None
        torch.autograd.backward(result, gradient)
        if self.module.delayed is not None:
            self.late[micro_batch], self.module.delayed = self.module.delayed, None
        return given.grad if given.is_floating_point() else None

    @property
    def again(self) -> float:
        """Return the FLOPs of one micro-batch that are computed a second time."""
        return float(sum(count.total for count in self.recomputed))

    def weights(self, micro_batch: int) -> None:
        """Add the gradients of weights that were kept for later."""
        for one in self.late.pop(micro_batch):
            one.add()

    def _weighed(self, given: Any, chunk: Chunk) -> Any:
        """Run a forward and count the bytes that it keeps for its backward, each storage once.

        Parameters and what was received, which are kept anyway, are left out.
        """
        own = {tensor.untyped_storage().data_ptr() for tensor in (*self.module.parameters(), given)}

        def pack(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                own.add(storage.data_ptr())
                self.saved_bytes += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return self.module.run(given, chunk, count=self._counter)

    def _counter(self) -> FlopCount:
        self.recomputed.append(FlopCount())
        return self.recomputed[-1]


Key = tuple[str, int, int]
"""A message: ``forward`` (features) or ``backward`` (their gradient), the stage that takes it, and the micro-batch."""


class Runner:
    """A card's stages with their schedule. ``peers`` are the ranks at the pipeline's places, ``features`` is an example
    of what goes from stage to stage for one micro-batch."""

    def __init__(
        self, module: Decoder, place: CardPlace, schedule: str, peers: Sequence[Sequence[int]], *, messages: Messages,
        pacer: Pacer, loss: Loss, features: Any,
    ) -> None:  # fmt: skip
        rows = operations(schedule, place.stages, place.virtual_stages, place.micro_batches)
        self.order, self._homes, self._peers = rows[place.stage], homes(rows), peers
        self.place, self.messages, self.pacer = place, messages, pacer
        self.stages = {chunk.stage: StageRun(module, chunk, loss) for chunk in place.chunks}
        self._last = max(stage for stage, _ in self._homes)
        module.splits = any(kind == "weight" for kind, _, _ in self._all())
        self._buffers: dict[Key, Any] = {}
        for key, sender in self._arriving():
            if sender != place.stage:
                self._buffers[key] = torch.empty_like(features)
        self._coming: dict[Key, Received] = {}
        self._here: dict[Key, Any] = {}
        self._tokens: tuple[Any, Any] = (None, None)
        self._losses: list[Any] = []

    def step(self, inputs: Any, targets: Any) -> float | None:
        """Run the forwards and backwards of one step; return the loss on cards with the last stage, else None.

        ``inputs`` and ``targets``: tokens ``[sequences, length]``, used on the first and the last stage alone.
        """
        return self._run(self.order, inputs, targets)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def evaluate(self, inputs: Any, targets: Any) -> float | None:
        """Run the forwards alone; return the loss on cards with the last stage, else None."""
        forwards = (tuple(one for one in moment if one[0] == "forward") for moment in self.order)
        return self._run([moment for moment in forwards if moment], inputs, targets)

    @property
    def buffer_bytes(self) -> int:
        """Return the bytes of the receive buffers."""
        return sum(int(buffer.nbytes) for buffer in self._buffers.values())

    @property
    def kept_bytes(self) -> int:
        """Return the most bytes of activations that the card's forwards keep at any moment of the step."""
        held = most = 0
        for kind, stage, _ in self._all():
            held += {"forward": 1, "input": 0}.get(kind, -1) * self.stages[stage].saved_bytes
            most = max(most, held)
        return most

    def flops(self) -> dict[str, float]:
        """Return the FLOPs of one step as counted, by kind of operation; ``again``: those of them that recompute."""
        found: dict[str, float] = {}
        for kind, stage, _ in self._all():
            found[kind] = found.get(kind, 0.0) + self.stages[stage].meter.counted.get(kind, 0.0)
            if kind == "forward":
                found["again"] = found.get("again", 0.0) + self.stages[stage].again
        return found

    def _all(self) -> Iterator[Operation]:
        return (operation for moment in self.order for operation in moment)

    def _arriving(self) -> Iterator[tuple[Key, int]]:
        """Yield the messages that this card's operations wait for, in their order, with the place that sends each."""
        for operation in self._all():
            key = _needs(operation)
            neighbour = operation[1] + (-1 if operation[0] == "forward" else 1)
            if key is not None and 0 <= neighbour <= self._last:
                yield key, self._homes[neighbour, operation[2]]

    def _run(self, order: Sequence[Sequence[Operation]], inputs: Any, targets: Any) -> float | None:
        self._tokens, self._losses = (inputs, targets), []
        needed = {_needs(operation) for moment in order for operation in moment}
        for key, sender in self._arriving():
            if key in self._buffers and key in needed:
                crew = self._peers[sender]
                peer = crew[self.place.tensor % len(crew)]
                self._coming[key] = self.messages.expect(self._buffers[key], peer, self._tag(key), key[2])
        for moment in order:
            given = [self._given(operation) for operation in moment]
            for operation, tensor in zip(moment, given, strict=True):
                self._operate(operation, tensor)
        self.messages.flush()
        return (
            float(sum(float(loss) for loss in self._losses))
            if self._last in self.stages and not self.place.tensor
            else None
        )

    def _given(self, operation: Operation) -> Any:
        """Return what an operation works on, when it is there: tokens, features or a gradient; None for the rest."""
        key = _needs(operation)
        if key is None:
            return None
        if key in self._coming:
            return self._coming.pop(key).wait()
        if key in self._here:
            return self._here.pop(key)
        return self._rows(self._tokens[0], key[2]) if operation[0] == "forward" else None

    def _operate(self, operation: Operation, given: Any) -> None:
        """Run one operation on the card's clock, and hand its result on."""
        kind, stage, micro_batch = operation
        run, result = self.stages[stage], None
        with self.pacer.operation(kind, micro_batch, stage) as running:  # type: ignore[arg-type]
            result = run.meter.run(kind, lambda: self._work(run, operation, given))
            if self.place.rate is not None:
                running.seconds = run.meter.counted[kind] / self.place.rate + run.module.crew.taken()
        if kind == "forward" and stage == self._last:
            self._losses.append(result.detach())
            return
        target = stage + (1 if kind == "forward" else -1)
        if kind == "weight" or target < 0:
            return
        key = ("forward" if kind == "forward" else "backward", target, micro_batch)
        home = self._homes[target, micro_batch]
        if home == self.place.stage:
            self._here[key] = result.detach()
        else:
            for number, peer in enumerate(self._peers[home]):
                if number % self.place.tensors == self.place.tensor:
                    self.messages.send(result, peer, self._tag(key), micro_batch)

    def _work(self, run: StageRun, operation: Operation, given: Any) -> Any:
        kind, _, micro_batch = operation
        if kind == "forward":
            targets = self._rows(self._tokens[1], micro_batch) if run.chunk.head else None
            return run.forward(micro_batch, given, targets)
        if kind == "weight":
            return run.weights(micro_batch)
        return run.backward(micro_batch, given, split=kind == "input")

    def _rows(self, tokens: Any, micro_batch: int) -> Any:
        size = self.place.micro_batch_size
        return tokens[micro_batch * size : (micro_batch + 1) * size]

    def _tag(self, key: Key) -> int:
        direction, stage, micro_batch = key
        return ((direction == "backward") * (self._last + 1) + stage) * self.place.micro_batches + micro_batch


def _needs(operation: Operation) -> Key | None:
    """Return the message that an operation takes, None for one that takes what the card has kept."""
    kind, stage, micro_batch = operation
    if kind == "weight":
        return None
    return "forward" if kind == "forward" else "backward", stage, micro_batch
