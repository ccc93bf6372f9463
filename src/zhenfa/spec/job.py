"""What is wanted: a model, a workload and an owner."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from zhenfa.errors import quote
from zhenfa.spec import fact
from zhenfa.spec.document import Document, Part
from zhenfa.spec.machine import Machine, Name, Precision
from zhenfa.spec.plan import Offload, Schedule
from zhenfa.spec.serving import ServingWorkload
from zhenfa.spec.upkeep import Recovery


def _no_auto(value: object) -> None:
    """Refuse a choice of precision that nobody has made: it changes the numbers that training computes."""
    if value == "auto" or (isinstance(value, list | tuple) and "auto" in value):
        raise ValueError(
            "precision auto: precision changes what training computes, so the recipe says what it allows: write one "
            "such as bf16, or a list such as [fp8, bf16]"
        )
    if isinstance(value, list | tuple) and len(value) != len({str(one) for one in value}):
        raise ValueError(f"precision names one twice: {', '.join(map(str, value))}")


Allowed = Annotated[tuple[Precision, ...], Field(min_length=1)]


class Workload(Part):
    """A training workload. ``global_batch`` counts sequences; ``tokens`` is the length of the whole run.

    ``precision`` is that of the matmuls, or a list of those that the training recipe allows: each pool of cards then
    computes in the one of them that makes the best plan. Master weights and gradients stay as they are, and what flows
    between layers is in 16 bits (:data:`zhenfa.spec.machine.BETWEEN`).
    """

    task: Literal["train"] = "train"
    sequence_length: Annotated[int, Field(ge=1, le=100_000_000, strict=True)]
    global_batch: Annotated[int, Field(ge=1, le=10_000_000, strict=True)]
    precision: Precision | Allowed = "bf16"
    optimizer: Literal["adamw"] = "adamw"
    tokens: Annotated[float, Field(gt=0, le=1e18)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _chosen(cls, data: Any) -> Any:
        if isinstance(data, dict):
            _no_auto(data.get("precision"))
        return data

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions that the recipe allows."""
        return self.precision if isinstance(self.precision, tuple) else (self.precision,)

    @property
    def precision_words(self) -> str:
        """Return what the recipe allows in words, such as ``fp8 or bf16``."""
        return " or ".join(self.precisions)


Objective = Literal["step", "throughput", "time", "cost", "energy", "cards"]
"""What a plan is chosen for, see :class:`Job`."""

NameOfCards = Annotated[str, Field(min_length=1, max_length=200)]
"""A maker, an accelerator or a pool."""


class Limits(Part):
    """Bounds on the search.

    ``schedules``: those of pipelines that may be planned (None: those that the planned engine runs; ``all``: every
    one that has a law). ``offload``: what may lie in host memory (None: as the planned engine can; ``all``: every way
    that has a law). ``partial_recompute``: whether as few layers of a stage as memory asks for may be computed again
    (of one pool; where the planned engine does it).
    ``makers``: only their cards. ``refuse``: no cards of these makers, accelerators or pools. ``supply``: at most so
    many cards of a maker, an accelerator or a pool. ``least_share``: of a step's model FLOPs, at least so much on a
    maker's cards. ``spares``: the share of each pool's cards, in whole nodes, that stays free. ``memory``: at most this
    share of a card's memory; ``headroom``: so much of it stays free. ``power``: at most, at the meter, while the cards
    work. ``deadline``: for training all ``tokens``, failures included; ``tokens_per_s``: at least, failures included.
    """

    max_cards: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_tensor_parallel: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_pipeline_parallel: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_context_parallel: Annotated[int, Field(ge=1, strict=True)] | None = None
    micro_batch_size: Annotated[int, Field(ge=1, strict=True)] | None = None
    schedules: Annotated[tuple[Schedule, ...], Field(min_length=1)] | Literal["all"] | None = None
    offload: Annotated[tuple[Offload, ...], Field(min_length=1)] | Literal["all"] | None = None
    partial_recompute: bool = True
    makers: tuple[NameOfCards, ...] = ()
    refuse: tuple[NameOfCards, ...] = ()
    supply: dict[NameOfCards, Annotated[int, Field(ge=0, strict=True)]] = {}
    least_share: dict[NameOfCards, fact.Ratio] = {}
    spares: fact.Ratio = fact.empty("ratio")
    memory: fact.Ratio = fact.empty("ratio")
    headroom: fact.Data = fact.empty("data")
    power: fact.Power = fact.empty("power")
    deadline: fact.Time = fact.empty("time")
    tokens_per_s: fact.Pace = fact.empty("tokens/s")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("power", "deadline", "tokens_per_s", "memory"):
            if getattr(self, name).value == 0:
                raise ValueError(f"{name} is zero, and nothing keeps to that: leave it out where there is no limit")
        if (self.memory.value or 0.0) > 1:
            raise ValueError("memory is more than 100 % of a card's: write a share such as 90 %")
        if (self.spares.value or 0.0) >= 1:
            raise ValueError("spares is all of the cards or more: write a share such as 2 %")
        parts = {maker: one.value or 0.0 for maker, one in self.least_share.items()}
        if sum(parts.values()) > 1 + 1e-9:
            said = ", ".join(f"{quote(maker)} {share:.0%}" for maker, share in list(parts.items())[:4])
            said += " and others" if len(parts) > 4 else ""
            raise ValueError(
                f"least_share asks for {sum(parts.values()):.0%} of the work ({said}): it is 100 % at most"
            )
        return self


