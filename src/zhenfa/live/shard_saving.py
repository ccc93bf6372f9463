"""Checkpoints of weights that are shared out by rows: each card writes its rows as a piece of the whole tensor.

Nobody gathers anything: torch's records say where in the whole each piece lies, so that the checkpoint can be read
under any layout, whole or by rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from zhenfa.errors import InputError
from zhenfa.live.checkpoint import Piece, load_tensors
from zhenfa.live.shard_rows import Rows

MOMENTS: Final = ("exp_avg", "exp_avg_sq")


def share_of_rows(rows: Rows, optimizer: Any) -> tuple[dict[str, Any], dict[str, Piece]]:
    """Return a copy, in host memory, of the rows that a card keeps and of their moments, and where in the whole tensors
    they lie, by branch and name; the next step may begin."""
    model: dict[str, Any] = {}
    state: dict[str, Any] = {}
    pieces: dict[str, Piece] = {}
    settings = {} if optimizer is None else {
        key: value for key, value in optimizer.param_groups[0].items() if key != "params"
    }  # fmt: skip
    for name, kept in rows.own.items():
        if not rows.is_ours(name):
            continue
        piece = rows.piece(name)
        model[name], pieces[f"model.{name}"] = kept.detach().to("cpu", copy=True), piece
        known = optimizer.state.get(kept, {})
        state[f"state.{name}.step"] = known["step"].to("cpu", copy=True) if known else torch.tensor(0.0)
        for moment in MOMENTS:
            held = known[moment].to("cpu", copy=True) if known else torch.zeros(kept.shape)
            state[f"state.{name}.{moment}"], pieces[f"optimizer.state.{name}.{moment}"] = held, piece
        state |= {f"param_groups.{name}.{key}": value for key, value in settings.items()}
    return {"model": model, "optimizer": state}, pieces


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
