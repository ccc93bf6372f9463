"""The page of validation: as its numbers stand, and its numbers as the laws stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from test_docs_laws import tool
from zhenfa.validation import kinds

DOCS = Path(__file__).parent.parent / "docs"
PAGE = tool("make_validation_page")
FOUND: dict[str, Any] = json.loads((DOCS / "validation.json").read_text(encoding="utf-8"))
LARGE = 40
EVEN = ("reliability", "energy")
"""Kinds with many rows that agree to the last digit: test vectors of formulas, dense sweeps over one model."""
MOVED = 0.02
"""How far the median of a few rows may have moved since the page was written, and their p90 three times that."""


def test_the_page_says_what_was_found() -> None:
    assert (DOCS / "validation.md").read_text(encoding="utf-8") == PAGE.page(FOUND), "run tools/make_docs.py"
    for kind in FOUND["kinds"]:
        assert (DOCS / "images" / f"validation-{kind}.png").stat().st_size < 400_000


@pytest.mark.parametrize("name", PAGE.READMES)
def test_the_readme_shows_what_was_found(name: str) -> None:
    text = (DOCS.parent / name).read_text(encoding="utf-8")
    assert PAGE.MARKS[0] in text
    assert text == PAGE.filled(text, PAGE.accuracy(FOUND, PAGE.READMES[name])), "run tools/make_docs.py"


def test_every_kind_is_there() -> None:
    assert set(FOUND["kinds"]) == set(kinds.KINDS)


def test_four_of_five_measurements_lie_in_their_band() -> None:
    for kind, counts in FOUND["kinds"].items():
        most = 0.90 if kind in EVEN else 0.85
        assert 0.75 <= counts["coverage"] <= most, kind
    for name, one in FOUND["groups"].items():
        if one["n"] >= LARGE and one["aim"]:
            assert one["coverage"] == pytest.approx(0.80, abs=0.05), name


def test_what_was_found_still_holds() -> None:
    now = PAGE.sample()
    stale = "run: python tools/make_docs.py --validation"
    assert now.keys() == FOUND["sample"].keys(), stale
    for kind, old in FOUND["sample"].items():
        assert now[kind]["n"] == old["n"], f"{kind}: {stale}"
        assert now[kind]["median"] == pytest.approx(old["median"], abs=MOVED), f"{kind}: {stale}"
        assert now[kind]["p90"] == pytest.approx(old["p90"], abs=3 * MOVED), f"{kind}: {stale}"


def test_the_row_in_the_guide_is_predicted() -> None:
    guide = (DOCS / "guide" / "validating.md").read_text(encoding="utf-8")
    shown = re.search(r"```json\n(.*?)```", guide, flags=re.DOTALL)
    assert shown is not None
    row = json.loads(shown[1])
    kind = kinds.kind_of(row)
    assert kind == "train"
    (outcome,) = kinds.outcomes(row, kind, "guide")
    assert outcome.ratio is not None
    assert 0.5 < outcome.ratio < 2
