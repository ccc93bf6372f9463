"""Rows of measured operators: one kernel or block of kernels, its shape, and the seconds it took.

A row is a record ``{"id", "kind": "op", "chip", "backend", "version", "op", ..., "latency_ms", "source"}``. ``chip`` is
an accelerator of the catalog, or the name that the tables give it; ``backend`` the engine whose kernels ran; ``op`` the
table that the row stands in, such as ``gemm`` or ``context_attention``; between them stand the columns of that table
(``gemm``: ``gemm_dtype``, ``m``, ``n``, ``k``, ``kernel_source``). :func:`read_tables` turns Parquet tables into such
records. A record with ``metrics`` instead states what share of a peak or a bandwidth an operator reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from zhenfa import catalog, cite
from zhenfa.errors import ZhenfaError
from zhenfa.estimate.coefficients import LAWS, Found, Library, generation, library, table_names
from zhenfa.estimate.reached import reached
from zhenfa.spec.fact import Tag
from zhenfa.spec.machine import Precision
from zhenfa.validation import operator_tables
from zhenfa.validation.operator_tables import Place, describe, known_bad, read_columns
from zhenfa.validation.operator_work import OPERATORS, NotDescribedError, kernel_family
from zhenfa.validation.outcome import Outcome

TABLES: Final = cite.declare(
    "aiconfigurator-core", "NVIDIA. aiconfigurator-core 0.12.0 (PyPI, Apache-2.0): tables of measured operators."
)

LONG: Final = 8192
"""Size in each dimension of a matmul whose row states only the share of the peak it reached."""


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a record is an operator row."""
    return record.get("kind") == "op"


def outcomes(record: Mapping[str, Any]) -> list[Outcome]:
    """Return the latency of a row beside what the laws say, or why they say nothing."""
    if isinstance(record.get("metrics"), Mapping):
        return _shares(record)
    op, name = str(record.get("op", "?")).casefold(), str(record.get("chip", "?"))
    row = str(record.get("id", f"{name} {op}"))
    groups = (f"operators / {name} / {op}", "operators")
    try:
        return [_latency(record, row, op, name, groups)]
    except (NotDescribedError, ZhenfaError) as problem:
        words = problem.message if isinstance(problem, ZhenfaError) else str(problem)
        return [_skip(row, groups, words.rstrip("."))]
    except (TypeError, ValueError, ArithmeticError) as problem:
        return [_skip(row, groups, f"a column cannot be read: {problem}")]


def _skip(row: str, groups: tuple[str, ...], why: str, metric: str = "latency", unit: str = "ms") -> Outcome:
    return Outcome(row, "op", groups, metric, unit, skipped=why)


def _latency(record: Mapping[str, Any], row: str, op: str, name: str, groups: tuple[str, ...]) -> Outcome:
    engine, version = str(record.get("backend", "?")).casefold(), str(record.get("version", "?"))
    bad = known_bad(name.casefold(), engine, version, op)
    if bad is not None:
        return _skip(row, groups, bad)
    measured = float(record["latency_ms"]) if record.get("latency_ms") is not None else math.nan
    if not measured > 0 or math.isinf(measured):
        return _skip(row, groups, f"latency_ms is {record.get('latency_ms')!r}, not a positive number")
    chip = accelerator_id(name)
    columns = _columns(record)
    dtype, part = describe(op, columns, np.array([chip]))
    shelf = library()
    kernel = kernel_family(op, str(record.get("kernel_source", "")))
    found = shelf.find(op, str(dtype[0]), chip, engine, kernel)
    arguments = {
        key: value[0] if isinstance(value, np.ndarray) and value.ndim else value
        for key, value in part.arguments.items()
    }
    predicted = 1e3 * float(LAWS[part.law](**arguments, **found.values))
    cite.use(TABLES)
    low, high = spread(shelf, op, chip)
    note = "launched by the host each time, not from a captured graph" if found.host_bound else None
    if not math.isfinite(predicted) or predicted <= 0:
        return _skip(row, groups, "the row's columns give no finite time")
    return Outcome(
        row, "op", groups, "latency", "ms", measured, predicted, _tag(found, chip), note=note,
        p10=predicted * math.exp(-high), p90=predicted * math.exp(-low),
    )  # fmt: skip


def accelerator_id(name: str) -> str:
    """Return the accelerator that a row means. Raises :class:`UnknownNameError`."""
    return table_names().get(name.strip().casefold()) or catalog.accelerator(name).id


def _tag(found: Found, chip: str) -> Tag:
    """Return ``fitted`` for a chip, or a generation, whose kernels were fitted."""
    return "fitted" if found.known or (generation(chip).name is not None and found.key[4] is not None) else "assumed"


def spread(shelf: Library, op: str, chip: str) -> tuple[float, float]:
    """Return the 10th and 90th percentile of ln(predicted / measured) of an operator on rows that no fit had seen.

    For a chip that the fit did not know, those of chips left out of it; for one of another generation than all of
    them, those of whole generations left out.
    """
    which = shelf.document.get("spread", {})
    strange = "left_out" if generation(chip).name else "left_out_generations"
    table = which.get("known" if chip in shelf.factors else strange) or which.get("known") or {}
    found = table.get(op) or table.get("all")
    return (found["p10_signed"], found["p90_signed"]) if found else (-0.35, 0.35)


