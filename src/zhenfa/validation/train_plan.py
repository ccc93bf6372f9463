"""The plan of a published training row: its layout as pipelines and stages over one pool."""

from __future__ import annotations

from itertools import accumulate

from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.validation.train_layout import Layout
from zhenfa.validation.train_machine import POOL


def plan_of(layout: Layout, layers: int, sequence: int, precision: Precision) -> Plan:
    """Return the plan that a row was run with."""
    held = [sum(layout.chunks[rank :: layout.pipeline]) for rank in range(layout.pipeline)]
    ends = list(accumulate(held))
    stages = tuple(
        Stage(
            pool=POOL, first=last - own, last=last, tensor_parallel=layout.tensor, expert_parallel=layout.expert,
            recompute=layout.recompute,
        )
        for own, last in zip(held, ends, strict=True)
    )  # fmt: skip
    pipeline = Pipeline(
        count=layout.data, micro_batches=layout.micro_batches, micro_batch_size=layout.micro_batch, stages=stages
    )
    return Plan(
        job="row", model="row", machine="row", sequence_length=sequence, precision=precision, zero=layout.zero,
        pipelines=(pipeline,),
    )  # fmt: skip
