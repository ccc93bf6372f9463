"""Rows on failures, checkpoints, recovery, spares: what they measured or published beside what the laws say.

A row has ``inputs`` and ``expect`` (and a ``kind``: measured, claim, projection, formula, derived, incident). It is
answered from its own inputs; then from what else it states; then from the default failure rates and the default
recovery policy, tagged assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from zhenfa.catalog import operation
from zhenfa.estimate.survival import rate_range
from zhenfa.laws import failure, recovery, redundancy, reliability
from zhenfa.spec.fact import Tag
from zhenfa.validation.outcome import Kind, Outcome
from zhenfa.validation.quantities import DAY, Key, Value, number, numbers, quantities, take_apart
from zhenfa.validation.rules import RELIABILITY, Known, Rule, apply

KIND: Final[Kind] = "reliability"
KINDS: Final = frozenset({"measured", "claim", "projection", "formula", "derived", "incident"})

NO_INPUTS: Final = "states what was seen and no inputs from which a law could tell it"
NO_LAW: Final = "no law gives this from the row's inputs"
DEFAULTED: Final = frozenset(
    {"mtbf", "rate", "failures", "ettr", "waste", "probability", "spares", "elastic", "synchronous"}
)
"""What may be answered with default rates and the default recovery policy."""

CLAIM: Final = "a claim without the inputs to recompute it"
INCIDENT: Final = "one incident: the times of a single event, which no law predicts"


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a record is of this kind: by its section, or by what its keys speak of."""
    section = record.get("section")
    if isinstance(section, str) and section:
        return section == KIND
    if not isinstance(record.get("expect"), Mapping) or record.get("kind") not in KINDS:
        return False
    if re.fullmatch(r"R\d+", name_of(record)):
        return True
    known = {**quantities(part_of(record, "inputs")), **quantities(part_of(record, "expect"))}
    return bool({"mtbf", "rate", "failures", "ettr", "checkpoint", "restart", "spares", "unavailability"} & set(known))


