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
from zhenfa.plan.serving import ServingAnswer, find_serving
from zhenfa.spec.job import Job
from zhenfa.spec.serving import ServingWorkload

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "every-machine.md"
MARK: Final = "<!-- Written by `python tools/every_machine.py`; a test holds it to the catalog. -->"

SERVING: Final = {
    "DeepSeek-V3, served": ("deepseek-v3-serve", ""),
    "Qwen3-235B-A22B, served": ("qwen3-235b-serve", ""),
}
"""Example jobs that serve, by title."""

JOBS: Final = {
    "DeepSeek-V3, trained in BF16": ("deepseek-v3-train", "bf16"),
    "DeepSeek-V3, trained in FP8": ("deepseek-v3-train", "fp8"),
    "Llama 3 405B, trained in BF16": ("llama3-405b-train", "bf16"),
    **SERVING,
}
"""Example job, and precision of training, by title."""

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
    answer: Answer | ServingAnswer | None = None
    missing: tuple[str, ...] = ()
    words: str = ""
    hint: str = ""
    given: Mapping[str, str] = field(default_factory=dict)


@cache
def job_of(title: str) -> Job:
    """Return the job of a title, without what its file assumes."""
    name, precision = JOBS[title]
    job = Job.from_file(ROOT / "examples" / f"{name}.yaml")
    if title in SERVING:
        return job.model_copy(update={"assume": {}})
    return job.model_copy(update={"workload": job.workload.model_copy(update={"precision": precision}), "assume": {}})


def ask(title: str, machine: str, given: Mapping[str, str] | None = None) -> Outcome:
    """Ask for the best plan of a job on a machine, with values supplied for what is not published."""
    supplied = dict(given or {})
    try:
        request = make_request(job_of(title), on=machine, assume=supplied)
        answer = (find_serving if title in SERVING else find_plans)(request, top=1)
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
    if JOBS[title][1] != "fp8":
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
        "estimated from published facts. *Tag* says what they rest on at their weakest: `fitted` to measurements, a "
        "maker's `claim`, or `assumed` where priors stand in for measurements that nobody has published. MFU counts "
        "model FLOPs with causal attention over the dense matmul peak of the precision. Of serving: requests and "
        "output tokens per second, means.",
    ]  # fmt: skip
    for title in JOBS:
        first = [ask(title, machine) for machine in machines_for(title)]
        parts += [f"## {title}", _command(title), table(title, first)]
        supplied = [ask_until_answered(title, one.machine) for one in first if one.kind == "missing" and _sold(one)]
        if supplied:
            parts += [
                "With a value supplied for each fact that is missing. The values are examples to go on with, nobody's "
                "figures; put in your own.",
                table(title, supplied, given=True),
            ]
    return "\n\n".join(parts) + "\n"


TRAINED: Final = ("best plan", "step", "tokens/s", "per card", "MFU", "binds", "tag")
SERVED: Final = ("best plan", "cards used", "requests/s", "tokens/s per card", "TTFT", "TPOT", "tag")
NUMBERS: Final = frozenset({*TRAINED[1:5], *SERVED[1:6], "cards"})


def columns(title: str, *, given: bool = False) -> tuple[str, ...]:
    """Return the columns of a table."""
    return ("machine", "supplied" if given else "cards", *(SERVED if title in SERVING else TRAINED))


def table(title: str, outcomes: list[Outcome], *, given: bool = False) -> str:
    """Return a line for each outcome."""
    names = columns(title, given=given)
    rows = [[one.machine, _supplied(one) if given else _cards(one), *_cells(one)] for one in outcomes]
    padded = [row + [""] * (len(names) - len(row)) for row in rows]
    rule = ["---:" if name in NUMBERS else "---" for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(names), rule, *padded])


def _sold(outcome: Outcome) -> bool:
    return not catalog.resolve(catalog.machine(outcome.machine)).emulated


def _cards(outcome: Outcome) -> str:
    return f"{catalog.resolve(catalog.machine(outcome.machine)).cards:,}"


def _supplied(outcome: Outcome) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in outcome.given.items())


def _command(title: str) -> str:
    name, precision = JOBS[title]
    workload = job_of(title).workload
    if isinstance(workload, ServingWorkload):
        load = f"{workload.request_rate:g} requests/s" if workload.request_rate else "as many requests as it takes"
        targets = ", ".join(
            f"{kind} within {units.show(value, 'time')}"
            for kind, value in (("TTFT", workload.ttft_target), ("TPOT", workload.tpot_target))
            if value is not None
        )
        return (
            f"`examples/{name}.yaml`: prompts of {workload.input_length:,.0f} tokens, answers of "
            f"{workload.output_length:,.0f}, {load}, {targets}."
        )
    words = (
        f"`examples/{name}.yaml`, {precision}: {workload.global_batch:,} sequences of {workload.sequence_length:,} "
        "tokens a step."
    )
    left_out = len(catalog.machine_names()) - len(machines_for(title))
    return f"{words} {left_out} machines have cards without a published FP8 peak." if left_out else words


def _cells(outcome: Outcome) -> list[str]:
    if outcome.answer is None:
        return [_reason(outcome)]
    best = outcome.answer.best
    if isinstance(outcome.answer, ServingAnswer):
        return [best.layout.replace("|", "+"), *_served(outcome.answer)]
    return [best.layout, *_trained(outcome.answer)]


def _trained(answer: Answer) -> Iterator[str]:
    figures = answer.best.estimate.figures
    yield units.show(figures.step_time_s.value, "time")
    yield f"{figures.tokens_per_s.value:,.0f}"
    yield f"{figures.tokens_per_s_per_card.value:,.0f}"
    yield units.show(figures.mfu.value, "ratio")
    yield answer.best.estimate.walls.binding
    yield figures.step_time_s.tag


def _served(answer: ServingAnswer) -> Iterator[str]:
    figures = answer.best.estimate.figures
    yield f"{answer.best.plan.cards:,}"
    yield (
        f"{figures.requests_per_s.value:,.3g}"
        if figures.requests_per_s.value < 1000
        else (f"{figures.requests_per_s.value:,.0f}")
    )
    yield f"{figures.tokens_per_s_per_card.value:,.0f}"
    yield units.show(figures.ttft_s.value, "time")
    yield units.show(figures.tpot_s.value, "time")
    yield figures.tpot_s.tag


def _reason(outcome: Outcome) -> str:
    if outcome.kind == "missing":
        return "undisclosed: " + ", ".join(f"`{name}`" for name in outcome.missing)
    needs = re.search(r"needs (\S+ \S+) a card.*?; (\S+ \S+) are usable", outcome.words)
    held = re.search(r"are (\S+ \S+) a card on .*?; (\S+ \S+) are usable", outcome.words)
    missed = re.search(r"(\w+) is (\S+ \S+), (\S+ \S+) are reached", outcome.words)
    if needs or held:
        found = needs or held
        return f"nothing fits: {found[1]} a card needed, {found[2]} usable"
    return f"{missed[1]} of {missed[2]} missed: {missed[3]}" if missed else "nothing fits"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print("wrote", PAGE)


if __name__ == "__main__":
    main()