def _columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as columns of one row."""
    columns: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, str):
            columns[key] = np.array([value])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            columns[key] = np.array([float(value)])
    columns.setdefault("kernel_source", np.array([""]))
    columns.setdefault("op_name", np.array([str(record.get("op", "")).casefold()]))
    for key in ("m", "n", "k", "batch_size", "isl", "num_tokens", "num_heads"):
        if key in columns and not (columns[key].dtype.kind == "f" and columns[key][0] >= 0):
            raise ValueError(f"{key} is {record[key]!r}")
    return columns


def _shares(record: Mapping[str, Any]) -> list[Outcome]:
    """Return shares of a peak or a bandwidth that a row states of one operator, beside the laws' coefficients."""
    row = str(record.get("id", "?"))
    chip = str(record.get("acc_id") or "?")
    engine = str(record.get("engine") or "")
    words = f"{row} {engine}".casefold()
    groups = (f"operators / {chip} / {engine or 'operator'}", "operators")
    if "deepep" in words or "dispatch_GBps" in record["metrics"]:
        return [_skip(row, groups, "exchange of tokens between cards: see the fabric laws", "bandwidth", "GB/s")]
    share = record["metrics"].get("util_pct")
    measured = float(np.mean(share)) if isinstance(share, int | float | list) else math.nan
    if not measured > 0:
        return [_skip(row, groups, "the row states no share of a peak", "share", "%")]
    try:
        accelerator = catalog.accelerator(chip.replace("_", "-"))
        whole = record.get("precision") or {}
        stated: Precision | None = next((one for one in get_args(Precision) if one == whole.get("weights")), None)
        notes: list[str] = []
        found = reached(accelerator, stated or "bf16", None, False, None, notes)
    except ZhenfaError as problem:
        return [_skip(row, groups, problem.message.rstrip("."), "share", "%")]
    shelf = library()
    if "mla" not in words:
        kernel, op = found.kernels["matmul"], "gemm"
        predicted = kernel["share"] * LONG / (LONG + kernel["fill"])
    elif "GBps" in " ".join(record["metrics"]):
        predicted, op = found.kernels["latent"]["memory_share"], "generation_mla"
    else:
        predicted, op = found.kernels["latent"]["share"], "generation_mla"
    low, high = spread(shelf, op, accelerator.id)
    return [
        Outcome(
            row,
            "op",
            groups,
            "share",
            "%",
            measured,
            100 * predicted,
            found.tag,
            p10=100 * predicted * math.exp(low),
            p90=100 * predicted * math.exp(high),
            note="; ".join(notes) or None,
        )
    ]


def read_tables(path: str | Path, points: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Return records from a table of measured operators, or from a folder of them: ``points`` random ones, or all.

    Tables known as bad, and those that are no operators, are left out of a folder; each row of the others is as likely
    as another. Raises :class:`ZhenfaError` where there is no table.
    """
    place = Path(path)
    random = np.random.default_rng(seed)
    if place.is_dir():
        places = operator_tables.tables(place)
        if not places:
            raise ZhenfaError(
                f"{place} holds no tables of operators.", hint="give the folder that holds <chip>/<family>/…"
            )
    else:
        places = [_place(place)]
    sizes = np.array([_rows(one.path) for one in places])
    taken = sizes if points is None else random.multivariate_hypergeometric(sizes, min(points, int(sizes.sum())))
    found: list[dict[str, Any]] = []
    for one, count in zip(places, taken.tolist(), strict=True):
        if count:
            found += _records(one, read_columns(one, count, random))
    return found


def _rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.ParquetFile(path).metadata.num_rows)


def _place(path: Path) -> Place:
    """Return a single table, by where it lies or else by what stands in it."""
    op = path.name.removesuffix(".parquet").removesuffix("_perf")
    parts = path.resolve().parts[-5:-1]
    if len(parts) == 4 and (parts[0] in table_names() or parts[2] in {"trtllm", "vllm", "sglang"}):
        return Place(path, parts[0], parts[2], parts[3], op)
    from pyarrow import parquet

    names = parquet.ParquetFile(path).schema_arrow.names
    if "device" not in names or "framework" not in names:
        raise ZhenfaError(f"{path} is no table of operators: it has no column device or framework.")
    first = parquet.read_table(path, columns=["device", "framework", "version"]).slice(0, 1).to_pylist()[0]
    return Place(path, device_name(str(first["device"])), str(first["framework"]).casefold(), str(first["version"]), op)


def device_name(name: str) -> str:
    """Return the name that the tables use for a device as its driver calls it."""
    words = name.casefold().replace("-", " ").split()
    return next((key for key in table_names() if key.partition("_")[0] in words), name)


def _records(place: Place, columns: dict[str, Any]) -> list[dict[str, Any]]:
    head = {"kind": "op", "chip": place.chip, "backend": place.engine, "version": place.version, "op": place.op}
    tail = {"source": f"aiconfigurator-core: {place.chip}/{place.op}/{place.engine}/{place.version}"}
    names = [
        name for name in columns if name not in {"framework", "version", "device", "latency", "power", "power_limit"}
    ]
    records = []
    for number in range(len(columns["latency"])):
        shape = {name: _plain(columns[name][number]) for name in names}
        shape = {name: value for name, value in shape.items() if value is not None}
        if shape.get("op_name") == place.op:
            del shape["op_name"]
        latency = float(f"{columns['latency'][number]:.6g}")
        records.append(
            {
                "id": f"{place.chip}-{place.engine}-{place.version}-{place.op}-{number}",
                **head,
                **shape,
                "latency_ms": latency,
                **tail,
            }
        )
    return records


def _plain(value: Any) -> str | float | int | None:
    if isinstance(value, str):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return None
    return int(number) if number.is_integer() else number


def described(op: str) -> bool:
    """Return whether the laws describe a table."""
    return op in OPERATORS