def part_of(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping inside a record; empty where there is none."""
    value = record.get(key)
    return {str(name): item for name, item in value.items()} if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class Case:
    """One set of inputs of a row, and the part of ``expect`` that answers it."""

    known: Known
    expect: dict[str, Any]
    prefix: str = ""


@dataclass(frozen=True)
class Answer:
    """A value that the laws give, in base units, and what it rests on; ``low`` and ``high`` bound it."""

    value: Value
    words: str
    tag: Tag = "derived"
    low: Value | None = None
    high: Value | None = None


@dataclass
class Reading:
    """A row being answered: what came out, and which keys nothing answered."""

    record: Mapping[str, Any]
    kind: Kind
    rules: tuple[Rule, ...]
    found: list[Outcome] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add(self, key: str, measured: Value, answer: Answer, apart: Key, prefix: str = "") -> None:
        """Lay an answer beside what the row says, one outcome for each of its values."""
        given = np.atleast_1d(measured)
        said = np.atleast_1d(answer.value) / apart.factor
        if said.size not in {1, given.size}:
            self.left.append(prefix + key)
            return
        said = np.broadcast_to(said, given.shape)
        ends = [
            [None] * given.size if end is None else np.broadcast_to(end / apart.factor, given.shape).tolist()
            for end in (answer.low, answer.high)
        ]
        for place, (one, other, *edges) in enumerate(zip(given.tolist(), said.tolist(), *ends, strict=True)):
            metric = f"{prefix}{key}" + (f"[{place}]" if given.size > 1 else "")
            bound = f"{apart.bound} the measured; " if apart.bound else ""
            if one < 0 and other < 0:  # a fall on both sides
                one, other, bound = -one, -other, f"{bound}as a fall; "  # noqa: PLW2901
            self.found.append(
                Outcome(
                    id=name_of(self.record), kind=self.kind, groups=(self.kind,), metric=metric, unit=apart.unit,
                    measured=one, predicted=other, tag=answer.tag, p10=edges[0], p90=edges[1],
                    note=bound + answer.words,
                )
            )  # fmt: skip

    def skip(self, why: str) -> None:
        """Note that a part of the row, or all of it, is not answered."""
        self.found.append(
            Outcome(
                id=name_of(self.record), kind=self.kind, groups=(self.kind,), unit="", skipped=why,
                metric=", ".join(dict.fromkeys(self.left))[:120],
            )
        )  # fmt: skip

    def finish(self) -> list[Outcome]:
        """Return all outcomes, with a reason for what no law answered."""
        if not self.found and not part_of(self.record, "inputs"):
            self.skip({"claim": CLAIM, "incident": INCIDENT}.get(str(self.record.get("kind")), NO_INPUTS))
        elif self.left or not self.found:
            self.skip({"claim": CLAIM, "incident": INCIDENT}.get(str(self.record.get("kind")), NO_LAW))
        return self.found


def name_of(record: Mapping[str, Any]) -> str:
    """Return the id of a row; empty where it has none."""
    name = record.get("id")
    return name if isinstance(name, str) else str(name or "")


def outcomes(record: Mapping[str, Any]) -> list[Outcome]:
    """Return what a row says beside what the laws give for it."""
    reading = Reading(record, KIND, RELIABILITY)
    for case in _cases(record):
        _answer(case, reading)
    if record.get("kind") == "measured":
        _default_rates(record, reading)
    return reading.finish()


# The cases of a row.


def _cases(record: Mapping[str, Any]) -> Iterator[Case]:
    """Split a row into cases: cells, scenarios, a fit and a prediction, or all inputs at once."""
    inputs, expect = part_of(record, "inputs"), part_of(record, "expect")
    shared = quantities(inputs) | _cells(inputs, expect)
    for name, own in _scenarios(inputs).items():
        if name in expect:
            yield Case(shared | own, {"ettr": expect.pop(name)}, f"{name}: ")
    if isinstance(inputs.get("fit"), Mapping) and isinstance(inputs.get("predict"), Mapping):
        fit = quantities(inputs["fit"])
        price = [key for key in expect if take_apart(key).name == "recovery"]
        yield Case(fit, {key: expect.pop(key) for key in price})
        shared |= _fitted(fit) | quantities(inputs["predict"])
    if expect:
        yield Case(shared, expect)


def _scenarios(inputs: Mapping[str, Any]) -> dict[str, Known]:
    """Return named sets of inputs, such as recovery policies; a unit at the end of their list's key is theirs."""
    found: dict[str, Known] = {}
    for key, value in inputs.items():
        if isinstance(value, Mapping):
            unit = key.rpartition("_")[2] if take_apart(key).unit else ""
            for name, item in value.items():
                if isinstance(item, Mapping):
                    found[str(name)] = quantities(
                        {f"{part}_{unit}" if unit else str(part): one for part, one in item.items()}
                    )
    return found


def _cells(inputs: Mapping[str, Any], expect: Mapping[str, Any]) -> Known:
    """Read ``cells``, pairs of a size (nodes where spares are asked for, else cards) and a rate."""
    cells = inputs.get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, list) and len(cell) == 2 for cell in cells):
        return {}
    sizes, rates = numbers([cell[0] for cell in cells]), numbers([cell[1] for cell in cells])
    if sizes is None or rates is None:
        return {}
    size = "nodes" if {"spares", "spares_n"} & {take_apart(str(key)).name for key in expect} else "cards"
    return {size: sizes, "rate": rates / (1000 * DAY)}


def _fitted(known: Known) -> Known:
    """Return the price of a failure that the first point of two shows."""
    found, _ = apply(RELIABILITY, known)
    return {"recovery": found["recovery"]} if "recovery" in found else {}


# The answers.


def _answer(case: Case, reading: Reading) -> None:
    known = dict(case.known)
    if "cards_per_node" not in known:
        known["cards_per_node"] = np.array(operation.failures().cards_per_node)
    last: Key | None = None
    for key, raw in case.expect.items():
        apart, measured = take_apart(key), numbers(raw)
        if key == "counts":
            continue
        if measured is None or isinstance(raw, Mapping):
            reading.left.append(case.prefix + key)
            continue
        if not apart.known and key.startswith("paper_prints") and last is not None and last.unit == apart.unit:
            apart = last  # the same quantity as the paper rounds it
        last = apart
        answer = _special(key, apart, known, case.expect, reading.record) or _by_rules(key, apart, known, case.expect)
        if answer is None:
            reading.left.append(case.prefix + key)
        else:
            reading.add(key, measured, answer, apart, case.prefix)


