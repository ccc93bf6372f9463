from __future__ import annotations

import importlib
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.cli import terms as glossary
from zhenfa.cli.terms import Term, find, terms
from zhenfa.errors import UnknownNameError
from zhenfa.spec import yaml

TERMS = list(terms().values())
EACH = pytest.mark.parametrize("term", TERMS, ids=[term.name for term in TERMS])

WANTED = """
card, die, package, accelerator, device, maker, pool, machine, tier, supernode, scale-up, scale-out, rail,
oversubscription, host staging, bridge, formation, 阵法,
TP, PP, DP, EP, SP, CP, ZeRO, FSDP, micro-batch, global batch, 1F1B, GPipe, interleaved, zero-bubble, DualPipe, bubble,
recompute, no recompute, selective recompute, full recompute, activation, optimizer state, AdamW,
MoE, top-k, shared expert, GQA, MQA, MLA, sliding window, linear attention, MTP, model FLOPs,
KV cache, prefill, decode, TTFT, TPOT, ITL, throughput, goodput,
MFU, HFU, roofline, arithmetic intensity, speed of light, MAMF, achievable, share of the sum of speeds,
all-reduce, all-gather, reduce-scatter, all-to-all, bus bandwidth, in-network reduction, latency,
PUE, TDP, energy per token,
ETTR, MTBF, checkpoint interval, Young-Daly, spare, straggler, SDC, blast radius,
four walls, compute wall, communication wall, energy wall, reliability wall,
emulated, simulated, estimated, measured, fitted, datasheet, claim, assumed, derived, fidelity
"""


@pytest.mark.parametrize("name", [name.strip() for name in WANTED.split(",")])
def test_the_terms_that_output_uses_are_explained(name: str) -> None:
    assert find(name).meaning


@EACH
def test_a_term_is_whole(term: Term) -> None:
    assert re.search(r"[\u4e00-\u9fff]", term.chinese)
    assert re.search(r"[\u4e00-\u9fff]", term.meaning_chinese)
    assert not re.search(r"[\u4e00-\u9fff]", term.meaning)
    assert term.meaning.endswith(".")
    assert term.meaning_chinese.endswith("。")
    assert 20 <= len(term.meaning) <= 260
    assert ". " not in term.meaning, "one sentence"
    assert term.meaning_chinese.count("。") == 1, "one sentence"
    assert term.polarity in ("higher", "lower", "neither")
    assert term.unit is None or term.unit.strip()
    assert term.polarity == "neither" or term.unit, "only a quantity is better one way"
    assert term.formula is None or not term.formula.endswith(".")


@EACH
def test_related_terms_exist(term: Term) -> None:
    assert term.see
    assert len(set(term.see)) == len(term.see)
    for name in term.see:
        assert name in terms(), f"{name} is no term"
        assert name != term.name


@EACH
def test_the_law_exists_and_is_documented(term: Term) -> None:
    if term.law is None:
        return
    module, _, function = term.law.partition(".")
    law = getattr(importlib.import_module(f"zhenfa.laws.{module}"), function)
    assert callable(law)
    assert law.__doc__


def test_laws_are_named_where_there_is_one() -> None:
    named = {term.law for term in TERMS if term.law}
    assert {law.partition(".")[0] for law in named} >= {
        "compute",
        "communication",
        "memory",
        "pipeline",
        "energy",
        "reliability",
    }
    assert len(named) >= 20


def test_every_term_is_led_to_by_another() -> None:
    led_to = {name for term in TERMS for name in term.see}
    assert {term.name for term in TERMS} <= led_to


def test_the_file_gives_every_field_of_every_term_in_one_order() -> None:
    data, _ = yaml.read(glossary.FILE.read_bytes(), "terms.yaml")
    assert isinstance(data, dict)
    order = ["name", "aliases", "chinese", "meaning", "meaning_chinese", "unit", "polarity", "formula", "see", "law"]
    assert set(order) == {field.name for field in fields(Term)}
    for item in data["terms"]:
        assert list(item) == [key for key in order if key in item]
        assert set(order) - set(item) <= {"formula", "law"}
    assert len(data["terms"]) == len(TERMS), "a name is given twice"


def test_no_two_terms_share_a_name() -> None:
    seen: dict[str, str] = {}
    for term in TERMS:
        for name in term.names:
            folded = glossary._fold(name)
            assert seen.setdefault(folded, term.name) == term.name, f"{name} is {seen[folded]} and {term.name}"
        assert len({glossary._fold(name) for name in term.names}) == len(term.names), f"{term.name} repeats a name"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MFU", "MFU"),
        ("mfu", "MFU"),
        ("  Mfu ", "MFU"),
        ("all reduce", "all-reduce"),
        ("ALL_REDUCE", "all-reduce"),
        ("allreduce", "all-reduce"),
        ("全规约", "all-reduce"),
        ("阵法", "formation"),
        ("1f1b", "1F1B"),
        ("fully sharded data parallel", "FSDP"),
        ("Young-Daly", "Young-Daly"),
        ("topk", "top-k"),
        ("busbw", "bus bandwidth"),
    ],
)
def test_a_term_is_found_by_any_of_its_names(text: str, name: str) -> None:
    assert find(text).name == name


@EACH
def test_every_name_finds_its_term(term: Term) -> None:
    for name in term.names:
        assert find(name) is term
        assert find(name.upper()) is term


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("mfuu", " Did you mean 'MFU'?"),
        ("bubbel", " Did you mean 'bubble'?"),
        ("staging", " Did you mean 'host staging'"),
        ("全规", " Did you mean '全规约'"),
        ("xyzzy", ""),
        ("", ""),
    ],
)
def test_an_unknown_term_is_refused_with_near_misses(text: str, guess: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find(text)
    assert caught.value.message.startswith(f"no term is called {text!r}.{guess}")
    assert caught.value.hint == f"`zhenfa show terms` lists all {len(TERMS)}."
    assert bool(caught.value.near) == bool(guess)


@given(st.text())
def test_any_text_finds_a_term_or_is_refused(text: str) -> None:
    try:
        assert find(text) in TERMS
    except UnknownNameError as problem:
        assert problem.exit_code == 2  # noqa: PT017
