"""The packaged data: complete, checked, sourced, and equal to what was read in the sources."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from zhenfa import catalog, cite
from zhenfa.catalog import compile as compiler
from zhenfa.catalog import files
from zhenfa.spec.document import Part
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import Accelerator, Machine

MAKERS = {
    "nvidia", "huawei", "hygon", "cambricon", "biren", "denglin", "kunlunxin", "thead", "metax", "mthreads",
    "iluvatar", "enflame", "amd", "google", "intel", "cpu", "emulated", "undisclosed",
}  # fmt: skip

MACHINES = {
    "scalex640": 640, "scalex-10240": 10240, "cloudmatrix384": 384, "atlas950": 8192, "sd200": 64, "al128": 128,
    "gb200-nvl72": 72, "gb300-nvl72": 72, "vr-nvl72": 72, "hgx-h100": 8, "hgx-h800": 8, "hgx-h20": 8, "hgx-b200": 8,
    "dgx-superpod-h100": 1024, "mi300x-8": 8, "gaudi3-8": 8, "tianchi256": 256, "tpu-v7-pod": 9216, "atlas800t-a2": 8,
    "mixed-demo": 384 + 640 + 256, "emulated-quartet": 4,
}  # fmt: skip


def facts_in(part: object, path: str = "") -> Iterator[tuple[str, Fact]]:
    if isinstance(part, Fact):
        yield path, part
    elif isinstance(part, Part):
        for name in type(part).model_fields:
            yield from facts_in(getattr(part, name), f"{path}.{name}")
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from facts_in(value, f"{path}.{key}")
    elif isinstance(part, tuple):
        for index, value in enumerate(part):
            yield from facts_in(value, f"{path}[{index}]")


def loose_in(part: object, path: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Yield published figures that are kept as read."""
    if isinstance(part, Part):
        for name in ("measured", "aggregate", "details"):
            yield from ((f"{path}.{name}.{key}", item) for key, item in getattr(part, name, {}).items())


def everything() -> list[tuple[str, Part]]:
    shelves = (catalog.accelerators(), catalog.systems(), catalog.links(), catalog.machines())
    return [(key, item) for shelf in shelves for key, item in shelf.items()]


def written_facts() -> list[tuple[str, Fact]]:
    """Return the facts that stand in the files; a field left out is a bare undisclosed and has nothing to check."""
    found = [(path, fact) for key, item in everything() for path, fact in facts_in(item, key)]
    return [(path, fact) for path, fact in found if fact.known or fact.note or fact.source != "undisclosed"]


def test_every_maker_and_machine_is_there() -> None:
    others = {"amd-others", "nvidia-others", "others"}  # cards that measured rows name, by the same makers
    assert {path.stem for path in files.paths("accelerators")} == MAKERS | others
    assert {name: catalog.resolve(item).cards for name, item in catalog.machines().items()} == MACHINES
    assert set(catalog.machine_names()) == set(MACHINES)
    real = [item for item in catalog.accelerators().values() if not item.emulated and item.id != "inspur-sd200-card"]
    assert len(real) == 56 + 28
    assert len(catalog.systems()) == 35
    assert len(catalog.links()) == 20 + 1


def test_every_system_resolves_unless_its_card_is_unpublished() -> None:
    unpublished = {key for key, item in catalog.systems().items() if item.accelerator is None}
    assert unpublished == {"zte-nebula-64", "h3c-s80000"}
    for key, item in catalog.systems().items():
        if key not in unpublished:
            assert catalog.resolve(catalog.machine(key)).cards == item.count


def test_names_are_unique() -> None:
    for shelf in (catalog.accelerators(), catalog.systems(), catalog.links()):
        names = [name.casefold() for item in shelf.values() for name in (item.id, *item.aliases)]
        assert [name for name, times in Counter(names).items() if times > 1] == []


def test_every_number_has_unit_source_and_confidence() -> None:
    facts = written_facts()
    known = catalog.sources()
    assert len(facts) > 800
    for path, fact in facts:
        assert fact.source in known or fact.source.startswith("from memory: "), path
        assert fact.confidence not in {"stated", "calibrated"}, path
        assert fact.unit or fact.dimension in {"ratio", "count"}, path
        assert (fact.value is None) == (fact.confidence == "undisclosed") or unsupported(fact), path


def unsupported(fact: Fact) -> bool:
    """Return whether an empty value means that the maker says there is none, rather than that nobody says."""
    said = (fact.note or "").startswith(("not supported", "no native"))
    return fact.value is None and said and fact.confidence in {"vendor-datasheet", "vendor-via-compilation"}


