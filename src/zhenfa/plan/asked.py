"""What a command line says on top of a job file: ``NAME=VALUE`` texts for assumptions, limits and any other key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from zhenfa.errors import InputError
from zhenfa.spec import yaml
from zhenfa.spec.job import Job
from zhenfa.spec.serving import ServingWorkload

_BY_NAME = (("limits", "supply"), ("limits", "least_share"))


def read_job(path: str, settings: Sequence[str] = ()) -> Job:
    """Read a job file, with ``KEY=VALUE`` texts in the place of what it says: ``workload.global_batch=512``,
    ``precision=[fp8, bf16]``. Raises :class:`DocumentError` or :class:`InputError`."""
    return with_settings(Job.from_file(path), settings)


def with_settings(job: Job, texts: Sequence[str]) -> Job:
    """Return a job with other values of keys, named as in the file, dots between. Raises :class:`InputError`."""
    if not texts:
        return job
    said: dict[str, Any] = dict(job.to_data())
    for text in texts:
        name, value = _taken_apart(text, "--set", 'workload.global_batch=512 or limits.power="20 MW"')
        steps = tuple(name.split("."))
        if steps[:2] in _BY_NAME:
            steps = (*steps[:2], ".".join(steps[2:]))
        elif steps[0] == "assume":
            raise InputError(f"--set {name}: what makers have not published has an option of its own.",
                             hint=f"write --assume {name.partition('.')[2] or 'NAME'}={value}.")  # fmt: skip
        _put(said, steps, _value(value, name), name)
    return Job.from_data(said, source="--set")


def with_limits(job: Job, texts: Sequence[str]) -> Job:
    """Return a job with ``NAME=VALUE`` texts on top of its limits: ``power=20 MW``, ``makers=huawei,cambricon``,
    ``supply.nvidia-h20-sxm=512``. Raises :class:`InputError`."""
    if not texts:
        return job
    said = dict(job.to_data().get("limits", {}))
    for text in texts:
        name, value = _taken_apart(text, "--limit", 'power="20 MW"')
        field, dot, key = name.partition(".")
        _refuse_targets(job, name, value)
        given: object = int(value) if re.fullmatch(r"-?[0-9]+", value) else value
        if field in ("makers", "refuse"):
            given = [one.strip() for one in value.split(",")]
        said[field] = {**said.get(field, {}), key: given} if dot else given
    return Job.from_data({**job.to_data(), "limits": said}, source="--limit")


def read_assumptions(texts: Sequence[str]) -> dict[str, str | float]:
    """Read ``NAME=VALUE`` texts. Raises :class:`InputError`."""
    return dict(_taken_apart(text, "--assume", 'scalex-card.memory.capacity="64 GB"') for text in texts)


def _taken_apart(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (equals and name and value):
        raise InputError(f"{option} {text!r} is not NAME=VALUE.", hint=f"write {option} {example}.")
    return name, value


def _value(text: str, name: str) -> object:
    """Return the value that a file would hold where this text stood behind its key."""
    data, _ = yaml.read(f"value: {text}\n", f"--set {name}")
    if not isinstance(data, dict) or len(data) != 1:
        raise InputError(f"--set {name}: more than one value is given.", hint=f"write --set {name}=VALUE.")
    return data["value"]


def _put(said: dict[str, Any], steps: tuple[str, ...], value: object, name: str) -> None:
    """Put a value where its name says, in copies of the mappings above it."""
    for above in steps[:-1]:
        inside = said.get(above)
        if inside is not None and not isinstance(inside, dict):
            raise InputError(f"--set {name}: {above} is no mapping.", hint=f"write --set {above}=VALUE.")
        said[above] = dict(inside or {})
        said = said[above]
    said[steps[-1]] = value


def _refuse_targets(job: Job, name: str, value: str) -> None:
    """Say where targets stand, to whom looks for them among the limits."""
    wanted = name.lower().removesuffix("_target")
    if wanted in ("ttft", "tpot") and isinstance(job.workload, ServingWorkload):
        raise InputError(
            f"--limit {name}: what requests must keep to is a target of the workload.",
            hint=f'write --set workload.{wanted}_target="{value}".',
        )
