"""The stages that a card holds, run in the order that the plan's schedule gives.

The order is the one that the planner's laws are about (:mod:`zhenfa.live.operations`), so that what was predicted is
what runs: each operation waits for its message, runs on the card's clock and sends its result on. FLOPs and kept bytes
of a stage are counted in its first micro-batch; the receives of a whole step are posted ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from zhenfa.laws.orders import Operation
from zhenfa.live.decoder import Decoder
from zhenfa.live.flops import FlopCount, FlopMeter
from zhenfa.live.hops import received, sent
from zhenfa.live.linear import Delayed
from zhenfa.live.operations import homes, operations
from zhenfa.live.pace import Pacer
from zhenfa.live.placement import CardPlace, Chunk
from zhenfa.live.readiness import Readiness, Told
from zhenfa.live.transport import Messages, Received

EMPTY: Final = " of nothing"
"""How an operation on a micro-batch without sequences is told apart."""

Loss = Callable[[Any, Any], Any]
"""Takes logits and targets of a micro-batch; its result is already divided by the tokens of the step."""


@dataclass
class StageRun:
    """One stage on this card, and what its forwards keep until their backwards."""

    module: Decoder
    chunk: Chunk
    loss: Loss
    meter: FlopMeter = field(init=False)
    saved_bytes: int = 0
    weighed: set[int] = field(default_factory=set)
    recomputed: list[FlopCount] = field(default_factory=list)
    kept: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    late: dict[int, list[Delayed]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Count what the experts of the module do apart."""
        self.meter = FlopMeter(lambda: self.module.routed.flops)

    def forward(self, micro_batch: int, given: Any, targets: Any) -> Any:
        """Return the features for the next stage, or the micro-batch's loss on the last."""
        keeps = torch.is_grad_enabled()
        if keeps and given.is_floating_point():
            given = given.detach().requires_grad_()
        self.module.routed.counting = keeps
        output = self._weighed(micro_batch, given) if keeps else self.module.run(given, self.chunk)
        self.module.routed.counting = False
        result = self.loss(output, targets) if self.chunk.head else output
        if keeps:
            self.kept[micro_batch] = (given, result)
        return result

    def backward(self, micro_batch: int, gradient: Any, *, split: bool = False) -> Any:
        """Add to the gradients of weights, or keep that for later (``split``); return the input's, if it has one."""
        given, result = self.kept.pop(micro_batch)
        self.module.delayed = [] if split else None
        torch.autograd.backward(result, gradient)
        if self.module.sharded is not None:
            self.module.sharded.after_backward(self.chunk.stage)
        if self.module.delayed is not None:
            self.late[micro_batch], self.module.delayed = self.module.delayed, None
        return given.grad if given.is_floating_point() else None

    @property
    def again(self) -> float:
        """Return the FLOPs of one micro-batch that are computed a second time."""
        return float(sum(count.total for count in self.recomputed))

    def weights(self, micro_batch: int, watch: Readiness | None = None) -> None:
        """Add the gradients of weights that were kept for later."""
        late = self.late.pop(micro_batch)
        if self.module.sharded is not None:
            self.module.sharded.add_later(self.chunk.stage, late)
            return
        for one in late if watch is None else watch.later(late):
            one.add()

    def _weighed(self, micro_batch: int, given: Any) -> Any:
        """Run a forward and count the bytes that it keeps for its backward, each storage once: of the first
        micro-batch, and where cards share experts out the most of any in the first step.

        Parameters and what was received, which are kept anyway, are left out.
        """
        known = self.weighed if self.module.group.size == 1 else micro_batch in self.weighed
        if known or not len(given):
            return self.module.run(given, self.chunk)
        first = not self.weighed
        self.weighed.add(micro_batch)
        held, own = 0, {tensor.untyped_storage()._cdata for tensor in (*self.module.parameters(), given)}

        def pack(tensor: Any) -> Any:
            nonlocal held
            storage = tensor.untyped_storage()
            if storage._cdata not in own:  # not by its address: weights that are gathered later have none yet
                own.add(storage._cdata)
                held += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = self.module.run(given, self.chunk, count=self._counter if first else None)
        self.saved_bytes = max(self.saved_bytes, held)
        return output

    def _counter(self) -> FlopCount:
        self.recomputed.append(FlopCount())
        return self.recomputed[-1]


