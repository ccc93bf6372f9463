"""One stage under torch.distributed.pipelining: the only place that leans on its stage and schedule classes.

Torch's own schedules decide the order of forwards, backwards and messages. The stage adds three things: each forward
and backward runs as an operation of the card's clock, its FLOPs are counted once, and the receives of a whole step
are posted ahead. What it relies on beyond torch's public names is ``forward_one_chunk``, ``backward_one_chunk``,
``args_recv_info`` and ``grad_recv_info`` of the stage; tests hold it to a single process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from zhenfa.live.flops import FlopMeter
from zhenfa.live.pace import Pacer
from zhenfa.live.placement import CardPlace
from zhenfa.live.transport import Messages

SCHEDULES: Final = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}


class CardStage(PipelineStage):  # type: ignore[misc]
    """A pipeline stage whose operations run on the card's clock. ``rate`` is FLOP/s, None on a real card."""

    def __init__(
        self, module: Any, place: CardPlace, shapes: tuple[Any, Any], *, group: Messages, pacer: Pacer, device: Any
    ) -> None:
        super().__init__(
            module, place.stage, place.stages, device, input_args=shapes[0], output_args=shapes[1], group=group
        )
        self.pacer, self.rate, self.meter = pacer, place.rate, FlopMeter()
        self.saved_bytes = 0

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run one forward as an operation."""
        work = super().forward_one_chunk
        if self.saved_bytes == 0:
            work = self._weighed(work)
        return self._operate("forward", fwd_chunk_id, lambda: work(fwd_chunk_id, *args, **kwargs))

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """Run one backward as an operation."""
        work = super().backward_one_chunk
        return self._operate("backward", bwd_chunk_id, lambda: work(bwd_chunk_id, *args, **kwargs))

    def expect_step(self) -> None:
        """Post the receives of a whole step, if the buffers are known (from the second step on)."""
        for table, source in ((self.args_recv_info, self.stage_index - 1), (self.grad_recv_info, self.stage_index + 1)):
            for micro_batch in sorted(table):
                for info in table[micro_batch]:
                    if not info.is_root_arg and info.buffer is not None:
                        self.group.expect(info.buffer, source)

    @property
    def buffer_bytes(self) -> int:
        """Return the bytes of the receive buffers."""
        return sum(int(buffer.nbytes) for buffer in self._buffers())

    def _buffers(self) -> list[Any]:
        tables = (self.args_recv_info, self.grad_recv_info)
        infos = [info for table in tables for row in table.values() for info in row]
        return [info.buffer for info in infos if info.buffer is not None]

    def _operate(self, kind: Any, micro_batch: int, work: Callable[[], Any]) -> Any:
        with self.pacer.operation(kind, micro_batch) as operation:
            result = self.meter.run(kind, work)
            if self.rate is not None:
                operation.seconds = self.meter.counted[kind] / self.rate
        return result

    def _weighed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Count the bytes that one forward keeps for its backward, each storage once.

        Parameters and receive buffers, which are kept anyway, are left out.
        """
        kept = [*self.submod.parameters(), *self._buffers()]
        own = {tensor.untyped_storage().data_ptr() for tensor in kept}

        def pack(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                own.add(storage.data_ptr())
                self.saved_bytes += storage.nbytes()
            return tensor

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return work(*args, **kwargs)

        return run


class Runner:
    """A stage with its schedule. ``loss`` takes logits and targets and is already divided by the step's tokens."""

    def __init__(self, stage: CardStage, place: CardPlace, schedule: str, loss: Callable[[Any, Any], Any]) -> None:
        self.stage, self.place = stage, place
        self._schedule = SCHEDULES[schedule](stage, place.micro_batches, loss_fn=loss, scale_grads=False)
        outputs = "return_outputs" in inspect.signature(self._schedule.step).parameters
        self._options: dict[str, Any] = {"return_outputs": False} if outputs else {}

    @property
    def in_flight(self) -> int:
        """Return how many micro-batches' activations the stage holds at most."""
        if isinstance(self._schedule, ScheduleGPipe):
            return self.place.micro_batches
        return min(self.place.micro_batches, self.place.stages - self.place.stage)

    def step(self, inputs: Any, targets: Any) -> float | None:
        """Run the forwards and backwards of one step; return the loss on the last stage, else None.

        ``inputs`` and ``targets``: tokens ``[sequences, length]``, used on the first and the last stage alone.
        """
        self.stage.expect_step()
        losses: list[Any] = []
        if self.place.is_last:
            self._options |= {"target": targets, "losses": losses}
        arguments = (inputs,) if self.place.is_first else ()
        self._schedule.step(*arguments, **self._options)
        self.stage.group.flush()
        return float(sum(float(loss.detach()) for loss in losses)) if self.place.is_last else None
