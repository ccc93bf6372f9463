"""The quick reader of plain YAML reads what the whole reader reads, or leaves it to that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zhenfa.catalog import files
from zhenfa.errors import DocumentError
from zhenfa.spec import yaml
from zhenfa.spec.yaml_plain import read_plain
from zhenfa.spec.yaml_reader import Reader

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))
TEXTS = [path.read_text(encoding="utf-8") for path in EXAMPLES]

PIECES = st.sampled_from([
    "\n", "\n  ", "\n- ", "\n  - ", "\n\n", " ", ": ", ":", "- ", "-", ", ", "# x", " # x", "{", "}", "[", "]", '"',
    "'", "a", "key", "a: 1", "b: x y", "c:", "~", "null", "no", "1e9", "0x1F", "12:30", "1_000", ".5", ".inf", "---",
    "...",
    "&a", "*a", "!x", "|", ">-", "?", "%", "<<: ", "\\", "+", "=", "é", "\t", "{a: 1, b: [x, y]}", "[1, 2 GB]", "'it'",
    '"q"', "10 GB/s", "a.b", "-1", "--", "y", "@", "`",
])  # fmt: skip


@st.composite
def edited(draw: st.DrawFn) -> str:
    """Return an example with a few pieces put in, left out or doubled."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 2, 8])))
        text = text[:start] + draw(PIECES) + text[end:]
    return text


def _same(text: str) -> bool:
    """Check one text against the whole reader; return whether it was plain."""
    found = read_plain(text)
    if found is None:
        return False
    whole: Any = Reader("f").read(text)
    assert repr(found) == repr(whole), text
    return True


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_read_quickly_and_alike(path: Path) -> None:
    assert _same(path.read_text(encoding="utf-8"))


def test_packaged_files_are_read_alike() -> None:
    paths = [*files.paths("machines"), *files.paths("models"), *files.paths("systems"), *files.paths(".")]
    plain = [path.name for path in paths if _same(path.read_text(encoding="utf-8"))]
    assert len(plain) > len(paths) / 3


@settings(max_examples=600, deadline=None)
@given(edited())
def test_an_edited_example_is_read_alike_or_left_to_the_whole_reader(text: str) -> None:
    if yaml.find_control(text) is None:
        _same(text)


@settings(max_examples=1500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join))
@example("a:\n- b: 1\n  c:\n  - 2\nd: {e: [], f: {}}")
@example("a: 1\n  # comment\n  b")
@example("a:\n  b: 1\n c: 2")
@example("a: 'x' # y\n'b c': \"z\"")
@example("a: [x, 1 # ]")
@example("a: b -\nc: - d")
def test_any_text_of_such_pieces_is_read_alike_or_left(text: str) -> None:
    _same(text)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b c", "no", "1", "k.l"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y z"]), inner, max_size=3),
    max_leaves=8,
), max_size=3))  # fmt: skip
def test_what_is_written_is_read_alike_or_left(data: dict[str, Any]) -> None:
    _same(yaml.write(data))


def test_a_fault_in_a_plain_document_keeps_its_place() -> None:
    text = TEXTS[EXAMPLES.index(next(path for path in EXAMPLES if path.name == "llama3-70b-train.yaml"))]
    data, positions = yaml.read(text, "f")
    assert read_plain(text) == data
    assert positions.find(("workload", "precision")) == places_of(text)[("workload", "precision")]
    with pytest.raises(DocumentError, match=r"f:3:1: .*given twice; the first is on line 2"):
        yaml.read("\na: 1\na: 2\n", "f")


def places_of(text: str) -> dict[yaml.Path, tuple[int, int]]:
    reader = Reader("f")
    reader.read(text)
    return reader.positions.values
