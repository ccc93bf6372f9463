"""The checkpoint of a plan: its bytes, who writes them, and how long training stands still."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from zhenfa import units
from zhenfa.catalog import operation
from zhenfa.estimate import offload
from zhenfa.estimate.setting import Setting
from zhenfa.laws import saving
from zhenfa.laws.arrays import Array, plain
from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import Plan


class Saving(NamedTuple):
    """One checkpoint of the whole job: its bytes, the cards that write it, and seconds.

    ``stall``: training stands still; ``written``: after the copy, until it is safe in the store; ``load``: to read it
    back. ``words`` say what the store is.
    """

    bytes: float
    writers: int
    stall: float
    written: float
    load: float
    words: str


class Store(NamedTuple):
    """Bytes/s of the checkpoint store: of all of it, and between it and one card's host."""

    write: float
    read: float
    per_card: float
    words: str


def store(setting: Setting) -> Store:
    """Return the store that the machine states, else one as large for its cards as that of the default cluster."""
    said = setting.formation.storage
    usual = operation.failures().recovery.store_per_card
    per_card = math.inf if said.per_card.value is None else said.per_card.require("storage.per_card")
    if said.write.known or said.read.known:
        one, other = (said.write, said.read) if said.write.known else (said.read, said.write)
        given = one.require("storage.write")
        also = given if other.value is None else other.require("storage.read")
        write, read = (given, also) if said.write.known else (also, given)
        return Store(write, read, per_card, f"the store writes {units.show(write, 'rate')} (yours)")
    rate = usual.require("recovery.store_per_card") * setting.formation.all_cards
    each = f"{usual.show()} for each card of the machine as Llama 3's had"
    words = f"a store of {units.show(rate, 'rate')} is assumed, {each}"
    return Store(rate, rate, per_card, words)


def checkpoint(plan: Plan, setting: Setting, *, interval: float = math.inf, asynchronous: bool = True) -> Saving:
    """Return what one checkpoint of a plan takes.

    ``interval`` seconds between checkpoints; ``asynchronous``: training stands still for the copy to host memory only.
    Every card writes an equal share, as sharded checkpoints do, over the slowest host link in use; a frozen model's
    weights are not written.
    """
    setting = setting.for_plan(plan)
    size = state_bytes(_trained(plan, setting), plan.precision)
    cards = plan.cards_by_pool()
    stall, written, load = (
        float(one) for one in saving_times(cards, setting, size, interval=interval, asynchronous=asynchronous)
    )
    return Saving(size, plan.cards, stall, written, load, store(setting).words)


def saving_times(
    cards: Mapping[str, Array], setting: Setting, size: float, *, interval: Array = math.inf, asynchronous: bool = True
) -> tuple[Array, Array, Array]:
    """Return the seconds of a checkpoint of ``size`` bytes from so many cards of each pool, floats or arrays over
    plans: in which training stands still, until it is safe after that, and to read it back."""
    copy = min(offload.link(setting.card(pool).traits) for pool in cards)
    there, count = store(setting), sum(cards.values())
    least = 0.0 if setting.formation.emulated else operation.failures().recovery.stop.require("recovery.stop")
    stall = saving.checkpoint_stall(
        size, writers=count, copy_rate=copy, write_rate=there.per_card, store_rate=there.write,
        interval=interval, asynchronous=asynchronous, least=least,
    )  # fmt: skip
    written = plain(np.maximum(np.true_divide(size, count) / there.per_card, size / there.write))
    load = saving.load_time(size, readers=count, copy_rate=copy, read_rate=there.per_card, store_rate=there.read)
    return stall, written, load


def state_bytes(trained: float, precision: Precision) -> float:
    """Return the bytes of a checkpoint of so many trained parameters."""
    wide = precision in {"fp32", "tf32"}
    return float(saving.checkpoint_bytes(trained, weight_bytes=4 if wide else 2, optimizer_bytes=8 if wide else 12))


def all_parameters(setting: Setting) -> float:
    """Return the parameters of the model."""
    return float(setting.graph.parameters + setting.graph.extra_parameters)


def _trained(plan: Plan, setting: Setting) -> float:
    """Return the parameters that are trained: all, or adapters on every matmul of the layers."""
    graph = setting.graph
    if plan.trainable == "full":
        return all_parameters(setting)
    blocks = [graph.kinds[kind].operators for kind in graph.layers]
    return float(
        sum(
            plan.lora_rank * (operator.inputs + operator.outputs)
            for block in blocks
            for operator in block
            if operator.kind == "matmul" and not operator.name.endswith("router")
        )
    )
