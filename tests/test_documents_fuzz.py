"""Broken documents by the thousand: a valid document comes out, or a message for the user; nothing else ever."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plain_documents import documents
from zhenfa.errors import DocumentError
from zhenfa.spec import yaml
from zhenfa.spec.document import Document
from zhenfa.spec.job import Job
from zhenfa.spec.machine import Machine
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Estimate, Run

KINDS: tuple[type[Document], ...] = (Machine, Job, Plan)

SEEDS: dict[type[Document], str] = {
    Machine: """\
schema: zhenfa.machine/1
name: mixed
pools:
  - {name: a, system: cloudmatrix384, count: 384}
  - name: b
    accelerator:
      id: x1
      maker: acme
      name: X1
      peak: {bf16: 400 TFLOPS}
      memory: {capacity: {value: 64, unit: GB, source: s, confidence: press}, bandwidth: 1.6 TB/s}
      achievable: {matmul: {bf16: 80 %}}
      conflicts: [{field: tdp, values: [{value: 1, source: a}]}]
    count: 8
    tiers: [{name: node, size: 8, bandwidth: 392 GB/s, latency: 1.9 us}]
network: {bandwidth: 400 Gb/s, host_staged: true}
""",
    Job: """\
schema: zhenfa.job/1
name: j
model: llama-3-8b
machine: {name: m, pools: [{name: a, accelerator: {id: x, maker: y, name: z}, count: 5}]}
workload:
  sequence_length: 4096
  global_batch: 1024
  tokens: 1e12
limits: {max_cards: 64}
assume: {a.b: 64 GB, c: 5}
""",
    Plan: """\
schema: zhenfa.plan/1
job: j
model: m
machine: x
sequence_length: 4096
precision: bf16
pipelines:
  - micro_batches: 4
    stages:
      - {pool: a, first: 0, last: 4, recompute: full}
      - {pool: b, first: 4, last: 8}
""",
}
BITS = [
    ":", ": ", "- ", "-", "[", "]", "{", "}", ",", "'", '"', "#", "&a ", "*a", "!!int ", "|\n", ">", "%", "@",
    "`", "? ", "<<: ", "\n", "\n\n", "  ", "\t", "\r\n", "---\n", "...\n", "~", "null", "true", "no", "1e999",
    ".nan", "-1", "0x1F", "9" * 120, "1_000", "\x00", "\x1b[31m", "\u202e", "\ufeff", "阵法", "😀", "\\",
    "\\u0000", "name", "pools", "schema", "kind", "value", "64 gigs", "x" * 300, "[" * 50, "{a: " * 50,
    "\ud800",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, -(10**400), 1e308, "", "no", "5", "64 GB", "64 gigs", "x" * 5000, "\x1b[31m",
    "\ud800", [], {}, [[]], [None], {"": None}, {"schema": "zhenfa.job/1"}, {"value": "x"}, {"value": 1, "unit": []},
    {1: 2}, (1, 2), {"a": {"b": {"c": {}}}}, b"bytes", 1j, object, float("nan"), float("inf"),
]  # fmt: skip


def outcome(kind: type[Document], text: str | bytes | dict[Any, Any]) -> Document | DocumentError:
    """Return the document or the refusal; anything else fails the test as it is."""
    try:
        if isinstance(text, dict):
            return kind.from_data(text, source="f")
        return kind.from_text(text, source="f")
    except DocumentError as problem:
        return problem


def check(result: Document | DocumentError) -> None:
    if isinstance(result, DocumentError):
        assert result.exit_code == 2
        assert result.message.startswith("f:")
        assert result.message.isprintable()
        assert len(result.message) < 2000
        assert result.hint is None or (result.hint.isprintable() and len(result.hint) < 2000)
        assert "pydantic" not in str(result)
    else:
        assert type(result).from_text(result.to_yaml()) == result


def mutate(text: str, dice: random.Random) -> str:
    """Return the text with a few pieces deleted, doubled, moved or inserted."""
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(text) + 1)
        end = min(len(text), start + dice.choice([0, 1, 1, 3, 10, 60]))
        kind = dice.randrange(5)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:end] + text[start:end] + text[end:]
        elif kind == 2:
            text = text[:start] + dice.choice(BITS) + text[end:]
        elif kind == 3:
            lines = text.split("\n")
            dice.shuffle(lines) if dice.random() < 0.1 else lines.insert(dice.randrange(len(lines)), dice.choice(lines))
            text = "\n".join(lines)
        else:
            text = text[:start] + chr(dice.choice([dice.randrange(128), dice.randrange(0x11000)])) + text[end:]
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_the_seeds_are_valid(kind: type[Document]) -> None:
    assert isinstance(outcome(kind, SEEDS[kind]), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_mutations_of_a_text(kind: type[Document]) -> None:
    dice = random.Random(20)
    results = []
    for _ in range(1000):
        text = mutate(SEEDS[kind], dice)
        result = outcome(kind, text if dice.random() < 0.8 else text.encode("utf-8", "surrogatepass"))
        check(result)
        results.append(isinstance(result, DocumentError))
    assert 0.3 < sum(results) / len(results) < 0.99  # neither all refused nor all read: the mutations bite


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_mutations_found_by_search(kind: type[Document], dice: random.Random) -> None:
    check(outcome(kind, mutate(SEEDS[kind], dice)))


@settings(max_examples=300)
@given(
    st.sampled_from(KINDS),
    st.text(max_size=300) | st.binary(max_size=300) | st.lists(st.sampled_from(BITS)).map("".join),
)
def test_any_text(kind: type[Document], text: str | bytes) -> None:
    check(outcome(kind, text))


def replace_somewhere(data: Any, dice: random.Random) -> Any:
    """Return a copy of the data with one value replaced, one key renamed or one item dropped."""
    data = copy.deepcopy(data)
    places = [path for path, _ in yaml.walk(data) if path]
    path = dice.choice(places)
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    last: Any = path[-1]
    action = dice.randrange(3)
    if action == 0:
        holder[last] = copy.deepcopy(dice.choice(VALUES))
    elif action == 1:
        del holder[last]
    elif isinstance(holder, dict):
        renamed = dice.choice([str(last)[:-1], f"{last}s", str(last).upper(), "zzz", 7, None, ""])
        holder[renamed] = holder.pop(last)
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_replacements_in_plain_data(kind: type[Document]) -> None:
    dice = random.Random(21)
    seed = yaml.read(SEEDS[kind], "seed")[0]
    for _ in range(1000):
        data = replace_somewhere(seed, dice)
        if dice.random() < 0.5 and isinstance(data, dict) and data:
            data = replace_somewhere(data, dice)
        if isinstance(data, dict):
            check(outcome(kind, data))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    documents(Machine) | documents(Job) | documents(Estimate) | documents(Run), st.sampled_from((*KINDS, Estimate, Run))
)
def test_a_document_of_any_kind_given_for_any_kind(data: dict[str, Any], kind: type[Document]) -> None:
    check(outcome(kind, data))


def test_a_name_no_terminal_shows_is_escaped_in_the_refusal() -> None:
    text = SEEDS[Job].replace(
        "limits: {max_cards: 64}", 'limits: {least_share: {"\\U000F0000": 2, b: 1, c: 1, d: 1, e: 1}}'
    )
    result = outcome(Job, text)
    assert isinstance(result, DocumentError)
    assert result.message == (
        "f:9:9: limits: least_share asks for 600% of the work ('\\U000f0000' 200%, 'b' 100%, 'c' 100%, 'd' 100% and "
        "others): it is 100 % at most."
    )
