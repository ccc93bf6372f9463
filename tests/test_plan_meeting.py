"""Where pools meet: every order, the way past the hosts or through them, and what cannot be, said with its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli_runner import ROOT, Call, caller
from plan_pools import dense, machine, model, pool
from zhenfa import catalog
from zhenfa.estimate.setting import Setting, look_up
from zhenfa.estimate.training import cost
from zhenfa.estimate.wires import PCIE_BYTES_PER_S
from zhenfa.plan.bridge import bridge_of
from zhenfa.plan.given import faults
from zhenfa.plan.meeting import GATHERED, WITHIN, left_out
from zhenfa.plan.mixed import search_mixed
from zhenfa.plan.search import Best, Found, Tally
from zhenfa.spec.job import Limits, Workload
from zhenfa.spec.machine import DirectLink, Formation, Network, Tier
from zhenfa.spec.plan import Pipeline, Plan, Stage


def two(network: Network | None, *, size: int = 4, hidden: int = 2048, memory: float = 80e9) -> Setting:
    """A job on two pools of four cards, of which one is faster and one has more memory."""
    tiers = [Tier(name="node", size=4, bandwidth="400 GB/s", latency="1 us")]
    pools = [
        pool("fast", 4, tiers, peak=400e12, capacity=memory, bandwidth=2e12, matmul=0.8),
        pool("roomy", 4, tiers, peak=300e12, capacity=2 * memory, bandwidth=2e12, matmul=0.8),
    ]
    graph = model(hidden, 32000, [dense(hidden, 8, 8, 4 * hidden)], [0] * size)
    formation = replace(machine(*pools), network=network)
    return look_up(graph, Workload(sequence_length=512, global_batch=8), formation)


def search(setting: Setting) -> tuple[list[Found], Tally]:
    best, tally = Best(5), Tally()
    search_mixed(setting, "test", setting.workload.global_batch, Limits(), best, tally)
    return best.ranked(), tally


def over(first: str, last: str, micro_batch_size: int = 1) -> Plan:
    """A pipeline from one pool to another."""
    stages = (Stage(pool=first, first=0, last=2), Stage(pool=last, first=2, last=4))
    entry = Pipeline(micro_batches=8 // micro_batch_size, micro_batch_size=micro_batch_size, stages=stages)
    return Plan(
        job="j", model="small", machine="test-machine", sequence_length=512, precision="bf16", pipelines=(entry,)
    )


# The order of the stages.


def test_every_order_of_the_pools_can_win() -> None:
    """The first stage keeps the most micro-batches in flight and has the stem, the last one the head: which pool comes
    first is the search's to find, and with memory scarce it is another than with a large head."""
    firsts = set()
    for heavy, kept in (
        (1000, 0.2),
        (1000, 0.22),
        (1000, 0.3),
        (1000, 0.4),
        (32000, 0.3),
        (32000, 0.4),
        (200_000, 1.0),
    ):
        tiers = [Tier(name="one", size=1, bandwidth="400 GB/s", latency="1 us")]
        graph = model(2048, heavy, [dense(2048, 8, 8, 8192)], [0] * 6)
        pools = [
            pool("fast", 1, tiers, peak=400e12, capacity=kept * 9e9, bandwidth=2e12, matmul=0.8),
            pool("roomy", 1, tiers, peak=380e12, capacity=kept * 27e9, bandwidth=2e12, matmul=0.8),
        ]
        setting = look_up(graph, Workload(sequence_length=1024, global_batch=16), machine(*pools))
        found, _ = search(setting)
        mixed = [one for one in found if len(one.plan.pipelines[0].stages) == 2]
        assert len({tuple(stage.pool for stage in one.plan.pipelines[0].stages) for one in mixed}) <= 2
        if mixed:
            best = mixed[0].plan.pipelines[0].stages
            firsts.add(best[0].pool)
            turned = _turned(mixed[0].plan, setting)
            assert mixed[0].step <= turned * (1 + 1e-9)
    assert firsts == {"fast", "roomy"}


def _turned(plan: Plan, setting: Setting) -> float:
    """The best step of the same pipeline with its two pools in the other order, over every split of the layers."""
    entry, steps = plan.pipelines[0], [float("inf")]
    for cut in range(1, plan.layers):
        stages = (
            entry.stages[1].model_copy(update={"first": 0, "last": cut}),
            entry.stages[0].model_copy(update={"first": cut, "last": plan.layers}),
        )
        entries = tuple(one.model_copy(update={"stages": stages}) for one in plan.pipelines)
        found = cost(plan.model_copy(update={"pipelines": entries}), setting)
        if not found.problem:
            steps.append(found.step)
    return min(steps)


