"""What ``zhenfa run`` sends between makers, and when, is what its own plans count."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_pools import formation, pipeline, plan, pool
from zhenfa import catalog
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.traffic import activation_bytes, bridge_bytes
from zhenfa.estimate.training import cost, exposed_sums
from zhenfa.estimate.traits import OWN_RUNTIME, Traits, own_runtime
from zhenfa.plan.bridge import bridge_of
from zhenfa.spec.job import BRIDGE_BYTES, Execution, Workload

MACHINE = formation(pool("a", 2, speed=1e9), pool("b", 2, speed=1e9), bandwidth="1 MB/s", latency="1 us")
PLAN = plan(pipeline([4, 4], "ab", 4), pipeline([8], "b", 4), length=128)


def costed(execution: Execution) -> tuple[float, dict[str, float], tuple[str, str]]:
    """The step, and the bytes of all that crosses, as a job with these settings plans them."""
    graph = catalog.model("tiny-byte-gpt").graph()
    workload = Workload(sequence_length=128, global_batch=8, precision="fp32")
    setting = look_up(graph, workload, MACHINE, own_runtime(execution, MACHINE))
    found = cost(PLAN, setting)
    crossing = bridge_of(PLAN, setting, found)
    assert crossing is not None
    moved: dict[str, float] = {}
    for one in crossing.crossings:
        moved[one.what] = moved.get(one.what, 0.0) + one.step_bytes
    return found.step, moved, (crossing.activations, crossing.sums)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_compressed_bytes_are_what_is_planned(kind: str) -> None:
    step, moved, _ = costed(Execution())
    less, sent, formats = costed(Execution(bridge={"activations": kind, "gradients": kind}))
    ratio = BRIDGE_BYTES[kind] / 4  # type: ignore[index,operator]
    assert sent == pytest.approx({what: size * ratio for what, size in moved.items()}, rel=1e-3)
    assert less < step
    assert formats == (kind, {"bf16": "16 bits", "int8": "8 bits"}[kind])


def test_overlap_is_planned_where_the_job_has_it() -> None:
    assert costed(Execution())[0] < costed(Execution(overlap_gradient_sum=False))[0]
    assert own_runtime(Execution(), MACHINE) == OWN_RUNTIME


def test_pools_of_one_maker_are_planned_uncompressed() -> None:
    first, second = MACHINE.pools
    alike = replace(MACHINE, pools=(first, replace(second, accelerator=second.accelerator.model_copy(
        update={"maker": first.accelerator.maker}
    ))))  # fmt: skip
    execution = Execution(bridge={"activations": "int8", "gradients": "int8"})
    assert own_runtime(execution, alike) == OWN_RUNTIME
    assert own_runtime(execution, MACHINE).bridge_activation_bytes == BRIDGE_BYTES["int8"]


def test_what_is_narrow_already_is_not_widened() -> None:
    traits = Traits("own", bridge_activation_bytes=BRIDGE_BYTES["bf16"])
    workload = SimpleNamespace(sequence_length=8)
    setting: Any = SimpleNamespace(traits=traits, workload=workload, graph=SimpleNamespace(hidden=4), between="bf16")
    assert bridge_bytes(setting, 3) == activation_bytes(setting, 3) == 3 * 8 * 4 * 2


SECONDS = st.floats(0, 100)


@given(SECONDS, SECONDS, SECONDS, st.integers(1, 40), st.sampled_from([0.0, 1.0]))
def test_sums_hide_behind_one_backward_pass_and_no_more(
    reduce: float, across: float, backward: float, layers: int, overlap: float
) -> None:
    setting: Any = SimpleNamespace(traits=Traits("own", gradient_overlap=overlap, bridge_overlap=overlap))
    behind, bridge = (float(one) for one in exposed_sums(setting, reduce, across, backward, layers))
    whole = reduce + across
    hidden = whole - behind - bridge
    assert min(behind, bridge) >= 0
    assert -1e-9 <= hidden <= min(backward, whole * (1 - 1 / layers)) * overlap + 1e-9
    assert behind <= reduce + 1e-9
