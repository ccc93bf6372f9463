"""``zhenfa show`` and ``explain``: every number with its trust, what is undisclosed with the way to supply it."""

from __future__ import annotations

import re

import pytest

from cli_runner import Call, caller
from zhenfa import catalog
from zhenfa.cli.facts import Need, extras_of, needs_of
from zhenfa.cli.listings import LISTINGS
from zhenfa.cli.terms import terms
from zhenfa.cli.words import LEGEND

WIDTHS = (80, 120, 160)


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    return caller(capsys, monkeypatch)


ENTRIES = [*catalog.machine_names(), *catalog.accelerators(), *catalog.systems(), *catalog.links(), "deepseek-v3"]


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_fits_80_columns(zhenfa: Call, name: str) -> None:
    shown = zhenfa("show", name, columns=80)
    assert shown.code == 0
    assert shown.widest <= 80


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", ["", *LISTINGS, "mixed-demo", "deepseek-v3"])
def test_a_page_fits_the_screen(zhenfa: Call, name: str, columns: int) -> None:
    shown = zhenfa("show", *([name] if name else []), columns=columns)
    assert shown.code == 0
    assert shown.widest <= columns
    assert not any(line != line.rstrip() for line in shown.out.splitlines())
    assert re.fullmatch(r"(left out at \d+ columns: .+\n)?", re.sub(r"\n(?!$)", " ", shown.err))


def test_the_overview_names_every_kind(zhenfa: Call) -> None:
    lines = zhenfa("show").out.splitlines()
    assert lines[0].split() == ["kind", "entries", "what", "command"]
    assert [line.split()[0] for line in lines[1:]] == list(LISTINGS)
    kinds = (catalog.machine_names, catalog.systems, catalog.accelerators, catalog.links, catalog.models, terms)
    assert [int(line.split()[1]) for line in lines[1:]] == [len(items()) for items in kinds]
    assert [line.rpartition("  ")[2] for line in lines[1:]] == [f"zhenfa show {kind}" for kind in LISTINGS]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("machines", catalog.machine_names()),
        ("systems", list(catalog.systems())),
        ("accelerators", list(catalog.accelerators())),
        ("links", list(catalog.links())),
        ("models", catalog.models()),
        ("terms", list(terms())),
    ],
)
def test_a_list_has_every_entry_of_its_kind(zhenfa: Call, kind: str, names: list[str]) -> None:
    shown = zhenfa("show", kind, columns=200)
    starts = {line.split("  ")[0] for line in shown.out.splitlines()}
    assert set(names) <= starts
    assert zhenfa("show", kind.removesuffix("s"), columns=200) == shown
    assert zhenfa("show", kind.upper(), columns=200) == shown


def test_lists_carry_marks_and_say_what_they_mean(zhenfa: Call) -> None:
    for kind in ("accelerators", "systems", "links"):
        shown = zhenfa("show", kind, columns=200).out
        assert LEGEND in shown
        assert re.search(r"\d ?[A-Za-z/]+[!?=]( |$)", shown, flags=re.MULTILINE)


def test_emulated_is_labelled_wherever_it_is_listed(zhenfa: Call) -> None:
    for columns in WIDTHS:
        for kind, count in (("accelerators", 3), ("machines", 1)):
            lines = [line for line in zhenfa("show", kind, columns=columns).out.splitlines() if "EMULATED" in line]
            assert len(lines) == count, (kind, columns)
            assert all("emulated-" in line for line in lines)


@pytest.mark.parametrize("name", ["emulated-quartet", "emulated-ascend"])
def test_an_emulated_page_says_so_first(zhenfa: Call, name: str) -> None:
    first, second, *_ = zhenfa("show", name).out.splitlines()
    assert first.startswith(f"{name} [EMULATED]: ")
    assert second == "EMULATED: processes on this host held to declared speeds; no measurement of any accelerator."


def test_every_fact_of_a_card_is_shown_with_tag_confidence_and_source(zhenfa: Call) -> None:
    card = catalog.accelerator("ascend-910c")
    shown = zhenfa("show", "ascend-910c", columns=200).out
    for key, value in card.peak.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"peak.{key} "))
        assert value.source in line
        if value.known:
            assert value.tag in line
            assert value.confidence in line
        else:
            assert "undisclosed" in line
    assert "memory.capacity" in shown
    assert "Sources that disagree" in shown
    assert "undisclosed: " in shown


def test_claims_stand_beside_arithmetic(zhenfa: Call) -> None:
    shown = zhenfa("show", "scalex640", columns=160).out
    assert "Claims beside arithmetic" in shown
    line = next(line for line in shown.splitlines() if line.startswith("compute of one cabinet"))
    assert re.search(r"630 PFLOPS +315 PFLOPS", line)


