"""Serving: what is asked for (lengths, load, targets) and a plan of who answers it.

The words are those of the serving engines: an *instance* holds the whole model and runs steps; a step decodes one token
(or several, when it speculates) for every running request and may carry a *chunk* of prompts. Prefill and decode are
either the same instances (aggregated) or apart (disaggregated).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from zhenfa import units
from zhenfa.spec import fact
from zhenfa.spec.document import Document, Part
from zhenfa.spec.machine import Name
from zhenfa.spec.plan import Degree

WeightFormat = Literal["bf16", "fp16", "fp8", "int8", "nvfp4", "mxfp4", "int4", "w4a8"]
"""How weights are stored. ``int8`` multiplies in INT8 (W8A8), ``int4`` is unpacked to 16 bits on the way in (W4A16),
``w4a8`` to 8 bits; a format that the card cannot multiply is unpacked to 16 bits."""

CacheFormat = Literal["bf16", "fp16", "fp8", "int8"]

WEIGHT_BYTES: Final[dict[WeightFormat, float]] = {
    "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "nvfp4": 0.5625, "mxfp4": 0.53125, "int4": 0.515625,
    "w4a8": 0.515625,
}  # fmt: skip
"""Bytes per weight, scales included: one 8-bit scale per 16 (NVFP4) or 32 (MXFP4) weights, 16 bits per 128 (INT4)."""

CACHE_BYTES: Final[dict[CacheFormat, float]] = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}


Seconds = Annotated[float, BeforeValidator(partial(units.parse, dimension="time")), Field(gt=0)]
"""A time as people write it (``50 ms``), or a number of seconds."""


Percentile = Annotated[float, Field(ge=50, lt=100)]
"""A share of requests in per cent, such as 99."""


class ServingWorkload(Part):
    """Requests to serve. One of ``concurrency``, ``request_rate`` and ``requests`` says how they come; none of them
    asks for the most requests per second that meet the targets.

    ``concurrency`` requests are in the system at all times; ``request_rate`` arrive per second; ``requests`` come all
    at once. Lengths are drawn evenly from ``shortest`` to 1 times the nominal ones; ``cached_prefix`` is the share of
    the input that is found in the cache. ``total`` requests make up a run that starts with as many at once as
    ``concurrency`` says (None: the steady state, without a start). Targets are of the mean times to the first token
    (``ttft_target``) and per output token after it (``tpot_target``), or of the times that so many per cent of the
    requests keep to (``ttft_percentile``, ``tpot_percentile``).

    A plan may store weights in one of ``weights`` and keys and values in one of ``cache`` (empty: as the model's own
    checkpoint does, and in 16 bits), and may draft tokens if ``speculation`` allows it. ``engine`` runs it.
    """

    task: Literal["serve"] = "serve"
    input_length: Annotated[float, Field(gt=0, le=100_000_000)]
    output_length: Annotated[float, Field(ge=1, le=10_000_000)]
    concurrency: Annotated[float, Field(gt=0, le=1e7)] | None = None
    request_rate: Annotated[float, Field(gt=0, le=1e7)] | None = None
    requests: Annotated[float, Field(gt=0, le=1e9)] | None = None
    shortest: Annotated[float, Field(gt=0, le=1)] = 1.0
    cached_prefix: Annotated[float, Field(ge=0, lt=1)] = 0.0
    total: Annotated[float, Field(gt=0, le=1e12)] | None = None
    ttft_target: Seconds | None = None
    tpot_target: Seconds | None = None
    ttft_percentile: Percentile | None = None
    tpot_percentile: Percentile | None = None
    weights: tuple[WeightFormat, ...] = ()
    cache: tuple[CacheFormat, ...] = ()
    speculation: bool = False
    engine: str = "vllm"

    @model_validator(mode="after")
    def _one_load(self) -> Self:
        given = [name for name in ("concurrency", "request_rate", "requests") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"one of concurrency, request_rate and requests says how requests come, but it gives "
                f"{' and '.join(given)}"
            )
        if not given and self.ttft_target is None and self.tpot_target is None:
            raise ValueError(
                "it gives no load and no target: write concurrency or request_rate, or a ttft_target or tpot_target "
                "under which the most requests per second are wanted"
            )
        return self

    @property
    def open_ended(self) -> bool:
        """Return whether no load is given, so that the most that meets the targets is wanted."""
        return self.concurrency is None and self.request_rate is None and self.requests is None

    @property
    def first_share(self) -> float:
        """Return the share of a run's requests that come at once when it starts."""
        if self.total is None or self.concurrency is None:
            return 0.0
        return min(self.concurrency / self.total, 1.0)

    @property
    def mean_input(self) -> float:
        """Return the mean length of the input, in tokens."""
        return self.input_length * (1 + self.shortest) / 2

    @property
    def mean_output(self) -> float:
        """Return the mean length of the output, in tokens."""
        return max(self.output_length * (1 + self.shortest) / 2, 1.0)

    @property
    def mean_decoded(self) -> float:
        """Return the mean tokens that come after the first, which prefill yields; half a token at least."""
        return max(self.mean_output - 1.0, 0.5)


