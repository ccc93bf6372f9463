"""The JSON documents that the commands print with ``--json``: their fields are the product's promise.

Keys may be added; none is removed or changes its meaning without a new number in ``schema``. The schemas are published
in ``docs/schemas``, written by :mod:`zhenfa.cli.schemas`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from zhenfa.live.providers import Device
from zhenfa.spec.result import Figures, Operating, Run, StageFigures, Walls

EMBEDDED: Final = "x-zhenfa"
"""Marks, in a raw schema, where the schema of a class of :mod:`zhenfa.spec` goes."""


PlanData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Plan"})]


class Item(BaseModel):
    """A part of a printed document."""

    model_config = ConfigDict(extra="forbid")


class Printed(Item):
    """A document that a command prints. ``schema`` names kind and version."""

    schema_name: ClassVar[str]

    def to_data(self) -> dict[str, Any]:
        """Return the document as JSON data."""
        return {"schema": self.schema_name, **self.model_dump(mode="json")}


class RankedPlan(Item):
    """One plan of the answer. ``plan`` can be saved as a file; ``lost_by`` is empty for the first."""

    rank: int
    layout: str
    lost_by: str
    plan: PlanData
    estimate: Figures
    parts_s: dict[str, float]
    stages: tuple[StageFigures, ...]
    walls: Walls
    operating: Operating
    assumptions: tuple[str, ...]
    sources: tuple[str, ...]


class Plans(Printed):
    """``zhenfa plan``: the quickest plans found, best first. All figures are estimates."""

    schema_name: ClassVar[str] = "zhenfa.plans/1"

    job: str
    machine: str
    emulated: bool
    cards: int
    plans: tuple[RankedPlan, ...]
    considered: int
    costed: int
    rejected: dict[str, int]
    seconds: float


class RunReport(Run):
    """``zhenfa run``: what was predicted (``estimate``) and what was measured (``figures``), and the files written."""

    files: dict[str, str]
    seconds: float

    def to_data(self) -> dict[str, Any]:
        """Return the document with every key, defaults included."""
        return {"schema": self.schema_name, **self.model_dump(mode="json")}


class Devices(Printed):
    """``zhenfa devices``: the cards of this host that a run can use."""

    schema_name: ClassVar[str] = "zhenfa.devices/1"

    devices: tuple[Device, ...]


class Term(Printed):
    """``zhenfa explain TERM``. ``unit`` is null for what is not a quantity; ``polarity`` is the better direction."""

    schema_name: ClassVar[str] = "zhenfa.term/1"

    name: str
    chinese: str
    meaning: str
    meaning_chinese: str
    unit: str | None
    polarity: str
    see: tuple[str, ...]
    aliases: tuple[str, ...]
    formula: str | None
    law: str | None
