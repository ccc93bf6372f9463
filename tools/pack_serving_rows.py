"""Write the packaged serving rows: ``python tools/pack_serving_rows.py [--later] ROWS.jsonl``.

Kept are rows whose figures stand in a licensed repository, in a maker's documentation, or in a paper; left out are
those of public benchmark runs, of web logs and of sources whose licence is not stated. ``--later`` writes rows that
were found after the coefficients were fitted, marked ``split: held-out``: they are used in no fit of a law.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

from zhenfa.validation.rows import MEASUREMENTS

TARGET = MEASUREMENTS / "serving.jsonl"
LATER = MEASUREMENTS / "serving_later.jsonl.gz"

NOT_QUOTED = (
    "InferenceX public run", "lmsys.org", "ROCm/ATOM", "third-party GitHub report", "EXO Labs", "DeepEP README",
    "vLLM blog", "FlagPerf",
)  # fmt: skip

NOT_NEEDED = ("group",)

SIMULATED = re.compile("sim(_|$)")
"""What another simulator says of a row."""

OWN_FOLDER = re.compile(r"(?<=\s)/[\w.-]+/(?=[A-Z])")
"""The folder in which somebody kept a model, in a quoted command."""


def may_be_packaged(row: dict[str, Any]) -> bool:
    """Return whether a row's figures stand where they may be quoted from; rows of single operators are kept apart."""
    return row.get("kind") != "op" and not any(mark in row["source"] for mark in NOT_QUOTED)


def packed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as measured, without the words about how it was read and where its author kept things."""
    row = {key: value for key, value in row.items() if value is not None and key not in NOT_NEEDED}
    row["source"] = row["source"].split("; read via")[0]
    row["metrics"] = {name: value for name, value in row["metrics"].items() if not SIMULATED.search(name)}
    return row | {"notes": OWN_FOLDER.sub("", row["notes"])} if row.get("notes") else row


def main() -> None:
    """Read the rows named on the command line and write the packaged file."""
    later = "--later" in sys.argv
    names = [name for name in sys.argv[1:] if name != "--later"]
    lines = [line for name in names for line in Path(name).read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in lines if line.strip()]
    kept = [packed(row) for row in rows if may_be_packaged(row)]
    if later:
        kept = [row | {"split": "held-out", "group": _alike(row)} for row in kept]
    target = LATER if later else TARGET
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode()
    target.write_bytes(gzip.compress(text, mtime=0) if later else text)
    sys.stderr.write(f"{len(kept)} of {len(rows)} rows kept in {target.name}\n")


def _alike(row: dict[str, Any]) -> str:
    """Return what rows that are likely to be off together share."""
    return "|".join(str(one) for one in (row["hardware"]["accelerator"], row["model"], row.get("engine")))


if __name__ == "__main__":
    main()