class Instance(Part):
    """``count`` equal instances, each of ``cards`` cards of one pool.

    Attention is cut over ``tensor_parallel`` cards and runs on ``data_parallel`` groups of them, each with requests of
    its own; ``context_parallel`` cuts the tokens of one prompt. Experts are spread over ``expert_parallel`` cards and
    cut over the rest of the instance's cards. ``max_batch`` requests run at once in one instance (None: what the engine
    and the memory allow); ``chunk`` tokens of prompts go into one step (None: the engine's default).
    ``two_batch_overlap`` hides the exchange of one half of the batch behind the work of the other.
    """

    pool: Name
    count: Degree = 1
    tensor_parallel: Degree = 1
    data_parallel: Degree = 1
    pipeline_parallel: Degree = 1
    context_parallel: Degree = 1
    expert_parallel: Degree = 1
    max_batch: Degree | None = None
    chunk: Degree | None = None
    two_batch_overlap: bool = False

    @property
    def stage_cards(self) -> int:
        """Return the cards of one pipeline stage."""
        return self.tensor_parallel * self.data_parallel * self.context_parallel

    @property
    def cards(self) -> int:
        """Return the cards of one instance."""
        return self.stage_cards * self.pipeline_parallel

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.stage_cards % self.expert_parallel:
            raise ValueError(
                f"expert_parallel {self.expert_parallel} does not divide the {self.stage_cards} cards of a stage "
                f"(tensor {self.tensor_parallel} x data {self.data_parallel} x context {self.context_parallel})"
            )
        return self


class Speculation(Part):
    """Drafting of ``draft_tokens`` that one step verifies; ``accepted`` tokens come out of a step on average.

    ``mtp``: the model's own prediction layers draft; ``eagle``: a layer beside the model; ``ngram``: a look-up that
    costs nothing on the cards.
    """

    method: Literal["mtp", "eagle", "ngram"] = "mtp"
    draft_tokens: Degree = 1
    accepted: Annotated[float, Field(ge=1, le=64)]

    @model_validator(mode="after")
    def _within_draft(self) -> Self:
        if self.accepted > self.draft_tokens + 1:
            raise ValueError(f"accepted {self.accepted:g} is more than the {self.draft_tokens} drafted tokens and one")
        return self


class ServingPlan(Document):
    """A layout of one model's serving over a machine. Without ``prefill``, the decode instances do both.

    ``weights`` is the format of all instances, or of those that decode where prefill has ``prefill_weights``; the cache
    crosses from one to the other, so that it has one format. ``also`` are further groups of instances behind the same
    door, each a plan of its own; ``share`` of all requests go to each.
    """

    schema_name: ClassVar[str] = "zhenfa.serving-plan/1"

    model: str
    machine: str
    engine: str
    weights: WeightFormat = "bf16"
    attention_weights: WeightFormat | None = None
    prefill_weights: WeightFormat | None = None
    cache: CacheFormat = "bf16"
    prefill: Instance | None = None
    decode: Instance
    speculation: Speculation | None = None
    eager: bool = False
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    also: tuple[ServingPlan, ...] = ()

    @model_validator(mode="after")
    def _prefill_is_there(self) -> Self:
        if self.prefill_weights is not None and self.prefill is None:
            raise ValueError("prefill_weights needs prefill instances, and the plan has none: leave it out")
        return self

    def weights_of(self, role: str) -> WeightFormat:
        """Return the format in which the instances with a role (``prefill``, or any other) store weights.

        >>> one = Instance(pool="a")
        >>> plan = ServingPlan(model="m", machine="n", engine="vllm", prefill_weights="fp8", prefill=one, decode=one)
        >>> plan.weights_of("prefill"), plan.weights_of("decode")
        ('fp8', 'bf16')
        """
        return self.prefill_weights or self.weights if role == "prefill" else self.weights

    @property
    def formats(self) -> tuple[WeightFormat, ...]:
        """Return every format in which some instances store weights."""
        parts = ((one.weights_of("prefill"), one.weights) if one.prefill else (one.weights,) for one in self.parts)
        return tuple(dict.fromkeys(form for some in parts for form in some))

    @property
    def cards(self) -> int:
        """Return how many cards work."""
        return sum(self.cards_by_pool().values())

    @property
    def parts(self) -> tuple[ServingPlan, ...]:
        """Return every group of instances as a plan of its own."""
        return (self.model_copy(update={"also": ()}), *(part for one in self.also for part in one.parts))

    def cards_by_pool(self) -> dict[str, int]:
        """Return how many cards of each pool work."""
        found: dict[str, int] = {}
        for part in (self, *(one for further in self.also for one in further.parts)):
            for instance in filter(None, (part.prefill, part.decode)):
                found[instance.pool] = found.get(instance.pool, 0) + instance.count * instance.cards
        return found