def test_figures_kept_as_read_have_source_and_confidence() -> None:
    known = catalog.sources()
    found = [(path, item) for key, part in everything() for path, item in loose_in(part, key)]
    assert len(found) > 100
    for path, item in found:
        assert set(item) <= {"value", "unit", "source", "confidence", "note"}, path
        source = str(item["source"])
        assert source in known or source.startswith("from memory: "), path
        assert item["confidence"] in catalog.confidences(), path
        assert (item["value"] is None) == (item["confidence"] == "undisclosed"), path


def test_derived_and_memory_values_are_not_dressed_up() -> None:
    for path, fact in written_facts():
        if fact.source.startswith("from memory: ") and fact.known:
            assert fact.confidence in {"medium", "low", "derived", "estimate"}, path


def test_other_sources_are_declared() -> None:
    known = catalog.sources()
    for item in catalog.accelerators().values():
        assert item.software is None or item.software.source in known or "from memory" in str(item.software.source)
        for conflict in item.conflicts:
            assert all(value.get("source") in {None, *known} or "memory" in str(value) for value in conflict.values)
    for holder in (*catalog.systems().values(), *catalog.machines().values()):
        for claim in holder.claims:
            assert claim.source in known or claim.source.startswith("from memory: "), claim
    assert cite.text("cm384") == known["cm384"] != "cm384"


@pytest.mark.parametrize(
    ("name", "path", "value", "source"),
    [
        ("h100", "peak.bf16", 989e12, "stas"),
        ("h100", "memory.bandwidth", 3350e9, "aic"),
        ("h20", "peak.bf16", 148e12, "infersim"),
        ("gb300", "peak.int8", 165e12, "aic"),
        ("910c", "peak.bf16", 707.8e12, "msm"),
        ("910c", "peak.int8", 1504e12, "cm384"),
        ("910c", "memory.capacity", 128e9, "cm384"),
        ("910c", "scale_up.bandwidth", 392e9, "cm384"),
        ("910c", "scale_out", 50e9, "cm384"),
        ("ascend-950dt-32c", "peak.fp8_cube", 865e12, "asc950wp"),
        ("ascend-950dt-32c", "scale_out", 100e9, "asc950wp"),
        ("scalex-card", "peak.aggregate_dtype_unstated", 492e12, "csgonghe"),
        ("scalex-card", "memory.bandwidth", 1800e9, "csgonghe"),
        ("mlu370-x8", "memory.bandwidth", 614.4e9, "from memory: Cambricon MLU370-X8 page"),
        ("mlu690", "scale_up.total_bandwidth", 111e9, "aidc"),
        ("br100", "peak.bf16", 1024e12, "from memory: Biren Hot Chips 34 (2022)"),
        ("ppu", "deployed.per_card", 118.7e12, "cctv"),
        ("mi300x", "scale_up.pair_bandwidth", 64e9, "stas"),
        ("mi455x", "peak.fp4", 20000e12, "stas"),
        ("tpu7x", "memory.capacity", 192 * 2**30, "tpu7x"),
        ("gaudi3", "peak.bf16", 1677e12, "stas"),
        ("sd200-card", "memory.capacity", 62.5e9, "kvsurvey"),
    ],
)
def test_spot_values(name: str, path: str, value: float, source: str) -> None:
    fact = dict(facts_in(catalog.accelerator(name)))[f".{path}"]
    assert fact.value == pytest.approx(value)
    assert fact.source == source


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("scalex-card", "memory.capacity"),
        ("bw1000", "peak.bf16"),
        ("ppu", "peak.bf16"),
        ("910c", "tdp"),
        ("rubin", "tdp"),
    ],
)
def test_the_unpublished_stays_empty(name: str, path: str) -> None:
    fact = dict(facts_in(catalog.accelerator(name)))[f".{path}"]
    assert fact.value is None
    assert fact.note


def test_devices_are_dies_where_the_framework_sees_dies() -> None:
    several = {key: item.devices for key, item in catalog.accelerators().items() if item.devices > 1}
    assert several == {"ascend-910c": 2, "kunlun-r480-x8": 8, "google-tpu7x": 2, "amd-mi250x": 2}
    assert catalog.system("cloudmatrix384").count * catalog.accelerator("910c").devices == 768


