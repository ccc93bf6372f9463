"""``zhenfa emit``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zhenfa.cli.console import Output
from zhenfa.errors import InputError, ZhenfaError

if TYPE_CHECKING:
    from zhenfa.cli.emit_documents import Emitted
    from zhenfa.plan.emit import Emission, File


@dataclass(frozen=True)
class Wanted:
    """What was asked of ``zhenfa emit``."""

    plan: str
    to: str
    job: str | None = None
    out: str | None = None
    assume: Sequence[str] = ()
    settings: Sequence[str] = ()
    nearest: bool = False
    force: bool = False


def emit_plan(wanted: Wanted, output: Output) -> None:
    """Write a plan as files of another system. Raises what :func:`zhenfa.plan.emit.emit` raises."""
    with output.working("writing"):
        from zhenfa.plan.emit import emit, read_subject

        subject = read_subject(wanted.plan, job=wanted.job, assume=wanted.assume, settings=wanted.settings)
        found = emit(subject, wanted.to, nearest=wanted.nearest)
    places = _save(found.files, wanted) if wanted.out else []
    if output.as_json:
        output.document(to_document(found, wanted.plan, places))
    elif wanted.out:
        for place in places:
            output.data.line(place)
    else:
        _stream(found.files, output)
    _talk(found, output)


def _save(files: Sequence[File], wanted: Wanted) -> list[str]:
    """Write the files into the folder; none is replaced unless told so."""
    folder = Path(str(wanted.out))
    there = [one.name for one in files if (folder / one.name).exists()]
    if there and not wanted.force:
        raise InputError(f"{str(folder / there[0])!r} is there already.", hint="name another folder, or add --force.")
    places = []
    for one in files:
        place = folder / one.name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(one.text, encoding="utf-8")
            place.chmod(0o755 if one.executable else 0o644)
        except OSError as problem:
            raise ZhenfaError(f"{str(place)!r} cannot be written: {os.strerror(problem.errno or 0)}.") from None
        places.append(str(place))
    return places


def _stream(files: Sequence[File], output: Output) -> None:
    """Write all files to stdout; where there are several, each under its name."""
    for number, one in enumerate(files):
        if len(files) > 1:
            output.data.line(f"{'' if number == 0 else chr(10)}# ==> {one.name} <==", "head")
        for line in one.text.rstrip("\n").split("\n"):
            output.data.line(line)


def _talk(found: Emission, output: Output) -> None:
    """Say on stderr what was changed and what the reader should know."""
    if found.changes:
        *reasons, instead = found.changes
        output.talk.line(f"{found.target.title} cannot run the plan as it is:", "warn")
        output.talk.items(reasons)
        output.talk.text(instead, first="written instead: ")
    for note in found.notes:
        output.talk.text(note, first="note: ")
    if output.cite:
        output.talk.text(found.target.source, first="source: ")


def to_document(found: Emission, plan: str, places: Sequence[str]) -> Emitted:
    """Return the files as the published JSON document ``zhenfa.emitted/1``."""
    from zhenfa.cli.emit_documents import Emitted, EmittedFile

    written = [*places, *([None] * (len(found.files) - len(places)))]
    return Emitted(
        source=plan, target=found.target.name, version=found.target.version, plan=found.plan.to_data(),
        files=tuple(
            EmittedFile(name=one.name, text=one.text, executable=one.executable, written=place)
            for one, place in zip(found.files, written, strict=True)
        ),
        changes=found.changes, notes=found.notes,
    )  # fmt: skip
