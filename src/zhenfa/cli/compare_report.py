"""The answer of ``zhenfa compare`` in words: the contest, at equal size, the four walls, who cannot be told apart."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.walls import NAMES
from zhenfa.cli.wanted import CompareWanted, said
from zhenfa.cli.words import EMULATED, LEGEND, MARKS, band, bare, of, ratio
from zhenfa.plan.best_plan import BestPlan
from zhenfa.plan.compare import Comparison, Entry
from zhenfa.plan.merit import By
from zhenfa.spec.job import Job
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure
from zhenfa.spec.serving import ServingWorkload

ASKED: Final[dict[By, str]] = {
    "throughput": "most tokens/s", "card": "most tokens/s per card", "power": "most tokens/s per kW",
    "cost": "most tokens per CNY",
}  # fmt: skip
UNITS: Final[dict[By, str]] = {
    "throughput": "tokens/s",
    "card": "tokens/s per card",
    "power": "tokens/s per kW",
    "cost": "tokens per CNY",
}


def print_comparison(found: Comparison, wanted: CompareWanted, output: Output) -> None:
    """Print the contest as far as it was asked for."""
    out = output.data
    _print_subject(found, output)
    left_out: list[str] = []
    if found.planned:
        out.head("Contest", f"(estimated, {ASKED[found.by]} first)")
        left_out += out.table(contest_table(found))
        _print_legend(found, output)
        _print_level(found, output)
        out.head("At equal size", "(throughput per card and per kW taken as constant)")
        left_out += out.table(equal_table(found))
        out.head("Four walls", "(estimated; > binds)")
        left_out += out.table(walls_table(found))
        common = _common_advice(found)
        if common:
            out.text(common, first="   to move any of them: ", style="dim")
        out.head("Best plans")
        left_out += out.table(plan_table(found))
        for entry in found.planned:
            for words in entry.best.quality if entry.best else ():
                out.text(words, first=f"   {entry.name}, may change what the model says: ", style="dim")
    _print_without(found, output)
    _print_ground(found, wanted, output)
    if output.cite:
        output.sources(line for entry in found.planned if entry.best for line in entry.best.sources)
    _suggest(found, wanted, output)
    output.left_out(left_out)


def _print_subject(found: Comparison, output: Output) -> None:
    each = f", {found.cards:,} cards of each" if found.cards is not None else ""
    words = f"{found.job.model}; {workload_words(found.job)}; on {len(found.entries)} machines{each}"
    words += f"; plans chosen for {found.job.objective}" if found.job.objective != "step" else ""
    output.data.text(words, first=f"{found.job.name}: ")


def workload_words(job: Job) -> str:
    """Return what a job asks for, in one line."""
    workload = job.workload
    if not isinstance(workload, ServingWorkload):
        batch = f"{workload.global_batch:,} sequences x {workload.sequence_length:,} tokens a step"
        return f"{batch}, {workload.precision_words}"
    load = "the most requests/s"
    if workload.request_rate is not None:
        load = f"{bare(workload.request_rate)} requests/s"
    elif workload.concurrency is not None:
        load = f"{workload.concurrency:,.0f} requests at once"
    words = f"{workload.mean_input:,.0f} tokens in, {workload.mean_output:,.0f} out; {load}"
    for name, target in (("TTFT", workload.ttft_target), ("TPOT", workload.tpot_target)):
        words += "" if target is None else f", mean {name} {units.show(target, 'time')} at most"
    return words


def marked(figure: Figure) -> str:
    """Return a figure without its unit, with the mark of its tag; ``-`` where it is unknown."""
    return "-" if figure.value is None else f"{bare(figure.value)}{MARKS[figure.tag]}"


def share(figure: Figure) -> str:
    """Return a share with the mark of its tag; ``-`` where it is unknown."""
    return "-" if figure.value is None else f"{units.show(figure.value, 'ratio')}{MARKS[figure.tag]}"


def title(entry: Entry) -> str:
    """Return a machine's name, marked where its cards are emulated."""
    emulated = entry.formation is not None and entry.formation.emulated
    return f"{entry.name} [{EMULATED}]" if emulated else entry.name


