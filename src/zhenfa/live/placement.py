"""Which card of the machine takes which stage of the plan, and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.links import Link, link_between
from zhenfa.live.makers import maker_for
from zhenfa.live.operations import homes, operations
from zhenfa.live.sizes import Sizes
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
    ``tensor`` of ``tensors`` is the card's number among those that split the matrices of its stages.
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

    @property
    def card(self) -> Card:
        """Return which card of the machine it is, whatever its rank."""
        return self.pool, self.index

    @property
    def label(self) -> str:
        """Return the card in words, as messages name it."""
        return (
            f"card {self.rank} ({self.accelerator}, pool {self.pool}, stage {self.stage} of pipeline {self.pipeline})"
        )

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

    @property
    def sequences(self) -> int:
        """Return the sequences of the pipeline's share of a step."""
        return self.micro_batches * self.micro_batch_size


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
                for tensor in range(stage.tensor_parallel):
                    number = taken.get(stage.pool, 0)
                    taken[stage.pool] = number + 1
                    pool, index = _find(formation, plan, stage.pool, number, there)
                    ids = (len(places), pipeline_index, place_index, index, sequence)
                    split = (tensor, stage.tensor_parallel)
                    places.append(_card(ids, split, pipeline, held, pool, stage.precision or plan.precision))
            pipeline_index += 1
            sequence += pipeline.micro_batches * pipeline.micro_batch_size
    return tuple(places)


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
    if plan.zero > 1:
        raise _refusal(f"ZeRO-{plan.zero}", "replicas share out the optimizer's state at most", "zero: 0 or 1")
    if plan.shard_group is not None and plan.zero and plan.shard_group != plan.replicas:
        raise _refusal("several shard groups", "state is shared out over all replicas", "shard_group left out")
    if plan.offload != "none":
        raise _refusal(f"offload of {plan.offload}", "everything stays on the card", "offload: none")
    if plan.trainable != "full":
        raise _refusal("trainable: lora", "every weight is trained", "trainable: full")
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            _check_cut(stage)
    _check_split(plan, sizes)


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


def _check_cut(stage: Stage) -> None:
    for field in ("context_parallel", "data_parallel", "expert_parallel", "expert_tensor_parallel"):
        degree = getattr(stage, field)
        if degree > 1:
            words = field.replace("_parallel", "").replace("_", " ")
            raise _refusal(f"{words} parallelism of {degree}", "a stage runs on one card", f"{field}: 1")
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
    ids: tuple[int, int, int, int, int], split: tuple[int, int], pipeline: Pipeline, chunks: tuple[Chunk, ...],
    pool: CardPool, precision: Precision,
) -> CardPlace:  # fmt: skip
    rank, pipeline_index, place_index, index, sequence = ids
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
        provider.id, *split, precision, chunks, pipeline.virtual_stages, pipeline.micro_batches,
        pipeline.micro_batch_size, sequence, rate, memory_rate, accelerator.memory.capacity.value,
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
