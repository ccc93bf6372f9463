"""Rows of measured operators as columns: read from Parquet tables, kept by operator, predicted in bulk.

A table lies at ``<chip>/<family>/<engine>/<version>/<operator>_perf.parquet``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from zhenfa import catalog
from zhenfa.errors import ZhenfaError
from zhenfa.estimate.chip import matmul_peak
from zhenfa.estimate.coefficients import LAWS, Library, generation, table_names
from zhenfa.validation.operator_work import LEFT_OUT, OPERATORS, kernel_family, work

CHIPS: Final = (
    "nvidia-a100-sxm-80g", "nvidia-h100-sxm", "nvidia-h200-sxm", "nvidia-b200-sxm", "nvidia-b300-sxm", "nvidia-gb200",
    "nvidia-gb300",
)  # fmt: skip
"""The data-centre chips whose tables the laws are fitted to."""


def known_bad(chip: str, engine: str, version: str, op: str) -> str | None:
    """Return why a table is known to be wrong, or None."""
    if (chip, engine, version) == ("h100_sxm", "sglang", "0.5.6.post2"):
        return "known as bad: an early collection on a card that was not at its clock"
    if chip in {"l40s", "rtx_pro_6000_server", "b60"}:
        return "points above the bandwidth of its memory: measured with a warm cache"
    if (chip, engine, version) == ("h200_sxm", "sglang", "0.5.6.post2") and op.startswith("wideep_deepep"):
        return "a copy of the H100 table"
    if (chip, engine, version) == ("b200_sxm", "vllm", "0.24.0") and op.startswith("mla_") and op.endswith("_module"):
        return "a surrogate, not measured"
    return None


def tables_folder() -> Path:
    """Return the folder of the tables in the installed wheel. Raises :class:`ZhenfaError` if it is not there."""
    found = find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise ZhenfaError(
            "the tables of measured operators are not installed.", hint="pip install aiconfigurator-core==0.12.0"
        )
    return Path(found.submodule_search_locations[0]) / "systems" / "data"


@dataclass(frozen=True)
class Place:
    """One table file."""

    path: Path
    chip: str
    engine: str
    version: str
    op: str


def tables(folder: Path, chips: tuple[str, ...] = CHIPS) -> list[Place]:
    """Return the tables of the operators that the laws describe, without those known as bad."""
    names = {key: chip for key, chip in table_names().items() if chip in chips}
    found = []
    for path in sorted(folder.rglob("*_perf.parquet")):
        parts = path.relative_to(folder).parts
        if len(parts) < 5:
            continue
        chip, _, engine, version, name = parts[-5:]
        op = name.removesuffix("_perf.parquet")
        if chip in names and op in OPERATORS and op not in LEFT_OUT and known_bad(chip, engine, version, op) is None:
            found.append(Place(path, chip, engine, version, op))
    return found


@dataclass
class Part:
    """Rows of one operator: law, data type, precision of the peak, arguments."""

    law: str
    arguments: dict[str, Any]


@dataclass
class Rows:
    """Rows of many operators. All the columns have one length.

    ``place`` is the row's number within its operator's part.
    """

    op: Any
    chip: Any
    engine: Any
    kernel: Any
    dtype: Any
    seconds: Any
    place: Any
    parts: dict[str, Part] = field(repr=False)

    @property
    def operators(self) -> list[str]:
        """Return the operators there are rows of."""
        return sorted(set(self.op.tolist()))

    def column(self, name: str) -> Any:
        """Return one of the columns."""
        return getattr(self, name)

    def law(self, op: str) -> str:
        """Return the name of the law of an operator."""
        return self.parts[op].law

    def arguments(self, op: str, rows: Any) -> dict[str, Any]:
        """Return the law's arguments, coefficients aside, for some rows (their numbers) of one operator."""
        place = self.place[rows]
        return {
            name: value[place] if isinstance(value, np.ndarray) and value.ndim else value
            for name, value in self.parts[op].arguments.items()
        }

    def where(self, which: Any) -> Rows:
        """Return some of the rows."""
        columns = (self.op, self.chip, self.engine, self.kernel, self.dtype, self.seconds, self.place)
        op, chip, engine, kernel, dtype, seconds, place = (column[which] for column in columns)
        return Rows(op, chip, engine, kernel, dtype, seconds, place, self.parts)

    def groups(self) -> Iterator[tuple[tuple[str, str, str, str, str], Any]]:
        """Yield operator, engine, kernel, data type and chip, with the numbers of their rows."""
        columns = (self.op, self.engine, self.kernel, self.dtype, self.chip)
        codes = np.zeros(len(self.seconds), np.int64)
        for column in columns:
            values, code = np.unique(column, return_inverse=True)
            codes = codes * len(values) + code
        order = np.argsort(codes, kind="stable")
        cuts = np.flatnonzero(np.diff(codes[order])) + 1
        for rows in np.split(order, cuts):
            if len(rows):
                op, engine, kernel, dtype, chip = (str(column[rows[0]]) for column in columns)
                yield (op, engine, kernel, dtype, chip), np.sort(rows)


@cache
def hardware(chip: str, precision: str) -> tuple[float, float, float]:
    """Return peak FLOP/s of a precision, bandwidth, and cores (1 where unknown) of an accelerator."""
    accelerator = catalog.accelerator(chip)
    peak = matmul_peak(accelerator, precision)[0]  # type: ignore[arg-type]
    cores = generation(accelerator.id).cores or 1
    return peak, accelerator.memory.bandwidth.require(f"{accelerator.id}.memory.bandwidth"), float(cores)


