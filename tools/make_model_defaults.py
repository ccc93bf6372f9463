"""Write the table of default values that the Hugging Face importer falls back on.

A ``config.json`` leaves out what its class sets by default. This reads those defaults (plain facts: names and numbers)
and the second names of keys from the configuration classes of transformers (Apache-2.0) and keeps only the keys that
the importer asks for::

    python tools/make_model_defaults.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")

TARGET = Path(__file__).parents[1] / "src" / "zhenfa" / "spec" / "huggingface" / "defaults.json"


def plain(value: Any) -> bool:
    """Return whether a value is a number, text, a flag or a short list of them."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(plain(item) for item in value)
    return isinstance(value, int | float | str | bool)


def fields_of(cls: type, wanted: set[str]) -> dict[str, Any]:
    """Return the defaults of a configuration class as written there, before anything is derived from them."""
    found = {}
    for item in dataclasses.fields(cls):
        if item.name not in wanted:
            continue
        value = item.default
        if value is dataclasses.MISSING and item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        if plain(value):
            found[item.name] = list(value) if isinstance(value, tuple) else value
    return found


def keys_asked_for() -> set[str]:
    """Return every text constant of the importer's source: the keys it may ask for are among them."""
    found: set[str] = set()
    for path in TARGET.parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return found


def parts_of(cls: Any) -> dict[str, dict[str, Any]]:
    """Return what a wrapper takes for each of its parts where the file leaves it out."""
    found = {}
    for key, spec in (getattr(cls, "sub_configs_defaults", None) or {}).items():
        kind = getattr(spec, "model_type", None) or getattr(getattr(spec, "config_class", None), "model_type", "")
        if kind:
            own = {name: value for name, value in (getattr(spec, "init_kwargs", None) or {}).items() if plain(value)}
            found[key] = {"model_type": kind, **own}
    return found


def classes() -> dict[str, type]:
    """Return the configuration class of each model type that the importer may meet, parts of wrappers included."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from zhenfa.spec.huggingface import known_types

    found: dict[str, type] = {}

    def add(cls: Any, name: str | None = None) -> None:
        kind = name or getattr(cls, "model_type", "") or getattr(cls, "__name__", "")
        if not inspect.isclass(cls) or not dataclasses.is_dataclass(cls) or cls.__name__ == "AutoConfig":
            return
        if kind in found:
            return
        found[kind] = cls
        for part in (getattr(cls, "sub_configs", None) or {}).values():
            if getattr(part, "model_type", ""):
                add(part)
        for part in parts_of(cls).values():
            if part["model_type"] in CONFIG_MAPPING:
                add(CONFIG_MAPPING[part["model_type"]], part["model_type"])

    wanted = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *known_types()}
    for kind in sorted(wanted):
        if kind in CONFIG_MAPPING:
            add(CONFIG_MAPPING[kind], kind)
    return found


def main() -> None:
    """Write the table."""
    import transformers

    kinds = classes()
    wanted = keys_asked_for()
    table = {}
    for kind, cls in sorted(kinds.items()):
        names = {a: b for a, b in sorted((getattr(cls, "attribute_map", None) or {}).items()) if {a, b} & wanted}
        keep = wanted | set(names) | set(names.values())
        parts = {key: part for key, part in parts_of(cls).items() if key in wanted}
        table[kind] = {"defaults": fields_of(cls, keep)}
        table[kind] |= ({"names": names} if names else {}) | ({"parts": parts} if parts else {})
    about = {
        "source": f"transformers {transformers.__version__} (Apache-2.0), default values of the configuration classes",
        "transformers": transformers.__version__,
    }
    lines = [f"{json.dumps(kind)}: {json.dumps(entry, sort_keys=True)}" for kind, entry in table.items()]
    text = "{\n" + f'"about": {json.dumps(about)},\n"types": {{\n' + ",\n".join(lines) + "\n}\n}\n"
    TARGET.write_text(text, encoding="utf-8")
    sys.stderr.write(f"{TARGET.name}: {len(table)} model types, {len(text):,} bytes\n")


if __name__ == "__main__":
    main()
