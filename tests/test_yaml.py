"""Ordinary YAML and JSON: what is read, where it stands, and that what is written is read back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa.errors import DocumentError, InputError
from zhenfa.spec import yaml, yaml_reader


def test_a_document_of_very_many_items_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_reader, "MAX_YAML_NODES", 1000)
    with pytest.raises(DocumentError, match="the document has more than 1,000 items"):
        yaml.read("- 1\n" * 1001, "f")
    assert yaml.read("- 1\n" * 999, "f")[0] == [1] * 999


def test_json_too_large_for_the_yaml_reader_is_read_and_its_faults_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "MAX_YAML_BYTES", 100)
    big = {"a": "x" * 200, "b": [1, 2]}
    data, places = yaml.read(json.dumps(big), "f")
    assert data == big
    assert places.find(("a",)) == (None, None)
    for text, message in (
        ('{"a" 1}' + " " * 200, "f:1:6: this is not JSON: Expecting ':' delimiter."),
        ('{"a": 1, "a": 2}' + " " * 200, "f: this JSON is not read: a key is given twice."),
        ('{"a": NaN}' + " " * 200, "f: this JSON is not read: 'NaN' is not a finite number."),
        ('{"a": ' + "9" * 200 + "}", "f: this JSON is not read: a number of 200 digits is longer than 100."),
        ("[" * 200 + "]" * 200, "f: this JSON is not read: it has more than 40 levels or 400,000 items."),
    ):
        with pytest.raises(DocumentError) as caught:
            yaml.read(text, "f")
        assert str(caught.value).startswith(message)


READ: list[tuple[str, Any]] = [
    ("a: no", {"a": "no"}),
    ("a: yes", {"a": "yes"}),
    ("a: off", {"a": "off"}),
    ("a: true", {"a": True}),
    ("a: FALSE", {"a": False}),
    ("a: tRue", {"a": "tRue"}),
    ("a: 12:30", {"a": "12:30"}),
    ("a: 12:30:45", {"a": "12:30:45"}),
    ("a: 1e9", {"a": 1e9}),
    ("a: 1E-3", {"a": 1e-3}),
    ("a: 0o17", {"a": 15}),
    ("a: 017", {"a": 17}),
    ("a: 0x1F", {"a": 31}),
    ("a: 0b11", {"a": "0b11"}),
    ("a: 1_000", {"a": "1_000"}),
    ("a: +5", {"a": 5}),
    ("a: -0", {"a": 0}),
    ("a: .5", {"a": 0.5}),
    ("a: 5.", {"a": 5.0}),
    ("a: .", {"a": "."}),
    ("a:\n- ", {"a": [None]}),
    ("a: 1e", {"a": "1e"}),
    ("a: nan", {"a": "nan"}),
    ("a: inf", {"a": "inf"}),
    ("a: 2024-01-01", {"a": "2024-01-01"}),
    ("a: 2024-01-01T00:00:00Z", {"a": "2024-01-01T00:00:00Z"}),
    ("a: ~", {"a": None}),
    ("a: Null", {"a": None}),
    ("a:", {"a": None}),
    ("a: ''", {"a": ""}),
    ("a: '5'", {"a": "5"}),
    ('a: "true"', {"a": "true"}),
    ("a: <<", {"a": "<<"}),
    ("'<<': 1", {"<<": 1}),
    ("1: 2", {"1": 2}),
    ("true: 2", {"true": 2}),
    ("~: 2", {"~": 2}),
    (": 2", {"": 2}),
    ("a: 64 GB", {"a": "64 GB"}),
    ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ("a: >-\n  two\n  lines\n", {"a": "two lines"}),
    ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ("&k a: 1\nb: *k", {"a": 1, "b": "a"}),
    ("a: 阵法", {"a": "阵法"}),
    ('a: "\\u9635\\ud83d\\ude00"', {"a": "阵😀"}),
    ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
    ('{"a":1,"b":[true,null,1.5e3]}', {"a": 1, "b": [True, None, 1500.0]}),
    ('{\n\t"a": 1\n}', {"a": 1}),
    ('{a: 1, "b": 2} # not JSON', {"a": 1, "b": 2}),
    ("[1, 2]", [1, 2]),
    ("just text", "just text"),
    ("5", 5),
    ("---\na: 1\n...\n", {"a": 1}),
    ("%YAML 1.2\n---\na: 1", {"a": 1}),
    ("a: 1 # comment", {"a": 1}),
    ("a: b#c", {"a": "b#c"}),
    ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ("\ufeffa: 1", {"a": 1}),
    ("---", None),
    ("[" * 40 + "]" * 40, json.loads("[" * 40 + "]" * 40)),
]


@pytest.mark.parametrize(("text", "data"), READ)
def test_ordinary_text_is_read_by_yaml_1_2(text: str, data: Any) -> None:
    for form in (text, text.encode(), b"\xef\xbb\xbf" + text.removeprefix("\ufeff").encode()):
        read = yaml.read(form, "f")[0]
        assert read == data
        assert repr(read) == repr(data)


def test_every_key_and_value_has_its_place() -> None:
    text = "a: 1\nb:\n  - c: 2\n    d: [x, {e: 3}]\n  - 4\n"
    _, places = yaml.read(text, "f")
    assert places.find(("a",)) == (1, 4)
    assert places.find(("b", 0, "d"), key=True) == (4, 5)
    assert places.find(("b", 0, "d", 1, "e")) == (4, 16)
    assert places.find(("b", 1)) == (5, 5)
    assert places.find(("b", 0, "nowhere", 5)) == (3, 5)
    assert places.find(()) == (1, 1)
    assert yaml.Positions("f").find(("a",)) == (None, None)


def test_json_keys_have_their_places_too() -> None:
    _, places = yaml.read('{"a": 1,\n "b": [5, {"c": 2}]}', "f")
    assert places.find(("b",), key=True) == (2, 2)
    assert places.find(("b", 1, "c")) == (2, 17)


def test_what_an_alias_names_has_the_place_of_the_anchor() -> None:
    _, places = yaml.read("a: &x {b: 1}\nc: *x\n", "f")
    assert places.find(("c", "b")) == (1, 11)
    assert places.find(("c",), key=True) == (2, 1)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), max_size=60)
TRAPS = st.sampled_from([
    "no", "yes", "~", "null", "1e9", "0o17", "017", "12:30", "2024-01-01", "a: b", "- a", " a", "a ", "#x", "a #b",
    "<<", "&a", "*a", "!t", "@", "`", "%", "'", "\"", "a\nb", "a\tb", "\n", " ", "", "?", "- ", "=", "1_000", ".5",
    ".inf", ".nan", "+1", "0x1F", "-", "--- a", "...", "\ufeff", "\u00e9", "[", "]", "{", "}", ",", "a,b", ":", "a:",
    ":a", "True", "\u2028", "\\", "\\n", "a\r\nb", "y", "N", "0", "-0", "1.", "1e5", "\u0085",
    "x" * 130, "x" * 255,
])  # fmt: skip
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT | TRAPS
PLAIN_DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT | TRAPS, inner, max_size=5), max_leaves=15
)


@settings(max_examples=300)
@given(PLAIN_DATA)
def test_what_is_written_is_read_back(data: Any) -> None:
    again = yaml.read(yaml.write(data), "f")[0]
    assert again == data
    assert repr(again) == repr(data)  # 1 is not 1.0, nor True


@settings(max_examples=150)
@given(st.dictionaries(TEXT | TRAPS, PLAIN_DATA, max_size=3), st.booleans(), st.sampled_from([None, 2, "\t"]))
def test_json_is_read_alike_by_both_readers(data: Any, ascii_only: bool, indent: int | str | None) -> None:
    text = json.dumps(data, ensure_ascii=ascii_only, indent=indent)
    if "\u2028" in text or "\x85" in text:  # refused as characters, read as escapes
        return
    fast, slow = yaml.read(text, "f")[0], yaml.read("--- " + text, "f")[0]
    assert repr(fast) == repr(slow) == repr(data)


@settings(max_examples=500)
@given(st.text(max_size=200) | st.binary(max_size=200) | st.lists(TRAPS | TEXT, max_size=30).map(" ".join))
def test_any_text_is_read_or_refused_with_exit_code_2(text: str | bytes) -> None:
    try:
        data, places = yaml.read(text, "f")
    except DocumentError as problem:
        assert problem.message.startswith("f:")  # noqa: PT017
        assert problem.message.isprintable()  # noqa: PT017
        return
    assert yaml.unreadable(data) is None
    for path, _ in yaml.walk(data):
        assert places.find(path) != (None, None)


@given(PLAIN_DATA)
def test_walk_visits_parents_first_and_everything_once(data: Any) -> None:
    paths = [path for path, _ in yaml.walk(data)]
    assert len(set(map(repr, paths))) == len(paths)
    seen: set[str] = set()
    for path in paths:
        assert not path or repr(path[:-1]) in seen
        seen.add(repr(path))


def test_written_text_is_for_people() -> None:
    data = {
        "name": "mixed pool",
        "flag": True,
        "none": None,
        "no": "no",
        "empty": [],
        "pools": [
            {"name": "a", "count": 384},
            {"name": "b", "memory": {"capacity": {"value": 64.0, "unit": "GB"}}, "tiers": [1, 2.5, "x: y"]},
        ],
        "long": ["x" * 70, "y" * 60],
        "z" * 120: {},
    }
    assert yaml.write(data) == (
        "name: mixed pool\n"
        "flag: true\n"
        "none: null\n"
        '"no": "no"\n'
        "empty: []\n"
        "pools:\n"
        "  - {name: a, count: 384}\n"
        "  - name: b\n"
        "    memory:\n"
        "      capacity: {value: 64.0, unit: GB}\n"
        '    tiers: [1, 2.5, "x: y"]\n'
        "long:\n"
        f"  - {'x' * 70}\n"
        f"  - {'y' * 60}\n"
        f"{'z' * 120}: {{}}\n"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_written(value: float) -> None:
    with pytest.raises(InputError, match="is not a finite number and cannot be written"):
        yaml.write({"a": value})
