"""A serving plan's answer for people: figures with tags and bands, the four walls, memory, where a step goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from zhenfa import units
from zhenfa.estimate import bands, serving_curves, serving_engine, serving_memory
from zhenfa.estimate.energy_wall import draw_at, pue_at
from zhenfa.estimate.power import Draw, serving_activity
from zhenfa.estimate.serving import Served, Service
from zhenfa.estimate.serving_curves import BINARY, CONTEXT_BYTES, Group
from zhenfa.estimate.serving_failing import Kept, operating
from zhenfa.estimate.serving_step import Load, Step, step
from zhenfa.spec.fact import weakest
from zhenfa.spec.graph import Graph
from zhenfa.spec.machine import CardPool, Formation
from zhenfa.spec.result import Figure, Figures, Operating, Wall, Walls
from zhenfa.spec.serving import Instance, ServingWorkload

Role = Literal["both", "prefill", "decode"]
"""What a group of instances does."""


@dataclass(frozen=True)
class PartEstimate:
    """What the laws say of instances of one sort, or of prefill and decode that work together.

    Seconds by part: of one decode step (``decode_s``), of one step of a prompt alone (``prefill_s``), until the first
    token (``first_s``). ``memory``: bytes of the fullest card, by group of instances.
    """

    service: Service
    served: Served
    decode_s: dict[str, float]
    prefill_s: dict[str, float]
    first_s: dict[str, float]
    memory: dict[str, dict[str, float]]


@dataclass(frozen=True)
class ServingEstimate:
    """What the laws say of a serving plan: of all its parts together."""

    parts: tuple[PartEstimate, ...]
    figures: Figures
    walls: Walls
    assumptions: tuple[str, ...]
    operating: Operating = field(default_factory=Operating)

    @property
    def fullest(self) -> tuple[float, float]:
        """Return the bytes on the card closest to its memory, and that memory."""
        held = [
            (sum(memory.values()), group.setup.cards.dense.capacity * BINARY)
            for part in self.parts
            for memory, group in zip(part.memory.values(), (part.service.decode, part.service.prefill), strict=False)
        ]
        return max(held, key=lambda one: one[0] / one[1])


def estimate_part(service: Service, served: Served) -> PartEstimate:
    """Return the estimate of one part under its load."""
    workload, decode = served.workload, service.decode
    context = workload.mean_input + workload.mean_output / 2
    running = max(served.running, 1.0)
    load = Load(running / decode.instance.pipeline_parallel, context, 1.0 + service.drafted)
    own = running / decode.instance.data_parallel
    decoding = step(decode.setup, load, drafts=serving_curves.draft_passes(service))
    took = serving_curves.prompts(service.prefill, workload)
    memory = {"decode": _memory(service, decode, workload.mean_input + workload.mean_output / 2, served.running)}
    if service.apart:
        held = served.requests_per_second * served.prefill / service.prefill.instance.count
        stages = service.prefill.instance.pipeline_parallel
        room = float(np.ravel(serving_curves.room(service.prefill, service.graph, workload, outputs=False))[0])
        at_once = min(max(held, stages * float(np.ravel(took.most)[0])), max(room, 1.0))
        memory["prefill"] = _memory(service, service.prefill, workload.mean_input, at_once)
    return PartEstimate(
        service, served, _parts(decode, decoding, own, captured=not service.plan.eager),
        _parts(service.prefill, took.one, 1.0, captured=False), _first(service, served), memory,
    )  # fmt: skip


def _parts(group: Group, cost: Step, running: float, *, captured: bool) -> dict[str, float]:
    """Return the seconds of a step by what they wait for; ``engine`` is what it adds."""
    whole = float(group.engine.time(cost, running, captured=captured, overlapped=group.cut.overlapped))
    found = {"kernels": float(np.ravel(cost.kernels)[0]) * group.engine.pace}
    names = {"reduce": "reduction", "exchange": "experts", "send": "pipeline"}
    found |= {said: float(np.ravel(getattr(cost, name))[0]) for name, said in names.items()}
    return {**found, "engine": whole - sum(found.values())}


def _memory(service: Service, group: Group, tokens: float, requests: float) -> dict[str, float]:
    """Return the bytes of one card by part, with so many requests of so many cached tokens in the instance."""
    kept, chunk = group.kept, float(np.ravel(group.cut.chunk)[0])
    each = (float(kept.token) * tokens + float(kept.request)) / float(kept.groups)
    active = chunk * service.graph.hidden * 2.0 * serving_memory.ACTIVATION_FEATURES
    return {"weights": float(kept.weights), "cache": each * requests, "activations": active, "context": CONTEXT_BYTES}


def _first(service: Service, served: Served) -> dict[str, float]:
    """Return the parts of the mean time to the first token."""
    first = served.first
    if first is None:
        return {"all": served.ttft}
    fixed = {"entry": service.engine.entry}
    if service.apart:
        fixed["handover"] = service.engine.handover
    if service.crossing is not None:
        source, target = (
            group.instance.tensor_parallel * group.instance.context_parallel * group.instance.pipeline_parallel
            for group in (service.prefill, service.decode)
        )
        fixed["bridge"] = float(service.crossing.seconds(served.workload.mean_input, source, target))
    return {**fixed, "prefill": float(first.own) - sum(fixed.values()), "waiting": served.ttft - float(first.own)}


def estimate(parts: Sequence[PartEstimate], formation: Formation, failures: Kept | None = None) -> ServingEstimate:
    """Return the estimate of parts that share a load: means over requests, sums over cards; ``failures``: what they
    leave of it."""
    rates = np.array([one.served.requests_per_second for one in parts])
    share = rates / rates.sum()
    cards = sum(one.served.cards for one in parts)
    tokens = float(sum(one.served.output_rate for one in parts))
    tag = weakest("fitted", *(one.service.tag for one in parts))
    tpot = float(share @ [one.served.tpot for one in parts])
    ttft = float(share @ [one.served.ttft for one in parts])
    power, said = _power(parts, formation)
    price, cost_note = _price(parts, formation)
    note = "emulated cards" if formation.emulated else None
    figures = Figures(
        ttft_s=Figure(value=ttft, unit="s", tag=tag, note=note or "mean"),
        tpot_s=Figure(value=tpot, unit="s", tag=tag, note=note or "mean"),
        tokens_per_s_per_user=Figure(value=1.0 / tpot, unit="tokens/s", tag=tag, note="one over TPOT"),
        requests_per_s=Figure(value=float(rates.sum()), unit="1/s", tag=tag, note=note),
        requests_per_s_kept=Figure(
            value=None if failures is None else float(rates.sum()) * failures.share,
            unit="1/s",
            tag="assumed",
            note="emulated cards" if failures is None else failures.words,
        ),
        tokens_per_s=Figure(value=tokens, unit="tokens/s", tag=tag, note="output tokens"),
        tokens_per_s_per_card=Figure(value=tokens / cards, unit="tokens/s", tag=tag, note="output tokens"),
        memory_bytes_per_card=Figure(unit="B", tag="derived", note="the fullest card"),
        energy_j_per_token=Figure(value=None if power is None else power / tokens, unit="J", tag="assumed", note=said),
        cost_per_million_tokens=Figure(
            value=None if price is None else price / tokens * 1e6, unit="CNY", tag="assumed", note=cost_note
        ),
    )
    if not formation.emulated:
        makers = [formation.pool(pool).accelerator for pool in _pools(parts)]
        figures = bands.serving(figures, parts[0].service.engine.id, makers)
    notes = dict.fromkeys(
        [f"{name} = {value} (yours)" for name, value in formation.assumed.items()]
        + [note for one in parts for note in one.service.assumptions]
        + [note for one in parts for note in _engine_notes(one)]
    )
    found = ServingEstimate(
        tuple(parts), figures, _walls(parts[int(np.argmax(share))], said, failures), tuple(notes), operating(failures)
    )
    memory = figures.memory_bytes_per_card.model_copy(update={"value": found.fullest[0]})
    return replace(found, figures=figures.model_copy(update={"memory_bytes_per_card": memory}))


def _engine_notes(part: PartEstimate) -> list[str]:
    groups = (part.service.decode, part.service.prefill) if part.service.apart else (part.service.decode,)
    known = dict.fromkeys((group.engine.id, group.engine.tag) for group in groups)
    listed = serving_engine.engines()
    return [
        f"engine: {name} ({tag} costs of its own{mode})"
        for name, tag in known
        for mode in ((f"; {listed[name].note}" if listed[name].note else ""),)
    ]


def _groups(part: PartEstimate) -> list[tuple[Instance, Group]]:
    service = part.service
    found = [(service.decode.instance, service.decode)]
    return [(service.prefill.instance, service.prefill), *found] if service.apart else found


def _pools(parts: Sequence[PartEstimate]) -> dict[str, int]:
    """Return how many cards of each pool work."""
    found: dict[str, int] = {}
    for part in parts:
        for instance, _ in _groups(part):
            found[instance.pool] = found.get(instance.pool, 0) + instance.count * instance.cards
    return found


def _power(parts: Sequence[PartEstimate], formation: Formation) -> tuple[float | None, str]:
    """Return the power at the meter, and what it rests on.

    Counts what decode reads and computes, and prompts as arithmetic, spread over the cards of their group, which are
    taken as busy all the time.
    """
    if formation.emulated:
        return None, "emulated cards draw no power of their own"
    total = 0.0
    words: dict[str, None] = {}
    for part in parts:
        for instance, group in _groups(part):
            cards = instance.count * instance.cards
            drawn = group_draw(
                formation.pool(instance.pool), formation, part.service.graph, part.served.workload,
                rate=part.served.requests_per_second, running=part.served.running, cards=cards, role=_role(part, group),
            )  # fmt: skip
            if drawn is None:
                text = f'{instance.pool}: power undisclosed; supply --assume {instance.pool}.power_per_card="700 W"'
                return None, text
            total += cards * drawn.busy
            words[f"{instance.pool}: {drawn.busy:.0f} W a card with its host ({drawn.words})"] = None
    ratio = pue_at(formation, total)
    at = f"PUE {ratio.value:.4g}" if ratio.value is not None else "PUE undisclosed, not counted"
    whole = total * (ratio.value or 1.0)
    return whole, f"{units.show(whole, 'power')} at work, {at}; {'; '.join(words)}"


def _role(part: PartEstimate, group: Group) -> Role:
    if not part.service.apart:
        return "both"
    return "prefill" if group is part.service.prefill else "decode"


def group_draw(
    pool: CardPool, formation: Formation, graph: Graph, workload: ServingWorkload, *, rate: float, running: float,
    cards: float, role: Role,
) -> Draw | None:  # fmt: skip
    """Return what one of the ``cards`` of a group of instances draws with its share of the host, where they take
    ``rate`` requests/s and ``running`` requests decode at once in an instance; None where nothing is known."""
    new = workload.mean_input * (1 - workload.cached_prefix)
    prefill = role == "prefill"
    moved, work = serving_activity(
        graph, tokens_per_second=rate * (new if prefill else workload.mean_output),
        batch=max(new, 1.0) if prefill else max(running, 1.0), cards=1.0,
        context=workload.mean_input / 2 if prefill else workload.mean_input + workload.mean_output / 2,
        prompt_share=new / workload.mean_output if role == "both" else 0.0,
    )  # fmt: skip
    return draw_at(pool, formation, flops=float(work) / cards, bytes_per_second=float(moved) / cards, share=1.0)


def _price(parts: Sequence[PartEstimate], formation: Formation) -> tuple[float | None, str]:
    """Return CNY per second of all cards, and what it rests on or lacks."""
    total = 0.0
    for pool, count in _pools(parts).items():
        price = formation.pool(pool).accelerator.price
        if price.value is None:
            return None, f'{pool}: no price per card; supply --assume {pool}.price="18 CNY/h"'
        total += price.value * count
    return total, "price of the cards"


def _walls(part: PartEstimate, power: str, failures: Kept | None) -> Walls:
    """Return the four walls of a decode step of one part."""
    seconds, service = part.decode_s, part.service
    step_s = sum(seconds.values())
    compute = {"kernels": seconds["kernels"], "engine": seconds["engine"]}
    exposed = {name: seconds[name] for name in ("reduction", "experts", "pipeline")}
    batch = part.served.running / service.decode.instance.data_parallel

    def words(parts: dict[str, float]) -> str:
        shown = [f"{name} {one / step_s:.1%}" for name, one in parts.items() if abs(one) / step_s >= 0.0005]
        return ", ".join(shown) or "nothing exposed"

    shares = {"compute": sum(compute.values()) / step_s, "communication": sum(exposed.values()) / step_s}
    advice = "larger batches where TPOT leaves room, narrower weights or cache, faster memory"
    if compute["engine"] > compute["kernels"]:
        advice = "an engine with fewer launches a layer (captured graphs), or larger batches: cards wait for the host"
    return Walls(
        compute=Wall(
            share=shares["compute"], parts=compute,
            detail=f"of a decode step of {units.show(step_s, 'time')} with {batch:,.0f} requests a scheduler: "
            f"{words(compute)}",
            advice=advice,
        ),
        communication=Wall(
            share=shares["communication"], parts=exposed, detail=words(exposed),
            advice="fewer cards to an instance, or experts inside one supernode; overlap of two batches",
        ),
        energy=Wall(detail=power, advice="a better PUE; fewer cards at larger batches"),
        reliability=Wall(
            share=None if failures is None else 1.0 - failures.share,
            detail="a failed instance takes its requests with it; the others take the load"
            + ("" if failures is None else f"; {failures.words}"),
            advice="a spare instance; idle nodes beside instances of several nodes",
        ),
        binding="compute" if shares["compute"] >= shares["communication"] else "communication",
    )  # fmt: skip
