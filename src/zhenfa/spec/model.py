"""What is computed: a language model, block by block, and its operators.

A model is written as a ``zhenfa.model/1`` document or read from a Hugging Face ``config.json``. Either way it becomes a
:class:`Model`, which people can read, and :meth:`Model.graph` makes of it the operators that the laws and the planner
work on.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from zhenfa.errors import DocumentError
from zhenfa.spec import fact, yaml
from zhenfa.spec.document import Document, Part, read_file
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import Name
from zhenfa.spec.model_blocks import (
    Embedding,
    Encoder,
    Head,
    Layer,
    NormKind,
    Prediction,
    Quantization,
    Size,
)
from zhenfa.spec.model_graph import compile_graph


class Published(Part):
    """What the makers say of the size: parameters held, and parameters that one token passes through."""

    parameters: fact.Count = fact.empty("count")
    active: fact.Count = fact.empty("count")
    note: str | None = None


class Model(Document):
    """A decoder-only language model.

    ``layers`` are runs of layers alike or of a repeating pattern, in order. ``norm`` is the kind of every norm unless a
    layer says otherwise. ``encoders`` are towers beside the language model. ``notes`` say what an import left out.
    """

    schema_name: ClassVar[str] = "zhenfa.model/1"

    name: Name
    title: str | None = None
    source: str | None = None
    architecture: str | None = None
    published: Published | None = None
    hidden_size: Size
    vocabulary_size: Size
    max_position: Size | None = None
    norm: NormKind = "rms"
    embedding: Embedding = Embedding()
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=10_000)]
    head: Head = Head()
    mtp: Prediction | None = None
    encoders: tuple[Encoder, ...] = ()
    quantization: Quantization | None = None
    note: str | None = None
    notes: tuple[str, ...] = ()

    def graph(self) -> Graph:
        """Return the model as operators. The result is kept: a model does not change."""
        return self._graph

    @cached_property
    def _graph(self) -> Graph:
        return compile_graph(self)

    @property
    def layer_count(self) -> int:
        """Return how many layers the model has."""
        return sum(run.repeat * (sum(layer.repeat for layer in run.each) or 1) for run in self.layers)


def read_model(path: str | os.PathLike[str], *, name: str | None = None) -> Model:
    """Read a model from a ``zhenfa.model`` document, a Hugging Face ``config.json``, or a folder that holds one.

    ``name`` overrides the name of an imported model, which is otherwise taken from the file. Raises
    :class:`DocumentError` for a file that is neither, and :class:`CapabilityError` for an architecture that is not
    known.
    """
    from zhenfa.spec.huggingface import from_huggingface

    place = Path(path)
    if place.is_dir():
        place = place / "config.json"
    data, positions = yaml.read(read_file(place), str(place))
    if not isinstance(data, dict):
        raise DocumentError("a model is a mapping of keys.", source=str(place))
    if _is_huggingface(data):
        given = name or data.get("_name_or_path") or (place.parent.name if place.name == "config.json" else place.stem)
        return from_huggingface(data, name=str(given), source=str(place))
    return Model.from_data(data, source=str(place), positions=positions)


def _is_huggingface(data: dict[str, Any]) -> bool:
    return "schema" not in data and ("model_type" in data or "architectures" in data)


__all__ = ["Model", "Published", "read_model"]
