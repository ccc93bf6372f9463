"""What the laws say of a plan (estimate) and what really happened (run), in one shape to lay side by side."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from zhenfa.spec.document import Document, Part
from zhenfa.spec.fact import Tag
from zhenfa.spec.job import BridgeFormat
from zhenfa.spec.machine import Precision
from zhenfa.spec.plan import Plan


class Figure(Part):
    """One number for the user. ``p10`` and ``p90`` are empty until a band has been validated for it."""

    value: float | None = None
    unit: str = ""
    tag: Tag = "derived"
    p10: float | None = None
    p90: float | None = None
    note: str | None = None


class Figures(Part):
    """The figures that estimate and run share. MFU counts model FLOPs (see its note) against the matmul peak. Of a plan
    that serves, tokens are those put out, ``ttft_s`` and ``tpot_s`` are means, and ``requests_per_s_kept`` is what
    failures of instances leave of ``requests_per_s`` on average."""

    step_time_s: Figure = Figure(unit="s")
    tokens_per_s: Figure = Figure(unit="tokens/s")
    tokens_per_s_per_card: Figure = Figure(unit="tokens/s")
    mfu: Figure = Figure()
    memory_bytes_per_card: Figure = Figure(unit="B")
    ttft_s: Figure = Figure(unit="s")
    tpot_s: Figure = Figure(unit="s")
    tokens_per_s_per_user: Figure = Figure(unit="tokens/s")
    requests_per_s: Figure = Figure(unit="1/s")
    requests_per_s_kept: Figure = Figure(unit="1/s")
    cost_per_million_tokens: Figure = Figure(unit="CNY")
    energy_j_per_token: Figure = Figure(unit="J")
    ettr: Figure = Figure()
    cost: Figure = Figure(unit="CNY")


class Operating(Part):
    """How a long run fares: what fails, what a checkpoint and a failure cost, spares, goodput, power and carbon.

    ``failures_per_day`` by cause (``pool: cause``, or ``cause`` alone for the whole job); ``not_counted`` names the
    domains whose rate nobody gives. ``lost_s_per_failure`` is wall clock. ``scheduling`` is the share of time in which
    the plan's nodes are up; ``goodput`` that times ETTR times MFU. Empty on emulated cards.
    """

    mtbf_s: Figure = Figure(unit="s")
    failures_per_day: dict[str, float] = {}
    not_counted: tuple[str, ...] = ()
    checkpoint_bytes: Figure = Figure(unit="B")
    checkpoint_stall_s: Figure = Figure(unit="s")
    checkpoint_write_s: Figure = Figure(unit="s")
    interval_s: Figure = Figure(unit="s")
    young_interval_s: Figure = Figure(unit="s")
    daly_interval_s: Figure = Figure(unit="s")
    down_s: Figure = Figure(unit="s")
    restart_s: Figure = Figure(unit="s")
    lost_s_per_failure: Figure = Figure(unit="s")
    kokolis_ettr: Figure = Figure()
    cards_out: Figure = Figure(unit="cards")
    standby_nodes: Figure = Figure(unit="nodes")
    scheduling: Figure = Figure()
    goodput: Figure = Figure()
    facility_power_w: Figure = Figure(unit="W")
    run_energy_j: Figure = Figure(unit="J")
    carbon_kg: Figure = Figure(unit="kg")


class Wall(Part):
    """One of the four walls. ``share`` is of the step time (compute, communication), of the power cap or feed (energy),
    or of wall-clock time lost (reliability); empty where an input is undisclosed. ``advice`` says what would move it.
    """

    share: float | None = None
    parts: dict[str, float] = {}
    detail: str = ""
    advice: str = ""


class Walls(Part):
    """The four walls, and the one that binds."""

    compute: Wall = Wall()
    communication: Wall = Wall()
    energy: Wall = Wall()
    reliability: Wall = Wall()
    binding: Literal["compute", "communication", "energy", "reliability"] = "compute"


class StageFigures(Part):
    """One stage of one pipeline: seconds per micro-batch, bytes per card, the precision of its matmuls, and in a run
    the card that it stood on, and that card's host where there are several."""

    pipeline: int
    stage: int
    pool: str
    layers: tuple[int, int]
    forward_s: float
    backward_s: float
    transfer_s: float
    memory_bytes: float
    memory_parts: dict[str, float] = {}
    capacity_bytes: float | None = None
    precision: Precision | None = None
    card: int | None = None
    host: str | None = None


