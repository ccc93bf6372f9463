"""How far off an estimate may be: p10 and p90 around it, as wide as the laws were off on measured rows of its class.

The factors are written by ``tools/fit_bands.py`` from residuals of ``zhenfa validate``: an interval that held four of
five measurements of rows that were left out of the fit. They are of times; a rate has the reciprocal band.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from zhenfa.catalog import files
from zhenfa.estimate import engines
from zhenfa.spec.machine import Accelerator
from zhenfa.spec.result import Figure, Figures

FILE: Final = files.ROOT / "bands.yaml"


@dataclass(frozen=True)
class Band:
    """Four of five measured times lie between ``low`` and ``high`` times the predicted one.

    ``n`` rows of the class were there to fit; ``coverage`` is the share that the band held of rows left out of it.
    """

    name: str
    low: float
    high: float
    n: int
    coverage: float

    def around(self, value: float, *, rate: bool = False) -> tuple[float, float]:
        """Return p10 and p90 of a time, or of a rate.

        >>> Band("x", 0.5, 1.25, 100, 0.8).around(10.0)
        (5.0, 12.5)
        >>> Band("x", 0.5, 1.25, 100, 0.8).around(10.0, rate=True)
        (8.0, 20.0)
        """
        return (value / self.high, value / self.low) if rate else (value * self.low, value * self.high)


@cache
def bands() -> dict[str, Band]:
    """Return every fitted band by the name of its class."""
    return {
        item["class"]: Band(item["class"], item["low"], item["high"], item["n"], item["coverage"]) for item in _items()
    }


def _items() -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = files.read(FILE)["bands"] if FILE.exists() else []
    return items


def band(*names: str) -> Band | None:
    """Return the band of the first of these classes that was fitted; give the narrowest class first."""
    return next((found for name in names if (found := bands().get(name)) is not None), None)


GENERATION_LEFT_OUT: Final = "train / generation left out"
CHIP_LEFT_OUT: Final = "train / chip left out"


def training_band(cards: Iterable[Accelerator], *, mixture: bool) -> Band | None:
    """Return the band of a training step on these cards; ``mixture``: the model is a mixture of experts.

    It widens with less evidence. Makers whose rows are of this sort of model have their class; rows of another sort
    alone count together with what this sort shows elsewhere. Chips without rows of their own add how far apart the
    chips of a generation are; a generation without rows has what each measured one shows when it is left out.
    """
    cards = list(cards)
    known = {item["class"]: item for item in _items()}
    seen = known.get(GENERATION_LEFT_OUT, {}).get("generations", ())
    step = _class_of({card.maker for card in cards}, mixture=mixture)
    if any(engines.generation(card.id) not in seen for card in cards if not card.emulated):
        return _around(step, band(GENERATION_LEFT_OUT))
    measured = known.get(CHIP_LEFT_OUT, {}).get("chips", ())
    new = any(card.id not in measured for card in cards if not card.emulated)
    return joined(step, band(CHIP_LEFT_OUT)) if new else step


def _class_of(makers: set[str], *, mixture: bool) -> Band | None:
    """Return the band of the rows of these makers and this sort of model, or of what is known of each."""
    steps = [item for item in _items() if item.get("quantity") == "step"]
    own = [item for item in steps if item.get("makers") is not None and makers <= set(item["makers"])]
    sort = [item for item in steps if item.get("mixture") is mixture]
    anybody = [item for item in steps if item.get("makers") is None]
    exact = [item for item in own if item.get("mixture") in {None, mixture}]
    if exact or not own or not sort:
        return next((bands()[item["class"]] for item in (*exact, *anybody)), None)
    return joined(bands()[own[0]["class"]], bands()[sort[0]["class"]])


def _around(*parts: Band | None) -> Band | None:
    """Return the band from the lowest of the lower ends to the highest of the upper ones."""
    known = [one for one in parts if one is not None]
    if not known:
        return None
    fewest = min(known, key=lambda one: one.n)
    return replace(fewest, low=min(one.low for one in known), high=max(one.high for one in known))


def joined(*parts: Band | None) -> Band | None:
    """Return the band of a product whose factors are off independently: their widths add up in quadrature.

    >>> wide = joined(Band("a", 0.5, 2.0, 90, 0.8), Band("b", 0.5, 2.0, 90, 0.8))
    >>> round(wide.low, 4), round(wide.high, 4)
    (0.3752, 2.6651)
    """
    known = [one for one in parts if one is not None]
    if not known:
        return None
    ends = [(math.log(one.low), math.log(one.high)) for one in known]
    centre, half = sum(low + high for low, high in ends) / 2, math.hypot(*((high - low) / 2 for low, high in ends))
    first = min(known, key=lambda one: one.n)
    return replace(first, low=math.exp(centre - half), high=math.exp(centre + half))


def banded(figure: Figure, found: Band | None, *, rate: bool = False) -> Figure:
    """Return a figure with its p10 and p90; as it is where it has no value or its class no band."""
    if found is None or figure.value is None:
        return figure
    low, high = found.around(figure.value, rate=rate)
    return figure.model_copy(update={"p10": low, "p90": high})


def calibrated(cards: Iterable[Accelerator]) -> Band | None:
    """Return the band of steps on cards that were all calibrated beside steps of real models; None of any others.

    Of several sorts of cards, the widest: the slowest one sets the pace.
    """
    spreads = [card.spread for card in cards]
    if not spreads or any(one is None for one in spreads):
        return None
    known = [one for one in spreads if one is not None]
    return Band(
        "calibrated", min(one.low for one in known), max(one.high for one in known),
        min(one.steps for one in known), 0.8,
    )  # fmt: skip


def training(figures: Figures, cards: Sequence[Accelerator], *, mixture: bool) -> Figures:
    """Return the figures of a training plan with their bands: those of the step, of memory and of energy per token.

    Cards that carry the spread of their own calibration have that; any others that of their makers' class.
    """
    step = calibrated(cards) or training_band(cards, mixture=mixture)
    return figures.model_copy(
        update={
            "step_time_s": banded(figures.step_time_s, step),
            "tokens_per_s": banded(figures.tokens_per_s, step, rate=True),
            "tokens_per_s_per_card": banded(figures.tokens_per_s_per_card, step, rate=True),
            "mfu": _share(banded(figures.mfu, step, rate=True)),
            "memory_bytes_per_card": banded(figures.memory_bytes_per_card, band("train / memory")),
            "energy_j_per_token": banded(figures.energy_j_per_token, joined(step, band("energy & law", "energy"))),
            "cost": banded(figures.cost, step),
        }
    )


def serving(figures: Figures, engine: str, cards: Sequence[Accelerator]) -> Figures:
    """Return the figures of a serving plan with the bands of its engine and makers: the narrowest class comes first.

    The bands of single cards' classes hold for makers whose cards were served and measured, by engines whose costs were
    fitted to what was measured; any others have the widest.
    """
    from zhenfa.estimate import serving_engine

    makers = {card.maker.lower().partition(" ")[0] for card in cards} if serving_engine.fitted(engine) else set()
    gate = "serve / gate / no speculation"
    sorts = {"NVIDIA": makers == {"nvidia"}, "east": bool(makers) and makers <= {"huawei", "amd"}}
    known = {"NVIDIA": (f"{gate} & serve / {engine}", gate), "east": ("serve / Ascend and AMD",)}
    names = [*(one for sort, held in sorts.items() if held for one in known[sort]), "serve"]

    def of(quantity: str) -> Band | None:
        return band(*(f"{name} | {quantity}" for name in names))

    pace, rate, first = of("time per token"), of("throughput"), band("serve | time to first token")
    return figures.model_copy(
        update={
            "ttft_s": banded(figures.ttft_s, first),
            "tpot_s": banded(figures.tpot_s, pace),
            "tokens_per_s_per_user": banded(figures.tokens_per_s_per_user, pace, rate=True),
            "tokens_per_s": banded(figures.tokens_per_s, rate, rate=True),
            "tokens_per_s_per_card": banded(figures.tokens_per_s_per_card, rate, rate=True),
            "requests_per_s": banded(figures.requests_per_s, rate, rate=True),
        }
    )


def _share(figure: Figure) -> Figure:
    """Return a share of a peak with a band that ends at the peak."""
    return figure if figure.p90 is None else figure.model_copy(update={"p90": min(figure.p90, 1.0)})