def _by_rules(key: str, apart: Key, known: Known, expect: Mapping[str, Any]) -> Answer | None:
    """Answer from the inputs; else with what else the row states; else with the default rates and recovery."""
    wanted = _wanted(key, apart)
    found, how = apply(RELIABILITY, known)
    if wanted in how:
        return Answer(found[wanted], how[wanted])
    stated = {
        name: value for other, raw in expect.items() if other != key and not _computed(other)
        for name, value in quantities({other: raw}).items() if name != wanted
    }  # fmt: skip
    found, how = apply(RELIABILITY, stated | known)
    if wanted in how:
        return Answer(found[wanted], f"{how[wanted]}, from what else the row states")
    found, how = apply(RELIABILITY, _defaults(known, stated))
    if wanted not in how or wanted not in DEFAULTED:
        return None
    ends = [apply(RELIABILITY, _defaults(known, stated, 1 / times))[0].get(wanted) for times in rate_range()]
    answer = Answer(found[wanted], f"{how[wanted]}, with default rates or recovery", "assumed")
    few, many = ends
    if few is None or many is None or np.array_equal(few, many):
        return answer
    return replace(answer, low=np.minimum(few, many), high=np.maximum(few, many))


def _computed(key: str) -> bool:
    """Return whether a key holds what the row's author computed from the others."""
    return key.casefold().startswith(("implied", "paper_prints", "linear_model"))


def _wanted(key: str, apart: Key) -> str:
    """Return our name of what a key asks for."""
    text = key.casefold()
    if apart.unit == "per 1,000 machine-windows":
        return "window_rate_least" if apart.bound == "at least" else "window_rate_most"
    if re.match(r"p_.*usable", text):
        return "usable"
    if re.match(r"p_all.*up", text):
        return "all_up"
    return apart.name


def _defaults(known: Known, stated: Known, factor: float = 1.0) -> Known:
    """Return what is known together with the default failure rates of the catalog and its recovery policy.

    ``factor`` scales the default mean time between failures.
    """
    table = operation.failures()
    full = stated | known
    if "mtbf" not in apply(RELIABILITY, full)[0]:
        cards = apply(RELIABILITY, full)[0].get("cards")
        if cards is None:
            return full
        full["mtbf"] = factor * default_mtbf(cards, full["cards_per_node"])
    if not {"checkpoint", "write", "recovery", "stall"} & set(full):
        full["checkpoint"] = np.array(table.recovery.checkpoint.require("checkpoint"))
    if not {"down", "restart", "recovery", "u0", "stall"} & set(full):
        full["down"] = np.array(table.recovery.down.require("down")) + full.pop("detect", 0.0)
        full["restart"] = np.array(table.recovery.reload.require("reload"))
    return full


def default_mtbf(cards: Value, cards_per_node: Value) -> Value:
    """Return the mean time between failures of a job at the default rates of the catalog."""
    table = operation.failures()
    rates = {"card_rate": "card", "host_rate": "host", "network_rate": "network", "maintenance_rate": "maintenance"}
    given = {argument: table.rate(name) for argument, name in rates.items()}
    found = reliability.job_mtbf(cards, cards / cards_per_node, software_rate=table.rate("software"), **given)
    return np.asarray(found, float)


def _special(key: str, apart: Key, known: Known, expect: Mapping[str, Any], record: Mapping[str, Any]) -> Answer | None:
    """Answer what no rule is for: sums, sizes named in the key, timeouts, growth with size, silent errors."""
    text = key.casefold()
    return (
        _sum(text, apart, expect, record)
        or _lost_to_detection(text, known)
        or _timeout(text, part_of(record, "inputs"))
        or _growth(text, known)
        or _silent(text)
    )


def _sum(text: str, apart: Key, expect: Mapping[str, Any], record: Mapping[str, Any]) -> Answer | None:
    counts = numbers(expect.get("counts")) if isinstance(expect.get("counts"), Mapping) else None
    if text in {"unexpected", "total"} and counts is not None:
        return Answer(counts.sum(), "sum of the counts by cause")
    parts = [number(expect.get(name)) for name in ("planned", "unexpected")]
    if text in {"interruptions_total", "total"} and None not in parts:
        return Answer(np.array([part for part in parts if part is not None]).sum(), "planned and unexpected")
    if text.startswith("total") and apart.unit in {"s", "min", "h"}:
        read = [(take_apart(name), numbers(value)) for name, value in part_of(record, "inputs").items()]
        times = [(one, value) for one, value in read if value is not None]
        if len(times) > 1 and all(one.unit in {"ms", "s", "min", "h"} for one, _ in times):
            spent = sum((float(value.sum()) * one.factor for one, value in times), 0.0)
            return Answer(np.array(spent), "sum of the parts")
    return None


