"""What was asked of a command: its arguments and options, as the faces read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zhenfa.plan.merit import By
    from zhenfa.spec.job import Objective


@dataclass(frozen=True)
class PlanWanted:
    """What was asked of ``zhenfa plan``."""

    job: str
    on: str | None = None
    assume: Sequence[str] = ()
    settings: Sequence[str] = ()
    objective: Objective | None = None
    limit: Sequence[str] = ()
    top: int = 5
    why: int | str | None = None
    detail: bool = False
    sensitivity: bool = False
    out: str | None = None


@dataclass(frozen=True)
class CompareWanted:
    """What was asked of ``zhenfa compare``."""

    job: str
    on: Sequence[str] = ()
    assume: Sequence[str] = ()
    settings: Sequence[str] = ()
    by: By | None = None
    cards: int | None = None
    jobs: int | None = None
    detail: bool = False
    picture: str | None = None

    @property
    def machines(self) -> list[str]:
        """Return the machines, commas taken apart."""
        return [name.strip() for text in self.on for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class SwapWanted:
    """What was asked of ``zhenfa swap``."""

    job: str
    machine: str
    to: str
    cards: int | None = None
    shape: str | None = None
    step: int | None = None
    assume: Sequence[str] = ()
    settings: Sequence[str] = ()
    detail: bool = False


@dataclass(frozen=True)
class ValidateWanted:
    """What was asked of ``zhenfa validate``."""

    rows: Sequence[str] = ()
    kind: Sequence[str] = ()
    plot: str | None = None
    detail: bool = False
    strict: bool = False


def said(wanted: PlanWanted | CompareWanted | SwapWanted) -> list[str]:
    """Return the words that supply values and change the job, as they were typed."""
    pairs = (("--assume", wanted.assume), ("--set", wanted.settings))
    return [part for option, texts in pairs for text in texts for part in (option, text)]
