"""Write the packaged training rows: ``python tools/pack_training_rows.py ROWS.jsonl [--to training_later]``.

Kept are facts that stand in a public repository with a licence that lets them be quoted: id, tier, source, model,
layout, hardware, metrics. Left out: rows recalled from memory or read in search results, figures that stand only in a
repository's history (their owner took them out), share-alike texts, and columns about unnamed hardware.
``training_later`` holds rows found after the first: those with ``split: held-out`` are used in no fit.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from zhenfa.validation.rows import MEASUREMENTS

KEPT = (
    "id", "tier", "evidence", "task", "source", "model", "precision", "hardware", "parallel", "metrics",
    "flops_convention", "software", "notes", "check", "split",
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
    """Read the rows named on the command line and write a packaged file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--to", default="training")
    given = parser.parse_args()
    target = MEASUREMENTS / f"{given.to}.jsonl.gz"
    lines = [line for name in given.rows for line in name.read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in lines if line.strip()]
    kept = [packed(row) for row in rows if may_be_packaged(row)]
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in kept)
    target.parent.mkdir(exist_ok=True)
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packing:
        packing.write(text.encode())
    print(f"{len(kept)} of {len(rows)} rows, {target.stat().st_size:,} bytes, in {target}")


if __name__ == "__main__":
    main()
