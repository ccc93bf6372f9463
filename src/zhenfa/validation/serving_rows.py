"""Reading a serving row: model, formats, layout, load and speculation, with a note for what the row leaves open."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from zhenfa import catalog
from zhenfa.errors import InputError
from zhenfa.estimate import serving_cards
from zhenfa.estimate.serving_engine import Engine
from zhenfa.laws.serving import accepted_tokens
from zhenfa.spec.graph import Graph
from zhenfa.spec.serving import CacheFormat, Instance, Speculation, WeightFormat
from zhenfa.validation.serving_machine import POOL, part_of

COMMAND: Final = re.compile(
    r"(?:vllm serve|trtllm-serve(?: serve)?|--model-path|--model|lmdeploy serve api_server)\s+([\w./-]+)"
)


@cache
def find_graph(name: str) -> tuple[str, Graph]:
    """Return the catalog's name and the operators of a model. Raises :class:`InputError` if there is none."""
    model = catalog.find_model(name)
    if model is None:
        raise InputError(f"the catalog has no model {name!r}.")
    return model.name, model.graph()


def model_name(row: Mapping[str, Any]) -> str:
    """Return the model that was run: the one in the row's command where it quotes one, else its model field."""
    quoted = COMMAND.search(str(row.get("notes") or ""))
    name = quoted[1] if quoted and not Path(quoted[1]).is_absolute() else row.get("model")
    if quoted and Path(quoted[1]).is_absolute():
        name = Path(quoted[1]).name
    if not isinstance(name, str) or not name.strip("- "):
        raise InputError("the row names no model.")
    return name.strip("- ")


def weights(row: Mapping[str, Any], graph: Graph, maker: str) -> tuple[WeightFormat, WeightFormat | None]:
    """Return the format of the weights, and that of attention where it differs."""
    precision = part_of(row, "precision")
    text = str(precision.get("weights") or "").lower()
    acts = str(precision.get("activations") or "").lower()
    name = model_name(row).lower()
    if "bf16 attn" in text:
        return "fp8", "bf16"
    if not text or "checkpoint" in text or "default" in text:
        text = name
    for mark, form in _FORMATS:
        if mark in text:
            if form == "int4" and ("a8" in acts or "a8" in text):
                return "w4a8", None
            return ("mxfp4" if form == "nvfp4" and "amd" in maker.lower() else form), None
    return serving_cards.stored_format(graph), None


_FORMATS: Final[tuple[tuple[str, WeightFormat], ...]] = (
    ("mxfp4", "mxfp4"), ("nvfp4", "nvfp4"), ("fp4", "nvfp4"), ("w4a8", "w4a8"), ("int4", "int4"), ("w4", "int4"),
    ("awq", "int4"), ("gptq", "int4"), ("fp8", "fp8"), ("w8", "int8"), ("int8", "int8"), ("bf16", "bf16"),
    ("fp16", "fp16"),
)  # fmt: skip


def cache_format(row: Mapping[str, Any], form: WeightFormat, engine: str) -> tuple[CacheFormat, str | None]:
    """Return the format of keys and values, and a note where it was assumed."""
    text = str(part_of(row, "precision").get("kv") or "").lower()
    command = str(row.get("notes") or "").lower()
    if "fp8" in text or "--kv-cache-dtype=fp8" in command or "--kv-cache-dtype fp8" in command:
        return "fp8", None
    if "int8" in text:
        return "int8", None
    if "16" in text:
        return "bf16", None
    if engine == "trtllm" and form not in {"bf16", "fp16"}:
        return "fp8", "cache assumed fp8, as the engine's guides set it"
    return "bf16", "cache assumed bf16, the engine's default"


@dataclass(frozen=True)
class Deployment:
    """The instances of a row."""

    prefill: Instance | None
    decode: Instance
    notes: tuple[str, ...] = ()

    @property
    def cards(self) -> int:
        """Return the cards of both."""
        apart = self.prefill.cards * self.prefill.count if self.prefill else 0
        return apart + self.decode.cards * self.decode.count


ATTENTION_DP: Final = "attention is data-parallel, as the engine's performance overview runs models with experts"


