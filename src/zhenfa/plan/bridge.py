"""The bridge between makers in one plan: where it is, what crosses it, and what that costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from zhenfa import units
from zhenfa.estimate import traffic
from zhenfa.estimate.costs import GroupCost, PlanCost
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import groups_of
from zhenfa.spec.job import BRIDGE_BYTES
from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import Pipeline, Plan


@dataclass(frozen=True)
class Crossing:
    """What crosses from pool to pool at one place.

    ``activations`` go from a stage to the next, and gradients of as many bytes come back, with every micro-batch;
    ``gradients`` of weights are summed once a step over the pools' replicas. ``message_bytes``: of one micro-batch of
    one replica and direction, or what one card sends a step; ``message_s`` the seconds that takes. ``step_bytes``: of
    all replicas, both directions.
    """

    what: Literal["activations", "gradients"]
    pools: tuple[str, ...]
    stages: tuple[int, ...]
    """The stages before and behind the bridge; none for gradients."""
    replicas: int
    message_bytes: float
    message_s: float
    step_bytes: float
    host_staged: bool = False
    """Whether it takes the way through the hosts."""
    choice: str = ""
    """Which of two ways it takes; empty where there is one."""

    @property
    def words(self) -> str:
        """Return the crossing in a sentence."""
        sent = units.show(self.message_bytes, "data")
        many = f"{self.replicas:,} replica{'s' if self.replicas > 1 else ''}"
        total = f"{units.show(self.step_bytes, 'data')} a step over {many}"
        takes = units.show(self.message_s, "time") + (f" ({self.choice})" if self.choice else "")
        if self.what == "gradients":
            return f"gradients of weights, {sent} from each card of the fullest stage in {takes} a step; {total}"
        return f"activations, {sent} a micro-batch in {takes}, and gradients of as many back; {total}"

    @property
    def where(self) -> str:
        """Return the place in words."""
        if self.what == "gradients":
            return ", ".join(self.pools)
        return f"stage {self.stages[0]} to {self.stages[1]}, {self.pools[0]} to {self.pools[1]}"


@dataclass(frozen=True)
class BridgeUse:
    """The link between pools with all that crosses it. ``exposed`` seconds of a step of ``step`` wait for it."""

    name: str
    bandwidth: float
    """Bytes/s that a card reaches, before what staging takes."""
    latency: float
    host_staged: bool
    crossings: tuple[Crossing, ...]
    exposed: float
    step: float
    activations: Precision
    """The number format of activations on the way, and of their gradients."""
    sums: str
    """That of the weights' gradients."""
    beside: str = ""
    """The second way in words; empty where there is none."""

    @property
    def words(self) -> str:
        """Return link and cost in a sentence."""
        staged = (", staged through the hosts" if self.host_staged else "") + self.beside
        share = units.show(self.exposed / self.step, "ratio")
        waits = f"{units.show(self.exposed, 'time')} of a step waits for it ({share})"
        kinds = {"activations": self.activations, "gradients": self.sums}
        said = ", ".join(f"{what} in {kinds[what]}" for what in dict.fromkeys(one.what for one in self.crossings))
        return f"{self.name}, {units.show(self.bandwidth, 'rate')} reached{staged}; {said}; {waits}"


def bridge_of(plan: Plan, setting: Setting, cost: PlanCost) -> BridgeUse | None:
    """Return what crosses between the pools of a plan; None where it stands on one pool, or nothing joins the pools."""
    bridge, network = setting.bridge, setting.formation.network
    if bridge is None or network is None or len(plan.cards_by_pool()) < 2:
        return None
    setting = setting.for_plan(plan)
    groups = list(zip(groups_of(plan).values(), cost.groups, strict=True))
    crossings = [one for entries, group in groups for one in _activations(setting, entries, group)]
    if len(groups) > 1:
        crossings.append(_gradients(plan, setting, cost))
    worst, traits = cost.worst, setting.traits
    sent = traits.reduced_bytes if traits.bridge_gradient_bytes is None else traits.bridge_gradient_bytes
    passed = traits.bridge_activation_bytes
    exposed = worst.pipeline - worst.without_bridges + worst.tail_parts["bridge"]
    beside = ""
    if bridge.direct is not None and network.direct is not None:
        beside = f"; beside it {network.direct.name}, {units.show(bridge.direct.bandwidth, 'rate')} past the hosts"
    return BridgeUse(
        network.name, bridge.bandwidth, bridge.latency, bridge.host_staged, tuple(crossings), exposed, cost.step,
        {None: setting.between, BRIDGE_BYTES["bf16"]: "bf16"}.get(passed, "int8"),
        _format_of(traits.gradient_bytes if sent is None else sent), beside,
    )  # fmt: skip


def _format_of(size: float) -> str:
    """Return the number format of gradients of so many bytes."""
    return {4.0: "fp32", 2.0: "16 bits"}.get(size, f"{8 * size:.0f} bits")


def _activations(setting: Setting, entries: list[Pipeline], group: GroupCost) -> Iterator[Crossing]:
    first = entries[0]
    whole = traffic.bridge_bytes(setting, first.micro_batch_size)
    replicas = sum(entry.count for entry in entries)
    times = sum(entry.count * entry.micro_batches for entry in entries)
    for index, (here, there) in enumerate(itertools.pairwise(group.stages)):
        if here.crosses:
            pools = (here.stage.pool, there.stage.pool)
            way = _way(setting, whole / min(here.stage.cards, there.stage.cards))
            yield Crossing(
                "activations", pools, (index, index + 1), replicas, whole, here.transfer, 2 * times * whole, *way
            )


def _gradients(plan: Plan, setting: Setting, cost: PlanCost) -> Crossing:
    """Return the sum of gradients over the groups of replicas."""
    assert setting.bridge is not None  # noqa: S101
    sent = {id(stage): float(setting.bridge.volume(stage.across)) for stage in cost.stages}
    fullest = max(cost.stages, key=lambda stage: stage.across)
    total = 0.0
    for entries, group in zip(groups_of(plan).values(), cost.groups, strict=True):
        replicas = sum(entry.count for entry in entries)
        total += sum(sent[id(stage)] * stage.stage.cards * replicas for stage in group.stages)
    pools = tuple(dict.fromkeys(stage.stage.pool for stage in cost.stages))
    way = _way(setting, sent[id(fullest)])
    return Crossing("gradients", pools, (), plan.replicas, sent[id(fullest)], fullest.across, total, *way)


def _way(setting: Setting, volume: float) -> tuple[bool, str]:
    """Return whether a message of a card is staged through the hosts, and which way that is where there are two."""
    bridge, network = setting.bridge, setting.formation.network
    assert bridge is not None and network is not None  # noqa: S101, PT018
    taken = bridge.way(volume)
    if bridge.direct is None or network.direct is None:
        return taken.host_staged, ""
    return taken.host_staged, f"over {network.name}" if taken is bridge else f"over {network.direct.name}"
