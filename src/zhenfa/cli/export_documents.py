"""The JSON document of ``zhenfa export``."""

from __future__ import annotations

from typing import ClassVar

from zhenfa.cli.documents import Printed


class ExportedModel(Printed):
    """``zhenfa export``: the Hugging Face directory that was written, and the checkpoint and step that it holds.

    ``model_type`` is null for a module of a Python file: its weights are there under its own names, and no config.json.
    """

    schema_name: ClassVar[str] = "zhenfa.exported/1"

    checkpoint: str
    step: int
    architecture: str
    model_type: str | None
    parameters: int
    precision: str
    folder: str
    files: tuple[str, ...]
