"""Plan the large jobs on every machine of the catalog, and write ``docs/every-machine.md``.

``python tools/every_machine.py`` takes half a minute. Where a maker has not published what a plan needs, the page names
the fact; a second table plans with a value supplied for it, which is an example and nobody's figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Literal

from zhenfa import catalog, units
from zhenfa.errors import InfeasibleError, MissingFactError
from zhenfa.plan import Answer, find_plans, make_request
from zhenfa.spec.job import Job

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "every-machine.md"
MARK: Final = "<!-- Written by `python tools/every_machine.py`; a test holds it to the catalog. -->"

JOBS: Final = {
    "DeepSeek-V3, trained in BF16": ("deepseek-v3-train", "bf16"),
    "DeepSeek-V3, trained in FP8": ("deepseek-v3-train", "fp8"),
    "Llama 3 405B, trained in BF16": ("llama3-405b-train", "bf16"),
}
"""Example job and precision by title."""

SUPPLIED: Final = {
    "peak.bf16": "400 TFLOPS", "peak.fp8": "800 TFLOPS", "memory.capacity": "64 GB", "memory.bandwidth": "2 TB/s",
    "bandwidth": "100 GB/s",
}  # fmt: skip
"""Values to go on with, by the end of the fact's name."""

Kind = Literal["plan", "missing", "misfit"]


@dataclass(frozen=True)
class Outcome:
    """What came of asking for a plan: the answer, the facts that are missing, or why nothing fits."""

    machine: str
    kind: Kind
    answer: Answer | None = None
    missing: tuple[str, ...] = ()
    words: str = ""
    hint: str = ""
    given: Mapping[str, str] = field(default_factory=dict)


@cache
def job_of(title: str) -> Job:
    """Return the job of a title, without what its file assumes."""
    name, precision = JOBS[title]
    job = Job.from_file(ROOT / "examples" / f"{name}.yaml")
    return job.model_copy(update={"workload": job.workload.model_copy(update={"precision": precision}), "assume": {}})


def ask(title: str, machine: str, given: Mapping[str, str] | None = None) -> Outcome:
    """Ask for the best plan of a job on a machine, with values supplied for what is not published."""
    supplied = dict(given or {})
    try:
        answer = find_plans(make_request(job_of(title), on=machine, assume=supplied), top=1)
    except MissingFactError as problem:
        return Outcome(
            machine, "missing", missing=names_in(problem.hint), words=problem.message, hint=problem.hint or "",
            given=supplied,
        )  # fmt: skip
    except InfeasibleError as problem:
        return Outcome(machine, "misfit", words=problem.message, hint=problem.hint or "", given=supplied)
    return Outcome(machine, "plan", answer, given=supplied)


def ask_until_answered(title: str, machine: str) -> Outcome:
    """Ask, supplying a value for each fact that is named as missing, until there is a plan or nothing fits."""
    outcome = ask(title, machine)
    while outcome.kind == "missing":
        new = {name: value_for(name) for name in outcome.missing if name not in outcome.given}
        if not new:
            raise AssertionError(f"{machine}: supplying {', '.join(outcome.missing)} changed nothing")
        outcome = ask(title, machine, {**outcome.given, **new})
    return outcome


def names_in(hint: str | None) -> tuple[str, ...]:
    """Return the facts that a hint offers to supply."""
    return tuple(re.findall(r'--assume (\S+?)="[^"]+"', hint or ""))


def value_for(name: str) -> str:
    """Return the value to go on with for a fact."""
    return next(value for end, value in SUPPLIED.items() if name.endswith(end))


def machines_for(title: str) -> list[str]:
    """Return the machines that a job is planned on: for FP8, those whose cards all have a published FP8 peak."""
    if job_of(title).workload.precision != "fp8":
        return catalog.machine_names()
    pools = {name: catalog.resolve(catalog.machine(name)).pools for name in catalog.machine_names()}
    return [
        name
        for name, found in pools.items()
        if all((peak := pool.accelerator.peak.get("fp8")) is not None and peak.known for pool in found)
    ]


