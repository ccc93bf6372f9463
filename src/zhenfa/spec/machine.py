"""What there is: accelerators, the supernodes they sit in, and pools of them wired into one machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from zhenfa.spec import fact
from zhenfa.spec.document import Document, Part
from zhenfa.spec.fact import Fact
from zhenfa.spec.upkeep import Facility, FailureTimes, Grid, MachineFailures, Storage

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}$")]
Cards = Annotated[int, Field(ge=1, le=10_000_000, strict=True)]

Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "fp6", "fp4", "int8", "int4"]

BETWEEN: Final[dict[Precision, Precision]] = {
    "fp64": "fp64", "fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "bf16", "fp6": "bf16",
    "fp4": "bf16", "int8": "bf16", "int4": "bf16",
}  # fmt: skip
"""In what format weights, and what flows between layers, are where matmuls run in a precision. Those below 16 bits
convert their operands from bf16 and give bf16 back; fp16 has another range, and its gradients are scaled."""

Loose = dict[str, str | float | None]
"""A published figure kept as read (``value, unit, source, confidence, note``) that no law needs."""

BYTES: Final[dict[Precision, float]] = {
    "fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "fp6": 0.75, "fp4": 0.5, "int8": 1, "int4": 0.5,
}  # fmt: skip


class TextFact(Part):
    """A published property that is words, not a number."""

    value: str | None
    source: str = "this document"
    confidence: fact.Confidence = "stated"
    note: str | None = None


class Memory(Part):
    """Device memory of one accelerator."""

    capacity: fact.Data = fact.empty("data")
    bandwidth: fact.Rate = fact.empty("rate")
    type: str | None = None


class ScaleUp(Part):
    """The accelerator's own ports into its supernode, per package and direction.

    ``total_bandwidth`` adds both directions, ``link_bandwidth`` is one link's, ``product_bandwidth`` what the product
    page gives where it is less than the chip's ports, ``die_to_die_bandwidth`` that between the dies of the package.
    """

    protocol: str | None = None
    bandwidth: fact.Rate = fact.empty("rate")
    pair_bandwidth: fact.Rate = fact.empty("rate")
    total_bandwidth: fact.Rate = fact.empty("rate")
    link_bandwidth: fact.Rate = fact.empty("rate")
    product_bandwidth: fact.Rate = fact.empty("rate")
    die_to_die_bandwidth: fact.Rate = fact.empty("rate")
    topology: str | None = None


class Achievable(Part):
    """What a kernel reaches of the peak, measured on this accelerator; empty where nobody has measured.

    ``matmul`` and ``attention``: share of the peak of that precision that a large matmul and the two matmuls of a long
    attention prefill reach. ``scan``: that of linear attention, of the 16-bit peak. ``memory`` and ``decode``: share of
    the memory bandwidth that a stream and a long attention decode reach. ``launch``: seconds that every kernel takes
    beyond its work; ``attention_launch`` and ``scan_launch``: those of an attention and a scan kernel. ``cores``: how
    many units the work is spread over, a tile of ``tile_rows`` by ``tile_outputs`` each; ``fill``: inner dimension at
    which a tile spends half its time on filling and draining.

    Of engines that run operator by operator, ``host``: seconds that the host takes to issue a kernel; ``autograd``:
    those that automatic differentiation adds to each of a backward pass. Of processors, ``weights``: share of the
    memory bandwidth at which a matmul reads weights that lie in memory; ``chains``: speed of chains of element-wise
    operators over that of a stream, by chain and pass. ``lockstep``: seconds of work that several cards do, waiting
    for each other at its end, over those of one card.
    """

    matmul: dict[Precision, fact.Ratio] = {}
    attention: dict[Precision, fact.Ratio] = {}
    scan: fact.Ratio = fact.empty("ratio")
    memory: fact.Ratio = fact.empty("ratio")
    decode: fact.Ratio = fact.empty("ratio")
    launch: fact.Time = fact.empty("time")
    attention_launch: fact.Time = fact.empty("time")
    scan_launch: fact.Time = fact.empty("time")
    host: fact.Time = fact.empty("time")
    autograd: fact.Time = fact.empty("time")
    weights: fact.Ratio = fact.empty("ratio")
    chains: dict[str, fact.Ratio] = {}
    lockstep: fact.Ratio = fact.empty("ratio")
    cores: fact.Count = fact.empty("count")
    tile_rows: fact.Count = fact.empty("count")
    tile_outputs: fact.Count = fact.empty("count")
    fill: fact.Count = fact.empty("count")


class Spread(Part):
    """How far measured steps lay from what the laws say on this card: four of five between ``low`` and ``high`` times
    the predicted seconds, of ``steps`` steps of ``models`` models."""

    low: Annotated[float, Field(gt=0, le=1)]
    high: Annotated[float, Field(ge=1)]
    steps: Annotated[int, Field(ge=1, strict=True)]
    models: Annotated[int, Field(ge=0, strict=True)]
    note: str | None = None


class Software(Part):
    """How a framework reaches the accelerator."""

    torch_device: str
    collective_backend: str
    collective_library: str | None = None
    smi: str | None = None
    plugin: str | None = None
    source: str | None = None
    confidence: fact.Confidence | None = None
    note: str | None = None


class Conflict(Part):
    """Values of one field that sources do not agree on."""

    field: str
    values: tuple[dict[str, str | int | float | None], ...]
    prefer: str | None = None


class Variant(Part):
    """A bin or version of an accelerator of which only some peaks are known."""

    id: Name
    peak: dict[str, fact.Speed] = {}
    note: str | None = None


class Accelerator(Part):
    """One accelerator as one schedules it: a package or card. ``devices`` is how many the framework sees in it."""

    id: Name
    aliases: tuple[Name, ...] = ()
    maker: str
    name: str
    year: int | None = None
    granularity: str | None = None
    devices: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    peak: dict[str, fact.Speed] = {}
    memory: Memory = Memory()
    tdp: fact.Power = fact.empty("power")
    scale_up: ScaleUp = ScaleUp()
    scale_out: fact.Rate = fact.empty("rate")
    achievable: Achievable = Achievable()
    measured: dict[str, Loose] = {}
    deployed: dict[str, fact.Speed] = {}
    pcie: TextFact | None = None
    variants: tuple[Variant, ...] = ()
    software: Software | None = None
    spread: Spread | None = None
    price: fact.Price = fact.empty("money/time")
    emulated: bool = False
    status: str | None = None
    conflicts: tuple[Conflict, ...] = ()
    traps: tuple[str, ...] = ()
    note: str | None = None


class Tier(Part):
    """One level of a fabric. ``size`` accelerators share one instance of it; tiers are given inside-out.

    ``bandwidth`` is per accelerator and direction. In a ``full-mesh`` tier it is the sum over peers: one pair gets
    ``bandwidth / (size - 1)``.
    """

    name: Name
    size: Cards
    bandwidth: fact.Rate = fact.empty("rate")
    latency: fact.Time = fact.empty("time")
    topology: Literal["switch", "full-mesh", "mesh", "torus", "clos", "undisclosed"] = "switch"
    in_network_reduction: bool = False
    description: str | None = None


class Claim(Part):
    """A headline figure beside what arithmetic makes of it.

    ``basis`` is that arithmetic: a product or quotient of numbers, ``count``, and dotted fields of the system's
    accelerator, such as ``count * peak.bf16``, in base units.
    """

    what: str
    claimed: str
    derived: str | None = None
    basis: str | None = None
    source: str
    note: str | None = None


class ScaleOut(Part):
    """What joins systems to each other; ``bandwidth`` per accelerator and direction."""

    network: str | None = None
    bandwidth: fact.Rate = fact.empty("rate")
    latency: fact.Time = fact.empty("time")


class System(Part):
    """A supernode, node or pod as one buys it."""

    id: Name
    aliases: tuple[Name, ...] = ()
    vendor: str
    name: str
    year: int | None = None
    status: str | None = None
    accelerator: Name | None = None
    count: Cards
    tiers: tuple[Tier, ...] = ()
    power: fact.Power = fact.empty("power")
    pue: fact.Ratio = fact.empty("ratio")
    cooling: str | None = None
    scale_out: ScaleOut = ScaleOut()
    aggregate: dict[str, Loose] = {}
    details: dict[str, Loose] = {}
    claims: tuple[Claim, ...] = ()
    traps: tuple[str, ...] = ()
    note: str | None = None


class Link(Part):
    """A link technology; ``bandwidth`` per accelerator and direction."""

    id: Name
    aliases: tuple[Name, ...] = ()
    owner: str
    bandwidth: fact.Rate = fact.empty("rate")
    latency: fact.Time = fact.empty("time")
    max_domain: fact.Count = fact.empty("count")
    efficiency: fact.Ratio = fact.empty("ratio")
    load_store: bool | None = None
    in_network_reduction: str | None = None
    details: dict[str, Loose] = {}
    note: str | None = None


class Learned(Part):
    """What training steps measured over what the laws say without this: ratios of seconds, above 1 where it is slower.

    ``compute``: of forwards and backwards; ``optimizer``: of updates; ``links``: of what goes over a tier, by its name.
    They multiply the seconds of training plans; what a data sheet says, and what serving is planned by, stays.
    """

    compute: fact.Ratio = fact.empty("ratio")
    optimizer: fact.Ratio = fact.empty("ratio")
    links: dict[str, fact.Ratio] = {}


class Pool(Part):
    """Cards of one kind inside a machine.

    Either ``system`` names catalog supernodes (``count`` cards of them, by default one whole system), or
    ``accelerator`` and ``tiers`` say it all. What is given here overrides the system. ``failures`` of these cards come
    before those of the machine. ``learned``: what runs on them have taught. ``hosts``: those that carry the cards, as
    many each, in this order (empty: all hosts of a run).
    """

    name: Name
    system: Name | None = None
    accelerator: Name | Accelerator | None = None
    count: Cards | None = None
    hosts: tuple[HostName, ...] = ()
    tiers: tuple[Tier, ...] = ()
    power_per_card: fact.Power = fact.empty("power")
    failures: FailureTimes = FailureTimes()
    learned: Learned = Learned()


class DirectLink(Part):
    """A way from card to card past the hosts, beside a network that stages through them."""

    name: str = "direct link"
    bandwidth: fact.Rate = fact.empty("rate")
    latency: fact.Time = fact.empty("time")


class Network(Part):
    """What joins the pools. Between makers traffic is staged through the hosts.

    ``bandwidth`` is per card and direction. ``link`` names a link of the catalog that supplies what is not given here.
    ``direct``: a second way, past the hosts; each message takes the quicker of the two. Cards whose collective backends
    differ can take it only where ``joined_by`` names a library for both, such as FlagCX. ``learned``: seconds of what
    went over it in runs, over what the laws say (:class:`Learned`).
    """

    name: str = "network"
    link: Name | None = None
    bandwidth: fact.Rate = fact.empty("rate")
    latency: fact.Time = fact.empty("time")
    host_staged: bool = True
    direct: DirectLink | None = None
    joined_by: str | None = None
    learned: fact.Ratio = fact.empty("ratio")


class Machine(Document):
    """One or more pools behind one name.

    ``storage`` keeps checkpoints, ``failures`` are of every pool that does not say its own, ``facility`` says the PUE
    at a load where ``pue`` is not one number, ``grid`` names one of the catalog or says its carbon.
    """

    schema_name: ClassVar[str] = "zhenfa.machine/1"

    name: Name
    title: str | None = None
    pools: Annotated[tuple[Pool, ...], Field(min_length=1, max_length=64)]
    network: Network | None = None
    pue: fact.Ratio = fact.empty("ratio")
    storage: Storage = Storage()
    failures: MachineFailures = MachineFailures()
    facility: Facility = Facility()
    grid: Name | Grid | None = None
    claims: tuple[Claim, ...] = ()
    note: str | None = None


NODE_WORDS: Final = frozenset({"node", "tray", "host", "server", "box"})
"""Names of innermost tiers that are one host."""


@dataclass(frozen=True)
class CardPool:
    """A pool with everything looked up: what the laws and the planner work on."""

    name: str
    accelerator: Accelerator
    count: int
    tiers: tuple[Tier, ...]
    power_per_card: Fact
    system: str | None = None
    failures: FailureTimes = field(default_factory=FailureTimes)
    learned: Learned = field(default_factory=Learned)
    hosts: tuple[str, ...] = ()

    @property
    def maker(self) -> str:
        """Return the maker of the cards."""
        return self.accelerator.maker

    @property
    def host(self) -> int | None:
        """Return how many cards one host holds, as the innermost tier says; None where that is none."""
        inner = self.tiers[0] if self.tiers else None
        return inner.size if inner is not None and inner.name in NODE_WORDS else None


@dataclass(frozen=True)
class Formation:
    """A machine with every name looked up. ``assumed`` lists the values that the user supplied, by dotted name."""

    name: str
    title: str
    pools: tuple[CardPool, ...]
    network: Network | None
    pue: Fact
    claims: tuple[Claim, ...] = ()
    assumed: dict[str, str] = field(default_factory=dict)
    storage: Storage = field(default_factory=Storage)
    failures: MachineFailures = field(default_factory=MachineFailures)
    facility: Facility = field(default_factory=Facility)
    grid: Name | Grid | None = None
    kept_back: int = 0
    """Cards of the machine that the limits of a job leave out of ``pools``."""

    @property
    def cards(self) -> int:
        """Return how many accelerators there are."""
        return sum(pool.count for pool in self.pools)

    @property
    def all_cards(self) -> int:
        """Return how many accelerators the machine has, those that a job leaves out included."""
        return self.cards + self.kept_back

    @property
    def emulated(self) -> bool:
        """Return whether any card is emulated."""
        return any(pool.accelerator.emulated for pool in self.pools)

    def pool(self, name: str) -> CardPool:
        """Return the pool of that name; ``KeyError`` if there is none."""
        return next(pool for pool in self.pools if pool.name == name)
