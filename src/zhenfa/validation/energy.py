"""Rows on power and energy: facilities, conversion, water, carbon, and the power of cards that serve.

A row of the section ``energy`` has ``inputs`` and ``expect``, as :mod:`.reliability`. A row of ``energy_llm`` is one
measured point of a model being served: model, cards, batch, throughput, power, joules per token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from zhenfa.laws import energy, facility
from zhenfa.validation import serving_power
from zhenfa.validation.outcome import Kind, Outcome
from zhenfa.validation.quantities import Key, number, numbers, quantities, take_apart
from zhenfa.validation.reliability import KINDS, Answer, Reading, name_of, part_of
from zhenfa.validation.rules import ENERGY, YEAR_S, Known, apply

KIND: Final[Kind] = "energy"
SECTIONS: Final = frozenset({"energy", "energy_llm"})
SERVED: Final = ("model", "gpu")
WORDS: Final = frozenset({
    "pue", "power", "energy", "facility", "it", "rack", "flow", "factor", "carbon", "token_energy", "tue", "power_cap",
})  # fmt: skip


def accepts(record: Mapping[str, Any]) -> bool:
    """Return whether a record is of this kind: by its section, or by what its keys speak of."""
    section = record.get("section")
    if isinstance(section, str) and section:
        return section in SECTIONS
    if _served(record):
        return True
    if not isinstance(record.get("expect"), Mapping) or record.get("kind") not in KINDS:
        return False
    if re.fullmatch(r"E\d+", name_of(record)):
        return True
    return bool(WORDS & set(quantities(part_of(record, "inputs")) | quantities(part_of(record, "expect"))))


def _served(record: Mapping[str, Any]) -> bool:
    """Return whether a record is one measured point of a model being served."""
    return all(isinstance(record.get(key), str) for key in SERVED) and bool(
        {"power_W", "J_per_tok", "J_per_token"} & set(record)
    )


def outcomes(record: Mapping[str, Any]) -> list[Outcome]:
    """Return what a row says beside what the laws give for it."""
    if _served(record) or (record.get("section") == "energy_llm" and not part_of(record, "expect")):
        return _serving(record)
    reading = Reading(record, KIND, ENERGY)
    inputs, expect = part_of(record, "inputs"), part_of(record, "expect")
    known = quantities(inputs)
    for key, raw in expect.items():
        apart, measured = take_apart(key), numbers(raw)
        if measured is None or isinstance(raw, Mapping):
            reading.left.append(key)
            continue
        answer = _special(key, apart, known, inputs, expect) or _by_rules(apart, known)
        if answer is None:
            reading.left.append(key)
        else:
            reading.add(key, measured, answer, apart)
    return reading.finish()


def _by_rules(apart: Key, known: Known) -> Answer | None:
    found, how = apply(ENERGY, known)
    if apart.name in how:
        return Answer(found[apart.name], how[apart.name])
    if apart.known and apart.name in known:
        return Answer(known[apart.name], "the input in another unit")
    return None


def _special(key: str, apart: Key, known: Known, inputs: Mapping[str, Any], expect: Mapping[str, Any]) -> Answer | None:
    """Answer what no rule is for: savings between two values of PUE, power for each card, a power chain."""
    text = key.casefold()
    return _saving(text, apart, known, expect) or _capped(text, inputs) or _each(text, expect) or _chain(text, inputs)


_SAVING: Final = re.compile(r"saving_(\d+)_vs_(\d+)_mwh_per_year")


def _saving(text: str, apart: Key, known: Known, expect: Mapping[str, Any]) -> Answer | None:
    """Answer what one PUE saves against another in a year, in energy and in carbon: ``saving_104_vs_110``."""
    if not text.startswith("saving"):
        return None
    found = apply(ENERGY, known)[0]
    named = next((match for key in (text, *expect) if (match := _SAVING.fullmatch(str(key).casefold()))), None)
    if named is None or "it" not in found:
        return None
    better, worse = (int(digits) / 10 ** (len(digits) - 1) for digits in named.groups())
    saved = YEAR_S * (energy.facility_power(found["it"], worse) - energy.facility_power(found["it"], better))
    if "co2" not in text:
        return Answer(np.asarray(saved), "difference of PUE over 8,760 hours")
    if "factor" not in known:
        return None
    return Answer(np.asarray(energy.carbon(saved, known["factor"])), "difference of PUE over 8,760 hours")


def _capped(text: str, inputs: Mapping[str, Any]) -> Answer | None:
    """Answer what a lower power cap makes of the energy, from both powers and what happened to the time."""
    if "energy" not in text or not re.search(r"ratio|change|saving|reduction|cut", text):
        return None
    powers, slower = [], None
    for key, value in inputs.items():
        apart, read = take_apart(key), numbers(value)
        if read is None:
            continue
        if apart.unit == "W":
            powers += read.ravel().tolist()
        elif re.search(r"latency|time|slow", key.casefold()):
            mean = float(read.mean())
            slower = mean if re.search(r"ratio|factor", key.casefold()) or mean >= 1 else 1.0 + mean
    if len(powers) != 2 or slower is None or max(powers) <= 0:
        return None
    ratio = min(powers) / max(powers) * slower
    change = {"change": ratio - 1.0, "ratio": ratio}
    name = next((word for word in change if word in text), "")
    return Answer(np.array(change.get(name, 1.0 - ratio)), "power times time, the card at its cap")


def _each(text: str, expect: Mapping[str, Any]) -> Answer | None:
    """Answer ``..._kW_per_card``: a stated power over the cards that stand beside it or in its name (``nvl72``)."""
    named = re.fullmatch(r"(?P<whose>\w*?)_?kw_per_(?:card|gpu|npu)(?P<all>_all_in)?", text)
    if named is None:
        return None
    digits = re.search(r"(\d+)$", named["whose"])
    cards = float(digits[1]) if digits else number(expect.get("cards_per_rack"))
    powers = {
        str(key).casefold(): number(value)
        for key, value in expect.items()
        if str(key).casefold().endswith("_kw") and number(value) is not None
    }
    mark = digits[1] if digits else "rack"
    fitting = [key for key in powers if mark in key]
    if named["all"] and digits:
        fitting = [key for key in fitting if "all_in" in key] or fitting
    power = powers[fitting[0]] if fitting else None
    if not cards or power is None:
        return None
    return Answer(np.array(power / cards), "power over cards")


_STATES: Final = {"idle": (0.0, 0.0), "full": (1.0, 1.0)}


def _chain(text: str, inputs: Mapping[str, Any]) -> Answer | None:
    """Answer the power of a whole system from its parts: nodes, DC-DC, switches, rectifiers, cooling units.

    ``idle_MW`` and ``full_MW``, or ``..._cpu33_gpu79_MW`` with the utilisation of each in per cent.
    """
    named = re.search(r"cpu(\d+)_gpu(\d+)", text)
    state = _STATES.get(text.partition("_")[0])
    if named is not None:
        state = int(named[1]) / 100, int(named[2]) / 100
    needed = ("nodes_per_chassis", "chassis_per_rack", "racks", "gpu", "cpu", "sivoc", "rectifier")
    values = {name: numbers(inputs.get(name)) for name in needed}
    if state is None or any(value is None for value in values.values()):
        return None

    def one(name: str, default: float = 0.0) -> float:
        value = number(inputs.get(name))
        return default if value is None else value

    parts = {name: np.atleast_1d(value).tolist() for name, value in values.items() if value is not None}
    if any(len(parts[name]) != 2 for name in ("gpu", "cpu", "sivoc", "rectifier")):
        return None
    cpu = energy.card_power(state[0], idle=parts["cpu"][0], maximum=parts["cpu"][1])
    gpu = energy.card_power(state[1], idle=parts["gpu"][0], maximum=parts["gpu"][1])
    node = cpu + one("gpus", 1) * gpu + one("mem") + one("nics") * one("nic") + one("nvme")
    tray = facility.conversion_input(node, loss=parts["sivoc"][0], efficiency=parts["sivoc"][1])
    chassis = one("nodes_per_chassis") * tray + one("switches_per_chassis") * one("switch")
    rectifiers = one("rectifiers_per_chassis", 1)
    each = facility.conversion_input(chassis / rectifiers, loss=parts["rectifier"][0], efficiency=parts["rectifier"][1])
    system = one("racks") * one("chassis_per_rack") * rectifiers * each + one("cdus") * one("cdu_W")
    return Answer(np.asarray(system), "power chain with conversion losses")


# One measured point of a model being served.


def _serving(record: Mapping[str, Any]) -> list[Outcome]:
    found = serving_power.predict(record)
    if isinstance(found, str):
        return [_outcome(record, "power", "W", None, None, skipped=found)]
    power, tag, words = found
    throughput = number(record.get("tok_per_s"))
    latency, batch = number(record.get("median_itl_ms")), number(record.get("avg_batch"))
    if not throughput and latency and batch:
        throughput = 1000.0 * batch / latency
    said = number(record.get("J_per_tok"))
    said = number(record.get("J_per_token")) if said is None else said
    results = []
    if number(record.get("power_W")) is not None:
        results.append(_outcome(record, "power", "W", number(record["power_W"]), power, tag=tag, note=words))
    if said is not None and throughput:
        joules = float(energy.token_energy(power, throughput))
        results.append(_outcome(record, "energy per token", "J/token", said, joules, tag=tag, note=words))
    return results or [_outcome(record, "power", "W", None, None, skipped="the row states neither power nor J/token")]


def _outcome(
    record: Mapping[str, Any], metric: str, unit: str, measured: float | None, predicted: float | None, **more: Any
) -> Outcome:
    return Outcome(name_of(record), KIND, (KIND,), metric, unit, measured, predicted, **more)
