"""A module looked through once, on shapes alone: where it can be cut, and what would make a cut change its results.

Every refusal here is a module that would train otherwise on several cards than on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.foreign.build import CALL, blocks_of, said
from zhenfa.live.foreign.lineage import POSITIONS, Labels, Lineage, Seen, ValuesError

BATCH: Final = 2
TOKENS: Final = "tokens"
RESERVED: Final = ("run", "narrowed", "sizes", "crew", "group", "routed", "balance", "splits", "delayed", "collect",
                   "sharded", "inner", "turns", "under_way", "stand_ins")  # fmt: skip
"""Names of the stage that a module's own parts cannot have."""


@dataclass
class Traced:
    """What was seen.

    ``stem``, ``ends``, ``head``: weights by where they run; ``before``, ``inside``, ``after``: operators before the
    first block, of each, and after the last. ``drops``: in train mode it drops features out. ``argument`` and
    ``result`` as in :class:`~zhenfa.live.foreign.source.Source`.
    """

    blocks: str
    hidden: int
    vocabulary: int
    stem: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    argument: int | str = 0
    result: tuple[int, int] | None = None
    before: list[Seen] = field(default_factory=list)
    inside: list[list[Seen]] = field(default_factory=list)
    after: list[Seen] = field(default_factory=list)
    drops: bool = False


class _Probe:
    """Stands in for a block's forward: looks at what goes in and comes out, and cuts the thread between blocks."""

    def __init__(self, look: _Look, index: int, block: nn.Module) -> None:
        self.look, self.index, self.block = look, index, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        look, lineage, index = self.look, self.look.lineage, self.index
        look.called.append(index)
        if look.called != list(range(index + 1)):
            raise look.refusal(
                f"its blocks run in the order {', '.join(map(str, look.called[-3:]))} ...",
                "every block has to run once, one after the other",
            )
        given = look.features_in(index, args, kwargs)
        args, kwargs = look.with_features(args, kwargs, lineage.label(torch.empty_like(given), f"in {index}"))
        own: list[Seen] = []
        lineage.seen = own
        result = type(self.block).forward(self.block, *args, **kwargs)
        look.traced.inside.append(own)
        lineage.seen = look.traced.after
        return look.features_out(index, result, given.shape)


