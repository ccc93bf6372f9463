"""A model document counted from a module: what its forward ran, operator by operator, per token.

Weights are exact. Products with weights, and attention as it ran, give the matmul FLOPs; what streams memory alone is
counted by the elements that go in and come out. Nothing of it was published, and the document says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from zhenfa.errors import CapabilityError
from zhenfa.live.foreign.lineage import POSITIONS, Seen
from zhenfa.live.foreign.trace import BATCH, TOKENS, Traced
from zhenfa.spec.model import Model
from zhenfa.spec.model_blocks import Embedding, Head, Layer, Piece

PRODUCTS: Final[dict[str, tuple[int, int]]] = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}
"""Matrix products, and which of their inputs are multiplied."""
NORMS: Final = ("native_layer_norm", "_fused_rms_norm", "native_group_norm")
ADDS: Final = ("add", "add_", "sub", "sub_")
COPIES: Final = ("clone", "_to_copy", "copy_", "contiguous")


@dataclass
class _Tally:
    """The weights of a part whose operators are counted, each of which counts once; ``tokens`` were run."""

    weights: Mapping[str, int]
    tokens: int
    left: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.left = set(self.weights)

    def taken(self, labels: Sequence[frozenset[str]]) -> int:
        """Return how many weights go straight into an operator for the first time."""
        names = {name for one in labels if len(one) == 1 for name in one} & self.left
        self.left -= names
        return sum(self.weights[name] for name in names)


def document(
    found: Traced, weights: Mapping[str, int], *, name: str, label: str, length: int, family: str
) -> Model:  # fmt: skip
    """Return the document of a module that was looked through at ``length`` tokens; ``weights`` are all its own.

    Raises :class:`CapabilityError` for a module whose tokens are not looked up in a table.
    """
    tokens = BATCH * length
    kept = {one: count for one, count in weights.items() if not one.startswith(f"{found.blocks}.")}
    ends = _Tally(kept, tokens)
    embedding = _embedding(found, ends, label)
    head = _head(found, ends)
    layers = tuple(_runs(found, weights, tokens, family))
    words = (
        f"counted from {label} at sequences of {length} tokens, not published: weights exactly, matmuls and "
        "attention as its forward ran, other operators by their elements"
    )
    return Model(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80] or "module", hidden_size=found.hidden,
        vocabulary_size=found.vocabulary, norm="plain", embedding=embedding, layers=layers, head=head, note=words,
    )  # fmt: skip


def _embedding(found: Traced, tally: _Tally, label: str) -> Embedding:
    table = next(
        (one for one in found.before if one.name == "embedding" and TOKENS in one.inputs[1][1]), None
    )  # fmt: skip
    if table is None:
        raise CapabilityError(
            f"{label} does not look its tokens up in a table, so no model document can be counted from it.",
            hint="begin with a torch.nn.Embedding of the tokens.",
        )
    tally.taken([table.inputs[0][1]])
    rows, width = table.inputs[0][0]
    rest = _pieces([one for one in found.before if one is not table], tally)
    names = {*found.stem, *found.ends} & tally.left
    rest += _leftover(tally, names)
    return Embedding(rows=rows, width=width, extra=tuple(rest))


def _head(found: Traced, tally: _Tally) -> Head:
    """Return the head: its last product with ``vocabulary`` results is the output projection."""
    projection = next(
        (
            one for one in reversed(found.after)
            if one.name in PRODUCTS and one.output[-1] == found.vocabulary
            and one.inputs[PRODUCTS[one.name][0]][0][-1] == found.hidden
        ),
        None,
    )  # fmt: skip
    ran = [one for one in found.after if one is not projection]
    if projection is None:
        rest = _pieces(ran, tally)
        return Head(tied=True, rows=1, norm="plain", extra=(*rest, *_leftover(tally, tally.left)))
    used = {name for _, labels in projection.inputs if len(labels) == 1 for name in labels}
    tied = bool(used & {*found.ends})
    tally.left -= used
    rest = _pieces(ran, tally)
    bias = any(tally.weights.get(name) == found.vocabulary for name in used)
    return Head(tied=tied, bias=bias, norm="plain", width=found.hidden, extra=(*rest, *_leftover(tally, tally.left)))


def _runs(found: Traced, weights: Mapping[str, int], tokens: int, family: str) -> Iterator[Layer]:
    """Yield runs of blocks that are alike."""
    rows: list[tuple[Piece, ...]] = []
    for index, seen in enumerate(found.inside):
        prefix = f"{found.blocks}.{index}."
        tally = _Tally({name: count for name, count in weights.items() if name.startswith(prefix)}, tokens)
        rows.append((*_pieces(seen, tally, prefix), *_leftover(tally, set(tally.left))))
    first = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[first]:
            yield Layer(repeat=index - first, name=family[:80], norms=0, extra=rows[first])
            first = index


def _leftover(tally: _Tally, names: set[str]) -> list[Piece]:
    """Return weights that no counted operator took directly."""
    count = sum(tally.weights[name] for name in names)
    tally.left -= names
    return [Piece(name="other-weights", kind="elementwise", parameters=count)] if count else []


def _pieces(seen: Sequence[Seen], tally: _Tally, prefix: str = "") -> list[Piece]:
    """Return the operators of a part that work on what depends on the tokens."""
    found: list[Piece] = []
    scores: Seen | None = None
    for one in seen:
        labels = [labels for _, labels in one.inputs]
        if one.name != "embedding" and not one.labels - {POSITIONS} - set(tally.weights):
            continue
        if one.name in PRODUCTS:
            direct = [name for each in labels if len(each) == 1 for name in each if name in tally.weights]
            if direct:
                found.append(_product(one, tally, direct, prefix))
            elif scores is None:
                scores = one
            else:
                found.append(_attention(scores, one, tally))
                scores = None
        elif one.name == "attention":
            found.append(_fused(one))
        elif (piece := _streamed(one, tally)) is not None:
            found.append(piece)
    if scores is not None:
        found.append(_alone(scores, tally))
    return found


def _product(one: Seen, tally: _Tally, direct: list[str], prefix: str) -> Piece:
    left, right = (one.inputs[index][0] for index in PRODUCTS[one.name])
    inputs, rows = left[-1], math.prod(one.output[:-1])
    outputs = max(round(one.output[-1] * rows / tally.tokens), 1)
    taken = tally.taken([labels for _, labels in one.inputs])
    name = direct[-1].removeprefix(prefix).removesuffix(".weight").removesuffix(".bias")
    return Piece(name=name[-80:], inputs=inputs if right else 0, outputs=outputs, parameters=taken)


def _fused(one: Seen) -> Piece:
    query, key, value = (shape for shape, _ in one.inputs)
    heads, groups = math.prod(query[1:-2]), math.prod(key[1:-2])
    return Piece(
        name="attention", kind="attention", heads=heads, kv_heads=groups, key_dim=query[-1], value_dim=value[-1],
        inputs=heads * query[-1] + groups * (key[-1] + value[-1]), outputs=heads * value[-1], causal=one.causal,
        cache=groups * (key[-1] + value[-1]), shard="heads",
    )  # fmt: skip


def _attention(scores: Seen, mixed: Seen, tally: _Tally) -> Piece:
    """Return attention that was computed as two products of all pairs."""
    (count, _, key), length = scores.inputs[PRODUCTS[scores.name][0]][0], scores.output[-1]
    heads, value = max(count // BATCH, 1), mixed.output[-1]
    if mixed.inputs[PRODUCTS[mixed.name][0]][0][-1] != length:
        return _alone(scores, tally)
    return Piece(
        name="attention", kind="attention", heads=heads, kv_heads=heads, key_dim=key, value_dim=value, causal=False,
        inputs=heads * (2 * key + value), outputs=heads * value, cache=heads * (key + value), shard="heads",
    )  # fmt: skip


def _alone(one: Seen, tally: _Tally) -> Piece:
    """Return a product of two things that both depend on the tokens."""
    inputs = one.inputs[PRODUCTS[one.name][0]][0][-1]
    return Piece(name="product", inputs=inputs, outputs=max(math.prod(one.output) // tally.tokens, 1), parameters=0)


def _streamed(one: Seen, tally: _Tally) -> Piece | None:
    """Return an operator that streams memory, None for one that only looks at it otherwise."""
    elements = math.prod(one.output) // tally.tokens
    taken = tally.taken([labels for _, labels in one.inputs])
    if one.name in NORMS:
        return Piece(name="norm", kind="norm", inputs=elements, outputs=elements, parameters=taken or None)
    if one.name == "embedding":
        rows = one.inputs[0][0][0]
        return Piece(name="table", kind="embedding", inputs=rows, outputs=one.output[-1], parameters=taken or 0)
    if (not (one.pointwise and elements) and not taken) or one.name in COPIES:
        return None
    given = sum(math.prod(shape) for shape, _ in one.inputs if math.prod(shape) >= math.prod(one.output))
    inputs = max(given // tally.tokens, elements, 1)
    name = "residual" if one.name in ADDS and inputs == 2 * elements else one.name.strip("_")
    return Piece(name=name, kind="elementwise", inputs=inputs, outputs=max(elements, 1), parameters=taken or None)
