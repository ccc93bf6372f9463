"""What the report of a run says, section by section."""

from __future__ import annotations

from typing import Final

from zhenfa import units
from zhenfa.live.learn.words import signed, weighed
from zhenfa.live.page.lanes import lanes
from zhenfa.live.page.markup import Column, Html, bar, element, folded, join, listed, muted, safe, section, table
from zhenfa.live.page.plot import Curve, Mark, caption, legend, plot
from zhenfa.live.timeline import stages_by_card
from zhenfa.spec import run_words
from zhenfa.spec.machine import Formation
from zhenfa.spec.result import Figure, Figures, Run, StageFigures, Wall
from zhenfa.spec.words import amount, band, bare, ratio

ALWAYS: Final = ("step_time_s", "tokens_per_s", "tokens_per_s_per_card", "mfu", "memory_bytes_per_card")
LABELS: Final = {
    "step_time_s": "step time",
    "tokens_per_s": "throughput",
    "tokens_per_s_per_card": "throughput per card",
    "mfu": "MFU",
    "memory_bytes_per_card": "memory, fullest card",
    "energy_j_per_token": "energy per token",
    "ettr": "effective training time ratio",
    "cost": "cost",
}
WALLS: Final = ("compute", "communication", "energy", "reliability")
COUNTS: Final = {"operations": "operations and messages", "missed": "late"}
SHARES: Final = {
    "missed_share": "share that was late", "busiest_core_share": "busiest core", "waited_share": "share of time waited",
    "unsteady": "spread of the steps",
}  # fmt: skip
TIMES: Final = {"worst_overshoot_s": "worst delay"}


def head(run: Run) -> Html:
    """Return the title, with the mark of emulation where the cards were emulated, and the run in a sentence."""
    plan = run.plan
    mark = (Html(" "), element("strong", "EMULATED", class_="mark")) if run.emulated else ()
    steps = f"{run.steps:,} step" + "s" * (run.steps != 1)
    cards = f"{plan.cards:,} card" + "s" * (plan.cards != 1)
    words = (
        f"{steps} of {plan.model} on {cards} of {plan.machine}, engine {run.engine}; "
        f"{plan.global_batch:,} sequences of {plan.sequence_length:,} tokens a step, {plan.precision}, "
        f"schedule {plan.schedule}."
    )
    said = [element("h1", plan.job, *mark), element("p", words)]
    if run.emulated:
        warning = "The cards are emulated: the time is that of the emulation, and says nothing of any maker's silicon."
        said.append(element("p", warning, class_="warn"))
    return Html(f"{element('header', *said)}\n")


def figures(run: Run) -> Html:
    """Return what was predicted beside what was measured."""
    predicted = run.estimate.figures if run.estimate else Figures()
    rows = []
    for name in Figures.model_fields:
        before, after = getattr(predicted, name), getattr(run.figures, name)
        if name in ALWAYS or before.value is not None or after.value is not None:
            label = LABELS.get(name, name.replace("_", " "))
            rows.append((label, _figure(before), _figure(after), ratio(after.value, before.value)))
    columns = (Column("figure"), Column("predicted"), Column("measured"), Column("measured / predicted", right=True))
    return section("Predicted beside measured", table(columns, rows), aside="predicted: estimated before the run")


def _figure(value: Figure) -> Html:
    """Return a figure with its tag, its band and what is to be known of it."""
    if value.value is None:
        return join(("-", _note(value.note)))
    around = band(value)
    said = [element("b", amount(value.value, value.unit)), Html(" "), element("span", value.tag, class_="tag")]
    if around:
        said.append(_note(f"p10 to p90: {around}"))
    return join((*said, _note(value.note)))


def _note(words: str | None) -> Html:
    return element("div", words, class_="note") if words else Html()


def speeds(run: Run) -> Html:
    """Return what the run showed beside its figures."""
    said: list[Html] = []
    if run.losses:
        steps = f"{len(run.losses):,} step" + "s" * (len(run.losses) != 1)
        said.append(_said("loss", f"{run.losses[0]:.4f} to {run.losses[-1]:.4f} over {steps}"))
    if run.routing is not None:
        said.append(_said("tokens over experts", run_words.of_routing(run.routing)))
    if run.share_of_sum_of_speeds is not None:
        share = units.show(run.share_of_sum_of_speeds, "ratio")
        words = f"{share}: the ideal step with every card busy all the time, over the measured one"
        said.append(_said("share of the sum of speeds", words))
    if run.even_split:
        said.append(_said("the same cards with an even split", _even(run.even_split)))
    if run.bridge is not None:
        said += [_said(label, words) for label, words in run_words.of_bridge(run.bridge)]
    if run.checkpoint:
        said.append(_said("checkpoint", run.checkpoint))
    return section("What the run showed", listed(said))


