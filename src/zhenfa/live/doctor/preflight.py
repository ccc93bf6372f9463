"""Preflight: the messages and sums of a job's own plan, with their own sizes, over the cards that would run it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final, Literal

from zhenfa import units
from zhenfa.errors import InputError, MissingFactError, RunError
from zhenfa.live.doctor.check import Check, judged
from zhenfa.live.engine import Engine, call_all
from zhenfa.live.hops import sent, standing
from zhenfa.live.links import Link, joining, ring_seconds
from zhenfa.live.placement import CardPlace, place
from zhenfa.live.sizes import Sizes
from zhenfa.spec.machine import BETWEEN, BYTES, Formation
from zhenfa.spec.plan import Plan

ROUNDS: Final = 5
MOST_BYTES: Final = 2**31
"""Bytes that one exchange moves in all its rounds: large ones have fewer, one at least."""
SLOWEST: Final = 50e6
"""B/s below which even the slowest link between hosts is not thought to fall; the patience for answers rests on it."""
WAIT_S: Final = 30.0
"""Seconds after which a message or sum that does not come has failed."""
PATIENCE_S: Final = 150.0
SLOW: Final = 2.0
"""Times as long as the machine's links say, beyond which a message or sum between real cards is called slow."""

Kind = Literal["message", "sum"]


@dataclass(frozen=True)
class Exchange:
    """One message or sum of the plan: what it is for, the ranks that take part, and its bytes."""

    kind: Kind
    what: str
    ranks: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Timed:
    """How an exchange went. ``expected`` is what the machine's links say, None where they are not known."""

    exchange: Exchange
    cards: str
    seconds: float
    expected: float | None
    slow: bool


def exchanges(plan: Plan, places: Sequence[CardPlace], sizes: Sizes) -> list[Exchange]:
    """Return what the plan sends: activations between neighbours of a pipeline, gradients over the holders of each
    part of the model. Those of equal ranks and size are one.
    """
    from zhenfa.live.replicas import owners

    found: list[Exchange] = []
    for number in sorted({one.pipeline for one in places}):
        row = standing(places, number)
        hops = list(pairwise(range(len(row))))
        if places[row[0][0][0]].virtual_stages > len(row) > 1:
            hops.append((len(row) - 1, 0))  # from one run of stages to the next
        for here, after in hops:
            for rank in chain(*row[here]):
                wide = BYTES[BETWEEN[places[rank].precision]]
                for part in sent(places[rank], row[after]):
                    size = round((part.last - part.first) * plan.sequence_length * sizes.hidden * wide)
                    found.append(Exchange("message", "activations of a micro-batch", (rank, part.rank), size))
    for shared in owners(places, sizes):
        size = 4 * sum(_parameters(part, sizes) for part in shared.parts)
        found.append(Exchange("sum", f"gradients of {_parts(shared.parts)}", shared.ranks, size))
    return list(dict.fromkeys(found))


def _parameters(part: str, sizes: Sizes) -> int:
    if sizes.source is not None:
        return sizes.source.weights(part)
    if part == "stem":
        return sizes.vocabulary * sizes.hidden
    if part == "head":
        return sizes.hidden + (0 if sizes.tied else sizes.vocabulary * sizes.hidden)
    layer = int(part.split()[1])
    routed, mixture = sizes.experts(layer), sizes.mixture
    expert = mixture.expert_parameters(sizes.hidden) if routed and mixture is not None else 0
    return expert if "expert" in part else sizes.parameters_of(layer) - routed * expert


def _parts(parts: Sequence[str]) -> str:
    experts = [part for part in parts if "expert" in part]
    layers = [part for part in parts if part.startswith("layer ") and part not in experts]
    others = [part for part in parts if part not in {*layers, *experts}]
    said = [f"{len(layers)} layers" if len(layers) > 1 else layers[0]] if layers else []
    said += [f"{len(experts)} experts" if len(experts) > 1 else experts[0]] if experts else []
    return " and ".join([*said, *others])


