"""Checkpoints taken up by cards that share weights out by rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from zhenfa.errors import InputError
from zhenfa.live.checkpoint import load_tensors
from zhenfa.live.held import MOMENTS
from zhenfa.live.shard_rows import Rows


def load_rows(path: Path, rows: Rows, optimizer: Any) -> None:
    """Fill a card's rows and their moments from a checkpoint made under any layout, one part of the model at a time.

    Its files must have been checked. Raises :class:`InputError` if it lacks a tensor.
    """
    for names in rows.names.values():
        whole = dict(_read(path, rows, "model", "{}", names))
        for name in names:
            rows.fill(name, whole[name])
        kept = [name for name in names if name in rows.own]
        steps = {f"state.{name}.step": torch.zeros(()) for name in kept}
        _all_there(path, load_tensors(path, "optimizer", steps), steps)
        for name in kept:
            optimizer.state[rows.own[name]] = {"step": steps[f"state.{name}.step"]}
        for moment in MOMENTS:
            for name, found in _read(path, rows, "optimizer", f"state.{{}}.{moment}", kept):
                first, last = rows.rows(name)
                weight = rows.own[name]
                optimizer.state[weight][moment] = found[first:last].to(weight.device, copy=True)


def _read(path: Path, rows: Rows, branch: str, form: str, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield this card's crew's part of tensors, whole, by weight."""
    wanted = {form.format(name): torch.empty(rows.piece(name).size) for name in names}
    found = load_tensors(path, branch, wanted)
    _all_there(path, found, wanted)
    for name in names:
        yield name, rows.module.crew.part(name, found[form.format(name)])


def _all_there(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise InputError(
            f"the checkpoint {str(path)!r} has no {missing[0]!r} of shape {list(wanted[missing[0]].shape)}.",
            hint="give the job the model that the checkpoint was made with.",
        )
