"""A card at work on one plan: its stages of the model, its optimizer, and the steps that it takes."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from zhenfa.errors import ZhenfaError
from zhenfa.live import checkpoint, data
from zhenfa.live.board import Board
from zhenfa.live.bridge import Crossing, Tally, across
from zhenfa.live.collective import Opener
from zhenfa.live.copies import Copier, Copy
from zhenfa.live.crew import Crew, crew_of
from zhenfa.live.decoder import Decoder, loss_of
from zhenfa.live.exchange import group_of
from zhenfa.live.faults import Faults
from zhenfa.live.gradient_sum import GradientSum
from zhenfa.live.guard import Guard, gather, norm_of
from zhenfa.live.held import CUT_OFF, Held, answers_for, held_rows, held_whole, settings_of, take_rows, take_whole
from zhenfa.live.hops import standing
from zhenfa.live.marks import is_copy
from zhenfa.live.orders import Orders
from zhenfa.live.pace import Fidelity, Pacer
from zhenfa.live.pipeline import Runner
from zhenfa.live.quiet import Watch
from zhenfa.live.saving import Saver, load_parts, share_of, write_share
from zhenfa.live.shard_saving import load_rows
from zhenfa.live.shard_update import ShardedUpdate
from zhenfa.live.sharded import Sharded
from zhenfa.live.transport import Messages
from zhenfa.live.update import DTYPES, Update
from zhenfa.live.weights import load_weights


class CardRun:
    """A card at work on one plan."""

    def __init__(self, rank: int, orders: Orders, provider: Any, device: Any, board: Path) -> None:
        self.orders, self.place, self.provider, self.device = orders, orders.places[rank], provider, device
        self.board = Board(board, len(orders.places))
        self.board.write(rank, "start")
        place, sizes = self.place, orders.sizes
        self.pacer = Pacer(rank, self.board, place.rate is not None, provider.synchronize)
        timeout = timedelta(seconds=orders.timeout_s)
        store = dist.TCPStore(orders.address, orders.port, is_master=False, timeout=timeout)
        hook = sys.excepthook
        dist.init_process_group(
            "gloo", store=dist.PrefixStore(orders.generation, store), rank=rank, world_size=len(orders.places),
            timeout=timeout,
        )  # fmt: skip
        sys.excepthook = hook  # torch wraps it once more for each group that comes together
        self.opener = Opener(orders.places, rank, timeout)
        self.crew = crew_of(self.opener, orders.links)
        self.group = group_of(orders.places, rank, orders.links, timeout)
        self.module = self._decoder(self.crew)
        self._fill()
        self._elements: int = sum(parameter.numel() for parameter in self.module.parameters())
        self.tally = Tally()
        self.sum: GradientSum | Sharded
        self.update: Update | ShardedUpdate
        self.sum, self.update = self._sharded() if orders.zero > 1 else self._plain()
        self.optimizer = self.update.optimizer
        loss = partial(loss_of, global_tokens=orders.global_batch * orders.length, crew=self.crew)
        rows = (place.micro_batch_size, orders.length, sizes.hidden)
        self.runner = Runner(
            self.update.narrow, place, orders.schedule, standing(orders.places, place.pipeline),
            messages=Messages(self.pacer, orders.links.get(rank, {}), provider.to_host, self._crossing()),
            pacer=self.pacer, loss=loss, features=torch.empty(rows, dtype=DTYPES[place.precision], device=device),
            told=self.sum if orders.overlap and isinstance(self.sum, GradientSum) else None,
        )  # fmt: skip
        self.text = data.corpus(orders.data, sizes.vocabulary) if place.is_first or place.is_last else None
        self.sums: dict[tuple[str, int], list[float]] = {}
        self.watch = Watch.now()
        self.saver, self.copier = Saver(), Copier(rank, len(orders.places))
        self.guard = Guard(len(orders.places), orders.usual_norm)
        self.faults = Faults()
        self._taken = 0
        self._left_out = answers_for(orders.places, rank, orders.sizes)

    @property
    def parameter_count(self) -> int:
        """Return the parameters that the card holds."""
        return self._elements

    def _plain(self) -> tuple[GradientSum, Update]:
        """Return the sums and the update of weights that this card holds whole."""
        orders, place = self.orders, self.place
        self.module = self.module.to(self.device)
        sums = GradientSum(
            self.opener, self.pacer, orders.links, sizes=orders.sizes, weights=dict(self.module.named_parameters()),
            crew=self.crew, zero=orders.zero, kind=orders.gradients, overlap=orders.overlap, tally=self.tally,
        )  # fmt: skip
        return sums, Update(self.module, orders.recipe, place.precision, sums.updates)

    def _sharded(self) -> tuple[Sharded, ShardedUpdate]:
        """Return the sums and the update of weights that this card shares out."""
        orders = self.orders
        sums = Sharded(
            self.opener, self.pacer, orders.links, module=self.module, zero=orders.zero,
            reshard=orders.reshard or "layer", every=orders.reduce_every != "step", overlap=orders.overlap,
            schedule=orders.schedule, dtype=DTYPES[self.place.precision], device=self.device, tally=self.tally,
        )  # fmt: skip
        return sums, ShardedUpdate(sums, orders.recipe)

    def step(
        self, number: int, at: float, *, before: Sequence[Sequence[float]] = (), twice: bool = False
    ) -> dict[str, Any]:
        """Take training step ``number``, starting ``at`` (s, the driver's clock); return loss, end, and what was done.

        ``before`` are the norms of the goes at the same step before this one; with ``twice`` gradients are used only if
        they came out so before. They are used if all cards hold them to be sound: see
        :class:`~zhenfa.live.guard.Guard`. Where the recipe asks for them, the answer has the norm of the gradients of
        the whole model before they were clipped, and, on cards with the last stage, the loss on held-out text after
        the step.
        """
        self._taken += 1
        if self._taken == 2:  # the first step counted FLOPs and filled caches
            self.pacer.fidelity, self.watch = Fidelity(), Watch.now()
            self.sums.clear()
            self.tally.reset()
        update = self.update
        inputs, targets = self._batch(number)
        self.pacer.begin(number, at)
        update.begin()
        self.sum.begin(early=not self.faults.pending)
        loss = self._passes(inputs, targets)
        norm = self._own_norm()
        self.sum.finish()
        norms, latest = gather(norm, self.pacer.time(), self.guard.cards)
        self.pacer.meet(latest)
        verdict, bad = self.guard.judge(norms, before, twice=twice)
        used = verdict == "sound"
        self.tally.steps += 1
        whole = self._apply(number, norms) if used else None
        ended = self.pacer.clock()
        spans = list(self.pacer.spans)
        for span in spans:
            self.sums.setdefault((span.kind, span.stage), []).append(span.end - span.start)
        evaluation = self.evaluate() if used and self.orders.recipe.evaluates(number) else None
        self.board.write(self.place.rank, "idle", step=number)
        return {
            "loss": loss, "ended": ended, "gradient_norm": whole, "evaluation": evaluation,
            "spans": [(s.kind, s.micro_batch, s.start, s.end, s.peer, s.stage) for s in spans],
            "used": used, "verdict": verdict, "bad": bad, "norms": norms, "saved": self.saver.tell(),
        }  # fmt: skip

    def _passes(self, inputs: Any, targets: Any) -> float | None:
        """Run the forwards and backwards of a step, and poison the gradients if they are to be; return the loss."""
        if isinstance(self.sum, Sharded):
            self.sum.gradients.spoil = self.faults.taken()
        return self.runner.step(inputs, targets)

    def _own_norm(self) -> float:
        """Return the norm of this card's gradients before they are summed: where each micro-batch's leave the card at
        once, the root of their squares."""
        if isinstance(self.sum, Sharded):
            return math.sqrt(self.sum.gradients.squares)
        gradients = [one.grad for one in self.module.parameters() if one.grad is not None]
        self.faults.poison(gradients)
        return norm_of(gradients)

    def _apply(self, number: int, norms: list[float]) -> float | None:
        """Use the gradients; return the norm that they had before they were clipped, if they are to be."""
        whole = None
        if self.orders.recipe.clip_gradient_norm is not None:
            whole = math.sqrt(self.sum.total(self.update.squares(self.sum.counts)))
            self.update.clip(whole)
        with self.pacer.operation("optimizer") as operation:
            self.update.step(number)
            if self.place.memory_rate is not None:
                operation.seconds = self.update.bytes_moved() / self.place.memory_rate
        self.sum.spread()
        if isinstance(self.sum, GradientSum):
            self.sum.keep()
        self.guard.used(norms)
        return whole

    def evaluate(self) -> float | None:
        """Return the mean loss on held-out text (this card's part of it); None on cards without the last stage."""
        self.update.refresh()
        count = self.orders.recipe.evaluate_batches
        losses = [self._evaluated(index) for index in range(count)]
        kept = [loss for loss in losses if loss is not None]
        return sum(kept) / len(kept) if kept else None

    def _evaluated(self, index: int) -> float | None:
        """Return the loss on one batch of held-out text."""
        batch = self._batch(index, held_out=True)
        if isinstance(self.sum, Sharded):
            self.sum.begin_evaluation()
        loss: float | None = self.runner.evaluate(*batch)
        if isinstance(self.sum, Sharded):
            self.sum.end()
        return loss

    def report(self) -> dict[str, Any]:
        """Return what the card counted and measured: FLOPs of a step, bytes, fidelity, and mean seconds.

        ``stages`` has for each stage its mean seconds by kind of operation.
        """
        used, capacity = self.provider.memory()
        means = {key: sum(row) / len(row) for key, row in self.sums.items()}
        return {
            "flops": self.runner.flops(),
            "memory": self._memory(),
            "process_bytes": used,
            "device_bytes": capacity,
            "fidelity": asdict(self.pacer.fidelity),
            "waited": self.watch.share(Watch.now()),
            "bridge": self.tally.step(),
            "notes": list(self.opener.notes),
            "routing": self.update.narrow.routed.told(),
            "means": {kind: seconds for (kind, stage), seconds in means.items() if stage < 0},
            "stages": [
                {kind: seconds for (kind, stage), seconds in means.items() if stage == chunk.stage}
                for chunk in self.place.chunks
            ],
        }

    def load(self, path: Path) -> None:
        """Fill the stage and its optimizer from a checkpoint or a copy whose files the driver has checked."""
        self.board.write(self.place.rank, "load")
        if is_copy(path):
            self._take_up(Copy(path))
        elif isinstance(self.sum, Sharded):
            load_rows(path, self.sum.rows, self.optimizer)
        elif self.crew.size > 1:
            whole = self._decoder(Crew())
            load_parts(path, self.module, self.optimizer, whole)
        else:
            checkpoint.load(path, self.module, self.optimizer, verified=True)
        if isinstance(self.sum, GradientSum) and not is_copy(path):
            self.sum.take_up(lambda wanted: checkpoint.load_tensors(path, CUT_OFF, wanted))
        self.board.write(self.place.rank, "idle")

    def _take_up(self, copy: Copy) -> None:
        if isinstance(self.sum, Sharded):
            take_rows(copy, self.sum.rows, self.optimizer)
            return
        take_whole(copy, self.module, self.optimizer)
        self.sum.take_up(lambda wanted: copy.tensors(CUT_OFF, wanted))

    def _held(self) -> list[Held]:
        """Return what of the state this card answers for."""
        if isinstance(self.sum, Sharded):
            return list(held_rows(self.sum.rows, self.optimizer))
        return [*held_whole(self.module, self.optimizer, self._left_out, self.sum.alone), *self.sum.kept()]

    def save(self, path: Path) -> None:
        """Copy this card's share of a checkpoint and begin to write it into ``path``, onto the disk."""
        self.board.write(self.place.rank, "save")
        state, pieces = share_of(self._held(), settings_of(self.optimizer))
        self.saver.begin(str(path), lambda: {"files": write_share(path, self.place.rank, state, pieces=pieces)})
        self.board.write(self.place.rank, "idle")

    def copy(self, path: Path, step: int, key: str, *, mapped: bool) -> None:
        """Copy this card's share of the state after a step into ``path``; what goes wrong is told under ``key``."""
        self.board.write(self.place.rank, "save")
        self.saver.wait()
        try:
            left = self.copier.copy(
                path, step, self._held(), settings_of(self.optimizer), mapped=mapped,
                synchronize=self.provider.synchronize,
            )  # fmt: skip
        except (OSError, ZhenfaError) as problem:
            self.saver.fail(key, problem)
        else:
            self.saver.begin(key, left)
        self.board.write(self.place.rank, "idle")

    def let_go(self) -> None:
        """End what works beside the card and what watches its weights; other cards need not take part."""
        self.sum.close()
        self.runner.close()

    def close(self) -> None:
        """Leave the group of cards."""
        self.let_go()
        dist.destroy_process_group()
        self.saver.wait()
        self.board.close()

    def _crossing(self) -> Crossing:
        orders, place = self.orders, self.place
        return Crossing(across(orders.places, place.rank), orders.activations, place.memory_rate, self.tally)

    def _fill(self) -> None:
        """Take the weights of a directory, if the run begins from one."""
        if self.orders.weights is None:
            return
        if self.orders.sizes.source is None:
            load_weights(self.module, Path(self.orders.weights))
        else:
            from zhenfa.live.foreign.fill import load_directory

            load_directory(self.module, Path(self.orders.weights))

    def _decoder(self, crew: Crew) -> Any:
        place, source = self.place, self.orders.sizes.source
        if source is not None:
            from zhenfa.live.foreign.fill import stage_of

            return stage_of(
                self.orders.sizes, source, place.layers, first=place.is_first, last=place.is_last,
                seed=self.orders.seed,
            )  # fmt: skip
        decoder = Decoder(
            self.orders.sizes, place.layers, stem=place.is_first, head=place.is_last, seed=self.orders.seed, crew=crew,
            group=self.group,
        )  # fmt: skip
        decoder.balance = self.orders.recipe.auxiliary_loss_coefficient / self.orders.global_batch
        return decoder

    def _batch(self, number: int, *, held_out: bool = False) -> tuple[Any, Any]:
        if self.text is None:
            return None, None
        orders, place = self.orders, self.place
        inputs, targets = data.batch(
            self.text, seed=orders.seed, step=number, global_batch=orders.global_batch, length=orders.length,
            which=place.sequences, share=orders.recipe.held_out, held_out=held_out,
            vocabulary=orders.sizes.vocabulary,
        )  # fmt: skip
        return torch.from_numpy(inputs).to(self.device), torch.from_numpy(targets.copy()).to(self.device)

    def _memory(self) -> dict[str, int]:
        """Return the bytes of the tensors that the card holds at its peak, by kind."""
        kept = {"activations": self.runner.kept_bytes, "buffers": self.runner.buffer_bytes}
        cut_off = self.sum.kept_bytes() if isinstance(self.sum, GradientSum) else 0
        return self.update.memory() | kept | ({"cut off": cut_off} if cut_off else {})
