"""The process of one card: it builds its stage, takes steps when told to, and reports what it did."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
import traceback
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.errors import ZhenfaError
from zhenfa.live import data, linux, wire
from zhenfa.live.board import Board
from zhenfa.live.checkpoint import save_parts
from zhenfa.live.decoder import StageModule, loss_of, part_of
from zhenfa.live.orders import Orders
from zhenfa.live.pace import Fidelity, Pacer
from zhenfa.live.pipeline import CardStage, Runner
from zhenfa.live.providers import PROVIDERS
from zhenfa.live.quiet import Watch
from zhenfa.live.replicas import GradientSum
from zhenfa.live.transport import open_groups


class CardWorker:
    """One card. Methods take and return plain data, so that any engine can carry them."""

    def __init__(self) -> None:
        self._run: _Run | None = None
        self._device: Any = None
        self._bench: Any = None

    def hello(self) -> dict[str, Any]:
        """Return who answers."""
        return {"pid": os.getpid(), "torch": torch.__version__}

    def open(self, rank: int, orders: dict[str, Any]) -> dict[str, Any]:
        """Join the other cards and build this card's stage of the model."""
        self.close()
        read = Orders.from_data(orders)
        provider = PROVIDERS[read.places[rank].provider]
        if self._device is None:
            self._device = provider.open()
        torch.set_num_threads(read.threads)
        linux.sharp_timers()
        self._run = _Run(rank, read, provider, self._device)
        return {"parameters": self._run.parameter_count, "device": str(self._device)}

    def step(self, number: int, at: float) -> dict[str, Any]:
        """Take training step ``number``, starting ``at`` (s, monotonic clock of the host)."""
        return self._opened().step(number, at)

    def report(self) -> dict[str, Any]:
        """Return what the card counted and measured since it was opened."""
        return self._opened().report()

    def save(self, path: str) -> None:
        """Write this card's parts of the checkpoint, together with the other cards."""
        self._opened().save(Path(path))

    def measure(
        self, rank: int, provider: str, tasks: list[dict[str, Any]], trials: list[dict[str, Any]], seconds: float,
        threads: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Time the tasks and trials of a calibration, or go on with them; ``rank`` names the card to the driver."""
        from zhenfa.live.calibrate.worker import Bench

        del rank
        if self._device is None:
            self._device = PROVIDERS[provider].open()
        torch.set_num_threads(threads)
        linux.sharp_timers()
        if self._bench is None:
            self._bench = Bench(tasks, trials, self._device)
        found: dict[str, Any] = self._bench.run(seconds)
        return found

    def measure_wires(self, **orders: Any) -> dict[str, Any]:
        """Time messages and sums between the cards, as :func:`zhenfa.live.calibrate.worker.measure_wires` says."""
        from zhenfa.live.calibrate.worker import measure_wires

        return measure_wires(**orders)

    def close(self) -> None:
        """Leave the group and free the model."""
        if self._run is not None:
            self._run.close()
            self._run = None
            gc.collect()

    def _opened(self) -> _Run:
        if self._run is None:
            raise RuntimeError("the card has not been opened")
        return self._run


class _Run:
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

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for row in self.parameters.values() for parameter in row)

    def step(self, number: int, at: float) -> dict[str, Any]:
        if number == 2:  # the first step counted FLOPs and filled caches
            self.pacer.fidelity, self.watch = Fidelity(), Watch.now()
            self.sums.clear()
        inputs, targets = self._batch(number)
        self.pacer.begin(number, at)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.runner.step(inputs, targets)
        self.sum.run(self.parameters)
        with self.pacer.operation("optimizer") as operation:
            self.optimizer.step()
            operation.seconds = self._optimizer_seconds()
        ended = time.monotonic()
        spans = list(self.pacer.spans)
        self.board.write(self.place.rank, "idle", step=number)
        for span in spans:
            self.sums.setdefault(span.kind, []).append(span.end - span.start)
        return {"loss": loss, "ended": ended, "spans": [(s.kind, s.micro_batch, s.start, s.end, s.peer) for s in spans]}

    def report(self) -> dict[str, Any]:
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

    def save(self, path: Path) -> None:
        self.board.write(self.place.rank, "save")
        save_parts(path, self.module, self.optimizer)
        self.board.write(self.place.rank, "idle")

    def close(self) -> None:
        dist.destroy_process_group()
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


def serve(channel: socket.socket) -> None:
    """Obey the driver until it closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = CardWorker()
    reader = wire.Reader(channel)
    while reader.open:
        for message in reader.read(wait=True):
            wire.send(channel, obey(worker, message))


def obey(worker: CardWorker, message: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one order: ``{"value": ...}``, or ``{"error": ..., "trace": ...}``."""
    try:
        return {"id": message["id"], "value": getattr(worker, message["method"])(**message["arguments"])}
    except ZhenfaError as problem:
        return {"id": message["id"], "error": problem.message, "hint": problem.hint, "trace": traceback.format_exc()}
    except Exception as problem:
        words = str(problem).strip().splitlines() or [type(problem).__name__]
        return {"id": message["id"], "error": words[0], "kind": type(problem).__name__, "trace": traceback.format_exc()}