def spread_attention(row: Mapping[str, Any], layout: Deployment, *, routed: bool) -> Deployment:
    """Return the layout of TensorRT-LLM's offline runs of a model with experts: since 1.0 with ``enable_attention_dp``.

    Their tables give one number of cards; the pages that hold them give the option for all models with experts.
    """
    said, version = part_of(row, "parallelism"), re.search(r"(\d+)\.\d", str(row.get("engine") or ""))
    here = layout.decode
    stated = said.get("DP") is not None or "dp_attention" in said
    if row.get("kind") != "offline" or not routed or stated or layout.prefill or version is None or int(version[1]) < 1:
        return layout
    if here.tensor_parallel == 1 or here.data_parallel > 1:
        return layout
    wide = here.expert_parallel if here.expert_parallel > 1 else here.tensor_parallel
    spread = here.model_copy(
        update={"tensor_parallel": 1, "data_parallel": here.tensor_parallel, "expert_parallel": wide}
    )
    return Deployment(None, spread, (*layout.notes, ATTENTION_DP))


def deployment(row: Mapping[str, Any]) -> Deployment:
    """Return the instances of a row. Raises :class:`InputError` where its layout cannot be told."""
    layout, hardware = part_of(row, "parallelism"), part_of(row, "hardware")
    overlap = "tbo_on" in str(row.get("id") or "")
    if "nodes_cfg" in layout:
        return _from_nodes(layout["nodes_cfg"], int(hardware.get("count") or 0), int(hardware.get("node_size") or 8))
    parts = {name: layout[name] for name in ("prefill", "decode") if isinstance(layout.get(name), Mapping)}
    if "decode" in parts and "prefill" in parts:
        prefill = instance(parts["prefill"], 0, chunk=_chunk(row))
        decode = instance(parts["decode"], 0)
        return Deployment(prefill, decode)
    if parts:
        only = next(iter(parts.values()))
        return Deployment(None, instance(only, 0, two_batch=overlap))
    limit = option(row, "max-running-requests", "max-num-seqs", "max-batch-size")
    count, notes = int(hardware.get("count") or 0), tuple[str, ...]()
    if count > 1 and not any(name in layout for name in ("TP", "DP", "PP", "EP", "GPUs", "layout", "instances")):
        layout, notes = {**layout, "TP": count}, (f"tensor parallelism over its {count} cards assumed",)
    only = instance(layout, count, chunk=_chunk(row))
    only = only.model_copy(update={"max_batch": int(limit)}) if limit and limit >= 1 else only
    return Deployment(None, only, notes)


def _number(value: Any, default: int) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 else default


def _chunk(row: Mapping[str, Any]) -> int | None:
    command = str(row.get("notes") or "")
    label = re.search(r"label: --max-num-batched-tokens (\d+)|^chunk (\d+)", command)
    if label:
        return int(label[1] or label[2])
    said = option(row, "max-num-batched-tokens", "chunked-prefill-size", "max-num-tokens")
    return int(said) if said and said >= 1 else None


def option(row: Mapping[str, Any], *names: str) -> float | None:
    """Return the number that a row's quoted command gives an option of one of the names; the last one counts."""
    either = "|".join(re.escape(name).replace("\\-", "[-_]") for name in names)
    found = re.findall(rf"--(?:{either})[= ]+(\d+(?:\.\d+)?)", str(row.get("notes") or ""))
    return float(found[-1]) if found else None


def memory_share(row: Mapping[str, Any]) -> float | None:
    """Return the share of the device memory that a row's command lets the engine use."""
    said = option(row, "mem-fraction-static", "gpu-memory-utilization", "cache-max-entry-count")
    return said if said and 0.0 < said <= 1.0 else None


