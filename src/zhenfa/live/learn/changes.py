"""From what the cards were timed at to what each law should have said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from zhenfa.estimate.costs import StageCost
from zhenfa.live.learn.model import Change, Home, StepModel
from zhenfa.live.learn.timings import Sum, Timings
from zhenfa.spec.machine import Formation

SUMS = ("reduce", "gather", "across")


def changes_of(model: StepModel, timings: Timings, formation: Formation) -> list[Change]:
    """Return a change for every law at every place where something was predicted or measured.

    ``formation``: the machine whose pools the cards belong to.
    """
    return [
        *_routing(model, timings),
        *(_compute(model, timings, home) for home in model.homes),
        *_messages(model, timings, formation),
        *_sums(model, timings, formation),
        *(_update(model, timings, home) for home in model.homes),
        _host(model, timings),
    ]


def cards_in_words(ranks: Sequence[int]) -> str:
    """Return cards by rank: ``card 3``, ``cards 0, 2``."""
    return ("card " if len(ranks) == 1 else "cards ") + ", ".join(map(str, ranks))


def link_of(formation: Formation, cards: Sequence[tuple[str, int]]) -> tuple[str | None, str]:
    """Return the link that joins cards, each a pool's name and the card's index there: a pool and its tier, or the
    network, which is of no pool."""
    pools = {pool for pool, _ in cards}
    if len(pools) == 1:
        pool = formation.pool(next(iter(pools)))
        for tier in pool.tiers:
            if len({index // tier.size for _, index in cards}) == 1:
                return pool.name, f"{pool.name}.{tier.name}"
    return None, "network" if formation.network is None else formation.network.name


def _routing(model: StepModel, timings: Timings) -> Iterator[Change]:
    """Yield a change for tokens that fall on the cards of a pool less evenly than predicted."""
    for pool in dict.fromkeys(home.pool for home in model.homes if model.uneven is not None):
        homes = [home for home in model.homes if home.pool == pool]
        predicted = max(_busy(timings, home, model.stages(home.replica)) for home in homes)
        measured = max(_busy(timings, home, model.routed(home.replica)) for home in homes)
        if measured == predicted:
            continue

        def apply(replica: int, stages: list[StageCost], homes: list[Home] = homes) -> None:
            for home in homes:
                if home.replica == replica:
                    _replace(model, home, stages, model.stages(replica), dict(enumerate(model.routed(replica))))

        where = f"pool {pool}, busiest card {model.busiest:.3g} times the mean"
        cards = tuple(sorted(rank for home in homes for rank in home.ranks))
        replicas = frozenset(home.replica for home in homes)
        yield Change("expert routing", where, cards, predicted, measured, replicas, apply, pool=pool)


def _busy(timings: Timings, home: Home, costed: Sequence[StageCost]) -> float:
    """Return the seconds of a step in which a place works on its stages."""
    return sum(_count(timings, home, stage) * costed[stage].busy for stage in home.stages)


def _replace(
    model: StepModel, home: Home, stages: list[StageCost], before: Sequence[StageCost], after: Mapping[int, StageCost]
) -> None:
    """Bring the passes of a place's stages from some seconds to others."""
    for stage in home.stages:
        share = 0.5 if _homes_holding(model, home, stage) > 1 else 1.0  # the other place answers for the other half
        forward, backward, weight = (
            getattr(stages[stage], name) + share * (getattr(after[stage], name) - getattr(before[stage], name))
            for name in ("forward", "backward", "weight")
        )
        stages[stage] = replace(stages[stage], forward=forward, backward=backward, weight=weight)


def _compute(model: StepModel, timings: Timings, home: Home) -> Change:
    costed = model.routed(home.replica)
    found = {stage: _passes(timings, home, stage, costed[stage]) for stage in home.stages}
    whole = [found.get(stage, one) for stage, one in enumerate(costed)]
    predicted, measured = _busy(timings, home, costed), _busy(timings, home, whole)

    def apply(_: int, stages: list[StageCost]) -> None:
        _replace(model, home, stages, costed, found)

    where = f"{cards_in_words(home.ranks)} of pool {home.pool}"
    return Change(
        "compute", where, home.ranks, predicted, measured, frozenset({home.replica}), apply, pool=home.pool
    )  # fmt: skip


def _homes_holding(model: StepModel, home: Home, stage: int) -> int:
    return sum(other.replica == home.replica and stage in other.stages for other in model.homes)


def _passes(timings: Timings, home: Home, stage: int, costed: StageCost) -> StageCost:
    """Return a stage with the seconds that its passes took: those of the slowest card of a place."""

    def mean(kind: str) -> float:
        return max(timings.work.get((rank, stage, kind), Sum()).mean for rank in home.ranks)

    forward, whole, weight = mean("forward"), mean("backward"), mean("weight")
    backward = whole or mean("input") + weight
    if not forward or not backward:
        return costed
    part = costed.weight / costed.backward if costed.backward else 0.0
    return replace(costed, forward=forward, backward=backward, weight=weight or part * backward)


def _count(timings: Timings, home: Home, stage: int) -> float:
    """Return the micro-batches of a step that go through a stage at a place."""
    return timings.work.get((home.ranks[0], stage, "forward"), Sum()).count / max(timings.steps, 1)


