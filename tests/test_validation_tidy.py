"""However a row is written, it says the same; whatever stands in it, it is predicted or skipped, never lost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zhenfa.validation import kinds
from zhenfa.validation.outcome import Kind
from zhenfa.validation.rows import Row, packaged, read_rows
from zhenfa.validation.tidy import tidy

KINDS: tuple[Kind, ...] = ("serve", "op", "fabric", "reliability", "energy")
NAMES = ("model", "engine", "acc_id", "vendor", "gpu", "system", "op", "chip", "backend", "accelerator")
WORDS_ONLY = ("section", "kind", "id", "notes")


@cache
def rows() -> dict[Kind, list[dict[str, Any]]]:
    """Return a few rows of each kind, from all over its file."""
    found: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for item in read_rows(path for path in packaged() if "training" not in path.name):
        assert isinstance(item, Row)
        kind = kinds.kind_of(item.record)
        assert kind is not None
        found[kind].append(dict(item.record))
    return {kind: every[:: max(len(every) // 12, 1)] for kind, every in found.items()}


def said(record: dict[str, Any]) -> dict[str, tuple[float | None, str | None]]:
    kind = kinds.kind_of(record)
    assert kind is not None
    return {one.metric: (one.predicted, one.skipped) for one in kinds.outcomes(record, kind, "here")}


def walk(value: Any, change: Callable[[Any, str], Any], key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: walk(one, change, name) for name, one in value.items()}
    if isinstance(value, list):
        return [walk(one, change, key) for one in value]
    return change(value, key)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lower_degrees(row: dict[str, Any]) -> dict[str, Any]:
    layout = row.get("parallelism")
    return row if not isinstance(layout, dict) else {**row, "parallelism": {k.lower(): v for k, v in layout.items()}}


HARMLESS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "more fields": lambda row: {**row, "comment": "seen at 12 GB/s", "more": {"batch": [1]}},
    "another order": lambda row: dict(reversed(row.items())),
    "numbers as text": lambda row: walk(row, lambda value, _: repr(value) if is_number(value) else value),
    "whole numbers as fractions": lambda row: walk(row, lambda value, _: float(value) if is_number(value) else value),
    "names in capitals": lambda row: walk(
        row, lambda value, key: value.upper() if isinstance(value, str) and key in NAMES else value
    ),
    "space around words": lambda row: walk(
        row, lambda value, key: f" {value} " if isinstance(value, str) and key not in WORDS_ONLY else value
    ),
    "units behind numbers": lambda row: walk(
        row, lambda value, key: f"{value} ms" if is_number(value) and key.endswith("_ms") else value
    ),
    "degrees in small letters": lower_degrees,
}


@pytest.mark.parametrize("how", HARMLESS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_say_the_same_however_they_are_written(kind: Kind, how: str) -> None:
    for row in rows()[kind]:
        changed = said(HARMLESS[how](copy.deepcopy(row)))
        for metric, (predicted, skipped) in said(row).items():
            assert metric in changed, (row["id"], metric)
            other, why = changed[metric]
            assert (skipped is None) == (why is None), (row["id"], metric, why)
            if predicted is not None:
                assert other is not None
                assert math.isclose(predicted, other, rel_tol=1e-9), (row["id"], metric)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [] if not path else [path]
    for key, one in inside:
        found += places(one, (*path, key))
    return found


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just(10**400), st.just("12 ms"),
    st.just("~3K"), st.builds(list), st.builds(dict), st.builds(lambda: [None]), st.builds(lambda: {"a": 1}),
    st.just("1e999"), st.just("TBD"),
)  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_whatever_stands_in_a_row_it_is_predicted_or_skipped(kind: Kind, data: st.DataObject) -> None:
    row = copy.deepcopy(data.draw(st.sampled_from(rows()[kind])))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(row) or [("id",)]))
        holder = row
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[path[-1]] = data.draw(JUNK)
        elif isinstance(holder, dict):
            del holder[path[-1]]
    now = kinds.kind_of(row)
    if now is None:
        return
    module = kinds.module(now)
    found = module.outcomes(tidy(row))  # no net beneath: the module itself stands it
    for one in found:
        assert one.skipped is None or len(one.skipped) > 8
    for one in kinds.outcomes(row, now, "here"):
        assert one.skipped is not None or (one.ratio is not None and 0 < one.ratio < math.inf)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch", "1,024", 1024), ("batch", "32/GPU", "32/GPU"), ("tpot_ms", "12.5 ms", 12.5),
        ("tpot_ms", "12.5 s", "12.5 s"),
        ("version", "0.20", "0.20"), ("message", "8 GiB", "8 GiB"), ("busbw_GBps", "393-485", "393-485"),
        ("power_W", "700 W", 700), ("latency_us", "~100", 100), ("x", "1e999", "1e999"), ("x", "", ""), ("x", "-", "-"),
    ],
)  # fmt: skip
def test_text_is_a_number_only_where_it_is_one(key: str, text: str, value: Any) -> None:
    assert tidy({key: text}) == {key: value}
