"""JSON Schemas of the printed documents: ``python -m zhenfa.cli.schemas docs/schemas`` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from zhenfa.cli.calibration_documents import Calibration
from zhenfa.cli.catalog_documents import (
    AcceleratorEntry,
    Accelerators,
    Catalog,
    FormationEntry,
    LinkEntry,
    Links,
    Machines,
    ModelEntry,
    Models,
    SystemEntry,
    Systems,
    Terms,
)
from zhenfa.cli.doctor_documents import Diagnosis
from zhenfa.cli.documents import EMBEDDED, Devices, Plans, Printed, RunReport, Term
from zhenfa.cli.emit_documents import Emitted
from zhenfa.cli.export_documents import ExportedModel
from zhenfa.cli.validation_documents import Validation
from zhenfa.plan.contest_documents import ComparisonDocument, SwapDocument
from zhenfa.spec.document import Document
from zhenfa.spec.fact import TAG_OF, Fact
from zhenfa.spec.machine import Accelerator, Claim, Link, Machine, Network, System, Tier
from zhenfa.spec.model import Model
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate, Run
from zhenfa.spec.serving import ServingPlan

PRINTED: Final[tuple[type[Printed] | type[RunReport], ...]] = (
    Plans, Emitted, ExportedModel, ComparisonDocument, SwapDocument, RunReport, Validation, Calibration, Devices,
    Diagnosis, Term, Catalog,
    Accelerators, AcceleratorEntry, Systems, SystemEntry, Machines, FormationEntry, Links, LinkEntry, Models,
    ModelEntry, Terms,
)  # fmt: skip
"""Every document that a command prints."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
PARTS: Final[dict[str, type[BaseModel]]] = {
    part.__name__: part
    for part in (Accelerator, Claim, Fact, Link, Machine, Model, Network, Plan, ServingPlan, System, Tier)
}
DOCUMENTS: Final[dict[str, type[Document]]] = {
    document.__name__: document for document in (Estimate, Machine, Model, Plan, Run, ServingPlan)
}
TEXT: Final = {"type": "string"}
TAG: Final = {"enum": [*sorted(set(TAG_OF.values())), None]}
FACT: Final[dict[str, Any]] = {
    "title": "Fact",
    "description": "One number as its source writes it. A null value means that nobody has published it.",
    "type": "object",
    "properties": {
        "value": {"type": ["number", "null"]},
        "unit": TEXT,
        "source": TEXT,
        "confidence": {"enum": list(TAG_OF)},
        "note": {"type": ["string", "null"]},
        "tag": TAG,
    },
    "required": ["value", "unit", "source", "confidence"],
    "additionalProperties": False,
}


def schema(printed: type[Printed] | type[RunReport], *, strict: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a printed document.

    The published schema lets keys be added, as a later version may; a ``strict`` one refuses what it does not name.
    """
    found: dict[str, Any] = printed.model_json_schema(mode="serialization")
    definitions = found.setdefault("$defs", {})
    found = _filled(found, definitions)
    definitions.update({name: _filled(part, definitions) for name, part in list(definitions.items())})
    for name, part in definitions.items():
        if name in DOCUMENTS:
            part["properties"] = {"schema": {"const": DOCUMENTS[name].schema_name}, **part["properties"]}
    if "Fact" in definitions:
        definitions["Fact"] = FACT
    if "TextFact" in definitions:
        definitions["TextFact"]["properties"]["tag"] = TAG
    found["$defs"] = {name: definitions[name] for name in sorted(definitions)}
    found["properties"] = {"schema": {"const": printed.schema_name}, **found["properties"]}
    found["required"] = ["schema", *found.get("required", [])]
    head = {"$schema": DIALECT, "title": printed.schema_name}
    whole = {**head, **{key: value for key, value in found.items() if key != "title"}}
    opened = whole if strict else _opened(whole)
    return dict(opened)


def _filled(part: Any, definitions: dict[str, Any]) -> Any:
    """Put the schemas of the parts of the specification where their names stand, their definitions beside them."""
    if isinstance(part, list):
        return [_filled(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    name = part.get(EMBEDDED)
    if name is None:
        return {key: _filled(item, definitions) for key, item in part.items() if key != "$defs"}
    if name not in definitions:
        own = PARTS[name].model_json_schema(mode="serialization")
        inner = own.pop("$defs", {})
        definitions.update(inner)
        if name not in inner:  # what holds itself is among its own definitions
            definitions[name] = own
    return {"$ref": f"#/$defs/{name}"}


def _opened(part: Any) -> Any:
    """Return the schema without its refusals of further keys."""
    if isinstance(part, list):
        return [_opened(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {key: _opened(item) for key, item in part.items() if not (key == "additionalProperties" and item is False)}


def file_name(printed: type[Printed] | type[RunReport]) -> str:
    """Return the name of the file that holds the schema, such as ``zhenfa.plans.1.json``."""
    return printed.schema_name.replace("/", ".") + ".json"


def files() -> dict[str, str]:
    """Return the text of every schema file by its name."""
    return {file_name(printed): json.dumps(schema(printed), indent=1, ensure_ascii=False) + "\n" for printed in PRINTED}


def write(folder: Path) -> None:
    """Write every schema into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
