"""``zhenfa export``."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zhenfa.cli.console import Output
from zhenfa.cli.export_documents import ExportedModel
from zhenfa.errors import CapabilityError


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa export``."""

    run: str
    to: str
    precision: Literal["fp32", "bf16"] = "fp32"


def export_run(wanted: Wanted, output: Output) -> None:
    """Write a checkpoint as a Hugging Face directory. Raises what :func:`zhenfa.live.export.export` raises."""
    if importlib.util.find_spec("torch") is None:
        raise CapabilityError("torch is not installed.", hint="pip install 'zhenfa[live]'.")
    with output.working("writing"):
        from zhenfa.live.export import SOURCE, export

        found = export(Path(wanted.run), Path(wanted.to), precision=wanted.precision)
    places = tuple(str(found.folder / name) for name in found.files)
    if output.as_json:
        output.document(
            ExportedModel(
                checkpoint=str(found.checkpoint), step=found.step, architecture=found.architecture,
                model_type=found.model_type, parameters=found.parameters, precision=found.precision,
                folder=str(found.folder), files=places,
            )
        )  # fmt: skip
    else:
        for place in places:
            output.data.line(place)
    output.talk.text(
        f"{found.architecture}, {found.parameters:,} parameters in {found.precision}, after step {found.step} "
        f"({found.checkpoint}); put the tokenizer that the data were made with beside them"
    )
    if output.cite:
        output.talk.text(SOURCE, first="source: ")
