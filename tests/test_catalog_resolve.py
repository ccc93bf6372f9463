"""Machines with every name looked up, and what the user may assume of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa import catalog, units
from zhenfa.catalog import assume as assumptions
from zhenfa.catalog import facts
from zhenfa.errors import InputError, MissingFactError, UnknownNameError
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Formation, Machine


def machine(text: str) -> Machine:
    return Machine.from_text(f"schema: zhenfa.machine/1\nname: own\n{text}")


def card_fact(formation: Formation, pool: str, path: str) -> Fact:
    fact = facts.take(formation.pool(pool).accelerator, path)
    assert fact is not None
    return fact


def test_a_formation_has_everything_looked_up() -> None:
    formation = catalog.resolve(catalog.machine("mixed-demo"))
    assert [(pool.name, pool.count, pool.maker) for pool in formation.pools] == [
        ("ascend", 384, "Huawei Ascend"), ("scalex", 640, "Hygon/Sugon"), ("h20", 256, "NVIDIA"),
    ]  # fmt: skip
    assert [[tier.name for tier in pool.tiers] for pool in formation.pools] == [
        ["node", "supernode"], ["cabinet"], ["node", "cluster"],
    ]  # fmt: skip
    network = formation.network
    assert network is not None
    assert network.host_staged
    assert (network.bandwidth.value, network.bandwidth.source) == (50e9, "stas")
    assert network.latency.value == pytest.approx(1.5e-6)
    assert formation.assumed == {}


def test_ten_thousand_cards_need_the_cluster_tier() -> None:
    (pool,) = catalog.resolve(catalog.machine("scalex-10240")).pools
    assert (pool.count, pool.system) == (10240, "sugon-scalex640")
    assert [(tier.name, tier.size) for tier in pool.tiers] == [
        ("cabinet", 640), ("one-to-two-unit", 1280), ("cluster", 10240),
    ]  # fmt: skip
    with pytest.raises(InputError, match="has 10,241 cards, but its widest tier, 'cluster', joins 10,240"):
        catalog.resolve(machine("pools: [{name: a, system: scalex640, count: 10241}]"))


@given(st.integers(1, 100_000))
def test_tiers_end_with_the_first_that_joins_all_cards(count: int) -> None:
    (pool,) = catalog.resolve(machine(f"pools: [{{name: a, system: hgx-h100, count: {count}}}]")).pools
    assert pool.tiers[-1].size >= count
    assert all(tier.size < count for tier in pool.tiers[:-1])


def test_power_per_card_is_the_pools_own_else_the_systems_share() -> None:
    (pool,) = catalog.resolve(catalog.machine("scalex640")).pools
    assert pool.power_per_card.value == pytest.approx(860e3 / 640)
    assert pool.power_per_card.confidence == "press"  # a share of a claim is no better than the claim
    assert "860 kW" in str(pool.power_per_card.note)
    (own,) = catalog.resolve(machine("pools: [{name: a, system: scalex640, power_per_card: 900 W}]")).pools
    assert own.power_per_card.value == 900
    (none,) = catalog.resolve(catalog.machine("atlas950")).pools
    assert none.power_per_card.value is None


def test_pue_is_the_machines_own_else_that_of_its_systems_where_they_agree() -> None:
    assert catalog.resolve(catalog.machine("cloudmatrix384")).pue.value == 1.1
    assert catalog.resolve(machine("pue: 1.3\npools: [{name: a, system: cloudmatrix384}]")).pue.value == 1.3
    twins = machine("pools: [{name: a, system: scalex640}, {name: b, system: scalex-10k}]")
    assert catalog.resolve(twins).pue.value == 1.04
    mixed = catalog.resolve(catalog.machine("mixed-demo")).pue
    assert mixed.value is None
    assert mixed.note == "the pools differ: ascend 1.1, scalex 1.04, h20 undisclosed"


def test_what_a_pool_says_goes_before_its_system() -> None:
    formation = catalog.resolve(
        machine(
            "pools:\n- name: a\n  system: hgx-h100\n  accelerator: h20\n  count: 4\n"
            "  tiers: [{name: board, size: 4, bandwidth: 100 GB/s, latency: 1 us}]\n"
        )
    )
    (pool,) = formation.pools
    assert (pool.accelerator.id, pool.tiers[0].name, pool.count) == ("nvidia-h20-sxm", "board", 4)


def test_a_card_written_out_in_the_document() -> None:
    text = (
        "pools:\n- name: a\n  count: 2\n  tiers: [{name: t, size: 2, bandwidth: 1 GB/s, latency: 1 us}]\n"
        "  accelerator: {id: mine, maker: me, name: Mine, peak: {bf16: 10 TFLOPS}, memory: {capacity: 8 GB}}\n"
    )
    formation = catalog.resolve(machine(text), {"mine.memory.bandwidth": "100 GB/s"})
    assert formation.pools[0].maker == "me"
    assert card_fact(formation, "a", "memory.bandwidth").value == 100e9


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("pools: [{name: a, system: scalex641}]", UnknownNameError, "no system is called 'scalex641'"),
        ("pools: [{name: a, accelerator: h101, count: 1}]", UnknownNameError, "no accelerator is called 'h101'"),
        ("pools: [{name: a, accelerator: h100}]", InputError, "does not say how many cards"),
        ("pools: [{name: a, count: 3}]", InputError, "has 3 cards, but it has no tiers"),
        ("pools: [{name: a, count: 1}]", InputError, "does not say what its cards are"),
        ("pools: [{name: a, system: nebula-64}]", MissingFactError, "the card of zte-nebula-64 is undisclosed"),
        ("pools: [{name: a, system: hgx-h20}, {name: a, system: hgx-h100}]", InputError, "two pools called 'a'"),
        (
            "pools: [{name: a, accelerator: h100, count: 4, tiers: [{name: x, size: 8}, {name: y, size: 4}]}]",
            InputError, r"tier 'y' \(4 cards\) is not larger than 'x'",
        ),
        (
            "pools: [{name: a, accelerator: h100, count: 4, tiers: [{name: x, size: 2}, {name: x, size: 4}]}]",
            InputError, "two tiers of one name",
        ),
        ("pools: [{name: a, system: hgx-h20}]\nnetwork: {link: roce-40g}", UnknownNameError, "no link is called"),
    ],
)  # fmt: skip
def test_a_machine_that_does_not_hold_together_says_why(text: str, error: type[InputError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        catalog.resolve(machine(text))
    assert caught.value.hint


# What the user may assume


def test_assumptions_by_every_kind_of_name() -> None:
    given_values: dict[str, str | float] = {
        "scalex-card.memory.capacity": "64 GB",
        "sugon-scalex-card.peak.bf16": "492 TFLOPS",
        "scalex640.tiers.cabinet.latency": "2 us",
        "CloudMatrix384.power": "600 kW",
        "h20.tiers.node.latency": "1 us",
        "h20.power_per_card": "700 W",
        "ascend.achievable.matmul.bf16": 0.7,
        "mixed-demo.pue": 1.2,
        "mixed-demo.network.latency": "3 us",
    }
    formation = catalog.resolve(catalog.machine("mixed-demo"), given_values)
    assert formation.assumed == {name: str(value) for name, value in given_values.items()}
    found = {
        "capacity": card_fact(formation, "scalex", "memory.capacity"),
        "bf16": card_fact(formation, "scalex", "peak.bf16"),
        "cabinet": formation.pool("scalex").tiers[0].latency,
        "node": formation.pool("h20").tiers[0].latency,
        "h20": formation.pool("h20").power_per_card,
        "share": card_fact(formation, "ascend", "achievable.matmul.bf16"),
        "pue": formation.pue,
    }
    assert {key: fact.value for key, fact in found.items()} == pytest.approx(
        {"capacity": 64e9, "bf16": 492e12, "cabinet": 2e-6, "node": 1e-6, "h20": 700, "share": 0.7, "pue": 1.2}
    )
    assert {(fact.source, fact.confidence, fact.tag) for fact in found.values()} == {
        ("your --assume", "assumed", "assumed")
    }
    assert formation.network is not None
    assert formation.network.latency.value == pytest.approx(3e-6)
    assert formation.pool("ascend").power_per_card.value == pytest.approx(600e3 / 384)
    assert formation.pool("ascend").power_per_card.tag == "assumed"


def test_an_assumption_replaces_a_value_and_says_which() -> None:
    formation = catalog.resolve(catalog.machine("cloudmatrix384"), {"cloudmatrix384.pue": "1.15"})
    assert formation.pue.value == 1.15
    assert str(formation.pue.note).startswith("in place of ")
    assert "(press)" in str(formation.pue.note)
    assert catalog.system("cloudmatrix384").pue.value == 1.1  # the catalog itself does not change
    again = catalog.resolve(catalog.machine("cloudmatrix384"))
    assert again.pue.value == 1.1


def test_a_machine_of_one_pool_answers_for_its_pool() -> None:
    formation = catalog.resolve(catalog.machine("scalex-10240"), {"scalex-10240.tiers.cluster.latency": "5 us"})
    assert formation.pools[0].tiers[-1].latency.value == pytest.approx(5e-6)


def test_an_assumption_about_another_machine_is_checked_and_left_out() -> None:
    hgx = catalog.machine("hgx-h100")
    plain = catalog.resolve(hgx)
    others: dict[str, str | float] = {
        "scalex-card.memory.capacity": "64 GB",
        "scalex640.tiers.cabinet.latency": "2 us",
        "mixed-demo.pue": 1.2,
        "hgx-h100.tiers.cluster.latency": "3 us",  # the tier that one node does not need
    }
    formation = catalog.resolve(hgx, others)
    assert formation.assumed == {}
    assert formation == plain
    with pytest.raises(InputError, match=r"'scalex-card' has no value 'memory\.capacty'"):
        catalog.resolve(hgx, {"scalex-card.memory.capacty": "64 GB"})


@pytest.mark.parametrize(
    ("name", "value", "words", "hint"),
    [
        ("scalexcard.memory.capacity", "64 GB", "is called 'scalexcard'. Did you mean 'scalex-card'", "starts with"),
        ("scalex-card.memory.capasity", "64 GB", "Did you mean 'memory.capacity'", "peak.PRECISION"),
        ("scalex-card.capacity", "64 GB", "Did you mean 'memory.capacity'", "memory.capacity"),
        ("scalex-card.peak.bf17", "1 TFLOPS", "Did you mean 'peak.bf16'", "peak.PRECISION"),
        ("scalex640.tiers.cabinets.latency", "2 us", "Did you mean 'tiers.cabinet.latency'", "tiers.cabinet.latency"),
        ("scalex640.tiers.cabinet.size", "2", "has no value 'tiers.cabinet.size'", "tiers.cabinet.latency"),
        ("mixed-demo.tiers.node.latency", "2 us", "'mixed-demo' has no value", "network.latency"),
        ("scalex-card.name", "x", "has no value 'name'", "memory.capacity"),
        ("scalex-card", "64 GB", "does not say which value", "scalex-card.memory.capacity"),
        ("scalex-card.memory.capacity", "64 Gb/s", "not a unit of data", ""),
        ("scalex-card.memory.capacity", "lots", "scalex-card.memory.capacity is 'lots'", ""),
        ("scalex-card.memory.capacity", "-64 GB", "is '-64 GB'", ""),
        ("scalex-card.memory.capacity", "0 GB", "more than zero", None),
        ("scalex-card.achievable.memory", "120 %", "a share of the peak", None),
        ("mixed-demo.pue", "0.9", "a PUE is 1 or more", None),
    ],
)
def test_an_assumption_that_cannot_be_used_says_what_to_do(name: str, value: str, words: str, hint: str | None) -> None:
    with pytest.raises(InputError, match=words) as caught:
        catalog.resolve(catalog.machine("mixed-demo"), {name: value})
    if hint is not None:
        assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2


ANY_PATH = [
    (pool.name, path, dimension)
    for pool in catalog.resolve(catalog.machine("mixed-demo")).pools
    for path, dimension in facts.dimensions(pool.accelerator)
]


@given(st.sampled_from(ANY_PATH), st.floats(1e-3, 1.0))
def test_every_path_that_is_offered_can_be_set(place: tuple[str, str, units.Dimension], value: float) -> None:
    pool, path, _ = place
    formation = catalog.resolve(catalog.machine("mixed-demo"), {f"{pool}.{path}": value})
    fact = card_fact(formation, pool, path)
    assert fact.value == value
    assert (fact.source, fact.confidence) == (assumptions.SOURCE, "assumed")
    others = [other for other in formation.pools if other.name != pool]
    plain = catalog.resolve(catalog.machine("mixed-demo"))
    assert all(other.accelerator == plain.pool(other.name).accelerator for other in others)


def test_a_missing_fact_names_an_assumption_that_works() -> None:
    formation = catalog.resolve(catalog.machine("scalex640"))
    card = formation.pools[0].accelerator
    with pytest.raises(MissingFactError) as caught:
        card.memory.capacity.require(f"{card.id}.memory.capacity")
    name = str(caught.value.hint).split("--assume ")[1].split("=")[0]
    formation = catalog.resolve(catalog.machine("scalex640"), {name: "64 GB"})
    assert formation.pools[0].accelerator.memory.capacity.require(name) == 64e9
