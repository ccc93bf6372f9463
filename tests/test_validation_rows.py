"""Files of measured rows: every form is read, and what is broken is named and loses nothing else."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zhenfa.spec import yaml
from zhenfa.validation.rows import SECTION, Fault, Row, read_rows
from zhenfa.validation.tidy import tidy

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "metrics": {"iter_s": 1.5}, "bytes": [1, 2, 3]},
    {"id": "b", "metrics": {"tok_s_dev": 1e4}, "notes": "50 % of \u4e2d\u6587, 12:30"},
    {"id": "c", "count": 8, "sp": False, "ep": None},
]


def read(path: Path) -> tuple[list[Row], list[Fault]]:
    found = list(read_rows([path]))
    return [one for one in found if isinstance(one, Row)], [one for one in found if isinstance(one, Fault)]


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def save(path: Path, text: bytes) -> Path:
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows", "rows.json", "rows.txt.gz"])
def test_json_lines_are_read_under_any_name(tmp_path: Path, name: str) -> None:
    rows, faults = read(save(tmp_path / name, b"\n\xef\xbb\xbf" + lines(RECORDS) + b"\n\n"))
    assert [row.record for row in rows] == RECORDS
    assert [row.place.rpartition(":")[2] for row in rows] == ["2", "3", "4"]
    assert not faults


@pytest.mark.parametrize("name", ["rows.yaml", "rows.yaml.gz", "rows.yml", "rows"])
def test_a_yaml_list_is_read(tmp_path: Path, name: str) -> None:
    rows, faults = read(save(tmp_path / name, yaml.write(RECORDS).encode()))
    assert [row.record for row in rows] == RECORDS
    assert not faults


def test_each_top_level_list_of_a_document_is_a_section(tmp_path: Path) -> None:
    text = "# words\nmeta: {made: 2026-11-22}\ntraps: [one, two]\nenergy:\n- id: e\nreliability:\n- id: r\n  x: 1\n"
    rows, faults = read(save(tmp_path / "rows.yaml", text.encode()))
    assert [row.record for row in rows] == [{SECTION: "energy", "id": "e"}, {SECTION: "reliability", "id": "r", "x": 1}]
    assert [row.place.rpartition(":")[2] for row in rows] == ["5", "7"]
    assert not faults
    same, _ = read(save(tmp_path / "rows.json", json.dumps({"energy": [{"id": "e"}]}).encode()))
    assert [row.record for row in same] == [{SECTION: "energy", "id": "e"}]


def test_one_row_and_rows_without_a_name_are_read(tmp_path: Path) -> None:
    for record in RECORDS:
        for text in (json.dumps(record), json.dumps(record, indent=1), yaml.write(record)):
            assert [row.record for row in read(save(tmp_path / "row", text.encode()))[0]] == [record]
    bare = [{"m": 1, "k": 2}, {"m": 3, "k": 4}]
    assert [row.record for row in read(save(tmp_path / "rows", lines(bare)))[0]] == bare


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b'{"id": "x", ', "not JSON"),
        (b"[1, 2]", "a list"),
        (b"null", "null"),
        (b'"text"', "text"),
        (b'{"id": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "not read"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not read"),
        (b'{"id": "' + b"x" * (5 << 20) + b'"}', "longer than"),
    ],
)
def test_a_broken_line_is_named_and_loses_no_other(tmp_path: Path, broken: bytes, words: str) -> None:
    good = lines(RECORDS)
    rows, faults = read(save(tmp_path / "rows.jsonl", good + broken + b"\n" + good))
    assert [row.record for row in rows] == RECORDS * 2
    assert [fault.place for fault in faults] == [f"{tmp_path / 'rows.jsonl'}:4"]
    assert words in faults[0].reason
    assert rows[-1].place.endswith(":7")


def test_a_number_that_is_not_finite_is_missing(tmp_path: Path) -> None:
    rows, _ = read(save(tmp_path / "rows.jsonl", b'{"id": "a", "x": NaN, "y": -Infinity}\n'))
    assert rows[0].record == {"id": "a", "x": None, "y": None}


@pytest.mark.parametrize(
    "broken",
    ["- id: x\n  a: [1, 2\n", "- id: x\n  id: y\n", "- id: x\n  a: .nan\n", "- id: x\n   b: 1\n  c: {\n", "- !tag x\n"],
)
@pytest.mark.parametrize("indent", ["", "  "])
def test_a_broken_item_of_a_document_is_named_and_loses_no_other(tmp_path: Path, broken: str, indent: str) -> None:
    good = "- id: a\n  deep:\n  - id: in\n  - 2\n"
    items = "".join(indent + line for line in (good + broken + good).splitlines(keepends=True))
    text = f"meta: 1\nmeasurements:\n{items}curves:\n{indent}- id: z\n"
    rows, faults = read(save(tmp_path / "rows.yaml", text.encode()))
    whole = {SECTION: "measurements", "id": "a", "deep": [{"id": "in"}, 2]}
    assert [row.record for row in rows] == [whole, whole, {SECTION: "curves", "id": "z"}]
    assert len(faults) == 1
    line = int(faults[0].place.rpartition(":")[2])
    assert 7 <= line <= 7 + broken.count("\n")
    assert len(faults[0].reason) > 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"just words", "no list of rows"),
        (b"a: [1, 2]", "no list of rows"),
        (b"\x00\x01\x02", "not read"),
        (b"PAR1 and then nothing", ""),
        (b"\x1f\x8bnot gzip at all", "cannot be read"),
        (gzip.compress(lines(RECORDS))[:-20], "cut short"),
    ],
)
def test_a_file_that_holds_no_rows_is_a_fault(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(text)
    good = save(tmp_path / "good.jsonl", lines(RECORDS))
    found = list(read_rows([path, good]))
    faults = [one for one in found if isinstance(one, Fault)]
    assert faults
    assert any(words in fault.reason for fault in faults)
    assert faults[0].place.startswith(str(path))
    assert [one.record for one in found if isinstance(one, Row)][-3:] == RECORDS


def test_what_is_not_a_file_is_a_fault(tmp_path: Path) -> None:
    places = [tmp_path / "missing.jsonl", tmp_path]
    faults = [one for one in read_rows(places) if isinstance(one, Fault)]
    assert [fault.place for fault in faults] == [str(place) for place in places]
    assert "No such file" in faults[0].reason
    assert "folder without tables" in faults[1].reason


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(text)
        for one in read_rows([path]):
            assert one.place.startswith(str(path))
        other = path.with_suffix(".yaml")
        other.write_bytes(text)
        for one in read_rows([other]):
            assert one.place.startswith(str(other))


GEMM = {
    "framework": "TRTLLM", "version": "1.3.0rc20", "device": "NVIDIA H100 80GB HBM3", "op_name": "gemm",
    "kernel_source": "torch_flow", "gemm_dtype": "bfloat16", "m": 4096, "n": 4096, "k": 8192, "latency": 0.41,
}  # fmt: skip
SAMPLE = {
    "id": "x_agg", "silicon_data_source": "db-dump/2026; silicon_concurrency=64", "backend": "sglang",
    "backend_version": "0.5.9", "model_path": "Qwen/Qwen3-32B", "system": "h200_sxm", "precision": "fp8", "mode": "agg",
    "isl": 1024, "osl": 1024, "batch_size": 64, "tp_size": 4, "pp_size": 1, "attention_dp_size": 1, "moe_tp_size": 2,
    "moe_ep_size": 2, "silicon_ttft_ms": 100.0, "silicon_tpot_ms": 20.0,
}  # fmt: skip


def as_table(records: list[dict[str, Any]], mark: str) -> bytes:
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [mark.join(str(record.get(name, "")) for name in names) for record in records]
    return "\n".join([mark.join(names), *rows, ""]).encode()


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.txt", "rows"])
def test_a_table_as_text_says_what_json_lines_say(tmp_path: Path, name: str, mark: str) -> None:
    found, faults = read(save(tmp_path / name, as_table([GEMM, {**GEMM, "m": 128}], mark)))
    wanted, _ = read(save(tmp_path / "rows.jsonl", lines([GEMM, {**GEMM, "m": 128}])))
    assert not faults
    assert [tidy(one.record) for one in found] == [tidy(one.record) for one in wanted]
    assert found[0].record["kind"] == "op"
    assert found[0].record["chip"] == "h100_sxm"
    assert float(found[1].record["latency_ms"]) == 0.41


def test_a_dot_in_the_name_of_a_column_opens_a_part(tmp_path: Path) -> None:
    text = b"id,kind,parallelism.TP,metrics.tpot_ms\na,serving,8,12.5\nb,serving,,3\n"
    found, _ = read(save(tmp_path / "rows.csv", text))
    assert [tidy(one.record) for one in found] == [
        {"id": "a", "kind": "serving", "parallelism": {"TP": 8}, "metrics": {"tpot_ms": 12.5}},
        {"id": "b", "kind": "serving", "metrics": {"tpot_ms": 3}},
    ]


def test_measured_deployments_of_the_wheel_are_serving_rows(tmp_path: Path) -> None:
    apart = {
        **{key: value for key, value in SAMPLE.items() if not key.endswith("_size")}, "mode": "disagg",
        **{f"{role}_{key}": 2 for role in ("prefill", "decode") for key in ("num_workers", "tp_size", "batch_size")},
    }  # fmt: skip
    found, _ = read(save(tmp_path / "sample.csv", as_table([SAMPLE, apart], ",")))
    one, two = (tidy(each.record) for each in found)
    assert one["batch"] == 64
    assert one["parallelism"] == {"mode": "agg", "TP": 2, "PP": 1, "DP": 1, "moe_TP": 1, "EP": 2}
    assert one["hardware"]["count"] == 2
    assert one["metrics"] == {"ttft_mean_ms": 100, "tpot_mean_ms": 20}
    assert two["parallelism"]["decode"]["instances"] == 2
    assert two["parallelism"]["prefill"]["TP"] == 2


def test_collectives_of_the_wheel_are_fabric_rows(tmp_path: Path) -> None:
    row = {
        "framework": "TRTLLM", "version": "2.29.2", "device": "NVIDIA H200", "op_name": "all_gather", "num_gpus": 4,
        "kernel_source": "NCCL", "nccl_dtype": "int8", "message_size": 1024, "latency": 0.01,
    }  # fmt: skip
    found, _ = read(save(tmp_path / "rows.jsonl", lines([row])))
    assert found[0].record["bytes"] == 1024
    assert found[0].record["latency_us"] == 10.0
    assert found[0].record["system"] == "nvidia-h200-sxm"
