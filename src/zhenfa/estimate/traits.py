"""What the software that runs the plan does, apart from the cards it runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from zhenfa.spec.job import BRIDGE_BYTES, Execution
from zhenfa.spec.machine import Formation
from zhenfa.spec.plan import ContextExchange, Offload, RecomputeModule, Schedule

Fusion = Literal[
    "norm",
    "activation",
    "rope",
    "dropout",
    "softmax",
    "cross-entropy",
    "router",
    "permute",
    "optimizer",
    "logits",
    "expert-bias",
]
"""Chains of operators that an engine may run as one kernel; ``logits``: output projection and loss in pieces, so that
no card holds all logits; ``expert-bias``: biases of experts, and the activation between."""

EVERY_FUSION: Final[frozenset[Fusion]] = frozenset(get_args(Fusion)) - {"logits"}  # which few engines have

WIDE_BYTES: Final = 2.0
"""Bytes of an element from which a matmul counts as one in 16 bits."""

LowPrecision = Literal["tensor", "delayed", "block"]
"""How tensors are scaled to 8 or 4 bits: by the tensor's present largest value (one more pass), by that of earlier
steps, or by blocks of 32 or 128 elements."""


RUNTIME_BYTES: Final = 3.0e9
"""What driver, loaded kernels and the buffers of collectives take of a card beside tensors: read from nvidia-smi beside
the allocator on A100 and V100 with tensor parallelism (eth-easl/sailor, runtime_simulator.py; 2.0 GB without)."""


@dataclass(frozen=True)
class Traits:
    """How a training engine overlaps communication, what it fuses, and what it adds.

    *Overlap*, each a share in 0 to 1 of the traffic that runs while arithmetic does; what the arithmetic at hand is too
    short to hide stays exposed all the same. ``gradient_overlap``: reducing gradients, behind the backward pass.
    ``gather_overlap``: gathering weights (ZeRO), behind the passes. ``tensor_overlap``: collectives of tensor
    parallelism, behind the matmul that they feed or follow, where the cards share the innermost switched domain (such
    kernels write into their peers' memory). ``expert_overlap``: dispatch and combine of experts, behind
    another micro-batch or the shared expert. ``context_overlap``: keys and values of context parallelism, behind
    attention. ``pipeline_overlap``: messages between stages: 1: neither end waits for the wire; 0: both do, but for
    messages of ``buffer_bytes`` at most, which leave the sender as soon as they lie in the library's buffer.
    ``bridge_overlap``: the sum of gradients across pools, behind what the sum inside leaves of the backward pass.
    ``one_ring``: replicas on unlike cards sum their gradients in one ring over all of them, not pool by pool first.
    ``contention``: share of the matmul speed that a collective running beside takes away (cores that copy).
    ``summed_whole``: ZeRO stages under which gradients are summed by an all-reduce of which each card keeps its part,
    and ``summed_alone``: under which nothing runs beside it. ``gathered_ahead``: those under which weights are gathered
    beside the layer before, and ``shared_by_all``: under which all replicas share out state, those of other pools too.

    *Kernels.* ``matmul_share`` and ``attention_share``: speed of the engine's matmuls, and of its flash attention, in a
    long step over what the chip's laws say of one kernel on an idle card (clock under power; older kernels).
    ``matmul_share_low``: the same of matmuls in 8 and fewer bits (None: as of those in 16).
    ``card_spread``: standard deviation of that speed between cards of one kind, a step waiting for the slowest of all;
    the speeds hold for ``spread_cards`` that step together.
    ``attention``: ``flash`` never stores scores, ``unfused`` writes and reads them. ``fused``: chains run as
    one kernel. ``dropout``: hidden states and scores are dropped out in training (GPT-2's and GPT-3's habit).
    ``rope_layout``: extra passes over queries, keys and values that only change layout, in tensors read and written.
    ``busy``: share of a pass in which the card has a kernel to run (eager engines and their hooks leave gaps).
    ``host_s_per_kernel``: host seconds to issue a kernel; a layer takes at least as long as its kernels take to issue.
    ``eager``: operators are issued one by one, at the host's pace that was measured of a calibrated card.
    ``graphed``: share of the kernels that replay from a captured graph, at no host time.
    ``step_overhead_s``: seconds a step of host work that nothing hides (data, logging, scaling, synchronising).
    ``message_overhead_s``: host seconds added to every message between stages. ``host_bytes_per_s``: between a card and
    its host's memory, where state or activations lie there (None: PCIe 5).

    *Numbers.* ``gradient_bytes``: per gradient element held and accumulated; ``reduced_bytes``: on the wire (None: the
    same). ``bridge_gradient_bytes`` and ``bridge_activation_bytes``: on the wire between pools (None: as inside them).
    ``gathered_bytes``: per weight gathered (None: as the precision says).
    ``optimizer_bytes_moved``: read and written per parameter in the update (None: counted from the formats).
    ``autocast``: weights are held in 32 bits and brought to 16 at every use, and the residual stream stays in 32.
    ``low_precision``: scaling; ``low_precision_weights``: a copy of the weights is kept in the low format;
    ``low_precision_head``: the output projection is in the low format too.
    ``activation_slack``: bytes held over bytes counted (the allocator). ``loss_bytes``: per logit while the loss's
    gradient is computed, beyond the logits (None: their gradient in 16 bits, or unfused in both widths and the logits
    in 16 bits too); ``loss_split_bytes`` more where tensor parallelism splits the logits.
    ``wide_weights``: the only weights held are in 32 bits, shared out; those in 16 exist while they are gathered.
    ``masters_whole``: under ZeRO-1 each card keeps all its weights in 32 bits, too, and those are what is gathered.
    ``gathers_kept``: the inputs of column-split matmuls are kept gathered, not gathered again in the backward pass.
    ``live_elements``: weights that ZeRO-3 may keep gathered before it drops any; ``bucket_elements``: gradients that
    wait in a buffer to be reduced; ``offloads_gradients``: they go to the host with the optimizer's state.
    ``runtime_bytes``: what the driver, loaded kernels and the buffers of collectives take of a card beside tensors.
    ``lean``: chains that keep no more for the backward pass than one fused kernel would, though they run as several.
    ``passing``: gradients that pass between a layer's operators are counted (our own runtime's account omits them).

    *Layout.* ``sequence_parallel``: norms and residuals are split over the tensor-parallel cards.
    ``context_exchange``: how context parallelism moves keys and values. ``expert_imbalance``: tokens of the busiest
    card over the mean where the router is not forced. ``tensor_parallel``, ``expert_parallel``, ``context_parallel``,
    ``zero_stages``, ``recompute``, ``schedules``, ``offloads``: what the engine can execute, and ``some_layers``:
    that it can compute some layers of a stage again and keep the others, ``whole_sequence``: that it can leave out
    sequence parallelism, ``shares_batches``: that cards of one stage can share out its replica's micro-batches;
    ``selective``: what it computes again where a run asks for selective recomputation and names no module (the core of
    attention: arXiv:2205.05198, section 5), ``planned_again``: what plans that are searched for compute again then
    (empty: norms and activation functions).
    ``recompute_stops_early``: recomputing a layer ends at the last tensor that its backward needs, so the last
    matmul is not run again.
    ``adapted``: the matmuls that get adapters where only those are trained (empty: all of the layers).
    ``pipelines_keep``: where a pipeline has several stages, weights gathered by ZeRO-3 stay until the step ends, and
    gradients are summed then.
    ``accumulates``: a batch is split into micro-batches of one sequence where a run does not say how it is split.
    ``rotary``: positions are rotary (not where the model holds a table of them). ``expert_exchange``: ``all-to-all``
    sends a copy to every expert, ``forwarding`` one to every card (or node) that holds some of the token's;
    ``dispatch_bytes`` per element sent where activations have 16 bits. ``expert_pace``: speed of the engine's dispatch
    and combine over what the fabric's law says. ``expert_wait_s``: seconds of a layer and pass that the card waits for
    the host, which has to know how many tokens each expert got before it issues the experts' kernels (not from a graph
    of all kernels).
    ``receives_apart``: a buffer for every message of a step, instead of
    one at a time.
    """

    name: str
    gradient_overlap: float = 1.0
    gather_overlap: float = 1.0
    bridge_overlap: float = 0.0
    tensor_overlap: float = 0.0
    expert_overlap: float = 0.0
    context_overlap: float = 1.0
    pipeline_overlap: float = 1.0
    buffer_bytes: float = 0.0
    one_ring: bool = False
    contention: float = 0.0
    summed_whole: tuple[int, ...] = ()
    summed_alone: tuple[int, ...] = ()
    gathered_ahead: tuple[int, ...] = ()
    shared_by_all: tuple[int, ...] = ()
    matmul_share: float = 1.0
    matmul_share_low: float | None = None
    attention_share: float = 1.0
    card_spread: float = 0.0
    spread_cards: float = 64.0
    attention: Literal["flash", "unfused"] = "flash"
    fused: frozenset[Fusion] = EVERY_FUSION
    dropout: bool = False
    rope_layout: float = 0.0
    busy: float = 1.0
    host_s_per_kernel: float = 0.0
    graphed: float = 0.0
    eager: bool = False
    step_overhead_s: float = 0.0
    message_overhead_s: float = 0.0
    host_bytes_per_s: float | None = None
    gradient_bytes: float = 4.0
    reduced_bytes: float | None = None
    gathered_bytes: float | None = None
    bridge_gradient_bytes: float | None = None
    bridge_activation_bytes: float | None = None
    optimizer_bytes_moved: float | None = None
    autocast: bool = False
    low_precision: LowPrecision = "delayed"
    low_precision_weights: bool = False
    low_precision_head: bool = False
    activation_slack: float = 1.0
    loss_bytes: float | None = None
    loss_split_bytes: float = 0.0
    wide_weights: bool = False
    masters_whole: bool = False
    gathers_kept: bool = False
    live_elements: float = 0.0
    bucket_elements: float = 0.0
    offloads_gradients: bool = False
    runtime_bytes: float = RUNTIME_BYTES
    lean: frozenset[Fusion] = frozenset()
    passing: bool = True
    sequence_parallel: bool = True
    context_exchange: ContextExchange = "ring"
    expert_imbalance: float = 1.0
    expert_pace: float = 1.0
    expert_wait_s: float = 0.0
    expert_exchange: Literal["all-to-all", "forwarding"] = "all-to-all"
    dispatch_bytes: float = 2.0
    rotary: bool = True
    tensor_parallel: bool = True
    expert_parallel: bool = True
    context_parallel: bool = True
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    recompute: tuple[int, ...] = (0, 1, 2)
    schedules: tuple[Schedule, ...] = ("1f1b", "interleaved")
    offloads: tuple[Offload, ...] = ("none", "optimizer")
    some_layers: bool = True
    whole_sequence: bool = True
    shares_batches: bool = True
    selective: tuple[RecomputeModule, ...] = ("attention",)
    planned_again: tuple[RecomputeModule, ...] = ()
    recompute_stops_early: bool = False
    receives_apart: bool = False
    adapted: tuple[str, ...] = ()
    accumulates: bool = True
    pipelines_keep: bool = False

    def sustained(self, element_bytes: float) -> float:
        """Return the speed of matmuls of such elements in a long step over that of one kernel."""
        low = self.matmul_share_low
        return self.matmul_share if low is None or element_bytes >= WIDE_BYTES else low

    def but(self, **changes: Any) -> Traits:
        """Return the same engine with some traits changed."""
        change: Callable[..., Traits] = replace
        return change(self, **changes)


MEGATRON_LIKE: Final = Traits("Megatron-like: gradient sum overlapped, sequence parallel, flash attention")
OWN_RUNTIME: Final = Traits(
    "zhenfa run: gradients summed beside the last backward",
    bridge_overlap=1.0,
    gather_overlap=0.0,
    fused=frozenset(),
    eager=True,
    sequence_parallel=False,
    context_parallel=False,
    zero_stages=(0, 1),
    gathered_ahead=(3,),
    shared_by_all=(1, 2, 3),
    masters_whole=True,
    recompute=(0, 2),
    schedules=("gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v", "dualpipe"),
    offloads=("none",),
    some_layers=True,
    whole_sequence=False,
    shares_batches=True,
    recompute_stops_early=True,
    loss_bytes=0.0,
    lean=frozenset({"norm", "activation"}),
    passing=False,
    receives_apart=True,
)


WHOLE_BACKWARD: Final[tuple[Schedule, ...]] = ("gpipe", "1f1b", "interleaved")
"""Schedules in which a backward pass is one operation: those that run modules other than the runtime's own."""


def own_runtime(execution: Execution, formation: Formation, *, whole: bool = False) -> Traits:
    """Return what ``zhenfa run`` does under a job's settings: whether sums of gradients run beside backward passes, and
    the bytes that cross the bridge, where each pool is of another maker (only between makers is anything compressed).
    ``whole``: the module is not the runtime's own, so that its matrices and backward passes stay whole.
    """
    overlap = 1.0 if execution.overlap_gradient_sum else 0.0
    traits = OWN_RUNTIME.but(gradient_overlap=overlap, bridge_overlap=overlap)
    if whole:
        traits = traits.but(tensor_parallel=False, expert_parallel=False, schedules=WHOLE_BACKWARD)
    if len({pool.accelerator.maker for pool in formation.pools}) < len(formation.pools):
        return traits
    return traits.but(
        bridge_gradient_bytes=BRIDGE_BYTES[execution.bridge.gradients],
        bridge_activation_bytes=BRIDGE_BYTES[execution.bridge.activations],
    )


def on_processors(formation: Formation) -> bool:
    """Return whether every card of the machine is a processor, which torch reaches as ``cpu``."""
    software = [pool.accelerator.software for pool in formation.pools]
    return all(one is not None and one.torch_device == "cpu" for one in software)
