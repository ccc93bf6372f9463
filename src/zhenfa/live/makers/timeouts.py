"""Time-outs of a maker's collective library: which variable sets them, and what is in force in an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeOutInForce:
    """A time-out as it stands. ``seconds`` is None where nobody has published it, infinite where it never ends.

    ``told_by`` is ``variable`` or ``default``; ``problem`` says why what the variable holds is not taken as it is.
    """

    variable: str
    what: str
    seconds: float | None
    told_by: str
    source: str
    problem: str = ""


def as_it_is(value: int) -> tuple[float, str]:
    """Return the seconds that a variable holds."""
    return float(value), ""


@dataclass(frozen=True)
class TimeOut:
    """A variable that sets a time-out. ``default`` is what it holds when nobody sets it, None if unpublished.

    ``effective`` makes seconds of what the variable holds, and says in a sentence where they differ from it.
    """

    variable: str
    what: str
    default: int | None
    source: str
    effective: Callable[[int], tuple[float, str]] = as_it_is

    def in_force(self, environment: Mapping[str, str]) -> TimeOutInForce:
        """Return what is in force in an environment: the variable's value if it has one, else the default."""
        text = environment.get(self.variable, "").strip()
        if not text:
            return self._of(self.default, "default")
        try:
            value = int(text)
        except ValueError:
            found = self._of(self.default, "default")
            problem = f"{self.variable} holds {text!r}, which is not a whole number"
            return TimeOutInForce(found.variable, found.what, found.seconds, "default", self.source, problem)
        return self._of(value, "variable")

    def _of(self, value: int | None, told_by: str) -> TimeOutInForce:
        if value is None:
            return TimeOutInForce(self.variable, self.what, None, told_by, self.source)
        seconds, problem = self.effective(value)
        return TimeOutInForce(self.variable, self.what, seconds, told_by, self.source, problem)


def infiniband(value: int) -> tuple[float, str]:
    """Return the seconds of a local ack time-out: 4.096 us times 2 to the power of the value; 0 and 32 on never end.

    Source: InfiniBand specification, volume 1, 12.7.34, as the documents of the libraries cite it.
    """
    if value <= 0 or value >= 32:
        return float("inf"), f"{value} means that it never ends"
    return 4.096e-6 * 2**value, ""


def between(least: int, most: int) -> Callable[[int], tuple[float, str]]:
    """Return what says that a value lies outside the published range; what the library does then is not published."""

    def effective(value: int) -> tuple[float, str]:
        problem = "" if least <= value <= most else f"outside the published range of {least} to {most}"
        return float(value), problem

    return effective
