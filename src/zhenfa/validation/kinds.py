"""Which kind a record is of, and what the laws say of it: one module for each kind, imported when it is needed."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final, Protocol, cast, get_args

from zhenfa.errors import ZhenfaError
from zhenfa.validation.banding import banded
from zhenfa.validation.outcome import Kind, Outcome
from zhenfa.validation.tidy import tidy

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MODULES: Final[dict[Kind, str]] = {
    "train": "training", "serve": "serving", "op": "operator", "fabric": "fabric", "reliability": "reliability",
    "energy": "energy",
}  # fmt: skip
GROUPS: Final[dict[Kind, str]] = {
    "train": "train / other", "serve": "serve / compare", "op": "operators", "fabric": "collectives < 1 MB",
    "reliability": "reliability", "energy": "energy",
}  # fmt: skip
"""The group of a row about which nothing more is known."""

LONGEST: Final = 160
"""Characters of the words of an error that nobody foresaw."""


class Rows(Protocol):
    """What the module of a kind offers."""

    def accepts(self, record: Mapping[str, Any]) -> bool:
        """Return whether the record is of this kind."""

    def outcomes(self, record: Mapping[str, Any]) -> list[Outcome]:
        """Return every metric of the record beside what the laws say of it."""


@cache
def module(kind: Kind) -> Rows:
    """Return the module of a kind."""
    return cast(Rows, importlib.import_module(f"zhenfa.validation.{MODULES[kind]}"))


def kind_of(record: Mapping[str, Any]) -> Kind | None:
    """Return the kind of a record by its fields, or None if no kind knows it."""
    record = tidy(record)
    for kind in KINDS:
        try:
            if module(kind).accepts(record):
                return kind
        except (TypeError, ValueError, LookupError, AttributeError):
            continue
    return None


def outcomes(record: Mapping[str, Any], kind: Kind, place: str) -> list[Outcome]:
    """Return every metric of a record of a kind; a record that a law refuses is skipped in the words of its error."""
    try:
        found: Sequence[Outcome] = module(kind).outcomes(tidy(record))
    except ZhenfaError as problem:
        return [_skipped(record, kind, place, problem.message.rstrip("."))]
    except Exception as problem:  # a value of the wrong sort, or a fault of ours: it loses no other row
        if os.environ.get("ZHENFA_DEBUG"):
            raise
        words = " ".join(str(problem).split())[:LONGEST]
        return [_skipped(record, kind, place, f"the row cannot be used: {type(problem).__name__}: {words}")]
    return [_checked(one) for one in found] or [_skipped(record, kind, place, "the row holds nothing that a law says")]


def _checked(outcome: Outcome) -> Outcome:
    """Return the outcome with its band, or marked as skipped where it has no ratio."""
    if outcome.skipped is not None:
        return outcome
    if outcome.ratio is not None and math.isfinite(outcome.ratio):
        return banded(outcome)
    why = "the measured value is missing, or not a positive number"
    if outcome.measured is not None and 0 < outcome.measured < math.inf:
        why = "the laws give no positive, finite number"
    return _skip(outcome, why)


def _skip(outcome: Outcome, why: str) -> Outcome:
    return replace(outcome, skipped=why)


def _skipped(record: Mapping[str, Any], kind: Kind, place: str, why: str) -> Outcome:
    name = record.get("id")
    gate = record.get("tier") == "A" or record.get("use") == "gate"
    return Outcome(
        id=name if isinstance(name, str) else place, kind=kind, groups=(GROUPS[kind],), metric="", unit="",
        skipped=why, gate=gate,
    )  # fmt: skip
