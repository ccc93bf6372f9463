"""Write the packaged sample of measured operators: ``python tools/pack_operator_rows.py [--points 10000] [--seed 7]``.

Draws rows of the wheel's tables, each as likely as another, with a seed that the fit does not use.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

from zhenfa.validation.operator import read_tables
from zhenfa.validation.operator_tables import tables_folder
from zhenfa.validation.rows import MEASUREMENTS


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tables", type=Path, default=None)
    options = parser.parse_args()
    records = read_tables(options.tables or tables_folder(), options.points, options.seed)
    for number, record in enumerate(records):
        record["id"] = f"op-{number:05}"
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    target = MEASUREMENTS / "operators.jsonl.gz"
    with target.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text.encode())
    print(f"wrote {len(records)} rows, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