# Through the hosts, or past them.

STAGED = Network(name="RoCE", bandwidth=50e9, latency=5e-6)


def both(bandwidth: float, latency: float) -> Network:
    return STAGED.model_copy(
        update={"direct": DirectLink.model_validate({"name": "cable", "bandwidth": bandwidth, "latency": latency})}
    )


def test_a_message_takes_the_quicker_way() -> None:
    """Small messages a way that starts early, large ones a way that is wide: never slower than either alone."""
    staged, slow_start = two(STAGED).bridge, two(both(100e9, 1e-3)).bridge
    narrow = two(both(1e9, 1e-6)).bridge
    assert staged is not None
    assert slow_start is not None
    assert narrow is not None
    assert slow_start.direct is not None
    for volume in (1e3, 1e5, 1e7, 1e9):
        for bridge in (slow_start, narrow):
            assert bridge.direct is not None
            assert bridge.time(volume) == min(staged.time(volume), bridge.direct.time(volume))
            assert bridge.volume(bridge.time(volume)) == pytest.approx(volume)
            assert bridge.flow(volume) <= bridge.time(volume)
    assert slow_start.way(1e3) is slow_start
    assert slow_start.way(1e9) is slow_start.direct
    assert narrow.way(1e3) is narrow.direct
    assert narrow.way(1e9) is narrow
    assert staged.time(1e9) == pytest.approx(5e-6 + 1e9 / staged.bandwidth + 2e9 / PCIE_BYTES_PER_S)


def test_either_way_can_win_in_a_plan() -> None:
    plan, ways = over("fast", "roomy", 8), {}
    alone = cost(plan, two(STAGED)).step
    for name, network in {"cable": both(400e9, 1e-6), "RoCE": both(0.1e9, 1e-6)}.items():
        setting = two(network)
        found = cost(plan, setting)
        bridge = bridge_of(plan, setting, found)
        assert bridge is not None
        (one,) = bridge.crossings
        ways[one.choice] = one.host_staged
        assert one.choice == f"over {name}"
        assert f"({one.choice})" in one.words
        assert "beside it cable" in bridge.words
        assert found.step < alone if name == "cable" else found.step == alone
    assert ways == {"over cable": False, "over RoCE": True}


def test_the_search_takes_the_direct_way_where_it_is_quicker() -> None:
    steps = [search(two(network))[0][0].step for network in (STAGED, both(0.1e9, 1e-3), both(400e9, 1e-6))]
    assert steps[2] <= steps[1] == steps[0]


def of_makers(network: Network, *names: str) -> Formation:
    """One node of each of these accelerators."""
    tiers = (Tier(name="node", size=8, bandwidth="200 GB/s", latency="2 us"),)
    cards = [catalog.accelerators()[name] for name in names]
    pools = [replace(pool(card.id, 8, tiers, peak=1e12, capacity=1e9, bandwidth=1e12, matmul=0.5), accelerator=card)
             for card in cards]  # fmt: skip
    return Formation("both", "both", tuple(pools), network, machine(*pools).pue)


@pytest.mark.parametrize(("library", "kept"), [(None, False), ("FlagCX", True)])
def test_cards_without_a_library_in_common_go_through_the_hosts(library: str | None, kept: bool) -> None:
    network = both(100e9, 1e-6).model_copy(update={"joined_by": library})
    graph = model(2048, 32000, [dense(2048, 8, 8, 8192)], [0] * 4)
    work = Workload(sequence_length=512, global_batch=8)
    setting = look_up(graph, work, of_makers(network, "nvidia-h800-sxm", "ascend-910b3"))
    assert setting.bridge is not None
    assert (setting.bridge.direct is not None) == kept
    words = (
        "cable between pools is left out: nccl on nvidia-h800-sxm and hccl on ascend-910b3 have no collective library "
        "in common (network.joined_by says what joins them)"
    )
    assert (words in setting.assumptions) != kept
    alike = look_up(graph, work, of_makers(both(100e9, 1e-6), "nvidia-h800-sxm", "nvidia-h100-sxm"))
    assert alike.bridge is not None
    assert alike.bridge.direct is not None


# What cannot be.


def test_what_is_left_out_between_pools_is_counted() -> None:
    assert left_out(two(STAGED)) == {WITHIN: 1, GATHERED: 1}
    assert left_out(two(None)) == {"plans over fast and roomy: the machine names no network that joins them": 1}
    found, tally = search(two(None))
    assert found
    assert tally.refused == left_out(two(None))
    assert not any("undisclosed" in reason and count for reason, count in tally.rejected.items())
    assert all(len(one.plan.cards_by_pool()) == 1 for one in found)


