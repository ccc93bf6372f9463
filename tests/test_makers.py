"""Makers as plug-ins: how they are found, what keeps them out, and that no maker's name stands in the core."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from zhenfa.errors import CapabilityError, UnknownNameError
from zhenfa.live.makers import CAPABILITIES, Maker, hookimpl, maker, maker_for, makers, problems
from zhenfa.live.makers.registry import BUILT_IN, GROUP, Registry, known_by
from zhenfa.live.makers.timeouts import TimeOut, between
from zhenfa.spec.machine import Accelerator, Software

ROOT = Path(__file__).parent.parent


# The registry.


def test_the_entry_points_of_the_project_are_the_built_in_makers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"][GROUP] == BUILT_IN
    assert list(makers()) == list(BUILT_IN)
    assert problems() == ()


def test_importing_makers_brings_neither_torch_nor_a_makers_module() -> None:
    modules = sorted({one.module.partition(".")[0] for one in makers().values() if one.module})
    code = (
        (
            "import sys, zhenfa.live.discovery; from zhenfa.live.makers import makers; makers();"
            f"print(*{['torch', 'numpy', 'pynvml', *modules]!r} & sys.modules.keys())"
        )
        .replace("*[", "*set([")
        .replace("] &", "]) &")
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) <= {"numpy"}


class Stranger(Maker):
    """A maker from elsewhere."""

    id = "stranger"
    name = "Stranger"
    torch_device = "cpu"

    def synchronize(self) -> None:
        """Return at once."""

    def memory(self) -> tuple[int, int]:
        """Return nothing."""
        return 0, 0


class Twin(Stranger):
    """Another maker of the same id."""

    name = "Twin"


class SecondCpu(Stranger):
    """A stranger that claims a built-in id."""

    id = "cpu"


class Unfinished(Maker):
    """A maker whose class is not whole."""

    id = "unfinished"
    name = "Unfinished"


class Module:
    """A plug-in that is no maker and answers with one."""

    @staticmethod
    @hookimpl
    def zhenfa_maker() -> Maker:
        """Answer."""
        return Stranger()


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{value}" if ":" not in value else value, GROUP)


def own() -> list[EntryPoint]:
    return [EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()]


@pytest.mark.parametrize("value", ["Stranger", "Module"])
def test_a_strangers_plug_in_is_found(value: str) -> None:
    found = Registry([*own(), point("stranger", value)])
    assert found.makers["stranger"].name == "Stranger"
    assert found.problems == []
    assert list(found.makers)[:-1] == list(BUILT_IN)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no_such_module_anywhere:Maker", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("NoSuchClass", "has no attribute 'NoSuchClass'"),
        ("Unfinished", "Can't instantiate abstract class Unfinished"),
        ("ROOT", "not a subclass of zhenfa.live.makers.Maker"),
    ],
)
def test_a_broken_plug_in_is_named_and_left_out(value: str, why: str) -> None:
    found = Registry([*own(), point("broken", value)])
    assert list(found.makers) == list(BUILT_IN)
    (problem,) = found.problems
    assert problem.startswith("the maker plug-in broken (zhenfa) is left out: ")
    assert why in problem


def test_two_plug_ins_that_claim_one_id_are_refused_by_name() -> None:
    found = Registry([*own(), point("one", "Stranger"), point("two", "Twin")])
    assert "stranger" not in found.makers or found.problems
    (problem,) = found.problems
    assert problem.startswith("2 plug-ins claim the maker id 'stranger'")


def test_a_stranger_cannot_take_a_built_in_id(monkeypatch: pytest.MonkeyPatch) -> None:
    from zhenfa.live.makers import registry

    packages = {"second": "acme-cards"}
    monkeypatch.setattr(registry, "_package", lambda one: packages.get(one.name, "zhenfa"))
    found = Registry([*own(), point("second", "SecondCpu")])
    assert type(found.makers["cpu"]).__name__ == "Cpu"
    assert found.problems == ["2 plug-ins claim the maker id 'cpu': zhenfa, acme-cards; that of zhenfa stays."]
    packages |= {"one": "acme", "two": "bcme"}
    found = Registry([*own(), point("one", "Stranger"), point("two", "Twin")])
    assert "stranger" not in found.makers
    assert found.problems == ["2 plug-ins claim the maker id 'stranger': acme, bcme; none of them is taken."]


def test_an_unknown_maker_is_answered_with_the_near_miss() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ascend'"):
        maker("asend")


# Names that two share.


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("NVIDIA H200", "nvidia"), ("AMD Instinct MI300X", "amd"), ("MetaX C500", "metax"), ("K100_AI", "hygon"),
     ("Iluvatar BI-V150", "iluvatar"), ("P800 OAM", "kunlunxin"), ("PPU-ZW810E", "thead"), ("Ascend910B2", "ascend"),
     ("MTT S5000", "mthreads"), ("MLU370-X8", "cambricon"), ("HL-225", "gaudi"), ("something new", None),
     ("Intel(R) Data Center GPU Max 1550", "intel")],
)  # fmt: skip
def test_makers_are_told_by_device_names(name: str, wanted: str | None) -> None:
    found = known_by(name)
    assert (found.id if found else None) == wanted


def test_no_word_of_one_maker_is_another_makers() -> None:
    words = [(word, one.id) for one in makers().values() for word in one.words]
    assert all(word == word.casefold() for word, _ in words)
    for word, owner in words:
        assert known_by(word).id == owner  # type: ignore[union-attr]


def test_libraries_of_one_name_are_told_apart() -> None:
    for shared in ("hccl", "nccl"):
        sharing = [one for one in makers().values() if one.collective == shared]
        assert len(sharing) > 1
        assert len({(one.id, one.collective_library) for one in sharing}) == len(sharing)
    libraries = [one.collective_library for one in makers().values() if "MCCL" in (one.collective_library or "")]
    assert sorted(map(str, libraries)) == ["MCCL (MetaX)", "MCCL (Moore Threads)"]


def accelerator(maker_name: str, name: str, device: str, backend: str = "nccl") -> Accelerator:
    return Accelerator(
        id="some-card", maker=maker_name, name=name, software=Software(torch_device=device, collective_backend=backend)
    )


@pytest.mark.parametrize(
    ("maker_name", "name", "device", "wanted"),
    [("Hygon/Sugon", "card", "cuda", "hygon"), ("Baidu Kunlunxin", "P800", "cuda", "kunlunxin"),
     ("Intel", "Gaudi 3", "hpu", "gaudi"), ("Intel", "Max 1550", "xpu", "intel"), ("AMD", "EPYC", "cpu", "cpu"),
     ("unknown", "NVIDIA H100", "cuda", "nvidia"), ("Alibaba T-Head", "PPU", "cuda", "thead")],
)  # fmt: skip
def test_the_maker_of_a_card_is_told_by_device_and_name(maker_name: str, name: str, device: str, wanted: str) -> None:
    assert maker_for(accelerator(maker_name, name, device)).id == wanted


def test_a_shared_device_of_an_unknown_maker_is_refused() -> None:
    with pytest.raises(CapabilityError, match="which several makers share") as caught:
        maker_for(accelerator("Acme", "A1", "cuda"))
    assert "NVIDIA" in str(caught.value.hint)


def test_every_card_of_the_catalog_finds_its_maker_or_a_sentence() -> None:
    from zhenfa import catalog

    refused = {}
    for name in catalog.accelerators():
        card = catalog.find_accelerator(name)
        assert card is not None
        try:
            found = maker_for(card)
        except CapabilityError as problem:
            refused[card.maker] = problem.message
            continue
        assert card.emulated or found.torch_device == card.software.torch_device  # type: ignore[union-attr]
    assert {name.split(" ")[0] for name in refused} <= {"Google", "Apple", "Denglin", "undisclosed", "Intel"}
    assert all("is there" in words or "cannot train" in words for words in refused.values())


# What a plug-in says.


def test_cards_that_a_scheduler_shows_are_named_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ascend = maker("ascend")
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    assert ascend.environment(3)["ASCEND_RT_VISIBLE_DEVICES"] == "3"
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "4, 6")
    assert ascend.environment(1)["ASCEND_RT_VISIBLE_DEVICES"] == "6"
    with pytest.raises(CapabilityError, match="card 2 of Huawei Ascend is wanted"):
        ascend.environment(2)


def test_timeouts_in_force_are_those_of_the_environment() -> None:
    connect, execute, *_ = maker("ascend").timeouts_in_force({})
    assert (connect.seconds, connect.told_by, execute.seconds) == (140.0, "default", 1836.0)
    connect, execute, *_ = maker("ascend").timeouts_in_force({"HCCL_CONNECT_TIMEOUT": "60", "HCCL_EXEC_TIMEOUT": "0"})
    assert (connect.seconds, connect.told_by) == (80.0, "variable")
    assert connect.problem == "outside the published range of 120 to 7200"
    assert execute.seconds == float("inf")
    (connect, *_) = maker("ascend").timeouts_in_force({"HCCL_CONNECT_TIMEOUT": "long"})
    assert (connect.seconds, connect.told_by) == (140.0, "default")
    assert "not a whole number" in connect.problem
    heartbeat, ack = maker("nvidia").timeouts_in_force({"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "120"})
    assert ack.seconds == pytest.approx(4.295, abs=1e-3)
    assert maker("nvidia").timeouts_in_force({"NCCL_IB_TIMEOUT": "32"})[1].seconds == float("inf")
    assert heartbeat.seconds == 120.0
    assert maker("nvidia").timeouts_in_force({})[0].seconds is None
    assert TimeOut("X", "x", 5, "s", between(1, 9)).in_force({"X": ""}).seconds == 5.0


# The core.

CORE = [path for path in (ROOT / "src/zhenfa/live").rglob("*.py") if "makers" not in path.relative_to(ROOT).parts]
TRADE = {word for one in makers().values() if one.id not in {"cpu", "emulated"} for word in
         (one.id, one.module, one.visible_devices, one.smi[0] if one.smi else None, *one.words)
         if word and word.isascii() and len(word) > 3}  # fmt: skip


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_no_makers_name_stands_in_the_core(path: Path) -> None:
    text = path.read_text(encoding="utf-8").casefold()
    if path.parent.name == "page":
        text = text.replace("thead", "")  # the head of a table in HTML
    pattern = r"(?<![a-z0-9_])({})(?![a-z0-9_])".format("|".join(re.escape(word.casefold()) for word in sorted(TRADE)))
    assert re.findall(pattern, text) == []


def test_capabilities_are_explained() -> None:
    assert all(text and not text.endswith(".") for text in CAPABILITIES.values())


def test_the_guides_tables_are_those_of_the_classes() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import makers_page
    finally:
        sys.path.pop(0)
    text = makers_page.PAGE.read_text(encoding="utf-8")
    assert text == makers_page.page(text), "run: python tools/makers_page.py"
    assert all(one.name in text for one in makers().values())
