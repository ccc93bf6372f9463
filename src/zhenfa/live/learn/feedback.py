"""What a run has taught, put into its machine's document beside what makers have published.

A ratio measured here multiplies one that was there before, for it was measured over a prediction that knew that one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from zhenfa import units
from zhenfa.spec.fact import Fact, undisclosed
from zhenfa.spec.machine import Formation, Learned, Machine, Network
from zhenfa.spec.result import Attribution, Law, LawRow


@dataclass(frozen=True)
class Lesson:
    """What one run measured over what was predicted: ratios of seconds by pool, by pool and tier, and by network."""

    compute: Mapping[str, Fact] = field(default_factory=dict)
    optimizer: Mapping[str, Fact] = field(default_factory=dict)
    tiers: Mapping[tuple[str, str], Fact] = field(default_factory=dict)
    networks: Mapping[str, Fact] = field(default_factory=dict)


def lesson(
    found: Attribution, job: str, *, emulated: bool, split: Iterable[str] = (), odd: Iterable[str] = ()
) -> Lesson:
    """Return what an attribution teaches; nothing where its timing is not valid.

    A pool's ratio is the lower median of its cards', so that one slow card does not make all of them slow. Of pools
    whose cards ``split`` matrices or share experts out nothing is learned of compute: their timings hold what goes
    between the cards; and nothing of
    the cards of ``odd`` pools.
    """
    if not found.judged:
        return Lesson()
    steps = "1 step" if found.steps == 1 else f"{found.steps} steps"
    source = f"zhenfa run of {job}, {steps}, {date.today().isoformat()}" + (", EMULATED" if emulated else "")
    cards = [row for row in found.rows if row.pool not in set(odd)]
    whole = [row for row in cards if row.pool not in set(split)]
    links, networks = _by_link(found.rows, source)
    return Lesson(
        _by_pool(whole, "compute", source), _by_pool(cards, "optimizer", source), links, networks
    )  # fmt: skip


def _by_pool(rows: Sequence[LawRow], law: Law, source: str) -> dict[str, Fact]:
    cards: dict[str, list[LawRow]] = {}
    for row in rows:
        if row.law == law and row.pool is not None and row.ratio:
            cards.setdefault(row.pool, []).append(row)
    return {pool: _fact(statistics.median_low([row.ratio or 1.0 for row in mine]), mine, source)
            for pool, mine in cards.items()}  # fmt: skip


def _by_link(rows: Sequence[LawRow], source: str) -> tuple[dict[tuple[str, str], Fact], dict[str, Fact]]:
    found: dict[tuple[str | None, str], list[LawRow]] = {}
    for row in rows:
        if row.law in {"messages", "gradient sum"} and row.ratio:
            found.setdefault((row.pool, row.where), []).append(row)
    tiers: dict[tuple[str, str], Fact] = {}
    networks: dict[str, Fact] = {}
    for (pool, where), mine in found.items():
        ratio = sum(row.measured_s for row in mine) / sum(row.predicted_s for row in mine)
        if pool is None:
            networks[where] = _fact(ratio, mine, source)
        else:
            tiers[pool, where.removeprefix(f"{pool}.")] = _fact(ratio, mine, source)
    return tiers, networks


def _fact(ratio: float, rows: Sequence[LawRow], source: str) -> Fact:
    before, after = (units.show(sum(getattr(row, name) for row in rows), "time") for name in TIMES)
    what = " and ".join(dict.fromkeys(row.law for row in rows))
    note = f"{what}: {after} a step measured, {before} predicted"
    ratio = float(f"{ratio:.4g}")
    return Fact(value=ratio, dimension="ratio", source=source, confidence="calibrated", note=note)


TIMES = ("predicted_s", "measured_s")


def with_lesson(machine: Machine, taught: Lesson) -> Machine:
    """Return a machine document that knows what was learned; nothing else in it changes."""
    pools = tuple(
        pool.model_copy(update={"learned": _learned(pool.learned, pool.name, taught)}) for pool in machine.pools
    )
    return machine.model_copy(update={"pools": pools, "network": _network(machine.network, taught)})


def applied(formation: Formation, taught: Lesson) -> Formation:
    """Return a machine, looked up, that knows what was learned of the pools and links that it has."""
    pools = tuple(replace(pool, learned=_learned(pool.learned, pool.name, taught)) for pool in formation.pools)
    return replace(formation, pools=pools, network=_network(formation.network, taught))


def _learned(before: Learned, pool: str, taught: Lesson) -> Learned:
    links = dict(before.links)
    for (mine, tier), one in taught.tiers.items():
        if mine == pool:
            links[tier] = _times(links.get(tier), one)
    return before.model_copy(
        update={
            "compute": _times(before.compute, taught.compute.get(pool)),
            "optimizer": _times(before.optimizer, taught.optimizer.get(pool)),
            "links": links,
        }
    )


def _network(before: Network | None, taught: Lesson) -> Network | None:
    if before is None:
        return None
    return before.model_copy(update={"learned": _times(before.learned, taught.networks.get(before.name))})


def _times(before: Fact | None, now: Fact | None) -> Fact:
    """Return a ratio on top of the one before."""
    if now is None:
        return before if before is not None else undisclosed("ratio")
    if before is None or before.value is None or now.value is None:
        return now
    return now.model_copy(
        update={
            "value": before.value * now.value,
            "note": f"{now.note}; on top of {before.value:.3g} ({before.source})",
        }
    )
