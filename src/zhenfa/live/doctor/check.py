"""One thing that a run needs: what was found, and the way out where it is not good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of ``zhenfa doctor``. ``fail``: a run would fail; ``warn``: it may, or is slower or less exact."""

    what: str
    verdict: Verdict
    found: str
    way_out: str = ""


def judged(what: str, found: str, *, fail: bool = False, warn: bool = False, way_out: str = "") -> Check:
    """Return a check; the way out is kept only where there is something to get out of."""
    verdict: Verdict = "fail" if fail else "warn" if warn else "ok"
    return Check(what, verdict, found, way_out if verdict != "ok" else "")