def page() -> str:
    """Return the page."""
    parts = [
        "# A plan on every machine", MARK,
        "The best plan of each job on each machine of the catalog (`zhenfa plan JOB --on MACHINE`). Figures are "
        "estimated from published facts. *Tag* says what the step time rests on at its weakest: `fitted` to measured "
        "steps, a maker's `claim`, or `assumed` where priors stand in for measurements that nobody has published. MFU "
        "counts model FLOPs with causal attention over the dense matmul peak of the precision.",
    ]  # fmt: skip
    for title in JOBS:
        first = [ask(title, machine) for machine in machines_for(title)]
        parts += [f"## {title}", f"{_command(title)}", "\n".join([*HEAD, *map(_row, first)])]
        supplied = [ask_until_answered(title, one.machine) for one in first if one.kind == "missing" and _sold(one)]
        if supplied:
            parts += [
                "With a value supplied for each fact that is missing. The values are examples to go on with, nobody's "
                "figures; put in your own.",
                "\n".join([*GIVEN_HEAD, *map(_given_row, supplied)]),
            ]
    return "\n\n".join(parts) + "\n"


HEAD: Final = (
    "| machine | cards | best plan | step | tokens/s | per card | MFU | binds | tag |",
    "|---|---:|---|---:|---:|---:|---:|---|---|",
)
GIVEN_HEAD: Final = (
    "| machine | supplied | best plan | step | tokens/s | per card | MFU | binds |",
    "|---|---|---|---:|---:|---:|---:|---|",
)


def _sold(outcome: Outcome) -> bool:
    return not catalog.resolve(catalog.machine(outcome.machine)).emulated


def _command(title: str) -> str:
    job = job_of(title)
    words = (
        f"`examples/{JOBS[title][0]}.yaml`, {job.workload.precision}: {job.workload.global_batch:,} sequences of "
        f"{job.workload.sequence_length:,} tokens a step."
    )
    left_out = len(catalog.machine_names()) - len(machines_for(title))
    return f"{words} {left_out} machines have cards without a published FP8 peak." if left_out else words


def _row(outcome: Outcome) -> str:
    cards = f"{catalog.resolve(catalog.machine(outcome.machine)).cards:,}"
    if outcome.answer is None:
        return f"| {outcome.machine} | {cards} | {_reason(outcome)} | | | | | | |"
    best = outcome.answer.best
    figures = " | ".join(_figures(outcome.answer))
    return (
        f"| {outcome.machine} | {cards} | {best.layout} | {figures} | {best.estimate.walls.binding} "
        f"| {best.estimate.figures.step_time_s.tag} |"
    )


def _given_row(outcome: Outcome) -> str:
    given = ", ".join(f"`{name}` {value}" for name, value in outcome.given.items())
    if outcome.answer is None:
        return f"| {outcome.machine} | {given} | {_reason(outcome)} | | | | | |"
    best = outcome.answer.best
    figures = " | ".join(_figures(outcome.answer))
    return f"| {outcome.machine} | {given} | {best.layout} | {figures} | {best.estimate.walls.binding} |"


def _figures(answer: Answer) -> Iterator[str]:
    figures = answer.best.estimate.figures
    yield units.show(figures.step_time_s.value, "time")
    yield f"{figures.tokens_per_s.value:,.0f}"
    yield f"{figures.tokens_per_s_per_card.value:,.0f}"
    yield units.show(figures.mfu.value, "ratio")


def _reason(outcome: Outcome) -> str:
    if outcome.kind == "missing":
        return "undisclosed: " + ", ".join(f"`{name}`" for name in outcome.missing)
    needs = re.search(r"needs (\S+ \S+) a card.*?; (\S+ \S+) are usable", outcome.words)
    return f"nothing fits: {needs[1]} a card needed, {needs[2]} usable" if needs else "nothing fits"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print("wrote", PAGE)


if __name__ == "__main__":
    main()
