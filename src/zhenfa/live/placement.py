"""Which card of the machine takes which stage of the plan, and what is refused before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from zhenfa.errors import CapabilityError, InputError
from zhenfa.estimate.traits import WHOLE_BACKWARD
from zhenfa.live.foreign.source import Source
from zhenfa.live.links import Link, link_between
from zhenfa.live.makers import maker_for
from zhenfa.live.operations import homes, operations
from zhenfa.live.sizes import Mixture, Sizes
from zhenfa.spec.machine import CardPool, Formation, Precision
from zhenfa.spec.plan import Pipeline, Plan, Schedule, Stage


@dataclass(frozen=True)
class Chunk:
    """A stage of the model on a card: layers ``first`` up to but not including ``last``, with stem and head where the
    stage holds them. The first ``recomputed`` of the layers compute their activations again in the backward pass."""

    stage: int
    first: int
    last: int
    stem: bool
    head: bool
    recomputed: int


COMPUTED: Final[frozenset[Precision]] = frozenset({"fp32", "bf16"})
"""Number formats that this version's stages compute in, on cards whose maker's torch does."""

Card = tuple[str, int]
"""A card of a machine: its pool, and its number there."""


@dataclass(frozen=True)
class CardPlace:
    """One card and its work. ``rank`` counts all cards; ``pipeline`` counts replicas; ``index`` counts within the pool.

    ``stage`` is the card's place in its pipeline of ``stages`` places. ``chunks`` are the stages of the model that
    stand there, ``virtual_stages`` as many as the schedule counts (DualPipe holds two, one for each direction).
    ``tensor`` of ``tensors`` is the card's number among those that split the matrices of its stages, of experts too
    where ``expert_tensors`` is as many. ``group`` of ``groups`` is its number among the groups of cards that take equal
    parts of each of the replica's micro-batches, ``micro_batch_size`` sequences each. ``expert_ranks`` are the cards,
    this one among them, that share the experts of its stages out, each the next of them; none or one where it holds
    all. ``rounds`` are the micro-batches that the schedule goes through: as many as any replica has with which the
    pipeline shares experts, empty ones at the end.
    ``rate`` (FLOP/s) and ``memory_rate`` (B/s) pace an emulated card and are None on a real one. ``capacity`` is in
    bytes, None where undisclosed. ``first_sequence`` is where the pipeline's share of the global batch starts.
    """

    rank: int
    pipeline: int
    stage: int
    stages: int
    pool: str
    index: int
    maker: str
    accelerator: str
    provider: str
    tensor: int
    tensors: int
    precision: Precision
    chunks: tuple[Chunk, ...]
    virtual_stages: int
    micro_batches: int
    micro_batch_size: int
    first_sequence: int
    rate: float | None
    memory_rate: float | None
    capacity: float | None
    rounds: int = 1
    expert_tensors: int = 1
    expert_ranks: tuple[int, ...] = ()
    group: int = 0
    groups: int = 1

    @property
    def card(self) -> Card:
        """Return which card of the machine it is, whatever its rank."""
        return self.pool, self.index

    @property
    def label(self) -> str:
        """Return the card in words, as messages name it."""
        part = f", part {self.group} of {self.groups}" if self.groups > 1 else ""
        where = f"stage {self.stage} of pipeline {self.pipeline}{part}"
        return f"card {self.rank} ({self.accelerator}, pool {self.pool}, {where})"

    @property
    def is_first(self) -> bool:
        """Return whether the card holds the stem."""
        return any(chunk.stem for chunk in self.chunks)

    @property
    def is_last(self) -> bool:
        """Return whether the card holds the head."""
        return any(chunk.head for chunk in self.chunks)

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers that the card holds."""
        return tuple(sorted({layer for chunk in self.chunks for layer in range(chunk.first, chunk.last)}))

    def experts(self, count: int) -> range:
        """Return which of the ``count`` experts of a layer the card holds."""
        each = count // max(len(self.expert_ranks), 1)
        first = self.expert_ranks.index(self.rank) * each if self.expert_ranks else 0
        return range(first, first + each)

    @property
    def sequences(self) -> list[int]:
        """Return which sequences of the global batch the card takes, in the order of its micro-batches."""
        size = self.micro_batch_size
        return [
            self.first_sequence + (number * self.groups + self.group) * size + row
            for number in range(self.micro_batches)
            for row in range(size)
        ]