def test_a_plan_over_pools_that_nothing_joins_says_so() -> None:
    plan = over("fast", "roomy")
    (words,) = faults(plan, two(None), Limits())
    assert words.startswith("stands on fast and roomy, which no network joins: say in the machine what does")
    assert not faults(plan, two(STAGED), Limits())


def test_state_is_not_shared_out_over_the_bridge() -> None:
    stages = {name: (Stage(pool=name, first=0, last=4),) for name in ("fast", "roomy")}
    entries = tuple(Pipeline(count=2, micro_batches=2, stages=one) for one in stages.values())
    plan = over("fast", "roomy").model_copy(update={"pipelines": entries, "zero": 3, "shard_group": 4})
    found = faults(plan, two(STAGED), Limits())
    assert len(found) == 2
    assert found[0].startswith(
        "shard_group 4 is more than the 2 cards of fast that hold the same: weights and gradients"
    )
    assert found[0].endswith("write shard_group 2 or less")
    assert not faults(plan.model_copy(update={"shard_group": 2}), two(STAGED), Limits())


@pytest.fixture
def zhenfa(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    text = (ROOT / "examples" / "our-cluster.yaml").read_text(encoding="utf-8").replace("count: 64", "count: 8")
    (tmp_path / "joined.yaml").write_text(text, encoding="utf-8")
    apart = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("network"))
    (tmp_path / "apart.yaml").write_text(apart.replace("our-cluster", "apart"), encoding="utf-8")
    direct = text.replace("latency: 10 us}", "latency: 10 us, direct: {name: cable, bandwidth: 100 GB/s}}")
    (tmp_path / "direct.yaml").write_text(direct, encoding="utf-8")
    limits = "{micro_batch_size: 1, max_context_parallel: 1, max_pipeline_parallel: 4}"
    (tmp_path / "job.yaml").write_text(
        f"{{name: both, model: llama3-8b, workload: {{sequence_length: 4096, global_batch: 32}}, limits: {limits}}}",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    return caller(capsys, monkeypatch)


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_the_page_says_what_is_never_planned_between_makers(zhenfa: Call, columns: int) -> None:
    pages = {name: zhenfa("plan", "job.yaml", "--on", f"{name}.yaml", columns=columns) for name in ("joined", "apart")}
    for shown in pages.values():
        assert shown.code == 0, shown.err
        assert shown.widest <= columns
    joined, apart = (" ".join(shown.out.split()) for shown in pages.values())
    for text in (joined, apart):
        assert text.count("Not planned over several pools") == 1
    assert WITHIN in joined
    assert GATHERED in joined
    assert "plans over fast and wide: the machine names no network that joins them" in apart
    assert WITHIN not in apart
    assert "Bridge between the pools" not in apart


def test_the_document_counts_it(zhenfa: Call) -> None:
    shown = zhenfa("plan", "job.yaml", "--on", "apart.yaml", "--json")
    assert json.loads(shown.out)["not_planned"] == {
        "plans over fast and wide: the machine names no network that joins them": 1
    }


def test_a_plan_of_ones_own_over_pools_apart_cannot_run(zhenfa: Call) -> None:
    done = zhenfa("plan", "job.yaml", "--on", "joined.yaml", "--out", "mine.yaml")
    assert done.code == 0, done.err
    mine = Path("mine.yaml").read_text(encoding="utf-8")
    assert len(Plan.from_text(mine).cards_by_pool()) == 2
    Path("mine.yaml").write_text(mine.replace("our-cluster", "apart"), encoding="utf-8")
    shown = zhenfa("plan", "job.yaml", "--on", "apart.yaml", "--why", "mine.yaml", columns=100)
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    assert "Why mine.yaml cannot run" in text
    assert "which no network joins: say in the machine what does, such as network: {bandwidth: 400 Gb/s}" in text
    assert "tier whose bandwidth is undisclosed" not in text


def test_a_direct_link_that_cannot_be_used_is_named(zhenfa: Call) -> None:
    shown = zhenfa("plan", "job.yaml", "--on", "direct.yaml", columns=100)
    assert shown.code == 0, shown.err
    text = " ".join(shown.out.split())
    assert "cable between pools is left out: nccl on fast and hccl on wide have no collective library in" in text
    machine_file = Path("direct.yaml").read_text(encoding="utf-8")
    Path("direct.yaml").write_text(machine_file.replace("direct: {", "joined_by: FlagCX, direct: {"), encoding="utf-8")
    shown = zhenfa("plan", "job.yaml", "--on", "direct.yaml", columns=100)
    text = " ".join(shown.out.split())
    assert "left out" not in text.partition("Next:")[0]
    assert "(over cable)" in text
    assert "beside it cable, 95" in text
