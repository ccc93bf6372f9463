"""Rows in the columns of the wheel ``aiconfigurator-core``, and tables as comma-separated text, as records.

Three sorts of the wheel's rows are told by their columns: operators (``latency`` in ms), collectives (``num_gpus``,
``message_size`` in elements of their type), and whole deployments (``silicon_ttft_ms``, ``silicon_tpot_ms``).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, Final

from zhenfa.estimate.coefficients import table_names
from zhenfa.validation.operator import device_name

TABLES: Final = {
    "mla_context": "context_mla", "mla_generation": "generation_mla", "mla_gen_pre": "mla_bmm",
    "mla_gen_post": "mla_bmm", "compute_scale": "computescale", "pre": "mhc_module", "post": "mhc_module",
    "dsa_context_module_skip_indexer": "dsa_context_module",
    "dsa_generation_module_skip_indexer": "dsa_generation_module",
}  # fmt: skip
"""The table in which a row of an operator stands, where its ``op_name`` is another."""

COLLECTIVES: Final = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
ELEMENTS: Final = {"half": 2.0, "bfloat16": 2.0, "float": 4.0, "int8": 1.0, "fp8": 1.0}
"""Bytes of an element by the name that the collectives' tables give its type; half precision where they give none."""

LIMIT: Final = 1024 * 1024
"""Characters of a cell that are read at most."""

_DELIMITERS: Final = ",;\t"


def table(lines: Iterator[str], header: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as text with its first line as names; a dot in a name opens a part of the row."""
    csv.field_size_limit(LIMIT)
    mark = max(_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=mark))
    for cells in csv.reader(lines, delimiter=mark):
        record: dict[str, Any] = {}
        for name, cell in zip(names, cells, strict=False):
            if cell.strip():
                _put(record, name.strip().split("."), cell)
        if record:
            yield record


def _put(record: dict[str, Any], path: list[str], cell: str) -> None:
    for name in path[:-1]:
        inner = record.setdefault(name, {})
        if not isinstance(inner, dict):
            return
        record = inner
    record[path[-1]] = cell


def looks_like_table(line: str) -> bool:
    """Return whether a line can be the first of a table as text: names, several of them, apart."""
    if line.lstrip()[:1] in {"{", "[", "-", "#"}:
        return False
    mark = max(_DELIMITERS, key=line.count)
    cells = [cell.strip().strip('"') for cell in line.split(mark)]
    return len(cells) > 2 and all(re.fullmatch(r"[A-Za-z_][\w. ()/%-]*", cell) for cell in cells)


def adopt(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a row of the wheel's columns as a record of the form that the kinds read; any other row as it is.

    ``name``: of the file, whose folders and stem say of which chip and table an operator's row is.
    """
    if "silicon_tpot_ms" in record or "silicon_ttft_ms" in record:
        return deployment(record)
    if "latency" not in record or "kind" in record or not {"kernel_source", "op_name"} & set(record):
        return record
    place = PurePath(name)
    stem = place.name.partition(".")[0].removesuffix("_perf")
    operator = str(record.get("op_name") or stem)
    folder = next((part for part in place.parts if part in table_names()), None)
    chip = folder or device_name(str(record.get("device") or "?"))
    if operator in COLLECTIVES and "message_size" in record:
        return _collective(record, operator, chip)
    own = TABLES.get(operator, operator) if not stem.endswith(operator) else stem
    latency = record["latency"]
    shape = {key: value for key, value in record.items() if key not in {"latency", "framework", "device", "power"}}
    return {
        "id": f"{chip}-{own}", "kind": "op", "chip": chip, "op": own,
        "backend": str(record.get("framework") or "").casefold(), **shape, "latency_ms": latency,
    }  # fmt: skip


def _collective(record: Mapping[str, Any], operator: str, chip: str) -> dict[str, Any]:
    size, latency = _float(record["message_size"]), _float(record["latency"])
    element = ELEMENTS.get(str(record.get("nccl_dtype") or record.get("allreduce_dtype") or "half"), 2.0)
    return {
        "id": f"{chip}-{operator}-{record.get('num_gpus')}-{record['message_size']}",
        "system": table_names().get(chip, chip), "op": operator, "ranks": record.get("num_gpus"),
        "bytes": None if size is None else element * size,
        "latency_us": None if latency is None else 1e3 * latency, "confidence": "bench-measured",
        "conditions": f"{record.get('kernel_source') or ''} {record.get('framework') or ''}".strip(),
    }  # fmt: skip


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


# Whole deployments.


def deployment(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a measured deployment of the wheel's sample as a serving row.

    Some rows give the cards of an instance as tensor times expert parallelism, which counts them twice: where both
    widths of the experts are the same and multiply to the cards, one of them is dropped.
    """
    source, chip = str(record.get("silicon_data_source") or ""), str(record.get("system") or "")
    own = "gap" in source or "gap" in str(record.get("id"))
    asked = re.search(r"silicon_concurrency=(\d+)", source)
    apart = record.get("mode") == "disagg"
    layout: dict[str, Any] = {"mode": "disagg" if apart else "agg"}
    count = None
    if apart:
        layout |= {role: _instances(record, f"{role}_") for role in ("prefill", "decode")}
    else:
        layout |= _degrees(record, "", corrected=source.startswith("db-dump"))
        count = layout["TP"] * layout["PP"] * layout["DP"]
    said = bool(record.get("backend_version")) and "nightly" not in str(record.get("backend_version"))
    gate = source.startswith("db-dump") or (own and said)
    batch = asked[1] if asked else None if apart else record.get("batch_size")
    metrics = {f"{name}_mean_ms": record.get(f"silicon_{name}_ms") for name in ("ttft", "tpot")}
    return {
        "id": record.get("id"), "kind": "serving", "source": f"aiconfigurator-core: {source}",
        "model": record.get("model_path"), "use": "gate" if gate else "compare",
        "precision": {"weights": record.get("precision"), "activations": record.get("precision")},
        "hardware": {
            "accelerator": table_names().get(chip, chip), "count": count, "node_size": 4 if "gb" in chip else 8,
        },
        "engine": f"{record.get('backend') or ''} {record.get('backend_version') or ''}".strip(),
        "parallelism": layout, "input_len": record.get("isl"), "output_len": record.get("osl"), "batch": batch,
        "metrics": {name: value for name, value in metrics.items() if value not in {None, ""}},
        "notes": "exact lengths" if own else "lengths 0.8-1.0x nominal",
    }  # fmt: skip


def _whole(value: Any) -> int:
    found = _float(value)
    return 1 if found is None else int(found)


def _degrees(record: Mapping[str, Any], prefix: str, *, corrected: bool = False) -> dict[str, int]:
    names = {
        "TP": "tp_size", "PP": "pp_size", "DP": "attention_dp_size", "moe_TP": "moe_tp_size", "EP": "moe_ep_size",
    }  # fmt: skip
    found = {own: _whole(record.get(prefix + name)) for own, name in names.items()}
    width = max(found["TP"], found["DP"])
    if corrected and found["moe_TP"] == found["EP"] > 1 and found["moe_TP"] * found["EP"] == width:
        wide = "TP" if found["TP"] >= found["DP"] else "DP"
        found[wide] //= found["moe_TP"]
        found["moe_TP"] = 1
    return found


def _instances(record: Mapping[str, Any], prefix: str) -> dict[str, int]:
    found = _degrees(record, prefix)
    del found["PP"]
    return {
        "instances": _whole(record.get(f"{prefix}num_workers")), **found,
        "batch": _whole(record.get(f"{prefix}batch_size")),
    }  # fmt: skip