class Routing(Part):
    """How evenly the tokens of the last step fell on experts. Ratios are over the mean: 1 is even. ``busiest_expert``:
    of a layer; ``busiest_card``: of those that share experts out, empty where each holds all (what a plan calls its
    ``expert_imbalance``). ``unused_experts`` of all ``experts`` of all layers got no token."""

    busiest_expert: Figure = Figure()
    busiest_card: Figure = Figure()
    unused_experts: int = 0
    experts: int = 0


class Evaluation(Part):
    """The mean loss on held-out text after a training step."""

    step: int
    loss: float


class Event(Part):
    """One thing that a card did, in seconds from the start of the step. ``stage``: of the model, of an operation."""

    card: int
    kind: str
    micro_batch: int
    start_s: float
    end_s: float
    stage: int | None = None


Kind = Literal["death", "hang", "error", "poison", "slow", "back", "health"]
"""What happened to a card."""


class Incident(Part):
    """Something that happened to a card, and what was done about it.

    ``at_s``: since training began. ``noticed_s``: from a fault on purpose until it was noticed. ``steps_lost``: steps
    taken that had to be taken again. ``down_s``: from when it was noticed until the cards had come together again.
    """

    step: int
    at_s: float
    kind: Kind
    card: str
    words: str
    action: Literal["retry", "restart", "replace", "re-form", "re-balance", "grow", "stop", "none"]
    steps_lost: int = 0
    noticed_s: float | None = None
    down_s: float = 0.0


Law = Literal["compute", "expert routing", "tensor sums", "messages", "gradient sum", "optimizer", "host", "schedule"]
"""What a step's prediction rests on: seconds of forwards and backwards on a card, how evenly tokens fall on the cards
that share experts out, sums inside tensor parallelism, messages between stages, sums of gradients (and weights sent
after ZeRO's update), the optimizer's update, what the host adds between operations, and the order of all of these with
the waits that it makes."""


class LawRow(Part):
    """One law at one place: what it predicted and what was measured, in seconds of a step.

    ``ratio``: measured over predicted; ``within``: whether it lies in the band (empty without a prediction).
    ``effect_s``: what the law being off adds to the step (below zero: takes off it). ``named``: whether the run says
    that this law is wrong. ``cards`` are ranks.
    """

    law: Law
    where: str
    pool: str | None = None
    cards: tuple[int, ...] = ()
    predicted_s: float
    measured_s: float
    ratio: float | None = None
    within: bool | None = None
    effect_s: float = 0.0
    named: bool = False


class Attribution(Part):
    """Which law makes a measured step differ from the predicted one.

    ``measured_step_s`` less ``predicted_step_s`` is the sum of all ``effect_s`` and of ``remainder_s``, which no law
    explains. ``low`` and ``high`` bound the ratios that are as good as predicted, of which ``band`` says where they are
    from. ``off``: the step lies outside. ``judged``: whether the timing is good for a verdict; ``verdict`` in words.
    ``steps``: how many were timed.
    """

    predicted_step_s: float
    measured_step_s: float
    low: float
    high: float
    band: str
    steps: int
    off: bool
    judged: bool
    rows: tuple[LawRow, ...] = ()
    remainder_s: float = 0.0
    verdict: str = ""
    wrong: tuple[str, ...] = ()


class BridgeCompared(Part):
    """The same cards and steps with nothing compressed, from the same state. ``speed_up``: its step time over the
    compressed run's; ``loss_difference``: the greatest of any step, relative; ``last_loss_difference``: that of the
    last step compared, with its sign."""

    steps: int
    step_time_s: float
    speed_up: float
    bytes_sent: float
    loss_difference: float
    last_loss_difference: float


