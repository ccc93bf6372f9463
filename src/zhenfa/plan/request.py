"""From what the user typed to what the planner needs: a job, its graph and its machine, all names looked up."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from zhenfa import catalog
from zhenfa.errors import CapabilityError, InputError, UnknownNameError
from zhenfa.estimate.chip import Chip
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.traits import Traits, on_processors
from zhenfa.plan.asked import read_assumptions, read_job, with_limits
from zhenfa.plan.supply import supplied
from zhenfa.spec.document import safe_join
from zhenfa.spec.graph import Graph
from zhenfa.spec.job import Job, Limits, Objective, Workload
from zhenfa.spec.machine import Formation, Machine
from zhenfa.spec.model import Model, read_model
from zhenfa.spec.plan import Offload, Schedule
from zhenfa.spec.serving import ServingWorkload
from zhenfa.spec.upkeep import zero_in


@dataclass(frozen=True)
class Request:
    """A job with its model and machine at hand."""

    job: Job
    model: Model
    graph: Graph
    formation: Formation
    traits: Traits | None = None
    """What the software does that will run the plan; None: what is usual for the machine."""
    machine: Machine | None = None
    """The machine as a document, before anything was looked up."""

    @property
    def serves(self) -> bool:
        """Return whether the job serves and does not train."""
        return isinstance(self.job.workload, ServingWorkload)

    @property
    def training(self) -> Workload:
        """Return the workload of a job that trains. Raises :class:`CapabilityError` for one that serves."""
        if isinstance(self.job.workload, ServingWorkload):
            raise CapabilityError(
                f"job {self.job.name!r} serves (workload.task), and only training is executed or laid out here.",
                hint="`zhenfa plan JOB` plans it; in Python, zhenfa.plan.serving.find_serving(request).",
            )
        return self.job.workload

    @property
    def serving(self) -> ServingWorkload:
        """Return the workload of a job that serves. Raises :class:`CapabilityError` for one that trains."""
        if not isinstance(self.job.workload, ServingWorkload):
            raise CapabilityError(
                f"job {self.job.name!r} trains (workload.task); a job that serves is wanted here.",
                hint="write workload: {task: serve, input_length: 4096, output_length: 1024, tpot_target: 50 ms}.",
            )
        return self.job.workload


def setting_of(request: Request) -> Setting:
    """Return the request with everything looked up that an estimate needs. Raises :class:`MissingFactError`."""
    setting = look_up(request.graph, request.training, request.formation, request.traits, request.job.recovery)
    setting = _with_offload(_with_schedules(setting, request.job.limits), request.job.limits)
    some = setting.traits.some_layers and request.job.limits.partial_recompute
    return replace(setting, traits=setting.traits.but(some_layers=some))


def _with_schedules(setting: Setting, limits: Limits) -> Setting:
    """Return the setting whose engine runs the schedules that a job asks for, saying which it runs in truth."""
    engine, own = setting.traits, setting.formation.emulated or on_processors(setting.formation)
    if limits.schedules is None:  # GPipe keeps every micro-batch's activations: planned where a job asks for it
        return replace(setting, traits=engine.but(schedules=tuple(one for one in engine.schedules if one != "gpipe")))
    asked, said = _asked("schedules", limits.schedules, get_args(Schedule), engine.schedules, engine.name, own=own)
    notes = (*setting.assumptions, *([f"{said} does not run"] if said else []))
    return replace(setting, traits=engine.but(schedules=asked), assumptions=notes)


def _with_offload(setting: Setting, limits: Limits) -> Setting:
    """Return the setting whose engine keeps in host memory what a job lets it, saying what it does not do in truth."""
    engine, own = setting.traits, setting.formation.emulated or on_processors(setting.formation)
    if limits.offload is None:
        return setting
    asked, said = _asked("offload", limits.offload, get_args(Offload), engine.offloads, engine.name, own=own)
    notes = (*setting.assumptions, *([f"{said} does not do as a whole"] if said else []))
    return replace(setting, traits=engine.but(offloads=asked), assumptions=notes)


def _asked(
    name: str, limit: Sequence[str], every: Sequence[str], can: Sequence[str], engine: str, *, own: bool
) -> tuple[tuple[str, ...], str]:
    """Return what a limit asks to be searched, and which of it an engine has not (empty if it has all).

    ``own``: the engine is ours; ``all`` is then what it can, and more than that is an :class:`InputError`.
    """
    if limit == "all" and own:
        return tuple(can), ""
    asked = tuple(every if limit == "all" else limit)
    beyond = [one for one in asked if one not in can]
    if beyond and own:
        raise InputError(
            f"limits.{name} names {beyond[0]}, which `zhenfa run` does not {'run' if name == 'schedules' else 'do'}.",
            hint=f"write {' or '.join(can)}, or leave limits.{name} out.",
        )
    return asked, f"limits.{name}: {', '.join(beyond)}, which {engine}" if beyond else ""


def setting_within(request: Request, limits: Limits) -> Setting:
    """Return :func:`setting_of` with the cards and the memory that limits leave. Raises :class:`InfeasibleError` where
    they leave no card."""
    found = replace(request, formation=supplied(request.formation, limits))
    return with_memory(setting_of(found), limits)


def with_memory(setting: Setting, limits: Limits) -> Setting:
    """Return a setting whose cards may be filled no further than ``memory`` and ``headroom`` let them."""
    if not (limits.memory.known or limits.headroom.known):
        return setting

    def filled(chip: Chip) -> Chip:
        least = min(limits.memory.value or 1.0, 1.0 - (limits.headroom.value or 0.0) / chip.capacity)
        usable = min(chip.usable, max(least, 1e-9) * chip.capacity)
        return replace(chip, capacity=chip.capacity * usable / chip.usable)

    for pool in setting.chips:
        setting = setting.with_chips(pool, filled)
    return setting


def read_request(
    path: str,
    *,
    on: str | None = None,
    assume: Sequence[str] = (),
    objective: Objective | None = None,
    limits: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> Request:
    """Read a job file and look up its model and machine.

    ``on`` replaces the job's machine, ``objective`` its own; ``assume``, ``limits`` and ``settings`` hold
    ``name=value`` texts that come on top of the job's own (:mod:`zhenfa.plan.asked`). Raises
    :class:`DocumentError`, :class:`UnknownNameError` or :class:`InputError`.
    """
    job = with_limits(read_job(path, settings), limits)
    if objective is not None:
        job = job.model_copy(update={"objective": objective})
    return make_request(job, folder=Path(path).resolve().parent, on=on, assume=read_assumptions(assume))


def make_request(
    job: Job, *, folder: Path | None = None, on: str | None = None, assume: Mapping[str, str | float] | None = None,
    model: Model | None = None,
) -> Request:  # fmt: skip
    """Look up a job's model, where it is not given, and its machine; relative paths are read below ``folder``."""
    if zero_in(job.recovery, "interval"):
        raise InputError(
            f"job {job.name!r}: recovery.interval is zero.",
            hint="write one such as 20 min, or leave it out for the best.",
        )
    model = model or find_model(job.model, folder)
    wanted = on if on is not None else job.machine
    if wanted is None:
        raise InputError(
            f"job {job.name!r} names no machine.", hint="add --on MACHINE; `zhenfa show machines` lists them."
        )
    machine = wanted if isinstance(wanted, Machine) else find_machine(wanted, None if on is not None else folder)
    formation = catalog.resolve(machine, {**job.assume, **(assume or {})})
    return Request(job, model, model.graph(), formation, machine=machine)


