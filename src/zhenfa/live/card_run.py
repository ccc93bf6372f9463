"""A card at work on one plan: its stage of the model, its optimizer, and the steps that it takes."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.live import checkpoint, data
from zhenfa.live.board import Board
from zhenfa.live.decoder import StageModule, loss_of, part_of
from zhenfa.live.faults import Faults
from zhenfa.live.guard import Guard, gather, norm_of
from zhenfa.live.orders import Orders
from zhenfa.live.pace import Fidelity, Pacer
from zhenfa.live.pipeline import CardStage, Runner
from zhenfa.live.quiet import Watch
from zhenfa.live.replicas import GradientSum
from zhenfa.live.saving import Saver, answers_for, share_of
from zhenfa.live.transport import open_groups


class CardRun:
    """A card at work on one plan."""

    def __init__(self, rank: int, orders: Orders, provider: Any, device: Any) -> None:
        self.orders, self.place, self.provider, self.device = orders, orders.places[rank], provider, device
        self.board = Board(Path(orders.board), len(orders.places))
        self.board.write(rank, "start")
        place = self.place
        self.pacer = Pacer(rank, self.board, place.rate is not None, provider.synchronize)
        timeout = timedelta(seconds=orders.timeout_s)
        store = dist.TCPStore("127.0.0.1", orders.port, is_master=False, timeout=timeout)
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(orders.generation, store), rank=rank, world_size=len(orders.places),
            timeout=timeout,
        )  # fmt: skip
        links = orders.links
        messages = open_groups(orders.pipelines(), self.pacer, links.get(rank, {}), provider.to_host)
        self.sum = GradientSum(orders.places, self.pacer, links, timeout, tied=orders.sizes.tied)
        self.module = StageModule(
            orders.sizes, place.first, place.last, stem=place.is_first, head=place.is_last, seed=orders.seed,
            full_recompute=place.recompute == "full",
        ).to(device)  # fmt: skip
        self.parameters: dict[str, list[Any]] = {}
        for name, parameter in self.module.named_parameters():
            self.parameters.setdefault(part_of(name), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=orders.learning_rate, weight_decay=orders.weight_decay, fused=True
        )
        loss = partial(loss_of, global_tokens=orders.global_batch * orders.length)
        self.stage = CardStage(self.module, place, self._shapes(), group=messages, pacer=self.pacer, device=device)
        self.runner = Runner(self.stage, place, orders.schedule, loss)
        self.text = data.corpus(orders.data) if place.is_first or place.is_last else None
        self.sums: dict[str, list[float]] = {}
        self.watch = Watch.now()
        self.saver = Saver(rank)
        self.guard = Guard(len(orders.places))
        self.faults = Faults()
        self._taken = 0
        self._left_out = answers_for(orders.places, rank, tied=orders.sizes.tied)

    @property
    def parameter_count(self) -> int:
        """Return the parameters that the card holds."""
        return sum(parameter.numel() for row in self.parameters.values() for parameter in row)

    def step(self, number: int, at: float, *, use: bool = True, before: list[float] | None = None) -> dict[str, Any]:
        """Take training step ``number``, starting ``at`` (s, monotonic); return loss, end, and what was done when.

        ``use`` False leaves the parameters as they are; ``before`` are the norms of the last go at the same step. The
        gradients are used if all cards hold them to be sound: see :class:`~zhenfa.live.guard.Guard`.
        """
        self._taken += 1
        if self._taken == 2:  # the first step counted FLOPs and filled caches
            self.pacer.fidelity, self.watch = Fidelity(), Watch.now()
            self.sums.clear()
        inputs, targets = self._batch(number)
        self.pacer.begin(number, at)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.runner.step(inputs, targets)
        gradients = [one.grad for row in self.parameters.values() for one in row if one.grad is not None]
        self.faults.poison(gradients)
        norm = norm_of(gradients)
        self.sum.run(self.parameters)
        norms, latest = gather(norm, self.pacer.time(), self.guard.cards)
        self.pacer.meet(latest)
        verdict, bad = self.guard.judge(norms, before)
        used = use and verdict == "sound"
        if used:
            self._apply(norms)
        ended = time.monotonic()
        spans = list(self.pacer.spans)
        self.board.write(self.place.rank, "idle", step=number)
        for span in spans:
            self.sums.setdefault(span.kind, []).append(span.end - span.start)
        return {
            "loss": loss, "ended": ended, "spans": [(s.kind, s.micro_batch, s.start, s.end, s.peer) for s in spans],
            "used": used, "verdict": verdict, "bad": bad, "norms": norms, "saved": self.saver.tell(),
        }  # fmt: skip

    def _apply(self, norms: list[float]) -> None:
        with self.pacer.operation("optimizer") as operation:
            self.optimizer.step()
            operation.seconds = self._optimizer_seconds()
        self.guard.used(norms)

    def report(self) -> dict[str, Any]:
        """Return what the card counted and measured: FLOPs, bytes, fidelity, and mean seconds by kind."""
        used, capacity = self.provider.memory()
        return {
            "flops": dict(self.stage.meter.counted),
            "memory": self._memory(),
            "process_bytes": used,
            "device_bytes": capacity,
            "fidelity": asdict(self.pacer.fidelity),
            "waited": self.watch.share(Watch.now()),
            "means": {kind: sum(row) / len(row) for kind, row in self.sums.items()},
        }

    def load(self, path: Path) -> None:
        """Fill the stage and its optimizer from a checkpoint whose files the driver has checked."""
        self.board.write(self.place.rank, "load")
        checkpoint.load(path, self.module, self.optimizer, verified=True)
        self.board.write(self.place.rank, "idle")

    def save(self, path: Path, *, to_disk: bool) -> None:
        """Copy this card's share of a checkpoint and begin to write it into ``path``."""
        self.board.write(self.place.rank, "save")
        self.saver.begin(path, share_of(self.module, self.optimizer, self._left_out), to_disk=to_disk)
        self.board.write(self.place.rank, "idle")

    def close(self) -> None:
        """Leave the group of cards."""
        dist.destroy_process_group()
        self.saver.wait()
        self.board.close()

    def _batch(self, number: int) -> tuple[Any, Any]:
        if self.text is None:
            return None, None
        orders, place = self.orders, self.place
        inputs, targets = data.batch(
            self.text, seed=orders.seed, step=number, global_batch=orders.global_batch, length=orders.length,
            first=place.first_sequence, count=place.sequences,
        )  # fmt: skip
        return torch.from_numpy(inputs).to(self.device), torch.from_numpy(targets.copy()).to(self.device)

    def _shapes(self) -> tuple[Any, Any]:
        """Return examples of what the stage takes and gives: torch then need not infer them by running the model."""
        sizes, place = self.orders.sizes, self.place
        rows = (place.micro_batch_size, self.orders.length)
        features = torch.empty(*rows, sizes.hidden, device=self.device, requires_grad=True)
        tokens = torch.empty(rows, dtype=torch.int64, device=self.device)
        logits = torch.empty(*rows, sizes.vocabulary, device=self.device, requires_grad=True)
        return (tokens if place.is_first else features), (logits if place.is_last else features)

    def _optimizer_seconds(self) -> float | None:
        """Return bytes that AdamW reads and writes over the card's bandwidth; None on a real card.

        Parameters and both moments are read and written, gradients read.
        """
        if self.place.memory_rate is None:
            return None
        parts = self._memory()
        return (2 * parts["parameters"] + parts["gradients"] + 2 * parts["optimizer"]) / self.place.memory_rate

    def _memory(self) -> dict[str, int]:
        """Return the bytes of the tensors that the card holds at its peak, by kind."""
        own = list(self.module.parameters())
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return {
            "parameters": sum(parameter.nbytes for parameter in own),
            "gradients": sum(parameter.grad.nbytes for parameter in own if parameter.grad is not None),
            "optimizer": sum(value.nbytes for value in states if torch.is_tensor(value) and value.dim()),
            "activations": self.stage.saved_bytes * self.runner.in_flight,
            "buffers": self.stage.buffer_bytes,
        }
