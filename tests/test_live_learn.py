"""Which law was off: parts that add up, and the one law that was made wrong on purpose is the one that is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_pools import formation, pipeline, plan, pool
from zhenfa import catalog
from zhenfa.errors import UnknownNameError
from zhenfa.estimate.report import report
from zhenfa.estimate.setting import look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import OWN_RUNTIME
from zhenfa.live.learn.attribute import Predicted, attribute
from zhenfa.live.learn.feedback import Lesson, applied, lesson, with_lesson
from zhenfa.live.learn.model import StepModel
from zhenfa.live.learn.timings import Sum, Timings
from zhenfa.live.model import sizes_of
from zhenfa.live.placement import place
from zhenfa.live.run import run_plan
from zhenfa.spec.fact import Fact
from zhenfa.spec.job import Execution, Fault, Workload
from zhenfa.spec.machine import Formation, Machine, Tier
from zhenfa.spec.model import Model
from zhenfa.spec.plan import Plan
from zhenfa.spec.result import Attribution, LawRow

MODEL = catalog.model("tiny-byte-gpt")
LAYERS = len(MODEL.graph().layers)
LENGTH = 64


def machine(fast: float = 1e10, slow: float = 5e9, mega_bytes: float = 20.0) -> Formation:
    """One fast card and three slow ones; the network's latency follows its bandwidth."""
    tiers = [Tier(name="board", size=4, bandwidth="20 MB/s", latency="2 ms")]
    pools = (pool("a", 1, fast, capacity="2 GB"), pool("b", 3, slow, tiers, capacity="2 GB"))
    return formation(*pools, bandwidth=f"{mega_bytes} MB/s", latency=f"{20 / mega_bytes} ms")


IN_LINE = plan(pipeline([LAYERS - 4, 2, 2], "abb", 8, size=2), length=LENGTH)
HALVES = plan(pipeline([LAYERS - 4, 2, 2], "abb", 8, size=2), length=LENGTH, schedule="zero-bubble")
REPLICAS = plan(*(pipeline([LAYERS], name, 2, size=2) for name in "ab"), length=LENGTH)
ALIKE = plan(pipeline([LAYERS], "b", 2, size=2).model_copy(update={"count": 2}), length=LENGTH)


def predicted(planned: Plan, said: Formation, model: Model = MODEL) -> Predicted:
    planned = planned.model_copy(update={"model": model.name})
    workload = Workload(sequence_length=LENGTH, global_batch=planned.global_batch, precision="fp32")
    setting = look_up(model.graph(), workload, said, OWN_RUNTIME)
    costed = cost(planned, setting)
    return Predicted(planned, setting, costed, report(planned, setting, costed).figures.step_time_s, said)


def adds_up(found: Attribution) -> None:
    parts = sum(row.effect_s for row in found.rows) + found.remainder_s
    assert parts == pytest.approx(found.measured_step_s - found.predicted_step_s, abs=1e-9)


def as_predicted(what: Predicted, factors: dict[str, float], spec: Model = MODEL) -> tuple[StepModel, Timings, float]:
    """What the cards would be timed at if the laws were right but for a factor for each kind of law, and the step."""
    sizes = sizes_of(spec)
    model = StepModel(what.plan, what.setting, what.cost, place(what.plan, what.formation, sizes))
    timings = Timings(steps=1)
    for home in model.homes:
        for stage in home.stages:
            one, rank = model.stages(home.replica)[stage], home.ranks[0]
            count, work = what.plan.pipelines[home.replica].micro_batches, factors["compute"]
            timings.work[rank, stage, "forward"] = Sum(count * one.forward * work, count)
            timings.work[rank, stage, "backward"] = Sum(count * one.backward * work, count)
            timings.optimizer[rank] = Sum(one.optimizer * factors["optimizer"], 1)
            if one.transfer:
                timings.messages[rank, rank + 1] = Sum(one.transfer * factors["messages"], 1)
    step = model.step()
    timings.pipeline = model.pipeline()
    return model, timings, step


