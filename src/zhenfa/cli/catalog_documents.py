"""The JSON documents of ``zhenfa show``: lists of the catalog, and its entries."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, WithJsonSchema

from zhenfa.cli.documents import EMBEDDED, Item, Printed
from zhenfa.spec.fact import TAG_OF

AcceleratorData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Accelerator"})]
SystemData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "System"})]
LinkData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Link"})]
TierData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Tier"})]
NetworkData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Network"})]
ClaimData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Claim"})]
FactData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Fact"})]
MachineData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Machine"})]
ModelData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Model"})]


def plain(part: BaseModel) -> dict[str, Any]:
    """Return a part of the catalog as JSON data, every key present and every number with the tag of its confidence."""
    data = _tagged(part.model_dump(mode="json"))
    if not isinstance(data, dict):
        raise TypeError(type(part))
    return data


def _tagged(data: Any) -> Any:
    if isinstance(data, list):
        return [_tagged(item) for item in data]
    if not isinstance(data, dict):
        return data
    found = {key: _tagged(item) for key, item in data.items()}
    if "value" in data and data.get("confidence") in TAG_OF:
        found["tag"] = TAG_OF[data["confidence"]] if data["value"] is not None else None
    return found


class TermLine(Item):
    """A term in the list."""

    name: str
    chinese: str
    aliases: tuple[str, ...]
    unit: str | None
    meaning: str
    meaning_chinese: str


class Terms(Printed):
    """``zhenfa show terms``."""

    schema_name: ClassVar[str] = "zhenfa.terms/1"

    terms: tuple[TermLine, ...]


class Catalog(Printed):
    """``zhenfa show``: how many entries there are of each kind."""

    schema_name: ClassVar[str] = "zhenfa.catalog/1"

    counts: dict[str, int]


class Accelerators(Printed):
    """``zhenfa show accelerators``."""

    schema_name: ClassVar[str] = "zhenfa.accelerators/1"

    accelerators: tuple[AcceleratorData, ...]


class Systems(Printed):
    """``zhenfa show systems``."""

    schema_name: ClassVar[str] = "zhenfa.systems/1"

    systems: tuple[SystemData, ...]


class Links(Printed):
    """``zhenfa show links``."""

    schema_name: ClassVar[str] = "zhenfa.links/1"

    links: tuple[LinkData, ...]


class PoolLine(Item):
    """A pool of a machine in the list."""

    name: str
    count: int
    accelerator: str
    maker: str


class MachineLine(Item):
    """A machine in the list. ``undisclosed`` names what a plan on it needs and nobody has published."""

    name: str
    title: str
    cards: int
    emulated: bool
    pools: tuple[PoolLine, ...]
    undisclosed: tuple[str, ...]


class Machines(Printed):
    """``zhenfa show machines``."""

    schema_name: ClassVar[str] = "zhenfa.machines/1"

    machines: tuple[MachineLine, ...]


class ModelLine(Item):
    """A model in the list. Parameters are counted from its operators."""

    name: str
    title: str | None
    parameters: int
    active_parameters: int
    layers: int
    hidden: int
    vocabulary: int


class Models(Printed):
    """``zhenfa show models``."""

    schema_name: ClassVar[str] = "zhenfa.models/1"

    models: tuple[ModelLine, ...]


class Undisclosed(Item):
    """A value that nobody has published. ``assume`` is the option that supplies it, with an example of a value."""

    name: str
    dimension: str
    needed_for: str
    assume: str


class PoolEntry(Item):
    """A pool with everything looked up."""

    name: str
    count: int
    maker: str
    system: str | None
    accelerator: AcceleratorData
    tiers: tuple[TierData, ...]
    power_per_card: FactData


class FormationEntry(Printed):
    """``zhenfa show MACHINE``. ``machine`` is the document that made it, which can be saved and changed."""

    schema_name: ClassVar[str] = "zhenfa.formation/1"

    name: str
    title: str
    cards: int
    emulated: bool
    pools: tuple[PoolEntry, ...]
    network: NetworkData | None
    pue: FactData
    claims: tuple[ClaimData, ...]
    undisclosed: tuple[Undisclosed, ...]
    machine: MachineData
    sources: dict[str, str]


class AcceleratorEntry(Printed):
    """``zhenfa show ACCELERATOR``."""

    schema_name: ClassVar[str] = "zhenfa.accelerator/1"

    accelerator: AcceleratorData
    sources: dict[str, str]


class SystemEntry(Printed):
    """``zhenfa show SYSTEM``."""

    schema_name: ClassVar[str] = "zhenfa.system/1"

    system: SystemData
    sources: dict[str, str]


class LinkEntry(Printed):
    """``zhenfa show LINK``."""

    schema_name: ClassVar[str] = "zhenfa.link/1"

    link: LinkData
    sources: dict[str, str]


class OperatorLine(Item):
    """An operator of a layer: features per token, or heads and their sizes; parameters of one layer."""

    name: str
    kind: str
    parameters: int
    inputs: int
    outputs: int
    split: str
    experts: int
    active_experts: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None


class LayerLine(Item):
    """A part of a model: ``layers`` layers alike, or the stem, the head and what stands beside them."""

    part: str
    layers: Annotated[int, Field(ge=0)]
    operators: tuple[OperatorLine, ...]


class ModelEntry(Printed):
    """``zhenfa show MODEL``: counted from its operators. ``model`` is the document, which can be saved and changed."""

    schema_name: ClassVar[str] = "zhenfa.model-summary/1"

    name: str
    title: str | None
    parameters: int
    active_parameters: int
    extra_parameters: int
    layers: int
    hidden: int
    vocabulary: int
    tied: bool
    parts: tuple[LayerLine, ...]
    model: ModelData