def contest_table(found: Comparison) -> Table:
    """Return one row for each machine, the best first, those without a plan last."""
    columns = (
        Column("#", right=True), Column("machine"), Column("cards", right=True, drop=1),
        Column("tokens/s", right=True), Column("p10-p90", right=True, drop=6), Column("per card", right=True),
        Column("per kW", right=True), Column("per CNY", right=True, drop=2), Column("requests/s", right=True, drop=4),
        Column("TTFT", right=True, drop=5), Column("TPOT", right=True, drop=3), Column("step", right=True, drop=5),
        Column("p10-p90", right=True, drop=9), Column("MFU", right=True, drop=3), Column("ETTR", right=True, drop=7),
        Column("goodput", right=True, drop=8), Column("binds", drop=4), Column("level with", drop=10),
    )  # fmt: skip
    rows = [_row(found, entry) for entry in found.entries]
    return table(columns, rows, strong=[0] if found.ranked else [])


def _row(found: Comparison, entry: Entry) -> tuple[str, ...]:
    if entry.best is None:
        reason = entry.problem.kind if entry.problem else ""
        return ("-", title(entry), _count(entry), "no plan", "", "-", "-", *[""] * 9, reason, "")
    figures, operating = entry.best.figures, entry.best.operating
    place = found.rank(entry)
    money = marked(entry.per_money) if found.priced else ""
    return (
        "-" if place is None else str(place), title(entry), _count(entry), marked(figures.tokens_per_s),
        band(figures.tokens_per_s), marked(figures.tokens_per_s_per_card), _power(entry), money,
        _known(bare(figures.requests_per_s.value)), _time(figures.ttft_s), _time(figures.tpot_s),
        _time(figures.step_time_s), band(figures.step_time_s) or band(figures.tpot_s), _known(share(figures.mfu)),
        _known(share(figures.ettr)), _known(share(operating.goodput)), entry.best.walls.binding,
        ", ".join(str(found.rank(one)) for one in found.level_with(entry)),
    )  # fmt: skip


def _known(shown: str) -> str:
    """Return a cell, empty where there is no figure, so that a column without any is left out."""
    return "" if shown == "-" else shown


def _time(figure: Figure) -> str:
    return "" if figure.value is None else units.show(figure.value, "time")


def _count(entry: Entry) -> str:
    return f"{entry.formation.cards:,}" if entry.formation else ""


def _power(entry: Entry) -> str:
    return marked(entry.per_kilowatt) + ("*" if entry.power_without_building else "")


def _print_legend(found: Comparison, output: Output) -> None:
    out, serves = output.data, isinstance(found.job.workload, ServingWorkload)
    lines = {
        "tokens/s": "output tokens" if serves else "",
        "p10-p90": f"four of five measured {'TPOT' if serves else 'steps'} of such jobs lay in this band",
        "per kW": "tokens/s per kW of facility power while the cards work",
        "per CNY": _words_on_prices(found),
        "ETTR": "" if serves else "share of wall-clock time not lost to failures; goodput: scheduling x ETTR x MFU",
        "tags": LEGEND,
    }
    out.line()
    for label, words in lines.items():
        if words:
            out.text(words, first=f"   {label:<8} ", style="dim")
    without = found.without_pue
    if without:
        names = ", ".join(entry.name for entry in without)
        words = f"{names}: PUE undisclosed and not counted, which flatters them beside the others"
        if len(without) == len(found.planned):
            words = f"{names}: PUE undisclosed; power of the equipment alone"
        out.text(f"{words}; supply --assume {without[0].name}.pue=1.2 (your value)", first="   *        ", style="dim")


def _words_on_prices(found: Comparison) -> str:
    missing = found.unpriced
    words = ["useful tokens per CNY of rent, lost time paid for"] if found.priced else []
    if missing:
        words.append(f'no price of {", ".join(missing)}: supply --assume {missing[0]}.price="18 CNY/h" (your values)')
    return "; ".join(words)


def _print_level(found: Comparison, output: Output) -> None:
    groups = found.level
    if not groups:
        return
    named = "; ".join(f"{', '.join(one.name for one in group[:-1])} and {group[-1].name}" for group in groups)
    output.data.line()
    output.data.text(f"{named}: their bands of {UNITS[found.by]} overlap.", first="Cannot be told apart: ")


def equal_table(found: Comparison) -> Table:
    """Return throughput at as many cards, and as much power, as the smallest plan has."""
    power = units.show(found.equal_power_w, "power")
    columns = (
        Column("machine"), Column(f"{found.equal_cards or 0:,} cards of each", right=True), Column("of #1", right=True),
        Column("p10-p90", right=True, drop=1), Column(f"{power} of each", right=True), Column("of #1", right=True),
        Column("p10-p90", right=True, drop=2), Column("takes", right=True, drop=3),
    )  # fmt: skip
    first = (found.ranked or found.planned)[0]
    cards_first, power_first = found.at_equal_cards(first).value, found.at_equal_power(first).value
    rows = []
    for entry in found.planned:
        by_cards, by_power = found.at_equal_cards(entry), found.at_equal_power(entry)
        watts = entry.best.operating.facility_power_w.value if entry.best else None
        known = by_power.value is not None
        rows.append((
            entry.name, marked(by_cards), ratio(by_cards.value, cards_first), band(by_cards),
            marked(by_power) if known else "", ratio(by_power.value, power_first) if known else "", band(by_power),
            units.show(watts, "power") if watts is not None else "",
        ))  # fmt: skip
    return table(columns, rows)


