"""Write the packaged training rows: ``python tools/pack_training_rows.py ROWS.jsonl``.

Kept are facts that stand in a public repository with a licence that lets them be quoted: id, tier, source, model,
layout, hardware, metrics. Left out: rows recalled from memory or read in search results, figures that stand only in a
repository's history (their owner took them out), share-alike texts, and columns about unnamed hardware.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from zhenfa.validation.rows import MEASUREMENTS

TARGET = MEASUREMENTS / "training.jsonl.gz"

KEPT = (
    "id", "tier", "evidence", "task", "source", "model", "precision", "hardware", "parallel", "metrics",
    "flops_convention", "software", "notes", "check",
)  # fmt: skip
CHECKED = ("mflop_causal_tf_per_tok", "mflop_full_tf_per_tok", "tok_s_dev_from_tf")
NOT_QUOTED = ("git history", "ml-engineering", "search excerpt", "from memory", "InferenceX public run")


def may_be_packaged(row: dict[str, Any]) -> bool:
    """Return whether a row's figures stand where they may be quoted from."""
    source, notes = json.dumps(row.get("source", "")), str(row.get("notes") or "")
    if not str(row.get("evidence", "")).startswith("repo-") or any(mark in source for mark in NOT_QUOTED):
        return False
    return "-C500" not in str(row.get("id")) or "redacted" not in notes


def packed(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a row needs to be predicted and checked."""
    kept = {key: row[key] for key in KEPT if key in row}
    kept["metrics"] = {key: value for key, value in row["metrics"].items() if not key.startswith("reference_")}
    kept["check"] = {key: value for key, value in row.get("check", {}).items() if key in CHECKED}
    if "redacted" in str(kept.get("notes")):
        kept["notes"] = "GAS 1."
    return kept


def main() -> None:
    """Read the rows named on the command line and write the packaged file."""
    lines = [line for name in sys.argv[1:] for line in Path(name).read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in lines if line.strip()]
    kept = [packed(row) for row in rows if may_be_packaged(row)]
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in kept)
    TARGET.parent.mkdir(exist_ok=True)
    with TARGET.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packing:
        packing.write(text.encode())
    print(f"{len(kept)} of {len(rows)} rows, {TARGET.stat().st_size:,} bytes, in {TARGET}")


if __name__ == "__main__":
    main()
