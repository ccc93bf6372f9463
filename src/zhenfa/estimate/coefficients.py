"""Coefficients of the kernel laws: of a library's kernels on a generation of chips, of a chip, the prior over chips.

``kernels.json`` is written by ``tools/fit_kernels.py``. Entries are keyed by what they were fitted to: operator,
engine, kernel, data type, generation of chips. What is not there is answered by the next wider entry, down to the prior
over all chips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from zhenfa.catalog import files
from zhenfa.laws import attention, experts, matmul, stream
from zhenfa.laws.arrays import Array

LAWS: Final[dict[str, Callable[..., Array]]] = {
    "matmul": matmul.matmul_time, "experts": experts.experts_time, "prefill": attention.prefill_time,
    "decode": attention.decode_time, "block": attention.block_time, "scan": stream.scan_time,
    "stream": stream.stream_time,
}  # fmt: skip

Key = tuple[str, str | None, str | None, str | None, str | None]
"""Operator, engine, kernel, data type, generation; None stands for all of them together."""

ERAS: Final = ("hopper", "blackwell", "ampere")
"""Generations, the one whose kernels stand in first for a generation without tables."""

SUPERSEDED: Final = frozenset({"marlin-vllm-0.19"})
"""Kernels that an engine no longer runs: the table of vLLM 0.19 has 4-bit experts at a third of the speed of 0.24."""

CAPPED: Final = ("share", "memory_share")
"""Coefficients that a chip's factor never lifts above 1."""


@dataclass(frozen=True)
class Generation:
    """Which chips share a design, and what the laws need to know of a chip."""

    name: str | None
    cores: int | None


@cache
def generations() -> Mapping[str, Generation]:
    """Return generation and cores by accelerator id."""
    plain = files.read(files.ROOT / "generations.yaml")["generations"]
    return {chip: Generation(name, cores) for name, chips in plain.items() for chip, cores in chips.items()}


def generation(chip: str) -> Generation:
    """Return generation and cores of an accelerator; empty if unknown."""
    return generations().get(chip, Generation(None, None))


@cache
def table_names() -> Mapping[str, str]:
    """Return the accelerator id by the name that tables of measured operators use."""
    names: dict[str, str] = files.read(files.ROOT / "generations.yaml")["tables"]
    return names


@dataclass(frozen=True)
class Found:
    """Coefficients that answer a question, and the entry that gave them."""

    values: Mapping[str, float]
    key: Key
    known: bool
    """Whether the chip itself was among those fitted."""
    host_bound: bool


class Library:
    """All fitted entries, factors of chips, and the spread that held-out data showed."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.entries: dict[Key, Mapping[str, Any]] = {key_of(entry): entry for entry in document["entries"]}
        self.factors: Mapping[str, Mapping[str, Mapping[str, float]]] = document["chips"]
        self._found: dict[tuple[Any, ...], Found] = {}

    def find(
        self, op: str, dtype: str | None, chip: str | None, engine: str | None = None, kernel: str | None = None
    ) -> Found:
        """Return the coefficients for an operator on a chip. Raises ``KeyError`` if the operator is unknown."""
        asked = (op, dtype, chip, engine, kernel)
        if asked not in self._found:
            self._found[asked] = self._find(op, dtype, chip, engine, kernel)
        return self._found[asked]

    def _find(self, op: str, dtype: str | None, chip: str | None, engine: str | None, kernel: str | None) -> Found:
        family = generation(chip).name if chip else None
        for key in _wider(op, engine, kernel, dtype, family):
            entry = self.entries.get(key)
            if entry is not None:
                break
        else:
            raise KeyError(op)
        values = dict(entry["coefficients"])
        factors = self.factors.get(chip or "", {}).get(op)
        host = bool(entry.get("host_bound"))
        if factors is not None:
            for name, factor in factors.items():
                target = "fixed" if name == "host" else name
                if target in values and (name == "host") == (host and target == "fixed"):
                    values[target] *= factor
            for name in CAPPED:
                if name in values:
                    values[name] = min(values[name], 1.0)
        return Found(values, key, factors is not None, host)

    def best_kernel(self, op: str, dtype: str, chip: str | None, engine: str) -> str | None:
        """Return the kernel of an engine that was measured most often, launched from a captured graph, and not since
        replaced."""
        family = generation(chip).name if chip else None
        found = [
            (entry["points"], key[2])
            for key, entry in self.entries.items()
            if key[:2] == (op, engine)
            and key[3] == dtype
            and key[4] == family
            and key[2] not in SUPERSEDED
            and not entry.get("host_bound")
        ]
        return max(found, default=(0, None), key=lambda one: one[0])[1]


def key_of(entry: Mapping[str, Any]) -> Key:
    """Return the key of an entry of the data file."""
    return (entry["op"], entry.get("engine"), entry.get("kernel"), entry.get("dtype"), entry.get("generation"))


def _wider(op: str, engine: str | None, kernel: str | None, dtype: str | None, family: str | None) -> Iterator[Key]:
    """Yield ever wider keys: another generation's entry of the same kernel comes before other kernels."""
    eras = (family, None) if family else (None,)
    if engine is not None and kernel is not None:
        yield from ((op, engine, kernel, dtype, era) for era in eras)
        yield from ((op, engine, kernel, dtype, era) for era in ERAS if era != family)
    yield from ((op, None, None, dtype, era) for era in eras)
    yield (op, None, None, None, None)


@cache
def library() -> Library:
    """Return the packaged entries."""
    return Library(json.loads((files.ROOT / "kernels.json").read_bytes()))
