"""Which law gives which quantity from which others: applied until nothing new comes out.

A rule names what it gives and what it needs; the first rule that has all it needs wins. So a row is read by what it
says and not by what it is called, and a row never seen before is answered as far as the laws reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zhenfa.laws import energy, facility, failure, recovery, redundancy, reliability
from zhenfa.validation.quantities import DAY, Value

Known = dict[str, Value]


@dataclass(frozen=True)
class Rule:
    """``gives`` from ``needs``; ``unless`` any of those is known, for which another rule is the right one."""

    gives: str
    needs: tuple[str, ...]
    law: Callable[..., Any]
    words: str
    unless: tuple[str, ...] = ()


def apply(rules: Sequence[Rule], known: Mapping[str, Value]) -> tuple[Known, dict[str, str]]:
    """Return all that follows from what is known, and in which words each new quantity was found."""
    found, how = dict(known), dict[str, str]()
    for _ in range(12):
        before = len(found)
        for rule in rules:
            if rule.gives in found or not all(name in found for name in rule.needs):
                continue
            if any(name in found for name in rule.unless):
                continue
            value = _try(rule, found)
            if value is not None:
                found[rule.gives], how[rule.gives] = value, rule.words
        if len(found) == before:
            break
    return found, how


def _try(rule: Rule, known: Known) -> Value | None:
    """Return what a rule gives; None where the law does not take these values or gives no number."""
    try:
        with np.errstate(all="ignore"):
            value = np.asarray(rule.law(*(known[name] for name in rule.needs)), float)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return value if np.all(np.isfinite(value)) else None


def _exact(mtbf: Value, checkpoint: Value, interval: Value, down: Value, restart: Value) -> Any:
    return reliability.ettr(interval, mtbf=mtbf, checkpoint=checkpoint, down=down, restart=restart)


def _kokolis(nodes: Value, rate: Value, u0: Value, interval: Value, write: Value) -> Any:
    return reliability.kokolis_ettr(nodes, node_failure_rate=rate, restart=u0, interval=interval, checkpoint=write)


def _elastic(mtbf: Value, stall: Value, degraded: Value, replicas: Value) -> Any:
    return recovery.elastic_ettr(mtbf=mtbf, stall=stall, degraded=degraded, replicas=replicas)


COUNTING: Final = (
    Rule("nodes", ("cards", "cards_per_node"), lambda n, c: n / c, "cards over cards per node"),
    Rule("cards", ("nodes", "cards_per_node"), lambda n, c: n * c, "nodes times cards per node"),
    Rule("mtbf", ("duration", "failures"), lambda t, k: t / k, "time over failures"),
    Rule("mtbf", ("nodes", "rate"), lambda n, r: reliability.node_mtbf(n, r * 1000 * DAY), "nodes in series"),
    Rule("mtbf", ("cards", "unit_years_per_failure"), lambda n, u: u / n, "cards in series"),
    Rule("rate", ("failures", "nodes", "duration"), failure.failure_rate, "failures over node-seconds"),
    Rule("rate", ("mtbf", "nodes"), lambda mu, n: 1 / (mu * n), "nodes in series"),
    Rule("failures", ("duration", "mtbf"), lambda t, mu: t / mu, "time over MTBF"),
    Rule("probability", ("horizon", "mtbf"), reliability.failure_probability, "exponential failures"),
    Rule("unit_years_per_failure", ("failures", "cards", "duration"), lambda k, n, t: n * t / k, "card-years"),
)  # fmt: skip
INTERVALS: Final = (
    Rule("young", ("mtbf", "checkpoint"), reliability.young_interval, "Young"),
    Rule("daly", ("mtbf", "checkpoint", "down", "restart"),
         lambda mu, c, d, r: reliability.daly_interval(mu, c, down=d, restart=r), "Daly, first order"),
    Rule("daly", ("mtbf", "checkpoint"), reliability.daly_interval, "Daly, first order", ("down", "restart")),
    Rule("daly_higher", ("mtbf", "checkpoint"), reliability.daly_higher_interval, "Daly, higher order"),
    Rule("rfo", ("mtbf", "checkpoint", "down", "restart"),
         lambda mu, c, d, r: reliability.first_order_interval(mu, c, down=d, restart=r), "first order"),
    Rule("optimal", ("mtbf", "checkpoint"), reliability.optimal_interval, "exact optimum"),
)  # fmt: skip
EFFICIENCY: Final = (
    Rule("elastic", ("mtbf", "stall", "degraded", "replicas"), _elastic, "elastic replicas"),
    Rule("synchronous", ("mtbf", "stall", "degraded"), lambda mu, s, g: recovery.linear_efficiency(mu, s + g),
         "everybody waits"),
    Rule("ettr", ("elastic",), lambda x: x, "elastic replicas"),
    Rule("ettr", ("nodes", "rate", "u0", "interval", "write"), _kokolis, "expected ETTR, small losses"),
    Rule("checkpoint", ("write",), lambda w: w, "a write that blocks", ("u0",)),
    Rule("restart", ("u0",), lambda u: u, "initialisation is restart", ("write",)),
    Rule("interval", ("optimal",), lambda t: t, "at the best interval", ("recovery",)),
    Rule("ettr", ("mtbf", "checkpoint", "interval", "down", "restart"), _exact, "exact efficiency"),
    Rule("ettr", ("mtbf", "checkpoint", "interval", "down"),
         lambda mu, c, t, d: _exact(mu, c, t, d, np.array(0.0)), "exact efficiency", ("restart", "recovery")),
    Rule("ettr", ("mtbf", "checkpoint", "interval", "restart"),
         lambda mu, c, t, r: _exact(mu, c, t, np.array(0.0), r), "exact efficiency", ("down", "recovery")),
    Rule("ettr", ("mtbf", "checkpoint", "interval", "recovery"),
         lambda mu, c, t, d: _exact(mu, c, t, d, np.array(0.0)), "exact efficiency", ("down", "restart")),
    Rule("ettr", ("mtbf", "recovery"), recovery.linear_efficiency, "one price per failure", ("checkpoint", "interval")),
    Rule("ettr", ("waste",), lambda w: 1 - w, "what is not lost"),
    Rule("waste", ("ettr",), lambda e: 1 - e, "what is not kept"),
    Rule("recovery", ("mtbf", "ettr"), lambda mu, e: (1 - e) * mu, "one price per failure",
         ("checkpoint", "interval", "down", "restart")),
    Rule("overall", ("scheduling", "ettr", "program"), recovery.goodput, "goodput chain"),
    Rule("ettr", ("overall", "scheduling", "program"), lambda o, s, p: o / (s * p), "goodput chain"),
    Rule("availability", ("mtbf", "recovery"), redundancy.availability, "up over up and down"),
)  # fmt: skip
SPARES: Final = (
    Rule("spares", ("nodes", "rate", "refill", "quantile"),
         lambda n, r, t, q: redundancy.standby_nodes(n, r, t, quantile=q), "Poisson, warm standby"),
    Rule("window_rate_least", ("nodes", "standbys", "quantile"),
         lambda n, s, q: redundancy.standby_rate(n, s - 1, quantile=q), "Poisson, warm standby"),
    Rule("window_rate_most", ("nodes", "standbys", "quantile"),
         lambda n, s, q: redundancy.standby_rate(n, s, quantile=q), "Poisson, warm standby"),
    Rule("spare_share", ("spares", "nodes"), lambda s, n: s / n, "spares over nodes"),
    Rule("usable", ("units", "needed", "unavailability"), redundancy.usable_probability, "k of n"),
    Rule("all_up", ("units", "unavailability"), lambda n, u: redundancy.usable_probability(n, n, u), "k of n"),
)  # fmt: skip
RELIABILITY: Final = (*COUNTING, *INTERVALS, *EFFICIENCY, *SPARES)

YEAR_S: Final = 8760 * 3600.0
ENERGY: Final = (
    Rule("it", ("racks", "rack"), lambda n, p: n * p, "racks"),
    Rule("facility", ("it", "pue"), energy.facility_power, "PUE"),
    Rule("pue", ("facility", "it"), lambda f, i: f / i, "PUE"),
    Rule("tue", ("itue", "pue"), facility.tue, "TUE"),
    Rule("flow", ("power", "rise"), facility.water_flow, "heat balance"),
    Rule("flow", ("heat", "rise"), facility.water_flow, "heat balance"),
    Rule("power", ("load", "idle", "maximum", "exponent"),
         lambda u, i, m, g: energy.card_power(u, idle=i, maximum=m, exponent=g), "power from utilisation"),
    Rule("power", ("load", "idle", "maximum"), lambda u, i, m: energy.card_power(u, idle=i, maximum=m),
         "power from utilisation", ("exponent",)),
    Rule("energy_ratio", ("power_ratio", "time_ratio"), lambda p, t: p * t, "power times time"),
    Rule("energy", ("cards", "power", "duration", "pue"), lambda n, p, t, q: n * p * t * q, "power times time"),
    Rule("energy", ("cards", "power", "duration"), lambda n, p, t: n * p * t, "power times time", ("pue",)),
    Rule("energy", ("facility", "duration"), lambda p, t: p * t, "power times time"),
    Rule("token_energy", ("energy", "tokens"), energy.energy_per_token, "energy over tokens"),
    Rule("token_energy", ("power", "tokens_per_second"), energy.token_energy, "power over throughput"),
    Rule("energy", ("card_time", "power", "pue"), lambda t, p, q: t * p * q, "power times time"),
    Rule("energy", ("card_time", "power"), lambda t, p: t * p, "power times time", ("pue",)),
    Rule("dynamic_range", ("idle", "maximum"), lambda i, m: (m - i) / m, "swing over peak"),
    Rule("carbon", ("energy", "factor"), energy.carbon, "grid average"),
)  # fmt: skip


def targets(rules: Iterable[Rule]) -> frozenset[str]:
    """Return what the rules can give."""
    return frozenset(rule.gives for rule in rules)
