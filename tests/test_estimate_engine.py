"""What engines overlap, cut, offload and freeze: whole estimates against counting by hand."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_pools import dense, model, plan_of, random_plan, random_setting, sparse, stages_of, two_nodes
from zhenfa.estimate import engines
from zhenfa.estimate.report import step_parts
from zhenfa.estimate.saving import checkpoint
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.traits import MEGATRON_LIKE
from zhenfa.laws import communication, recovery
from zhenfa.spec.plan import Pipeline, Plan, Stage
from zhenfa.spec.upkeep import Storage

LAYERS = 8


def setting_with(experts: bool = False, **traits: Any) -> Setting:
    known = two_nodes()
    graph = model(1024, 32000, [sparse(1024, 8, 16, 2) if experts else dense(1024, 8, 8, 4096)], [0] * LAYERS)
    return look_up(graph, known.workload, known.formation, MEGATRON_LIKE.but(**traits))


def plan(setting: Setting, stages: tuple[Stage, ...], count: int = 1, times: int = 8, **changes: Any) -> Plan:
    pipe = {key: changes.pop(key) for key in ("virtual_stages", "micro_batch_size") if key in changes}
    entry = Pipeline(count=count, micro_batches=times, stages=stages, **pipe)
    simple = plan_of(setting, [entry.model_copy(update={"virtual_stages": 1})], changes.pop("zero", 0))
    return Plan.model_validate(simple.model_dump() | {"pipelines": [entry]} | changes)


def chunks(places: int, virtual: int, **cut: Any) -> tuple[Stage, ...]:
    each = LAYERS // (places * virtual)
    return tuple(
        Stage(pool="p0", first=index * each, last=(index + 1) * each, **cut) for index in range(places * virtual)
    )


SHARES = st.floats(0.0, 1.0)


@given(
    SHARES, SHARES, SHARES, SHARES, st.floats(0.0, 0.5), st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 2]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_more_overlap_is_never_slower_and_parts_add_up(
    gradient: float, gather: float, tensor: float, expert: float, contention: float, zero: int, split: int,
    experts: bool,
) -> None:  # fmt: skip
    shares = {
        "gradient_overlap": gradient, "gather_overlap": gather, "tensor_overlap": tensor, "expert_overlap": expert,
        "contention": contention,
    }  # fmt: skip
    steps = []
    for traits in (dict.fromkeys(shares, 0.0), shares, dict.fromkeys(shares, 1.0) | {"contention": 0.0}):
        setting = setting_with(experts, **traits)
        layout = plan(setting, stages_of(split, 1), count=4, zero=zero)
        found = cost(layout, setting)
        steps.append(found.step)
        parts = step_parts(found.worst)
        assert sum(parts.values()) == pytest.approx(found.step, rel=1e-9)
        assert min(parts.values()) >= -1e-12 * found.step
    assert steps[0] >= steps[1] * (1 - 1e-9) >= steps[2] * (1 - 1e-9)


@pytest.mark.parametrize(("schedule", "virtual"), [("interleaved", 2), ("interleaved", 4), ("zero-bubble-v", 2)])
def test_virtual_stages_shrink_the_bubble_and_hold_the_same_state(schedule: Any, virtual: int) -> None:
    setting = setting_with()
    simple = cost(plan(setting, chunks(2, 1)), setting)
    layout = plan(setting, chunks(2, virtual), schedule=schedule, virtual_stages=virtual)
    found = cost(layout, setting)
    assert layout.cards == 2
    assert found.problem == ""
    group = found.groups[0]
    assert (len(group.stages), len(group.places)) == (2 * virtual, 2)
    parts, before = step_parts(group), step_parts(simple.groups[0])
    assert sum(parts.values()) == pytest.approx(found.step, rel=1e-9)
    if schedule == "interleaved":
        assert parts["bubble"] < before["bubble"]
    for name in ("weights", "gradients", "optimizer"):
        total = sum(place.memory[name] for place in group.places)
        assert total == pytest.approx(sum(stage.memory[name] for stage in simple.stages), rel=1e-9)
    if schedule == "interleaved":
        assert group.places[0].memory["activations"] > simple.stages[0].memory["activations"]


def test_dualpipe_holds_the_model_twice() -> None:
    setting = setting_with()
    simple = cost(plan(setting, chunks(4, 1), times=16), setting)
    double = cost(plan(setting, chunks(4, 1), times=16, schedule="dualpipe"), setting)
    for name in ("weights", "gradients", "optimizer"):
        assert sum(one.memory[name] for one in double.groups[0].places) == pytest.approx(
            2 * sum(one.memory[name] for one in simple.stages)
        )
    assert double.groups[0].pipeline < simple.groups[0].pipeline


def test_context_parallelism_shares_tokens_and_sends_keys_and_values() -> None:
    setting = setting_with(context_overlap=0.0)
    alone = cost(plan(setting, chunks(1, 1)), setting).stages[0]
    layout = plan(setting, chunks(1, 1, context_parallel=4))
    found = cost(layout, setting).stages[0]
    assert layout.cards == 4
    assert found.activation == pytest.approx(alone.activation / 4)
    assert found.ideal == pytest.approx(alone.ideal / 4)
    assert found.memory["weights"] == alone.memory["weights"]
    tokens = setting.workload.sequence_length
    volume = tokens * 2 * 1024 * 2.0  # keys and values of the whole sequence, two bytes each
    once = communication.all_gather_time(volume, 4.0, 1.0, setting.fabrics["p0"])
    assert found.context == pytest.approx(LAYERS * 3 * once)  # forward, and keys with their gradients backward
    hidden = setting_with(context_overlap=1.0)
    assert cost(plan(hidden, chunks(1, 1, context_parallel=4)), hidden).stages[0].context < found.context
    whole = cost(plan(setting, chunks(1, 1, context_parallel=4), context_exchange="all-to-all"), setting).stages[0]
    assert 0 < whole.context != found.context


def test_unfused_attention_stores_scores_and_takes_longer() -> None:
    flash, unfused = setting_with(), setting_with(attention="unfused", dropout=True)
    one, two = (cost(plan(it, chunks(1, 1)), it).stages[0] for it in (flash, unfused))
    tokens, heads = flash.workload.sequence_length, 8
    scores = LAYERS * heads * tokens * tokens * (2 + 2 + 1) - LAYERS * heads * tokens * 4
    masks = 2 * LAYERS * tokens * 1024
    assert two.activation - one.activation == pytest.approx(scores + masks)
    assert two.forward > one.forward


def test_without_sequence_parallelism_every_card_keeps_norms_and_residuals() -> None:
    setting = setting_with()
    split = cost(plan(setting, stages_of(8, 1)), setting).stages[0]
    whole = cost(plan(setting, stages_of(8, 1), sequence_parallel=False), setting).stages[0]
    tokens = setting.workload.sequence_length
    kept = LAYERS * 4 * 1024 * 2 + 2 * 1024 + 2 * 1024  # two norms, two residuals; final norm, embedding's output
    assert whole.activation - split.activation == pytest.approx(tokens * kept * (1 - 1 / 8), rel=0.03)


def test_a_host_that_issues_slowly_sets_the_pace() -> None:
    quick, slow = setting_with(), setting_with(host_s_per_kernel=1e-3)
    graphs = setting_with(host_s_per_kernel=1e-3, graphed=1.0)
    one, two, three = (cost(plan(it, chunks(1, 1)), it).stages[0] for it in (quick, slow, graphs))
    assert two.forward > 1e-3 * LAYERS * 10
    assert two.waited == pytest.approx(two.busy - one.busy, rel=1e-6)
    assert three.busy == one.busy


def test_recomputation_of_some_layers_lies_between() -> None:
    setting = setting_with()
    none, some, full = (
        cost(plan(setting, chunks(1, 1, recompute="full", recompute_layers=layers)), setting).stages[0]
        for layers in (0, 3, None)
    )
    assert none.backward < some.backward < full.backward
    assert (some.backward - none.backward) / (full.backward - none.backward) == pytest.approx(3 / LAYERS)
    assert none.activation > some.activation > full.activation
    only = cost(
        plan(setting, chunks(1, 1, recompute="selective", recompute_modules=("attention",))), setting
    ).stages[0]  # fmt: skip
    assert none.backward < only.backward < full.backward
    assert none.activation > only.activation


def test_offload_trades_memory_for_time() -> None:
    setting = setting_with()
    here, state, both = (
        cost(plan(setting, chunks(1, 1), offload=what), setting).stages[0] for what in ("none", "optimizer", "both")
    )
    assert state.memory["optimizer"] == 0.0 < here.memory["optimizer"]
    assert state.optimizer > 5 * here.optimizer
    assert both.activation == 0.0
    assert both.busy >= here.busy


def test_adapters_train_little() -> None:
    setting = setting_with()
    full = cost(plan(setting, stages_of(1, 1), count=4, zero=1), setting).stages[0]
    few = cost(plan(setting, stages_of(1, 1), count=4, zero=1, trainable="lora", lora_rank=8), setting).stages[0]
    rank = LAYERS * 8 * ((1024 + 3072) + (1024 + 1024) + 2 * (1024 + 4096))
    assert few.memory["gradients"] == pytest.approx(4.0 * rank)
    assert few.memory["optimizer"] == pytest.approx(12.0 * rank / 4)
    assert few.memory["weights"] == pytest.approx(full.memory["weights"] + 2.0 * rank)
    assert few.weight == 0.0 < full.weight
    assert few.backward < full.backward
    assert few.reduce < 0.2 * full.reduce


def test_sharding_over_fewer_cards_holds_more_and_gathers_near() -> None:
    setting = setting_with(gradient_overlap=0.0, gather_overlap=0.0)
    wide = cost(plan(setting, stages_of(1, 1), count=16, zero=3), setting).stages[0]
    near = cost(plan(setting, stages_of(1, 1), count=16, zero=3, shard_group=8), setting).stages[0]
    assert near.memory["weights"] == pytest.approx(2 * wide.memory["weights"])
    assert near.forward < wide.forward  # eight cards of one node
    once = cost(plan(setting, stages_of(1, 1), count=16, zero=3, reshard="micro-batch"), setting).stages[0]
    step = cost(plan(setting, stages_of(1, 1), count=16, zero=3, reshard="step"), setting).stages[0]
    assert step.backward < wide.backward
    assert step.forward < once.forward
    assert once.backward < wide.backward
    assert step.memory["weights"] > 8 * wide.memory["weights"]


def test_experts_of_the_busiest_card_set_the_pace() -> None:
    setting = setting_with(experts=True)
    stages = chunks(1, 1, expert_parallel=8)
    even = cost(plan(setting, stages, count=8), setting).stages[0]
    skewed = cost(plan(setting, stages, count=8, expert_imbalance=2.0), setting).stages[0]
    assert skewed.busy > even.busy
    assert skewed.ideal == even.ideal
    assert skewed.expert > even.expert
    split = cost(plan(setting, chunks(1, 1, expert_parallel=4, expert_tensor_parallel=2), count=8), setting).stages[0]
    assert split.memory["weights"] == pytest.approx(even.memory["weights"])


def test_messages_that_both_ends_wait_for_lengthen_the_step() -> None:
    free, waits = setting_with(), setting_with(pipeline_overlap=0.0)
    one, two = (cost(plan(it, chunks(4, 1), times=16), it).groups[0] for it in (free, waits))
    hop = one.stages[1].transfer
    assert two.stages[1].forward == pytest.approx(one.stages[1].forward + hop)
    assert two.pipeline > one.pipeline


def test_what_does_not_fit_says_what_fills_the_card() -> None:
    setting = setting_with()
    layout = plan(setting, chunks(1, 1), micro_batch_size=4096)
    problem = cost(layout, setting).problem
    assert problem.startswith("needs ")
    assert "usable (activations " in problem
    assert ", optimizer " in problem


def test_a_checkpoint_counts_every_tensor_once() -> None:
    setting = setting_with()
    layout = plan(setting, stages_of(1, 1), count=4)
    formation = dataclasses.replace(
        setting.formation, storage=Storage.model_validate({"per_card": "1 GB/s", "write": "1 TB/s"})
    )
    setting = dataclasses.replace(setting, formation=formation)
    found = checkpoint(layout, setting, asynchronous=False)
    assert found.bytes == 14.0 * setting.graph.parameters
    assert found.writers == 4
    copied = max(found.bytes / 4 / 50.4e9, 0.59)
    assert found.stall == pytest.approx(copied + found.bytes / 4 / 1e9)
    later = checkpoint(layout, setting)
    assert later.stall == pytest.approx(copied)
    few = checkpoint(plan(setting, stages_of(1, 1), count=4, trainable="lora"), setting)
    assert few.bytes < 0.05 * found.bytes


@given(st.floats(0.0, 0.05), st.floats(1, 4096))
def test_a_step_waits_for_the_slowest_card(spread: float, fitted: float) -> None:
    alike, apart = setting_with(), setting_with(card_spread=spread, spread_cards=fitted)
    slow = recovery.slowest_card(alike.formation.cards, spread) / recovery.slowest_card(fitted, spread)
    assert apart.traits.matmul_share == pytest.approx(alike.traits.matmul_share / slow)
    stages = chunks(1, 1)
    mine, other = (cost(plan(one, stages), one).step for one in (apart, alike))
    least, most = sorted((1.0, float(slow)))
    assert least * other * (1 - 1e-9) <= mine <= most * other * (1 + 1e-9)
    assert slow <= 1 or alike.formation.cards > fitted


def test_cards_of_a_generation_that_nobody_measured_reach_the_median_one() -> None:
    assert engines.find("Megatron-LM", card="somebody-x1").traits.matmul_share == engines.usual_share()
    known = {engines.generation(card) for card in ("nvidia-h100-sxm", "nvidia-a100-sxm-80g", "nvidia-b200-sxm")}
    shares = [engines.fits()[name]["matmul_share"]["value"] for name in known]
    assert min(shares) <= engines.usual_share() <= max(shares)
    assert engines.find("zhenfa run").traits.card_spread == 0.0


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_summed_once_a_step_are_held_whole(zero: int) -> None:
    """Replicas that share gradients out hold their own, whole, until the one sum at the end of the step."""
    setting = setting_with()
    each, late = (
        cost(plan(setting, stages_of(1, 1), count=16, zero=zero, reduce_every=every), setting).stages[0]
        for every in ("micro-batch", "step")
    )
    more = late.memory["gradients"] - each.memory["gradients"]
    held = setting.graph.parameters * setting.traits.gradient_bytes
    assert more == pytest.approx(held if zero >= 2 else 0.0)
    assert late.memory["weights"] == each.memory["weights"]


@given(st.integers(0, 10**6), SHARES, SHARES, st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_reducing_with_every_micro_batch_is_never_quicker_than_once(
    seed: int, gradient: float, gather: float, pools: int
) -> None:
    """What goes with each micro-batch goes in all of them, and nothing but arithmetic hides it: in the last as well."""
    traits = MEGATRON_LIKE.but(gradient_overlap=gradient, gather_overlap=gather)
    setting = random_setting(seed % 1000, pools, traits=traits)
    drawn = random_plan(random.Random(seed), setting)
    for zero in (2, 3):
        each, once = (
            cost(drawn.model_copy(update={"zero": zero, "reduce_every": every, "reshard": reshard}), setting)
            for every, reshard in (("micro-batch", "layer"), ("step", "step"))
        )
        assert each.step >= once.step * (1 - 1e-9)


@pytest.mark.parametrize(("schedule", "virtual"), [("1f1b", 1), ("interleaved", 2), ("dualpipe", 1)])
@pytest.mark.parametrize(("zero", "reshard"), [(2, None), (3, "layer"), (3, "step")])
@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_one_layer_is_left_at_the_ends_of_a_step(
    schedule: str, virtual: int, zero: int, reshard: str | None, overlap: float
) -> None:
    """Whatever overlaps, the last layer's gradients are left when all is computed, and before it one layer's weights,
    unless those are gathered once a step: then those of all of a place's stages, where nothing hides them."""
    setting = setting_with(gradient_overlap=overlap, gather_overlap=overlap)
    stages = chunks(2, virtual)
    how = {"schedule": schedule, "virtual_stages": virtual, "zero": zero, "reshard": reshard}
    every, once = (
        cost(plan(setting, stages, count=8, **how, reduce_every=each), setting).groups[0]
        for each in ("micro-batch", "step")
    )
    left = [stage.reduce / stages[0].layers for stage in once.stages]
    assert [stage.reduce for stage in every.stages] == pytest.approx(left)
    homes = [[0, 1], [0, 1]] if schedule == "dualpipe" else [[0, 2], [1, 3]] if virtual == 2 else [[0], [1]]
    assert [place.reduce for place in every.places] == pytest.approx([max(left[at] for at in home) for home in homes])
    gathers = [stage.gather for stage in every.stages]
    total = max if reshard == "layer" else sum
    assert [place.gather for place in every.places] == pytest.approx(
        [total(gathers[at] for at in home) for home in homes]
    )
    first = every.places[0]
    assert first.reduce > 0 < first.gather
    if schedule != "dualpipe":  # the first place ends last
        ahead = every.tail_parts["data"] - first.reduce
        assert 0 < ahead <= first.gather * (1 + 1e-9)
        assert ahead == pytest.approx(first.gather) or (overlap == 1 and reshard != "layer")