Key = tuple[str, int, int]
"""A message: ``forward`` (features) or ``backward`` (their gradient), the stage that takes it, and the micro-batch."""


class Runner:
    """A card's stages with their schedule. ``crews`` are the ranks at the pipeline's places
    (:func:`~zhenfa.live.hops.standing`), ``features`` is an example of what this card gets from a neighbour for one
    micro-batch; ``told`` hears which gradients of a step are whole (None:
    nobody)."""

    def __init__(
        self, module: Decoder, place: CardPlace, schedule: str, crews: Sequence[Sequence[Sequence[int]]], *,
        messages: Messages,
        pacer: Pacer, loss: Loss, features: Any, told: Told | None = None,
    ) -> None:  # fmt: skip
        rows = operations(schedule, place.stages, place.virtual_stages, place.rounds)
        self.order, self._homes = rows[place.stage], homes(rows)
        self._sent = [sent(place, groups) for groups in crews]
        self._received = [received(place, groups) for groups in crews]
        self.place, self.messages, self.pacer = place, messages, pacer
        self._module, self._nothing = module, features[:0]
        self._spent: dict[str, float] = {}
        self.stages = {chunk.stage: StageRun(module, chunk, loss) for chunk in place.chunks}
        self._last = max(stage for stage, _ in self._homes)
        module.splits = any(kind == "weight" for kind, _, _ in self._all())
        alone = module.group.size == 1  # then micro-batches of nothing are not run
        done = [one for one in self._all() if not (alone and self._is_empty(one[2]))]
        self._watch = None if told is None else Readiness(module, place.chunks, done, told)
        self._buffers: dict[Key, Any] = {}
        for key, sender in self._arriving():
            if sender != place.stage:
                self._buffers[key] = torch.empty_like(features)
        self._coming: dict[Key, list[Received]] = {}
        self._here: dict[Key, Any] = {}
        self._tokens: tuple[Any, Any] = (None, None)
        self._losses: list[Any] = []

    def close(self) -> None:
        """Let go of the module."""
        if self._watch is not None:
            self._watch.close()

    def step(self, inputs: Any, targets: Any) -> float | None:
        """Run the forwards and backwards of one step; return the loss on cards with the last stage, else None.

        ``inputs`` and ``targets``: tokens ``[sequences, length]``, used on the first and the last stage alone.
        """
        self._module.routed.chosen.clear()
        self._module.routed.loads.clear()
        for run in self.stages.values():
            run.meter.spent.clear()
        loss = self._run(self.order, inputs, targets)
        self._spent = {}
        for run in self.stages.values():
            for kind, flops in run.meter.spent.items():
                self._spent[kind.removesuffix(EMPTY)] = self._spent.get(kind.removesuffix(EMPTY), 0.0) + flops
        return loss

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
        for kind, stage, micro_batch in self._all():
            if self._is_empty(micro_batch):
                continue
            held += {"forward": 1, "input": 0}.get(kind, -1) * self.stages[stage].saved_bytes
            most = max(most, held)
        return most

    def flops(self) -> dict[str, float]:
        """Return the FLOPs of the last step as counted, by kind of operation; ``again``: those that recompute."""
        forwards = (stage for kind, stage, micro in self._all() if kind == "forward" and not self._is_empty(micro))
        return self._spent | {"again": sum(self.stages[stage].again for stage in forwards)}

    def _all(self) -> Iterator[Operation]:
        return (operation for moment in self.order for operation in moment)

    def _arriving(self) -> Iterator[tuple[Key, int]]:
        """Yield the messages that this card's operations wait for, in their order, with the place that sends each."""
        for operation in self._all():
            key = _needs(operation)
            neighbour = operation[1] + (-1 if operation[0] == "forward" else 1)
            if key is not None and 0 <= neighbour <= self._last and not self._is_empty(operation[2]):
                yield key, self._homes[neighbour, operation[2]]

    def _run(self, order: Sequence[Sequence[Operation]], inputs: Any, targets: Any) -> float | None:
        self._tokens, self._losses = (inputs, targets), []
        needed = {_needs(operation) for moment in order for operation in moment}
        for key, sender in self._arriving():
            if key in self._buffers and key in needed:
                buffer, tag = self._buffers[key], self._tag(key)
                self._coming[key] = [
                    self.messages.expect(buffer[rows.first : rows.last], rows.rank, tag, key[2])
                    for rows in self._received[sender]
                ]
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
            for part in self._coming.pop(key):
                part.wait()
            return self._buffers[key]
        if key in self._here:
            return self._here.pop(key)
        if operation[0] == "forward" and operation[1] == 0:
            return self._rows(self._tokens[0], key[2])
        return self._nothing if operation[0] == "forward" or operation[1] < self._last else None

    def _is_empty(self, micro_batch: int) -> bool:
        """Return whether a micro-batch has no sequences: it is run because replicas share experts, which have it."""
        return micro_batch >= self.place.micro_batches

    def _operate(self, operation: Operation, given: Any) -> None:
        """Run one operation on the card's clock, and hand its result on."""
        kind, stage, micro_batch = operation
        empty = self._is_empty(micro_batch)
        if empty and self._module.group.size == 1:
            return
        result = self._computed(operation, given)
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
        elif not empty:
            for rows in self._sent[home]:
                part = result[rows.first : rows.last]
                self.messages.send(part, rows.rank, self._tag(key), micro_batch, rows.beside)

    def _computed(self, operation: Operation, given: Any) -> Any:
        """Return the result of an operation when it has ended on the card's clock."""
        kind, stage, micro_batch = operation
        run, result, ended = self.stages[stage], None, None
        with self.pacer.operation(kind, micro_batch, stage) as running:  # type: ignore[arg-type]
            self._set_clock(run, running.start)
            watched = nullcontext() if self._watch is None else self._watch.during(operation, run.meter)
            with watched as ended:
                name = kind + EMPTY * self._is_empty(micro_batch)
                result = run.meter.run(name, lambda: self._work(run, operation, given))
            if self.place.rate is not None:
                crew, group = run.module.crew, run.module.group
                shared = 0.0 if run.module.sharded is None else run.module.sharded.waits.taken()
                running.seconds = run.meter.last / self.place.rate + crew.taken() + group.taken() + shared
        if ended is not None:
            ended(self.pacer.spans[-1].start, self.pacer.spans[-1].end)
        return result

    def _set_clock(self, run: StageRun, start: float) -> None:
        """Let an emulated card tell, inside an operation, what time it is there: others wait for its experts, and it
        for weights."""
        rate, crew, group, sharded = self.place.rate, run.module.crew, run.module.group, run.module.sharded
        if rate is None or (group.size == 1 and sharded is None):
            return
        group.slower = slower = self.pacer.slower

        def clock() -> float:
            waited = crew.seconds + group.seconds + (0.0 if sharded is None else sharded.waits.seconds)
            return start + slower * (run.meter.so_far() / rate + waited)

        group.clock = clock
        if sharded is not None:
            sharded.waits.clock = clock

    def _work(self, run: StageRun, operation: Operation, given: Any) -> Any:
        kind, _, micro_batch = operation
        if kind == "forward":
            targets = self._rows(self._tokens[1], micro_batch) if run.chunk.head else None
            return run.forward(micro_batch, given, targets)
        if kind == "weight":
            return run.weights(micro_batch, self._watch)
        return run.backward(micro_batch, given, split=kind == "input")

    def _rows(self, tokens: Any, micro_batch: int) -> Any:
        size = self.place.micro_batch_size
        return tokens[micro_batch * size : (micro_batch + 1) * size]

    def _tag(self, key: Key) -> int:
        direction, stage, micro_batch = key
        return ((direction == "backward") * (self._last + 1) + stage) * self.place.rounds + micro_batch


def _needs(operation: Operation) -> Key | None:
    """Return the message that an operation takes, None for one that takes what the card has kept."""
    kind, stage, micro_batch = operation
    if kind == "weight":
        return None
    return "forward" if kind == "forward" else "backward", stage, micro_batch
