"""Which link each kind of communication of a plan runs on, and what of it is exposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zhenfa.estimate.costs import GroupCost, PlanCost
from zhenfa.estimate.report import step_parts
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.traffic import expert_peers
from zhenfa.estimate.training import groups_of
from zhenfa.spec.fact import Tag
from zhenfa.spec.plan import Pipeline, Plan, Stage

KINDS: Final = ("tensor", "expert", "context", "pipeline", "bridge", "data")


@dataclass(frozen=True)
class Link:
    """Communication of one kind. ``exposed`` seconds of a step; ``cards`` that take part together; the outermost link
    that their traffic crosses, its published bandwidth per card and that number's tag."""

    kind: str
    exposed: float
    cards: int
    link: str
    bandwidth: float | None
    tag: Tag


def plan_links(plan: Plan, setting: Setting, cost: PlanCost) -> tuple[Link, ...]:
    """Return the links of a plan that has been costed, at the busiest place of the group that everybody waits for."""
    group = cost.worst
    entries = list(groups_of(plan).values())[cost.groups.index(group)]
    place = max(range(len(group.places)), key=lambda index: group.places[index].busy)
    return links_of(plan, setting, group, entries[0], sum(one.count for one in entries), place)


def links_of(
    plan: Plan, setting: Setting, group: GroupCost, entry: Pipeline, replicas: int, place: int
) -> tuple[Link, ...]:
    """Return the links of the busiest place of a group, and of the pipeline that it stands in."""
    stage, parts = group.places[place].stage, step_parts(group)
    first, routed = _first(entry, replicas, place), _routed(setting)
    inside = stage.expert_parallel * stage.expert_tensor_parallel
    spans = {
        "tensor": (stage.tensor_parallel, stage.tensor_parallel),
        "expert": (inside if routed else 1, inside if routed else 1),
        "context": (stage.context_parallel, stage.tensor_parallel * stage.context_parallel),
    }
    found = []
    for kind in KINDS:
        exposed = parts[kind]
        if kind in spans and spans[kind][0] > 1:
            found.append(_inside(setting, stage, kind, exposed, *spans[kind], first))
        elif kind == "data" and (summed := _summed(setting, group, entry, replicas, exposed)):
            found.append(summed)
        elif kind == "expert" and exposed > 0:  # the host must know how many tokens each expert got
            found.append(Link(kind, exposed, 1, "none: waits for the host", None, "fitted"))
        elif kind == "pipeline" and (hop := _hop(setting, entry, replicas, exposed)):
            found.append(hop)
        elif kind == "bridge" and (exposed > 0 or len(plan.cards_by_pool()) > 1):
            found.append(_bridge(plan, setting, stage, exposed))
    return tuple(found)


def _summed(setting: Setting, group: GroupCost, entry: Pipeline, replicas: int, exposed: float) -> Link | None:
    """Return the link over which the place with the longest sum of gradients makes it, weights gathered included."""
    place = max(range(len(group.places)), key=lambda at: group.places[at].reduce + group.places[at].gather)
    stage = group.places[place].stage
    peers = max(
        replicas * stage.data_parallel * stage.context_parallel,
        expert_peers(stage, replicas) if _routed(setting) else 1,
    )
    if peers == 1:
        return None
    return _inside(setting, stage, "data", exposed, peers, replicas * stage.cards, _first(entry, replicas, place))


def _first(entry: Pipeline, replicas: int, place: int) -> int:
    """Return the first card of its pool that a place takes."""
    pool = entry.stages[place].pool
    return sum(one.cards * replicas for one in entry.stages[:place] if one.pool == pool)


def _routed(setting: Setting) -> bool:
    return any(one.kind == "grouped_matmul" for kind in setting.graph.kinds for one in kind.operators)


def _bridge(plan: Plan, setting: Setting, stage: Stage, exposed: float) -> Link:
    """Return what joins pools; in a machine of one pool, what joins unlike pipelines."""
    network, pools = setting.formation.network, len(plan.cards_by_pool())
    if network is None:
        last = setting.formation.pool(stage.pool).count - 1
        return _over(setting, stage.pool, "bridge", exposed, len(plan.pipelines), 0, last)
    name = network.name or network.link or "network between pools"
    return Link("bridge", exposed, pools, name, network.bandwidth.value, network.bandwidth.tag)


def _inside(setting: Setting, stage: Stage, kind: str, exposed: float, cards: int, span: int, first: int) -> Link:
    """Return the link of a group of cards that reaches over ``span`` neighbours, from card ``first`` of the pool on."""
    return _over(setting, stage.pool, kind, exposed, cards, first, first + span - 1)


def _over(setting: Setting, pool: str, kind: str, exposed: float, cards: int, one: int, other: int) -> Link:
    tiers = setting.formation.pool(pool).tiers
    tier = next((tier for tier in tiers if one // tier.size == other // tier.size), tiers[-1])
    return Link(kind, exposed, cards, f"{pool} {tier.name}", tier.bandwidth.value, tier.bandwidth.tag)


def _hop(setting: Setting, entry: Pipeline, replicas: int, exposed: float) -> Link | None:
    """Return the outermost link that activations cross inside a pool on their way from place to place."""
    starts: dict[str, int] = {}
    widest: Link | None = None
    reach = -1
    before: tuple[str, int] | None = None
    for stage in entry.stages[: entry.places]:
        here = (stage.pool, starts.get(stage.pool, 0))
        starts[stage.pool] = here[1] + stage.cards * replicas
        if before is not None and before[0] == stage.pool:
            found = _over(setting, stage.pool, "pipeline", exposed, 2, before[1], here[1])
            names = [f"{stage.pool} {tier.name}" for tier in setting.formation.pool(stage.pool).tiers]
            if names.index(found.link) > reach:
                widest, reach = found, names.index(found.link)
        before = here
    return widest
