"""The JSON documents that the commands print with ``--json``: their fields are the product's promise.

Keys may be added; none is removed or changes its meaning without a new number in ``schema``. The schemas are published
in ``docs/schemas``, written by :mod:`zhenfa.cli.schemas`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from zhenfa.live.makers import DeviceRecord
from zhenfa.plan.documents import Plans, RankedPlan
from zhenfa.spec.printed import EMBEDDED, Item, PlanData, Printed
from zhenfa.spec.result import Run

__all__ = ["EMBEDDED", "Devices", "Item", "PlanData", "Plans", "Printed", "RankedPlan", "RunReport", "Term"]


class RunReport(Run):
    """``zhenfa run``: what was predicted (``estimate``) and what was measured (``figures``), and the files written."""

    files: dict[str, str]
    seconds: float

    def to_data(self) -> dict[str, Any]:
        """Return the document with every key, defaults included."""
        return {"schema": self.schema_name, **self.model_dump(mode="json")}


class Devices(Printed):
    """``zhenfa devices``: the cards of this host that a run can use."""

    schema_name: ClassVar[str] = "zhenfa.devices/2"

    devices: tuple[DeviceRecord, ...]


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