class Fault(Part):
    """A fault on purpose, before a step: to rehearse what the run does about it.

    ``card`` counts the cards of the plan under way, as messages do. ``kill`` ends its process, ``hang`` stops it,
    ``lose`` takes the card away until ``back`` more steps are taken (None: for good). ``slow`` makes it take ``factor``
    times as long from then on. ``nan`` poisons its gradients, ``scale`` multiplies them by ``factor``.
    """

    step: Annotated[int, Field(ge=1, strict=True)]
    card: Annotated[int, Field(ge=0, strict=True)]
    kind: Literal["kill", "hang", "lose", "slow", "nan", "scale"]
    factor: Annotated[float, Field(gt=0, le=1e12)] = 4.0
    back: Annotated[int, Field(ge=1, strict=True)] | None = None


BridgeFormat = Literal["none", "bf16", "int8"]
"""How numbers cross the bridge: as they are, rounded to bf16, or as 8-bit integers with a scale for each block."""

BRIDGE_BLOCK: Final = 128
"""Numbers of int8 on the bridge that share a scale of 32 bits, which adds 3 % to a byte for each."""
BRIDGE_BYTES: Final[dict[BridgeFormat, float | None]] = {"none": None, "bf16": 2.0, "int8": 1.0 + 4.0 / BRIDGE_BLOCK}
"""Bytes of a number on the bridge, None: as it is computed."""


class Bridge(Part):
    """How data crosses the bridge: the links between cards of different makers. Inside a maker nothing is compressed.

    ``activations``: features between pipeline stages and their gradients. ``gradients``: those of weights, where cards
    of several makers sum them; what the format cuts off is added to the next step's gradient (error feedback). With
    ``none`` numbers go as they are; ``bf16`` halves those of 32 bits; ``int8`` sends a byte for each, and a scale in 32
    bits for each block. ``compare_steps``: so many steps are taken uncompressed first, from the same state, and the
    losses compared (0: none).
    """

    activations: BridgeFormat = "none"
    gradients: BridgeFormat = "none"
    compare_steps: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 0

    @property
    def compresses(self) -> bool:
        """Return whether anything is compressed."""
        return (self.activations, self.gradients) != ("none", "none")


