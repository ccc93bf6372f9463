"""The answer of ``zhenfa swap`` in words: how many cards, both sides, where time goes, how the count was found."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from zhenfa import units
from zhenfa.cli.compare_report import marked, share, workload_words
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, Table, table
from zhenfa.cli.walls import NAMES
from zhenfa.cli.wanted import SwapWanted, said
from zhenfa.cli.words import EMULATED, LEGEND, MARKS, band, bare, ratio, short
from zhenfa.plan.best_plan import BestPlan
from zhenfa.plan.compare import Entry
from zhenfa.plan.counting import WITNESSES
from zhenfa.plan.merit import hourly_price, useful
from zhenfa.plan.swap import Swap, cards_of
from zhenfa.spec.fact import Fact
from zhenfa.spec.machine import CardPool
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Figure
from zhenfa.spec.serving import ServingWorkload

COUNTS_SHOWN: Final = 8
NEGLIGIBLE: Final = 5e-4
"""Share of all card-seconds below which a part has no line of its own."""


def print_swap(found: Swap, wanted: SwapWanted, output: Output) -> None:
    """Print the answer as far as it was asked for."""
    out = output.data
    out.text(f"{found.job.model}; {workload_words(found.job)}", first=f"{found.job.name}: ")
    _print_answer(found, output)
    out.head("Both sides", "(estimated)")
    left_out = out.table(sides_table(found))
    out.text(LEGEND, first="   tags     ", style="dim")
    wall, part = found.decided_by
    out.head("What made the difference", f"(the {wall} wall: {part})")
    left_out += out.table(spent_table(found))
    serves = isinstance(found.job.workload, ServingWorkload)
    of = "output tokens, by group of instances" if serves else "useful tokens, along the busiest stage"
    out.text(f"card-seconds for a million {of}", first="   spent    ", style="dim")
    _print_search(found, wanted, output)
    _print_ground(found, wanted, output)
    if output.cite:
        output.sources(line for one in (found.old, found.new) if one.best for line in one.best.sources)
    _suggest(found, wanted, output)
    output.left_out(left_out)


def kinds(entry: Entry) -> str:
    """Return the cards of a side, such as ``1,024 nvidia-h100-sxm``."""
    pools = entry.formation.pools if entry.formation else ()
    emulated = f" [{EMULATED}]" if entry.formation and entry.formation.emulated else ""
    return " + ".join(f"{pool.count:,} {pool.accelerator.id}" for pool in pools) + emulated


def _print_answer(found: Swap, output: Output) -> None:
    out = output.data
    out.head(f"{kinds(found.new)} replace {kinds(found.old)}", "(estimated, at equal throughput)")
    if found.trust == (1.0, 1.0):
        words = "none: the same cards stand on both sides, and their errors with them"
    elif found.trust is None:
        words = "no band has been validated for one of the sides"
    else:
        upper = f"{found.upper:,}" if found.upper else "more than any number planned"
        words = f"{found.lower or 0:,} to {upper} cards, four of five"
    out.text(words, first="  band     ")
    ends = f" ({found.ratio_lower:.3g} to {found.ratio_upper:.3g})" if found.ratio_lower and found.ratio_upper else ""
    idle = cards_of(found.old) - found.replaced
    words = f"{found.ratio:.3g} new cards for each old one{ends}"
    out.text(words + (f"; {idle:,} old cards are idle and not counted" if idle else ""), first="  ratio    ")
    systems, cards = found.systems
    if found.shape.whole > found.shape.step:
        plural = "s" if systems > 1 else ""
        reach = f", {cards:,} cards" if cards != found.cards else ""
        out.text(
            f"{systems:,} whole {found.shape.name} of {found.shape.whole:,}{reach}", first=f"  system{plural or ' '}  "
        )
    else:
        out.text(f"{systems:,} {found.shape.name} of {found.shape.whole:,}", first="  systems  ")


def sides_table(found: Swap) -> Table:
    """Return the figures of both sides, a line each, and the ratio of new to old."""
    columns = (
        Column(""), Column(found.old.name, right=True), Column("p10-p90", right=True, drop=2),
        Column(_new_name(found), right=True), Column("p10-p90", right=True, drop=2),
        Column("new/old", right=True, drop=1),
    )  # fmt: skip
    return table(columns, [*_hardware(found), *_figures(found)], strong=[0])


def _new_name(found: Swap) -> str:
    return found.shape.name if found.shape.name != found.old.name else f"{found.shape.name} (new)"


def _hardware(found: Swap) -> Iterator[tuple[str, ...]]:
    old, new = (entry.formation.pools if entry.formation else () for entry in (found.old, found.new))
    yield ("cards", f"{found.replaced:,}", "", f"{found.cards:,}", "", ratio(found.cards, found.replaced))
    if len(old) != 1 or len(new) != 1:
        return
    precision = _format(found.new.best)
    for name, one, other in _facts(old[0], new[0], precision):
        mine, others = (fact.value if fact else None for fact in (one, other))
        yield (name, short(one), "", short(other), "", ratio(others, mine))


def _format(best: BestPlan | None) -> str:
    """Return the format in which a plan multiplies."""
    if best is None:
        return "bf16"
    plan = best.plan
    return next(iter(plan.precision_by_pool().values())) if isinstance(plan, Plan) else "/".join(plan.formats)


def _facts(old: CardPool, new: CardPool, precision: str) -> Iterator[tuple[str, Fact | None, Fact | None]]:
    mine, others = old.accelerator, new.accelerator
    yield f"peak, {precision}", mine.peak.get(precision), others.peak.get(precision)
    yield "memory", mine.memory.capacity, others.memory.capacity
    yield "memory bandwidth", mine.memory.bandwidth, others.memory.bandwidth
    inner = [pool.tiers[0].bandwidth if pool.tiers else None for pool in (old, new)]
    yield "innermost tier", inner[0], inner[1]
    outer = [pool.tiers[-1].bandwidth if pool.tiers else None for pool in (old, new)]
    yield "outermost tier", outer[0], outer[1]


def _figures(found: Swap) -> Iterator[tuple[str, ...]]:
    old, new = found.old.best, found.new.best
    if old is None or new is None:
        return
    for name, one, other in (
        ("tokens/s", old.figures.tokens_per_s, new.figures.tokens_per_s),
        *([("useful tokens/s", useful(old), useful(new))] if old.figures.ettr.value is not None else []),
        ("per card", old.figures.tokens_per_s_per_card, new.figures.tokens_per_s_per_card),
        ("per kW", found.old.per_kilowatt, found.new.per_kilowatt),
    ):
        yield (name, marked(one), band(one), marked(other), band(other), ratio(other.value, one.value))
    for name, one, other in (
        ("requests/s", old.figures.requests_per_s, new.figures.requests_per_s),
        ("per user", old.figures.tokens_per_s_per_user, new.figures.tokens_per_s_per_user),
    ):
        if one.value is not None:
            yield (name, marked(one), band(one), marked(other), band(other), ratio(other.value, one.value))
    for name, one, other in (
        ("step", old.figures.step_time_s, new.figures.step_time_s), ("TTFT", old.figures.ttft_s, new.figures.ttft_s),
        ("TPOT", old.figures.tpot_s, new.figures.tpot_s),
    ):  # fmt: skip
        if one.value is not None:
            yield (name, *_shown(one, "time"), *_shown(other, "time"), ratio(other.value, one.value))
    for name, one, other in (
        ("MFU", old.figures.mfu, new.figures.mfu), ("ETTR", old.figures.ettr, new.figures.ettr),
        ("goodput", old.operating.goodput, new.operating.goodput),
    ):  # fmt: skip
        if one.value is not None:
            yield (name, share(one), band(one), share(other), band(other), ratio(other.value, one.value))
    power = (old.operating.facility_power_w, new.operating.facility_power_w)
    yield ("power", *_shown(power[0], "power"), *_shown(power[1], "power"), ratio(power[1].value, power[0].value))
    rent = [_rent(entry) for entry in (found.old, found.new)]
    if any(one.value is not None for one in rent):
        yield ("rent, CNY/h", marked(rent[0]), "", marked(rent[1]), "", ratio(rent[1].value, rent[0].value))
    yield ("layout", old.layout, "", new.layout, "", "")
    for name in NAMES:
        one, other = getattr(old.walls, name).share, getattr(new.walls, name).share
        if one is not None or other is not None:
            yield (f"{name} wall", _wall(one), "", _wall(other), "", "")
    yield ("binds", old.walls.binding, "", new.walls.binding, "", "")


def _shown(figure: Figure, dimension: units.Dimension) -> tuple[str, str]:
    shown = "-" if figure.value is None else f"{units.show(figure.value, dimension)}{MARKS[figure.tag]}"
    return shown, band(figure)


def _wall(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _rent(entry: Entry) -> Figure:
    if entry.best is None or entry.formation is None:
        return Figure()
    return hourly_price(entry.best, entry.formation)


def spent_table(found: Swap) -> Table:
    """Return the card-seconds of a million useful tokens by part, wall by wall, and the difference."""
    columns = (
        Column(""), Column("old", right=True), Column("new", right=True), Column("difference", right=True),
        Column("new/old", right=True, drop=1),
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    strong: list[int] = []
    total = sum(old for old, _ in found.walls.values())
    for wall, both in found.walls.items():
        strong.append(len(rows))
        rows.append(_spent(f"{wall} wall", *both))
        rows += [
            _spent(f"  {part}", *found.spent[part])
            for part in found.parts_of(wall)
            if max(found.spent[part]) > NEGLIGIBLE * total
        ]
    return table(columns, rows, strong=strong)


def _spent(name: str, old: float, new: float) -> tuple[str, ...]:
    gap = new - old
    return (name, bare(old), bare(new), ("+" if gap >= 0 else "-") + bare(abs(gap)), ratio(new, old or None))


def _print_search(found: Swap, wanted: SwapWanted, output: Output) -> None:
    out, counts = output.data, found.counts
    out.head("How the count was found")
    out.text(
        f"{len(counts.points)} counts planned, in steps of {counts.step:,} cards. {found.cards:,} cards reach the "
        f"throughput; none of the lower counts planned does, the {WITNESSES} next below among them where there are as "
        "many. Lower counts that were not planned may, where throughput does not grow with every card.",
        first="  ",
    )  # fmt: skip
    if counts.falls is not None:
        fewer, more, drop = counts.falls
        out.text(f"It falls to {drop:.1%} from {fewer:,} to {more:,} cards.", first="  ")
    shown = sorted(counts.points)
    if not wanted.detail:
        near = sorted(shown, key=lambda steps: abs(steps * counts.step - found.cards))[:COUNTS_SHOWN]
        shown = sorted(near)
    columns = (Column("cards", right=True), Column("tokens/s", right=True), Column("of the old", right=True),
               Column("no plan", wrap=30))  # fmt: skip
    old = found.old.best.figures.tokens_per_s.value if found.old.best else None
    rows = []
    for steps in shown:
        entry = counts.points[steps]
        rate = entry.best.figures.tokens_per_s.value if entry.best else None
        problem = entry.problem.kind if entry.problem else ""
        rows.append((f"{steps * counts.step:,}", bare(rate), ratio(rate, old), problem))
    out.table(table(columns, rows, strong=[shown.index(found.cards // counts.step)]), indent=2)


def _print_ground(found: Swap, wanted: SwapWanted, output: Output) -> None:
    out = output.data
    for entry in (found.old, found.new):
        if wanted.detail and entry.best:
            out.head(f"Rests on, {entry.name}")
            out.items(entry.best.assumptions)
    yours = dict.fromkeys(
        f"{name} = {value} (yours)"
        for entry in (found.old, found.new)
        if entry.formation
        for name, value in entry.formation.assumed.items()
    )
    if yours and not wanted.detail:
        out.head("Rests on", "(--detail lists the rest)")
        out.items(yours)


def _suggest(found: Swap, wanted: SwapWanted, output: Output) -> None:
    """Say on stderr which commands lead on from here."""
    given = said(wanted)
    asked = ["--from", wanted.machine, "--to", wanted.to]
    for name in ("cards", "shape", "step"):
        value = getattr(wanted, name)
        asked += [f"--{name}", str(value)] if value is not None else []
    output.talk.line()
    output.talk.line("Next:", "dim")
    if not wanted.detail:
        output.talk.line(f"  {shlex.join(['zhenfa', 'swap', wanted.job, *asked, *given, '--detail'])}")
    if found.shape.name != wanted.machine:
        machines = f"{wanted.machine},{found.shape.name}"
        words = ["zhenfa", "compare", wanted.job, "--on", machines, "--cards", str(found.cards), *given]
        output.talk.line(f"  {shlex.join(words)}")