class SmallerDefaults(Part):
    """An engine's defaults on cards with less memory than ``below``, and on those that it names."""

    below: fact.Data
    cards: tuple[str, ...] = ()
    chunk: Degree
    max_batch: Degree


class TemplateParsing(Part):
    """What an engine's front end spent on the chat template of ``each`` request, in versions up to ``until``.

    Models whose messages are not made by a template (gpt-oss) are spared."""

    each: fact.Time
    until: str


class ServingEngine(Part):
    """What an engine adds to the cards' own time, and its defaults.

    ``step``: host time of every step; ``request``: host time per running request and step; ``overlap``: time by which a
    kernel of a captured graph starts before the one ahead of it has ended; ``layer``: host time per
    layer where graphs are captured in pieces; ``dispatch``: host time to launch one kernel outside a graph (it matters
    where launching takes longer than running); ``collective``: start of one collective; ``exchange``: start of one
    dispatch or combine of experts, the wait for the last rank included; ``pace``: what kernels take in a running engine
    over their time alone. ``memory``: share of the device memory that is used, activations included unless it is
    ``static_memory``, of weights and cache alone. ``chunk`` and ``max_batch``: tokens of prompts in one step, and
    requests that run at once; ``smaller``: the same on small cards. ``mixed``: prompts share a step with running
    requests;
    ``reserves_output``: a request is admitted when its whole output fits. ``eager``: steps are not captured.
    ``graph_mode``: the engine's own word for the mode in which these costs hold, which a plan's command asks for;
    ``planned``: the engine, a mode of this one, that a plan stands for that names this one.
    ``imbalance``: lasting excess of the busiest expert rank. ``entry``: what a request and its first token spend
    outside the steps (connection, template, tokenizer, and the way back); ``front``: what of it one process of the
    front end does for one request after the other; ``polls``: decode steps until a new request is looked at;
    ``handover``: from a prefill instance to the first token of a decode instance, the cache's way included.
    Where a run does not say: its prediction layers draft one of ``drafts`` tokens, each accepted with the probability
    ``acceptance``, given those before it; a look-up finds ``found`` of the tokens that it may draft.
    """

    id: Name
    title: str
    names: tuple[str, ...]
    makers: tuple[str, ...] = ()
    kernels: str | None = None
    step: fact.Time
    request: fact.Time
    overlap: fact.Time
    layer: fact.Time
    dispatch: fact.Time
    collective: fact.Time
    exchange: fact.Time
    pace: fact.Ratio
    imbalance: fact.Ratio
    memory: fact.Ratio
    entry: fact.Time
    front: fact.Time
    polls: fact.Ratio
    handover: fact.Time
    acceptance: fact.Ratio
    found: fact.Ratio
    drafts: tuple[Degree, ...] = (1, 2, 3)
    chunk: Degree
    max_batch: Degree
    smaller: SmallerDefaults | None = None
    template: TemplateParsing | None = None
    graph_mode: str | None = None
    planned: Name | None = None
    mixed: bool = True
    reserves_output: bool = False
    eager: bool = False
    static_memory: bool = False
    note: str | None = None