LAWS = ("compute", "optimizer", "messages")


@given(
    st.fixed_dictionaries({law: st.floats(0.2, 5.0) for law in LAWS}), st.floats(0.5, 3.0),
    st.sampled_from([IN_LINE, HALVES, REPLICAS]),
)  # fmt: skip
def test_the_parts_add_up_whatever_was_measured(factors: dict[str, float], times: float, planned: Plan) -> None:
    what = predicted(planned, machine())
    model, timings, step = as_predicted(what, factors)
    found = attribute(what, model.places, timings, times * step, valid=True)
    adds_up(found)
    assert found.predicted_step_s == pytest.approx(what.cost.step)
    assert {row.law for row in found.rows if row.effect_s and row.law in LAWS} <= {
        law for law, factor in factors.items() if factor != 1
    }


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("planned", [IN_LINE, HALVES])
def test_a_law_that_is_right_adds_nothing(law: str, planned: Plan) -> None:
    what = predicted(planned, machine())
    model, timings, step = as_predicted(what, dict.fromkeys(LAWS, 1.0) | {law: 4.0})
    found = attribute(what, model.places, timings, step, valid=True)
    assert {row.law for row in found.rows if abs(row.effect_s) > 1e-9} - {"schedule"} == {law}
    assert {row.law for row in found.rows if row.within is False} - {"schedule"} == {law}
    assert not found.off
    assert found.wrong == ()
    assert found.verdict.startswith("the step took 1 times as long as predicted, within the band (emulated cards ")


@pytest.mark.parametrize("known", [True, False])
def test_tokens_that_fall_unevenly_on_experts_are_not_booked_as_slow_cards(known: bool) -> None:
    """All else is as predicted of the imbalance; where nobody has counted the tokens, the cards look slow."""
    model, busiest = catalog.model("tiny-byte-moe"), 1.8
    base = pipeline([len(model.graph().layers)], "b", 2)
    (stage,) = base.stages
    shared = stage.model_copy(update={"expert_parallel": 2})
    even = plan(*[base.model_copy(update={"stages": (shared,)})] * 2, length=LENGTH)
    what = predicted(even, machine(), model)
    true = predicted(even.model_copy(update={"expert_imbalance": busiest}), machine(), model)
    _, timings, step = as_predicted(true, dict.fromkeys(LAWS, 1.0), model)
    places = place(what.plan, what.formation, sizes_of(model))
    found = attribute(what, places, timings, step, valid=True, busiest=busiest if known else None)
    adds_up(found)
    off = [row for row in found.rows if abs(row.effect_s) > 1e-9]
    assert {row.law for row in off} == {"expert routing" if known else "compute"}
    assert sum(row.effect_s for row in off) == pytest.approx(step - what.cost.step, rel=1e-6)
    assert found.off
    (sentence,) = found.wrong
    named = "expert routing, pool b, busiest card 1.8 times the mean: predicted "
    assert sentence.startswith(named if known else "compute, pool b (cards 0, 1): predicted ")


def test_a_message_between_real_cards_takes_from_when_it_was_sent_to_the_end_of_the_wait() -> None:
    """The first was waited for, the second was there before anybody asked."""
    timings = Timings()
    first = [("forward", 0, 0.0, 1.0, -1, 0), ("send", 0, 1.0, 1.0, 1, -1), ("forward", 1, 1.5, 2.5, -1, 0),
             ("send", 1, 2.5, 2.5, 1, -1), ("optimizer", -1, 6.0, 6.5, -1, -1)]  # fmt: skip
    second = [("wait", 0, 0.0, 1.25, 0, -1), ("forward", 0, 1.25, 3.25, -1, 1), ("wait", 1, 3.25, 3.26, 0, -1),
              ("forward", 1, 3.26, 5.0, -1, 1), ("optimizer", -1, 6.0, 6.25, -1, -1)]  # fmt: skip
    timings.add([first, second], 7.0)
    assert timings.messages == {(0, 1): Sum(0.25, 1)}
    assert timings.gaps == {0: 0.5, 1: 0.0}
    assert timings.pipeline == 5.0
    assert timings.optimizer == {0: Sum(0.5, 1), 1: Sum(0.25, 1)}
    assert timings.tail == 1.5, "7 s, less the last backward at 5 s and the longest update"