class BridgeTraffic(Part):
    """What crossed the bridge between makers in a step, in which format, on the mean.

    ``bytes_raw`` are the numbers as they were computed and ``bytes_sent`` as they went, all cards together, by what
    they are (``activations`` with their gradients, ``gradients`` of weights, ``weights`` that ZeRO-1 sends back).
    ``link_s``: seconds that messages of the busiest card held its emulated links (None on real cards); ``held_s``:
    seconds that the card was held up which waited longest for messages and sums over the bridge (on real cards, waits
    for messages that were not yet sent included).
    """

    activations: BridgeFormat
    gradients: BridgeFormat
    bytes_raw: dict[str, float] = {}
    bytes_sent: dict[str, float] = {}
    link_s: float | None = None
    held_s: float = 0.0
    uncompressed: BridgeCompared | None = None


class Telemetry(Part):
    """What a card told of itself while a run went on: mean power and highest temperature over ``samples`` questions.

    ``pool`` and ``index`` are those of the machine."""

    pool: str
    index: int
    samples: int
    power_w: float | None = None
    hottest_c: float | None = None


class CardEnergy(Part):
    """What one card (by rank) drew, in W: on average, and, where it is modelled, while it computed and while it waited.

    ``busy_share``: of a step in which it computed. ``words``: what the power rests on.
    """

    card: int
    pool: str
    busy_share: float
    busy_w: float | None = None
    waiting_w: float | None = None
    mean_w: float
    tag: Tag
    words: str = ""


class RunEnergy(Part):
    """The energy of a run at the meter. ``missing``: which cards' power nobody has published or given."""

    cards: tuple[CardEnergy, ...] = ()
    energy_j: Figure = Figure(unit="J")
    pue: float | None = None
    missing: tuple[str, ...] = ()


class Estimate(Document):
    """What the laws say of a plan on a machine."""

    schema_name: ClassVar[str] = "zhenfa.estimate/1"

    plan: Plan
    figures: Figures
    walls: Walls
    operating: Operating = Operating()
    parts_s: dict[str, float] = {}
    stages: tuple[StageFigures, ...] = ()
    assumptions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


class Run(Document):
    """What happened. ``fidelity``: how well an emulation kept its time, or how far real cards were left alone, and
    whether the timing is valid. ``incidents``: what happened to cards; ``effective_share``: of the wall-clock
    time in which steps were taken that stayed (ETTR as measured). ``step_times_s`` are those of the plan that the run
    ended with. ``gradient_norms``: of all gradients before they were clipped, step by step, where the job clips
    them. ``evaluations``: losses on held-out text, where the job asks for them. ``bridge``: what went between makers,
    null where all cards are of one. ``attribution``: which law makes the measured step differ from the predicted one.
    ``telemetry``: what cards told of themselves. ``training_s``: the wall-clock seconds of training.
    ``energy``: that of its cards.
    """

    schema_name: ClassVar[str] = "zhenfa.run/1"

    plan: Plan
    figures: Figures
    walls: Walls
    estimate: Estimate | None = None
    steps: int
    step_times_s: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    gradient_norms: tuple[float, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    stages: tuple[StageFigures, ...] = ()
    events: tuple[Event, ...] = Field(default=(), repr=False)
    emulated: bool = False
    fidelity: dict[str, float | str | bool] = {}
    share_of_sum_of_speeds: float | None = None
    routing: Routing | None = None
    even_split: dict[str, float] = {}
    bridge: BridgeTraffic | None = None
    checkpoint: str | None = None
    engine: str = "local"
    incidents: tuple[Incident, ...] = ()
    effective_share: float | None = None
    attribution: Attribution | None = None
    telemetry: tuple[Telemetry, ...] = ()
    training_s: float | None = None
    energy: RunEnergy | None = None
    notes: tuple[str, ...] = ()
