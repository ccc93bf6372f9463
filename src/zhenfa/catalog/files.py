"""The packaged data files, read once.

The YAML files are the data. Because reading all of them takes a second, ``compiled.json`` holds the same data ready to
load, each file on a line of its own under the digest of its text. A file whose digest has changed is read from its
YAML, so the compiled form can be out of date but never wrong. ``python -m zhenfa.catalog.compile`` writes it anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from zhenfa import cite
from zhenfa.spec import yaml

ROOT: Final = Path(__file__).parent / "data"
COMPILED: Final = ROOT / "compiled.json"
FOLDERS: Final = ("accelerators", "systems", "machines", "models", ".")


def paths(folder: str) -> list[Path]:
    """Return the YAML files of a folder of the packaged data, in order of name."""
    return sorted((ROOT / folder).glob("*.yaml"))


def digest(text: bytes) -> str:
    """Return what tells one version of a file from another."""
    return hashlib.sha256(text).hexdigest()


def parse(path: Path, text: bytes) -> Any:
    """Return the plain data of a packaged YAML file."""
    return yaml.read(text, str(path))[0]


@cache
def read(path: Path) -> Any:
    """Return the plain data of a packaged file; callers do not change it."""
    text = path.read_bytes()
    line = _compiled().get(path.relative_to(ROOT).as_posix())
    known = None if line is None else json.loads(line)
    if known is not None and known["digest"] == digest(text):
        return known["data"]
    return parse(path, text)


@cache
def _compiled() -> dict[str, str]:
    """Return the entry of each file, a line of the compiled form, as text: few are needed of the many."""
    if not COMPILED.exists():
        return {}
    lines = COMPILED.read_text(encoding="utf-8").split("\n")[1:-2]
    parts = (line.rstrip(",").partition(": ") for line in lines)
    return {name.strip('"'): entry for name, _, entry in parts}


@cache
def sources() -> Mapping[str, str]:
    """Return the bibliography line of every source key, each declared to :mod:`zhenfa.cite`."""
    lines: dict[str, str] = read(ROOT / "sources.yaml")["sources"]
    for key, line in lines.items():
        cite.declare(key, line)
    return MappingProxyType(lines)


def confidences() -> dict[str, str]:
    """Return what each confidence means, in words."""
    meanings: dict[str, str] = read(ROOT / "sources.yaml")["confidence"]
    return dict(meanings)


def traps() -> list[str]:
    """Return the traps that hold for the catalog as a whole."""
    lines: list[str] = read(ROOT / "sources.yaml")["traps"]
    return list(lines)
