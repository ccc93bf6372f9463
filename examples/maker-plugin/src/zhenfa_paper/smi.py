"""``paper-smi``: the tool that a maker ships with its driver."""

from __future__ import annotations


def main() -> None:
    """Print the cards: index, name, MiB, W, %."""
    print("PAPER-SMI 1.0")
    for index in range(2):
        print(f"{index} PaperCard-A4 8192 {5 + index}.0 {10 * index}")