def find_model(name: str, folder: Path | None = None) -> Model:
    """Return a catalog model, or read a model document or a Hugging Face ``config.json``.

    Raises :class:`CapabilityError` for a function of a Python file, which is not run to plan.
    """
    if code := code_of(name):
        raise CapabilityError(
            f"the model {name!r} is a function of a Python file, and no code is run to plan.",
            hint=f"`zhenfa run JOB --code {code[0]}` counts it and writes model.yaml into its folder: plan with that.",
        )
    if is_path(name):
        return read_model(model_path(name, folder))
    try:
        return catalog.model(name)
    except UnknownNameError as problem:
        hint = "`zhenfa show models` lists the catalog; a path to a config.json works as well."
        raise UnknownNameError("model", name, catalog.models(), hint=hint) from problem


def find_machine(name: str, folder: Path | None = None) -> Machine:
    """Return a catalog machine, or read a machine document."""
    return Machine.from_file(_place(name, folder)) if is_path(name) else catalog.machine(name)


def is_path(name: str) -> bool:
    """Return whether a name is the path of a document, not one of the catalog's."""
    return "/" in name or name.endswith((".yaml", ".yml", ".json")) or name.startswith(".")


def code_of(name: str) -> tuple[str, str] | None:
    """Return file and function where a model is written as a function of a Python file.

    >>> code_of("models/byte_gpt.py:build"), code_of("llama3-70b")
    (('models/byte_gpt.py', 'build'), None)
    """
    found = re.fullmatch(r"(.+\.py):([^\W\d]\w*)", name)
    return None if found is None else (found[1], found[2])


def model_path(name: str, folder: Path | None) -> Path:
    """Return the path of a model that is named by one, below the folder of the job that names it."""
    return _place(name, folder)


def _place(name: str, folder: Path | None) -> Path:
    """Return a path as typed, or below the folder of the document that names it."""
    return Path(name) if folder is None else safe_join(folder, name)
