"""YAML 1.2 in and out, with the place of every key.

Only plain data is read: mappings with text keys, lists, text, numbers, yes/no as ``true``/``false``, null. Tags,
duplicate keys, non-finite numbers, control characters and documents that unfold without end are refused in words.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from zhenfa.errors import DocumentError

MAX_BYTES: Final = 8 * 1024 * 1024
MAX_NODES: Final = 400_000
MAX_DEPTH: Final = 40
MAX_TEXT: Final = 64 * 1024

Path = tuple[str | int, ...]
Data = dict[str, Any] | list[Any] | str | int | float | bool | None

_PREFIX = "tag:yaml.org,2002:"


@dataclass
class Positions:
    """Where each key stands: line and column, both from 1, by path from the root."""

    source: str
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def find(self, path: Path, *, key: bool = False) -> tuple[int | None, int | None]:
        """Return the place of the value (or of its key) at ``path``, or of the nearest ancestor that is known."""
        table = self.keys if key else self.values
        for end in range(len(path), -1, -1):
            place = table.get(path[:end]) or self.values.get(path[:end])
            if place:
                return place
        return (None, None)


class _Reader:
    def __init__(self, source: str) -> None:
        self.positions = Positions(source)
        self.count = 0

    def fail(self, node: Node, message: str, hint: str | None = None) -> DocumentError:
        mark = node.start_mark
        return DocumentError(
            message, hint=hint, source=self.positions.source, line=mark.line + 1, column=mark.column + 1
        )

    def build(self, node: Node, path: Path, depth: int = 0) -> Data:
        self.count += 1
        if self.count > MAX_NODES:
            raise self.fail(node, f"the document unfolds to more than {MAX_NODES:,} items.", "do without anchors.")
        if depth > MAX_DEPTH:
            raise self.fail(node, f"the document is nested deeper than {MAX_DEPTH} levels.")
        self.positions.values[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            self._plain_tag(node, "seq")
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _plain_tag(self, node: Node, expected: str) -> None:
        if str(node.tag) != _PREFIX + expected:
            raise self.fail(node, f"the tag {str(node.tag)!r} is not read.", "write plain values without '!'.")

    def _mapping(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        self._plain_tag(node, "map")
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode) or str(key_node.tag) == _PREFIX + "merge":
                raise self.fail(key_node, "a key must be plain text.", "merges ('<<') and nested keys are not read.")
            key = str(key_node.value)
            if key in result:
                raise self.fail(
                    key_node, f"{key!r} is given twice; the first is on line {first[key]}.", "keep one of the two."
                )
            first[key] = key_node.start_mark.line + 1
            self.positions.keys[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key] = self.build(value_node, (*path, key), depth + 1)
        return result

    def _scalar(self, node: ScalarNode) -> Data:
        text = str(node.value)
        kind = str(node.tag).removeprefix(_PREFIX)
        if len(text) > MAX_TEXT:
            raise self.fail(node, f"a text of {len(text):,} characters is longer than {MAX_TEXT:,}.")
        if kind == "null":
            return None
        if kind == "bool":
            return text.casefold() == "true"
        if kind == "int":
            return self._integer(node, text)
        if kind == "float":
            return self._float(node, text)
        if kind in {"str", "timestamp"}:
            return text
        raise self.fail(node, f"the tag {str(node.tag)!r} is not read.", "write plain values without '!'.")

    def _integer(self, node: ScalarNode, text: str) -> int:
        digits = text.replace("_", "")
        base = {"0x": 16, "0o": 8, "0b": 2}.get(digits.lstrip("+-")[:2].lower(), 10)
        if len(digits) > 400:
            raise self.fail(node, f"a number of {len(digits)} digits is too long.")
        try:
            return int(digits, base)
        except ValueError:
            raise self.fail(node, f"{text!r} is not a whole number.") from None

    def _float(self, node: ScalarNode, text: str) -> float:
        try:
            value = float(text.replace("_", ""))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.fail(node, f"{text!r} is not a finite number.", "leave the key out, or write null, if unknown.")
        return value


def read(text: str | bytes, source: str) -> tuple[Data, Positions]:
    """Parse one YAML (or JSON) document; ``source`` names it in messages.

    Raises :class:`DocumentError` with line and column.
    """
    if len(text) > MAX_BYTES:
        raise DocumentError(f"{len(text):,} bytes is more than the {MAX_BYTES:,} that are read.", source=source)
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as problem:
            raise DocumentError(
                f"byte {problem.start} is not UTF-8.", source=source, hint="save the file as UTF-8."
            ) from None
    loader = YAML(typ="safe", pure=True)
    try:
        node = loader.compose(io.StringIO(text))
    except MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        words = " ".join(part.strip() for part in (problem.context, problem.problem) if part)
        raise DocumentError(
            f"this is not YAML: {words}.",
            source=source,
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from None
    except RecursionError:
        raise DocumentError(f"the document is nested deeper than {MAX_DEPTH} levels.", source=source) from None
    except (YAMLError, ValueError) as problem:
        raise DocumentError(f"this is not YAML: {str(problem).splitlines()[0]}.", source=source) from None
    reader = _Reader(source)
    if node is None:
        raise DocumentError("the document is empty.", source=source)
    return reader.build(node, ()), reader.positions


def write(data: Data) -> str:
    """Write plain data as YAML, keys in the order given, long lists of plain values on one line."""
    writer = YAML(typ="rt", pure=True)
    writer.default_flow_style = None
    writer.allow_unicode = True
    writer.width = 120
    writer.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


def walk(data: Data, path: Path = ()) -> Iterator[tuple[Path, Data]]:
    """Yield every value with its path, parents first."""
    yield path, data
    if isinstance(data, dict):
        for key, value in data.items():
            yield from walk(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from walk(value, (*path, index))
