"""``zhenfa plan``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zhenfa.cli.console import Output
from zhenfa.cli.wanted import PlanWanted
from zhenfa.errors import InputError

if TYPE_CHECKING:
    from zhenfa.plan import Answer
    from zhenfa.plan.explain import Why
    from zhenfa.plan.request import Request
    from zhenfa.plan.sensitivity import Sensitivity
    from zhenfa.plan.serving import ServingAnswer


def plan_job(wanted: PlanWanted, output: Output) -> None:
    """Plan a job file and print the answer. Raises what :func:`zhenfa.plan.find_plans` raises."""
    from zhenfa.plan import find_plans, read_request

    request = read_request(
        wanted.job,
        on=wanted.on,
        assume=wanted.assume,
        objective=wanted.objective,
        limits=wanted.limit,
        settings=wanted.settings,
    )
    if request.serves:
        _plan_serving(request, wanted, output)
        return
    with output.working("planning"):
        answer = find_plans(request, top=max(wanted.top, wanted.why if isinstance(wanted.why, int) else 1))
        why = _why(wanted, answer)
    found = _sensitivity(wanted, answer, output)
    if wanted.out:
        write_plan(wanted.out, answer)
        output.say(f"plan 1 written to {wanted.out}")
    if output.as_json:
        from zhenfa.plan.documents import to_document

        output.document(to_document(answer, wanted.top, detailed=wanted.detail, why=why, sensitivity=found))
        return
    from zhenfa.cli.plan_report import print_answer

    print_answer(answer, wanted, output, why, found)


def _plan_serving(request: Request, wanted: PlanWanted, output: Output) -> None:
    """Plan a job that serves and print the answer."""
    from zhenfa.plan.serving import find_serving

    with output.working("planning"):
        answer = find_serving(request, top=max(wanted.top, wanted.why if isinstance(wanted.why, int) else 1))
        if isinstance(wanted.why, int) and wanted.why > len(answer.plans):
            raise _no_such_plan(wanted.why, len(answer.plans))
        why = None if wanted.why is None else answer.why(wanted.why)
    found = _serving_sensitivity(wanted, answer, output)
    if wanted.out:
        write_plan(wanted.out, answer)
        output.say(f"plan 1 written to {wanted.out}")
    if output.as_json:
        from zhenfa.plan.serving.documents import to_document

        output.document(to_document(answer, wanted.top, detailed=wanted.detail, why=why, sensitivity=found))
        return
    from zhenfa.cli.serving_report import print_serving

    print_serving(answer, wanted, output, why, found)


def _serving_sensitivity(wanted: PlanWanted, answer: ServingAnswer, output: Output) -> Sensitivity | None:
    """Return which input moves the answer most; None where that was not asked."""
    if not wanted.sensitivity:
        return None
    from zhenfa.plan.serving.sensitivity import sensitivity

    with output.progress("moving inputs") as move:
        return sensitivity(answer, progress=move)


def _sensitivity(wanted: PlanWanted, answer: Answer, output: Output) -> Sensitivity | None:
    """Return which input moves the answer most; None where that was not asked."""
    if not wanted.sensitivity:
        return None
    from zhenfa.plan.sensitivity import sensitivity

    with output.progress("moving inputs") as move:
        return sensitivity(answer, progress=move)


def _why(wanted: PlanWanted, answer: Answer) -> Why | None:
    """Return why the plan asked for lost; None where none was. Raises :class:`InputError`."""
    if wanted.why is None:
        return None
    if isinstance(wanted.why, int) and wanted.why > len(answer.plans):
        raise _no_such_plan(wanted.why, len(answer.plans))
    from zhenfa.plan.explain import explain
    from zhenfa.plan.given import read_plan

    if isinstance(wanted.why, int):
        return explain(answer, wanted.why)
    return explain(answer, read_plan(wanted.why, answer.request), name=wanted.why)


def _no_such_plan(why: int, found: int) -> InputError:
    if found < 2:
        return InputError(f"there is no plan {why}: only one was found.", hint="leave --why out.")
    choice = "--why 2." if found == 2 else f"--why 2 to --why {found}."
    return InputError(f"there is no plan {why}: {found} were found.", hint=choice)


def write_plan(path: str, answer: Answer | ServingAnswer) -> None:
    """Write the best plan as a document. Raises :class:`InputError` if that place cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(answer.best.plan.to_yaml())
    except OSError as problem:
        words = f"{path!r} cannot be written: {os.strerror(problem.errno or 0)}."
        raise InputError(words, hint="name a file in a folder that exists with --out.") from None