def test_a_sum_counts_from_when_the_last_card_was_there() -> None:
    timings = Timings(together=((0, 1),))
    rows = [
        [("backward", 0, 0.0, end, -1, 0), ("reduce", -1, end, 5.0, -1, -1), ("sum", 3, end, 5.0, 0, -1),
         ("optimizer", -1, 5.0, 5.5, -1, -1), ("reduce", -1, 5.5, 6.0, -1, -1)]
        for end in (2.0, 4.0)
    ]  # fmt: skip
    timings.add(rows, 6.0)
    assert timings.sums == {(0, 1): 1.5}, "1 s of gradients, half a second of weights"
    assert timings.tail == 0.0


def late(found: Attribution) -> float:
    """The share of the step in which the host was late: emulated cards wait for nothing else between operations."""
    return sum(row.effect_s for row in found.rows if row.law == "host") / found.predicted_step_s


CASES = {
    "link": (IN_LINE, machine(), machine(mega_bytes=1.25), (), [("messages", "network")]),
    "sum": (REPLICAS, machine(), machine(mega_bytes=5.0), (), [("gradient sum", "network")]),
    "rate": (IN_LINE, machine(4e10, 2e10), machine(4e10), (), [("compute", "pool b")]),
    "rate in replicas": (ALIKE, machine(slow=2e10), machine(), (), [("compute", "pool b")]),
    "slow card": (IN_LINE, machine(), machine(), (Fault(step=1, card=1, kind="slow", factor=6.0),),
                  [("compute", "card 1 of pool b")]),
    "nothing": (IN_LINE, machine(), machine(), (), []),
}  # fmt: skip


@pytest.mark.live
@pytest.mark.parametrize("case", CASES)
def test_the_law_that_was_made_wrong_is_the_one_that_is_named(case: str) -> None:
    """The plan is predicted on the machine that is said to be, and runs on another one."""
    planned, said, true, faults, laws = CASES[case]
    what = predicted(planned, said)
    for _ in range(4):
        told = []
        execution = Execution(steps=3, faults=faults, recover=False)
        run = run_plan(what.plan, true, MODEL, execution, learn=told.append)
        (measured,) = told
        found = attribute(what, measured.places, measured.timings, measured.step_time, valid=True)
        adds_up(found)
        if run.fidelity["valid"] and late(found) < 0.05:
            break
    else:
        pytest.skip("other work on this host kept the emulation from holding its time: nothing is judged")
    assert measured.timings.steps == 2, "the first step is left out"
    assert found.off == bool(laws)
    assert [words.partition(":")[0].partition(" (")[0] for words in found.wrong] == [", ".join(one) for one in laws]
    taught = lesson(found, "test", emulated=True)
    again = predicted(planned, applied(said, taught))
    before, after = (abs(math.log(one.cost.step / found.measured_step_s)) for one in (what, again))
    if laws and not faults:
        assert after < before / 2, "what was learned makes the next prediction nearer"
    if faults:
        assert after == before, "a slow card is not how its pool is"
    unjudged = attribute(what, measured.places, measured.timings, measured.step_time, valid=False)
    assert (unjudged.judged, unjudged.wrong) == (False, ())
    assert unjudged.verdict.endswith("not judged, because the timing is not valid")
    assert lesson(unjudged, "test", emulated=True) == Lesson()


