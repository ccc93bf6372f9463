"""vLLM: ``vllm serve`` for every instance, and its router where prefill and decode are apart."""

from __future__ import annotations

import json
from typing import Final

from zhenfa.errors import CapabilityError
from zhenfa.estimate import serving_engine
from zhenfa.plan.emit import serving_words as share
from zhenfa.plan.emit.recorded import recorded
from zhenfa.plan.emit.serving_words import Role
from zhenfa.plan.emit.shell import array, comments, words
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Target, Written
from zhenfa.spec.serving import CacheFormat, Instance, ServingWorkload, Speculation

TITLE: Final = "vLLM"
CACHE: Final[dict[CacheFormat, str]] = {
    "bf16": "bfloat16", "fp16": "float16", "fp8": "fp8", "int8": "int8_per_token_head"
}  # fmt: skip
NIXL: Final = frozenset({"cuda", "xpu", "tpu", "cpu"})
"""Torch devices whose cache vLLM's NixlConnector moves (its ``_NIXL_SUPPORTED_DEVICE``)."""

ASCEND: Final = "MooncakeConnectorV1"
"""The connector of the plug-in vllm-ascend."""

OTHER_HOSTS: Final = "NODE_RANK=${NODE_RANK:-0} MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}"


def write(subject: Subject) -> Written:
    """Return a script for each role, and one for the router."""
    roles = share.roles(subject)
    files = [File(f"{role.name}.sh", _script(subject, role), executable=True) for role in roles]
    if len(roles) > 1:
        files.append(File("router.sh", _router(subject, roles), executable=True))
    return Written(tuple(files), tuple(_notes(subject, roles)))


def _script(subject: Subject, role: Role) -> str:
    """Return the script of one role."""
    body, head = _hosts(role)
    if role.name != "serve" and connector(subject) == "NixlConnector":
        body = [
            "export VLLM_NIXL_SIDE_CHANNEL_HOST=${VLLM_NIXL_SIDE_CHANNEL_HOST:-$(hostname -i)}",
            "export VLLM_NIXL_SIDE_CHANNEL_PORT=${VLLM_NIXL_SIDE_CHANNEL_PORT:-5600}", *body,
        ]  # fmt: skip
    head.insert(0, f"Options of vLLM {recorded('vllm').version}. PORT is where it listens.")
    return share.script(subject, role, head, command(subject, role), body)


def command(subject: Subject, role: Role) -> list[str]:
    """Return the options of ``vllm serve``, the model first."""
    plan, instance = subject.serving, role.instance
    weights = plan.weights_of(role.name)
    cast = weights == "fp8" and not subject.model.quantization and not subject.setting("model", role.name)
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(weights)
    found = [share.model_id(subject, role)]
    found += words(
        tensor_parallel_size=role.tensor, pipeline_parallel_size=_many(instance.pipeline_parallel),
        data_parallel_size=_many(instance.data_parallel),
        prefill_context_parallel_size=_many(instance.context_parallel),
        enable_expert_parallel=_spreads_experts(subject, instance),
        dtype=dtype, quantization="fp8" if cast else None, kv_cache_dtype=CACHE[plan.cache],
        max_num_seqs=share.batch_each(instance), max_num_batched_tokens=instance.chunk,
        max_model_len=_longest(subject), enforce_eager=plan.eager, enable_dbo=instance.two_batch_overlap,
    )  # fmt: skip
    mode = serving_engine.planned(plan.engine, role.pool.maker).graph_mode
    if mode is not None and not plan.eager and role.name != "prefill":
        found += ["--compilation-config", json.dumps({"cudagraph_mode": mode})]
    if plan.speculation is not None:
        found += ["--speculative-config", json.dumps(_speculation(subject, plan.speculation))]
    if role.name != "serve":
        found += ["--kv-transfer-config", json.dumps(_transfer(subject, role))]
    return found


def _many(degree: int) -> int | None:
    return degree if degree > 1 else None


def _spreads_experts(subject: Subject, instance: Instance) -> bool:
    """Return whether experts are spread over the cards. Raises :class:`CapabilityError` for anything in between."""
    spread = instance.expert_parallel
    if spread not in (1, instance.stage_cards):
        raise CapabilityError(
            f"vLLM spreads experts over all {instance.stage_cards} cards of a stage or over none, not over {spread}.",
            hint=f"the nearest plans have expert_parallel {instance.stage_cards} or 1.",
        )
    return spread > 1


def _longest(subject: Subject) -> int | None:
    """Return the tokens of the longest request, where the job says them."""
    workload = subject.job.workload if subject.job else None
    if not isinstance(workload, ServingWorkload):
        return None
    return int(workload.input_length) + int(workload.output_length) + 1


def _speculation(subject: Subject, one: Speculation) -> dict[str, object]:
    found: dict[str, object] = {"method": one.method, "num_speculative_tokens": one.draft_tokens}
    if one.method == "eagle":
        model = subject.setting("draft-model")
        if model is None:
            raise CapabilityError(
                "speculation by eagle needs a model that drafts, and the plan names none.",
                hint="name it with --set draft-model=FOLDER.",
            )
        found["model"] = model
    return found


def _transfer(subject: Subject, role: Role) -> dict[str, object]:
    """Return how the cache goes from prefill to decode: between makers, through host memory."""
    name = connector(subject)
    sends = role.name == "prefill"
    found: dict[str, object] = {"kv_connector": name, "kv_role": "kv_producer" if sends else "kv_consumer"}
    if name == ASCEND:
        each = {
            one.name: {"dp_size": one.instance.data_parallel, "tp_size": one.tensor} for one in share.roles(subject)
        }
        return found | {"kv_port": "30000" if sends else "30100", "kv_connector_extra_config": each}
    return found | ({"kv_buffer_device": "cpu"} if len(subject.makers()) > 1 else {})


