"""The answer of ``zhenfa plan`` for a job that serves: ranked plans, groups of instances, walls, what it rests on."""

from __future__ import annotations

from typing import Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.plan_ground import command_of, print_rejected, suggest
from zhenfa.cli.plan_sensitivity import print_sensitivity
from zhenfa.cli.serving_detail import print_detail
from zhenfa.cli.serving_why import print_serving_why
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.walls import print_walls
from zhenfa.cli.wanted import PlanWanted
from zhenfa.cli.words import EMULATED, band, bare, of, parameters
from zhenfa.plan.sensitivity import Sensitivity
from zhenfa.plan.serving import ServingAnswer, ServingRanked
from zhenfa.plan.serving.explain import ServingWhy
from zhenfa.plan.serving.words import group_words, percentiles, target_words
from zhenfa.spec.result import Figure

COUNTED: Final = {"cost": "money for a token", "energy": "energy of a token"}
"""What sensitivity looks at, by objective."""
ORDER: Final = {
    "cost": "cheapest token first",
    "energy": "least energy of a token first",
    "cards": "fewest cards first",
}
"""How plans are ordered, by objective; else by output."""


def print_serving(
    answer: ServingAnswer,
    wanted: PlanWanted,
    output: Output,
    why: ServingWhy | None = None,
    found: Sensitivity | None = None,
) -> None:
    """Print the answer as far as it was asked for."""
    _print_subject(answer, output)
    left_out = _print_plans(answer, wanted.top, output)
    _print_groups(answer.best, output)
    out, walls = output.data, answer.best.estimate.walls
    out.head("Four walls of plan 1", f"(of a decode step, estimated; {walls.binding} binds)")
    print_walls(out, walls, empty="undisclosed")
    if wanted.detail:
        left_out += print_detail(answer, output)
    if found is not None:
        left_out += print_sensitivity(found, output, COUNTED.get(found.objective, "card-seconds of a token"))
    if why is not None:
        left_out += print_serving_why(why, output)
    _print_ground(answer, output)
    if output.cite:
        output.sources(answer.sources)
    written = [] if wanted.out else [f"{command_of(wanted)} --out serving-plan.yaml"]
    suggest(wanted, len(answer.plans), written, output)
    output.left_out(left_out)


def _print_subject(answer: ServingAnswer, output: Output) -> None:
    request = answer.request
    graph, workload, formation = request.graph, request.serving, request.formation
    load = "the most requests/s"
    if workload.request_rate is not None:
        load = f"{bare(workload.request_rate)} requests/s"
    elif workload.concurrency is not None:
        load = f"{workload.concurrency:,.0f} requests at once"
    said = target_words(workload)
    output.data.text(
        f"{graph.name}, {parameters(graph.parameters)} parameters, {parameters(graph.active_parameters)} active; "
        f"{workload.mean_input:,.0f} tokens in, {workload.mean_output:,.0f} out; {load}"
        + (f" with {' and '.join(said)} at most" if said else ""),
        first=f"{request.job.name}: ",
    )
    mark = f" [{EMULATED}]" if formation.emulated else ""
    pools = " + ".join(f"{pool.count:,} {pool.accelerator.id}" for pool in formation.pools)
    output.data.text(pools, first=f"on {formation.name}{mark}: ")


def _print_plans(answer: ServingAnswer, top: int, output: Output) -> list[str]:
    out, workload = output.data, answer.request.serving
    left = "that failures leave " if answer.request.job.objective == "throughput" else ""
    order = ORDER.get(answer.request.job.objective) or (
        f"most requests/s {left}first" if workload.open_ended else "most output per card first"
    )
    out.head("Plans", f"(estimated, {order})")
    left_out = out.table(plan_table(answer.plans[:top]))
    figures = answer.best.estimate.figures
    apart = any(part.prefill for one in answer.plans[:top] for part in one.plan.parts)
    legend = {
        "layout": "instances x how each is cut" + ("; prefill -> decode" if apart else ""),
        "p10-p90": "four of five measured TPOT of such engines and cards lay in this band"
        if "p10-p90" not in left_out and figures.tpot_s.p10 is not None
        else "",
        "tokens/s": "output tokens; per user: one over TPOT",
        "tags": _tags(answer.best),
    }
    out.line()
    for label, words in legend.items():
        if words:
            out.text(words, first=f"   {label:<9} ", style="dim")
    out.line()
    if len(answer.plans) > 1:
        out.text(f"Plan 2 is behind by {answer.plans[1].lost_by}. ({answer.plans[1].layout})")
    if answer.gap > 0:
        out.text(f"No plan in the space beats plan 1 by more than {answer.gap:.1%}.")
    return left_out


