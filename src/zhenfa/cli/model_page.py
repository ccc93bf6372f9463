"""``zhenfa show MODEL``: a model counted from its operators, beside what its makers say of its size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from zhenfa.cli.console import Output
from zhenfa.cli.facts import fact_table, rows_of
from zhenfa.cli.tables import Column, table
from zhenfa.cli.words import parameters
from zhenfa.spec.graph import Graph, Operator
from zhenfa.spec.model import Model

if TYPE_CHECKING:
    from zhenfa.cli.catalog_documents import LayerLine


def model(item: Model, output: Output) -> None:
    """Print a model."""
    graph = item.graph()
    if output.as_json:
        _document(item, graph, output)
        return
    output.data.text(f"{item.name}: {item.title or item.architecture or 'a language model'}", style="head")
    output.data.text(
        f"{parameters(graph.parameters)} parameters ({graph.parameters:,}), "
        f"{parameters(graph.active_parameters)} active for each token ({graph.active_parameters:,}), counted from its "
        "operators"
    )
    if graph.extra_parameters:
        output.data.text(
            f"and {parameters(graph.extra_parameters)} in multi-token prediction modules, which training uses"
        )
    tied = ", tied embeddings" if graph.tied else ""
    output.data.text(
        f"{len(graph.layers):,} layers, hidden size {graph.hidden:,}, vocabulary {graph.vocabulary:,}{tied}"
    )
    for label, words in (("source", item.source), ("note", item.note), *(("note", note) for note in item.notes)):
        if words:
            output.data.text(words, first=f"{label}: ")
    if item.published is not None:
        output.data.head("What its makers say")
        output.data.table(fact_table(rows_of(item.published)))
    left_out: list[str] = []
    for part, count, operators in _parts(graph):
        times = f"{count:,} x " if count > 1 else ""
        output.data.head(f"{times}{part}")
        columns = (
            Column("operator", style="strong"), Column("kind", drop=2), Column("size", wrap=30),
            Column("parameters", right=True), Column("split", drop=1),
        )  # fmt: skip
        rows = [
            (one.name, one.kind, _sizes(one), f"{one.parameters:,}" if one.parameters else "-", one.shard)
            for one in operators
        ]
        left_out += output.data.table(table(columns, rows), indent=2)
    output.left_out(left_out)


def _parts(graph: Graph) -> Iterator[tuple[str, int, tuple[Operator, ...]]]:
    """Yield the parts of a model in order: name, how many layers are of it, and its operators."""
    yield "stem", 1, graph.stem
    for index, kind in enumerate(graph.kinds):
        yield f"layer: {kind.name}", graph.layers.count(index), kind.operators
    yield "head", 1, graph.head
    if graph.extra:
        yield "multi-token prediction", 1, graph.extra
    if graph.encoders:
        yield "encoders", 1, graph.encoders


def _sizes(one: Operator) -> str:
    if one.kind in {"attention", "scan"}:
        window = f", window {one.window:,}" if one.window else ""
        heads = f"{one.heads} heads" + (f" ({one.kv_heads} kv)" if one.kv_heads and one.kv_heads != one.heads else "")
        return f"{heads} x {one.key_dim}/{one.value_dim}{window}"
    routed = f", {one.active_experts} of {one.experts} experts" if one.experts > 1 else ""
    return f"{one.inputs:,} -> {one.outputs:,}{routed}"


def _document(item: Model, graph: Graph, output: Output) -> None:
    from zhenfa.cli.catalog_documents import ModelEntry

    output.document(
        ModelEntry(
            name=item.name, title=item.title, parameters=graph.parameters, active_parameters=graph.active_parameters,
            extra_parameters=graph.extra_parameters, layers=len(graph.layers), hidden=graph.hidden,
            vocabulary=graph.vocabulary, tied=graph.tied, parts=tuple(_lines(graph)), model=item.to_data(),
        )
    )  # fmt: skip


def _lines(graph: Graph) -> Iterator[LayerLine]:
    from zhenfa.cli.catalog_documents import LayerLine, OperatorLine

    for part, count, operators in _parts(graph):
        lines = [
            OperatorLine(
                name=one.name, kind=one.kind, parameters=one.parameters, inputs=one.inputs, outputs=one.outputs,
                split=one.shard, experts=one.experts, active_experts=one.active_experts, heads=one.heads,
                kv_heads=one.kv_heads, key_dim=one.key_dim, value_dim=one.value_dim, window=one.window,
            )
            for one in operators
        ]  # fmt: skip
        yield LayerLine(part=part, layers=count, operators=tuple(lines))
