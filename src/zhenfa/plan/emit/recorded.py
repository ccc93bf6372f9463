"""Options of other systems, as recorded from their own definitions: ``catalog/data/targets``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from zhenfa.catalog import files

PLACE = files.ROOT / "targets"


@dataclass(frozen=True)
class Recorded:
    """The options of one system: its ``version``, where they were read, and each with its kind and choices."""

    name: str
    version: str
    source: str
    options: dict[str, dict[str, Any]]

    def problems(self, words: list[str]) -> list[str]:
        """Return what is wrong with a command line: options that do not exist, values that they do not take."""
        found = []
        index = 0
        while index < len(words):
            name, equals, value = words[index].partition("=")
            option = self.options.get(name)
            index += 1
            if option is None:
                found.append(f"{name} is no option of {self.name} {self.version}")
                while index < len(words) and not words[index].startswith("--"):
                    index += 1
                continue
            values = [value] if equals else []
            while index < len(words) and not words[index].startswith("--"):
                values.append(words[index])
                index += 1
            found += _misuse(name, option, values)
        return found


def _misuse(name: str, option: dict[str, Any], values: list[str]) -> list[str]:
    kind, choices = option["kind"], option.get("choices")
    if kind == "flag":
        return [f"{name} takes no value, and {values[0]!r} is given"] if values else []
    if not values:
        return [f"{name} needs a value"]
    if len(values) > 1 and not option.get("many"):
        return [f"{name} takes one value, and {len(values)} are given"]
    found = [f"{name} takes one of {choices}, not {value!r}" for value in values if choices and value not in choices]
    reader = {"int": int, "float": float}.get(kind)
    for value in values:
        try:
            _ = reader(value) if reader else None
        except ValueError:
            found.append(f"{name} takes a number, not {value!r}")
    return found


@cache
def recorded(name: str) -> Recorded:
    """Return the options of a system."""
    data = json.loads((PLACE / f"{name}.json").read_text(encoding="utf-8"))
    return Recorded(name, data["version"], data["source"], data["options"])


@cache
def makers() -> dict[str, dict[str, str]]:
    """Return how clusters name each maker's cards: the variable that shows them, and the Kubernetes resource."""
    data = json.loads((PLACE / "makers.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = data["makers"]
    return found
