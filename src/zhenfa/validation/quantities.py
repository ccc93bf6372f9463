"""What a row says, as named quantities in base units: keys such as ``mtbf_h`` or ``rate_per_1000_node_days`` read.

A key is a name, often with a unit at its end. Rows are written by people: one quantity has several names, and a list
stands for several cases. What cannot be read is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Value = npt.NDArray[np.float64]

DAY: Final = 86400.0

UNITS: Final[dict[str, tuple[float, str]]] = {
    "per_1000_node_days": (1 / (1000 * DAY), "per 1,000 node-days"),
    "per_1000_machine_windows": (1e-3, "per 1,000 machine-windows"),
    "per_node_day": (1 / DAY, "per node-day"),
    "per_card_day": (1 / DAY, "per card-day"),
    "per_day": (1 / DAY, "per day"),
    "per_hour": (1 / 3600.0, "per hour"),
    "kg_per_kwh": (1 / 3.6e6, "kg/kWh"),
    "mwh_per_year": (3.6e9, "MWh"),
    "kwh_per_year": (3.6e6, "kWh"),
    "t_co2_per_year": (1000.0, "t"),
    "t_co2": (1000.0, "t"),
    "t_co2e": (1000.0, "t"),
    "t_co2eq": (1000.0, "t"),
    "tco2": (1000.0, "t"),
    "tco2e": (1000.0, "t"),
    "tco2eq": (1000.0, "t"),
    "kg_co2e": (1.0, "kg"),
    "kg_co2": (1.0, "kg"),
    "l_per_min": (1.0, "l/min"),
    "lb_per_mwh": (0.45359237 / 3.6e9, "lb/MWh"),
    "j_per_tok": (1.0, "J/token"),
    "j_per_token": (1.0, "J/token"),
    "tok_per_s": (1.0, "tokens/s"),
    "tokens_per_s": (1.0, "tokens/s"),
    "gpu_years": (365.25 * DAY, "years"),
    "us": (1e-6, "us"),
    "ms": (1e-3, "ms"),
    "s": (1.0, "s"),
    "sec": (1.0, "s"),
    "min": (60.0, "min"),
    "minutes": (60.0, "min"),
    "h": (3600.0, "h"),
    "hours": (3600.0, "h"),
    "days": (DAY, "d"),
    "d": (DAY, "d"),
    "months": (30.4375 * DAY, "months"),
    "w": (1.0, "W"),
    "kw": (1e3, "kW"),
    "mw": (1e6, "MW"),
    "gw": (1e9, "GW"),
    "j": (1.0, "J"),
    "kj": (1e3, "kJ"),
    "mj": (1e6, "MJ"),
    "wh": (3600.0, "Wh"),
    "kwh": (3.6e6, "kWh"),
    "mwh": (3.6e9, "MWh"),
    "gpu_days": (DAY, "d"),
    "card_days": (DAY, "d"),
    "gwh": (3.6e12, "GWh"),
    "hz": (1.0, "Hz"),
    "k": (1.0, "K"),
    "percent": (0.01, "%"),
    "pct": (0.01, "%"),
}
"""Units at the end of a key: what one is in base units, and how it is printed."""

NAMES: Final[dict[str, str]] = {
    name: own
    for own, names in {
        "cards": "cards gpus npus chips devices accelerators num_gpus num_cards world_size n_gpus",
        "cards_per_node": "cards_per_node gpus_per_node npus_per_node cards_per_machine gpus_per_machine",
        "nodes": "nodes machines servers hosts num_nodes n_nodes n",
        "duration": "duration days hours months elapsed wall wall_clock period_observed observed run",
        "failures": "failures interruptions unexpected failures_total unexpected_interruptions "
        "interruptions_unexpected failure_count incidents total",
        "rate": "rate failure_rate failures_rate r r_f",
        "mtbf": "mtbf mttf mu mtti mean_time_between_failures mean_time_to_failure mtbi job_mtbf "
        "failure_interval event_every time_to_first time_between_events time_between_failures",
        "checkpoint": "c checkpoint checkpoint_write checkpoint_stall checkpoint_cost blocking checkpoint_block "
        "checkpoint_blocking save ckpt",
        "write": "write w_cp w checkpoint_write_time",
        "u0": "u0 init initialisation",
        "interval": "interval checkpoint_interval dt_cp tau t period checkpoint_period ckpt_interval",
        "down": "d down downtime diagnose replace reschedule",
        "restart": "r_restart restart reload restore recovery_load load restart_downtime r_reload",
        "detect": "detect detection timeout detect_by_timeout",
        "recovery": "recovery recovery_time lost_per_failure mttr outage lost_s_per_failure repair recover",
        "ettr": "ettr effective_training_time_ratio goodput linear_model_predicts runtime_goodput effective_time "
        "effective_training_time "
        "committed useful efficiency training_efficiency utilisation_of_time productive",
        "waste": "waste wasted loss lost lost_share share_lost overhead time_lost",
        "replicas": "replicas d_replicas replica_groups dp_replicas groups replica_count",
        "stall": "stall t_stall global_stall",
        "degraded": "degraded t_degraded degraded_for without_replica",
        "full_restart": "q full_restart_share full_restart share_full_restart",
        "elastic": "elastic ettr_elastic elastic_ettr ettr_el fault_tolerant ettr_ft efficiency_elastic "
        "efficiency_fault_tolerant",
        "synchronous": "synchronous ettr_synchronous ettr_sync sync synchronous_ettr "
        "efficiency_synchronous baseline_ettr",
        "quantile": "quantile percentile",
        "standbys": "standbys backups warm_standbys backup_machines",
        "refill": "refill refill_time replenish repair_window",
        "spares": "spares spare_nodes standby_nodes",
        "units": "trays units nodes_per_rack n_units",
        "needed": "needed k trays_needed units_needed",
        "unavailability": "unavailability tray_unavailability unit_unavailability node_unavailability u",
        "young": "young young_interval",
        "daly": "daly daly_interval daly1",
        "daly_higher": "daly_higher daly_high daly2 daly_ho",
        "rfo": "rfo first_order refined_first_order",
        "optimal": "optimal optimum optimal_interval exact_optimum",
        "availability": "availability uptime",
        "slow_share": "slow_machine_share slow_share slow_node_share",
        "slow_by": "slow_by slowdown slower_by",
        "scheduling": "scheduling scheduling_goodput sg",
        "program": "program program_goodput mfu pg",
        "overall": "overall overall_goodput mpg ml_productivity_goodput end_to_end fleet_goodput",
        "probability": "p_failure failure_probability p_at_least_one p_fail job_failure_probability",
        "horizon": "horizon job_length job_duration run_length job_hours",
        "unit_years_per_failure": "per_event gpu_years_per_event gpu_years_per_failure gpu_years_per_sdc per_sdc",
        "racks": "racks cabinets",
        "rack": "rack rack_power",
        "it": "it it_power it_load equipment",
        "facility": "facility facility_power meter total_facility",
        "pue": "pue",
        "itue": "itue",
        "tue": "tue",
        "factor": "kg_per_kwh lb_per_mwh factor emission_factor carbon_factor grid_factor",
        "power": "power kw mw avg_power mean_power gpu_power card_power power_per_gpu",
        "power_cap": "cap power_cap",
        "energy": "energy total_energy run_energy training_energy",
        "card_time": "gpu_hours gpu_h card_hours npu_hours device_hours gpu_days card_days gpu_years card_years",
        "spare_share": "spare_share spares_share standby_share",
        "dynamic_range": "dynamic_range power_swing",
        "carbon": "t_co2 t_co2e t_co2eq tco2 tco2e tco2eq kg_co2 kg_co2e carbon emissions co2 co2e",
        "tokens": "tokens tokens_total trained_tokens",
        "tokens_per_second": "tok_per_s tokens_per_s throughput tokens_per_second",
        "token_energy": "j_per_tok j_per_token energy_per_token joules_per_token",
        "tdp": "tdp nameplate rated_power",
        "idle": "idle idle_power p_idle",
        "maximum": "maximum p_max max_power peak_power full_power",
        "load": "load utilisation utilization util",
        "exponent": "exponent g",
        "rise": "dt rise delta_t",
        "heat": "heat",
        "flow": "flow water_flow l_per_min",
        "clock": "clock frequency_share relative_clock",
        "time_ratio": "latency_ratio time_ratio slowdown_ratio",
        "power_ratio": "power_ratio",
        "energy_ratio": "energy_ratio",
    }.items()
    for name in names.split()
}
"""Our name of a quantity by the names that rows give it, unit aside."""

_BY_LENGTH: Final = sorted(UNITS, key=len, reverse=True)
_BOUND: Final = {"min": "at least", "max": "at most"}


@dataclass(frozen=True)
class Key:
    """A key taken apart: our name (or the key's own words), what one of it is in base units, and a bound if it is."""

    name: str
    factor: float
    unit: str
    bound: str | None = None

    @property
    def known(self) -> bool:
        """Return whether the name is one of ours."""
        return self.name in _OURS


_OURS: Final = frozenset(NAMES.values())


def take_apart(key: str) -> Key:
    """Return a key's name, unit and bound.

    >>> take_apart("mtbf_h").name, take_apart("mtbf_h").factor
    ('mtbf', 3600.0)
    >>> take_apart("cluster_mtbf_h_min")
    Key(name='mtbf', factor=3600.0, unit='h', bound='at least')
    >>> take_apart("stall_min").unit, take_apart("ettr_min").bound
    ('min', 'at least')
    """
    text = re.sub(r"[^a-z0-9]+", "_", key.casefold()).strip("_")
    bound = None
    stem, _, last = text.rpartition("_")
    if last in _BOUND and stem and (_unit_of(stem)[1] or NAMES.get(stem) in _RATIOS):
        bound, text = _BOUND[last], stem
    stem, unit = _unit_of(text)
    factor, shown = UNITS[unit] if unit else (1.0, "")
    if NAMES.get(text) == "card_time":  # the unit is half of the name
        return Key("card_time", factor, shown, bound)
    if unit == "gpu_years":
        shown = "years"
    return Key(_named(stem) or _named(text) or stem or text, factor, shown, bound)


_RATIOS: Final = frozenset({"ettr", "availability", "rate", "elastic", "pue"})


def _unit_of(text: str) -> tuple[str, str]:
    """Return what stands before a unit at the end of a key, and the unit; a key that is only a unit names itself."""
    if text.startswith("gpu_years_per"):
        return text, "gpu_years"
    for unit in _BY_LENGTH:
        if text == unit:
            return text, unit
        if text.endswith("_" + unit):
            return text[: -len(unit) - 1], unit
    return text, ""


def _named(stem: str) -> str | None:
    """Return our name of a stem, also of one with words before it (``cluster_mtbf``), the longest known tail first."""
    words = stem.split("_")
    for start in range(len(words)):
        tail = "_".join(words[start:])
        if tail in NAMES and (start == 0 or len(tail) > 2):
            return NAMES[tail]
    return None


def number(value: Any) -> float | None:
    """Return a finite number, or None for text, truth values and anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        read = float(value)
    except OverflowError:
        return None
    return read if math.isfinite(read) else None


def numbers(value: Any) -> Value | None:
    """Return a number, a list of numbers, or a mapping to numbers (in its order), as an array; else None."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        read = [number(item) for item in value]
        found = [item for item in read if item is not None]
        return np.array(found) if read and len(found) == len(read) else None
    one = number(value)
    return None if one is None else np.array(one)


def quantities(part: Mapping[str, Any]) -> dict[str, Value]:
    """Return what a mapping says of quantities that we have a name for, in base units."""
    found: dict[str, Value] = {}
    for key, value in part.items():
        apart, read = take_apart(str(key)), numbers(value)
        if read is not None and apart.known and apart.bound is None:
            name = _meaning(str(key), apart)
            found.setdefault(name, read * apart.factor)
    return found


def _meaning(key: str, apart: Key) -> str:
    """Tell the letter R of a restart (``R_s``) from the rate r, and D, the time down, from d, the replicas."""
    if key == "R_s" or (apart.name == "rate" and apart.unit in {"s", "min", "h"}):
        return "restart"
    if key == "d" and not apart.unit:
        return "replicas"
    return apart.name