class Execution(Part):
    """How ``zhenfa run`` executes the job.

    ``learning_rate`` is reached after ``warmup_steps`` and then stays (``constant``) or falls in half a cosine to
    ``minimum_learning_rate`` in the last step. ``beta1``, ``beta2``, ``epsilon`` and ``weight_decay`` are AdamW's.
    ``clip_gradient_norm``: gradients whose norm over the whole model is larger are scaled down to it.
    ``auxiliary_loss_coefficient``: of the loss that spreads tokens over experts, taken for each sequence and layer
    (Fedus et al. 2022, arXiv:2101.03961, equation 4; 0: none); losses are shown without it.
    ``evaluate_every`` so many steps (0: never) the loss on ``evaluate_batches`` global batches of held-out text is
    taken; training then leaves out the last 5 % of the data.

    ``data``: ``python-stdlib``, or a path: a ``.bin`` or ``.npy`` file of tokens or a folder of such, a Hugging Face
    dataset on disk, or any other file, whose bytes are the tokens. ``weights``: a local Hugging Face directory to start
    from (None: weights drawn from ``seed``). ``module``: who builds the model of a ``config.json``: the runtime's own
    decoder (``zhenfa``) or ``transformers``; ``auto``: the first that can. ``blocks``: the list of blocks of a module
    that is not the runtime's own, such as ``transformer.h`` (None: the list that holds most weights).
    ``step_timeout_s`` bounds a step, ``progress_timeout_s`` the time in which no card begins anything. ``recover``:
    whether the run goes on when a card fails. Every ``snapshot_every`` steps the cards keep a copy in host memory,
    every ``checkpoint_every`` steps on disk (0: only at the end), of which the newest ``keep_checkpoints`` stay. Every
    ``replay_every`` steps a step's gradients are computed twice and compared (0: never). ``faults`` happen on purpose.
    At most every ``health_every_s`` seconds the cards' makers are asked between steps what is wrong with them (0:
    never).
    ``bridge``: what is compressed between cards of different makers. ``overlap_gradient_sum``: replicas sum the
    gradients of layers that are through while the backward passes of others still run.
    """

    steps: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 6
    bridge: Bridge = Bridge()
    overlap_gradient_sum: bool = True
    compare_even_steps: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3e-4
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 0
    minimum_learning_rate: Annotated[float, Field(ge=0, le=10)] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    clip_gradient_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    auxiliary_loss_coefficient: Annotated[float, Field(ge=0, le=1000)] = 0.01
    evaluate_every: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 0
    evaluate_batches: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = 0
    data: str = "python-stdlib"
    weights: str | None = None
    module: Literal["auto", "zhenfa", "transformers"] = "auto"
    blocks: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    engine: Literal["local", "ray", "slurm"] = "local"
    step_timeout_s: Annotated[float, Field(gt=0, le=86400)] = 120.0
    progress_timeout_s: Annotated[float, Field(gt=0, le=86400)] = 30.0
    recover: bool = True
    snapshot_every: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 1
    checkpoint_every: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 0
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 2
    replay_every: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 0
    health_every_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    faults: tuple[Fault, ...] = ()

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate {self.minimum_learning_rate:g} is above learning_rate {self.learning_rate:g}"
            )
        return self


class Job(Document):
    """A model and a workload with an owner and a priority.

    ``workload`` trains or serves, told apart by ``task``; where that is left out, a workload with an ``input_length``
    serves and any other trains.
    ``model`` is a catalog name, or the path of a model document, a Hugging Face ``config.json`` or the folder of one;
    or ``FILE.py:FUNCTION``, which returns a ``torch.nn.Module`` and runs where the command line names the file, too.
    ``machine`` is a
    catalog name, the path of a machine document, or a machine written out. ``assume`` supplies values that makers
    have not published, by dotted name; what rests on them is tagged assumed. ``recovery`` is what is done about
    failures.

    ``objective`` is what a plan is chosen for: the shortest ``step`` on paper; the ``throughput`` that failures leave,
    waiting for nodes included; the shortest ``time``, failures included, to train all ``tokens``; the least ``cost`` of
    the cards, or ``energy``, of a token; or the fewest ``cards`` with which the limits are kept.
    """

    schema_name: ClassVar[str] = "zhenfa.job/1"

    name: Name
    owner: str | None = None
    priority: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    model: str
    machine: str | Machine | None = None
    workload: Annotated[Workload | ServingWorkload, Field(discriminator="task")]
    objective: Objective = "step"
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
