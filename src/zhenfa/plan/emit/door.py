"""``emit``: check that a target can express a plan, find the nearest plan that it can, write its files."""

from __future__ import annotations

from zhenfa.errors import CapabilityError, InputError, near_misses
from zhenfa.plan.emit.nearest import Nearest, nearest_plan
from zhenfa.plan.emit.registry import target
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import Emission, Target
from zhenfa.spec.plan import Plan
from zhenfa.spec.serving import ServingPlan


def emit(subject: Subject, to: str, *, nearest: bool = False) -> Emission:
    """Return the files with which a target runs a plan.

    What the target cannot express is refused with the reasons and the nearest plan that it can; with ``nearest`` that
    plan is written instead. Raises :class:`UnknownNameError`, :class:`InputError` or :class:`CapabilityError`.
    """
    chosen = target(to)
    _check_task(subject, chosen)
    _check_settings(subject, chosen)
    if not isinstance(subject.plan, Plan):
        written = chosen.write(subject)
        return Emission(chosen, subject.plan, written.files, written.notes)
    reasons = reasons_against(subject, chosen)
    changes: tuple[str, ...] = ()
    if reasons:
        found = nearest_plan(subject, chosen.rules)
        if not nearest or found is None:
            raise _refusal(subject, chosen, reasons, found)
        subject, changes = subject.with_plan(found.plan), (*reasons, found.words)
    written = chosen.write(subject)
    return Emission(chosen, subject.plan, written.files, written.notes, changes)


def reasons_against(subject: Subject, chosen: Target) -> list[str]:
    """Return why a target cannot run a training plan; empty if it can."""
    return [words for rule in chosen.rules if (words := rule.reason(subject.training, subject))]


MEET = (
    "To train on all of them as planned: --to slurm, k8s or ray starts every maker's hosts, and what they run has to "
    "carry sums between makers itself; `zhenfa run` does so on this host's cards."
)
"""What is left of a plan over several makers: no two of the frameworks written here join in one job."""


def _refusal(subject: Subject, chosen: Target, reasons: list[str], found: Nearest | None) -> CapabilityError:
    if found is None:
        way_out = "no plan near it was found that can be written; `zhenfa plan` lists others (--top 20)."
    else:
        way_out = f"the nearest plan that {chosen.title} takes is {found.words}; --nearest writes it."
    if len(subject.makers()) > 1:
        way_out = f"{way_out} {MEET}"
    return CapabilityError(f"{chosen.title} cannot run this plan: {'; '.join(reasons)}.",
                           hint=way_out)  # fmt: skip


def _check_task(subject: Subject, chosen: Target) -> None:
    task = "train" if isinstance(subject.plan, Plan) else "serve"
    if task not in chosen.tasks:
        _ = subject.serving if task == "train" else subject.training


def _check_settings(subject: Subject, chosen: Target) -> None:
    known = [*chosen.settings]
    pools = [pool.name for pool in subject.formation.pools]
    roles = ["prefill", "decode"] if isinstance(subject.plan, ServingPlan) and subject.plan.prefill else []
    for given in subject.settings:
        name, _, pool = given.partition(".")
        if name not in known:
            near = near_misses(name, known, 1)
            listed = "; ".join(f"{one}: {words}" for one, words in chosen.settings.items()) or "none"
            guess = f" Did you mean {near[0]}?" if near else ""
            raise InputError(f"{chosen.name} has no setting {name!r}.{guess}", hint=f"--set takes {listed}.")
        if pool and pool not in (*pools, *roles):
            raise InputError(f"--set {given}: no pool is called {pool!r}.", hint=f"pools: {', '.join(pools)}.")
