"""The base of every JSON document that a command prints or an answer in Python returns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, WithJsonSchema

EMBEDDED: Final = "x-zhenfa"
"""Marks, in a raw schema, where the schema of a class of :mod:`zhenfa.spec` goes."""


PlanData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "Plan"})]

ServingPlanData = Annotated[dict[str, Any], WithJsonSchema({EMBEDDED: "ServingPlan"})]


class Item(BaseModel):
    """A part of a printed document."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class Printed(Item):
    """A document that a command prints. ``schema`` names kind and version."""

    schema_name: ClassVar[str]

    def to_data(self) -> dict[str, Any]:
        """Return the document as JSON data."""
        return {"schema": self.schema_name, **self.model_dump(mode="json")}