def _even(even: dict[str, float]) -> str:
    words = f"{units.show(even.get('step_time_s'), 'time')} a step"
    if (share := even.get("share_of_sum_of_speeds")) is not None:
        words += f", {units.show(share, 'ratio')} of the sum of speeds"
    return words + (f"; the plan is {even['speed_up']:.2f} times as fast" if "speed_up" in even else "")


def _said(label: str, words: str) -> Html:
    return join((element("b", label), ": ", words))


def curves(run: Run) -> Html:
    """Return loss and gradient norm over the steps, with what happened to cards."""
    if not run.losses:
        return Html()
    first = run.steps - len(run.losses) + 1
    marks = [Mark(number, one.step) for number, one in enumerate(run.incidents, 1)]
    loss = [Curve("loss", "training loss", list(enumerate(run.losses, first)))]
    if run.evaluations:
        loss.append(Curve("held-out", "loss on held-out text", [(one.step, one.loss) for one in run.evaluations]))
    said = [legend(loss, marks), plot(loss, marks, label="loss over steps", start=first, end=run.steps)]
    if run.gradient_norms:
        since = run.steps - len(run.gradient_norms) + 1
        norms = [Curve("norm", "norm of all gradients before clipping", list(enumerate(run.gradient_norms, since)))]
        label = "gradient norm over steps"
        said += [legend(norms, []), plot(norms, marks, label=label, start=first, end=run.steps)]
    return section("Loss", *said, caption("steps"), aside=f"steps {first:,} to {run.steps:,}")


def walls(run: Run) -> Html:
    """Return the four walls as measured, the binding one marked."""
    rows = [_wall(name, getattr(run.walls, name), binds=run.walls.binding == name) for name in WALLS]
    return section("Four walls", *rows, aside=f"measured; {run.walls.binding} binds")


def _wall(name: str, wall: Wall, *, binds: bool) -> Html:
    share = muted("not measured") if wall.share is None else Html(units.show(wall.share, "ratio"))
    words = [wall.detail or ("" if wall.share is not None else "a run does not measure it")]
    if wall.advice:
        words.append(f"To move it: {wall.advice}")
    return element(
        "div", element("b", name), element("span", share, class_="share"), bar(wall.share or 0.0),
        element("div", " ".join(word for word in words if word), class_="note"),
        class_="wall binds" if binds else "wall",
    )  # fmt: skip


def timeline(run: Run, formation: Formation) -> Html:
    """Return what each card did in the last step."""
    if not run.events:
        return section("Timeline of the last step", element("p", muted("No events were recorded.")))
    found = stages_by_card(run)
    labels = [_label(card, found.get(card, []), formation) for card in range(_cards(run))]
    aside = "blank: waiting for another card; every other micro-batch in a weaker tone"
    return section("Timeline of the last step", lanes(labels, run.events), aside=aside)


def _cards(run: Run) -> int:
    return max([*stages_by_card(run), *(event.card for event in run.events)], default=-1) + 1


def _label(card: int, stages: list[StageFigures], formation: Formation) -> str:
    if not stages:
        return f"card {card}"
    parts = f"{_maker(stages[0].pool, formation)}, {_numbers(stages)}, layers: {_layers(stages)}"
    return f"card {card}: {parts}"


def _maker(name: str, formation: Formation) -> str:
    """Return the maker of a pool's cards, or the pool's name where the machine has no such pool."""
    return next((pool.accelerator.maker for pool in formation.pools if pool.name == name), name)


def _numbers(stages: list[StageFigures]) -> str:
    count = "stage " if len(stages) == 1 else "stages "
    return f"pipeline {stages[0].pipeline} {count}" + ", ".join(str(one.stage) for one in stages)


def _layers(stages: list[StageFigures]) -> str:
    """Return the layers held, such as ``0-3, 8``; a stage of the stem or the head alone has none."""
    held = [one.layers for one in stages if one.layers[0] < one.layers[1]]
    return ", ".join(str(first) if last - first == 1 else f"{first}-{last - 1}" for first, last in held) or "none"