def _hardware(law: str, chip: Any, precision: Any) -> dict[str, Any]:
    """Return the law's arguments that belong to the chip."""
    pairs = np.char.add(np.char.add(chip, "|"), precision)
    names, code = np.unique(pairs, return_inverse=True)
    found = np.array([hardware(*str(name).split("|")) for name in names])[code]
    wide = np.array([hardware(str(name).split("|")[0], "bf16")[0] for name in names])[code]
    every = {"peak": found[:, 0], "bandwidth": found[:, 1], "cores": found[:, 2], "peak_attention": wide}
    wanted = {
        "matmul": ("peak", "bandwidth", "cores"), "experts": ("peak", "bandwidth", "cores"),
        "prefill": ("peak", "bandwidth", "cores"), "decode": ("peak", "bandwidth"),
        "block": ("peak", "bandwidth", "peak_attention"), "scan": ("peak", "bandwidth"), "stream": ("bandwidth",),
    }  # fmt: skip
    return {name: every[name] for name in wanted[law]}


def describe(op: str, columns: dict[str, Any], chip: Any) -> tuple[Any, Part]:
    """Return data types and law arguments of rows of one operator."""
    asked = work(op, {**columns, "op": np.array([op])})
    size = len(chip)
    arguments = {
        name: np.broadcast_to(np.asarray(value), (size,)).copy() if name != "causal" else value
        for name, value in asked.arguments.items()
    }
    dtype = np.asarray(asked.dtype).astype(str)
    if op in {"dsa_context_module", "dsa_generation_module", "mla_bmm"}:
        dtype = np.char.add(np.char.add(dtype, "/"), np.asarray(columns["op_name"]).astype(str))
    return dtype, Part(asked.law, arguments | _hardware(asked.law, chip, asked.precision))


def predict(rows: Rows, library: Library) -> Any:
    """Return the predicted seconds of every row."""
    result = np.full(len(rows.seconds), np.nan)
    for (op, engine, kernel, dtype, chip), place in rows.groups():
        values = library.find(op, dtype, chip, engine, kernel).values
        result[place] = LAWS[rows.law(op)](**rows.arguments(op, place), **values)
    return result


def read_columns(place: Place, wanted: int | None, random: np.random.Generator) -> dict[str, Any]:
    """Return rows of one table as columns: ``wanted`` random ones, or all."""
    from pyarrow import parquet

    table = parquet.read_table(place.path)
    table = table.filter(_positive(table))
    if wanted is not None and wanted < len(table):
        table = table.take(np.sort(random.choice(len(table), wanted, replace=False)))
    columns: dict[str, Any] = {}
    for name in table.column_names:
        values = table[name].combine_chunks().to_numpy(zero_copy_only=False)
        columns[name] = values.astype(str) if values.dtype == object else values.astype(float)
    return columns


def _positive(table: Any) -> Any:
    from pyarrow import compute

    return compute.greater(table["latency"], 0.0)


def read_rows(folder: Path, per_operator: int | None, seed: int, total: int | None = None) -> Rows:
    """Return random rows of the tables: so many per operator, or so many in all, each row as likely as another."""
    from pyarrow import parquet

    random = np.random.default_rng(seed)
    places = tables(folder)
    sizes = np.array([parquet.ParquetFile(place.path).metadata.num_rows for place in places])
    taken = sizes.copy()
    if total is not None:
        taken = random.multivariate_hypergeometric(sizes, min(total, int(sizes.sum())))
    elif per_operator is not None:
        for op in {place.op for place in places}:
            mine = np.array([place.op == op for place in places])
            whole = sizes[mine].sum()
            taken[mine] = np.minimum(sizes[mine], np.maximum(200, sizes[mine] * per_operator // max(whole, 1)))
    gathered: dict[str, list[dict[str, Any]]] = {}
    for place, count in zip(places, taken.tolist(), strict=True):
        if count == 0:
            continue
        columns = read_columns(place, count, random)
        size = len(columns["latency"])
        columns["chip"] = np.full(size, table_names()[place.chip])
        columns["engine"] = np.full(size, place.engine)
        gathered.setdefault(place.op, []).append(columns)
    return _rows(gathered)


def _rows(gathered: dict[str, list[dict[str, Any]]]) -> Rows:
    stacks: dict[str, list[Any]] = {
        name: [] for name in ("op", "chip", "engine", "kernel", "dtype", "seconds", "place")
    }
    parts: dict[str, Part] = {}
    for op in sorted(gathered):
        columns = _stack(gathered[op])
        size = len(columns["latency"])
        dtype, parts[op] = describe(op, columns, columns["chip"])
        sources, code = np.unique(columns["kernel_source"], return_inverse=True)
        families = np.array([kernel_family(op, str(source)) for source in sources])[code]
        found = {
            "op": np.full(size, op), "chip": columns["chip"], "engine": columns["engine"], "kernel": families,
            "dtype": dtype, "seconds": 1e-3 * columns["latency"], "place": np.arange(size),
        }  # fmt: skip
        for name, values in found.items():
            stacks[name].append(values)
    return Rows(**{name: np.concatenate(values) for name, values in stacks.items()}, parts=parts)


def _stack(tables: list[dict[str, Any]]) -> dict[str, Any]:
    names = sorted(set().union(*tables))
    stacked = {}
    for name in names:
        text = any(name in table and table[name].dtype.kind == "U" for table in tables)
        missing: Any = "" if text else np.nan
        stacked[name] = np.concatenate(
            [table[name] if name in table else np.full(len(table["latency"]), missing) for table in tables]
        )
    return stacked
