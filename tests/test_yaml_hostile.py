"""Hostile YAML and JSON: every text is refused, in exactly these words."""

from __future__ import annotations

import pytest

from zhenfa.errors import DocumentError
from zhenfa.spec import yaml

NO_TAGS = "write plain values without '!'."
PLAIN_KEYS = "merges ('<<') and nested keys are not read."
CLOSE = "something that was opened is not closed."
INDENT = "check the indentation, and put text that begins with a quote in quotes as a whole."
COLON = "check the indentation, and put text that holds ': ' in quotes."
UNKNOWN = "leave the key out, or write null, if it is unknown."
UTF_8 = "save the file as UTF-8."
SPACES = "indent with spaces, not with tabs."

# name, text, message, hint
HOSTILE: list[tuple[str, str | bytes, str, str | None]] = [
    (
        "billion laughs",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
        "f:1:11: the document unfolds to more than 100,000 items.",
        "do without anchors.",
    ),
    (
        "quadratic blow-up",
        "a: &a [" + ", ".join(["x"] * 400) + "]\nb: [" + ", ".join(["*a"] * 400) + "]\n",
        "f:1:452: the document unfolds to more than 100,000 items.",
        "do without anchors.",
    ),
    ("anchor that holds itself", "a: &a [1, *a]\n", "f:1:11: the anchor 'a' holds itself.", "do without anchors."),
    ("alias without an anchor", "a: *nobody\n", "f:1:4: no anchor 'nobody' stands before this alias.", None),
    ("alias before its anchor", "a: *x\nb: &x 1\n", "f:1:4: no anchor 'x' stands before this alias.", None),
    ("list as a key by alias", "a: &a [1]\n*a : 2\n", "f:1:4: a key must be plain text.", PLAIN_KEYS),
    (
        "python object",
        "a: !!python/object:os.system [ls]\n",
        "f:1:4: the tag '!!python/object:os.system' is not read.",
        NO_TAGS,
    ),
    (
        "python object apply",
        "a: !!python/object/apply:os.system ['ls']\n",
        "f:1:4: the tag '!!python/object/apply:os.system' is not read.",
        NO_TAGS,
    ),
    ("python name", "a: !!python/name:os.system\n", "f:1:4: the tag '!!python/name:os.system' is not read.", NO_TAGS),
    ("binary", "a: !!binary aGVsbG8=\n", "f:1:4: the tag '!!binary' is not read.", NO_TAGS),
    ("own tag", "a: !foo 1\n", "f:1:4: the tag '!foo' is not read.", NO_TAGS),
    ("bare tag", "a: ! 1\n", "f:1:4: the tag '!' is not read.", NO_TAGS),
    ("tag on the whole document", "!foo\na: 1\n", "f:1:1: the tag '!foo' is not read.", NO_TAGS),
    ("tag on a mapping", "a: !!map {b: 1}\n", "f:1:4: the tag '!!map' is not read.", NO_TAGS),
    ("explicit text", "a: !!str 5\n", "f:1:4: the tag '!!str' is not read.", NO_TAGS),
    ("explicit integer", "a: !!int '5'\n", "f:1:4: the tag '!!int' is not read.", NO_TAGS),
    ("explicit set", "a: !!set {b, c}\n", "f:1:4: the tag '!!set' is not read.", NO_TAGS),
    ("explicit ordered mapping", "a: !!omap [b: 1]\n", "f:1:4: the tag '!!omap' is not read.", NO_TAGS),
    ("explicit timestamp", "a: !!timestamp 2024-01-01\n", "f:1:4: the tag '!!timestamp' is not read.", NO_TAGS),
    ("verbatim tag", "a: !<tag:yaml.org,2002:int> 5\n", "f:1:4: the tag '!!int' is not read.", NO_TAGS),
    (
        "tag directive",
        "%TAG !e! tag:example.com,2024:\n---\na: !e!x 1\n",
        "f:3:4: the tag 'tag:example.com,2024:x' is not read.",
        NO_TAGS,
    ),
    (
        "undefined tag handle",
        "a: !e!x 1\n",
        "f:1:4: this is not YAML: while parsing a node found undefined tag handle '!e!'.",
        None,
    ),
    ("endless tag", "a: !" + "x" * 200_000 + " 1\n", "f: a tag of more than 1,000 characters is not read.", None),
    (
        "duplicate key",
        "a: 1\nb: 2\na: 3\n",
        "f:3:1: 'a' is given twice; the first is on line 1.",
        "keep one of the two.",
    ),
    (
        "duplicate key, quoted once",
        "a: 1\n'a': 2\n",
        "f:2:1: 'a' is given twice; the first is on line 1.",
        "keep one of the two.",
    ),
    (
        "duplicate key deep in a flow",
        "a: {b: [{c: 1, c: 2}]}\n",
        "f:1:16: 'c' is given twice; the first is on line 1.",
        "keep one of the two.",
    ),
    (
        "duplicate key in JSON",
        '{"a": 1, "b": {"c": 1, "c": 2}}',
        "f:1:24: 'c' is given twice; the first is on line 1.",
        "keep one of the two.",
    ),
    ("merge key", "a: &a {b: 1}\nc:\n  <<: *a\n  d: 2\n", "f:3:3: a key must be plain text.", PLAIN_KEYS),
    ("complex key", "? [a, b]\n: 1\n", "f:1:3: a key must be plain text.", PLAIN_KEYS),
    ("mapping as a key", "{{a: 1}: 2}\n", "f:1:2: a key must be plain text.", PLAIN_KEYS),
    ("key without end", "x" * 300 + ": 1\n", "f:1:1: a key of 300 characters is longer than 256.", None),
    (
        "key of 100,000 characters",
        '"' + "x" * 100_000 + '": 1\n',
        "f:1:1: a text of 100,000 characters is longer than 65,536.",
        None,
    ),
    (
        "key of ten megabytes",
        '"' + "x" * 10_000_000 + '": 1\n',
        "f: 10,000,006 bytes is more than the 8,388,608 that are read.",
        None,
    ),
    (
        "text of 100,000 characters",
        "a: " + "x" * 100_000 + "\n",
        "f:1:4: a text of 100,000 characters is longer than 65,536.",
        None,
    ),
    (
        "file of nine megabytes",
        "a: 1\n" + "# padding\n" * 900_000,
        "f: 9,000,005 bytes is more than the 8,388,608 that are read.",
        None,
    ),
    (
        "YAML of three megabytes",
        "a: 1\n" + "# padding\n" * 300_000,
        "f: 3,000,005 characters of YAML is more than the 2,097,152 that are read.",
        "write it as JSON, which is read faster.",
    ),
    (
        "tab as indentation",
        "a:\n\tb: 1\n",
        "f:2:1: this is not YAML: while scanning for the next token found character '\\t' that cannot start any token.",
        SPACES,
    ),
    (
        "tab after a key",
        "a:\tb: 1\n",
        "f:1:3: this is not YAML: while scanning for the next token found character '\\t' that cannot start any token.",
        SPACES,
    ),
    ("deep flow lists", "a: " + "[" * 5_000, "f:1:43: the document is nested deeper than 40 levels.", None),
    ("deep flow mappings", "{a: " * 5_000, "f:1:161: the document is nested deeper than 40 levels.", None),
    ("deep block lists", "- " * 5_000, "f:1:81: the document is nested deeper than 40 levels.", None),
    (
        "deep block mappings",
        "".join(" " * i + "a:\n" for i in range(60)),
        "f:41:41: the document is nested deeper than 40 levels.",
        None,
    ),
    ("deep JSON", "[" * 5_000 + "]" * 5_000, "f:1:41: the document is nested deeper than 40 levels.", None),
    ("JSON nested 41 deep", "[" * 41 + "]" * 41, "f:1:41: the document is nested deeper than 40 levels.", None),
    (
        "unclosed list",
        "a: [1, 2\n",
        "f:2:1: this is not YAML: while parsing a flow sequence expected ',' or ']', but got '<stream end>'.",
        CLOSE,
    ),
    (
        "unclosed mapping",
        "a: {b: 1\n",
        "f:2:1: this is not YAML: while parsing a flow mapping expected ',' or '}', but got '<stream end>'.",
        CLOSE,
    ),
    (
        "unclosed quote",
        'a: "b\n',
        "f:2:1: this is not YAML: while scanning a quoted scalar found unexpected end of stream.",
        CLOSE,
    ),
    (
        "unclosed JSON",
        '{"a": 1',
        "f:1:8: this is not YAML: while parsing a flow mapping expected ',' or '}', but got '<stream end>'.",
        CLOSE,
    ),
    (
        "stray bracket",
        "a: ]\n",
        "f:1:4: this is not YAML: while parsing a block node expected the node content, but found ']'.",
        None,
    ),
    ("colon in plain text", "a: b: c\n", "f:1:5: this is not YAML: mapping values are not allowed here.", COLON),
    (
        "percent at the start of text",
        "a: %b\n",
        "f:1:4: this is not YAML: while scanning for the next token found character '%' that cannot start any token.",
        "put the text in quotes.",
    ),
    (
        "at sign at the start of text",
        "a: @b\n",
        "f:1:4: this is not YAML: while scanning for the next token found character '@' that cannot start any token.",
        "put the text in quotes.",
    ),
    ("wrong indentation", "a: 1\n  b: 2\n", "f:2:4: this is not YAML: mapping values are not allowed here.", COLON),
    (
        "list beside a mapping",
        "a: 1\n- b\n",
        "f:2:1: this is not YAML: while parsing a block mapping expected <block end>, but found '-'.",
        INDENT,
    ),
    (
        "quote and more",
        "a: 'b' c\n",
        "f:1:8: this is not YAML: while parsing a block mapping expected <block end>, but found '<scalar>'.",
        INDENT,
    ),
    (
        "unknown escape",
        'a: "\\q"\n',
        "f:1:6: this is not YAML: while scanning a double-quoted scalar found unknown escape character 'q'.",
        None,
    ),
    ("escape beyond Unicode", 'a: "\\U00ffffff"\n', "f: this is not YAML: an escape names no character.", None),
    ("not a number", "a: .nan\n", "f:1:4: '.nan' is not a finite number.", UNKNOWN),
    ("infinity", "a: .inf\n", "f:1:4: '.inf' is not a finite number.", UNKNOWN),
    ("minus infinity", "a: -.INF\n", "f:1:4: '-.INF' is not a finite number.", UNKNOWN),
    ("number beyond range", "a: 1e999\n", "f:1:4: '1e999' is not a finite number.", UNKNOWN),
    ("number beyond range in JSON", '{"a": 1e999}', "f:1:7: '1e999' is not a finite number.", UNKNOWN),
    ("integer of 400 digits", "a: " + "9" * 400 + "\n", "f:1:4: a number of 400 digits is longer than 100.", None),
    (
        "integer of 400 digits in JSON",
        '{"a": ' + "9" * 400 + "}",
        "f:1:7: a number of 400 digits is longer than 100.",
        None,
    ),
    (
        "integer of 60,000 digits",
        "a: " + "9" * 60_000 + "\n",
        "f:1:4: a number of 60,000 digits is longer than 100.",
        None,
    ),
    (
        "hexadecimal of 400 digits",
        "a: 0x" + "f" * 400 + "\n",
        "f:1:4: a number of 402 digits is longer than 100.",
        None,
    ),
    ("UTF-16", "a: 1\n".encode("utf-16"), "f: this is UTF-16 or UTF-32.", UTF_8),
    ("UTF-16 big end first", b"\xfe\xff\x00a\x00:\x00 \x001", "f: this is UTF-16 or UTF-32.", UTF_8),
    (
        "UTF-16 without a mark",
        "a: 1\n".encode("utf-16-le"),
        "f:1:2: the character U+0000 is not read.",
        "this does not look like a text file.",
    ),
    ("UTF-32", "a: 1\n".encode("utf-32"), "f: this is UTF-16 or UTF-32.", UTF_8),
    ("Latin-1", "a: 1\nname: caf\xe9\n".encode("latin-1"), "f:2: byte 14 is not UTF-8.", UTF_8),
    ("GBK", "name: 阵法\n".encode("gbk"), "f:1: byte 6 is not UTF-8.", UTF_8),
    ("cut off in the middle of a character", "name: 阵".encode()[:-1], "f:1: byte 6 is not UTF-8.", UTF_8),
    (
        "NUL in text",
        "a: 1\nb: x\x00y\n",
        "f:2:5: the character U+0000 is not read.",
        "this does not look like a text file.",
    ),
    ("NUL as an escape", 'a: "x\\0y"\n', "f:1:4: the character U+0000 is not read.", "delete it."),
    ("NUL as an escape in JSON", '{"a": "x\\u0000y"}', "f:1:7: the character U+0000 is not read.", "delete it."),
    ("escape sequence of a terminal", "a: x\x1b[31mred\n", "f:1:5: the character U+001B is not read.", "delete it."),
    (
        "escape sequence written as an escape",
        'a: "\\e[31mred"\n',
        "f:1:4: the character U+001B is not read.",
        "delete it.",
    ),
    ("bell", "a: \x07\n", "f:1:4: the character U+0007 is not read.", "delete it."),
    ("DEL", "a: \x7f\n", "f:1:4: the character U+007F is not read.", "delete it."),
    ("NEL, a line break of YAML 1.1", "a: b\x85c: d\n", "f:1:5: the character U+0085 is not read.", "delete it."),
    ("line separator", "a: \u2028b\n", "f:1:4: the character U+2028 is not read.", "delete it."),
    ("sequence inside a line", "a: - b\n", "f:1:4: this is not YAML: sequence entries are not allowed here.", None),
    ("C1 control", "a: \x9b31m\n", "f:1:4: the character U+009B is not read.", "delete it."),
    ("half of a surrogate pair", 'a: "\\ud83d"\n', "f:1:4: the character U+D83D is not read.", "delete it."),
    ("half of a surrogate pair in JSON", '{"a": "\\ud83d"}', "f:1:7: the character U+D83D is not read.", "delete it."),
    (
        "half of a surrogate pair as a character",
        "a: \ud83d\n",
        "f:1:4: the character U+D83D is not read.",
        "delete it.",
    ),
    ("empty", "", "f: the document is empty.", None),
    ("only blanks", "  \n\n", "f: the document is empty.", None),
    ("only a byte order mark", b"\xef\xbb\xbf", "f: the document is empty.", None),
    ("only a comment", "# nothing here\n", "f: the document is empty.", None),
    (
        "only an end marker",
        "...\n",
        "f:1:1: this is not YAML: while parsing a block node expected the node content, but found '<document end>'.",
        None,
    ),
    ("two documents", "a: 1\n---\nb: 2\n", "f:2:1: a second document begins here.", "one file holds one document."),
    (
        "two documents with markers",
        "---\na: 1\n...\n---\nb: 2\n",
        "f:4:1: a second document begins here.",
        "one file holds one document.",
    ),
    ("two empty documents", "---\n---\n", "f:2:1: a second document begins here.", "one file holds one document."),
    (
        "YAML 1.1 asked for",
        "%YAML 1.1\n---\na: no\n",
        "f:2:1: YAML 1.1 is asked for, and only 1.2 is read.",
        "delete the %YAML line.",
    ),
    (
        "YAML 2 asked for",
        "%YAML 2.0\n---\na: 1\n",
        "f:1:1: this is not YAML: found incompatible YAML document (version 1.* is required).",
        None,
    ),
    ("a picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "f:1: byte 0 is not UTF-8.", UTF_8),
    ("a gzip file", b"\x1f\x8b\x08\x00\x00\x00", "f:1: byte 1 is not UTF-8.", UTF_8),
]


@pytest.mark.parametrize(("text", "message", "hint"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_hostile_text_is_refused_in_words(text: str | bytes, message: str, hint: str | None) -> None:
    with pytest.raises(DocumentError) as caught:
        yaml.read(text, "f")
    assert caught.value.message == message
    assert caught.value.hint == hint
    assert caught.value.exit_code == 2
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