def laws(run: Run) -> Html:
    """Return which law was off, and what each of them adds to the step."""
    found = run.attribution
    if found is None:
        return Html()
    columns = (
        Column("law"), Column("where"), Column("predicted", right=True), Column("measured", right=True),
        Column("ratio", right=True), Column("adds to the step", right=True),
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [
        (
            element("b", one.law, class_="mark") if one.named else one.law, one.where,
            units.show(one.predicted_s, "time"), units.show(one.measured_s, "time"),
            "-" if one.ratio is None else f"{one.ratio:.3g}", signed(one.effect_s),
        )
        for one in weighed(found)
    ]  # fmt: skip
    rows.append(("no law", "remainder", "", "", "", signed(found.remainder_s)))
    off = {"class_": "warn"} if found.off or not found.judged else {}
    said = element("p", found.verdict, **off)
    aside = f"seconds of a step, mean of {found.steps:,} timed; what being off adds to the step"
    return section("Law by law", said, listed(found.wrong), table(columns, rows), aside=aside)


def incidents(run: Run) -> Html:
    """Return what happened to cards, and what was done about it."""
    kept = run.effective_share
    said = "" if kept is None else f"{units.show(kept, 'ratio')} of the time went into steps that stayed"
    if not run.incidents:
        return section("Recovery log", element("p", "Nothing happened to any card."), aside=said)
    columns = (
        Column("no."), Column("step", right=True), Column("at", right=True), Column("card"), Column("what happened"),
        Column("done about it"), Column("steps again", right=True), Column("noticed after", right=True),
        Column("down", right=True),
    )  # fmt: skip
    rows = [
        (
            str(number), f"{one.step:,}", units.show(one.at_s, "time"), one.card, f"{one.kind}: {one.words}",
            one.action, f"{one.steps_lost:,}", "-" if one.noticed_s is None else units.show(one.noticed_s, "time"),
            units.show(one.down_s, "time"),
        )
        for number, one in enumerate(run.incidents, 1)
    ]  # fmt: skip
    return section("Recovery log", table(columns, rows), aside=said)


def cards(run: Run, formation: Formation) -> Html:
    """Return the stages on every card: predicted and measured seconds, memory against what there is."""
    before = run.estimate.stages if run.estimate else ()
    predicted = {(stage.pool, stage.layers): stage for stage in before}
    spread = any(stage.host for stage in run.stages)
    columns = (
        Column("card", right=True), Column("pool"), *([Column("host")] if spread else []), Column("stage"),
        Column("layers"), Column("forward", right=True), Column("backward", right=True), Column("memory of the card"),
    )  # fmt: skip
    rows = []
    for card, stages in stages_by_card(run).items():
        for stage in stages:
            twin = predicted.get((stage.pool, stage.layers))
            maker = _maker(stage.pool, formation)
            rows.append((
                str(card), stage.pool if maker == stage.pool else f"{stage.pool} ({maker})",
                *([stage.host or "-"] if spread else []),
                f"{stage.stage} of pipeline {stage.pipeline}", _layers([stage]),
                _pair(twin.forward_s if twin else None, stage.forward_s),
                _pair(twin.backward_s if twin else None, stage.backward_s), _memory(twin, stage),
            ))  # fmt: skip
    aside = "seconds per micro-batch and bytes: predicted / measured"
    return section("Cards", table(columns, rows), aside=aside) if rows else Html()


def _pair(predicted: float | None, measured: float) -> str:
    return f"{'-' if predicted is None else units.show(predicted, 'time')} / {units.show(measured, 'time')}"


def _memory(twin: StageFigures | None, stage: StageFigures) -> Html:
    before = "-" if twin is None else units.show(twin.memory_bytes, "data")
    words = f"{before} / {units.show(stage.memory_bytes, 'data')}"
    if not stage.capacity_bytes:
        return safe(words)
    full = bar(stage.memory_bytes / stage.capacity_bytes)
    return join((f"{words} of {units.show(stage.capacity_bytes, 'data')}", full))


def fidelity(run: Run) -> Html:
    """Return how well an emulation kept its time, or how far real cards were left alone."""
    said = run.fidelity
    if not said:
        return Html()
    title = "Fidelity of the emulation" if run.emulated else "Left alone"
    verdict = str(said.get("verdict", "no verdict"))
    rows = [(label, bare(float(said[name]))) for name, label in COUNTS.items() if name in said]
    rows += [(label, units.show(float(said[name]), "ratio")) for name, label in SHARES.items() if _number(said, name)]
    rows += [(label, units.show(float(said[name]), "time")) for name, label in TIMES.items() if _number(said, name)]
    rows += [("protection", str(said["protection"]))] if "protection" in said else []
    lines = listed(_said(label, words) for label, words in rows)
    return section(title, element("p", verdict, **({} if said.get("valid") else {"class_": "warn"})), lines)


def _number(said: dict[str, float | str | bool], name: str) -> bool:
    return isinstance(said.get(name), float | int) and not isinstance(said.get(name), bool)


def ground(run: Run) -> Html:
    """Return notes, the plan as YAML, and what the prediction rests on."""
    parts = [section("Notes", listed(run.notes))]
    said = [folded("The plan as YAML", element("pre", run.plan.to_yaml()))]
    if run.telemetry:
        lines = listed(_said(label, words) for label, words in run_words.of_telemetry(run.telemetry))
        said.append(folded("What cards told of themselves", lines))
    if run.estimate is not None:
        if run.estimate.assumptions:
            said.append(folded("What the prediction assumes", listed(run.estimate.assumptions)))
        if run.estimate.sources:
            said.append(folded("Sources of the prediction", listed(run.estimate.sources)))
    return join((*parts, section("Plan and sources", *said)))
