"""What a plan is worth, size aside: tokens for a kilowatt and for money, and which figures can be told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from zhenfa.laws import price as price_laws
from zhenfa.plan.best_plan import BestPlan
from zhenfa.spec.fact import Tag, weakest
from zhenfa.spec.machine import Formation
from zhenfa.spec.result import Figure

By = Literal["throughput", "card", "power", "cost"]
"""What machines are ranked by: tokens/s, tokens/s per card, tokens/s per kW, tokens per CNY."""

KILOWATT: Final = 1000.0


def per_kilowatt(best: BestPlan) -> Figure:
    """Return tokens/s per kW of facility power while the cards work; empty, with the reason, where that is unknown.

    The band is that of the energy per token, which rests on the same step and the same power.
    """
    rate, power = best.figures.tokens_per_s, best.operating.facility_power_w
    joules = best.figures.energy_j_per_token
    if rate.value is None or power.value is None:
        return Figure(unit="tokens/s/kW", note=joules.note)
    value = rate.value / (power.value / KILOWATT)
    low, high = _turned(value, joules)
    return Figure(value=value, unit="tokens/s/kW", tag=weakest(rate.tag, power.tag), p10=low, p90=high, note=power.note)


def unpriced(formation: Formation) -> tuple[str, ...]:
    """Return the cards of a machine whose price is undisclosed."""
    cards = (pool.accelerator for pool in formation.pools)
    return tuple(dict.fromkeys(card.id for card in cards if card.price.value is None))


def hourly_price(best: BestPlan, formation: Formation) -> Figure:
    """Return the CNY an hour of the cards that work; empty, naming what to supply, where a price is undisclosed."""
    total, tags = 0.0, list[Tag]()
    for name, count in best.plan.cards_by_pool().items():
        card = formation.pool(name).accelerator
        if card.price.value is None:
            way_out = f'no price of {card.id}: supply --assume {card.id}.price="18 CNY/h" (your value)'
            return Figure(unit="CNY/h", note=way_out)
        total += 3600.0 * card.price.value * count
        tags.append(card.price.tag)
    return Figure(value=total, unit="CNY/h", tag=weakest(*tags), note="rent of the cards, nothing else")


def per_money(best: BestPlan, formation: Formation) -> Figure:
    """Return useful tokens per CNY, time lost to failures paid for; empty where a price is undisclosed."""
    rate, hourly, ettr = best.figures.tokens_per_s, hourly_price(best, formation), best.figures.ettr
    if rate.value is None or not hourly.value:
        return Figure(unit="tokens/CNY", note=hourly.note or "the cards cost nothing")
    lasting = 1.0 if ettr.value is None else ettr.value
    value = 1.0 / float(price_laws.token_cost(1, rate.value, price=hourly.value / 3600.0, ettr=lasting))
    low, high = _scaled(value, rate)
    note = "lost time paid for" if ettr.value is not None else hourly.note
    return Figure(value=value, unit="tokens/CNY", tag=weakest(rate.tag, hourly.tag), p10=low, p90=high, note=note)


def useful(best: BestPlan) -> Figure:
    """Return tokens/s that count: the throughput times ETTR, where one is estimated."""
    rate, ettr = best.figures.tokens_per_s, best.figures.ettr
    if rate.value is None or ettr.value is None:
        return rate
    return scaled(rate, ettr.value).model_copy(update={"tag": weakest(rate.tag, ettr.tag), "note": "throughput x ETTR"})


def scaled(figure: Figure, times: float, unit: str | None = None) -> Figure:
    """Return a figure times a number, its band with it."""

    def by(value: float | None) -> float | None:
        return None if value is None else value * times

    new = {"value": by(figure.value), "p10": by(figure.p10), "p90": by(figure.p90)}
    return figure.model_copy(update=new if unit is None else {**new, "unit": unit})


def overlap(one: Figure, other: Figure) -> bool:
    """Return whether two figures cannot be told apart: each has a band, and the bands overlap.

    >>> overlap(Figure(value=10, p10=9, p90=12), Figure(value=13, p10=11.5, p90=15))
    True
    """
    if one.p10 is None or one.p90 is None or other.p10 is None or other.p90 is None:
        return False
    return one.p10 <= other.p90 and other.p10 <= one.p90


def _scaled(value: float, like: Figure) -> tuple[float | None, float | None]:
    """Return p10 and p90 as far from a value, as a ratio, as those of a figure are from its own."""
    if not like.value or like.p10 is None or like.p90 is None:
        return None, None
    return value * like.p10 / like.value, value * like.p90 / like.value


def _turned(value: float, like: Figure) -> tuple[float | None, float | None]:
    """Return p10 and p90 of a value that falls as a figure rises."""
    if not like.value or not like.p10 or not like.p90:
        return None, None
    return value * like.value / like.p90, value * like.value / like.p10


def measure(by: By) -> Callable[[BestPlan, Formation], Figure]:
    """Return what gives the figure that machines are ranked by: more is better."""
    return {
        "throughput": lambda best, formation: best.figures.tokens_per_s,
        "card": lambda best, formation: best.figures.tokens_per_s_per_card,
        "power": lambda best, formation: per_kilowatt(best),
        "cost": per_money,
    }[by]
