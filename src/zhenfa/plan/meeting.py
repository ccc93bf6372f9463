"""Where pools cannot meet in one plan: what is left out of the search between them, and what bars a plan of the user's.

Tensor, context and expert parallelism stay inside a pool: a stage stands on one pool, and the replicas that exchange
tokens or gather weights are those of one pool. Each of them is several collectives a layer, over cards of one backend.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from zhenfa.estimate.setting import Setting
from zhenfa.plan.family import MAX_POOLS_ORDERED
from zhenfa.plan.precision import no_format
from zhenfa.spec.plan import Pipeline, Plan

WITHIN = (
    "tensor, context and expert parallelism over several pools: each is a collective or more a layer, and pools share "
    "no link but the bridge"
)
GATHERED = "weights gathered over several pools (ZeRO-2 and 3): state is shared out inside each pool"


def left_out(setting: Setting) -> Counter[str]:
    """Return what is not planned over several pools and why, each with the number of combinations of pools that it
    leaves out."""
    pools = [pool.name for pool in setting.formation.pools]
    found: Counter[str] = Counter()
    if len(pools) < 2:
        return found
    many = (1 << len(pools)) - 1 - len(pools)
    if setting.bridge is None:
        found[no_network(pools)] = many
        return found
    found.update(no_format(setting))
    found[WITHIN] = many
    found[GATHERED] = many
    deeper = sum(1 for count in range(MAX_POOLS_ORDERED + 1, len(pools) + 1)
                 for _ in itertools.combinations(pools, count))  # fmt: skip
    if deeper:
        found[f"pipelines over more than {MAX_POOLS_ORDERED} pools: their orders are too many to search"] = deeper
    return found


def no_network(pools: list[str]) -> str:
    """Return the reason for which pools without a network are planned one by one."""
    return f"plans over {' and '.join(pools)}: the machine names no network that joins them"


def unmet(plan: Plan, setting: Setting) -> Iterator[str]:
    """Yield why the pools of a plan cannot work together."""
    pools = list(plan.cards_by_pool())
    if len(pools) < 2:
        return
    if setting.bridge is None:
        yield (
            f"stands on {' and '.join(pools)}, which no network joins: say in the machine what does, such as network: "
            "{bandwidth: 400 Gb/s}"
        )
    for pipe in plan.pipelines:
        yield from _shared_over(plan, pipe)


def _shared_over(plan: Plan, pipe: Pipeline) -> Iterator[str]:
    """Yield where state would be shared out over more cards than hold the same in a pool."""
    if plan.shard_group is None or plan.zero < 1:
        return
    replicas = sum(one.count for one in plan.pipelines if one.stages == pipe.stages)
    for stage in dict.fromkeys(one.model_copy(update={"first": 0, "last": 0}) for one in pipe.stages):
        peers = replicas * stage.context_parallel * stage.data_parallel
        if plan.shard_group > peers:
            yield (
                f"shard_group {plan.shard_group} is more than the {peers} cards of {stage.pool} that hold the same: "
                f"weights and gradients would be gathered over the bridge; write shard_group {peers} or less"
            )
