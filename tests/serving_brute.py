"""Serving plans by brute force: every plan of the space, one at a time, through the estimate of a single plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np

from zhenfa.errors import CapabilityError
from zhenfa.estimate import serving, serving_curves, serving_state
from zhenfa.estimate.serving import Service
from zhenfa.estimate.serving_curves import Curves
from zhenfa.plan.request import Request
from zhenfa.plan.serving.space import families, types_of
from zhenfa.spec.serving import Instance, ServingPlan, ServingWorkload, WeightFormat

FINER = 200


class Brute:
    """Everything that a request's space holds, plan by plan."""

    def __init__(self, request: Request) -> None:
        self.request, self.workload = request, request.serving
        self.prefill_weights: WeightFormat | None = None
        self.cards = {pool.name: pool.count for pool in request.formation.pools}
        self._known = cache(self._look_up)
        self.most = cache(self._most)
        self.own = cache(self._own)
        self.types = {
            (family.pool.name, role): self._instances(family, role)
            for family in families(request) for role in ("both", "decode", "prefill")
        }  # fmt: skip

    def _instances(self, family: object, role: str) -> tuple[Instance, ...]:
        from collections import Counter

        types = types_of(self.request, family, role, Counter())  # type: ignore[arg-type]
        return tuple(types.instance(at, 1) for at in range(len(types)))

    def _look_up(self, prefill: Instance | None, decode: Instance) -> tuple[Service, Curves] | None:
        family = next(iter(families(self.request)))
        plan = ServingPlan(
            model=self.request.model.name, machine="small", engine="vllm", weights=family.weights, cache=family.cache,
            prefill=prefill, decode=decode, prefill_weights=self.prefill_weights if prefill else None,
        )  # fmt: skip
        try:
            service = serving.look_up(self.request.graph, plan, self.request.formation)
        except CapabilityError:
            return None
        return service, serving_curves.curves(service, self.workload)

    def service(self, plan: tuple[Instance | None, Instance]) -> tuple[Service, Curves] | None:
        """Return a plan's service with its curves."""
        prefill, decode = plan
        alone = self._known(
            prefill.model_copy(update={"count": 1}) if prefill else None, decode.model_copy(update={"count": 1})
        )
        if alone is None:
            return None
        service, lines = alone
        target = replace(service.decode, cut=replace(service.decode.cut, count=float(decode.count)))
        if prefill is None:
            return replace(service, decode=target, prefill=target), lines
        source = replace(service.prefill, cut=replace(service.prefill.cut, count=float(prefill.count)))
        return replace(service, decode=target, prefill=source), lines

    def _most(self, plan: tuple[Instance | None, Instance]) -> float:
        """Return the most requests/s of one plan within the targets."""
        found = self.service(plan)
        if found is None:
            return 0.0
        service, lines = found
        pace = serving_curves.paces(service, self.workload, lines)
        seen = serving_state.points(service, self.workload, pace)
        if plan[0] is None:
            return float(max(seen.rate[self.met(seen.tpot, seen.ttft)], default=0.0))
        # what decode takes, beyond the bound of prefill
        free = service.decode.cut.count * pace.running / (self.workload.mean_decoded * pace.tpot)
        at = np.linspace(0, len(free) - 1, serving_state.FINE)
        place = np.arange(len(free))
        batch, tpot = np.interp(at, place, pace.running), np.interp(at, place, pace.tpot)
        rate = service.decode.cut.count * batch / (self.workload.mean_decoded * tpot)
        allowed = rate[tpot <= (self.workload.tpot_target or np.inf) * (1 + 1e-9)]
        low, high = 0.0, min(float(max(allowed, default=0.0)), float(pace.bound))
        if high == 0.0:
            return 0.0
        for _ in range(3):
            rates = np.linspace(low, high, FINER)[1:] if low == 0 else np.linspace(low, high, FINER)
            waits = serving_state.waits(
                service, self.workload, pace, rates, pace.own[0], pace.alone[0], self.workload.mean_decoded
            )
            good = pace.own[0] + waits <= (self.workload.ttft_target or np.inf) * (1 + 1e-9)
            if good.all():
                return high
            if not good.any():
                low, high = 0.0, float(rates[0])
                continue
            last = int(np.flatnonzero(good)[-1])
            low, high = float(rates[last]), float(rates[last + 1])
        return low

    def met(self, tpot: np.ndarray, ttft: np.ndarray) -> np.ndarray:
        """Return where the targets are met."""
        load: ServingWorkload = self.workload
        return (tpot <= (load.tpot_target or np.inf) * (1 + 1e-9)) & (ttft <= (load.ttft_target or np.inf) * (1 + 1e-9))

    def plans(self, cards: dict[str, int]) -> Iterator[tuple[Instance | None, Instance]]:
        """Yield every plan with at most so many cards of each pool: all numbers of instances."""
        for pool, count in cards.items():
            for one in self.types[pool, "both"]:
                for number in range(1, count // one.cards + 1):
                    yield None, one.model_copy(update={"count": number})
        for (here, room), (there, rest) in itertools.product(cards.items(), cards.items()):
            for source, target in itertools.product(self.types[here, "prefill"], self.types[there, "decode"]):
                for n in range(1, room // source.cards + 1):
                    left = rest - n * source.cards if here == there else rest
                    for m in range(1, left // target.cards + 1):
                        yield source.model_copy(update={"count": n}), target.model_copy(update={"count": m})

    def _own(self, pool: str, cards: int) -> float:
        """Return the most requests/s of a pool alone with so many cards."""
        return max((self.most(plan) for plan in self.plans({pool: cards})), default=0.0)

    def most_of_all(self) -> float:
        """Return the most requests/s of every fleet: own parts, and at most one plan across two pools."""
        best = sum(self.own(name, count) for name, count in self.cards.items())
        for plan in self.plans(self.cards):
            used = cards_of(plan)
            rate = self.most(plan) if len(used) > 1 else 0.0
            if rate > 0:
                best = max(
                    best, rate + sum(self.own(name, have - used.get(name, 0)) for name, have in self.cards.items())
                )
        return best

    def fewest(self, rate: float) -> float:
        """Return the fewest cards that take a rate: one plan, or own parts of several pools."""
        enough = rate * (1 - 1e-9)
        best = min((sum(cards_of(plan).values()) for plan in self.plans(self.cards) if self.most(plan) >= enough),
                   default=np.inf)  # fmt: skip
        for chosen in itertools.product(*(range(count + 1) for count in self.cards.values())):
            taken = sum(self.own(name, count) for name, count in zip(self.cards, chosen, strict=True))
            best = min(best, sum(chosen) if taken >= enough else np.inf)
        return float(best)

    def closed(self, requests: float) -> float:
        """Return the most requests/s per card with so many requests in the system."""
        best = 0.0
        for plan in self.plans(self.cards):
            if (found := self.service(plan)) is not None:
                service, lines = found
                pace = serving_curves.paces(service, self.workload, lines)
                state = serving_state.meet(service, self.workload, pace)
                if self.met(np.asarray(state.tpot), np.asarray(state.first.mean)):
                    best = max(best, float(state.through) / sum(cards_of(plan).values()))
        assert requests > 0
        return best


def cards_of(plan: tuple[Instance | None, Instance]) -> dict[str, int]:
    """Return the cards of a plan by pool."""
    found: dict[str, int] = {}
    for one in filter(None, plan):
        found[one.pool] = found.get(one.pool, 0) + one.count * one.cards
    return found
