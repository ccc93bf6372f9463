"""Kubernetes: indexed Jobs that train, Deployments and StatefulSets that serve, and their Services."""

from __future__ import annotations

import textwrap
from typing import Any, Final

from zhenfa.plan.emit.launch import maker_facts
from zhenfa.plan.emit.parts import SETTINGS, Part, Parts, parts_of, slug
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File, Target, Written
from zhenfa.spec import yaml
from zhenfa.spec.plan import Plan

Data = dict[str, Any]
PORT: Final = 8000
MASTER_PORT: Final = 29500
SCRIPTS: Final = "/zhenfa"
INDEX: Final = "batch.kubernetes.io/job-completion-index"
POD: Final = "apps.kubernetes.io/pod-index"


def write(subject: Subject) -> Written:
    """Return one file of manifests for each part, and one for what they share."""
    parts = parts_of(subject)
    name = slug(subject.plan.job if isinstance(subject.plan, Plan) else f"{subject.plan.model}-serve")
    notes = [*parts.notes]
    files = [File("scripts.yaml", _scripts(name, parts))] if parts.files else []
    if parts.training:
        files.append(File("network.yaml", _text([_service(name, name, headless=True)])))
    for part in parts.parts:
        kinds = _job(subject, name, parts, part) if parts.training else _served(subject, name, parts, part)
        files.append(File(f"{part.name}.yaml", _text(kinds)))
    if any(file.name == "router.sh" for file in parts.files):
        files.append(File("router.yaml", _text(_router(subject, name, parts))))
    return Written(tuple(files), (*notes, *_missing(subject, parts)))


def _text(kinds: list[Data]) -> str:
    return "---\n".join(yaml.write(kind) for kind in kinds)


def resource(subject: Subject, part: Part) -> str | None:
    """Return what the cluster calls the cards: as the user says, else the maker's device plug-in; None if unknown."""
    return subject.setting("resource", part.pool.name) or maker_facts(part.pool).get("kubernetes")


def _missing(subject: Subject, parts: Parts) -> list[str]:
    """Say what only the cluster's owner knows."""
    found = []
    for part in parts.parts:
        pool = part.pool.name
        if subject.setting("image", pool) is None:
            found.append(f"the image of pool {pool} is not set: --set image.{pool}=REGISTRY/IMAGE")
        if resource(subject, part) is None:
            found.append(f"it is not known under which resource Kubernetes counts cards of {part.pool.maker}, so none "
                         f"is asked for: --set resource.{pool}=MAKER/RESOURCE")  # fmt: skip
    return list(dict.fromkeys(found))


def _labels(name: str, part: str) -> Data:
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/component": part}


def _scripts(name: str, parts: Parts) -> str:
    """Return the scripts as a ConfigMap, readable."""
    head = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}-scripts}}\ndata:\n"
    return head + "".join(f"  {file.name}: |\n{textwrap.indent(file.text, '    ')}" for file in parts.files)


def _service(name: str, service: str, *, headless: bool = False, part: str | None = None, port: int = PORT) -> Data:
    selector = {"app.kubernetes.io/name": name} | ({"app.kubernetes.io/component": part} if part else {})
    spec: Data = {"selector": selector}
    if headless:
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    spec["ports"] = [{"name": "main", "port": port, "targetPort": port}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": service}, "spec": spec}


def _pod(subject: Subject, name: str, parts: Parts, part: Part, variables: list[Data], command: list[str]) -> Data:
    """Return the pod of one host of a part."""
    image = subject.setting("image", part.pool.name) or f"set-image-of-{slug(part.pool.name)}"
    counted = resource(subject, part)
    limits = {counted: str(part.devices)} if counted else {}
    container: Data = {"name": part.name, "image": image, "command": command, "env": variables}
    if limits:
        container["resources"] = {"limits": limits, "requests": dict(limits)}
    mounts = [{"name": "memory", "mountPath": "/dev/shm"}]  # noqa: S108
    volumes: list[Data] = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
    if parts.files:
        mounts.append({"name": "scripts", "mountPath": SCRIPTS})
        volumes.append({"name": "scripts", "configMap": {"name": f"{name}-scripts", "defaultMode": 0o755}})
    container["volumeMounts"] = mounts
    spec: Data = {"containers": [container], "volumes": volumes}
    selector = subject.setting("node-label", part.pool.name)
    if selector:
        label, _, value = selector.partition("=")
        spec["nodeSelector"] = {label: value}
    return {"metadata": {"labels": _labels(name, part.name)}, "spec": spec}


def _value(name: str, value: object) -> Data:
    return {"name": name, "value": str(value)}


def _from_label(name: str, label: str) -> Data:
    where = "annotations" if label == INDEX else "labels"
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.{where}['{label}']"}}}


def _starts(parts: Parts, part: Part, line: str) -> list[str]:
    """Return a command that sets what is worked out on the host, then runs the part's script."""
    own = part.command.removeprefix("./")
    place = f"{SCRIPTS}/{own}" if any(file.name == own for file in parts.files) else part.command
    return ["bash", "-c", f"{line}exec {place}"]


def _job(subject: Subject, name: str, parts: Parts, part: Part) -> list[Data]:
    """Return the indexed Job of one pool: one pod a host, all hosts of all pools one rendezvous."""
    first = f"{name}-{parts.parts[0].name}"
    variables = [
        _from_label("INDEX", INDEX), _value("FIRST", part.first_host), _value("NNODES", parts.hosts),
        _value("WORLD_SIZE", parts.world), _value("DEVICES_PER_NODE", part.devices),
        _value("MASTER_ADDR", f"{first}-0.{name}"), _value("MASTER_PORT", MASTER_PORT), _value("POOL", part.pool.name),
        _value("BACKEND", part.backend), _value("PRECISION", part.precision),
    ]  # fmt: skip
    command = _starts(parts, part, "export NODE_RANK=$((FIRST + INDEX)); ")
    pod = _pod(subject, name, parts, part, variables, command)
    pod["spec"] |= {"subdomain": name, "restartPolicy": "Never"}
    spec = {
        "completions": part.all_hosts, "parallelism": part.all_hosts, "completionMode": "Indexed", "backoffLimit": 0,
        "template": pod,
    }  # fmt: skip
    meta = {"name": f"{name}-{part.name}", "labels": _labels(name, part.name)}
    return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}]


