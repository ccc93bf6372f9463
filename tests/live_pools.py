"""Small pools, plans and a plain single-process reference for the tests of the live runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zhenfa.live.sizes import Sizes
from zhenfa.live.snapshots import SHARED_MEMORY
from zhenfa.spec import fact
from zhenfa.spec.job import Execution
from zhenfa.spec.machine import Accelerator, CardPool, Formation, Memory, Network, Software, Tier
from zhenfa.spec.plan import Pipeline, Plan, Stage

TINY = Sizes(hidden=32, layers=8, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocabulary=256)
LENGTH = 16


def pool(
    name: str, count: int, speed: float | None = None, tiers: Sequence[Tier] = (), *, capacity: str = "400 MB"
) -> CardPool:
    """A pool of processes on this host: as fast as they are, or emulated at ``speed`` FLOP/s."""
    software = Software(torch_device="cpu", collective_backend="gloo")
    emulation = {}
    if speed is not None:
        memory = Memory(capacity=capacity, bandwidth="1 GB/s")
        emulation = {"emulated": True, "peak": {"fp32": speed, "bf16": speed}, "memory": memory}
    accelerator = Accelerator(
        id=f"{name}-card", maker=f"maker {name}", name=f"{name} card", software=software, **emulation
    )
    return CardPool(name, accelerator, count, tuple(tiers), fact.undisclosed("power"))


def formation(*pools: CardPool, bandwidth: str = "100 MB/s", latency: str = "1 ms") -> Formation:
    """A machine of these pools with a network between them."""
    network = Network(bandwidth=bandwidth, latency=latency)
    return Formation("test-machine", "test machine", tuple(pools), network, fact.undisclosed("ratio"))


def pipeline(
    split: Sequence[int], pools: Sequence[str], micro_batches: int, *, size: int = 1, recompute: str = "none"
) -> Pipeline:
    """A pipeline with ``split`` layers on the stages."""
    ends = [sum(split[: index + 1]) for index in range(len(split))]
    stages = tuple(
        Stage(pool=name, first=end - layers, last=end, recompute=recompute)
        for name, layers, end in zip(pools, split, ends, strict=True)
    )
    return Pipeline(micro_batches=micro_batches, micro_batch_size=size, stages=stages)


def plan(*pipelines: Pipeline, schedule: str = "1f1b", length: int = LENGTH, zero: int = 0) -> Plan:
    """A plan in fp32."""
    return Plan(
        job="test", model="tiny", machine="test-machine", sequence_length=length, precision="fp32", schedule=schedule,
        zero=zero, pipelines=tuple(pipelines),
    )  # fmt: skip


def reference_losses(
    sizes: Sizes, execution: Execution, *, steps: int, global_batch: int, length: int = LENGTH
) -> list[float]:
    """Losses of the same training in one process, without pipeline, process group or micro-batches."""
    import torch

    from zhenfa.live import data
    from zhenfa.live.decoder import StageModule

    torch.set_num_threads(1)
    module = StageModule(sizes, 0, sizes.layers, stem=True, head=True, seed=execution.seed)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=execution.learning_rate, weight_decay=execution.weight_decay, fused=False, foreach=False
    )
    text = data.corpus(execution.data)
    losses = []
    for step in range(1, steps + 1):
        inputs, targets = data.batch(text, seed=execution.seed, step=step, global_batch=global_batch, length=length)
        logits = module(torch.from_numpy(inputs))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets.copy()).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def remains(folder: Path) -> list[Path]:
    """What is left of an engine whose temporary folder is this: the folder, its control group, copies in memory."""
    groups = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"), SHARED_MEMORY)
    return [path for path in (folder, *(group / folder.name for group in groups)) if path.exists()]
