"""The JSON document of ``zhenfa export``."""

from __future__ import annotations

from typing import ClassVar

from zhenfa.cli.documents import Printed


class ExportedModel(Printed):
    """``zhenfa export``: the Hugging Face directory that was written, and the checkpoint and step that it holds."""

    schema_name: ClassVar[str] = "zhenfa.exported/1"

    checkpoint: str
    step: int
    architecture: str
    model_type: str
    parameters: int
    precision: str
    folder: str
    files: tuple[str, ...]
