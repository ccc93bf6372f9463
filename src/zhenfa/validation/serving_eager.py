"""Rows of models that ran operator by operator on one calibrated card, without an engine: ``calibrate --keep``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zhenfa import catalog
from zhenfa.errors import InputError
from zhenfa.estimate import chip as chips
from zhenfa.estimate import eager
from zhenfa.spec import fact
from zhenfa.spec.machine import BYTES, CardPool
from zhenfa.spec.model import read_model
from zhenfa.validation.serving_machine import find_accelerator, part_of

ENGINE: Final = "zhenfa calibrate, torch eager"


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a row was kept by a calibration."""
    return str(record.get("engine") or "").startswith(ENGINE)


def predict(record: Mapping[str, Any]) -> tuple[dict[str, float], fact.Tag]:
    """Return what the laws give of the row's figure, and the tag of its card. Raises a :class:`ZhenfaError`.

    The host issues every kernel itself: on a card a step takes at least as long as that.
    """
    precision = str(part_of(record, "precision").get("weights") or "")
    length, batch = record.get("input_len"), str(record.get("batch") or "")
    if precision not in BYTES or not isinstance(length, int | float):
        raise InputError("a row of a calibration gives its precision and the length of its input.")
    number = batch.replace(",", "").split("/")[0].split()[0] if batch else ""
    if not number.isdigit() or not int(number):
        raise InputError(f"a row of a calibration gives its batch as '4/card' or '1,024 tok/card', not {batch!r}.")
    card = find_accelerator(record)
    pool = CardPool("cards", card, 1, (), fact.undisclosed("power"))
    chip = chips.chip(pool, next(one for one in BYTES if one == precision))
    graph = read_model(catalog.model_path(str(record.get("model") or ""))).graph()
    if record.get("kind") == "prefill":
        tokens = int(number)
        seconds = issued(eager.prefilling(graph, chip, max(round(tokens / length), 1), int(length)), pool)
        return {"prefill_tok_s_per_acc": tokens / seconds}, chip.tag
    context = record.get("kv_len")
    seen = float(context) if isinstance(context, int | float) else float(length)
    return {"tpot_ms": 1e3 * issued(eager.decoding(graph, chip, int(number), seen), pool)}, chip.tag


def issued(step: tuple[float, float], pool: CardPool) -> float:
    """Return the seconds of a step's kernels, or of their issuing where that takes longer; see :mod:`eager`."""
    seconds, count = step
    host = 0.0 if chips.on_processor(pool.accelerator) else pool.accelerator.achievable.host.value or 0.0
    return max(seconds, count * host)