def ratio(value: float, note: str = "compute") -> Fact:
    return Fact(value=value, dimension="ratio", source="a run", confidence="calibrated", note=note)


@given(compute=st.floats(0.1, 10), update=st.floats(0.1, 10), tier=st.floats(0.1, 10), network=st.floats(0.1, 10))
def test_what_was_learned_multiplies_seconds_and_nothing_else(
    compute: float, update: float, tier: float, network: float
) -> None:
    taught = Lesson(
        {"b": ratio(compute)}, {"b": ratio(update)}, {("b", "board"): ratio(tier)}, {"network": ratio(network)}
    )
    plain, found = (predicted(IN_LINE, one) for one in (machine(), applied(machine(), taught)))
    for before, after in zip(plain.cost.stages, found.cost.stages, strict=True):
        mine = before.stage.pool == "b"
        assert after.busy == pytest.approx(before.busy * (compute if mine else 1.0))
        assert after.weight == pytest.approx(before.weight * (compute if mine else 1.0))
        assert after.optimizer == pytest.approx(before.optimizer * (update if mine else 1.0))
        assert after.transfer == pytest.approx(before.transfer * (network if before.crosses else tier))
        assert (after.ideal, after.memory, after.capacity) == (before.ideal, before.memory, before.capacity)
    chips = [one.setting.chips["b"] for one in (plain, found)]
    assert chips[0].peak == chips[1].peak
    said = [note for note in found.setting.assumptions if "learned" in note]
    assert len(said) == sum(one != 1 for one in (compute, update, tier, network))


def test_a_machine_file_keeps_what_makers_say_beside_what_was_learned(tmp_path: Path) -> None:
    document = catalog.machine("emulated-quartet")
    taught = Lesson({"ascend": ratio(4.0)}, {}, {("cambricon", "emulated"): ratio(2.0)}, {"emulated link": ratio(3.0)})
    path = tmp_path / "machine.yaml"
    path.write_text(with_lesson(with_lesson(document, taught), taught).to_yaml(), encoding="utf-8")
    read = Machine.from_file(path)
    assert [pool.learned.compute.value for pool in read.pools] == [16.0, None, None]
    assert read.pools[0].learned.compute.note == "compute; on top of 4 (a run)"
    assert read.pools[0].learned.compute.tag == "measured"
    assert {name: one.value for name, one in read.pools[2].learned.links.items()} == {"emulated": 4.0}
    assert read.network is not None
    assert read.network.learned.value == 9.0
    assert [pool.tiers for pool in read.pools] == [pool.tiers for pool in document.pools]
    assert [pool.accelerator for pool in read.pools] == [pool.accelerator for pool in document.pools]
    right, wrong = (f"      links:\n        {name}:" for name in ("emulated", "emulatd"))
    assert right in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(right, wrong), encoding="utf-8")
    with pytest.raises(UnknownNameError, match="emulatd"):
        catalog.resolve(Machine.from_file(path))


def test_one_slow_card_does_not_make_its_pool_slow() -> None:
    rows = [
        LawRow(law="compute", where="a card", pool="b", cards=(card,), predicted_s=1.0, measured_s=times, ratio=times)
        for card, times in enumerate((1.1, 1.0, 4.0, 1.1))
    ]  # fmt: skip
    whole = Attribution(
        predicted_step_s=1.0, measured_step_s=4.0, low=0.9, high=1.1, band="", steps=2, off=True, judged=True, rows=rows
    )
    taught = lesson(whole, "job", emulated=True)
    assert taught.compute["b"].value == 1.1
    assert taught.compute["b"].note == "compute: 7.2 s a step measured, 4 s predicted"
    assert taught.compute["b"].source.startswith("zhenfa run of job, 2 steps, ")
    assert taught.compute["b"].source.endswith(", EMULATED")
    assert lesson(whole, "job", emulated=False, odd=["b"]) == Lesson()
    assert lesson(whole, "job", emulated=False, split=["b"]) == Lesson()
