"""SGLang: ``sglang.launch_server`` for every instance, and its router where prefill and decode are apart."""

from __future__ import annotations

from typing import Final

from zhenfa.errors import CapabilityError
from zhenfa.plan.emit import serving_words as share
from zhenfa.plan.emit.recorded import recorded
from zhenfa.plan.emit.serving_words import Role
from zhenfa.plan.emit.shell import comments, words
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Target, Written
from zhenfa.spec.serving import CacheFormat, Speculation

TITLE: Final = "SGLang"
CACHE: Final[dict[CacheFormat, str]] = {"bf16": "bf16", "fp16": "auto", "fp8": "fp8_e4m3"}
METHODS: Final = {"mtp": "NEXTN", "eagle": "EAGLE", "ngram": "NGRAM"}
BOOTSTRAP: Final = 8998


def write(subject: Subject) -> Written:
    """Return a script for each role, and one for the router."""
    makers = subject.makers()
    if len(makers) > 1:
        raise CapabilityError(
            f"SGLang names no transfer of a cache between {' and '.join(makers)}.",
            hint="--to vllm writes one through host memory; or plan prefill and decode on one maker.",
        )
    roles = share.roles(subject)
    files = [File(f"{role.name}.sh", _script(subject, role), executable=True) for role in roles]
    if len(roles) > 1:
        files.append(File("router.sh", _router(roles), executable=True))
    return Written(tuple(files), tuple(_notes(subject)))


def _script(subject: Subject, role: Role) -> str:
    body = ['exec python3 -m sglang.launch_server "${ARGS[@]}" --host 0.0.0.0 --port "${PORT:-30000}" "$@"']
    head = [f"Options of SGLang {recorded('sglang').version}. PORT is where it listens."]
    group = role.group
    if group.cards > 1 and role.hosts > 1:
        nodes = role.hosts
        head.append(f"Run it on the {nodes} hosts of each instance, with NODE_RANK=0, 1, ... and MASTER_ADDR that of "
                    "host 0.")  # fmt: skip
        body = [
            f'ARGS+=(--nnodes {nodes} --node-rank "${{NODE_RANK:-0}}")',
            'ARGS+=(--dist-init-addr "${MASTER_ADDR:-127.0.0.1}:${MASTER_PORT:-20000}")', *body,
        ]  # fmt: skip
    else:
        head.append("Run it once for each instance.")
    return share.script(subject, role, head, command(subject, role), body)


def command(subject: Subject, role: Role) -> list[str]:
    """Return the options of ``sglang.launch_server``."""
    plan, instance = subject.serving, role.instance
    weights = plan.weights_of(role.name)
    cast = weights == "fp8" and not subject.model.quantization and not subject.setting("model", role.name)
    groups = instance.data_parallel
    found = words(
        model_path=share.model_id(subject, role), tp_size=instance.stage_cards * role.devices,
        attn_dp_size=groups if groups > 1 else None,
        attn_cp_size=instance.context_parallel if instance.context_parallel > 1 else None,
        pp_size=instance.pipeline_parallel if instance.pipeline_parallel > 1 else None,
        ep_size=_experts(subject, role), dtype={"bf16": "bfloat16", "fp16": "float16"}.get(weights),
        quantization="fp8" if cast else None, kv_cache_dtype=_cache(plan.cache),
        max_running_requests=instance.max_batch, chunked_prefill_size=instance.chunk,
        enable_two_batch_overlap=instance.two_batch_overlap,
        cuda_graph_backend_decode="disabled" if plan.eager else None,
        cuda_graph_backend_prefill="disabled" if plan.eager else None,
    )  # fmt: skip
    if plan.speculation is not None:
        found += _speculation(subject, plan.speculation)
    if role.name != "serve":
        ascend = role.pool.maker.startswith("Huawei")
        found += words(
            disaggregation_mode=role.name, disaggregation_transfer_backend="ascend" if ascend else "mooncake",
            disaggregation_bootstrap_port=BOOTSTRAP if role.name == "prefill" else None,
        )  # fmt: skip
    return found


def _experts(subject: Subject, role: Role) -> int | None:
    spread = role.instance.expert_parallel
    return spread * role.devices if spread > 1 else None


def _cache(cache: CacheFormat) -> str:
    """Return the format of the cache. Raises :class:`CapabilityError` for one that SGLang does not have."""
    if cache not in CACHE:
        raise CapabilityError(f"SGLang holds no cache in {cache}.", hint="the nearest plan holds it in fp8.")
    return CACHE[cache]


def _speculation(subject: Subject, one: Speculation) -> list[str]:
    model = subject.setting("draft-model")
    if one.method == "eagle" and model is None:
        raise CapabilityError(
            "speculation by eagle needs a model that drafts, and the plan names none.",
            hint="name it with --set draft-model=FOLDER.",
        )
    if one.method == "ngram":
        return words(speculative_algorithm="NGRAM", speculative_num_draft_tokens=one.draft_tokens + 1)
    return words(
        speculative_algorithm=METHODS[one.method], speculative_num_steps=one.draft_tokens, speculative_eagle_topk=1,
        speculative_num_draft_tokens=one.draft_tokens + 1, speculative_draft_model_path=model,
    )  # fmt: skip


def _router(roles: list[Role]) -> str:
    """Return the script of the router, which pairs a prefill with a decode instance for each request."""
    counts = {role.name: role.instance.count for role in roles}
    head = [
        f"sglang-router {recorded('sglang_router').version}: pairs one of {counts['prefill']} prefill with one of "
        f"{counts['decode']} decode instances for every request.",
        "PREFILL and DECODE hold their addresses, with spaces between them: http://HOST:PORT.",
    ]
    lines = [
        "#!/usr/bin/env bash", comments(head), "set -euo pipefail", "",
        'read -r -a PREFILL <<<"${PREFILL:?addresses of the prefill instances}"',
        'read -r -a DECODE <<<"${DECODE:?addresses of the decode instances}"', "ARGS=(--pd-disaggregation)",
        f'for one in "${{PREFILL[@]}}"; do ARGS+=(--prefill "$one" "${{BOOTSTRAP_PORT:-{BOOTSTRAP}}}"); done',
        'for one in "${DECODE[@]}"; do ARGS+=(--decode "$one"); done',
        'exec python3 -m sglang_router.launch_router "${ARGS[@]}" --host 0.0.0.0 --port "${PORT:-8080}" "$@"',
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _notes(subject: Subject) -> list[str]:
    found = share.checkpoint_notes(subject)
    plan = subject.serving
    if not plan.engine.startswith("sglang"):
        found.append(f"the plan was made for {plan.engine}; its figures are those of that engine")
    maker = subject.makers()[0]
    if maker not in ("NVIDIA", "AMD", "Huawei Ascend", "Intel"):
        found.append(f"SGLang itself has no backend for {maker}: it is that maker's plug-in or fork that runs this")
    if plan.cache == "fp16":
        found.append("the cache follows the weights (--kv-cache-dtype auto)")
    return found


TARGET: Final = Target(
    name="sglang", title=TITLE, tasks=("serve",), version=recorded("sglang").version,
    source=recorded("sglang").source, write=write,
    settings=share.SETTINGS,
)  # fmt: skip
