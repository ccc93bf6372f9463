"""Headline figures beside arithmetic: every derived figure is computed again from the catalog's own values."""

from __future__ import annotations

import re

import pytest

from zhenfa import catalog, units
from zhenfa.errors import UnitError
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Claim


def number(text: str) -> float:
    """Read a figure with whatever unit it has; a figure without a unit is a ratio."""
    for dimension in ("speed", "rate", "data", "power", "time", "ratio"):
        try:
            return units.parse(text, dimension)  # type: ignore[arg-type]
        except UnitError:
            continue
    raise AssertionError(f"{text!r} is not a figure")


def term(text: str, count: int, card: Accelerator) -> float:
    if text == "count":
        return count
    if re.fullmatch(r"\d+(\.\d+)?(e\d+)?", text):
        return float(text)
    here: object = card
    for step in text.split("."):
        here = here[step] if isinstance(here, dict) else getattr(here, step)
    assert isinstance(here, Fact)
    return here.require(text)


def compute(basis: str, count: int, card: Accelerator) -> float:
    first, *rest = re.split(r" ([*/]) ", basis)
    result = term(first, count, card)
    for sign, text in zip(rest[::2], rest[1::2], strict=True):
        value = term(text, count, card)
        result = result * value if sign == "*" else result / value
    return result


def claims_of_systems() -> list[tuple[str, Claim]]:
    return [(key, claim) for key, item in catalog.systems().items() for claim in item.claims]


def test_every_derived_figure_is_its_arithmetic() -> None:
    checked = 0
    for key, claim in claims_of_systems():
        assert (claim.derived is None) == (claim.basis is None), (key, claim.what)
        if claim.basis is None or claim.derived is None:
            continue
        system = catalog.system(key)
        assert system.accelerator is not None
        value = compute(claim.basis, system.count, catalog.accelerator(system.accelerator))
        assert number(claim.derived) == pytest.approx(value, rel=5e-3), (key, claim.what)
        checked += 1
    assert checked >= 30


def test_machine_claims_are_arithmetic_too() -> None:
    for name, machine in catalog.machines().items():
        formation = catalog.resolve(machine)
        for claim in machine.claims:
            if claim.basis and claim.derived:
                value = compute(claim.basis, formation.cards, formation.pools[0].accelerator)
                assert number(claim.derived) == pytest.approx(value, rel=5e-3), (name, claim.what)
    assert catalog.machine("scalex-10240").claims


@pytest.mark.parametrize(
    ("system", "what", "claimed", "derived"),
    [
        ("cloudmatrix384", "BF16/FP16 compute", "300 PFLOPS", 384 * 707.8e12),
        ("cloudmatrix384", "FP16 compute, vector units included", "300 PFLOPS", 384 * 752e12),
        ("cloudmatrix384", "scale-up bandwidth, both directions", "269 TB/s", 384 * 784e9),
        ("scalex640", "compute of one cabinet", "630 PFLOPS", 640 * 492e12),
        ("atlas950", "FP8 compute", "8000 PFLOPS", 8192 * 865e12),
        ("atlas950", "scale-up bandwidth", "16.3 PB/s", 8192 * 2016e9),
        ("atlas950", "memory", "1152 TB", 8192 * 144e9),
        ("al128", "scale-up bandwidth", "PB/s class", 128 * 800e9),
        ("gb200-nvl72", "FP4 compute", "1440 PFLOPS", 72 * 10e15),
        ("helios", "FP4 compute", "2.9 EFLOPS", 72 * 20e15),
    ],
)
def test_claims_that_fail_arithmetic_show_both(system: str, what: str, claimed: str, derived: float) -> None:
    claim = next(claim for claim in catalog.system(system).claims if claim.what == what)
    assert claim.claimed == claimed
    assert claim.derived is not None
    assert number(claim.derived) == pytest.approx(derived, rel=5e-3)


def test_pue_of_a_cabinet_is_called_what_it_is() -> None:
    claim = next(claim for claim in catalog.system("scalex640").claims if "PUE" in claim.what)
    assert claim.derived is None
    assert "facility" in (claim.note or "")


def test_claims_reach_the_formation() -> None:
    formation = catalog.resolve(catalog.machine("mixed-demo"))
    assert {claim.claimed for claim in formation.claims} >= {"300 PFLOPS", "630 PFLOPS"}
    ten_thousand = catalog.resolve(catalog.machine("scalex-10240")).claims
    assert ten_thousand[0].what == "compute of 10,240 cards"


def test_the_aggregates_of_the_sources_agree_with_the_cards() -> None:
    """Derived sums that the sources print, against count times card, where the card's figure is the one they used."""
    pairs = {
        ("cloudmatrix384", "gemm_bf16"): "peak.bf16",
        ("cloudmatrix384", "int8"): "peak.int8",
        ("cloudmatrix384", "mem_bw"): "memory.bandwidth",
        ("hgx-h100", "bf16"): "peak.bf16",
        ("hgx-b200", "fp4"): "peak.fp4",
        ("gb200-nvl72", "bf16"): "peak.bf16",
        ("gb300-nvl72", "fp4"): "peak.fp4",
        ("vr-nvl72", "int8"): "peak.int8",
        ("mi300x-8", "memory"): "memory.capacity",
        ("tpu-v7-pod", "fp8"): "peak.fp8",
        ("gaudi3-8", "bf16"): "peak.bf16",
    }
    for (name, key), path in pairs.items():
        system = catalog.system(name)
        assert system.accelerator is not None
        printed = system.aggregate[key]
        value = compute(f"count * {path}", system.count, catalog.accelerator(system.accelerator))
        assert number(f"{printed['value']} {printed['unit']}") == pytest.approx(value, rel=1e-2), (name, key)