def test_what_a_plan_needs_comes_with_the_option_that_supplies_it(zhenfa: Call) -> None:
    for columns in WIDTHS:
        shown = zhenfa("show", "scalex640", columns=columns).out
        assert "A plan needs values that nobody has published" in shown
        assert '--assume sugon-scalex-card.memory.capacity="64 GB"' in shown
    assert "A plan needs" not in zhenfa("show", "cloudmatrix384").out


def _needs() -> list[tuple[str, Need]]:
    found = []
    for name in catalog.machine_names():
        formation = catalog.resolve(catalog.machine(name))
        found += [(name, need) for need in (*needs_of(formation), *extras_of(formation))]
    return found


@pytest.mark.parametrize(("machine", "need"), _needs(), ids=lambda value: str(getattr(value, "name", value)))
def test_the_option_supplies_what_it_says(machine: str, need: Need) -> None:
    option, _, text = need.assume.partition(" ")
    name, _, value = text.partition("=")
    assert option == "--assume"
    formation = catalog.resolve(catalog.machine(machine), {name: value.strip('"')})
    assert formation.assumed == {name: value.strip('"')}
    left = [one.name for one in (*needs_of(formation), *extras_of(formation))]
    assert need.name not in left


def test_a_model_is_counted_beside_what_its_makers_say(zhenfa: Call) -> None:
    shown = zhenfa("show", "deepseek-v3").out
    assert "671 B parameters (671,026,404,352)" in shown
    assert re.search(r"parameters +671 B +datasheet", shown)
    assert "58 x layer: " in shown


def test_sources_are_listed_with_their_keys(zhenfa: Call) -> None:
    shown = zhenfa("show", "ascend-910c", "--cite", columns=160).out
    sources = shown.partition("\nSources (")[2]
    assert re.search(r"^  - cm384: arXiv 2506\.12708", sources, flags=re.MULTILINE)


def test_a_list_cites_what_it_shows(zhenfa: Call) -> None:
    shown = zhenfa("show", "links", "--cite", columns=160).out
    assert "\nSources (" in shown
    assert re.search(r"^  - cm384: arXiv 2506\.12708", shown, flags=re.MULTILINE)
    assert "Sources (" not in zhenfa("show", "terms", "--cite").out


def test_the_page_of_a_file(zhenfa: Call, tmp_path) -> None:  # type: ignore[no-untyped-def]
    machine = tmp_path / "mine.yaml"
    machine.write_text(catalog.machine("hgx-h100").to_yaml().replace("name: hgx-h100", "name: mine"), encoding="utf-8")
    assert zhenfa("show", machine).out.startswith("mine: one HGX H100 node, 8 GPUs\ncards: 8 in 1 pool\n")
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,'
        '"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 256}',
        encoding="utf-8",
    )
    assert "2 layers, hidden size 64, vocabulary 256" in zhenfa("show", tmp_path).out


def test_a_term_is_explained_in_two_languages(zhenfa: Call) -> None:
    shown = zhenfa("explain", "pipeline", "bubble")
    assert shown.code == 0
    assert shown.out.splitlines() == [
        "bubble (pipeline bubble, bubble ratio) · 气泡",
        "The time in which a stage waits because the pipeline fills, drains or is unbalanced.",
        "流水线填充、排空或负载不均时阶段空等的时间。",
        "unit:    share of step time",
        "better:  lower",
        "formula: for equal stages, (stages - 1) divided by (micro-batches + stages - 1)",
        "law:     zhenfa.laws.pipeline.uniform_pipeline_time",
        "see:     PP, micro-batch, 1F1B",
    ]
    assert zhenfa("show", "气泡").out == shown.out


def test_a_term_cites_its_law(zhenfa: Call) -> None:
    shown = zhenfa("explain", "bubble", "--cite").out
    assert "\nThe law\n" in shown
    assert re.search(r"^  - huang2019: ", shown, flags=re.MULTILINE)


@pytest.mark.parametrize("columns", WIDTHS)
def test_every_term_fits(zhenfa: Call, columns: int) -> None:
    for term in terms():
        assert zhenfa("explain", term, columns=columns).widest <= columns


def test_devices_are_listed_with_how_the_maker_was_told(zhenfa: Call) -> None:
    shown = zhenfa("devices")
    assert shown.code == 0
    head, first, *_ = shown.out.splitlines()
    assert head.split()[:4] == ["#", "maker", "told", "from"]
    assert first.split()[0] == "0"
    assert first.split()[-1] == "cpu"
    assert "zhenfa show emulated-quartet" in shown.err
    assert zhenfa("devices", "--quiet").err == ""
