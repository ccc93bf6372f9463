"""The detail of a step: operators, links and memory sum to the parts of the step and to what cards hold."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_pools import even, pipeline, plan_of, pool, random_plan, random_setting, two_nodes
from zhenfa import catalog
from zhenfa.estimate.detail import Detail, detail
from zhenfa.estimate.origin import origin
from zhenfa.estimate.setting import Setting
from zhenfa.estimate.training import PlanCost, cost
from zhenfa.plan import make_request
from zhenfa.plan.request import setting_of
from zhenfa.spec.graph import Operator
from zhenfa.spec.job import Job
from zhenfa.spec.plan import Plan


def check(plan: Plan, setting: Setting) -> tuple[Detail, PlanCost]:
    """Return detail and cost of a plan, all sums compared."""
    costed = cost(plan, setting)
    found = detail(plan, setting, costed)
    parts, every = found.parts, found.operators
    assert found.step == pytest.approx(costed.step, rel=1e-9)
    arithmetic = sum(one.count * (one.forward + one.backward) for one in every)
    assert arithmetic == pytest.approx(parts["arithmetic at peak"] + parts["below peak"], rel=1e-9)
    assert sum(one.count * one.at_peak for one in every) == pytest.approx(parts["arithmetic at peak"], rel=1e-9)
    again = sum(one.count * one.again for one in every) + found.between
    assert again == pytest.approx(parts["recomputation"], rel=1e-9, abs=1e-12)
    assert sum(one.step for one in every) + found.between == pytest.approx(arithmetic + again, rel=1e-9)
    for stage, held in zip(costed.stages, found.memory, strict=True):
        assert sum(held.values()) == pytest.approx(stage.bytes, rel=1e-9)
        assert min(held.values()) >= 0
    linked = {one.kind: one.exposed for one in found.links}
    for kind in ("tensor", "expert", "context", "pipeline", "bridge", "data"):
        if kind in linked:
            assert linked[kind] == parts[kind]
        else:
            assert parts[kind] == pytest.approx(0.0, abs=1e-9 * costed.step), kind
    return found, costed


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_the_sums_are_the_parts_of_the_step(seed: int, pools: int) -> None:
    setting = random_setting(seed, pools, layers=(2, 8), cards=(1, 2, 4, 8))
    plan = random_plan(random.Random(seed), setting)
    if math.isfinite(cost(plan, setting).step):
        check(plan, setting)


REAL = {
    "name": "real",
    "model": "deepseek-v3",
    "machine": "cloudmatrix384",
    "workload": {"sequence_length": 4096, "global_batch": 7680, "precision": "bf16"},
}


def real(machine: str, model: str, precision: str = "bf16") -> Setting:
    data = {**REAL, "model": model, "machine": machine}
    workload = {"sequence_length": 4096, "global_batch": 7680, "precision": precision}
    return setting_of(make_request(Job.from_data({**data, "workload": workload})))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("machine", "model", "precision"),
    [("cloudmatrix384", "deepseek-v3", "bf16"), ("dgx-superpod-h100", "llama3-70b", "fp8")],
)
@pytest.mark.parametrize(
    ("schedule", "virtual"),
    [("1f1b", 1), ("gpipe", 1), ("interleaved", 2), ("zero-bubble", 1), ("zero-bubble-v", 2), ("dualpipe", 1)],
)
def test_real_models_under_every_schedule(
    machine: str, model: str, precision: str, schedule: str, virtual: int, recompute: str
) -> None:
    setting = real(machine, model, precision)
    layers, name = len(setting.graph.layers), setting.formation.pools[0].name
    stages = 8 * virtual
    expert = 8 if model == "deepseek-v3" else 1
    entry = pipeline(
        even(layers, stages), [name] * stages, tensor=4, expert=expert, count=4, micro_batches=16, recompute=recompute
    )
    plan = plan_of(setting, [entry], 1).model_copy(update={"schedule": schedule})
    plan = plan.model_copy(update={"pipelines": (entry.model_copy(update={"virtual_stages": virtual}),)})
    check(plan, setting)


@pytest.mark.parametrize("modules", [("attention",), ("experts",), ("norm", "activation"), ("feed-forward", "norm")])
def test_named_modules_are_computed_again(modules: tuple[str, ...]) -> None:
    setting = real("cloudmatrix384", "deepseek-v3")
    ranges = even(len(setting.graph.layers), 8)
    entry = pipeline(ranges, [setting.formation.pools[0].name] * 8, tensor=2, expert=16, count=8, recompute="selective")
    stages = tuple(
        one.model_copy(update={"recompute_modules": modules, "context_parallel": 2, "recompute_layers": 5})
        for one in entry.stages
    )
    found, _ = check(plan_of(setting, [entry.model_copy(update={"stages": stages})], 1), setting)
    assert any(one.again > 0 for one in found.operators)
    assert any(one.again == 0 for one in found.operators)


def test_light_is_never_slower_than_what_is_predicted() -> None:
    setting = real("dgx-superpod-h100", "llama3-70b")
    name = setting.formation.pools[0].name
    entry = pipeline(even(80, 4), [name] * 4, tensor=8, count=4, micro_batches=16)
    found, costed = check(plan_of(setting, [entry], 1), setting)
    assert found.layers == 20
    assert found.pool == name
    assert {one.bound for one in found.operators} == {"compute", "memory"}
    for one in found.operators:
        assert one.share is not None
        assert 0 < one.share <= 1, one.name
    shares = {one.name: one.share or 0 for one in found.operators}
    assert shares["mlp.down"] > 0.5
    assert found.step == pytest.approx(costed.step)


def test_links_are_those_that_the_cards_lie_on() -> None:
    setting = two_nodes()
    plan = plan_of(setting, [pipeline(even(8, 2), ["p0"] * 2, tensor=2, count=4, micro_batches=4)], 1)
    found, _ = check(plan, setting)
    assert [(one.kind, one.cards, one.link) for one in found.links] == [
        ("tensor", 2, "p0 node"), ("pipeline", 2, "p0 net"), ("data", 4, "p0 node"),
    ]  # fmt: skip
    wide = plan_of(setting, [pipeline(even(8, 1), ["p0"], tensor=1, count=16, micro_batches=1)], 1)
    assert [(one.kind, one.cards, one.link) for one in check(wide, setting)[0].links] == [("data", 16, "p0 net")]


def test_every_operator_says_what_it_rests_on() -> None:
    norm = Operator("norm", "norm", inputs=8, outputs=8)
    product = Operator("qkv", "matmul", inputs=8, outputs=8, parameters=64)
    measured = catalog.accelerator("nvidia-h100-sxm")
    assert origin(norm, measured, "bf16").tag in {"measured", "datasheet", "assumed"}
    assert origin(product, measured, "bf16") == ("fitted", "fitted to this chip's operator tables")
    stated = pool("p", 1, [], peak=1e14, capacity=1e9, bandwidth=1e12, matmul=0.5).accelerator
    assert origin(product, stated, "bf16") == ("assumed", "matmul stated of this card")
    assert origin(product, stated.model_copy(update={"emulated": True}), "bf16").tag in {"derived", "assumed"}
