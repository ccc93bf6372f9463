"""The checkpoint of a plan: its bytes, who writes them, and how long training stands still."""

from __future__ import annotations

from typing import NamedTuple

from zhenfa.estimate import offload
from zhenfa.estimate.setting import Setting
from zhenfa.laws import saving
from zhenfa.spec.plan import Plan


class Saving(NamedTuple):
    """Bytes of one checkpoint of the whole job, the cards that write it, and the seconds that it stops training."""

    bytes: float
    writers: int
    stall: float


def checkpoint(
    plan: Plan,
    setting: Setting,
    *,
    write_rate: float,
    store_rate: float = float("inf"),
    interval: float = float("inf"),
    asynchronous: bool = True,
) -> Saving:
    """Return what one checkpoint of a plan takes.

    ``write_rate`` bytes/s from each card's host to the store, ``store_rate`` that the store takes in all, ``interval``
    seconds between checkpoints. Every card writes an equal share, as sharded checkpoints do; a frozen model's weights
    are not written.
    """
    setting = setting.for_plan(plan)
    trained = _trained(plan, setting)
    wide = plan.precision in {"fp32", "tf32"}
    size = float(saving.checkpoint_bytes(trained, weight_bytes=4 if wide else 2, optimizer_bytes=8 if wide else 12))
    stall = saving.checkpoint_stall(
        size, writers=plan.cards, copy_rate=offload.link(setting.traits), write_rate=write_rate,
        store_rate=store_rate, interval=interval, asynchronous=asynchronous,
    )  # fmt: skip
    return Saving(size, plan.cards, float(stall))


def _trained(plan: Plan, setting: Setting) -> float:
    """Return the parameters that are trained: all, or adapters on every matmul of the layers."""
    graph = setting.graph
    if plan.trainable == "full":
        return float(graph.parameters + graph.extra_parameters)
    blocks = [graph.kinds[kind].operators for kind in graph.layers]
    return float(
        sum(
            plan.lora_rank * (operator.inputs + operator.outputs)
            for block in blocks
            for operator in block
            if operator.kind == "matmul" and not operator.name.endswith("router")
        )
    )
