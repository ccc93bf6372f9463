"""Who does what. A plan is linear in distinct makers and pipelines, not in cards."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from zhenfa.spec.document import Document, Part
from zhenfa.spec.machine import Name, Precision

Recompute = Literal["none", "selective", "full"]
Schedule = Literal["gpipe", "1f1b"]
Degree = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Stage(Part):
    """One pipeline stage: layers ``first`` up to but not including ``last``, on ``tensor_parallel`` cards of a pool.

    The stem (embeddings) belongs to the first stage and the head to the last. ``expert_parallel`` cards, drawn from
    the same stage of ``expert_parallel / tensor_parallel`` pipelines, hold each expert once.
    """

    pool: Name
    first: Annotated[int, Field(ge=0, strict=True)]
    last: Annotated[int, Field(ge=0, strict=True)]
    tensor_parallel: Degree = 1
    expert_parallel: Degree = 1
    recompute: Recompute = "none"

    @property
    def layers(self) -> int:
        """Return how many layers the stage holds."""
        return self.last - self.first


class Pipeline(Part):
    """``count`` identical data-parallel replicas, each running ``micro_batches`` of ``micro_batch_size`` sequences."""

    count: Degree = 1
    micro_batches: Degree
    micro_batch_size: Degree = 1
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @property
    def cards(self) -> int:
        """Return the cards of all replicas."""
        return self.count * sum(stage.tensor_parallel for stage in self.stages)

    @property
    def sequences(self) -> int:
        """Return the sequences of one step over all replicas."""
        return self.count * self.micro_batches * self.micro_batch_size

    @model_validator(mode="after")
    def _layers_follow_on(self) -> Self:
        here = 0
        for index, stage in enumerate(self.stages):
            if stage.first != here or stage.last < stage.first:
                raise ValueError(f"stage {index} holds layers {stage.first} to {stage.last}, but layer {here} is next")
            here = stage.last
        return self


class Plan(Document):
    """A layout of one training job over a machine."""

    schema_name: ClassVar[str] = "zhenfa.plan/1"

    job: str
    model: str
    machine: str
    sequence_length: Degree
    precision: Precision
    schedule: Schedule = "1f1b"
    zero: Annotated[int, Field(ge=0, le=3, strict=True)] = 0
    pipelines: Annotated[tuple[Pipeline, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _same_layers(self) -> Self:
        ends = {pipeline.stages[-1].last for pipeline in self.pipelines}
        if len(ends) != 1:
            raise ValueError(f"every pipeline holds the whole model, but they end at layers {sorted(ends)}")
        return self

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
            for stage in pipeline.stages:
                counts[stage.pool] = counts.get(stage.pool, 0) + pipeline.count * stage.tensor_parallel
        return counts
