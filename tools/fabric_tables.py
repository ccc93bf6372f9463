"""Measured communication tables that ship inside the wheel ``aiconfigurator-core`` (Apache-2.0), as plain rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

OPERATIONS: Final = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}

BAD: Final = (("h100_sxm", "0.5.6.post2"), ("h200_sxm", "0.5.6.post2"))
"""Tables left out: known to be wrong on the first, a copy of the first on the second."""


@dataclass(frozen=True)
class Timing:
    """One measured time of a collective: ``bytes`` in the full buffer of a card."""

    system: str
    version: str
    operation: str
    ranks: int
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Exchange:
    """One measured dispatch or combine on ``ranks`` cards over ``nodes``."""

    system: str
    library: str
    phase: str
    ranks: int
    nodes: int
    tokens: int
    hidden: int
    top_k: int
    experts: int
    bytes_per_element: float
    low_latency: bool
    seconds: float


def root() -> Path:
    """Return the folder of the wheel's tables; a plain message where the wheel is not installed."""
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install aiconfigurator-core==0.12.0 --no-deps: its tables are what is fitted")
    return Path(next(iter(found.submodule_search_locations))) / "systems" / "data"


def _tables(name: str) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
    from pyarrow import parquet

    for path in sorted(root().glob(f"*/comm/*/*/{name}")):
        system, _, framework, version = path.parts[-5:-1]
        if (system, version) not in BAD:
            yield system, framework, version, parquet.read_table(path).to_pylist()


def collectives() -> list[Timing]:
    """Return every NCCL time with half-precision elements; the newest version of each system comes last."""
    rows = []
    for system, framework, version, table in _tables("nccl_perf.parquet"):
        if framework != "nccl":
            continue
        for row in table:
            if row["nccl_dtype"] == "half" and row["latency"] > 0:
                name = OPERATIONS[row["op_name"]]
                size = 2.0 * row["message_size"]
                rows.append(Timing(system, version, name, row["num_gpus"], size, 1e-3 * row["latency"]))
    return rows


def direct_all_reduces() -> list[Timing]:
    """Return every time of the engines' own all-reduce kernels replayed from a graph, bfloat16, up to 8 MiB."""
    rows = []
    for system, framework, version, table in _tables("custom_allreduce_perf.parquet"):
        for row in table:
            size = 2.0 * row["message_size"]
            kernel = str(row.get("kernel_source")).casefold()
            library = (
                system.startswith("gb") and row["num_gpus"] > 4 and "mnnvl" not in kernel
            )  # what engines fall back to
            if row["latency"] <= 0 or "eager" in kernel or library:
                continue
            if size <= 2**23 and row["allreduce_dtype"] == "bfloat16":
                name = f"{framework} {version}"
                rows.append(Timing(system, name, "direct", row["num_gpus"], size, 1e-3 * row["latency"]))
    return rows


def exchanges() -> list[Exchange]:
    """Return DeepEP's times inside one node: low latency, and forwarding with the most multiprocessors measured."""
    rows = []
    for name, low in (("wideep_deepep_ll_perf.parquet", True), ("wideep_deepep_normal_perf.parquet", False)):
        for system, framework, version, table in _tables(name):
            ranks = 4 if system.startswith("gb") else 8
            most = 0 if low else max(row["dispatch_sms"] for row in table)
            for row in table:
                if row["node_num"] != 1 or row["num_topk"] < 4 or (not low and row["dispatch_sms"] != most):
                    continue
                for phase, width in (("dispatch", 1.03125), ("combine", 2.0)):
                    key = f"{phase}_avg_t_us" if low else f"{phase}_transmit_us"
                    spent = row[key] + (0.0 if low else row[f"{phase}_notify_us"])
                    rows.append(
                        Exchange(
                            system, f"{framework} {version}", phase, ranks, 1, row["num_token"], row["hidden_size"],
                            row["num_topk"], row["num_experts"], width, low, 1e-6 * spent,
                        )
                    )  # fmt: skip
    return rows