def walls_table(found: Comparison) -> Table:
    """Return the four walls of each machine, the binding one marked, and what would move it."""
    columns = (
        Column("machine"), *(Column(name, right=True) for name in NAMES), Column("J/token", right=True, drop=2),
        Column("most of the step", drop=1),
    )  # fmt: skip
    rows = [_walls(entry, entry.best) for entry in found.planned if entry.best]
    notes = [] if _common_advice(found) else _advice(found)
    return Table(columns, tuple(rows), tuple(notes), "to move it", room=44)


def _advice(found: Comparison) -> list[str]:
    known = [entry.best for entry in found.planned if entry.best]
    return [str(getattr(one.walls, one.walls.binding).advice) for one in known]


def _common_advice(found: Comparison) -> str:
    """Return what would move the binding wall of every machine, where that is the same for all."""
    words = set(_advice(found))
    return words.pop() if len(words) == 1 else ""


def _walls(entry: Entry, best: BestPlan) -> tuple[str, ...]:
    cells = []
    for name in NAMES:
        wall = getattr(best.walls, name).share
        shown = "-" if wall is None else f"{wall:.1%}"
        cells.append(f"> {shown}" if best.walls.binding == name else shown)
    largest = max(best.parts_s, key=lambda part: best.parts_s[part], default="")
    return (entry.name, *cells, marked(best.figures.energy_j_per_token), largest)


def plan_table(found: Comparison) -> Table:
    """Return the layout of each machine's best plan."""
    columns = (
        Column("machine"), Column("layout", wrap=20), Column("runs", drop=2), Column("cards used", right=True),
        Column("memory", right=True, drop=1),
    )  # fmt: skip
    rows = [
        (
            entry.name, entry.best.layout, _way(entry.best),
            f"{entry.best.plan.cards:,} of {_count(entry)}", _memory(entry.best),
        )
        for entry in found.planned
        if entry.best
    ]  # fmt: skip
    return table(columns, rows)


def _way(best: BestPlan) -> str:
    """Return the schedule of a plan that trains, the engine and its weights of one that serves."""
    plan = best.plan
    return plan.schedule if isinstance(plan, Plan) else f"{plan.engine}, {'/'.join(plan.formats)}"


def _memory(best: BestPlan) -> str:
    return of(*best.memory) if best.memory is not None else ""


def _print_without(found: Comparison, output: Output) -> None:
    out = output.data
    without = [(entry, entry.problem) for entry in found.entries if entry.problem is not None]
    if not without:
        return
    out.head("No plan")
    for entry, problem in without:
        out.text(problem.message, first=f"  {entry.name} ({problem.kind}): ")
        if problem.hint:
            out.text(problem.hint, first="    way out: ", style="dim")


def _print_ground(found: Comparison, wanted: CompareWanted, output: Output) -> None:
    out = output.data
    if wanted.detail:
        for entry in found.planned:
            out.head(f"Rests on, {entry.name}")
            out.items(entry.best.assumptions if entry.best else ())
        return
    yours = dict.fromkeys(
        f"{name} = {value} (yours)"
        for entry in found.entries
        if entry.formation
        for name, value in entry.formation.assumed.items()
    )
    if yours:
        out.head("Rests on", "(--detail lists the rest)")
        out.items(yours)


def _suggest(found: Comparison, wanted: CompareWanted, output: Output) -> None:
    """Say on stderr which commands lead on from here."""
    names: Sequence[str] = [entry.name for entry in found.ranked]
    if not names:
        return
    given = said(wanted)
    output.talk.line()
    output.talk.line("Next:", "dim")
    output.talk.line(f"  {shlex.join(['zhenfa', 'plan', wanted.job, '--on', names[0], *given])}")
    if not wanted.picture:
        machines = ",".join(wanted.machines)
        words = ["zhenfa", "compare", wanted.job, "--on", machines, *given, "--picture", "contest.png"]
        output.talk.line(f"  {shlex.join(words)}")