def _served(subject: Subject, name: str, parts: Parts, part: Part) -> list[Data]:
    """Return the instances of one role, and the Service that finds them."""
    service = f"{name}-{part.name}"
    if part.hosts == 1:
        pod = _pod(subject, name, parts, part, [_value("PORT", PORT)], _starts(parts, part, ""))
        spec: Data = {"replicas": part.instances, "selector": {"matchLabels": _labels(name, part.name)},
                      "template": pod}  # fmt: skip
        meta = {"name": service, "labels": _labels(name, part.name)}
        kind = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
        return [kind, _service(name, service, part=part.name)]
    found: list[Data] = []
    for number in range(part.instances):
        own = f"{service}-{number}"
        variables = [
            _from_label("NODE_RANK", POD), _value("NNODES", part.hosts), _value("DEVICES_PER_NODE", part.devices),
            _value("MASTER_ADDR", f"{own}-0.{own}"), _value("MASTER_PORT", MASTER_PORT), _value("PORT", PORT),
        ]  # fmt: skip
        pod = _pod(subject, name, parts, part, variables, _starts(parts, part, ""))
        labels = _labels(name, part.name) | {"app.kubernetes.io/instance": own}
        pod["metadata"]["labels"] = labels
        spec = {
            "serviceName": own, "replicas": part.hosts, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels}, "template": pod,
        }  # fmt: skip
        meta = {"name": own, "labels": labels}
        service_ = _service(name, own, headless=True, part=part.name)
        service_["spec"]["selector"] = labels
        found += [{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta, "spec": spec}, service_]
    return found


def _router(subject: Subject, name: str, parts: Parts) -> list[Data]:
    """Return the router: it knows single-host instances by their Service and others by their first host."""
    addresses = {
        part.name: f"http://{name}-{part.name}:{PORT}" if part.hosts == 1 else " ".join(
            f"http://{name}-{part.name}-{number}-0.{name}-{part.name}-{number}:{PORT}"
            for number in range(part.instances)
        )
        for part in parts.parts
    }  # fmt: skip
    image = subject.setting("image", parts.parts[0].pool.name) or "set-image-of-router"
    variables = [_value("PREFILL", addresses["prefill"]), _value("DECODE", addresses["decode"]), _value("PORT", PORT)]
    container = {
        "name": "router", "image": image, "command": ["bash", f"{SCRIPTS}/router.sh"], "env": variables,
        "volumeMounts": [{"name": "scripts", "mountPath": SCRIPTS}],
    }  # fmt: skip
    volumes = [{"name": "scripts", "configMap": {"name": f"{name}-scripts", "defaultMode": 0o755}}]
    labels = _labels(name, "router")
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod}
    meta = {"name": f"{name}-router", "labels": labels}
    kind = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    return [kind, _service(name, f"{name}-router", part="router")]


TARGET: Final = Target(
    name="k8s", title="Kubernetes", tasks=("train", "serve"), version="1.28", write=write,
    source="device plug-ins of the makers: resource names in catalog/data/targets/makers.json",
    settings={
        **SETTINGS, "image": "container image", "resource": "extended resource that counts the cards",
        "node-label": "LABEL=VALUE that hosts must have",
    },
)  # fmt: skip
