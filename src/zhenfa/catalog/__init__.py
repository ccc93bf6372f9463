"""Facts as packaged data: accelerators, links, supernodes, machines, models; each number with its source.

No file is read on import. An entry is found by id or alias in any case, checked when first taken, and kept.
"""

from __future__ import annotations

from zhenfa.catalog.entries import (
    accelerator,
    accelerators,
    link,
    link_families,
    links,
    load_machine,
    machine,
    machine_names,
    machines,
    model,
    model_path,
    models,
    system,
    systems,
)
from zhenfa.catalog.files import confidences, sources, traps
from zhenfa.catalog.finder import find_accelerator, find_model
from zhenfa.catalog.formation import resolve

__all__ = [
    "accelerator",
    "accelerators",
    "confidences",
    "find_accelerator",
    "find_model",
    "link",
    "link_families",
    "links",
    "load_machine",
    "machine",
    "machine_names",
    "machines",
    "model",
    "model_path",
    "models",
    "resolve",
    "sources",
    "system",
    "systems",
    "traps",
]