def _messages(model: StepModel, timings: Timings, formation: Formation) -> Iterator[Change]:
    """Yield a change for every link between stages that messages were timed on."""
    found: dict[tuple[str | None, str], dict[tuple[int, int], tuple[float, float]]] = {}
    cards: dict[tuple[str | None, str], set[int]] = {}
    for home, after, stage in _hops(model):
        pairs = [(one, other) for one in home.ranks for other in after.ranks]
        timed = [timings.messages[way] for pair in pairs for way in (pair, pair[::-1]) if way in timings.messages]
        if not timed:
            continue
        ends = [model.places[rank].card for rank in (home.ranks[0], after.ranks[0])]
        mean = sum(one.seconds for one in timed) / sum(one.count for one in timed)
        name = link_of(formation, ends)
        found.setdefault(name, {})[home.replica, stage] = (mean, 2 * _count(timings, home, stage))
        cards.setdefault(name, set()).update((*home.ranks, *after.ranks))
    for name, hops in found.items():
        costed = {key: model.stages(key[0])[key[1]].transfer for key in hops}

        def apply(replica: int, stages: list[StageCost], hops: dict = hops) -> None:  # type: ignore[type-arg]
            for (mine, stage), (seconds, _) in hops.items():
                if mine == replica:
                    stages[stage] = replace(stages[stage], transfer=seconds)

        yield Change(
            "messages", name[1], tuple(sorted(cards[name])),
            sum(times * costed[key] for key, (_, times) in hops.items()),
            sum(times * seconds for seconds, times in hops.values()), frozenset(mine for mine, _ in hops), apply,
            pool=name[0],
        )  # fmt: skip


def _hops(model: StepModel) -> Iterator[tuple[Home, Home, int]]:
    """Yield where each stage but the last of every replica stands, where the next one does, and its number."""
    for replica in range(len(model.groups)):
        at = {stage: home for home in model.homes if home.replica == replica for stage in home.stages}
        for stage, after in pairwise(sorted(at)):
            if at[stage] is not at[after]:
                yield at[stage], at[after], stage


def _sums(model: StepModel, timings: Timings, formation: Formation) -> Iterator[Change]:
    for ranks, seconds in timings.sums.items():
        homes = [home for home in model.homes if set(home.ranks) & set(ranks)]
        predicted = max(_summed(model, home) for home in homes)
        measured = seconds / max(timings.steps, 1)
        if not predicted and not measured:
            continue

        def apply(
            replica: int, stages: list[StageCost], homes: list[Home] = homes, predicted: float = predicted,
            measured: float = measured,
        ) -> None:  # fmt: skip
            for home in homes:
                if home.replica == replica:
                    _scale(stages, home, SUMS, predicted, measured)

        pool, name = link_of(formation, [model.places[rank].card for rank in ranks])
        yield Change(
            "gradient sum", name, ranks, predicted, measured, frozenset(home.replica for home in homes), apply,
            pool=pool,
        )  # fmt: skip


def _summed(model: StepModel, home: Home) -> float:
    costed = model.stages(home.replica)
    stages = [costed[stage] for stage in home.stages]
    return sum(one.reduce + one.gather + one.across for one in stages)


def _scale(stages: list[StageCost], home: Home, names: Sequence[str], predicted: float, measured: float) -> None:
    """Bring the seconds of a place from predicted to measured ones; the first name takes all if none were predicted."""
    for stage in home.stages:
        if predicted:
            scaled = {name: getattr(stages[stage], name) * measured / predicted for name in names}
        else:
            scaled = {names[0]: measured / len(home.stages)}
        stages[stage] = replace(stages[stage], **scaled)


def _update(model: StepModel, timings: Timings, home: Home) -> Change:
    costed = model.stages(home.replica)
    predicted = sum(costed[stage].optimizer for stage in home.stages)
    measured = max(timings.optimizer.get(rank, Sum()).mean for rank in home.ranks)

    def apply(_: int, stages: list[StageCost]) -> None:
        _scale(stages, home, ("optimizer",), predicted, measured)

    where = f"{cards_in_words(home.ranks)} of pool {home.pool}"
    return Change(
        "optimizer", where, home.ranks, predicted, measured, frozenset({home.replica}), apply, pool=home.pool
    )  # fmt: skip


def _host(model: StepModel, timings: Timings) -> Change:
    """Return what the host adds: between the operations of the pipeline, and after the last of them."""
    steps = max(timings.steps, 1)
    each: dict[tuple[int, int], float] = {}
    most = 0.0
    for home in model.homes:
        gap = max(timings.gaps.get(rank, 0.0) for rank in home.ranks) / steps
        passes = sum(
            timings.work.get((home.ranks[0], stage, kind), Sum()).count
            for stage in home.stages
            for kind in ("forward", "backward", "input", "weight")
        )
        most = max(most, gap)
        each |= {(home.replica, stage): gap * steps / max(passes, 1) for stage in home.stages}

    def apply(replica: int, stages: list[StageCost]) -> None:
        for (mine, stage), gap in each.items():
            if mine == replica:
                one = stages[stage]
                stages[stage] = replace(one, forward=one.forward + gap, backward=one.backward + gap)

    fixed = model.setting.traits.step_overhead_s
    tail = timings.tail / steps
    return Change(
        "host", "between operations and after the last", (), fixed, most + tail, frozenset(range(len(model.groups))),
        apply, later=tail - fixed,
    )  # fmt: skip