class _Look:
    def __init__(self, module: nn.Module, label: str, blocks: str, lineage: Lineage) -> None:
        self.module, self.label, self.lineage = module, label, lineage
        self.prefix = f"{blocks}."
        self.called: list[int] = []
        self.own: dict[int, set[str]] = {}
        self.traced = Traced(blocks, 0, 0)

    def refusal(self, what: str, wanted: str) -> CapabilityError:
        return CapabilityError(
            f"{self.label} cannot be cut over cards: {what}.",
            hint=f"{wanted}; see docs/guide/own-models.md for what a module must keep to.",
        )

    def features_in(self, index: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return what a block takes as features: the one tensor that depends on tokens and weights before it."""
        leaves, _ = tree_flatten_with_path((args, kwargs))
        found = [
            (path, one) for path, one in leaves
            if isinstance(one, torch.Tensor) and self.lineage.of(one) - {POSITIONS}
        ]  # fmt: skip
        names = [_argument(path) for path, _ in found]
        if len(found) != 1 or names[0] is None:
            words = ", ".join(str(name) if name is not None else "a tensor inside another argument" for name in names)
            raise self.refusal(
                f"block {index} takes {len(found)} tensors that depend on the tokens ({words or 'none'})",
                "one tensor of features may go from block to block",
            )
        (name, one) = names[0], found[0][1]
        labels = self.lineage.of(one) - {POSITIONS}
        before = frozenset({f"block {index - 1}"}) if index else None
        if before is not None and labels != before:
            strange = ", ".join(sorted(labels - before)[:3])
            raise self.refusal(
                f"block {index} takes what {strange} has gone into since block {index - 1}",
                "between two blocks only the features of the one before may be used",
            )
        if index == 0:
            if one.ndim != 3 or one.shape[0] != BATCH or not one.is_floating_point():
                raise self.refusal(
                    f"block 0 takes features of shape {list(one.shape)} for {BATCH} sequences",
                    "features are [sequences, tokens, width]",
                )
            self.traced.argument, self.traced.hidden = name if name is not None else 0, int(one.shape[-1])
            self.traced.stem = tuple(sorted(labels - {TOKENS}))
        elif name != self.traced.argument:
            raise self.refusal(f"block {index} takes its features as {name!r}, block 0 as {self.traced.argument!r}",
                               "call all blocks alike")  # fmt: skip
        return one

    def with_features(self, args: Sequence[Any], kwargs: dict[str, Any], features: Any) -> Any:
        where = self.traced.argument
        if isinstance(where, int):
            return (*args[:where], features, *args[where + 1 :]), kwargs
        return args, kwargs | {where: features}

    def features_out(self, index: int, result: Any, shape: Any) -> Any:
        """Return a block's result with the thread cut, and note where in it the features stand."""
        row = result if isinstance(result, tuple | list) else (result,)
        alike = [number for number, one in enumerate(row) if isinstance(one, torch.Tensor) and one.shape == shape]
        if not alike:
            raise self.refusal(
                f"block {index} takes features of shape {list(shape)} and gives a {type(result).__name__} without such",
                "a block gives features of the shape that it takes, alone or in a tuple",
            )
        place = (alike[0], len(row)) if isinstance(result, tuple | list) else None
        if index and place != self.traced.result:
            raise self.refusal(f"block {index} gives its features otherwise than block 0", "call all blocks alike")
        self.traced.result = place
        self._within(index, row[alike[0]])
        features = self.lineage.label(torch.empty_like(row[alike[0]]), f"block {index}")
        if place is None:
            return features
        return type(result)(features if number == alike[0] else one for number, one in enumerate(row))

    def _within(self, index: int, features: Any) -> None:
        labels = self.lineage.of(features) - {POSITIONS, f"in {index}"}
        own = {name for name, _ in self.module.named_parameters() if name.startswith(f"{self.prefix}{index}.")}
        if labels - own:
            strange = ", ".join(sorted(labels - own)[:3])
            raise self.refusal(
                f"block {index} uses {strange}, which is not its own", "a block uses its own weights alone"
            )
        self.own[index] = own
        if own - labels:
            raise self.refusal(
                f"{sorted(own - labels)[0]} takes no part in what block {index} gives",
                "take weights out that are not used",
            )


def trace(module: nn.Module, kind: str, label: str, length: int, blocks: str | None = None) -> Traced:
    """Look through a module of shapes alone (:func:`~zhenfa.live.foreign.build.weightless`) at ``length`` tokens.

    Raises :class:`CapabilityError` for what cannot be cut, :class:`InputError` for a forward that fails.
    """
    name = blocks_of(module, blocks)
    lineage = Lineage()
    look = _Look(module, label, name, lineage)
    _check_weights(module, look)
    for weight, one in module.named_parameters():
        lineage.guard(weight, lineage.label(one, weight))
    for buffer, one in module.named_buffers():
        lineage.guard(buffer, lineage.label(one))
    logits = _forward(module, kind, look, length)
    if look.called != list(range(len(module.get_submodule(name)))):
        raise look.refusal(
            f"its forward runs {len(look.called)} of the {len(module.get_submodule(name))} blocks of {name!r}",
            "every block has to run once; execution.blocks names another list",
        )
    _ends(module, look, lineage.of(logits))
    if lineage.random:
        raise look.refusal("its forward draws random numbers in eval mode, too",
                           "a forward depends on its tokens alone")  # fmt: skip
    if lineage.written:
        raise look.refusal(
            f"its forward changes {sorted(lineage.written)[0]}",
            "a step leaves nothing behind but gradients (no running statistics)",
        )
    _check_tables(look, length)
    look.traced.vocabulary = int(logits.shape[-1])
    look.traced.drops = _draws(module, kind, label, length, name)
    return look.traced


def _draws(module: nn.Module, kind: str, label: str, length: int, blocks: str) -> bool:
    """Return whether the module draws random numbers in train mode, as dropout does."""
    lineage = Lineage()
    try:
        _forward(module.train(), kind, _Look(module, label, blocks, lineage), length)
    except (CapabilityError, InputError):
        return lineage.random
    finally:
        module.eval()
    return lineage.random


def _forward(module: nn.Module, kind: str, look: _Look, length: int) -> Any:
    lineage, traced = look.lineage, look.traced
    if kind == "transformers":  # looks for padding among the tokens, and warns
        lineage.free |= {TOKENS}
    tokens = lineage.label(torch.zeros((BATCH, length), dtype=torch.long), TOKENS)
    blocks = list(module.get_submodule(traced.blocks))
    lineage.seen = traced.before
    try:
        for index, block in enumerate(blocks):
            block.__dict__["forward"] = _Probe(look, index, block)
        with lineage.following():
            result = said(look.label, lambda: module(tokens, **CALL[kind]))
    except InputError as problem:
        cause = problem.__cause__
        if isinstance(cause, CapabilityError):
            raise cause from None
        if isinstance(cause, ValuesError):
            what = "tokens" if cause.what == {TOKENS} else "features or weights"
            raise look.refusal(
                f"which way its forward goes depends on the values of {what}",
                "what runs may depend on shapes and positions alone",
            ) from None
        raise
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
        lineage.seen = None
    return logits_of(result, look.label, (BATCH, length))


def logits_of(result: Any, label: str, shape: tuple[int, int]) -> Any:
    """Return the logits of what a module gave. Raises :class:`InputError` if there are none."""
    logits = getattr(result, "logits", result)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or tuple(logits.shape[:2]) != shape:
        found = f"of shape {list(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
        raise InputError(
            f"{label} gives a {type(result).__name__} {found}".rstrip() + f" for tokens of shape {list(shape)}.",
            hint="give logits [sequences, tokens, vocabulary], or an object that has them as .logits.",
        )
    return logits


def _check_weights(module: nn.Module, look: _Look) -> None:
    taken = sorted({*module._modules, *module._parameters, *module._buffers} & set(RESERVED))
    if taken:
        raise look.refusal(f"it has a part called {taken[0]!r}, which the runtime uses", "call it otherwise")
    for name, weight in module.named_parameters():
        if not weight.requires_grad:
            raise look.refusal(f"{name} is not trained (requires_grad is False)", "every weight is trained")
        if weight.dtype != torch.float32:
            raise look.refusal(
                f"{name} is in {str(weight.dtype).removeprefix('torch.')}",
                "build it in 32 bits; workload.precision: bf16 computes in 16",
            )
    owner: dict[int, str] = {}
    for name, weight in module.named_parameters(remove_duplicate=False):
        rest = name.removeprefix(look.prefix) if name.startswith(look.prefix) else None
        part = "outside" if rest is None else f"block {rest.split('.')[0]}"
        if owner.setdefault(id(weight), part) != part:
            raise look.refusal(f"{name} is shared by {owner[id(weight)]} and {part}", "a block has weights of its own")


def _ends(module: nn.Module, look: _Look, labels: Labels) -> None:
    """Note which weights run before the blocks, and after them."""
    traced = look.traced
    outside = {name for name, _ in module.named_parameters() if not name.startswith(look.prefix)}
    last = f"block {len(look.called) - 1}"
    strange = labels - outside - {last, POSITIONS}
    if strange or last not in labels:
        raise look.refusal(
            f"its logits depend on {', '.join(sorted(strange)[:3]) or 'nothing that the last block gives'}",
            "after the last block only its features and weights outside the blocks may be used",
        )
    head, stem = labels & outside, set(traced.stem)
    if stem - outside:
        raise look.refusal(f"{sorted(stem - outside)[0]} of a block runs before the blocks", "a block runs whole")
    unused = outside - head - stem
    if unused:
        raise look.refusal(f"{sorted(unused)[0]} takes no part in the logits", "take weights out that are not used")
    traced.ends, traced.head, traced.stem = (
        tuple(name for name, _ in module.named_parameters() if name in names)
        for names in (head & stem, head - stem, stem - head)
    )


def _check_tables(look: _Look, length: int) -> None:
    """Refuse tables of positions that are shorter than the sequences."""
    for one in look.traced.before:
        if one.name != "embedding":
            continue
        (table, weight), (_, positions) = one.inputs[0], one.inputs[1]
        if POSITIONS in positions and TOKENS not in positions and table[0] < length:
            raise InputError(
                f"{look.label} knows {table[0]} positions ({', '.join(sorted(weight))}), and the job's sequences have "
                f"{length} tokens.",
                hint=f"write workload.sequence_length: {table[0]}.",
            )


def _argument(path: Sequence[Any]) -> int | str | None:
    """Return which argument of a call a path leads to, None where it leads into one."""
    if len(path) != 2:
        return None
    return path[1].idx if hasattr(path[1], "idx") else str(path[1].key)