def _tags(one: ServingRanked) -> str:
    figures = one.estimate.figures
    found: dict[str, list[str]] = {}
    named: dict[str, Figure] = {
        "TTFT": figures.ttft_s, "TPOT": figures.tpot_s, "tokens/s": figures.tokens_per_s,
        "memory": figures.memory_bytes_per_card, "J/token": figures.energy_j_per_token,
    }  # fmt: skip
    for name, value in named.items():
        if value.value is not None:
            found.setdefault(value.tag, []).append(name)
    return "; ".join(f"{', '.join(names)}: {tag}" for tag, names in found.items())


def plan_table(plans: tuple[ServingRanked, ...]) -> Table:
    """Return one row for each plan, the winner first."""
    priced = any(one.estimate.figures.cost_per_million_tokens.value is not None for one in plans)
    columns = (
        Column("#", right=True), Column("layout", wrap=24), Column("on", drop=6), Column("cards", right=True, drop=4),
        Column("requests/s", right=True), Column("tokens/s", right=True, drop=5), Column("per card", right=True),
        Column("per user", right=True, drop=7), Column("TTFT", right=True), Column("TPOT", right=True),
        Column("p10-p90", right=True, drop=8), Column("memory", right=True, drop=9),
        Column("J/token", right=True, drop=10), *([Column("CNY/M", right=True, drop=11)] if priced else []),
        Column("behind", right=True),
    )  # fmt: skip
    several = len({pool for one in plans for pool in one.plan.cards_by_pool()}) > 1
    return table(columns, [_row(one, several, priced) for one in plans], strong=[0])


def _row(one: ServingRanked, several: bool, priced: bool) -> tuple[str, ...]:
    pools = " + ".join(f"{count:,} {pool}" for pool, count in one.plan.cards_by_pool().items()) if several else ""
    figures = one.estimate.figures
    behind = one.lost_by.partition(" ")[0]
    return (
        str(one.rank), one.layout, pools, f"{one.plan.cards:,}", bare(figures.requests_per_s.value),
        bare(figures.tokens_per_s.value), bare(figures.tokens_per_s_per_card.value),
        bare(figures.tokens_per_s_per_user.value), units.show(figures.ttft_s.value, "time"),
        units.show(figures.tpot_s.value, "time"), band(figures.tpot_s), of(*one.estimate.fullest),
        bare(figures.energy_j_per_token.value), *([bare(figures.cost_per_million_tokens.value)] if priced else []),
        behind or "best",
    )  # fmt: skip


def _print_groups(one: ServingRanked, output: Output) -> None:
    out = output.data
    out.head(
        "Instances of plan 1",
        f"({one.plan.engine}, weights in {' and '.join(one.plan.formats)}, cache in {one.plan.cache})",
    )
    several = len(one.plan.formats) > 1
    for part in one.plan.parts:
        if part.share < 1:
            out.text(f"{part.share:.1%} of the requests go to:", first="  ")
        if part.prefill is not None:
            said = part.weights_of("prefill") if several else ""
            out.text(group_words(part.prefill, "prefill", said), first="    " if part.share < 1 else "  ")
        role = "prefill and decode" if part.prefill is None else "decode"
        said = part.weights if several else ""
        out.text(group_words(part.decode, role, said), first="    " if part.share < 1 else "  ")
    for part_estimate in one.estimate.parts:
        if "bridge" in part_estimate.first_s:
            seconds = units.show(part_estimate.first_s["bridge"], "time")
            out.text(f"the bridge between pools carries the cache of every prompt: {seconds} of the TTFT", first="  ")
    speculation = one.plan.speculation
    if speculation is not None:
        out.text(
            f"drafts: {speculation.draft_tokens} a step by the model's own layers, {speculation.accepted:.2f} tokens "
            "come out of a step", first="  ",
        )  # fmt: skip
    for name, percent, within in percentiles(one.estimate):
        out.text(f"{percent:g} % of requests have a {name} within {units.show(within, 'time')}", first="  ")
    for words in one.quality:
        out.text(f"may change what the model says: {words}", first="  ", style="warn")


def _print_ground(answer: ServingAnswer, output: Output) -> None:
    out = output.data
    if answer.best.estimate.assumptions:
        out.head("Rests on")
        out.items(answer.best.estimate.assumptions)
    out.head("Considered", f"{answer.considered:,} instance types in {answer.seconds:.2f} s, {answer.costed:,} costed")
    print_rejected(answer.rejected, output)