def place(
    plan: Plan, formation: Formation, sizes: Sizes, there: Mapping[str, Sequence[Card]] | None = None
) -> tuple[CardPlace, ...]:
    """Give every stage of every replica a card, in the order of the plan and of each pool.

    ``there`` are the machine's cards by the pools that the plan names, where that is not all of them in order. Raises
    :class:`CapabilityError` for a layout that this version cannot run, :class:`InputError` for a plan that does not fit
    the machine or the model. Nothing has started yet.
    """
    check(plan, sizes)
    taken: dict[str, int] = {}
    places: list[CardPlace] = []
    sequence = pipeline_index = 0
    for pipeline in plan.pipelines:
        for _ in range(pipeline.count):
            for place_index, held in enumerate(chunks_of(pipeline, plan.schedule)):
                stage = pipeline.stages[place_index]
                for card in range(stage.cards):
                    number = taken.get(stage.pool, 0)
                    taken[stage.pool] = number + 1
                    pool, index = _find(formation, plan, stage.pool, number, there)
                    ids = (len(places), pipeline_index, place_index, index, sequence)
                    places.append(_card(ids, card, stage, pipeline, held, pool, stage.precision or plan.precision))
            pipeline_index += 1
            sequence += pipeline.micro_batches * pipeline.micro_batch_size
    return tuple(_with_experts(places, plan)) if sizes.mixture is not None else tuple(places)


def _with_experts(places: list[CardPlace], plan: Plan) -> list[CardPlace]:
    """Give every card those that it shares experts out with: cards of the same stage of replicas cut alike."""
    alike = alike_pipelines(plan)
    found = list(places)
    for numbers, pipeline in alike:
        together = any(stage.cards % _sharing(stage) for stage in pipeline.stages)  # replicas in one group
        most = max(one.micro_batches for one in places if one.pipeline in numbers)
        for index, stage in enumerate(pipeline.stages[: pipeline.places]):
            field = [one.rank for one in places if one.pipeline in numbers and one.stage == index]
            split, held = stage.expert_tensor_parallel, _sharing(stage)
            for number, rank in enumerate(field):
                first = number // held * held + number % split
                found[rank] = replace(
                    found[rank], expert_tensors=split, expert_ranks=tuple(field[first : first + held : split]),
                    rounds=most if together else found[rank].micro_batches,
                )  # fmt: skip
    return found


def _sharing(stage: Stage) -> int:
    """Return how many cards hold each expert of a stage once."""
    return stage.expert_parallel * stage.expert_tensor_parallel


def alike_pipelines(plan: Plan) -> list[tuple[frozenset[int], Pipeline]]:
    """Return the numbers of the pipelines whose stages are the same, each with one of them."""
    groups: dict[tuple[Stage, ...], tuple[set[int], Pipeline]] = {}
    number = 0
    for pipeline in plan.pipelines:
        for _ in range(pipeline.count):
            groups.setdefault(pipeline.stages, (set(), pipeline))[0].add(number)
            number += 1
    return [(frozenset(numbers), pipeline) for numbers, pipeline in groups.values()]


def chunks_of(pipeline: Pipeline, schedule: Schedule) -> list[tuple[Chunk, ...]]:
    """Return for each place of a pipeline the stages that stand there, in the order of the model."""
    rows = operations(schedule, pipeline.places, pipeline.virtual_stages, pipeline.micro_batches)
    held: list[set[int]] = [set() for _ in rows]
    for (number, _), place_index in homes(rows).items():
        held[place_index].add(number)
    last = len(pipeline.stages) - 1
    return [
        tuple(
            Chunk(index, stage.first, stage.last, index == 0, index == last, stage.recomputed_layers)
            for index in sorted(stages)
            if (stage := pipeline.stages[index])
        )
        for stages in held
    ]


def check(plan: Plan, sizes: Sizes) -> None:
    """Refuse what this version cannot run, in a sentence. Raises :class:`CapabilityError` or :class:`InputError`."""
    if plan.layers != sizes.layers:
        raise InputError(f"the plan holds {plan.layers} layers, the model {sizes.layers}.")
    if plan.shard_group is not None and plan.zero and _holders(plan) != {plan.shard_group}:
        raise _refusal("several shard groups", "state is shared out over all replicas", "shard_group left out")
    if plan.offload != "none":
        raise _refusal(f"offload of {plan.offload}", "everything stays on the card", "offload: none")
    if plan.trainable != "full":
        raise _refusal("trainable: lora", "every weight is trained", "trainable: full")
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            _check_cut(stage)
    if sizes.source is not None:
        _check_foreign(plan, sizes.source)
        return
    _check_split(plan, sizes)
    if plan.zero > 1:
        _check_rows(plan)
    _check_experts(plan, sizes.mixture)


