"""Who does what. A plan is linear in distinct makers and pipelines, not in cards."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from zhenfa.spec.document import Document, Part
from zhenfa.spec.machine import BETWEEN, Name, Precision

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v", "dualpipe"]
Offload = Literal["none", "optimizer", "activations", "both"]
Reshard = Literal["layer", "micro-batch", "step"]
ContextExchange = Literal["ring", "gather", "all-to-all"]
RecomputeModule = Literal[
    "norm",
    "activation",
    "attention",
    "feed-forward",
    "experts",
    "expert-activation",
    "up-projection",
    "alternate-matmul",
]
"""``alternate-matmul``: every other matmul of a layer, counted as its output and down projections."""
USUAL_MODULES: tuple[RecomputeModule, ...] = ("norm", "activation")
"""What selective recomputation computes again where a stage names nothing."""
Degree = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]

PLACED_AS_V: tuple[Schedule, ...] = ("zero-bubble-v",)
"""Schedules whose second run of stages goes back over the places in reverse order."""

VIRTUAL: tuple[Schedule, ...] = ("interleaved", "zero-bubble-v")
"""Schedules in which a place may hold several stages."""


class Stage(Part):
    """One pipeline stage: layers ``first`` up to but not including ``last``, cut over the cards of a pool.

    The stem (embeddings) belongs to the first stage and the head to the last. ``tensor_parallel`` cards split the
    features and ``context_parallel`` the sequence: such a group works on the same sequences. ``data_parallel`` groups
    of one replica take equal parts of each of its micro-batches, so that a stage has a micro-batch size of its own. Of
    the cards of the same stage over all replicas, ``expert_parallel * expert_tensor_parallel`` hold each expert once:
    ``expert_parallel`` share out the experts and ``expert_tensor_parallel`` split each.

    ``recompute``: activations are kept (``none``), all but what ``recompute_modules`` name (``selective``; by default
    norms and activation functions), or only the layer's input (``full``), of ``recompute_layers`` of the stage's layers
    (default: all; the others keep everything). ``offload_layers`` of the stage's layers (default: all) keep their
    activations in host memory where the plan offloads activations. ``precision``: of its matmuls (None: the plan's);
    the stages of a pool have the same.
    """

    pool: Name
    first: Annotated[int, Field(ge=0, strict=True)]
    last: Annotated[int, Field(ge=0, strict=True)]
    tensor_parallel: Degree = 1
    context_parallel: Degree = 1
    data_parallel: Degree = 1
    expert_parallel: Degree = 1
    expert_tensor_parallel: Degree = 1
    recompute: Recompute = "none"
    recompute_layers: Annotated[int, Field(ge=0, strict=True)] | None = None
    recompute_modules: tuple[RecomputeModule, ...] = ()
    offload_layers: Annotated[int, Field(ge=0, strict=True)] | None = None
    precision: Precision | None = None

    @property
    def layers(self) -> int:
        """Return how many layers the stage holds."""
        return self.last - self.first

    @property
    def cards(self) -> int:
        """Return how many cards of one replica work on the stage."""
        return self.tensor_parallel * self.context_parallel * self.data_parallel

    @property
    def cut(self) -> tuple[object, ...]:
        """Return where the stage stands and how it is cut: the same for all stages of one place."""
        return (
            self.pool, self.tensor_parallel, self.context_parallel, self.data_parallel, self.expert_parallel,
            self.expert_tensor_parallel, self.precision,
        )  # fmt: skip

    @property
    def recomputed_layers(self) -> int:
        """Return how many layers are computed again."""
        if self.recompute == "none":
            return 0
        return self.layers if self.recompute_layers is None else min(self.recompute_layers, self.layers)


class Pipeline(Part):
    """``count`` identical data-parallel replicas, each running ``micro_batches`` of ``micro_batch_size`` sequences
    (which the groups of a stage share out: its ``data_parallel``).

    ``stages`` in the order of the model. Each place (a set of cards) holds ``virtual_stages`` of them: stage ``i`` of
    ``n`` stands at place ``i mod n/virtual_stages``, or, where the schedule is placed like the letter V, at the place
    that the way there and back reaches.
    """

    count: Degree = 1
    micro_batches: Degree
    micro_batch_size: Degree = 1
    virtual_stages: Degree = 1
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @property
    def places(self) -> int:
        """Return how many sets of cards the pipeline goes over."""
        return len(self.stages) // self.virtual_stages

    @property
    def cards(self) -> int:
        """Return the cards of all replicas."""
        return self.count * sum(stage.cards for stage in self.stages[: self.places])

    @property
    def sequences(self) -> int:
        """Return the sequences of one step over all replicas."""
        return self.count * self.micro_batches * self.micro_batch_size

    def place_of(self, index: int, schedule: Schedule) -> int:
        """Return at which place stage ``index`` stands."""
        turn, place = divmod(index, self.places)
        return self.places - 1 - place if schedule in PLACED_AS_V and turn % 2 else place

    @model_validator(mode="after")
    def _layers_follow_on(self) -> Self:
        here = 0
        for index, stage in enumerate(self.stages):
            if stage.first != here or stage.last < stage.first:
                raise ValueError(f"stage {index} holds layers {stage.first} to {stage.last}, but layer {here} is next")
            if self.micro_batch_size % stage.data_parallel:
                raise ValueError(
                    f"stage {index} shares micro-batches of {self.micro_batch_size} out over data_parallel "
                    f"{stage.data_parallel}: write a divisor of {self.micro_batch_size}"
                )
            here = stage.last
        if len(self.stages) % self.virtual_stages:
            raise ValueError(
                f"{len(self.stages)} stages cannot stand {self.virtual_stages} to a place (virtual_stages)"
            )
        return self


class Plan(Document):
    """A layout of one training job over a machine.

    ``precision``: of the matmuls of every stage that does not say its own. Master weights and gradients, and what flows
    between stages, are in formats that all of them share (:data:`zhenfa.spec.machine.BETWEEN`).
    ``zero``: what replicas share out: nothing (0), the optimizer's state (1), gradients too (2), weights too (3, also
    called fully sharded). ``shard_group``: over so many cards, several such groups holding the same (None: over all
    replicas). ``reshard``: when weights gathered under ``zero`` 3 are dropped: after each layer, so that the backward
    pass gathers them again, after each micro-batch, or after the step (None: after each layer).
    ``reduce_every``: whether gradients are reduced once a step or after every micro-batch (None: every micro-batch from
    ``zero`` 2 on). ``sequence_parallel``: norms and residuals are split over the tensor-parallel cards (None: as the
    engine does). ``context_exchange``: how cards that split the sequence see each other's keys and values (None: as the
    engine does). ``trainable`` ``lora``: only adapters of ``lora_rank`` on every matmul of the layers are trained.
    ``offload``: what is kept in host memory. ``expert_imbalance``: tokens of the busiest card over the mean (None: as
    the engine's routing gives).
    """

    schema_name: ClassVar[str] = "zhenfa.plan/1"

    job: str
    model: str
    machine: str
    sequence_length: Annotated[int, Field(ge=1, le=100_000_000, strict=True)]
    precision: Precision
    schedule: Schedule = "1f1b"
    zero: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    shard_group: Degree | None = None
    reshard: Reshard | None = None
    reduce_every: Literal["step", "micro-batch"] | None = None
    sequence_parallel: bool | None = None
    context_exchange: ContextExchange | None = None
    offload: Offload = "none"
    trainable: Literal["full", "lora"] = "full"
    lora_rank: Degree = 16
    expert_imbalance: Annotated[float, Field(ge=1, le=1000)] | None = None
    pipelines: Annotated[tuple[Pipeline, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _same_layers(self) -> Self:
        ends = {pipeline.stages[-1].last for pipeline in self.pipelines}
        if len(ends) != 1:
            raise ValueError(f"every pipeline holds the whole model, but they end at layers {sorted(ends)}")
        return self

    @model_validator(mode="after")
    def _places_hold_alike(self) -> Self:
        for pipeline in self.pipelines:
            if pipeline.virtual_stages > 1 and self.schedule not in VIRTUAL:
                raise ValueError(
                    f"virtual_stages is {pipeline.virtual_stages}, but schedule {self.schedule} has one stage to a "
                    f"place: write schedule {' or '.join(VIRTUAL)}"
                )
            if self.schedule == "zero-bubble-v" and pipeline.virtual_stages != 2:
                raise ValueError("schedule zero-bubble-v has two stages to a place: write virtual_stages 2")
            for index, stage in enumerate(pipeline.stages):
                place = pipeline.place_of(index, self.schedule)
                if stage.cut != pipeline.stages[place].cut:
                    raise ValueError(f"stages {place} and {index} stand at the same place but are cut differently")
        return self

    @model_validator(mode="after")
    def _precisions_meet(self) -> Self:
        found = {"the plan": self.precision}
        for pipeline in self.pipelines:
            for stage in pipeline.stages:
                own = stage.precision or self.precision
                if found.setdefault(stage.pool, own) != own:
                    raise ValueError(
                        f"stages on {stage.pool} compute in {found[stage.pool]} and in {own}: give all stages of a "
                        "pool one precision"
                    )
        between = {BETWEEN[one]: f"{where} in {one}" for where, one in found.items()}
        if len(between) > 1:
            said = "; ".join(f"{words}, with {kind} between layers" for kind, words in between.items())
            raise ValueError(
                f"no number format in common for what crosses between stages ({said}): write precisions that have one, "
                "such as bf16 and fp8"
            )
        return self

    def precision_by_pool(self) -> dict[str, Precision]:
        """Return in what precision the cards of each pool compute."""
        return {
            stage.pool: stage.precision or self.precision
            for pipeline in self.pipelines
            for stage in pipeline.stages[: pipeline.places]
        }

    @property
    def cards(self) -> int:
        """Return how many cards work."""
        return sum(pipeline.cards for pipeline in self.pipelines)

    @property
    def replicas(self) -> int:
        """Return the data-parallel degree."""
        return sum(pipeline.count for pipeline in self.pipelines)

    @property
    def global_batch(self) -> int:
        """Return the sequences of one step."""
        return sum(pipeline.sequences for pipeline in self.pipelines)

    @property
    def layers(self) -> int:
        """Return the layers of the model."""
        return self.pipelines[0].stages[-1].last

    def cards_by_pool(self) -> dict[str, int]:
        """Return how many cards of each pool work."""
        counts: dict[str, int] = {}
        for pipeline in self.pipelines:
            for stage in pipeline.stages[: pipeline.places]:
                counts[stage.pool] = counts.get(stage.pool, 0) + pipeline.count * stage.cards
        return counts
