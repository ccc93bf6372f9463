"""What is wanted: a model, a workload and an owner."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from zhenfa.spec.document import Document, Part
from zhenfa.spec.machine import Machine, Name, Precision
from zhenfa.spec.serving import ServingWorkload
from zhenfa.spec.upkeep import Recovery


class Workload(Part):
    """A training workload. ``global_batch`` counts sequences; ``tokens`` is the length of the whole run."""

    task: Literal["train"] = "train"
    sequence_length: Annotated[int, Field(ge=1, le=100_000_000, strict=True)]
    global_batch: Annotated[int, Field(ge=1, le=10_000_000, strict=True)]
    precision: Precision = "bf16"
    optimizer: Literal["adamw"] = "adamw"
    tokens: Annotated[float, Field(gt=0, le=1e18)] | None = None


class Limits(Part):
    """Bounds on the search."""

    max_cards: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_tensor_parallel: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_pipeline_parallel: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_context_parallel: Annotated[int, Field(ge=1, strict=True)] | None = None
    micro_batch_size: Annotated[int, Field(ge=1, strict=True)] | None = None


class Execution(Part):
    """How ``zhenfa run`` executes the job."""

    steps: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 6
    compare_even_steps: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = 0
    data: str = "python-stdlib"
    engine: Literal["local", "ray"] = "local"
    step_timeout_s: Annotated[float, Field(gt=0, le=86400)] = 120.0


class Job(Document):
    """A model and a workload with an owner and a priority.

    ``workload`` trains or serves, told apart by ``task``; where that is left out, a workload with an ``input_length``
    serves and any other trains.
    ``model`` is a catalog name, or the path of a model document or a Hugging Face ``config.json``. ``machine`` is a
    catalog name, the path of a machine document, or a machine written out. ``assume`` supplies values that makers
    have not published, by dotted name; what rests on them is tagged assumed. ``recovery`` is what is done about
    failures.
    """

    schema_name: ClassVar[str] = "zhenfa.job/1"

    name: Name
    owner: str | None = None
    priority: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    model: str
    machine: str | Machine | None = None
    workload: Annotated[Workload | ServingWorkload, Field(discriminator="task")]
    limits: Limits = Limits()
    execution: Execution = Execution()
    recovery: Recovery = Recovery()
    assume: dict[str, str | float] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_task(cls, data: Any) -> Any:
        workload = data.get("workload") if isinstance(data, dict) else None
        if not isinstance(workload, dict) or "task" in workload:
            return data
        return {**data, "workload": {"task": "serve" if "input_length" in workload else "train", **workload}}
