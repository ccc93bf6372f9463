"""Sums beside backward passes: parts are told when they are whole, in an order that all cards keep."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from live_pools import TINY
from zhenfa.live.beside import Beside
from zhenfa.live.collective import STAGED, Way, way_of
from zhenfa.live.decoder import Decoder
from zhenfa.live.makers import maker
from zhenfa.live.operations import operations
from zhenfa.live.pipeline import StageRun
from zhenfa.live.placement import Chunk
from zhenfa.live.readiness import Readiness
from zhenfa.live.sizes import part_of


class Listener:
    """Notes what is told of parts, and whether their gradients were whole then."""

    def __init__(self, module: Decoder) -> None:
        self.module, self.told, self.at = module, [], {}  # type: Decoder, list[str], dict[str, float]
        self.then: dict[str, list[torch.Tensor]] = {}

    def ready(self, part: str) -> None:
        self.told.append(part)
        held = [weight for name, weight in self.module.named_parameters() if part_of(name) == part]
        self.then[part] = [weight.grad.clone() for weight in held]

    def was_ready(self, part: str, at: float) -> None:
        self.at[part] = at


def run_step(schedule: str, micro_batches: int, *, tied: bool = False) -> tuple[Listener, Decoder]:
    """One card with the whole model takes a step, in two stages where the schedule has two on a card."""
    sizes = TINY if not tied else type(TINY)(**vars(TINY) | {"tied": True})
    virtual = 2 if schedule in ("zero-bubble-v", "interleaved") else 1
    cut = [0, 8] if virtual == 1 else [0, 3, 8]
    chunks = [Chunk(index, first, last, first == 0, last == 8, 0) for index, (first, last)
              in enumerate(itertools.pairwise(cut))]  # fmt: skip
    module = Decoder(sizes, range(8), stem=True, head=True, seed=1)
    order = [one for moment in operations(schedule, 1, virtual, micro_batches)[0] for one in moment]
    module.splits = any(kind == "weight" for kind, _, _ in order)
    listener = Listener(module)
    watch = Readiness(module, chunks, order, listener)
    stages = {chunk.stage: StageRun(module, chunk, lambda out, _: out.float().square().mean()) for chunk in chunks}
    here: dict[tuple[str, int, int], Any] = {}
    tokens = torch.randint(0, 256, (micro_batches, 1, 12), generator=torch.Generator().manual_seed(2))
    for number, operation in enumerate(order):
        kind, stage, micro = operation
        run = stages[stage]
        with watch.during(operation, run.meter) as ended:
            if kind == "forward":
                given_ = tokens[micro] if stage == 0 else here.pop((kind, stage, micro))
                here["forward", stage + 1, micro] = run.meter.run(
                    kind, lambda r=run, m=micro, g=given_: r.forward(m, g, None)
                ).detach()
            elif kind == "weight":
                run.meter.run(kind, lambda r=run, m=micro: r.weights(m, watch))
            else:
                gradient = here.pop(("backward", stage, micro), None)
                split = kind == "input"
                here["backward", stage - 1, micro] = run.meter.run(
                    kind, lambda r=run, m=micro, g=gradient, s=split: r.backward(m, g, split=s)
                )
        ended(float(number), number + 1.0)
    return listener, module


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zero-bubble", "zero-bubble-v", "interleaved"])
@pytest.mark.parametrize(("micro_batches", "tied"), [(1, False), (4, False), (4, True)])
def test_every_part_is_told_once_and_whole(schedule: str, micro_batches: int, tied: bool) -> None:
    listener, module = run_step(schedule, micro_batches, tied=tied)
    parts = ["stem", *(f"layer {index}" for index in range(8)), "head"]
    assert sorted(listener.told) == sorted(parts)
    for part, then in listener.then.items():
        now = [weight.grad for name, weight in module.named_parameters() if part_of(name) == part]
        assert all(torch.equal(one, other) for one, other in zip(then, now, strict=True)), part
    if schedule in ("gpipe", "1f1b", "zero-bubble"):
        layers = [part for part in listener.told if part.startswith("layer")]
        assert layers == [f"layer {index}" for index in reversed(range(8))]
    assert set(listener.at) == set(parts)
    if schedule in ("gpipe", "1f1b"):
        last = 2 * micro_batches - 1
        times = [listener.at[f"layer {index}"] for index in range(8)]
        assert times == sorted(times, reverse=True)
        assert all(last < at <= last + 1 for at in times), "inside the last backward pass"


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20), st.integers(0, 20))
def test_work_beside_is_done_in_order_and_stops_at_the_first_failure(numbers: list[int], breaks: int) -> None:
    beside, done = Beside(), []  # type: Beside, list[int]

    def work(place: int, number: int) -> int:
        if place == breaks:
            raise ValueError(f"place {place}")
        done.append(number)
        return number

    told = [beside.give(lambda place=place, number=number: work(place, number)) for place, number in enumerate(numbers)]
    for place, one in enumerate(told):
        if place < breaks:
            assert one.result(10) == numbers[place]
        else:
            with pytest.raises(ValueError, match=f"place {breaks}"):
                one.result(10)
    assert done == numbers[:breaks]
    beside.close()


def test_cards_use_their_maker_s_library_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert way_of(["cpu", "cpu"]) == Way("gloo", staged=False)
    assert way_of(["nvidia", "ascend"]) == STAGED
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name in ("gloo", "nccl"))
    assert way_of(["nvidia", "nvidia"]) == Way("nccl", staged=False)
    missing = way_of(["ascend", "ascend"])
    assert (missing.backend, missing.staged) == ("gloo", True)
    assert "torch here has no hccl" in missing.note
    assert maker("ascend").name in missing.note
