"""Training rows under other spellings: what is written differently and says the same is predicted the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zhenfa.validation import kinds, training
from zhenfa.validation.train_layout import named_modules
from zhenfa.validation.train_spelling import FIELDS, SECTIONS, canonical, plain

ROW: dict[str, Any] = {
    "id": "llama3-8b", "tier": "A", "task": "pretrain", "precision": "bf16", "software": "NeMo 24.07",
    "model": {
        "name": "Llama3-8B", "layers": 32, "hidden": 4096, "ffn": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128,
        "vocab": 128256, "gated_mlp": True, "seq": 8192,
    },
    "hardware": {
        "accel": "NVIDIA H100-80GB SXM", "vendor": "nvidia", "mem_gb": 80, "peak_bf16_tf": 989, "per_node": 8,
        "intra": "NVLink4 900 GB/s", "inter": "8x400Gb/s NDR InfiniBand per node", "count": 16,
    },
    "parallel": {
        "tp": 2, "pp": 1, "vpp": 1, "dp": 4, "ep": 1, "cp": 2, "sp": True, "zero": "dist-optimizer (ZeRO-1)",
        "mbs": 1, "gbs": 128, "ga": 32, "recompute": "none", "schedule": "none",
    },
    "metrics": {"iter_s": 6.5},
}  # fmt: skip


def _seconds(row: dict[str, Any]) -> tuple[float, float]:
    (outcome, *_) = training.outcomes(row)
    assert outcome.skipped is None, outcome.skipped
    assert outcome.predicted is not None
    assert outcome.measured is not None
    return outcome.predicted, outcome.measured


KNOWN = _seconds(ROW)


def _renamed(row: dict[str, Any], data: st.DataObject) -> None:
    """Call some fields by another of their names."""
    for section, fields in FIELDS.items():
        held = row[section]
        for field in sorted(held.keys() & fields.keys()):
            if field != "iter_s" and fields[field] and data.draw(st.booleans()):
                held[data.draw(st.sampled_from(fields[field]))] = held.pop(field)


def _cased(row: dict[str, Any], data: st.DataObject) -> None:
    """Write some names in capitals, or with dashes."""
    change: Callable[[str], str] = data.draw(
        st.sampled_from([str.upper, str.title, lambda word: word.replace("_", "-")])
    )
    for section in FIELDS:
        row[section] = {change(key) if key in FIELDS[section] else key: value for key, value in row[section].items()}


def _texts(row: dict[str, Any], data: st.DataObject) -> None:
    """Write some numbers as text, with a unit or separators, or as floating-point numbers."""
    for section in FIELDS:
        for key, value in row[section].items():
            if isinstance(value, int) and not isinstance(value, bool):
                row[section][key] = data.draw(st.sampled_from([value, str(value), f"{value:,}", float(value)]))
            elif isinstance(value, bool):
                row[section][key] = data.draw(st.sampled_from([value, str(value).lower(), int(value)]))


def _extra(row: dict[str, Any], data: st.DataObject) -> None:
    """Add fields that no law knows, and empty ones."""
    for section in FIELDS:
        row[section][data.draw(st.sampled_from(["comment", "x_y", "operator"]))] = data.draw(
            st.one_of(st.none(), st.text(max_size=5), st.lists(st.integers(), max_size=2))
        )
    row["moe"] = None


def _sectioned(row: dict[str, Any], data: st.DataObject) -> None:
    """Call a section by another name, or write its fields at the top level."""
    section = data.draw(st.sampled_from(sorted(SECTIONS)))
    held = row.pop(section)
    if section == "parallel" and data.draw(st.booleans()):
        row.update(held)
    else:
        row[data.draw(st.sampled_from(SECTIONS[section]))] = held


def _without(row: dict[str, Any], data: st.DataObject) -> None:
    """Leave out what follows from the rest, or is the default."""
    for section, key in (
        ("parallel", "ga"), ("parallel", "vpp"), ("parallel", "ep"), ("parallel", "schedule"), ("parallel", "dp"),
        ("model", "head_dim"), ("hardware", "vendor"), ("hardware", "peak_bf16_tf"), ("hardware", "mem_gb"),
    ):  # fmt: skip
        if data.draw(st.booleans()):
            row[section].pop(key, None)


MUTATIONS = (_renamed, _cased, _texts, _extra, _sectioned, _without)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_other_spellings_say_the_same(data: st.DataObject) -> None:
    row = copy.deepcopy(ROW)
    chosen = data.draw(st.lists(st.sampled_from(range(len(MUTATIONS))), min_size=1, max_size=4, unique=True))
    for turn in sorted(chosen, key=lambda one: (MUTATIONS[one] in (_cased, _sectioned), one)):
        MUTATIONS[turn](row, data)
    assert kinds.kind_of(row) == "train"
    assert _seconds(row) == pytest.approx(KNOWN, rel=1e-9)


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("metrics", "iter_s", {"step_time_ms": 6500}),
        ("metrics", "iter_s", {"Step time (s)": "6.5 s", "step_s": 6.5}),
        ("metrics", "iter_s", {"tokens_per_sec_per_gpu": 128 * 8192 / 6.5 / 16}),
        ("metrics", "iter_s", {"tok_s": 128 * 8192 / 6.5}),
        ("model", "seq", {"seq": "8K"}),
        ("parallel", "zero", {"zero_stage": 1}),
        ("hardware", "accel", {"gpu": "H100 SXM5"}),
    ],
)
def test_the_same_in_other_units(section: str, old: str, new: dict[str, Any]) -> None:
    row = copy.deepcopy(ROW)
    del row[section][old]
    row[section] |= new
    predicted, measured = _seconds(row)
    assert predicted / measured == pytest.approx(
        KNOWN[0] / KNOWN[1], rel=1e-9
    ) or measured / predicted == pytest.approx(KNOWN[0] / KNOWN[1], rel=1e-9)


def test_a_known_model_needs_only_its_name() -> None:
    row = {**copy.deepcopy(ROW), "model": {"name": "Llama 3 8B", "seq": 8192}}
    assert _seconds(row)[0] == pytest.approx(KNOWN[0], rel=1e-3)


def test_a_fields_own_name_wins() -> None:
    assert canonical({"parallel": {"tensor_parallel": 4, "tp": 2}})["parallel"]["tp"] == 2
    assert canonical({"tensor_parallel": 4, "parallel": {"tp": 2}})["parallel"]["tp"] == 2
    assert plain("Micro-Batch Size") == "micro_batch_size"


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("full", "full"), ("full uniform 1 layers", "full"), ("activation checkpointing", "full"), (True, "full"),
        ("none", "none"), ("no activation checkpointing", "none"), (False, "none"), ("not stated", "none"),
        ("selective", "selective"), (["norm", "act"], "selective"), ("selective: core_attn", "selective"),
    ],
)  # fmt: skip
def test_words_of_recomputation(words: Any, mode: str) -> None:
    row = copy.deepcopy(ROW)
    row["parallel"]["recompute"] = words
    assert training.read(row).plan.pipelines[0].stages[0].recompute == mode


def test_modules_of_selective_recomputation() -> None:
    assert named_modules("selective: moe,layernorm,core_attn") == ("experts", "norm", "attention")
    assert named_modules(None) == ()
