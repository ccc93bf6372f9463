"""The plan of a published training row: its layout as pipelines and stages over one pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import ContextExchange, Offload, Pipeline, Plan, Stage
from zhenfa.validation.train_engine import imbalance_of
from zhenfa.validation.train_layout import Layout
from zhenfa.validation.train_machine import POOL
from zhenfa.validation.train_words import part, text


def plan_of(record: Mapping[str, Any], layout: Layout, sequence: int, precision: Precision, notes: list[str]) -> Plan:
    """Return the plan that a row was run with."""
    ends = (0, *accumulate(layout.chunks))
    stages = tuple(_stage(layout, first, last) for first, last in pairwise(ends))
    pipeline = Pipeline(
        count=layout.data, micro_batches=layout.micro_batches, micro_batch_size=layout.micro_batch,
        virtual_stages=layout.virtual, stages=stages,
    )  # fmt: skip
    return Plan(
        job="row", model="row", machine="row", sequence_length=sequence, precision=precision,
        schedule="interleaved" if layout.virtual > 1 else "1f1b", zero=layout.zero, shard_group=layout.shard_group,
        reshard=layout.reshard, reduce_every="step" if layout.reduced_late else None,
        sequence_parallel=layout.sequence_parallel, context_exchange=_exchange(record),
        offload=_offload(layout), trainable="lora" if _adapters(record) else "full",
        expert_imbalance=imbalance_of(record), pipelines=(pipeline,),
    )  # fmt: skip


def _stage(layout: Layout, first: int, last: int) -> Stage:
    expert, split = _experts(layout)
    return Stage(
        pool=POOL, first=first, last=last, tensor_parallel=layout.tensor, context_parallel=layout.context,
        expert_parallel=expert, expert_tensor_parallel=split, recompute=layout.recompute,
        recompute_layers=None if layout.recomputed >= 1 else math.ceil((last - first) * layout.recomputed),
        recompute_modules=layout.modules,
        offload_layers=math.ceil((last - first) * layout.offload_layers / sum(layout.chunks))
        if layout.offload_layers else None,
    )  # fmt: skip


def _experts(layout: Layout) -> tuple[int, int]:
    """Return expert and expert-tensor degrees: where a row gives only the first, experts are not split further."""
    split = layout.expert_tensor or 1
    peers = layout.tensor * layout.context * layout.data
    return layout.expert, split if peers % (layout.expert * split) == 0 else 1


def _exchange(record: Mapping[str, Any]) -> ContextExchange | None:
    words = text(part(record, "parallel").get("context_parallel_algo"))
    if "ulysses" in words or "all" in words:
        return "all-to-all"
    return "ring" if "megatron" in words or "ring" in words or "p2p" in words else None


def _offload(layout: Layout) -> Offload:
    if layout.offload_optimizer:
        return "both" if layout.offload_layers else "optimizer"
    return "activations" if layout.offload_layers else "none"


def _adapters(record: Mapping[str, Any]) -> bool:
    return "lora" in text(record.get("task"))