def _lost_to_detection(text: str, known: Known) -> Answer | None:
    """Answer ``lost_<cards>``: the share of time lost to each way of detection on a job of that size."""
    named = re.fullmatch(r"lost_(\d+)", text)
    if named is None or "detect" not in known or "rate" not in known:
        return None
    nodes = int(named[1]) / known["cards_per_node"]
    mtbf = reliability.node_mtbf(nodes, known["rate"] * 1000 * DAY)
    return Answer(np.asarray(recovery.detection_loss(mtbf, known["detect"])), "detection over MTBF and detection")


def _timeout(text: str, inputs: Mapping[str, Any]) -> Answer | None:
    """Answer what a collective library makes of its timeouts: set in ``inputs``, or left at the default."""
    set_to = {str(name).casefold(): number(value) for name, value in inputs.items()}
    if not any("hccl" in name for name in set_to):
        return None
    table = operation.failures()
    part = "hccl-connect" if "connect" in text else "hccl-exec"
    timeout = table.timeout(part)
    given = next(
        (value for name, value in set_to.items() if value is not None and ("connect" in name) == ("connect" in text)),
        None,
    )
    ends = np.array([timeout.least, timeout.most if timeout.most is not None else np.inf])
    if "range" in text:
        return Answer(ends, "limits of the setting", "datasheet")
    if "default" in text or "observed" in text:
        return Answer(np.array(timeout.default), "the default, to which the library rounds", "datasheet")
    if "effective" in text and given is not None:
        held = float(np.clip(given, *ends))
        real = failure.effective_timeout(held, quantum=timeout.quantum, added=timeout.added)
        return Answer(np.asarray(real), "rounded down to the library's step, plus what it adds", "datasheet")
    return None


def _growth(text: str, known: Known) -> Answer | None:
    """Answer how long a restart, or its communicators, take on so many cards."""
    if "cards" not in known:
        return None
    communicators = re.search(r"comm.*init|init.*comm|communicator", text)
    cold = re.search(r"(cold|restart|full).*(recovery|restart|time)", text)
    if not (communicators or cold) or take_apart(text).unit not in {"s", "min", "h"}:
        return None
    growth = operation.failures().growth("communicators" if communicators else "cold-recovery")
    time = failure.restart_time(known["cards"], base=growth.base, per_card=growth.per_card, exponent=growth.exponent)
    return Answer(np.asarray(time), f"fitted to {growth.points} sizes read off a chart", "fitted")


def _silent(text: str) -> Answer | None:
    if not re.search(r"(gpu|card|device|npu)_years_per_(event|sdc|silent)", text):
        return None
    return Answer(np.array(1.0 / operation.failures().silent_errors.rate), "default rate of silent errors", "measured")


def _default_rates(record: Mapping[str, Any], reading: Reading) -> None:
    """Lay the default failure rates beside a measured number of failures, mean time between them, or rate."""
    known = quantities(part_of(record, "inputs"))
    cards = apply(RELIABILITY, known | {"cards_per_node": np.array(8.0)})[0].get("cards")
    per_node = known.get("cards_per_node", np.array(operation.failures().cards_per_node))
    if cards is None or cards.size > 1 or per_node.size > 1 or not np.all(cards > 0) or not np.all(per_node > 0):
        return
    mtbf = default_mtbf(cards, per_node)
    said = {"mtbf": mtbf, "rate": 1 / (mtbf * cards / per_node)}
    if "duration" in known:
        said["failures"] = known["duration"] / mtbf
    done = {one.metric for one in reading.found if one.note and "default rates" in one.note}
    for key, raw in part_of(record, "expect").items():
        apart, measured = take_apart(key), number(raw)
        if apart.name in said and measured is not None and not _computed(key) and key not in done:
            if key in {"interruptions_total"} or apart.bound:
                continue
            value, ends = said[apart.name], rate_range()
            if apart.name == "mtbf":
                ends = 1 / ends[0], 1 / ends[1]
            low, high = value * min(ends), value * max(ends)
            answer = Answer(value, "default failure rates of the catalog", "fitted", low, high)
            reading.add(f"{key} at default rates", np.array(measured), answer, apart)
            reading.left = [one for one in reading.left if one != key]


def spare_share(cards: float, rate: float, *, refill: float = DAY, quantile: float = 0.99) -> float:
    """Return the share of a machine's nodes to keep as warm standby, at a rate per node-second."""
    nodes = cards / operation.failures().cards_per_node
    return float(redundancy.standby_nodes(nodes, rate, refill, quantile=quantile)) / nodes
