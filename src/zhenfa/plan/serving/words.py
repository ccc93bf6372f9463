"""Serving plans in words."""

from __future__ import annotations

from zhenfa import units
from zhenfa.estimate.serving_report import ServingEstimate
from zhenfa.estimate.serving_spread import tpot_within
from zhenfa.spec.serving import Instance, ServingPlan, ServingWorkload


def cut_words(instance: Instance) -> str:
    """Return how an instance is cut.

    >>> cut_words(Instance(pool="a", tensor_parallel=2, data_parallel=4, expert_parallel=8))
    'TP2 DP4 EP8'
    """
    degrees = {
        "TP": instance.tensor_parallel, "CP": instance.context_parallel, "DP": instance.data_parallel,
        "EP": instance.expert_parallel, "PP": instance.pipeline_parallel,
    }  # fmt: skip
    return " ".join(f"{name}{size}" for name, size in degrees.items() if size > 1) or "TP1"


def target_words(workload: ServingWorkload) -> list[str]:
    """Return the targets of a workload in words.

    >>> target_words(ServingWorkload(input_length=8, output_length=8, ttft_target=2, ttft_percentile=99))
    ['a p99 TTFT of 2 s']
    """
    rows = (("TTFT", workload.ttft_target, workload.ttft_percentile),
            ("TPOT", workload.tpot_target, workload.tpot_percentile))  # fmt: skip
    return [
        f"a {'mean' if share is None else f'p{share:g}'} {name} of {units.show(target, 'time')}"
        for name, target, share in rows
        if target is not None
    ]


def percentiles(estimate: ServingEstimate) -> list[tuple[str, float, float]]:
    """Return the percentiles that a job asks for: TTFT or TPOT, per cent, seconds; of several parts the slowest."""
    workload, found = estimate.parts[0].served.workload, []
    if workload.ttft_percentile is not None:
        level = workload.ttft_percentile / 100.0
        seconds = max(part.served.first_within(level) for part in estimate.parts)
        found.append(("TTFT", workload.ttft_percentile, seconds))
    if workload.tpot_percentile is not None:
        share = workload.tpot_percentile
        seconds = max(tpot_within(part.service, part.served, share) for part in estimate.parts)
        found.append(("TPOT", share, seconds))
    return found


def summary(plan: ServingPlan) -> str:
    """Return a plan in one line: instances of prefill, instances of decode, those of other parts."""
    return " | ".join(_part(one) for one in plan.parts)


def _part(plan: ServingPlan) -> str:
    decode = f"{plan.decode.count:,} x {cut_words(plan.decode)}"
    if plan.prefill is None:
        return decode
    prefill = f"{plan.prefill.count:,} x {cut_words(plan.prefill)}"
    if plan.prefill_weights is not None:
        prefill, decode = f"{prefill} {plan.prefill_weights}", f"{decode} {plan.weights}"
    return f"{prefill} -> {decode}"


def group_words(instance: Instance, role: str, weights: str = "") -> str:
    """Return a group of instances in a sentence; ``weights``: their format, where it is worth a word."""
    number = "1 instance" if instance.count == 1 else f"{instance.count:,} instances"
    size = "1 card" if instance.cards == 1 else f"{instance.cards:,} cards"
    details = [cut_words(instance)]
    if instance.chunk:
        details.append(f"chunks of {instance.chunk:,} tokens")
    if weights:
        details.append(f"weights in {weights}")
    if instance.max_batch:
        details.append(f"at most {instance.max_batch:,} requests at once")
    return f"{role}: {number} of {size} of {instance.pool} ({', '.join(details)})"
