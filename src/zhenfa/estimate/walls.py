"""The four walls: what bounds a plan, in shares of the wall-clock time, and what would move each.

Compute, communication and bubble share the step; the step shares the wall clock with what failures cost. The binding
wall is the one with the largest share of the wall clock. Energy is shown beside them; it binds only under a cap.
"""

from __future__ import annotations

from typing import Final

from zhenfa.estimate.setting import Setting
from zhenfa.estimate.survival import LOST, Survival
from zhenfa.estimate.training import PlanCost
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Wall, Walls

COMPUTE_PARTS: Final = ("arithmetic at peak", "below peak", "recomputation", "waiting", "optimizer", "bubble")
COMMUNICATION_PARTS: Final = ("tensor", "expert", "context", "pipeline", "bridge", "data")


def time_walls(
    plan: Plan, setting: Setting, cost: PlanCost, parts: dict[str, float], survived: Survival, power: str
) -> Walls:
    """Return the four walls of a plan."""
    step = cost.step
    kept = 1.0 if setting.formation.emulated else survived.ettr
    compute = {name: parts[name] for name in COMPUTE_PARTS}
    exposed = {name: parts[name] for name in COMMUNICATION_PARTS}
    shares = {
        "compute": kept * sum(compute.values()) / step,
        "communication": kept * sum(exposed.values()) / step,
        "reliability": 1.0 - kept,
    }
    binding = max(shares, key=lambda name: shares[name])
    lost = "no failures are modelled on emulated cards" if setting.formation.emulated else survived.note
    walls = {
        "compute": Wall(
            share=shares["compute"], parts=compute, detail=_words(compute, step), advice=_compute_advice(compute, plan)
        ),
        "communication": Wall(
            share=shares["communication"],
            parts=exposed,
            detail=_words(exposed, step),
            advice=_exposed_advice(exposed, step),
        ),
        "energy": Wall(
            detail=power,
            advice="a better PUE; quicker recovery, for lost work is paid for; a lower clock where cards wait",
        ),
        "reliability": Wall(
            share=shares["reliability"],
            parts={} if setting.formation.emulated else {name: survived.shares[name] for name in LOST},
            detail=lost,
            advice="quicker detection and restart, in-memory checkpoints, spares",
        ),
    }
    return Walls(**walls, binding=binding)


def _words(parts: dict[str, float], step: float) -> str:
    shown = [f"{name} {seconds / step:.1%}" for name, seconds in parts.items() if seconds / step >= 0.0005]
    return ", ".join(shown) or "nothing exposed"


def _compute_advice(parts: dict[str, float], plan: Plan) -> str:
    worst = max(parts, key=lambda name: parts[name] if name != "arithmetic at peak" else -1.0)
    most = max(pipe.micro_batches for pipe in plan.pipelines)
    if worst == "arithmetic at peak" or parts[worst] < 0.25 * parts["arithmetic at peak"]:
        return "more or faster cards, or a lower precision: most of the step is arithmetic at peak speed"
    return {
        "below peak": "larger micro-batches or less tensor parallelism: kernels run below the card's peak",
        "recomputation": "more memory per card: recomputation takes what memory would save",
        "waiting": "captured graphs or larger micro-batches: cards wait for the host, or for weights to be gathered",
        "optimizer": "ZeRO sharding, or a larger global batch",
        "bubble": f"more micro-batches than {most}, fewer stages, or a more even split",
    }[worst]


def _exposed_advice(parts: dict[str, float], step: float) -> str:
    if sum(parts.values()) < 0.0005 * step:
        return "nothing: no communication is exposed"
    return {
        "tensor": "keep tensor parallelism inside the fastest tier, or lower it",
        "expert": "a narrower expert group inside the supernode, or overlap of dispatch and combine",
        "context": "context parallelism inside the fastest tier, or lower it",
        "pipeline": "fewer stages, or stages of one supernode next to each other",
        "bridge": "fewer crossings between makers, a faster network between pools, or gradients summed less often",
        "data": "ZeRO with overlap, or a larger global batch",
    }[max(parts, key=lambda name: parts[name])]
