"""What a run trains: the runtime's own decoder, or a module of the user's or of transformers.

No code of a job runs unless the command line names its file, too.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.foreign.source import Kind
from zhenfa.live.model import sizes_of
from zhenfa.live.sizes import Sizes
from zhenfa.live.weights import sizes_with
from zhenfa.plan.request import code_of, find_model, is_path, model_path
from zhenfa.spec.huggingface import known_types
from zhenfa.spec.job import Job, Workload
from zhenfa.spec.model import Model


@dataclass(frozen=True)
class Subject:
    """What a job trains: its document, the sizes that cards build it from, and words for the run's notes.

    ``counted``: the document was counted from the module.
    """

    model: Model
    sizes: Sizes
    notes: tuple[str, ...] = ()
    counted: bool = False

    @property
    def whole(self) -> bool:
        """Return whether matrices and backward passes stay whole, for the module is not the runtime's own."""
        return self.sizes.source is not None


def subject_of(job: Job, folder: Path, code: str | None = None) -> Subject:
    """Return what a job trains; ``folder`` is that of the job, ``code`` the Python file that the user lets run.

    Raises :class:`CapabilityError` for a model that cannot be run, :class:`InputError` where the user has not named the
    Python file that the job does.
    """
    python = code_of(job.model)
    if python is None and code is not None:
        raise InputError(
            f"--code {code}: the job's model is {job.model!r}, no function of a Python file.", hint="leave --code out."
        )
    if python is not None:
        return _of_python(job, _allowed(job, folder, python[0], code), python[1])
    config = _config(job.model, folder)
    if config is None:
        model = find_model(job.model, folder)
        return Subject(model, _own(job, model))
    return _of_config(job, folder, config)


def _allowed(job: Job, folder: Path, file: str, code: str | None) -> Path:
    """Return the Python file that a job names, if the command line names it as well."""
    path = model_path(file, folder)
    if code is None:
        raise InputError(
            f"job {job.name!r} has {file!r} build its model, which is Python code and would run on its cards.",
            hint=f"read it; if you trust it, add --code {_typed(path)}.",
        )
    if not path.is_file():
        raise InputError(
            f"{file!r}, which job {job.name!r} names, is not there.", hint=f"it is looked for in {folder}."
        )
    if Path(code).resolve() != path:
        raise InputError(
            f"--code {code} is not the file that job {job.name!r} names, which is {_typed(path)}.",
            hint="name that one if you trust it.",
        )
    return path


def _typed(path: Path) -> str:
    """Return a path as one types it here."""
    here = Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _config(name: str, folder: Path) -> Path | None:
    """Return the Hugging Face ``config.json`` that a model's name leads to, if it does."""
    if not is_path(name):
        return None
    path = model_path(name, folder)
    path = path / "config.json" if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return path if isinstance(data, dict) and "schema" not in data and "model_type" in data else None


def _own(job: Job, model: Model) -> Sizes:
    """Return the sizes of a model that the runtime's own decoder computes. Raises :class:`CapabilityError`."""
    sizes = sizes_of(model)
    return sizes if job.execution.weights is None else sizes_with(Path(job.execution.weights), sizes)


def _of_config(job: Job, folder: Path, config: Path) -> Subject:
    wanted = job.execution.module
    if wanted != "transformers":
        try:
            model = find_model(job.model, folder)
            return Subject(model, _own(job, model))
        except CapabilityError as problem:
            if wanted == "zhenfa":
                way_out = (
                    "execution.module: auto has transformers build what the runtime's own decoder does not compute"
                )
                hint = f"{problem.hint.rstrip('.')}; {way_out}." if problem.hint else f"{way_out}."
                raise CapabilityError(problem.message, hint=hint) from None
    kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    if kind in known_types():
        published: Model | None = find_model(job.model, folder)
    else:
        published = None
    return _foreign(job, "transformers", config, "", published)


def _of_python(job: Job, path: Path, function: str) -> Subject:
    return _foreign(job, "python", path, function, None)


def _foreign(job: Job, kind: Kind, path: Path, function: str, published: Model | None) -> Subject:
    if not isinstance(job.workload, Workload):
        raise CapabilityError(
            f"job {job.name!r} serves, and a module of one's own is trained alone.", hint="write a training workload."
        )
    if importlib.util.find_spec("torch") is None:
        raise CapabilityError("torch is not installed.", hint="pip install 'zhenfa[live]'.")
    from zhenfa.live.foreign.look import look_through

    looked = look_through(kind, path, function, job.workload.sequence_length, job.execution.blocks)
    if job.execution.weights is not None:
        looked.check_weights(Path(job.execution.weights))
    notes = [f"the model is {looked.what}; its matrices and backward passes stay whole"]
    if looked.traced.drops:
        notes.append("dropout is off: the module runs in eval mode, so that every layout computes the same")
    model = published or looked.counted()
    held, told = looked.sizes.parameters, int(model.graph().parameters)
    if published is None:
        notes.append(f"the plan rests on a document counted from the module ({held:,} weights), not a published one")
    elif held != told:
        notes.append(f"the plan rests on a document of {told:,} weights; the module has {held:,}")
    return Subject(model, looked.sizes, tuple(notes), counted=published is None)
