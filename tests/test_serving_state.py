"""The steady state of serving: requests are conserved, loads push where they must, floods drain."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhenfa import catalog
from zhenfa.errors import DocumentError, InputError
from zhenfa.estimate import serving, serving_flood
from zhenfa.estimate.serving import Service
from zhenfa.spec.model import read_model
from zhenfa.spec.serving import Instance, ServingPlan, ServingWorkload, Speculation


@cache
def service_of(
    model: str = "llama3-8b", engine: str = "vllm", tensor: int = 1, apart: bool = False, accepted: float = 0.0,
    data: int = 1,
) -> Service:  # fmt: skip
    machine = catalog.resolve(catalog.machine("hgx-h100"))
    pool = machine.pools[0].name
    plan = ServingPlan(
        model=model, machine="hgx-h100", engine=engine, weights="fp8",
        prefill=Instance(
            pool=pool, count=2 if data == 1 else 1, tensor_parallel=tensor, data_parallel=data, expert_parallel=data
        ) if apart else None,
        decode=Instance(pool=pool, count=2 if apart else 1, tensor_parallel=tensor),
        speculation=Speculation(method="ngram", draft_tokens=3, accepted=accepted) if accepted else None,
    )  # fmt: skip
    return serving.look_up(read_model(catalog.model_path(model)).graph(), plan, machine)


def workload(concurrency: float, first: float = 1000.0, last: float = 500.0) -> ServingWorkload:
    return ServingWorkload(input_length=first, output_length=last, concurrency=concurrency)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@settings(max_examples=25, deadline=None)
@given(
    load=st.floats(0.2, 5000), first=st.floats(16, 8000), last=st.floats(2, 2000), accepted=st.sampled_from([0.0, 2.5])
)
def test_requests_present_are_rate_times_latency(
    engine: str, apart: bool, load: float, first: float, last: float, accepted: float
) -> None:
    service = service_of(engine=engine, apart=apart, accepted=accepted)
    served = serving.serve(service, workload(load, first, last))
    assert served.requests_per_second * served.latency == pytest.approx(load, rel=1e-6)
    assert served.running <= served.capacity * (1 + 1e-9)
    assert served.output_rate == pytest.approx(served.requests_per_second * last)


@pytest.mark.parametrize("apart", [False, True])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.01, 1.5), first=st.floats(16, 8000), last=st.floats(2, 2000))
def test_requests_that_run_are_rate_times_time_to_decode(apart: bool, share: float, first: float, last: float) -> None:
    service = service_of(apart=apart)
    most = serving.serve(service, workload(1e6, first, last)).requests_per_second
    asked = ServingWorkload(input_length=first, output_length=last, request_rate=most * share)
    served = serving.serve(service, asked)
    decoding = served.requests_per_second * asked.mean_decoded * served.tpot
    assert served.running * service.plan.decode.count == pytest.approx(decoding, rel=1e-6)
    assert served.requests_per_second <= most * share * (1 + 1e-9)
    if served.requests_per_second < most * share * (1 - 1e-6):
        full = served.running == pytest.approx(served.capacity)
        assert full or served.requests_per_second == pytest.approx(served.prefill_rate)
        assert share > 1
        assert served.requests_per_second == pytest.approx(most, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(load=st.floats(100, 1000), first=st.floats(16, 1000), more=st.floats(1.01, 1.5))
def test_nothing_jumps_where_prompts_share_the_steps_of_a_prefill_that_is_nearly_full(
    load: float, first: float, more: float
) -> None:
    """Few tokens are put out, so that nearly all who are in the system are in prefill."""
    less, grown = (
        serving.serve(service_of(apart=True), workload(one, first, 2.0)) for one in (load, load * more)
    )  # fmt: skip
    assert less.requests_per_second <= grown.requests_per_second * (1 + 1e-9)
    assert less.ttft <= grown.ttft * (1 + 1e-9)
    assert grown.requests_per_second <= less.requests_per_second * more * (1 + 1e-9)


def test_more_load_is_slower_and_brings_more_until_memory_is_full() -> None:
    seen = [serving.serve(service_of(), workload(load)) for load in (1, 4, 16, 64, 256)]
    assert [one.tpot for one in seen] == sorted(one.tpot for one in seen)
    assert [one.output_rate for one in seen] == sorted(one.output_rate for one in seen)
    full, beyond = (serving.serve(service_of(), workload(load)) for load in (2e4, 4e4))
    assert full.waiting > 0
    assert beyond.output_rate == pytest.approx(full.output_rate)
    assert beyond.ttft > 1.9 * full.ttft


def test_prefill_apart_bounds_the_rate_and_spares_the_decoding() -> None:
    together = serving.serve(service_of(), workload(64, first=4000, last=50))
    apart = serving.serve(service_of(apart=True), workload(128, first=4000, last=50))
    assert apart.tpot < together.tpot
    flooded = serving.serve(service_of(apart=True), workload(3000, first=4000, last=50))
    assert flooded.requests_per_second == pytest.approx(flooded.prefill_rate, rel=1e-6)
    assert flooded.ttft > 10 * apart.ttft


def test_a_rate_of_requests_is_met_or_saturates() -> None:
    calm = serving.serve(service_of(), ServingWorkload(input_length=1000, output_length=500, request_rate=2.0))
    assert calm.requests_per_second == pytest.approx(2.0, rel=0.01)
    most = serving.serve(service_of(), workload(1e6))
    pushed = serving.serve(service_of(), ServingWorkload(input_length=1000, output_length=500, request_rate=1e4))
    assert pushed.requests_per_second == pytest.approx(most.requests_per_second)


def test_speculation_divides_the_iteration_by_what_is_accepted() -> None:
    plain = serving.hold(service_of(), workload(1), 8.0)
    drafted = serving.hold(service_of(accepted=2.5), workload(1), 8.0)
    assert drafted.tpot * 2.5 == pytest.approx(drafted.iteration)
    assert drafted.iteration >= plain.iteration  # more tokens to verify
    assert drafted.tpot < plain.tpot


@pytest.mark.parametrize("natural", [False, True])
def test_a_flood_drains_at_the_steady_rate(natural: bool) -> None:
    service = service_of()
    asked = ServingWorkload(input_length=1000, output_length=200, requests=20_000)
    lines = serving.curves(service, asked)
    drained = serving_flood.flood(service, asked, lines, natural=natural)
    steady = serving.serve(service, workload(1e6, 1000, 200))
    assert drained.output_rate == pytest.approx(steady.output_rate, rel=0.12)
    few = serving_flood.flood(service, asked.model_copy(update={"requests": 8.0}), lines, natural=natural)
    assert few.output_rate < drained.output_rate
    assert few.tpot < drained.tpot


def test_what_does_not_fit_says_so() -> None:
    machine = catalog.resolve(catalog.machine("hgx-h100"))
    plan = ServingPlan(model="deepseek-v3", machine="x", engine="vllm", weights="fp8", decode=Instance(pool="nvidia"))
    service = serving.look_up(read_model(catalog.model_path("deepseek-v3")).graph(), plan, machine)
    with pytest.raises(InputError, match="does not fit on 1 cards") as problem:
        serving.serve(service, workload(1))
    assert "more cards" in (problem.value.hint or "")
    wrong = plan.model_copy(update={"decode": Instance(pool="elsewhere")})
    with pytest.raises(InputError, match="a pool 'elsewhere'"):
        serving.look_up(service.graph, wrong, machine)


def test_documents_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="concurrency and requests"):
        ServingWorkload(input_length=1, output_length=1, concurrency=1, requests=2)
    with pytest.raises(ValueError, match="does not divide"):
        Instance(pool="a", tensor_parallel=4, expert_parallel=3)
    with pytest.raises(ValueError, match="more than the 1 drafted"):
        Speculation(draft_tokens=1, accepted=2.5)
    text = {"schema": "zhenfa.serving-plan/1", "model": "m", "machine": "h", "engine": "vllm", "decode": {"pool": "p"}}
    assert ServingPlan.from_data(text).cards == 1
    with pytest.raises(DocumentError, match="weights"):
        ServingPlan.from_data({**text, "weights": "fp9"})
