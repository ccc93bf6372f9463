"""How machines fail and what they draw: the forms of the packaged tables of failures and of power."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from zhenfa.spec import fact
from zhenfa.spec.document import Part
from zhenfa.spec.fact import TAG_OF, Confidence, Tag
from zhenfa.spec.machine import Name

DAY: Final = 86400.0

Number = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class FailureKind(Part):
    """One kind of failure, counted: ``count`` over ``units`` (cards, nodes, jobs) watched for ``days``."""

    id: Name
    per: Literal["card", "node", "job"]
    count: Number
    units: Positive
    days: Positive
    source: str
    confidence: Confidence
    note: str | None = None

    @property
    def rate(self) -> float:
        """Return failures per unit-second."""
        return self.count / (self.units * self.days * DAY)


class Domain(Part):
    """Something that fails whole and takes many cards with it; ``rate_per_day`` is empty where nobody publishes it."""

    id: Name
    what: str
    rate_per_day: Number | None = None
    source: str
    confidence: Confidence
    note: str | None = None


class ClusterRate(Part):
    """Unexpected failures per 1,000 node-days (nodes of 8 cards) of large jobs on one cluster."""

    id: Name
    cards: Positive
    card: str
    rate: Positive
    source: str
    confidence: Confidence
    note: str | None = None


class Process(Part):
    """How failures and repairs are spread: a Weibull shape below 1 is infant mortality, ``frailty_variance`` how
    unequal nodes are, ``repair_spread`` the standard deviation of the logarithm of repair times.
    """

    weibull_shape: Positive
    frailty_variance: Number
    repair_median: fact.Time
    repair_spread: Number
    source: str
    confidence: Confidence
    note: str | None = None


class Recovery(Part):
    """What a failure costs in time: the blocking part of a checkpoint, down until reload starts, and reload.

    ``checkpoint`` and ``reload`` are for jobs of which no bytes are known; ``stop``: for how long a checkpoint stops
    training however small its copy; ``store_per_card`` is the bandwidth of a checkpoint store for each card that it
    serves.
    """

    checkpoint: fact.Time
    down: fact.Time
    reload: fact.Time
    store_per_card: fact.Rate
    stop: fact.Time


class Growth(Part):
    """Seconds that grow with the job: ``base + per_card * cards ** exponent``; ``spread`` is the largest abs(ln) of a
    point from it.
    """

    id: Name
    base: Number
    per_card: Number
    exponent: Positive
    points: Annotated[int, Field(ge=1, strict=True)]
    spread: Number
    source: str
    confidence: Confidence
    note: str | None = None


class Timeout(Part):
    """What a timeout comes to: rounded down to ``quantum`` (0: not), plus ``added``; from ``least`` to ``most``."""

    id: Name
    default: Number
    quantum: Number = 0.0
    added: Number = 0.0
    least: Number = 0.0
    most: Number | None = None
    unit: Literal["s"] = "s"
    source: str
    confidence: Confidence
    note: str | None = None


class Failures(Part):
    """The whole table of failures."""

    failures: tuple[FailureKind, ...]
    silent_errors: FailureKind
    cards_per_node: Positive
    domains: tuple[Domain, ...]
    clusters: tuple[ClusterRate, ...]
    process: Process
    recovery: Recovery
    restart: tuple[Growth, ...]
    timeouts: tuple[Timeout, ...]

    def rate(self, name: str) -> float:
        """Return the rate of one kind of failure per unit-second."""
        return next(one.rate for one in self.failures if one.id == name)

    def timeout(self, name: str) -> Timeout:
        """Return the timeout of that name."""
        return next(one for one in self.timeouts if one.id == name)

    def growth(self, name: str) -> Growth:
        """Return how the part of a restart of that name grows."""
        return next(one for one in self.restart if one.id == name)


class Activity(Part):
    """What a card draws at work, from what it moves and computes: fitted to measured serving, all of one chip.

    ``median`` and ``p90`` are of abs(ln(fit / measured)) where each model's points are predicted with that model left
    out; ``points`` and ``models`` say how many there are.
    """

    static: fact.Power
    picojoules_per_byte: Number
    picojoules_per_flop: Number
    points: Annotated[int, Field(ge=1, strict=True)]
    models: Annotated[int, Field(ge=1, strict=True)]
    median: Number
    p90: Number
    source: str


class CardPower(Part):
    """What is known of one accelerator's draw. ``like`` names one of the same silicon whose activity stands in."""

    accelerator: Name
    idle: fact.Power = fact.empty("power")
    busy: fact.Power = fact.empty("power")
    activity: Activity | None = None
    like: Name | None = None
    note: str | None = None


class HostPower(Part):
    """A server without its cards, per card: ``idle`` and ``busy``."""

    idle: fact.Power
    busy: fact.Power
    note: str | None = None


class Converter(Part):
    """One stage of conversion: ``loss`` it takes idle, and its efficiency beyond that."""

    id: Name
    loss: fact.Power
    efficiency: fact.Ratio


class GridFactor(Part):
    """Carbon dioxide of a grid's average kWh."""

    id: Name
    kg_per_kwh: Number
    year: int
    source: str
    confidence: Confidence

    @property
    def tag(self) -> Tag:
        """Return where the number comes from, in one word."""
        return TAG_OF[self.confidence]


class Power(Part):
    """The whole table of power."""

    cards: tuple[CardPower, ...]
    host: HostPower
    busy_share: fact.Ratio
    idle_share: fact.Ratio
    converters: tuple[Converter, ...]
    grids: tuple[GridFactor, ...]

    def card(self, name: str) -> CardPower | None:
        """Return what is known of an accelerator, by id."""
        return next((one for one in self.cards if one.accelerator == name), None)
