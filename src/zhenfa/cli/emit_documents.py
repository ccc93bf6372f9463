"""The JSON document of ``zhenfa emit``."""

from __future__ import annotations

from typing import Any, ClassVar

from zhenfa.cli.documents import Item, Printed


class EmittedFile(Item):
    """One file; ``written`` is where it was put, null where no folder was named."""

    name: str
    text: str
    executable: bool
    written: str | None


class Emitted(Printed):
    """``zhenfa emit``: the files of one plan for one target.

    ``source`` is the file of the plan that was given, ``plan`` the one that was written: another where ``changes`` says
    so.
    """

    schema_name: ClassVar[str] = "zhenfa.emitted/1"

    source: str
    target: str
    version: str
    plan: dict[str, Any]
    files: tuple[EmittedFile, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
