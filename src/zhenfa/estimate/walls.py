"""The four walls: what bounds a plan, in shares of the wall-clock time, and what would move each.

Compute, communication and bubble share the step; the step shares the wall clock with what failures cost. The binding
wall is the one with the largest share of the wall clock. Energy is shown beside them; it binds only under a cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zhenfa import units
from zhenfa.estimate import priors
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost
from zhenfa.laws import energy, reliability
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure, Wall, Walls

COMPUTE_PARTS: Final = ("arithmetic at peak", "below peak", "recomputation", "waiting", "optimizer", "bubble")
COMMUNICATION_PARTS: Final = ("tensor", "expert", "context", "pipeline", "bridge", "data")

CARDS_PER_NODE: Final = 8
"""Failure rates of hosts, switches and cables are per node of eight cards, as the source counts them."""

CHECKPOINT_S: Final = 20.0
DOWN_S: Final = 180.0
RELOAD_S: Final = 180.0
"""A good recovery policy: 20 s of blocking checkpoint, 3 min to detect and replace, 3 min to reload. Assumed."""


@dataclass(frozen=True)
class Survival:
    """How much of the wall clock a long run keeps, given the default failure rates and the assumed recovery policy."""

    ettr: float
    mtbf: float
    interval: float
    note: str
    assumptions: tuple[str, ...]


def survival(plan: Plan, setting: Setting, cost: PlanCost) -> Survival:
    """Return the effective training time ratio of a plan at its best checkpoint interval.

    Counts failures of cards, hosts, switches and software at the rates of Llama 3 405B's run; omits correlated
    failures, spares running out and slow cards.
    """
    nodes = max(plan.cards / CARDS_PER_NODE, 1.0)
    mtbf = float(reliability.job_mtbf(plan.cards, nodes))
    interval = float(reliability.optimal_interval(mtbf, CHECKPOINT_S))
    ettr = float(reliability.ettr(interval, mtbf=mtbf, checkpoint=CHECKPOINT_S, down=DOWN_S, restart=RELOAD_S))
    note = f"a failure every {units.show(mtbf, 'time')}, a checkpoint every {units.show(interval, 'time')}"
    why = (
        "failures at the rates of Llama 3 405B's run (16,384 H100); recovery assumed: "
        f"{CHECKPOINT_S:.0f} s blocking checkpoint, {DOWN_S / 60:.0f} min to detect and replace, "
        f"{RELOAD_S / 60:.0f} min to reload"
    )
    return Survival(ettr, mtbf, interval, note, () if setting.formation.emulated else (why,))


def energy_wall(plan: Plan, setting: Setting, cost: PlanCost, survived: Survival) -> tuple[Figure, str]:
    """Return joules per token (at the meter of the facility, lost work included) and the power in words."""
    if setting.formation.emulated:
        return Figure(
            unit="J", note="emulated cards draw no power of their own"
        ), "emulated cards draw none of their own"
    power = 0.0
    for name, count in plan.cards_by_pool().items():
        pool = setting.formation.pool(name)
        fact = pool.power_per_card if pool.power_per_card.known else pool.accelerator.tdp
        if fact.value is None:
            text = f'{name}: power undisclosed; supply --assume {name}.power_per_card="700 W"'
            return Figure(unit="J", note=text), text
        power += count * fact.value * priors.LOAD_OF_NAMEPLATE
    pue = setting.formation.pue
    facility = float(energy.facility_power(power, pue.value if pue.value is not None else 1.0))
    tokens = plan.global_batch * plan.sequence_length
    joules = float(energy.energy_per_token(facility * cost.step, tokens, ettr=survived.ettr))
    at = f"PUE {pue.value:g}" if pue.value is not None else "PUE undisclosed, not counted"
    words = f"{units.show(power, 'power')} at {priors.LOAD_OF_NAMEPLATE:.0%} of rated power, {at}: {joules:.3g} J/token"
    return Figure(value=joules, unit="J", tag="assumed", note=at), words


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
        "energy": Wall(detail=power, advice="a lower power cap where decode or waiting dominates; a better PUE"),
        "reliability": Wall(
            share=shares["reliability"],
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