def _holders(plan: Plan) -> set[int]:
    """Return how many cards hold the same weights, over all stages."""
    return {plan.replicas * stage.data_parallel for pipeline in plan.pipelines for stage in pipeline.stages}


def _check_foreign(plan: Plan, source: Source) -> None:
    """Refuse what needs to know a module from inside."""
    if plan.schedule not in WHOLE_BACKWARD:
        words = f"the backward pass of {source.label} runs as a whole"
        raise _refusal(f"the schedule {plan.schedule}", words, f"schedule: {', '.join(WHOLE_BACKWARD)}")
    if plan.zero > 1:
        raise _refusal(f"ZeRO-{plan.zero}", f"weights and gradients of {source.label} stay whole", "zero: 0 or 1")
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            for field in ("tensor_parallel", "expert_parallel", "expert_tensor_parallel"):
                if getattr(stage, field) > 1:
                    words = f"the matrices of {source.label} stay whole"
                    raise _refusal(f"{field.replace('_', ' ').replace('parallel', 'parallelism')} of "
                                   f"{getattr(stage, field)}", words, f"{field}: 1")  # fmt: skip


def _check_experts(plan: Plan, mixture: Mixture | None) -> None:
    """Refuse groups that do not share the experts out evenly."""
    for numbers, pipeline in alike_pipelines(plan):
        for stage in pipeline.stages:
            degree, split = stage.expert_parallel, stage.expert_tensor_parallel
            if mixture is None:
                if _sharing(stage) > 1:
                    raise _refusal(f"expert parallelism of {_sharing(stage)}", "a dense model has no experts to share",
                                   "expert_parallel: 1")  # fmt: skip
                continue
            if mixture.experts % degree:
                words = f"{mixture.experts} experts over {degree} cards do not go evenly"
                raise _refusal(f"expert parallelism of {degree}", words, "expert_parallel: 1")
            if split not in (1, stage.tensor_parallel):
                words = "an expert is split over the tensor-parallel cards of its stage or not at all"
                raise _refusal(f"expert tensor parallelism of {split}", words,
                               f"expert_tensor_parallel: 1 or {stage.tensor_parallel}")  # fmt: skip
            for what, size, cards in (
                ("the features of an expert", mixture.size, split),
                ("the features of the shared expert", mixture.shared, stage.tensor_parallel),
            ):
                if size % cards:
                    raise _refusal(f"tensor parallelism of {cards}", f"{size} {what[4:]} do not split evenly",
                                   "tensor_parallel: 1")  # fmt: skip
            cards = len(numbers) * stage.cards
            if cards % _sharing(stage):
                raise InputError(
                    f"{cards} cards of the replicas cut alike hold stage {stage.first}-{stage.last}, which are no "
                    f"whole groups of {_sharing(stage)} that share its experts out.",
                    hint=f"write expert_parallel {math.gcd(cards // split, degree)}, or other replicas.",
                )


def _check_split(plan: Plan, sizes: Sizes) -> None:
    """Refuse matrices that do not split evenly."""
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            degree = stage.tensor_parallel
            for what in ("heads", "kv_heads", "intermediate", "vocabulary"):
                if getattr(sizes, what) % degree:
                    words = f"{getattr(sizes, what)} {what.replace('_', '-')} over {degree} cards"
                    raise _refusal(
                        f"tensor parallelism of {degree}", f"{words} do not split evenly", "tensor_parallel: 1"
                    )
    if plan.sequence_parallel:
        raise _refusal("sequence parallelism", "norms are whole on every card", "sequence_parallel: false")


def _check_rows(plan: Plan) -> None:
    """Refuse rows of weights and gradients that cards would share out though they split the matrices unlike."""
    degrees: dict[int, set[int]] = {}
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            for layer in range(stage.first, stage.last):
                degrees.setdefault(layer, set()).add(stage.tensor_parallel)
    for layer, found in degrees.items():
        if len(found) > 1:
            raise _refusal(
                f"ZeRO-{plan.zero} over replicas that split layer {layer} over {' and '.join(map(str, sorted(found)))} "
                "cards", "cards share out rows of the same matrices",
                f"zero: 0 or 1, or tensor_parallel: {min(found)} in every replica",
            )  # fmt: skip


