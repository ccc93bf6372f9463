"""What holds for every law: one code for one plan and a million, a full docstring, true examples, named sources."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zhenfa import cite, laws

MODULES = [importlib.import_module(f"zhenfa.laws.{item.name}") for item in pkgutil.iter_modules(laws.__path__)]
PUBLIC = {
    f"{module.__name__.rpartition('.')[2]}.{name}": function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_") and not module.__name__.endswith("arrays")
}

FABRIC = PUBLIC and importlib.import_module("zhenfa.laws.fabric").Fabric(
    np.array([8.0, 64.0, 4096.0]),
    np.array([450e9, 100e9, 25e9]),
    np.array([1e-6, 3e-6, 8e-6]),
    np.array([False, True, False]),
    np.array([True, False, False]),
)
GROUP, STRIDE = (1, 2, 3, 8, 24, 64, 500), (1, 2, 8)
REACHED = {
    "peak": (3e14, 1e15), "bandwidth": (1e12, 3e12), "share": (0.5, 0.8), "memory_share": (0.7, 0.9),
    "fixed": (0.0, 5e-6),
}  # fmt: skip
ROUTING_OF = {"tokens": (1, 4096), "active": (1, 8), "experts": (8, 256), "skew": (0.0, 1.01, 1.2)}
ROUTING = {**ROUTING_OF, "ranks": (1, 8)}
PROCESSOR = {"rate": (3e10, 7e10), "element_bytes": (2, 4), "launch": (0.0, 5e-6)}
ATTENTION = {"causal": (True, False), "window": (np.inf, 512, 7)}
LAYER = {"tokens": (512, 4096), "hidden": (256, 4096), "heads": (8, 32), "sequence": (512, 2048)}
SPLIT = {"tensor_parallel": (1, 4), "sequence_parallel": (True, False), "dropout": (True, False)}
FAILURES = {"mtbf": (500.0, 1e4, np.inf), "checkpoint": (1.0, 60.0), "down": (0.0, 100.0), "restart": (0.0, 300.0)}
RATES = ("card_rate", "host_rate", "network_rate", "maintenance_rate", "software_rate")
SHAPE = {"rows": (1, 3.5, 8192), "inputs": (64, 4096), "outputs": (64, 1000)}
HEADS = {"heads": (8, 64), "key_dim": (64, 192), "value_dim": (64, 128)}
SEQUENCE = {"queries": (1, 1000), "context": (1000, 4096), **HEADS, **ATTENTION}
CLOCK = {"clock": (0.4, 0.8, 1.0), "static": (100, 200), "dynamic": (300, 500), "voltage_slope": (0.0, 0.5)}
COLLECTIVE = {"bytes": (1.0, 1e9), "group": GROUP, "stride": STRIDE, "efficiency": (0.5, 1.0)}

EXCHANGE = {
    "tokens": (1, 4096), "hidden": (7168,), "top_k": (2, 8), "group": GROUP, "stride": STRIDE, "experts": (64, np.inf),
    "bytes_per_element": (1.0, 2.0), "nodes_limited": (4, np.inf), "low_latency": (True, False),
    "per_expert": (True, False),
}  # fmt: skip

ARGUMENTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "compute.matmul_flops": SHAPE,
    "compute.attention_pairs": {"queries": (1, 1000), "context": (1000, 4096), **ATTENTION},
    "compute.attention_flops": SEQUENCE,
    "compute.scan_flops": {"tokens": (1, 4096), **HEADS},
    "matmul.waves": {"tiles": (1, 150, 1e5), "cores": (1, 132), "wave": (0.0, 0.2, 1.0)},
    "matmul.matmul_time": {
        **SHAPE, **REACHED, "cores": (1, 132), "weight_bytes": (0.5, 2), "input_bytes": (2, 4), "fill": (0, 120),
        "wave": (0.0, 0.2, 1.0), "row": (0.0, 1e-9), "output_bytes": (2,), "groups": (1, 8),
    },
    "experts.busiest_rank": ROUTING,
    "experts.touched_experts": {"copies": (1, 8192), "held": (8, 32), **ROUTING_OF},
    "experts.grouped_time": {
        "copies": (1, 8192), "touched": (1, 8), "inputs": (64, 4096), "outputs": (64, 1000), "peak": (3e14, 1e15),
        "cores": (1, 132), "share": (0.5, 0.8), "fill": (0, 120), "pad": (0, 32), "wave": (0.0, 1.0),
    },
    "experts.experts_time": {
        "tokens": (1, 4096), "routed": (8, 8192), "copies": (1, 8192), "touched": (1, 8), "features": (64, 4096),
        "intermediate": (64, 1000), **REACHED, "cores": (1, 132), "weight_bytes": (0.5, 2), "input_bytes": (2, 4),
        "fill": (0, 120), "pad": (0, 32), "wave": (0.0, 1.0), "row": (0.0, 1e-9), "passes": (0.0, 1.0),
        "gated": (0.0, 1.0),
    },
    "attention.prefill_time": {
        **SEQUENCE, **REACHED, "key_heads": (1, 8), "cores": (1, 132), "keys": (1, 64), "softmax": (1, 100),
        "wave": (0.0, 1.0), "packing": (0.0, 1.0), "row": (0.0, 1e-9), "cache_bytes": (1, 2), "sequences": (1, 3),
    },
    "attention.decode_time": {
        "sequences": (1, 64), "context": (1, 4096), **HEADS, **REACHED, "key_heads": (1, 8), "cached": (256, 576),
        "keys": (1, 64), "chunk": (64, 1024), "walk": (0.0, 1e-9), "sequence": (0.0, 1e-8), "head": (0.0, 0.1),
        "pack": (np.inf, 4), "queries": (1, 4), "cache_bytes": (1, 2), "window": (np.inf, 512),
    },
    "attention.block_time": {
        "tokens": (1, 4096), "sequences": (1, 64), "weights": (1e7, 2e8), "pair_work": (0.0, 1e12),
        "index_work": (0.0, 1e10), "index_pairs": (0.0, 1e8), "moved": (1e6, 1e9), **REACHED,
        "peak_attention": (1e15,), "weight_bytes": (0.5, 2), "attention": (0.3, 0.6), "index": (0.5, 1.0),
        "select": (0.1, 2), "row": (0.0, 1e-9), "sequence": (0.0, 1e-8),
    },
    "stream.scan_time": {
        "tokens": (1, 8192), "sequences": (1, 64), "work": (0.0, 1e12), "moved": (1.0, 1e9), **REACHED,
        "walk": (0.0, 1e-9), "row": (0.0, 1e-9), "sequence": (0.0, 1e-8),
    },
    "stream.stream_time": {
        "bytes_moved": (0, 1e9), "bandwidth": (1e12, 3e12), "memory_share": (0.7, 0.9), "fixed": (0.0, 5e-6),
        "row": (0.0, 1e-9), "rows": (0, 100),
    },
    "compute.optimizer_time": {
        "parameters": (0, 1e9), "bytes_per_parameter": (26, 30), "bandwidth": (1e12,), "memory_share": (0.7, 0.9),
    },
    "compute.training_flops_per_token": {
        "active_parameters_matmul": (7e9, 10**12), "layers": (32, 96), "heads": (32,), "head_dim": (128,),
        "sequence": (2048, 131072), "causal": (True, False),
    },
    "processor.processor_matmul_time": {
        **SHAPE, **PROCESSOR, "warm_rate": (2e10,), "cold_rate": (8e9, 1e10), "groups": (1, 8),
    },
    "processor.processor_attention_time": {
        **SEQUENCE, **PROCESSOR, "memory_rate": (8e9, 2e10), "key_heads": (1, 8), "sequences": (1, 3),
    },
    "communication.all_reduce_time": COLLECTIVE,
    "communication.reduce_scatter_time": COLLECTIVE,
    "communication.all_gather_time": COLLECTIVE,
    "communication.broadcast_time": COLLECTIVE,
    "communication.all_to_all_time": {
        "bytes_per_card": (1.0, 1e9), "group": GROUP, "stride": STRIDE, "efficiency": (0.5, 1.0),
    },
    "communication.direct_all_reduce_time": {
        "bytes": (1.0, 1e9), "group": GROUP, "stride": STRIDE,
    },
    "expert_exchange.distinct_places": {
        "top_k": (1, 2, 8), "places": (1, 8, 64), "experts": (8, 256, np.inf), "chosen": (4, np.inf),
    },
    "expert_exchange.dispatch_time": EXCHANGE,
    "expert_exchange.combine_time": EXCHANGE,
    "fabric.point_to_point_time": {
        "bytes": (1.0, 1e9), "distance": (0, 1, 8, 64), "start": (0, 7, 60), "efficiency": (0.5, 1.0),
    },
    "memory.weight_bytes": {"parameters": (0, 10**12), "bytes_per_parameter": (0.5, 2)},
    "memory.attention_activation_bytes": {
        **LAYER, **SPLIT, "flash": (True, False), "scores_kept": (True, False), "key_heads": (1, 8),
        "head_dim": (64, 128), "activation_bytes": (1, 2),
    },
    "memory.mlp_activation_bytes": {
        "tokens": (512, 4096), "hidden": (256, 4096), "intermediate": (1024, 11008), **SPLIT, "gated": (True, False),
    },
    "memory.layer_activation_bytes": {
        **LAYER, **SPLIT, "flash": (True, False), "intermediate": (1024, 11008), "gated": (True, False),
        "recompute": ("none", "selective", "full"), "key_heads": (1, 8), "head_dim": (64, 128),
    },
    "memory.in_flight_micro_batches": {
        "stage": (0, 3), "stages": (4, 8), "micro_batches": (2, 16), "schedule": ("gpipe", "1f1b"),
    },
    "saving.checkpoint_bytes": {"parameters": (1e9, 10**12), "weight_bytes": (2, 4), "optimizer_bytes": (8, 12)},
    "saving.checkpoint_stall": {
        "bytes_": (1e12, 5e12), "writers": (8, 16384), "copy_rate": (25e9, 50e9), "write_rate": (1e8, 1e9),
        "store_rate": (1e11, np.inf), "interval": (60.0, np.inf), "asynchronous": (True, False),
        "least": (0.0, 0.59),
    },
    "saving.load_time": {
        "bytes_": (1e12, 5e12), "readers": (8, 16384), "copy_rate": (25e9, 50e9), "read_rate": (1e8, np.inf),
        "store_rate": (1e11, np.inf),
    },
    "overlap.exposed_time": {
        "communication": (0.0, 3.0), "arithmetic": (0.0, 2.0, 9.0), "share": (0.0, 0.5, 1.0), "contention": (0.0, 0.2),
    },
    "overlap.gathered_pass_time": {
        "layer": (1.0, 2.0), "gather": (0.0, 3.0), "layers": (1, 32), "share": (0.5, 1.0), "contention": (0.0, 0.2),
    },
    "pipeline.uniform_pipeline_time": {
        "forward": (1.0, 2.0), "backward": (2.0, 3.0), "stages": (1, 4), "micro_batches": (1, 9),
        "transfer": (0.0, 1.0),
    },
    "energy.card_power": {
        "utilisation": (0.0, 0.5, 1.0), "idle": (60, 100), "maximum": (400, 700), "exponent": (0.7, 1.0),
    },
    "energy.facility_power": {"it_power": (1e3, 1e6), "pue": (1.0, 1.3)},
    "energy.step_energy": {
        "cards": (8, 1024), "power": (400, 700), "step_time": (0.5, 9), "pue": (1.0, 1.3), "host_power": (0, 150),
    },
    "energy.energy_per_token": {"energy": (1e3, 1e6), "tokens": (4096, 10**7), "ettr": (0.5, 1.0)},
    "energy.activity_power": {
        "bytes_per_second": (0.0, 2e12), "flops": (0.0, 4e14), "static": (150, 300), "joules_per_byte": (1e-10,),
        "joules_per_flop": (5e-13, 1e-12), "limit": (400, np.inf),
    },
    "energy.clock_power": CLOCK,
    "energy.clock_time": {"clock": (0.5, 1.0), "memory": (0.0, 1.0), "compute": (0.5, 2.0)},
    "energy.capped_clock": {"cap": (100, 300, 700), **{key: CLOCK[key] for key in CLOCK if key != "clock"}},
    "energy.token_energy": {"power": (400, 5000), "tokens_per_second": (100, 1e4)},
    "energy.request_energy": {"prompt": (0, 1000), "output": (1, 500), "prefill": (0.01,), "decode": (0.1, 2)},
    "energy.carbon": {"energy": (0.0, 3.6e6), "factor": (1e-7, 1.5e-7)},
    "facility.conversion_input": {"output": (0, 600), "loss": (13, 17), "efficiency": (0.96, 0.98)},
    "facility.pue_at_load": {"load": (0.2, 1.0), "fixed": (0.0, 0.05), "proportional": (0.05, 0.1)},
    "facility.chiller_share": {
        "wet_bulb": (5, 20, 28), "supply": (18, 30), "rise": (6, 10), "approach": (4, 6), "carnot": (0.4, 0.6),
    },
    "facility.tue": {"itue": (1.0, 1.2), "pue": (1.04, 1.5)},
    "facility.water_flow": {"heat": (1e3, 1e6), "rise": (5, 10)},
    "failure.failure_rate": {"failures": (0, 419), "units": (1, 2048), "seconds": (3600, 54 * 86400)},
    "failure.unit_years_per_failure": {"failures": (1, 419), "units": (1, 2048), "seconds": (3600, 54 * 86400)},
    "failure.weibull_mean": {"scale": (1.0, 100.0), "shape": (0.5, 0.7, 1.0, 2.0)},
    "failure.weibull_hazard": {"age": (0.1, 10.0), "scale": (1.0, 100.0), "shape": (0.7, 1.0, 2.0)},
    "failure.lognormal_mean": {"median": (60, 3600), "spread": (0.0, 1.5)},
    "failure.frail_survival": {"seconds": (0, 3600), "rate": (1e-5, 1e-3), "variance": (0.0, 0.5, 3.0)},
    "failure.silent_error_loss": {
        "cards": (8, 16384), "rate": (0.0, 1e-10), "found_after": (60, 86400), "rollback": (0, 600),
    },
    "failure.restart_time": {
        "cards": (8, 98304), "base": (0, 60), "per_card": (0.001, 0.01), "exponent": (1.0, 1.3),
    },
    "failure.effective_timeout": {"value": (0, 150, 600, np.inf), "quantum": (0, 68), "added": (0, 20)},
    "recovery.detection_loss": {"mtbf": (1e3, 1e4, np.inf), "detection": (0, 30, 1800)},
    "recovery.linear_efficiency": {"mtbf": (5.0, 60.0, np.inf), "lost": (0.0, 10.0)},
    "recovery.elastic_ettr": {
        "mtbf": (1080.0, 1e4, np.inf), "stall": (60, 180), "degraded": (0, 420), "replicas": (2, 12),
        "interval": (600.0, np.inf), "checkpoint": (0.0, 5.0), "down": (0, 60), "restart": (0, 100),
        "full_restart": (0.0, 0.1),
    },
    "recovery.goodput": {"scheduling": (0.8, 1.0), "runtime": (0.5, 0.9), "program": (0.3, 0.6)},
    "recovery.straggler_slowdown": {"nodes": (1, 64, 4096), "slow_share": (0.0, 0.005), "slow_by": (0.0, 0.1)},
    "recovery.slowest_card": {"cards": (1, 8, 16384), "spread": (0.0, 0.03)},
    "recovery.lost_card_seconds": {
        "domains": (1, 256), "rate": (0.0, 1e-8), "cards": (1, 64), "repair": (60, 86400), "gang": (64, 16384),
        "detection": (0, 30), "down": (0, 60), "restart": (0, 180), "interval": (0.0, 600.0),
    },
    "redundancy.poisson_quantile": {"mean": (0.0, 0.5, 8.3, 4000.0), "quantile": (0.5, 0.99)},
    "redundancy.binomial_quantile": {"trials": (0, 18, 12500), "chance": (0.0, 0.01, 1.0), "quantile": (0.5, 0.99)},
    "redundancy.standby_nodes": {
        "nodes": (1, 1280), "rate": (0.0, 1e-7), "refill": (3600, 86400), "quantile": (0.9, 0.99),
    },
    "redundancy.standby_rate": {"nodes": (8, 1024), "standbys": (-1, 0, 4), "quantile": (0.9, 0.99)},
    "redundancy.usable_probability": {
        "units": (18, 64), "needed": (16, 18, 70), "unavailability": (0.0, 0.01, 1.0),
    },
    "redundancy.missing_units": {"units": (1, 18, 640), "spares": (0, 1, 4), "unavailability": (0.0, 0.01, 1.0)},
    "redundancy.lesser_share": {
        "first": (1, 28, 600), "up": (0.0, 0.9, 0.999, 1.0), "other": (1, 5), "also_up": (0.5, 0.99, 1.0),
    },
    "redundancy.availability": {"mtbf": (1e5, 1e7), "repair": (0.0, 3600.0)},
    "price.run_cost": {"cards": (1, 1024), "seconds": (1, 3600), "price": (0.001, 0.01)},
    "price.token_cost": {"cards": (8,), "tokens_per_second": (100, 1e5), "price": (0.001, 0.01), "ettr": (0.5, 1.0)},
    "reliability.job_mtbf": {
        "cards": (8, 16384), "nodes": (1, 2048), **dict.fromkeys(RATES, (0.0, 1e-8)),
    },
    "reliability.node_mtbf": {"nodes": (1, 2048), "rate_per_thousand_node_days": (0.0, 6.5)},
    "reliability.failure_probability": {"seconds": (0, 3600), "mtbf": (500.0, np.inf)},
    "reliability.ettr": {"interval": (100.0, 3600.0), "lag": (0.0, 200.0), **FAILURES},
    "reliability.first_order_waste": {"interval": (100.0, 3600.0), **FAILURES},
    "reliability.young_interval": {"mtbf": (500.0, 1e6), "checkpoint": (1.0, 60.0)},
    "reliability.daly_interval": {
        "mtbf": (500.0, 1e6), "checkpoint": (1.0, 60.0), "down": (0.0, 100.0), "restart": (0.0, 300.0),
    },
    "reliability.daly_higher_interval": {"mtbf": (5.0, 1e6), "checkpoint": (1.0, 60.0)},
    "reliability.first_order_interval": {
        "mtbf": (500.0, 1e6), "checkpoint": (1.0, 60.0), "down": (0.0, 100.0), "restart": (0.0, 300.0),
    },
    "reliability.optimal_interval": {"mtbf": (5.0, 1e6), "checkpoint": (1.0, 60.0)},
    "serving.distinct_experts": {"tokens": (0.0, 1.0, 4096.0), "experts": (1.0, 32.0, 256.0), "active": (1.0, 8.0)},
    "serving.busiest_share": {"copies": (1.0, 64.0, 1e5), "ranks": (1.0, 8.0, 72.0), "skew": (0.0, 0.3)},
    "serving.running_requests": {"rate": (0.1, 10.0), "seconds": (0.5, 60.0)},
    "serving.accepted_tokens": {"drafted": (0.0, 1.0, 3.0), "rate": (0.0, 0.7, 1.0)},
    "serving.time_per_token": {"iteration": (0.01, 0.1), "accepted": (1.0, 2.5)},
    "queueing.wave_wait": {"requests": (0.0, 1.0, 64.0), "rate": (0.5, 100.0)},
    "queueing.open_wait": {
        "rate": (0.1, 5.0, 50.0), "service": (0.01, 0.5), "servers": (1.0, 4.0), "variation": (0.0, 1.0),
    },
    "queueing.boundary_wait": {
        "busy": (0.0, 0.5, 1.0), "service": (0.01, 2.0), "slots": (1.0, 8.0), "servers": (1.0, 4.0),
        "steps": (1.0, 4.0),
    },
    "queueing.stepped_wait": {
        "load": (0.0, 0.5, 0.98), "busy": (0.0, 0.5, 1.0), "service": (0.1, 1.0), "full": (1.0, 2.0),
        "slots": (1.0, 8.0), "servers": (1.0, 4.0), "steps": (1.0, 4.0),
    },
    "queueing.closed_wait": {
        "requests": (0.0, 1.0, 8.0, 4096.0), "away": (0.1, 60.0), "service": (0.01, 2.0), "servers": (1.0, 8.0),
    },
    "queueing.wait_quantile": {
        "level": (0.0, 0.5, 0.99), "wave": (0.0, 1.0, 100.0), "share": (0.0, 0.1, 1.0), "wait": (0.0, 0.2, 5.0),
    },
    "reliability.kokolis_ettr": {
        "nodes": (1, 256), "node_failure_rate": (0.0, 1e-7), "restart": (60, 300), "interval": (600, 3600),
        "checkpoint": (1, 60),
    },
}  # fmt: skip
NOT_ELEMENTWISE = {
    "fabric.reach",  # has a tier axis: test_laws_communication
    "fabric.views",  # returns objects
    "fabric.added",  # takes a list
    "fabric.where_crossed",  # takes a view
    "account.closed",  # a check
    "energy.curve_power",  # has an axis of points: test_laws_energy
    "energy.energy_account",  # returns parts by name: test_laws_energy
    "facility.buffer_energy",  # have a time axis: test_laws_energy
    "facility.dynamic_range",
    "facility.ramp_limited",
    "facility.swing_share",
    "failure.frailty_variance",  # take samples: test_traces
    "failure.weibull_fit",
    "failure.combined_mtbf",  # takes any number of rates: test_laws_reliability
    "recovery.elastic_account",  # returns parts by name: test_laws_recovery
    "energy.spent_energy",  # returns parts by name: test_laws_energy
    "recovery.time_account",  # returns parts by name: test_laws_reliability
    "memory.training_state_bytes",  # returns three: test_laws_memory
    "memory.one_of",  # a check
    "partition.partition",
    "partition.alike_partition",
    "pipeline.pipeline_bound",  # have a stage axis: test_laws_pipeline
    "pipeline.pipeline_time",
    "pipeline.pipeline_events",
    "pipeline.schedule_order",
    "schedules.schedule_ends",
    "schedules.schedule_events",
    "schedules.held_micro_batches",
    "pipeline.stage_ends",  # test_estimate_pipeline
}


def test_every_public_law_is_listed() -> None:
    assert set(ARGUMENTS) | NOT_ELEMENTWISE == set(PUBLIC)


def _call(law: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return law(**arguments, fabric=FABRIC) if "fabric" in inspect.signature(law).parameters else law(**arguments)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.filterwarnings("error")
def test_one_plan_is_an_element_of_a_million(name: str) -> None:
    law, ranges = PUBLIC[name], ARGUMENTS[name]
    random = np.random.default_rng(1)
    columns = {key: np.array(values)[random.integers(0, len(values), 60)] for key, values in ranges.items()}
    many = _call(law, columns)
    assert isinstance(many, np.ndarray)
    assert many.dtype == np.float64
    assert many.shape == (60,)
    for row in range(60):
        one = _call(law, {key: column[row].item() for key, column in columns.items()})
        assert type(one) is float
        assert one == pytest.approx(many[row], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_broadcast(name: str) -> None:
    law, ranges = PUBLIC[name], ARGUMENTS[name]
    axes = len(ranges)
    grid = {
        key: np.array(values[:2]).reshape([-1 if place == axis else 1 for axis in range(axes)])
        for place, (key, values) in enumerate(ranges.items())
    }
    assert _call(law, grid).shape == tuple(min(len(values), 2) for values in ranges.values())


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"memory.one_of"}))
def test_docstring_has_its_parts_in_order(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    places = [text.find(part) for part in ("\n\nArguments:", "\nReturns:", "\n>>> ", "\n\nSource:")]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples_are_true(module: Any) -> None:
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


def test_laws_name_their_sources() -> None:
    with cite.collect() as used:
        PUBLIC["reliability.ettr"](1800.0, mtbf=1e4, checkpoint=10.0)
        PUBLIC["compute.attention_flops"](10, 10, 1, 64, 64)
    assert list(used) == ["aupy2013", "dao2023"]
    assert "FlashAttention" in cite.text("dao2023")
