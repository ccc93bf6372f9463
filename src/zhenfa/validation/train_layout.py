"""How a published training row was laid out: degrees, batches, recomputation, sharding, read from loose values."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from zhenfa.errors import InputError
from zhenfa.estimate.traits import MEGATRON_LIKE, Traits
from zhenfa.spec.plan import RecomputeModule
from zhenfa.validation.train_words import number, part, text, truth, unstated, whole

Mode = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Layout:
    """A row's layout with the gaps filled.

    ``modules`` are what selective recomputation names (empty: what the engine means by it); ``recomputed`` is the share
    of the layers that are recomputed; ``shard_group`` the cards over which ZeRO shards (None: all replicas); ``chunks``
    the layers of every virtual stage in order of depth (empty: even); ``flushes`` pipelines run dry in a step.
    """

    tensor: int
    pipeline: int
    virtual: int
    data: int
    context: int
    expert: int
    expert_tensor: int | None
    micro_batch: int
    micro_batches: int
    sequence_parallel: bool
    zero: int
    shard_group: int | None
    reshard: Literal["layer", "micro-batch", "step"] | None
    reduced_late: bool
    zero_words: str
    recompute: Mode
    modules: tuple[RecomputeModule, ...]
    recomputed: float
    schedule: str
    chunks: tuple[int, ...]
    ends_are_layers: bool
    flushes: int
    offload_optimizer: bool
    offload_layers: int
    cuda_graph: str
    dispatcher: str
    expert_overlap: bool
    tensor_overlap: bool | None

    @property
    def cards(self) -> int:
        """Return how many cards work."""
        return self.tensor * self.pipeline * self.data * self.context

    @property
    def sequences(self) -> int:
        """Return the sequences of one step."""
        return self.micro_batch * self.micro_batches * self.data


def layout_of(record: Mapping[str, Any], layers: int, notes: list[str], *, traits: Traits = MEGATRON_LIKE) -> Layout:
    """Return the layout of a row; ``notes`` gains what was assumed. The engine's ``traits`` fill in what is left open.

    Raises :class:`InputError` where neither the cards nor the degrees are given.
    """
    raw = part(record, "parallel")
    tensor, pipeline, context, data = _degrees(raw, part(record, "hardware"), notes)
    micro_batch, micro_batches = _batches(raw, data, notes, traits.accumulates or pipeline > 1)
    zero, group, reshard = _zero(raw.get("zero"), data, tensor * pipeline > 1, notes)
    late = traits.pipelines_keep and pipeline > 1 and zero == 3 and reshard is None
    mode, modules, share = _recompute(raw.get("recompute"), layers, notes)
    virtual = whole(raw.get("vpp"), most=1000) or 1
    schedule = text(raw.get("schedule"))
    if pipeline > 1 and virtual == 1 and "interleav" in f"{schedule} {text(raw.get('vpp'))}":
        virtual = max(
            (step for step in (2, 3, 4, 5, 6) if any(count % (pipeline * step) == 0 for count in (layers, layers + 2))),
            default=1,
        )
        notes.append(f"{virtual} virtual stages assumed")
    chunks, ends = _chunks(raw, layers, pipeline, virtual if pipeline > 1 else 1, notes)
    expert = whole(raw.get("ep"), most=10**6) or 1
    if unstated(raw.get("ep")) and part(part(record, "model"), "moe") and raw.get("ep") is not None:
        notes.append("expert parallelism not stated: 1 assumed")
    return Layout(
        tensor=tensor, pipeline=pipeline, virtual=virtual if pipeline > 1 else 1, data=data, context=context,
        expert=expert, expert_tensor=whole(raw.get("etp"), most=10**4), micro_batch=micro_batch,
        micro_batches=micro_batches, sequence_parallel=_sequence_parallel(raw, tensor, notes), zero=zero,
        shard_group=group, reshard="step" if late else reshard, reduced_late=late,
        zero_words=text(raw.get("zero")), recompute=mode, modules=modules, recomputed=share, schedule=schedule,
        chunks=chunks, ends_are_layers=ends, flushes=whole(raw.get("pipeline_flushes_per_step"), most=10**6) or 1,
        offload_optimizer=not unstated(raw.get("cpu_offload")) and truth(raw.get("cpu_offload")) is not False,
        offload_layers=whole(raw.get("cpu_offload_layers"), most=10**4) or 0, cuda_graph=text(raw.get("cuda_graph")),
        dispatcher=text(raw.get("moe_dispatcher")) or text(raw.get("moe_token_dispatcher_type"))
        or ("deepep" if "deepep" in text(raw.get("kernels")) else ""),
        expert_overlap=bool(truth(raw.get("moe_a2a_overlap"))),
        tensor_overlap=next((bool(truth(raw[key])) for key in _TENSOR_OVERLAP if key in raw), None),
    )  # fmt: skip


_TENSOR_OVERLAP: Final = ("tp_comm_overlap", "async_tp", "use_mc2")


def _degrees(raw: Mapping[str, Any], hardware: Mapping[str, Any], notes: list[str]) -> tuple[int, int, int, int]:
    """Return tensor, pipeline, context and data degrees; one of them may be missing."""
    tensor, pipeline = whole(raw.get("tp"), most=10**5), whole(raw.get("pp"), most=10**5) or 1
    context, data = whole(raw.get("cp"), most=10**5) or 1, whole(raw.get("dp"), most=10**7)
    cards = whole(hardware.get("count"), most=10**7)
    if tensor is None:
        known = pipeline * context * (data or 1)
        tensor = cards // known if cards and data and cards % known == 0 else 1
        if raw.get("tp") is not None:
            notes.append(f"tensor parallelism of {tensor} assumed")
    inner = tensor * pipeline * context
    if cards is None:
        if data is None:
            raise InputError("the row gives neither the number of cards nor the data-parallel degree.")
        cards = inner * data
    if data is None or inner * data != cards:
        if cards % inner:
            raise InputError(
                f"{cards} cards do not hold tensor {tensor} x pipeline {pipeline} x context {context} degrees."
            )
        if data is not None:
            notes.append(f"{cards // inner} replicas: {cards} cards over {inner}, where the row says {data}")
        data = cards // inner
    return tensor, pipeline, context, data


def _batches(raw: Mapping[str, Any], data: int, notes: list[str], accumulates: bool) -> tuple[int, int]:
    """Return sequences to a micro-batch and micro-batches to a step: of three figures, any two give the third."""
    size = whole(raw.get("mbs"), most=10**6) or whole(raw.get("local_batch"), most=10**6)
    count = whole(raw.get("ga"), most=10**7)
    batch = whole(raw.get("gbs"), most=10**9)
    each = max(round(batch / data), 1) if batch else None
    if size and count:
        if each and size * count != each:
            notes.append(f"{size} x {count} sequences to a replica, where the global batch says {each}")
            if each % size == 0:
                count = each // size
        return size, count
    if each is None:
        size, count = size or 1, count or 8
        notes.append(f"batch not stated: {count} micro-batches of {size} assumed")
        return size, count
    if size is None and count is not None:
        return max(each // count, 1), count
    if size is None:
        size = 1 if accumulates else each
        notes.append(f"micro-batch not stated: {size} sequence{'s' * (size > 1)} assumed")
    return size, max(each // size, 1)


def _zero(
    raw: Any, data: int, model_parallel: bool, notes: list[str]
) -> tuple[int, int | None, Literal["layer", "micro-batch", "step"] | None]:
    """Return the ZeRO stage, the cards that share a shard where those are fewer than the replicas, and how long
    gathered weights are kept where the row says so."""
    stage = whole(raw, least=0, most=3) if not isinstance(raw, str) or re.fullmatch(r"\s*\d\s*", raw) else None
    words = text(raw)
    if stage is None:
        named = re.search(r"zero[\s-]*([0-3])", words)
        if named:
            stage = 3 if "no reshard" in words else int(named[1])
        elif "shard_grad_op" in words:
            stage = 3
        elif "fsdp" in words or "fully sharded" in words or "hybrid_shard" in words or "full_shard" in words:
            stage = 3
        elif "dist" in words:
            stage = 1
        elif words in {"none", "ddp", "no", "false"} or words.startswith("none"):
            stage = 0
        else:
            stage = 1 if model_parallel or not words else 0
            if data > 1:
                notes.append(f"optimizer sharding not stated: ZeRO-{stage} assumed")
    over = re.search(r"(?:over|degree|group of|within)\s+(\d+)", words)
    group = int(over[1]) if over and 1 <= int(over[1]) < data and data % int(over[1]) == 0 else None
    kept: Literal["micro-batch", "step"] | None = None
    if "no reshard" in words:
        kept = "step"
    elif "shard_grad_op" in words:
        kept = "micro-batch"
    return stage, group, kept


_MODULES: Final[dict[str, RecomputeModule]] = {
    "core_attn": "attention", "core_attention": "attention", "attention": "attention", "attn": "attention",
    "layernorm": "norm", "norm": "norm", "rmsnorm": "norm", "moe_act": "expert-activation", "act": "activation",
    "mlp_act": "activation", "swiglu": "activation", "mla_up_proj": "up-projection", "mlp": "feed-forward",
    "moe": "experts", "experts": "experts", "shared_experts": "feed-forward",
}  # fmt: skip
_NONE: Final = re.compile(r"(none|no|off|false|disabled|without)\b|0$")
_FULL: Final = re.compile(
    r"\b(full|fully|uniform|block|(gradient|activation)s?[ _-]checkpointing|true|yes|on|remat|all layers)\b"
)


def named_modules(raw: Any) -> tuple[RecomputeModule, ...]:
    """Return the modules that selective recomputation names, in text or as a list.

    >>> named_modules("selective: layernorm,moe_act"), named_modules("selective")
    (('norm', 'expert-activation'), ())
    """
    words = " ".join(str(item) for item in raw) if isinstance(raw, list | tuple) else text(raw)
    named = re.findall(r"[a-z_]+", words.casefold().partition("selective")[2] or words.casefold())
    return tuple(dict.fromkeys(_MODULES[name] for name in named if name in _MODULES))


def _recompute(raw: Any, layers: int, notes: list[str]) -> tuple[Mode, tuple[RecomputeModule, ...], float]:
    """Return the mode, the modules that are named, and the share of layers recomputed."""
    words = text(raw)
    if isinstance(raw, list | tuple):
        return ("selective" if named_modules(raw) else "none"), named_modules(raw), 1.0
    if isinstance(raw, bool) or raw is None or isinstance(raw, int | float):
        return ("full", (), 1.0) if raw else ("none", (), 1.0)
    if _NONE.match(words) and not unstated(raw):
        return "none", (), 1.0
    if "selective" in words:
        return "selective", named_modules(raw), 1.0
    if ("maxtext" in words or "remat" in words) and "full" not in words and words != "remat":
        notes.append("remat policy not stated: all but the outputs of matmuls assumed recomputed")
        return "selective", ("norm", "activation"), 1.0
    if _FULL.search(words) and not unstated(raw):
        only = re.search(r"block\s+(\d+)", words)
        share = min(int(only[1]) / max(layers, 1), 1.0) if only else 1.0
        return "full", (), share
    notes.append("recomputation not stated: none assumed")
    return "none", (), 1.0


def _sequence_parallel(raw: Mapping[str, Any], tensor: int, notes: list[str]) -> bool:
    given = truth(raw.get("sp"))
    if given is None:
        if tensor > 1:
            notes.append("sequence parallelism assumed")
        return True
    return given


def _chunks(
    raw: Mapping[str, Any], layers: int, pipeline: int, virtual: int, notes: list[str]
) -> tuple[tuple[int, ...], bool]:
    """Return the layers of every virtual stage in order of depth, and whether the ends count as a layer each."""
    stages = pipeline * virtual
    layout = raw.get("pp_layout")
    if isinstance(layout, str):
        found = expand_layout(layout)
        if len(found) % pipeline == 0 and sum(found) == layers:
            return tuple(found), False
        notes.append("pipeline layout not understood: spread evenly")
    given = raw.get("layers_per_stage") or raw.get("num_layer_list")
    if isinstance(given, str):
        given = re.findall(r"\d+", given)
    if isinstance(given, list | tuple) and len(given) == stages:
        counts = [whole(item, least=0, most=10**5) for item in given]
        whole_counts = [count for count in counts if count is not None]
        if len(whole_counts) == stages and sum(whole_counts) in {layers, layers + 2}:
            if sum(whole_counts) == layers + 2:  # embedding and head are counted as layers
                whole_counts[0] -= 1
                whole_counts[-1] -= 1
            if min(whole_counts) >= 0:
                return tuple(whole_counts), False
        notes.append("layers to a stage do not add up: spread evenly")
    return even_chunks(layers, stages)


def even_chunks(layers: int, stages: int) -> tuple[tuple[int, ...], bool]:
    """Return layers spread over virtual stages, and whether the embedding and the loss count as a layer each.

    Where the layers do not divide but two more would, embedding and loss stand for a layer each, as Megatron's
    ``account_for_embedding_in_pipeline_split`` does; else the first and the last stages are the ones that hold less.

    >>> even_chunks(8, 4), even_chunks(6, 4), even_chunks(5, 3)
    (((2, 2, 2, 2), False), ((1, 2, 2, 1), True), ((2, 2, 1), False))
    """
    if layers % stages == 0:
        return (layers // stages,) * stages, False
    if (layers + 2) % stages == 0 and (layers + 2) // stages >= 1:
        each = (layers + 2) // stages
        counts = [each] * stages
        counts[0] -= 1
        counts[-1] -= 1
        return tuple(counts), True
    most = math.ceil(layers / stages)
    counts = [most] * stages
    spare, turn = most * stages - layers, 0
    order = [index for pair in zip(range(stages - 1, -1, -1), range(stages), strict=True) for index in pair]
    while spare > 0 and turn < len(order):
        place = order[turn]
        if counts[place] == most:
            counts[place] -= 1
            spare -= 1
        turn += 1
    return tuple(counts), False


def expand_layout(words: str) -> list[int]:
    """Return the transformer layers of each virtual stage of a layout such as ``Et*4|(t*4|)*14tmL``.

    ``E`` embedding, ``t`` layer, ``m`` prediction module, ``L`` loss, ``|`` next stage, ``*n`` repeats.

    >>> expand_layout("Et*4|(t*4|)*2tmL")
    [4, 4, 4, 1]
    """
    flat = words[:400].replace(" ", "").replace("'", "")
    for _ in range(8):
        grouped = re.sub(r"\(([^()]*)\)(?:\*(\d{1,4}))?", lambda hit: hit[1] * int(hit[2] or 1), flat)
        if grouped == flat or len(grouped) > 100_000:
            break
        flat = grouped
    flat = re.sub(r"([A-Za-z|])\*(\d{1,4})", lambda hit: hit[1] * int(hit[2]), flat)
    return [stage.count("t") for stage in flat.split("|")]


def plain_number(record: Mapping[str, Any], section: str, key: str) -> float | None:
    """Return a positive number of a section of a row."""
    read = number(part(record, section).get(key))
    return read if read else None
