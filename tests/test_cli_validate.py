"""``zhenfa validate``: rows in, accuracy out; what is broken is named; the document is as published."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from cli_runner import Call, caller
from zhenfa.cli import schemas
from zhenfa.cli.validation_documents import Validation
from zhenfa.validation.summary import FEW

# V. Korthikanti et al., Reducing Activation Recomputation, arXiv:2205.05198, table 5.
ROW: dict[str, Any] = {
    "id": "175B-full", "tier": "A", "task": "pretrain", "precision": "fp16", "software": "Megatron-LM 2022",
    "model": {
        "name": "GPT-175B", "layers": 96, "hidden": 12288, "ffn": 49152, "heads": 96, "kv_heads": 96, "head_dim": 128,
        "vocab": 51200, "gated_mlp": False, "seq": 2048,
    },
    "hardware": {"accel": "NVIDIA A100-80GB SXM", "vendor": "nvidia", "per_node": 8, "count": 64},
    "parallel": {
        "tp": 8, "pp": 8, "vpp": 3, "dp": 1, "ep": 1, "cp": 1, "sp": False, "zero": 0, "mbs": 1, "gbs": 64,
        "recompute": "full", "schedule": "1F1B-interleaved",
    },
    "metrics": {"iter_s": 18.13},
}  # fmt: skip
DENSE = "train / dense / NVIDIA / tier A"


def other(**parts: dict[str, Any] | str) -> dict[str, Any]:
    row = copy.deepcopy(ROW)
    for key, value in parts.items():
        row[key] = {**row[key], **value} if isinstance(value, dict) else value
    return row


ROWS = [
    ROW,
    other(id="175B-selective", parallel={"recompute": "selective", "sp": True}, metrics={"iter_s": 13.75}),
    other(id="no-such-card", hardware={"accel": "Teapot 9000", "vendor": "teapot"}),
]


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text(text + '{"id": \n{"id": "odd", "sort": 1}\n', encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text("not rows\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


def document(zhenfa: Call, *arguments: str) -> dict[str, Any]:
    shown = zhenfa("validate", "--json", *arguments)
    assert shown.code == 0, shown.err
    found: dict[str, Any] = json.loads(shown.out)
    for strict in (False, True):
        faults = list(Draft202012Validator(schemas.schema(Validation, strict=strict)).iter_errors(found))
        assert not faults
    return found


def test_the_document_is_as_published_and_adds_up(zhenfa: Call) -> None:
    found = document(zhenfa, "--rows", "broken.jsonl")
    assert [row["id"] for row in found["rows"]] == [row["id"] for row in ROWS]
    judged = [row for row in found["rows"] if row["skipped"] is None]
    assert [row["measured"] for row in judged] == [18.13, 13.75]
    for row in judged:
        assert row["ratio"] == pytest.approx(row["predicted"] / row["measured"])
        assert 0.5 < row["ratio"] < 2
        assert row["group"] == DENSE
    assert "Teapot" in found["rows"][2]["skipped"]
    group = found["summary"][DENSE]
    logs = sorted(abs(math.log(row["ratio"])) for row in judged)
    assert group["median_abs_log_ratio"] == pytest.approx(sum(logs) / 2)
    assert (group["n"], group["gate_rows_predicted"]) == (2, 2)
    assert sum(one["skipped"] for name, one in found["summary"].items() if name == found["rows"][2]["group"]) == 1
    assert group["target"]["median_abs_log_ratio"] == 0.08
    assert [one["place"] for one in found["unread"]] == ["broken.jsonl:4", "broken.jsonl:5"]


def test_rows_of_other_kinds_are_left_alone(zhenfa: Call) -> None:
    assert document(zhenfa, "--rows", "rows.jsonl", "--kind", "train")["rows"]
    shown = zhenfa("validate", "--rows", "rows.jsonl", "--kind", "energy")
    assert (shown.code, shown.out) == (2, "")
    assert "no row of energy" in shown.err


def test_the_report_names_groups_rows_and_faults(zhenfa: Call) -> None:
    shown = zhenfa("validate", "--rows", "broken.jsonl")
    assert shown.code == 0
    for words in ("3 measured rows", DENSE, "175B-full", "18.13 s", "Teapot 9000", "broken.jsonl:4", "0.08 / 0.22"):
        assert words in shown.out
    detail = zhenfa("validate", "--rows", "broken.jsonl", "--detail", "--cite")
    assert "no-such-card" in detail.out
    assert "Sources" in detail.out
    assert "williams2009" in detail.out or "Roofline" in detail.out


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_report_fits_the_screen(zhenfa: Call, columns: int) -> None:
    shown = zhenfa("validate", "--rows", "rows.jsonl", "--detail", columns=columns)
    assert shown.code == 0
    assert shown.widest <= columns


@pytest.mark.parametrize(("name", "words"), [("bad.jsonl", "bad.jsonl:1"), ("missing.jsonl", "No such file")])
def test_nothing_read_is_bad_input(zhenfa: Call, name: str, words: str) -> None:
    shown = zhenfa("validate", "--rows", name)
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err
    assert zhenfa("validate", "--rows", name, "--rows", "rows.jsonl").code == 0


def test_strict_fails_where_a_target_is_missed(zhenfa: Call, tmp_path: Path) -> None:
    far = [other(id=f"far-{number}", metrics={"iter_s": 1e-3}) for number in range(FEW)]
    (tmp_path / "far.jsonl").write_text("\n".join(map(json.dumps, far)), encoding="utf-8")
    assert zhenfa("validate", "--rows", "far.jsonl").code == 0
    shown = zhenfa("validate", "--rows", "far.jsonl", "--strict")
    assert shown.code == 1
    assert DENSE in shown.out
    assert DENSE in shown.err


def test_the_plot_is_a_picture(zhenfa: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = zhenfa("validate", "--rows", "rows.jsonl", "--plot", "plot.png", "--quiet")
    assert (shown.code, shown.err) == (0, "")
    picture = (tmp_path / "plot.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(picture[16:20], "big") > 400
    shown = zhenfa("validate", "--rows", "rows.jsonl", "--plot", "no/such/folder/plot.png")
    assert shown.code == 2
    assert "cannot be written" in shown.err
