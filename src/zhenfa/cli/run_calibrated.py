"""``zhenfa run --calibrate``: a job on a machine that is measured first."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.errors import CapabilityError, InputError
from zhenfa.plan.asked import read_assumptions
from zhenfa.plan.request import Request, make_request
from zhenfa.spec.job import Job

if TYPE_CHECKING:
    from zhenfa.cli.run import Wanted
    from zhenfa.live.foreign.subject import Subject

LEAST_S = 2.0
"""Seconds in which something can be timed."""


def measured_first(wanted: Wanted, output: Output, job: Job, folder: Path, subject: Subject) -> Request:
    """Return what is to be run, a ``job`` of a ``folder`` that trains a ``subject``, on its machine as measured; a job
    that names none runs on this host's cards."""
    if importlib.util.find_spec("torch") is None:
        raise CapabilityError("torch is not installed.", hint="pip install 'zhenfa[live]'.")
    from zhenfa.live.calibrate import before

    model = subject.model
    wish = before.Wish(_within(wanted.calibrate_within), wanted.calibrate_anew)
    assumed = read_assumptions(wanted.assume)
    if wanted.on is None and job.machine is None:
        with output.working("calibrating"):
            found = before.measured_device(wish, output.say)
        request = make_request(
            job.model_copy(update={"machine": found.machine}), folder=folder, assume=assumed, model=model
        )  # fmt: skip
    else:
        request = make_request(job, folder=folder, on=wanted.on, assume=assumed, model=model)
        with output.working("calibrating"):
            if before.by_device(request.formation):
                found = before.measured_device(
                    wish, output.say, machine=request.machine, formation=request.formation
                )  # fmt: skip
            else:
                found = before.measured_pools(request, wish, output.say, subject.sizes)
        request = make_request(
            job.model_copy(update={"machine": found.machine}), folder=folder, assume=assumed, model=model
        )
    output.say(f"calibrated: {found.words} ({found.kept})")
    if found.cached:
        output.say("--calibrate-anew measures again")
    return request


def _within(text: str | None) -> float:
    from zhenfa.live.calibrate.before import WITHIN_S

    if text is None:
        return WITHIN_S
    seconds = units.parse(text, "time")
    if seconds < LEAST_S:
        raise InputError(
            f"--calibrate-within is {text}: nothing can be timed in that.", hint="give it 10 s or more."
        )  # fmt: skip
    return seconds
