"""The JSON documents: what is printed is what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cli_runner import ROOT, Call, caller, fill
from zhenfa import catalog
from zhenfa.cli import reference, schemas
from zhenfa.cli.main import cli
from zhenfa.cli.terms import terms
from zhenfa.spec.machine import Machine
from zhenfa.spec.model import Model
from zhenfa.spec.plan import Plan

FOLDER = ROOT / "docs" / "schemas"
PRINTED = schemas.PRINTED
BY_NAME = {printed.schema_name: printed for printed in PRINTED}


@pytest.fixture
def zhenfa(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:  # fmt: skip
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def document(zhenfa: Call, *arguments: str) -> dict[str, Any]:
    """Run a command with ``--json``: one document on stdout that its schema allows, nothing on stderr but talk."""
    shown = zhenfa(*arguments, "--json")
    assert shown.code == 0, shown.err
    assert "error:" not in shown.err
    found = json.loads(shown.out)
    assert isinstance(found, dict)
    assert shown.out == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert next(iter(found)) == "schema"
    printed = BY_NAME[found["schema"]]
    published = json.loads((FOLDER / schemas.file_name(printed)).read_text(encoding="utf-8"))
    for schema in (published, schemas.schema(printed, strict=True)):
        faults = [f"{fault.json_path}: {fault.message}" for fault in Draft202012Validator(schema).iter_errors(found)]
        assert not faults
    return found


def test_the_published_schemas_are_current() -> None:
    written = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")}
    wanted = {name: json.loads(text) for name, text in schemas.files().items()}
    assert written == wanted, "run: python -m zhenfa.cli.schemas docs/schemas"


@pytest.mark.parametrize("printed", PRINTED, ids=lambda printed: printed.schema_name)
def test_a_schema_is_a_schema(printed: Any) -> None:
    for strict in (False, True):
        Draft202012Validator.check_schema(schemas.schema(printed, strict=strict))
    published = schemas.schema(printed)
    assert '"additionalProperties": false' not in json.dumps({**published, "$defs": 0})
    assert published["properties"]["schema"] == {"const": printed.schema_name}


def test_a_strict_schema_refuses_what_it_does_not_name() -> None:
    strict = Draft202012Validator(schemas.schema(BY_NAME["zhenfa.catalog/1"], strict=True))
    published = Draft202012Validator(schemas.schema(BY_NAME["zhenfa.catalog/1"]))
    more = {"schema": "zhenfa.catalog/1", "counts": {"models": 3}, "new": True}
    assert not strict.is_valid(more)
    assert published.is_valid(more)
    assert not published.is_valid({"schema": "zhenfa.catalog/1", "counts": {"models": "three"}})
    assert not published.is_valid({"schema": "zhenfa.catalog/2", "counts": {}})


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
def test_lists(zhenfa: Call, kind: str, names: list[str]) -> None:
    found = document(zhenfa, "show", kind)
    assert found["schema"] == f"zhenfa.{kind}/1"
    assert [item.get("id") or item["name"] for item in found[kind]] == names
    assert document(zhenfa, "show")["counts"][kind] == len(names)


def test_every_number_of_the_catalog_carries_its_tag(zhenfa: Call) -> None:
    facts = []

    def walk(data: Any) -> None:
        if isinstance(data, list):
            [walk(item) for item in data]
        elif isinstance(data, dict):
            if {"value", "confidence"} <= set(data):
                facts.append(data)
            [walk(item) for item in data.values()]

    for kind in ("accelerators", "systems", "links"):
        walk(document(zhenfa, "show", kind))
    assert len(facts) > 1000
    for fact in facts:
        assert (fact["tag"] is None) == (fact["value"] is None), fact


@pytest.mark.parametrize("name", catalog.machine_names())
def test_machines(zhenfa: Call, name: str) -> None:
    found = document(zhenfa, "show", name)
    assert found["schema"] == "zhenfa.formation/1"
    assert found["cards"] == sum(pool["count"] for pool in found["pools"])
    assert found["emulated"] == any(pool["accelerator"]["emulated"] for pool in found["pools"])
    assert Machine.from_data(found["machine"]) == catalog.machine(name)
    for missing in found["undisclosed"]:
        assert missing["assume"].startswith(f"--assume {missing['name']}=")


@pytest.mark.parametrize("name", list(catalog.accelerators()))
def test_accelerators(zhenfa: Call, name: str) -> None:
    found = document(zhenfa, "show", name)
    assert found["accelerator"]["id"] == name
    used = {fact["source"] for fact in found["accelerator"]["peak"].values()}
    assert used <= set(found["sources"])


def test_other_entries(zhenfa: Call) -> None:
    assert document(zhenfa, "show", "sugon-scalex640")["system"]["count"] == 640
    assert document(zhenfa, "show", "ub-1.0")["link"]["id"] == "ub-1.0"
    assert document(zhenfa, "show", "MFU") == document(zhenfa, "explain", "mfu")
    assert document(zhenfa, "devices")["devices"][0]["provider"] == "cpu"
    assert document(zhenfa, "doctor")["sound"]
    model = document(zhenfa, "show", "tiny-byte-gpt")
    assert Model.from_data(model["model"]).graph().parameters == model["parameters"]
    assert sum(part["layers"] for part in model["parts"] if part["part"].startswith("layer")) == model["layers"]


def test_plans(zhenfa: Call) -> None:
    found = document(zhenfa, "plan", "mixed-pretrain.yaml", "--top", "3")
    assert {"schema", "job", "machine", "plans", "considered", "rejected", "seconds"} <= set(found)
    assert (found["job"], found["machine"], found["emulated"]) == ("mixed-pretrain", "emulated-quartet", True)
    assert [plan["rank"] for plan in found["plans"]] == [1, 2, 3]
    steps = [plan["estimate"]["step_time_s"]["value"] for plan in found["plans"]]
    assert steps == sorted(steps)
    assert found["considered"] >= found["costed"] >= 3
    for plan in found["plans"]:
        assert {"rank", "layout", "estimate", "walls", "sources"} <= set(plan)
        assert set(plan["walls"]) == {"compute", "communication", "energy", "reliability", "binding"}
        for figure in plan["estimate"].values():
            assert set(figure) == {"value", "unit", "tag", "p10", "p90", "note"}
        assert Plan.from_data(plan["plan"]).global_batch == 64
        assert plan["sources"]


def test_more_plans_are_not_listed_because_one_is_asked_about(zhenfa: Call) -> None:
    assert len(document(zhenfa, "plan", "mixed-pretrain.yaml", "--top", "1", "--why", "2")["plans"]) == 1


def test_a_failure_prints_no_document(zhenfa: Call) -> None:
    for arguments, code in ((("show", "nosuch"), 2), (("plan", "huge.yaml"), 3), (("plan", "nosuch.yaml"), 2)):
        shown = zhenfa(*arguments, "--json")
        assert (shown.code, shown.out) == (code, "")
        assert shown.err.startswith("error: ")


def test_the_reference_is_current() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == reference.text(), "run: python -m zhenfa.cli.reference docs/reference/cli.md"


def test_the_reference_has_every_command_option_and_document() -> None:
    page = reference.text()
    for name, command in cli.commands.items():
        section = page.partition(f"## `zhenfa {name}`\n")[2].partition("\n## ")[0]
        assert section
        for parameter in command.params:
            assert (
                parameter.name in {"job", "plan", "run"}
                or f"`{parameter.opts[0]}" in section
                or parameter.name in {"name", "term"}
            )
    for printed in PRINTED:
        assert f"| `{printed.schema_name}` | `zhenfa " in page
