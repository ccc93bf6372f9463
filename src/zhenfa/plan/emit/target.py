"""What a target is, and what comes out of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from zhenfa.plan.emit.subject import Subject
from zhenfa.spec.plan import Plan
from zhenfa.spec.serving import ServingPlan


@dataclass(frozen=True)
class File:
    """One file; ``name`` may hold folders."""

    name: str
    text: str
    executable: bool = False


@dataclass(frozen=True)
class Written:
    """What a target wrote: files, and sentences that their reader should know."""

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One thing that a target cannot do.

    ``reason`` returns why a plan cannot be written, or an empty text; ``change`` returns plans near it that can, as far
    as this rule goes; ``maker`` says whether any plan on cards of a maker can.
    """

    reason: Callable[[Plan, Subject], str]
    change: Callable[[Plan, Subject], Sequence[Plan]] = lambda plan, subject: ()
    maker: Callable[[str], bool] = lambda maker: True


@dataclass(frozen=True)
class Target:
    """A system that takes files.

    ``tasks`` are what it does; ``version`` is the release whose options are written, ``source`` where they were read;
    ``settings`` are the names that ``--set`` takes, each with what it says; ``rules`` are what it cannot express of a
    training plan.
    """

    name: str
    title: str
    tasks: tuple[Literal["train", "serve"], ...]
    version: str
    write: Callable[[Subject], Written]
    rules: tuple[Rule, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Emission:
    """The files of one plan for one target. ``changes`` say how ``plan`` differs from the one that was given."""

    target: Target
    plan: Plan | ServingPlan
    files: tuple[File, ...]
    notes: tuple[str, ...]
    changes: tuple[str, ...] = ()
