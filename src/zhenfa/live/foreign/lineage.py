"""Which tensors come from which: labels that flow through every operator of a forward that computes shapes alone.

Weights are without values (torch's ``meta`` device), and so is what is computed from them. What depends on positions
alone (masks, angles) keeps its values, so that a forward that looks at them goes its usual way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Labels = frozenset[str]
NONE: Final[Labels] = frozenset()
POSITIONS: Final = "positions"
"""Label of what counts up; it is no dependence."""
SHAPES: Final = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
"""Operators that take a tensor for its shape alone."""


class ValuesError(RuntimeError):
    """A forward asked for the values of what depends on tokens or weights. ``what``: which labels."""

    def __init__(self, what: Labels) -> None:
        super().__init__("values were asked for")
        self.what = what


@dataclass(frozen=True)
class Seen:
    """An operator that ran: its name, its tensors' shapes and labels, and whether it works on each element alone."""

    name: str
    inputs: tuple[tuple[tuple[int, ...], Labels], ...]
    output: tuple[int, ...]
    labels: Labels
    pointwise: bool
    causal: bool = False


class Lineage(TorchDispatchMode):  # type: ignore[misc]
    """Follows labels through operators. ``seen`` is told of each of them, while it is not None.

    ``written``: which of the tensors that were :meth:`guarded <guard>` have been changed; ``random``: whether anything
    was drawn; ``free``: labels of what may be asked for its values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._labels: dict[int, Labels] = {}
        self._kept: list[Any] = []
        self._guarded: dict[int, str] = {}
        self.seen: list[Seen] | None = None
        self.written: set[str] = set()
        self.random = False
        self.free = frozenset({POSITIONS})

    def label(self, tensor: Any, *names: str) -> Any:
        """Give a tensor these labels alone, and return it."""
        self._set(tensor, frozenset(names))
        return tensor

    def guard(self, name: str, tensor: Any) -> None:
        """Note it if a tensor is changed in place."""
        self._guarded[_key(tensor)] = name

    def of(self, tensor: Any) -> Labels:
        """Return what a tensor comes from."""
        return self._labels.get(_key(tensor), NONE)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, on shapes alone where an input has no values, and label what it gives."""
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        labels: Labels = frozenset().union(*(self.of(one) for one in tensors))
        if name in SHAPES:
            tensors, labels = [], NONE
            args, kwargs = tree_map(_shape, (args, kwargs))
        shapeless = any(one.is_meta for one in tensors)
        if shapeless:
            args, kwargs = tree_map(_without_values, (args, kwargs))
        elif str(kwargs.get("device")) == "meta":
            kwargs["device"] = torch.device("cpu")
        if name == "arange":
            labels = labels | {POSITIONS}
        asked = self._asked(func, name, args, labels)
        if asked - self.free:
            raise ValuesError(asked)
        self.random |= _draws(func, name, args, kwargs)
        result = func(*args, **kwargs)
        changed = [one for one in _written(func, tensors) if isinstance(one, torch.Tensor)]
        for one in changed:
            self.written |= {self._guarded[_key(one)]} if _key(one) in self._guarded else set()
            self._set(one, self.of(one) | labels)
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self._set(one, self.of(one) | labels if not changed else labels | self.of(one))
        self._tell(func, name, tensors, result, labels)
        return result

    def _tell(self, func: Any, name: str, tensors: Iterable[Any], result: Any, labels: Labels) -> None:
        if self.seen is None:
            return
        first = next((one for one in tree_leaves(result) if isinstance(one, torch.Tensor)), None)
        if first is not None:
            inputs = tuple((tuple(one.shape), self.of(one)) for one in tensors)
            pointwise = torch.Tag.pointwise in func.tags or name in ("_softmax", "_safe_softmax")
            self.seen.append(Seen(name, inputs, tuple(first.shape), labels, pointwise))

    def _asked(self, func: Any, name: str, args: Any, labels: Labels) -> Labels:
        """Return what is asked for its values: by ``item``, ``nonzero`` and their like, and by masks that choose."""
        if name == "index":
            masks = [one for one in tree_leaves(args[1]) if isinstance(one, torch.Tensor) and one.dtype == torch.bool]
            return frozenset().union(*(self.of(one) for one in masks))
        depends = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
        return labels if depends else NONE

    def _set(self, tensor: Any, labels: Labels) -> None:
        key = _key(tensor)
        if key not in self._labels:
            self._kept.append(tensor.untyped_storage())
        self._labels[key] = labels

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow what runs inside; attention is seen as one operator."""
        attention = functional.scaled_dot_product_attention

        def instead(query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
            given = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | more
            mask = given.get("attn_mask")
            tensors = [query, key, value, *([] if mask is None else [mask])]
            if not any(one.is_meta for one in tensors):
                return attention(query, key, value, *rest, **more)
            labels: Labels = frozenset().union(*(self.of(one) for one in tensors))
            self.random |= bool(given.get("dropout_p"))
            shapes = next(one for one in tensors if one.is_meta)
            result = shapes.new_empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype)
            self._set(result, labels)
            if self.seen is not None:
                inputs = tuple((tuple(one.shape), self.of(one)) for one in (query, key, value))
                causal = bool(given.get("is_causal"))
                self.seen.append(Seen("attention", inputs, tuple(result.shape), labels, False, causal))
            return result

        functional.scaled_dot_product_attention = instead
        try:
            with torch.no_grad(), self:
                yield
        finally:
            functional.scaled_dot_product_attention = attention


def _key(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


def _without_values(one: Any) -> Any:
    if isinstance(one, torch.Tensor) and not one.is_meta:
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")
    return torch.device("meta") if isinstance(one, torch.device) else one


def _shape(one: Any) -> Any:
    """Return something of a tensor's shape and type that takes no memory."""
    if isinstance(one, torch.Tensor) and one.is_meta:
        return torch.zeros((), dtype=one.dtype).expand(one.shape)
    return torch.device("cpu") if isinstance(one, torch.device) else one


def _written(func: Any, tensors: list[Any]) -> list[Any]:
    """Return the tensors that an operator changes."""
    if not func._schema.is_mutable:
        return []
    position = 0
    found = []
    for argument in func._schema.arguments:
        if str(argument.type) == "Tensor" and argument.alias_info is not None and argument.alias_info.is_write:
            found.append(position)
        position += str(argument.type) == "Tensor"
    return [tensors[index] for index in found if index < len(tensors)]


def _draws(func: Any, name: str, args: Any, kwargs: Any) -> bool:
    """Return whether an operator draws random numbers; attention draws for dropout alone."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    if "attention" in name:
        chance = kwargs.get("dropout_p", next((one for one in args if isinstance(one, float)), 0.0))
        return bool(chance)
    if name == "native_dropout":
        return bool(args[1]) and args[2] is not False
    return True