def preflight(
    engine: Engine, plan: Plan, formation: Formation, sizes: Sizes, say: Callable[[str], None] = lambda _: None
) -> list[Timed]:
    """Start the plan's cards, open each, and time its messages and sums; nothing is trained.

    Raises :class:`RunError` that names the card or the exchange that failed.
    """
    from zhenfa.live.train import open_store

    places = place(plan, formation, sizes)
    wanted = exchanges(plan, places, sizes)
    say(f"starting {len(places)} cards")
    engine.place(places)
    engine.start()
    store, port = open_store(engine.address)
    rounds = [max(1, min(ROUNDS, MOST_BYTES // max(one.size, 1))) for one in wanted]
    moved = sum(2 * (count + 1) * one.size for count, one in zip(rounds, wanted, strict=True))
    say(f"{len(wanted)} kinds of messages and sums, up to {ROUNDS} times each")
    common = {
        "world": len(places), "address": engine.address, "port": port, "generation": "preflight", "rounds": rounds,
        "wait": WAIT_S + max((one.size for one in wanted), default=0) / SLOWEST,
        "exchanges": [[one.kind, list(one.ranks), one.size] for one in wanted],
        "labels": [_label(one, places) for one in wanted],
    }  # fmt: skip
    arguments = [{"rank": one.rank, "provider": one.provider, **common} for one in places]
    rows = call_all(engine, "preflight", arguments, PATIENCE_S + moved / SLOWEST)
    del store
    return [_timed(one, places, formation, [row[index] for row in rows]) for index, one in enumerate(wanted)]


def _label(exchange: Exchange, places: Sequence[CardPlace]) -> str:
    return f"{exchange.what}, {units.show(exchange.size, 'data')}, {_cards(exchange, places)}"


def _cards(exchange: Exchange, places: Sequence[CardPlace]) -> str:
    names = [f"{places[rank].rank} ({places[rank].pool})" for rank in exchange.ranks]
    return (" to " if exchange.kind == "message" else ", ").join(names)


def _timed(
    exchange: Exchange, places: Sequence[CardPlace], formation: Formation, rows: Sequence[list[float] | None]
) -> Timed:
    told = [row for row in rows if row]
    seconds = statistics.median(max(same) for same in zip(*told, strict=True)) if told else math.nan
    ranks = exchange.ranks
    hops = [ranks] if exchange.kind == "message" else list(zip(ranks, (*ranks[1:], ranks[0]), strict=True))
    links = [_link(formation, places[one], places[other]) for one, other in hops]
    known = [link for link in links if link is not None]
    expected = None
    if len(known) == len(links):
        expected = ring_seconds(exchange.size, known) if exchange.kind == "sum" else _message(exchange.size, known[0])
    emulated = any(places[rank].rate is not None for rank in ranks)
    slow = expected is not None and seconds > expected * (1.0 if emulated else SLOW)
    return Timed(exchange, _cards(exchange, places), seconds, expected, slow)


def _message(size: int, link: Link) -> float:
    return link.latency + link.seconds(size)


def _link(formation: Formation, one: CardPlace, other: CardPlace) -> Link | None:
    try:
        return joining(formation, one.card, other.card)
    except (InputError, MissingFactError):
        return None


def check_of(found: Sequence[Timed] | RunError) -> Check:
    """Return the line that sums a preflight up."""
    if isinstance(found, RunError):
        return judged("preflight", found.message, fail=True, way_out=found.hint or "see the card that is named.")
    slow = [one for one in found if one.slow]
    if not slow:
        known = sum(one.expected is not None for one in found)
        words = f"{len(found)} kinds of messages and sums, {known} of them beside what the machine's links say"
        return judged("preflight", words)
    worst = max(slow, key=lambda one: one.seconds / (one.expected or math.inf))
    times = worst.seconds / (worst.expected or math.inf)
    words = (
        f"{len(slow)} of {len(found)} are slow; the worst, {worst.exchange.what} {worst.cards}, by {times:.1f} times"
    )
    way_out = "see the links and what else uses them; `zhenfa calibrate` writes a machine file with measured ones."
    return judged("preflight", words, warn=True, way_out=way_out)