def _check_cut(stage: Stage) -> None:
    if stage.context_parallel > 1:
        raise _refusal(f"context parallelism of {stage.context_parallel}", "each card works on whole sequences",
                       "context_parallel: 1")  # fmt: skip
    if stage.recompute == "selective":
        raise _refusal("selective recomputation", "a layer is computed again whole or not at all",
                       "recompute: full or none")  # fmt: skip


def links_of(places: tuple[CardPlace, ...], formation: Formation) -> dict[int, dict[int, Link]]:
    """Return the emulated links between every two cards, by rank of the sender and of the receiver."""
    return {
        one.rank: {
            other.rank: link
            for other in places
            if other.rank != one.rank
            and (link := link_between(formation, (one.pool, one.index), (other.pool, other.index))) is not None
        }
        for one in places
    }


def _refusal(what: str, reason: str, way_out: str) -> CapabilityError:
    return CapabilityError(
        f"the plan asks for {what}; in this version {reason}.",
        hint=f"plan with {way_out}; estimates of such plans work, only `zhenfa run` refuses them.",
    )


def _find(
    formation: Formation, plan: Plan, name: str, number: int, there: Mapping[str, Sequence[Card]] | None
) -> tuple[CardPool, int]:
    """Return the pool of the machine and the index there of the card that is ``number`` in the plan's pool."""
    cards = there if there is not None else {pool.name: _All(pool.name, pool.count) for pool in formation.pools}
    if name not in cards:
        raise InputError(
            f"the plan uses pool {name!r}, which machine {formation.name!r} does not have.",
            hint=f"its pools: {', '.join(cards)}; the plan was made for {plan.machine!r}.",
        )
    if number >= len(cards[name]):
        wanted = plan.cards_by_pool()[name]
        raise InputError(f"the plan needs {wanted} cards of pool {name!r}, which has {len(cards[name])}.")
    pool, index = cards[name][number]
    return formation.pool(pool), index


class _All(Sequence[Card]):
    """All cards of a pool, in order, however many."""

    def __init__(self, pool: str, count: int) -> None:
        self._pool, self._indices = pool, range(count)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: Any) -> Any:
        return self._pool, self._indices[number]


def _card(
    ids: tuple[int, int, int, int, int], card: int, stage: Stage, pipeline: Pipeline, chunks: tuple[Chunk, ...],
    pool: CardPool, precision: Precision,
) -> CardPlace:  # fmt: skip
    rank, pipeline_index, place_index, index, sequence = ids
    group, tensor = divmod(card, stage.tensor_parallel)
    accelerator = pool.accelerator
    provider = maker_for(accelerator)
    if precision not in provider.precisions & COMPUTED:
        known = ", ".join(sorted(provider.precisions & COMPUTED))
        raise CapabilityError(
            f"the plan computes in {precision}; {provider.id} cards compute in {known} in this version.",
            hint="set workload.precision: bf16 or fp32.",
        )
    rate = memory_rate = None
    if accelerator.emulated:
        rate, memory_rate = _pace(pool, precision)
    return CardPlace(
        rank, pipeline_index, place_index, pipeline.places, pool.name, index, accelerator.maker, accelerator.name,
        provider.id, tensor, stage.tensor_parallel, precision, chunks, pipeline.virtual_stages, pipeline.micro_batches,
        pipeline.micro_batch_size // stage.data_parallel, sequence, rate, memory_rate,
        accelerator.memory.capacity.value, rounds=pipeline.micro_batches, group=group, groups=stage.data_parallel,
    )  # fmt: skip


def _pace(pool: CardPool, precision: Precision) -> tuple[float, float]:
    """Return FLOP/s and B/s of an emulated card: peak times what is achievable of it, 1 where that is not given."""
    accelerator = pool.accelerator
    if precision not in accelerator.peak:
        known = ", ".join(accelerator.peak) or "none"
        raise InputError(f"{accelerator.id} has no {precision} peak to be paced to; it has {known}.")
    reached = accelerator.achievable.matmul.get(precision)
    memory_reached = accelerator.achievable.memory.value
    peak = accelerator.peak[precision].require(f"{pool.name}.peak.{precision}")
    bandwidth = accelerator.memory.bandwidth.require(f"{pool.name}.memory.bandwidth")
    share = reached.value if reached is not None and reached.value is not None else 1.0
    return peak * share, bandwidth * (1.0 if memory_reached is None else memory_reached)
