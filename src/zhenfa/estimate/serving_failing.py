"""What failures leave of a fleet that serves: instances fail one by one, so that it loses a share, never the whole.

A node that breaks takes out the instance that stands on it, or the instances where several stand on one. Its pool's
idle nodes take over, and the instance is back once the failure is found and the engine has started again; where none is
idle, it is out until the node is repaired. Of prefill and decode apart, the lesser share that is up counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zhenfa import units
from zhenfa.catalog import operation
from zhenfa.estimate.failing import PER_NODE, WHOLE_JOB, Failing, failing_on, node_rate, node_repair
from zhenfa.laws import redundancy
from zhenfa.spec.machine import Formation
from zhenfa.spec.result import Figure, Operating
from zhenfa.spec.serving import Instance, ServingPlan
from zhenfa.spec.upkeep import Recovery


@dataclass(frozen=True)
class Kept:
    """What failures leave. ``share`` of the requests that are served without them, on average; ``each``: the share of
    time in which one instance of each group is up, in the order of the plan's parts; ``back``: seconds until an
    instance is back where a node is idle, ``repair`` where none is; ``mtbf`` between failures of any instance."""

    share: float
    each: tuple[float, ...]
    back: float
    repair: float
    mtbf: float
    words: str
    failing: Failing


def kept(plan: ServingPlan, formation: Formation, recovery: Recovery, rates: Sequence[float] = ()) -> Kept | None:
    """Return what failures leave of a plan whose parts take these ``rates`` (by default as they share the requests);
    None on emulated cards.

    Counts cards, hosts, networks and maintenance of nodes, and domains that are stated to fail whole, at the rates that
    training plans count. Omits software, whose published rate is of training jobs, requests that a failure loses, and
    that other instances may take more than their share within the targets.
    """
    if formation.emulated:
        return None
    used = plan.cards_by_pool()
    found, table = failing_on(used, formation), operation.failures()
    down = (table.recovery.down if recovery.down.value is None else recovery.down).require("recovery.down")
    start = (table.recovery.reload if recovery.restart.value is None else recovery.restart).require("recovery.restart")
    lost = {pool: _missing(pool, count, formation, found) for pool, count in used.items()}
    each: list[float] = []
    shares: list[float] = []
    for part in plan.parts:
        groups = [one for one in (part.prefill, part.decode) if one is not None]
        up = [_up(one, found, lost, down + start) for one in groups]
        each += up
        counts = [one.count for one in groups]
        shares.append(up[0] if len(up) == 1 else float(redundancy.lesser_share(counts[0], up[0], counts[1], up[1])))
    weights = np.asarray(rates or [one.share for one in plan.parts], float)
    share = float(np.average(shares, weights=weights))
    mtbf = 1.0 / max(sum(float(cause.total) for cause in found.causes if cause.name != WHOLE_JOB), 1e-300)
    idle = _idle(used, formation)
    words = (
        f"failures leave {share:.2%} of the output: one every {units.show(mtbf, 'time')} in all, an instance is out "
        f"for {units.show(down + start, 'time')} where a node of its pool is idle "
        f"({', '.join(f'{name}: {count:,}' for name, count in idle.items())}), else until it is repaired "
        f"({units.show(node_repair(), 'time')} on average)"
    )
    return Kept(share, tuple(each), down + start, node_repair(), mtbf, words, found)


def _nodes(count: float) -> int:
    return max(math.ceil(count / operation.failures().cards_per_node), 1)


def _idle(used: Mapping[str, int], formation: Formation) -> dict[str, int]:
    return {pool: _nodes(formation.pool(pool).count) - _nodes(count) for pool, count in used.items()}


def _missing(pool: str, count: int, formation: Formation, found: Failing) -> float:
    """Return the share of the nodes that are needed which is missing on average, with no idle one to take over."""
    there, needed = _nodes(formation.pool(pool).count), _nodes(count)
    broken = 1.0 - float(redundancy.availability(1.0 / max(float(node_rate(found, pool)), 1e-30), node_repair()))
    return float(redundancy.missing_units(there, there - needed, broken)) / needed


def _up(instance: Instance, found: Failing, lost: Mapping[str, float], back: float) -> float:
    """Return the share of time in which one instance is up."""
    nodes = max(instance.cards / operation.failures().cards_per_node, 1.0)
    up = max(1.0 - lost[instance.pool] * nodes, 0.0)
    up *= float(redundancy.availability(1.0 / max(float(node_rate(found, instance.pool)) * nodes, 1e-30), back))
    for cause in found.causes:
        if cause.name not in ("card", *PER_NODE, WHOLE_JOB) and cause.pool in ("", instance.pool):
            held = math.ceil(instance.cards / max(float(cause.cards), 1.0))
            up *= float(redundancy.availability(1.0 / cause.rate, cause.repair)) ** held
    return up


def operating(found: Kept | None) -> Operating:
    """Return what failures do to a fleet as a part of its estimate's document."""
    if found is None:
        return Operating()
    days = {
        f"{cause.pool}: {cause.name}" if cause.pool else cause.name: 86400.0 * float(cause.total)
        for cause in found.failing.causes
        if cause.name != WHOLE_JOB
    }
    unknown = tuple(f"{pool}: {name}" for pool, names in found.failing.unknown.items() for name in names)
    return Operating(
        mtbf_s=Figure(value=found.mtbf, unit="s", tag="assumed", note="of any instance of the fleet"),
        failures_per_day=days, not_counted=(*unknown, WHOLE_JOB),
        down_s=Figure(value=found.back, unit="s", tag="assumed", note="until an instance is back on an idle node"),
        scheduling=Figure(value=found.share, tag="assumed", note=found.words),
    )  # fmt: skip