def instance(part: Mapping[str, Any], available: int, *, chunk: int | None = None, two_batch: bool = False) -> Instance:
    """Return one group of instances, from any of the ways in which rows write degrees.

    ``dp_attention`` turns a tensor group into a data-parallel one; an EP of ``on`` spreads experts over all cards of
    the instance; with DP inside a TP group (SGLang's attention data parallelism) the group's cards are TP.
    """
    named = re.fullmatch(r"TP(\d+)", str(part.get("layout") or ""))
    tensor = int(named[1]) if named else _number(part.get("TP"), 1)
    data, pipeline = _number(part.get("DP"), 1), _number(part.get("PP"), 1)
    count = _number(part.get("instances"), 1)
    expert = part.get("EP")
    cards = _number(part.get("GPUs_each"), _number(part.get("GPUs"), 0) // count)
    wide = _number(expert, 1)
    if part.get("dp_attention") is True:
        tensor, data = 1, max(cards // pipeline, tensor, 1)
    elif data > 1 and tensor > 1 and available and tensor * data * pipeline > available:
        tensor = max(tensor // data, 1)
    elif data == 1 and cards > tensor * pipeline:
        data = cards // (tensor * pipeline)
    elif data == 1 and wide > tensor:
        data = wide // tensor
    stage = tensor * data
    if isinstance(expert, str) or (
        data > 1 and not part.get("moe_TP") and (expert == 0 or (expert is None and not available))
    ):
        wide = stage
    if stage % wide:
        raise InputError(f"the row's expert parallelism of {wide} does not fit its {stage} cards.")
    return Instance(
        pool=POOL, count=count, tensor_parallel=tensor, data_parallel=data, pipeline_parallel=pipeline,
        expert_parallel=wide, chunk=chunk, two_batch_overlap=two_batch,
    )  # fmt: skip


def _from_nodes(nodes: Any, count: int, size: int) -> Deployment:
    """Return the instances of a list of nodes, each with the degrees of the whole it is part of."""
    found: dict[str, Instance] = {}
    for role in ("both", "prefill", "decode"):
        here = [one for one in nodes if one.get("role", "both") == role]
        if here:
            first, cards = here[0], len(here) * size
            tensor = _number(first.get("TP"), 1)
            data = max(cards // tensor, 1) if role != "both" else max((count or cards) // tensor, 1)
            wide = tensor * data if first.get("EP") == "on" else 1
            found[role] = Instance(
                pool=POOL, tensor_parallel=tensor, data_parallel=data, expert_parallel=wide,
                max_batch=_number(first.get("max_num_seqs"), 256) * data,
                chunk=_number(first.get("max_num_batched_tokens"), 2048) if role != "decode" else None,
            )  # fmt: skip
    if "both" in found:
        return Deployment(None, found["both"])
    if "decode" not in found:
        raise InputError("the row lists no node that decodes.")
    return Deployment(found.get("prefill"), found["decode"])


@dataclass(frozen=True)
class RowLoad:
    """How requests come in a row: one of them is given. ``running``: a batch held by the measurer, per instance.

    ``filled``: as many as the engine admits.
    """

    concurrency: float | None = None
    requests: float | None = None
    rate: float | None = None
    running: float | None = None
    filled: bool = False
    total: float | None = None
    notes: tuple[str, ...] = field(default=())


def load(row: Mapping[str, Any], plan: Deployment) -> RowLoad:
    """Return the load of a row from its ``batch`` field. Raises :class:`InputError` if it says nothing usable."""
    batch = row.get("batch")
    text = str(batch or "").lower().replace(",", "")
    decode = plan.decode
    if isinstance(batch, int | float) and not isinstance(batch, bool) and batch > 0:
        held = row.get("kind") == "decode" and row.get("output_len") is None
        return RowLoad(running=float(batch)) if held else RowLoad(concurrency=float(batch))
    if match := re.search(r"([\d.]+)\s*/\s*(gpu|die|npu|card)", text) or re.search(r"([\d.]+) req/(rank)", text):
        return RowLoad(running=float(match[1]) * decode.cards)
    if match := re.search(r"([\d.]+) req(?:uests)? @ ?([\d.]+) req/s", text):
        return RowLoad(rate=float(match[2]), requests=float(match[1]))
    if match := re.search(r"client concurrency ([\d.]+) ([\d.]+) prompts", text):
        return RowLoad(concurrency=min(float(match[1]), float(match[2])))
    if match := re.search(r"([\d.]+) requests", text):
        return RowLoad(requests=float(match[1]))
    if match := re.search(r"(?:concurrency|concurrent|users|clients|bs|batch)(?: size)?\W{0,3}([\d.]+)", text):
        return RowLoad(concurrency=float(match[1]))
    if match := re.search(r"([\d.]+) ?(?:users|clients|concurrent|in parallel|streams)", text):
        return RowLoad(concurrency=float(match[1]))
    if match := re.search(r"(?:qps|rps|rate)\W{0,3}([\d.]+)|([\d.]+) ?(?:qps|rps|req/s)", text):
        return RowLoad(rate=float(match[1] or match[2]))
    if re.fullmatch(r"[\d.]+", text) and float(text) > 0:
        return RowLoad(concurrency=float(text))
    if match := re.search(r"([\d.]+) tok/\w+ per step", text):
        return RowLoad(concurrency=1.0, notes=("prefill steps of a stated size",))
    if "max" in text:
        return RowLoad(filled=True)
    part = part_of(row, "parallelism").get("decode")
    if isinstance(part, Mapping) and isinstance(part.get("batch"), int):
        return RowLoad(running=float(part["batch"] * decode.data_parallel))
    raise InputError("the row does not say how many requests run at once.")


def run_length(row: Mapping[str, Any], asked: RowLoad) -> tuple[RowLoad, str | None]:
    """Return the load with the requests that a closed loop served in all, and a note where that was assumed.

    Published benchmarks send as many at once as may be in the system, and go on to a multiple of that number.
    """
    if asked.concurrency is None or asked.running is not None or row.get("kind") not in {"serving", "offline"}:
        return asked, None
    text = f"{row.get('notes') or ''} {row.get('batch') or ''}".lower().replace(",", "")
    stated = re.search(r"(?:num[-_ ]prompts?|request[-_ ]count|number of requests)\W{1,3}(\d+)|(\d+) prompts", text)
    if stated:
        return replace(asked, total=max(float(stated[1] or stated[2]), asked.concurrency)), None
    done, duration = (part_of(row, "metrics").get(name) for name in ("req_s", "duration_s"))
    if isinstance(done, int | float) and isinstance(duration, int | float) and done * duration > asked.concurrency:
        return replace(asked, total=done * duration), None
    times = RUNS_OF_INFERENCEX if _of_inferencex(row) else RUNS
    note = None if _of_inferencex(row) else f"{times:g} requests for each of the concurrent ones assumed"
    return replace(asked, total=times * asked.concurrency), note


RUNS_OF_INFERENCEX: Final = 10.0
"""Requests of a run over its concurrency, as InferenceX's benchmark scripts set them."""


def _of_inferencex(row: Mapping[str, Any]) -> bool:
    return "inferencex" in f"{row.get('source') or ''} {row.get('notes') or ''}".lower()


def polls(row: Mapping[str, Any], engine: str) -> float | None:
    """Return the steps between two looks at the queue that a row's command sets, or its benchmark's scripts do."""
    stated = option(row, "scheduler-recv-interval")
    if stated is not None or engine != "sglang" or not _of_inferencex(row):
        return stated
    batch = row.get("batch")
    few = isinstance(batch, int | float) and batch < POLLS_OF_INFERENCEX[0]
    return POLLS_OF_INFERENCEX[1] if few else POLLS_OF_INFERENCEX[2]


POLLS_OF_INFERENCEX: Final = (16, 10.0, 30.0)
"""Concurrent requests below which InferenceX's scripts set SGLang's scheduler-recv-interval, to what, and else."""

RUNS: Final = 5.0
"""The same where a row does not say. Assumed."""


def drafts(row: Mapping[str, Any], usual: tuple[int, ...]) -> tuple[int, ...]:
    """Return the draft lengths that a row leaves open: one that it states, else several; none without speculation."""
    said = row.get("spec_decode")
    if not isinstance(said, Mapping):
        return ()
    stated = _number(said.get("k"), _number(said.get("steps"), 0))
    length = _accepted(said)
    if stated or length is not None:
        return (stated or max(math.ceil((length or 1.0) - 1.0), usual[0]),)
    return usual


def _accepted(said: Mapping[str, Any]) -> float | None:
    length = said.get("accept_len")
    if isinstance(length, list | tuple) and length:
        return sum(map(float, length)) / len(length)
    return float(length) if isinstance(length, int | float) else None


def speculation(row: Mapping[str, Any], drafted: int, engine: Engine) -> tuple[Speculation, str | None]:
    """Return a row's speculation with ``drafted`` tokens, and a note where something was assumed."""
    said = part_of(row, "spec_decode")
    method: Literal["mtp", "ngram"] = "ngram" if "suffix" in str(said.get("method")).lower() else "mtp"
    length, rate = _accepted(said), said.get("accept", said.get("accept_rate"))
    note = None if _number(said.get("k"), _number(said.get("steps"), 0)) else f"{drafted} drafted tokens assumed"
    if length is not None:
        accepted = length
    elif isinstance(rate, int | float):
        accepted = 1.0 + drafted * float(rate) * (engine.found if method == "ngram" else 1.0)
    else:
        accepted = float(accepted_tokens(drafted, engine.acceptance))
        note = f"{drafted} drafted tokens, {accepted:.2f} accepted assumed"
    drafted = max(drafted, int(-(-(accepted - 1) // 1)), 1)
    return Speculation(method=method, draft_tokens=drafted, accepted=max(accepted, 1.0)), note