def connector(subject: Subject) -> str:
    """Return the connector that reaches all cards. Raises :class:`CapabilityError` where none that is known does."""
    given = subject.setting("kv-connector")
    if given:
        return given
    devices = {pool.accelerator.software.torch_device if pool.accelerator.software else "" for pool in subject.pools()}
    if devices <= NIXL:
        return "NixlConnector"
    if devices == {"npu"}:
        return ASCEND
    raise CapabilityError(
        f"no connector of vLLM is known to move a cache between torch devices {' and '.join(sorted(devices))}: "
        f"NixlConnector reaches {', '.join(sorted(NIXL))}, {ASCEND} npu alone.",
        hint="name the one that your engines have with --set kv-connector=NAME.",
    )


def _hosts(role: Role) -> tuple[list[str], list[str]]:
    """Return how the hosts of one instance are started together, and how that is said."""
    serve = 'exec vllm serve "${ARGS[@]}" --port "${PORT:-8000}"'
    group = role.group
    if group.cards == 1 or role.hosts == 1:
        return [f'{serve} "$@"'], ["Run it once for each instance."]
    nodes, instance = role.hosts, role.instance
    words_ = f"Run it on the {nodes} hosts of each instance, with NODE_RANK=0, 1, ... and MASTER_ADDR that of host 0."
    unit = instance.tensor_parallel * instance.pipeline_parallel * instance.context_parallel
    here, rest = divmod(instance.cards // nodes, unit)
    if here and not rest:
        body = [
            OTHER_HOSTS, "HEADLESS=()", "[ \"$NODE_RANK\" = 0 ] || HEADLESS=(--headless)",
            f"{serve} --data-parallel-size-local {here} \\",
            f'  --data-parallel-start-rank "$((NODE_RANK * {here}))" --data-parallel-address "$MASTER_ADDR" \\',
            '  --data-parallel-rpc-port "${RPC_PORT:-13345}" "${HEADLESS[@]}" "$@"',
        ]  # fmt: skip
        return body, [words_]
    if instance.data_parallel > 1:
        raise CapabilityError(
            f"a data-parallel group of {unit} cards does not fit a host of {group.cards_per_node}, and vLLM places "
            f"whole groups on hosts.",
            hint="plan with tensor_parallel x pipeline_parallel of at most one host.",
        )
    body = [
        OTHER_HOSTS, "HEADLESS=()", "[ \"$NODE_RANK\" = 0 ] || HEADLESS=(--headless)",
        f'{serve} --nnodes {nodes} --node-rank "$NODE_RANK" \\',
        '  --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29501}" "${HEADLESS[@]}" "$@"',
    ]  # fmt: skip
    return body, [words_]


def _router(subject: Subject, roles: list[Role]) -> str:
    """Return the script of the router, which sends a request to a prefill and then to a decode instance."""
    router = recorded("vllm_router")
    counts = {role.name: role.instance.count for role in roles}
    head = [
        f"vllm-router {router.version}: sends every request to one of {counts['prefill']} prefill and then to one of "
        f"{counts['decode']} decode instances.",
        "PREFILL and DECODE hold their addresses, with spaces between them: http://HOST:PORT.",
    ]
    lines = [
        "#!/usr/bin/env bash", comments(head), "set -euo pipefail", "",
        'read -r -a PREFILL <<<"${PREFILL:?addresses of the prefill instances}"',
        'read -r -a DECODE <<<"${DECODE:?addresses of the decode instances}"',
        array("ARGS", ["--vllm-pd-disaggregation", "--kv-connector", _protocol(subject)]),
        'for one in "${PREFILL[@]}"; do ARGS+=(--prefill "$one"); done',
        'for one in "${DECODE[@]}"; do ARGS+=(--decode "$one"); done',
        'exec vllm-router "${ARGS[@]}" --host 0.0.0.0 --port "${PORT:-8080}" "$@"',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _protocol(subject: Subject) -> str:
    return "nixl" if connector(subject) == "NixlConnector" else "mooncake"


def _notes(subject: Subject, roles: list[Role]) -> list[str]:
    found = share.checkpoint_notes(subject)
    if not subject.serving.engine.startswith("vllm"):
        found.append(f"the plan was made for {subject.serving.engine}; its figures are those of that engine")
    for maker in subject.makers():
        if maker.startswith("Huawei"):
            found.append("on Ascend it is the plug-in vllm-ascend that runs this")
        elif maker not in ("NVIDIA", "AMD", "Intel"):
            found.append(f"vLLM itself has no backend for {maker}: it is that maker's plug-in or fork that runs this")
    if len(roles) > 1 and connector(subject) != "NixlConnector":
        found.append("vllm-router has not been seen with this connector; its plug-in brings a proxy of its own")
    if len(subject.makers()) > 1:
        found.append("between makers the cache goes through host memory (kv_buffer_device cpu); both sides must hold "
                     "it in the same format, blocks and heads")  # fmt: skip
    if subject.job is None:
        found.append("no --job was given, so the longest request is the model's own (--max-model-len)")
    return found


TARGET: Final = Target(
    name="vllm", title=TITLE, tasks=("serve",), version=recorded("vllm").version,
    source=recorded("vllm").source, write=write,
    settings={**share.SETTINGS, "kv-connector": "vLLM's connector between prefill and decode"},
)  # fmt: skip
