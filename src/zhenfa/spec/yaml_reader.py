"""The parser's events become plain data, bounded in depth and size, with the place of every key."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ruamel.yaml import YAML
from ruamel.yaml import events as parsed
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from zhenfa.errors import DocumentError, InputError, quote
from zhenfa.spec.yaml import MAX_DEPTH, MAX_KEY, MAX_TEXT, MAX_YAML_NODES, Data, Path, Positions, find_control
from zhenfa.spec.yaml_scalars import resolve

_HINTS: Final = (
    ("'\\t'", "indent with spaces, not with tabs."),
    ("mapping values are not allowed", "check the indentation, and put text that holds ': ' in quotes."),
    ("could not find expected ':'", "a key ends with ': '."),
    ("expected <block end>", "check the indentation, and put text that begins with a quote in quotes as a whole."),
    ("stream end", "something that was opened is not closed."),
    ("end of stream", "something that was opened is not closed."),
    ("cannot start any token", "put the text in quotes."),
)

_LONG_TAG: Final = re.compile(r"!\S{1000}")
_AS_JSON: Final = "write it as JSON, which is read faster."


@dataclass(slots=True)
class _Node:
    kind: Literal["mapping", "list", "plain", "quoted"]
    line: int
    column: int
    text: str = ""
    children: list[_Node] = field(default_factory=list)  # of a mapping: key, value, key, value, …


class Reader:
    """Reads one document."""

    def __init__(self, source: str) -> None:
        self.positions = Positions(source)
        self._count = 0

    def read(self, text: str) -> Data:
        """Return the plain data of the document. Raises :class:`DocumentError` with line and column."""
        try:
            root = self._compose(text)
        except MarkedYAMLError as problem:
            raise self._not_yaml(problem) from None
        except DocumentError:
            raise
        except YAMLError as problem:
            reason = (str(problem).splitlines() or ["it cannot be parsed"])[0]
            raise DocumentError(f"this is not YAML: {reason[:200]}.", source=self.positions.source) from None
        except (ValueError, OverflowError):
            raise DocumentError(
                "this is not YAML: an escape names no character.", source=self.positions.source
            ) from None
        if root is None:
            raise DocumentError("the document is empty.", source=self.positions.source)
        return self._build(root, (), 0)

    def _not_yaml(self, problem: MarkedYAMLError) -> DocumentError:
        mark = problem.problem_mark or problem.context_mark
        words = " ".join(part.strip() for part in (problem.context, problem.problem) if part)
        words = words if words.isprintable() else ascii(words)
        return DocumentError(
            f"this is not YAML: {words[:200]}.",
            source=self.positions.source,
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
            hint=next((hint for part, hint in _HINTS if part in words), None),
        )

    def _fail(self, place: _Node | Any, message: str, hint: str | None = None) -> DocumentError:
        if not isinstance(place, _Node):
            place = _at(place, "plain")
        return DocumentError(
            message, hint=hint, source=self.positions.source, line=place.line, column=place.column
        )  # fmt: skip

    def _compose(self, text: str) -> _Node | None:
        """Return the tree of the one document in the stream, aliases joined to what they name."""
        if _LONG_TAG.search(text):  # on which the parser spends time that grows with the square of the length
            raise DocumentError("a tag of more than 1,000 characters is not read.", source=self.positions.source)
        root: _Node | None = None
        open_nodes: list[_Node] = []
        anchors: dict[str, _Node] = {}
        count = 0
        for event in YAML(typ="safe", pure=True).parse(io.StringIO(text)):
            if isinstance(event, parsed.DocumentStartEvent):
                self._check_start(event, root)
            if isinstance(event, parsed.CollectionEndEvent):
                open_nodes.pop()
            if not isinstance(event, parsed.NodeEvent):
                continue
            count += 1
            if count > MAX_YAML_NODES:
                raise self._fail(event, f"the document has more than {MAX_YAML_NODES:,} items.", _AS_JSON)
            node = self._node(event, anchors, open_nodes)
            if open_nodes:
                open_nodes[-1].children.append(node)
            else:
                root = node
            if isinstance(event, parsed.CollectionStartEvent):
                open_nodes.append(node)
                if len(open_nodes) > MAX_DEPTH:
                    raise self._fail(event, f"the document is nested deeper than {MAX_DEPTH} levels.")
        return root

    def _check_start(self, event: Any, root: _Node | None) -> None:
        if root is not None:
            raise self._fail(event, "a second document begins here.", "one file holds one document.")
        if event.version and event.version != (1, 2):
            asked = ".".join(map(str, event.version))
            raise self._fail(event, f"YAML {asked} is asked for, and only 1.2 is read.", "delete the %YAML line.")

    def _node(self, event: Any, anchors: dict[str, _Node], open_nodes: list[_Node]) -> _Node:
        if isinstance(event, parsed.AliasEvent):
            target = anchors.get(event.anchor)
            if target is None:
                raise self._fail(event, f"no anchor {quote(event.anchor)} stands before this alias.")
            if any(target is item for item in open_nodes):
                raise self._fail(event, f"the anchor {quote(event.anchor)} holds itself.", "do without anchors.")
            return target
        if event.tag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            raise self._fail(event, f"the tag {quote(tag)} is not read.", "write plain values without '!'.")
        if isinstance(event, parsed.ScalarEvent):
            node = _at(event, "quoted" if event.style else "plain", _join_surrogates(event.value))
            self._check_text(node)
        else:
            node = _at(event, "mapping" if isinstance(event, parsed.MappingStartEvent) else "list")
        if event.anchor:
            anchors[event.anchor] = node
        return node

    def _check_text(self, node: _Node) -> None:
        if len(node.text) > MAX_TEXT:
            raise self._fail(node, f"a text of {len(node.text):,} characters is longer than {MAX_TEXT:,}.")
        control = find_control(node.text)
        if control:
            raise self._fail(node, f"the character U+{ord(control[0]):04X} is not read.", "delete it.")

    def _build(self, node: _Node, path: Path, depth: int) -> Data:
        self._count += 1
        if self._count > MAX_YAML_NODES:
            raise self._fail(
                node, f"the document unfolds to more than {MAX_YAML_NODES:,} items.", "do without anchors."
            )
        if depth > MAX_DEPTH:
            raise self._fail(node, f"the document is nested deeper than {MAX_DEPTH} levels.")
        self.positions.values[path] = (node.line, node.column)
        if node.kind == "mapping":
            return self._mapping(node, path, depth)
        if node.kind == "list":
            return [self._build(item, (*path, index), depth + 1) for index, item in enumerate(node.children)]
        return self._resolve(node) if node.kind == "plain" else node.text

    def _mapping(self, node: _Node, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in zip(node.children[::2], node.children[1::2], strict=True):
            key = key_node.text
            if key_node.kind in ("mapping", "list") or (key_node.kind == "plain" and key == "<<"):
                raise self._fail(key_node, "a key must be plain text.", "merges ('<<') and nested keys are not read.")
            if len(key) > MAX_KEY:
                raise self._fail(key_node, f"a key of {len(key):,} characters is longer than {MAX_KEY}.")
            if key in result:
                raise self._fail(
                    key_node, f"{quote(key)} is given twice; the first is on line {first[key]}.", "keep one of the two."
                )
            first[key] = key_node.line
            self.positions.keys[(*path, key)] = (key_node.line, key_node.column)
            result[key] = self._build(value_node, (*path, key), depth + 1)
            if value_node.kind == "plain" and not value_node.text:  # the parser finds it where the next thing begins
                self.positions.values[(*path, key)] = (key_node.line, key_node.column)
        return result

    def _resolve(self, node: _Node) -> Data:
        try:
            return resolve(node.text)
        except InputError as problem:
            raise self._fail(node, problem.message, problem.hint) from None


def _at(event: Any, kind: Literal["mapping", "list", "plain", "quoted"], text: str = "") -> _Node:
    return _Node(kind, event.start_mark.line + 1, event.start_mark.column + 1, text)


def _join_surrogates(text: str) -> str:
    """Join the two halves in which JSON escapes write a character beyond U+FFFF."""
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return text
