"""The part of a module that one card holds, run by the module's own forward.

Blocks of other cards are passed over. A stage that does not begin the module runs what is before the blocks on weights
that stand in (zeros without memory), for what blocks are told besides their features: positions and masks. The features
that it received take the place of what came out. A stage that does not end the module leaves its forward after its
last block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zhenfa.live.crew import Crew
from zhenfa.live.exchange import ExpertGroup
from zhenfa.live.flops import FlopCount
from zhenfa.live.foreign.build import CALL
from zhenfa.live.foreign.source import Source
from zhenfa.live.linear import Delayed, Routed
from zhenfa.live.placement import Chunk
from zhenfa.live.sizes import Sizes


class _LeftError(BaseException):
    """The forward was left: what comes after is another card's."""


class _UnderWay:
    """A forward under way: its stage, the features that it received (None: it has the stem), and what it gives."""

    def __init__(self, chunk: Chunk, received: Any, count: Callable[[], Any] | None) -> None:
        self.chunk, self.received, self.count = chunk, received, count
        self.keeps, self.features = torch.is_grad_enabled(), None

    def entered(self, features: Any) -> Any:
        """Return the features of the first block of the stage, and go on in earnest."""
        FlopCount.paused = False
        torch.set_grad_enabled(self.keeps)
        return features if self.received is None else self.received

    def leave(self, features: Any) -> None:
        """Leave the forward with these features."""
        self.features = features
        raise _LeftError


class Turn:
    """Runs in the place of a block's forward: the block itself, or nothing where it belongs to another stage."""

    def __init__(self, stage: ForeignStage, index: int, block: nn.Module) -> None:
        self.stage, self.index, self.block = stage, index, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take and give what the block does."""
        run: _UnderWay = self.stage.under_way
        chunk, source, index = run.chunk, self.stage.source, self.index
        where = source.argument
        features = args[where] if isinstance(where, int) else kwargs[where]
        last = index == len(source.block_counts) - 1
        if index == min(chunk.first, len(source.block_counts) - 1):
            features = run.entered(features)
        if index == chunk.last:
            run.leave(features.clone() if chunk.first == chunk.last else features)
        if not chunk.first <= index < chunk.last:
            return _as_result(features, source.result)
        result = self._computed(run, features, args, kwargs)
        if last and not chunk.head:
            run.leave(result if source.result is None else result[source.result[0]])
        return result

    def _computed(self, run: _UnderWay, features: Any, args: Any, kwargs: Any) -> Any:
        where = self.stage.source.argument

        def block(given: Any) -> Any:
            if isinstance(where, int):
                return type(self.block).forward(self.block, *args[:where], given, *args[where + 1 :], **kwargs)
            return type(self.block).forward(self.block, *args, **kwargs | {where: given})

        if self.index >= run.chunk.first + run.chunk.recomputed or not run.keeps:
            return block(features)
        count = run.count
        contexts = {} if count is None else {"context_fn": lambda: (nullcontext(), count())}
        return checkpoint(block, features, use_reentrant=False, **contexts)


class ForeignStage(nn.Module):  # type: ignore[misc]
    """The layers of a module that one card holds, with what is before and after where it holds that; its weights have
    the module's own names. For the rest as :class:`~zhenfa.live.decoder.Decoder`, without crews, groups or backward
    passes in two halves."""

    def __init__(self, inner: nn.Module, sizes: Sizes, source: Source, parts: Iterable[str]) -> None:
        super().__init__()
        self.__dict__ |= {
            "inner": inner, "_modules": inner._modules, "_parameters": inner._parameters, "_buffers": inner._buffers,
            "sizes": sizes, "source": source, "crew": Crew(), "group": ExpertGroup(), "routed": Routed(),
            "balance": 0.0, "splits": False, "delayed": None, "collect": None, "under_way": None, "stand_ins": None,
            "sharded": None,
        }  # fmt: skip
        self.delayed: list[Delayed] | None
        self.sharded: None
        self._absent: list[tuple[nn.Module, str, Any]] = _cut(inner, source, frozenset(parts))
        for index, block in enumerate(inner.get_submodule(source.blocks)):
            block.__dict__["forward"] = Turn(self, index, block)

    def run(self, batch: Any, chunk: Chunk, count: Callable[[], Any] | None = None) -> Any:
        """Take tokens ``[batch, sequence]`` (stem) or features; return features or logits (head).

        The first ``chunk.recomputed`` layers keep only their input and compute the rest again in the backward pass,
        inside a context that ``count`` returns, one for each.
        """
        run = self.__dict__["under_way"] = _UnderWay(chunk, None if chunk.stem else batch, count)
        tokens = batch
        if not chunk.stem:
            self._stand_in(batch)
            tokens = torch.zeros(batch.shape[:2], dtype=torch.long, device=batch.device)
            FlopCount.paused = True
            torch.set_grad_enabled(False)
        try:
            result = self.inner(tokens, **CALL[self.source.kind])
            return getattr(result, "logits", result)
        except _LeftError:
            return run.features
        finally:
            self.__dict__["under_way"], FlopCount.paused = None, False
            torch.set_grad_enabled(run.keeps)

    def forward(self, batch: Any) -> Any:
        """Take tokens ``[batch, sequence]``; return logits, where the whole module is here."""
        return self.run(batch, Chunk(0, 0, len(self.source.block_counts), stem=True, head=True, recomputed=0))

    def narrowed(self, dtype: Any) -> ForeignStage:
        """Return a copy whose weights are of another type; buffers of a Hugging Face model stay as they are (its angles
        are computed in 32 bits), those of other modules go with the weights, as torch's own ``Module.to`` has it."""
        found = copy.deepcopy(self)
        found.__dict__["stand_ins"] = None
        if self.source.kind == "transformers":
            for weight in found.parameters():
                weight.data = weight.data.to(dtype)
        else:
            found.to(dtype)
        return found

    def _stand_in(self, features: Any) -> None:
        """Let zeros that take no memory stand in for the weights before the blocks that are not here."""
        wanted = (features.device, features.dtype)
        if self.__dict__["stand_ins"] != wanted:
            for owner, name, shape in self._absent:
                owner.__dict__[name] = torch.zeros((), dtype=features.dtype, device=features.device).expand(shape)
            self.__dict__["stand_ins"] = wanted


def _as_result(features: Any, result: tuple[int, int] | None) -> Any:
    """Return features as a block gives them."""
    if result is None:
        return features
    return tuple(features if number == result[0] else None for number in range(result[1]))


def _cut(inner: nn.Module, source: Source, parts: frozenset[str]) -> list[tuple[nn.Module, str, Any]]:
    """Take the weights of other parts out of a module; return those before the blocks, which something stands in for.

    Weights that stand in two places (tied ones) keep their first name, and are plain attributes in the other place.
    """
    canonical: dict[int, str] = {id(weight): name for name, weight in inner.named_parameters()}
    stem, absent = {*source.stem, *source.ends}, []
    rows = [
        (owner, f"{prefix}{'.' if prefix else ''}{name}", name, weight)
        for prefix, owner in inner.named_modules(remove_duplicate=True)
        for name, weight in list(owner._parameters.items()) if weight is not None
    ]  # fmt: skip
    for owner, _, _, _ in rows:
        owner._non_persistent_buffers_set = set(owner._buffers)
    for owner, full, name, weight in rows:
        known = canonical[id(weight)]
        if source.part_of(known) in parts:
            if full != known:
                owner._parameters[name] = None
                owner.__dict__[name] = weight
            continue
        owner._parameters[name] = None
        if known in stem:
            absent.append((owner, name, weight.shape))
    return absent