def test_achievable_shares_are_measured_over_peak() -> None:
    pairs = {"bf16_mamf": "bf16", "fp8_mamf": "fp8", "bf16_gemm": "bf16", "fp16_gemm": "fp16", "int8_gemm": "int8"}
    checked = 0
    for item in catalog.accelerators().values():
        for key, precision in pairs.items():
            measured, peak = item.measured.get(key), item.peak.get(precision)
            if measured and peak and peak.value:
                share = item.achievable.matmul[precision]
                assert share.value == pytest.approx(float(measured["value"] or 0) * 1e12 / peak.value, abs=1e-4)
                assert share.confidence == measured["confidence"]
                checked += 1
        for fact in (*item.achievable.matmul.values(), item.achievable.memory):
            assert fact.value is None or 0 < fact.value <= 1
    assert checked == 18


def test_shares_match_the_published_percentages() -> None:
    shares = {name: catalog.accelerator(name).achievable.matmul["bf16"].value for name in ("h100", "a100", "b200")}
    assert shares == {"h100": pytest.approx(0.803, abs=1e-3), "a100": pytest.approx(0.869, abs=1e-3),
                      "b200": pytest.approx(0.776, abs=1e-3)}  # fmt: skip
    assert catalog.accelerator("910c").achievable.matmul.get("bf16") is None


def test_a_pair_gets_the_ports_over_the_peers_in_a_full_mesh() -> None:
    for name in ("910b3", "mi300x"):
        ports = catalog.accelerator(name).scale_up
        assert ports.pair_bandwidth.require("pair") == pytest.approx(ports.bandwidth.require("ports") / 7)
    assert catalog.system("atlas800t-a2").tiers[0].topology == "full-mesh"


def test_tiers_grow_and_reach_the_count() -> None:
    for key, item in catalog.systems().items():
        sizes = [tier.size for tier in item.tiers]
        assert sizes == sorted(set(sizes)), key
        assert sizes[-1] >= item.count, key


def test_reduction_in_the_network_is_where_the_link_has_it() -> None:
    reducing = {link.id for link in catalog.links().values() if link.in_network_reduction}
    assert reducing == {"nvlink4", "nvlink5", "ib-ndr-400"}
    with_it = {key for key, item in catalog.systems().items() if any(tier.in_network_reduction for tier in item.tiers)}
    assert with_it == {
        "nvidia-hgx-h100-8", "nvidia-hgx-h800-8", "nvidia-hgx-h20-8", "nvidia-hgx-b200-8", "nvidia-dgx-superpod-h100",
        "nvidia-gb200-nvl72", "nvidia-gb300-nvl72",
    }  # fmt: skip


def test_emulated_is_labelled_emulated() -> None:
    emulated = [item for item in catalog.accelerators().values() if item.emulated]
    slowest = emulated[-1].peak["fp32"].require("peak")
    assert [item.peak["fp32"].require("peak") / slowest for item in emulated] == [4, 2, 1]
    for item in emulated:
        assert item.maker.startswith("emulated ")
        assert item.software is not None
        assert (item.software.torch_device, item.software.collective_backend) == ("cpu", "gloo")
        for path, fact in facts_in(item):
            assert not fact.known or (fact.source, fact.confidence) == ("emulation", "assumed"), path
    quartet = catalog.resolve(catalog.machine("emulated-quartet"))
    assert quartet.emulated
    assert "EMULATED" in quartet.title
    assert len({pool.maker for pool in quartet.pools}) == 3
    assert not catalog.resolve(catalog.machine("mixed-demo")).emulated


def test_documents_round_trip() -> None:
    for item in catalog.machines().values():
        assert Machine.from_text(item.to_yaml()) == item
    for part in catalog.accelerators().values():
        again = Accelerator.model_validate(part.model_dump(mode="json", exclude_defaults=True))
        assert again.id == part.id
        assert {k: f.value for k, f in facts_in(again)} == pytest.approx({k: f.value for k, f in facts_in(part)})


def test_the_compiled_form_is_up_to_date() -> None:
    assert json.loads(files.COMPILED.read_text(encoding="utf-8")) == json.loads(compiler.compiled()), (
        "run: python -m zhenfa.catalog.compile"
    )


def test_a_changed_file_is_read_from_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.ROOT / "machines" / "hgx-h100.yaml"
    changed = tmp_path / "machines" / "hgx-h100.yaml"
    changed.parent.mkdir()
    changed.write_text(path.read_text(encoding="utf-8").replace("one HGX", "another HGX"), encoding="utf-8")
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert "another HGX" in files.read(changed)["title"]


def test_nothing_names_the_workplace() -> None:
    for path in files.ROOT.rglob("*.*"):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        for word in ("/wo" + "rk/", "shar" + "ed/", ".lib" + "rary", "fabric_measurements", "report.md", "file id"):
            assert word not in text, (path.name, word)
