"""``zhenfa.plan(job, machine)``: the planner as one call, with paths, names, mappings or documents for both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zhenfa.errors import InputError
from zhenfa.plan.answer import estimate_plan, find_plans
from zhenfa.plan.request import Request, make_request, read_request
from zhenfa.spec.job import Job
from zhenfa.spec.machine import Machine

JobLike = str | os.PathLike[str] | Mapping[str, Any] | Job
MachineLike = str | os.PathLike[str] | Mapping[str, Any] | Machine


class Planner:
    """What ``zhenfa.plan`` is to a type checker: a package of these functions that can also be called."""

    estimate_plan = staticmethod(estimate_plan)
    find_plans = staticmethod(find_plans)
    make_request = staticmethod(make_request)
    read_request = staticmethod(read_request)

    def __call__(
        self,
        job: JobLike,
        machine: MachineLike | None = None,
        *,
        assume: Mapping[str, str | float] | None = None,
        top: int = 5,
    ) -> Any:
        """Return the ``top`` best plans for a job on a machine: an :class:`Answer` where the job trains, a
        :class:`~zhenfa.plan.serving.ServingAnswer` where it serves. Both have ``best``, ``plans`` and ``to_json()``.

        ``job``: the path of a job file, the mapping that such a file holds, or a :class:`zhenfa.Job`. ``machine``: a
        catalog name, the path of a machine file, its mapping, or a :class:`zhenfa.Machine`; by default the job's own.
        ``assume`` supplies values that makers have not published, by dotted name.

        Raises the errors of :mod:`zhenfa.errors`: :class:`~zhenfa.errors.InputError` and what is below it for what
        cannot be used, :class:`~zhenfa.errors.InfeasibleError` where nothing fits.
        """
        request = request_for(job, machine, assume=assume)
        if request.serves:
            from zhenfa.plan.serving import find_serving

            return find_serving(request, top=_whole(top))
        return find_plans(request, top=_whole(top))


def request_for(
    job: JobLike, machine: MachineLike | None = None, *, assume: Mapping[str, str | float] | None = None
) -> Request:
    """Return the request that a job and a machine in any form make."""
    read, folder = _job(job)
    if machine is None or isinstance(machine, str | os.PathLike):
        on = None if machine is None else os.fspath(machine)
        return make_request(read, folder=folder, on=on, assume=assume)
    document = machine if isinstance(machine, Machine) else Machine.from_data(_mapping(machine, "machine"))
    return make_request(read.model_copy(update={"machine": document}), folder=folder, assume=assume)


def _job(job: JobLike) -> tuple[Job, Path | None]:
    """Return the job, and the folder below which the paths in it are read."""
    if isinstance(job, Job):
        return job, None
    if isinstance(job, str | os.PathLike):
        return Job.from_file(job), Path(job).resolve().parent
    return Job.from_data(_mapping(job, "job")), None


def _mapping(given: object, what: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        known = f"a path, a mapping or a zhenfa.{what.capitalize()}"
        raise InputError(f"a {what} is {known}, not {type(given).__name__}.")
    return dict(given)


def _whole(top: int) -> int:
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"top is {top!r}: it is a whole number, 1 or more.")
    return top


planner = Planner()
"""What a call of the package goes to."""
