"""What the software that runs the plan does, apart from the cards it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zhenfa.spec.machine import Formation


@dataclass(frozen=True)
class Traits:
    """How a training engine overlaps and what it adds.

    ``gradient_overlap``: gradients are summed while the last micro-batch's backward still runs.
    ``message_overhead_s``: host time added to every message between stages, in seconds.
    ``sequence_parallel``: norms and residuals are split over the tensor-parallel group.
    ``gradient_bytes``: bytes per gradient element held and summed.
    ``tensor_parallel``, ``expert_parallel``, ``zero_stages``, ``recompute``: what the engine can execute.
    """

    name: str
    gradient_overlap: bool = True
    message_overhead_s: float = 0.0
    sequence_parallel: bool = True
    gradient_bytes: float = 4.0
    tensor_parallel: bool = True
    expert_parallel: bool = True
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    recompute: tuple[int, ...] = (0, 1, 2)


MEGATRON_LIKE: Final = Traits("Megatron-like: gradient sum overlapped, sequence parallel, flash attention")
OWN_RUNTIME: Final = Traits(
    "zhenfa run: gradients summed after the last backward",
    gradient_overlap=False,
    sequence_parallel=False,
    tensor_parallel=False,
    expert_parallel=False,
    zero_stages=(0,),
    recompute=(0, 2),
)


def traits_for(formation: Formation) -> Traits:
    """Return the traits of the engine that a plan for this machine is meant for."""
    return OWN_RUNTIME if formation.emulated else MEGATRON_LIKE
