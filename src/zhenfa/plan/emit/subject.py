"""What is emitted: a plan with its model and machine looked up, and what the user said of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zhenfa import catalog
from zhenfa.errors import CapabilityError, DocumentError, InputError, near_misses
from zhenfa.plan.asked import read_assumptions
from zhenfa.plan.request import Request, find_machine, find_model, make_request
from zhenfa.spec import yaml
from zhenfa.spec.document import read_file
from zhenfa.spec.job import Job, Workload
from zhenfa.spec.machine import CardPool, Formation, Machine
from zhenfa.spec.model import Model
from zhenfa.spec.plan import Plan
from zhenfa.spec.serving import ServingPlan


@dataclass(frozen=True)
class Subject:
    """A plan, its model and machine, the job if one was named, and settings such as ``image.POOL``."""

    plan: Plan | ServingPlan
    model: Model
    formation: Formation
    job: Job | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    assume: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def training(self) -> Plan:
        """Return the plan of a training job. Raises :class:`CapabilityError`."""
        if not isinstance(self.plan, Plan):
            raise CapabilityError("the plan serves, and this target trains.", hint="add --to vllm or --to sglang.")
        return self.plan

    @property
    def serving(self) -> ServingPlan:
        """Return the plan of a serving system. Raises :class:`CapabilityError`."""
        if not isinstance(self.plan, ServingPlan):
            raise CapabilityError(
                "the plan trains, and this target serves.", hint="add --to megatron, mindspeed or torchtitan."
            )
        return self.plan

    def cards_by_pool(self) -> dict[str, int]:
        """Return how many cards of each pool work."""
        if isinstance(self.plan, Plan):
            return self.plan.cards_by_pool()
        found: dict[str, int] = {}
        for part in (self.plan.prefill, self.plan.decode):
            if part is not None:
                found[part.pool] = found.get(part.pool, 0) + part.count * part.cards
        return found

    def pools(self) -> list[CardPool]:
        """Return the pools that work, in the order of the plan."""
        return [self.formation.pool(name) for name in self.cards_by_pool()]

    def makers(self) -> list[str]:
        """Return the makers of the cards that work."""
        return list(dict.fromkeys(pool.maker for pool in self.pools()))

    def setting(self, name: str, pool: str = "") -> str | None:
        """Return what the user set for a pool, else for all."""
        return self.settings.get(f"{name}.{pool}", self.settings.get(name))

    def with_plan(self, plan: Plan | ServingPlan) -> Subject:
        """Return the same with another plan."""
        return replace(self, plan=plan)

    def request(self) -> Request:
        """Return the training job as the planner takes it; what the job is not known to say is left at its default."""
        plan = self.training
        ways = tuple(dict.fromkeys(plan.precision_by_pool().values()))
        workload = Workload(
            sequence_length=plan.sequence_length, global_batch=plan.global_batch,
            precision=ways[0] if len(ways) == 1 else ways,
        )  # fmt: skip
        job = self.job or Job(name=plan.job, model=plan.model, machine=plan.machine, workload=workload)
        return Request(job, self.model, self.model.graph(), self.formation)


def read_subject(
    path: str, *, job: str | None = None, assume: Sequence[str] = (), settings: Sequence[str] = ()
) -> Subject:
    """Read a plan file and look up its model and machine, in the catalog or as the job file says.

    Raises :class:`DocumentError`, :class:`UnknownNameError` or :class:`InputError`.
    """
    plan = read_plan(path)
    assumed = read_assumptions(assume)
    given = read_settings(settings)
    if job is not None:
        return _from_job(plan, job, given, assumed)
    model = _found(plan.model, "model")
    machine = _found_machine(plan.machine)
    return _checked(Subject(plan, model, catalog.resolve(machine, assumed), None, given, assumed))


def read_plan(path: str) -> Plan | ServingPlan:
    """Read a plan of either kind. Raises :class:`DocumentError`."""
    data, positions = yaml.read(read_file(path), path)
    kinds: dict[str, type[Plan] | type[ServingPlan]] = {one.schema_name: one for one in (Plan, ServingPlan)}
    named = data.get("schema") if isinstance(data, dict) else None
    kind = kinds.get(str(named))
    if kind is None:
        said = f"its schema is {named!r}" if named else "it has no schema"
        raise DocumentError(
            f"this is no plan: {said}, not {' or '.join(map(repr, kinds))}.",
            source=path,
            hint="`zhenfa plan JOB --out plan.yaml` writes one.",
        )
    return kind.from_data(data, source=path, positions=positions)


def read_settings(texts: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` or ``NAME.POOL=VALUE`` texts. Raises :class:`InputError`."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.strip() and value.strip()):
            raise InputError(f"--set {text!r} is not NAME=VALUE.", hint="write --set cards-per-node=8.")
        found[name.strip()] = value.strip()
    return found


def _from_job(
    plan: Plan | ServingPlan, path: str, settings: Mapping[str, str], assume: Mapping[str, str | float]
) -> Subject:
    """Look names up where the job file says: its model and machine may be files of one's own."""
    job = Job.from_file(path)
    if isinstance(plan, Plan) and plan.job != job.name:
        raise InputError(
            f"the plan is of job {plan.job!r}, and {path} holds job {job.name!r}.",
            hint="pass the job that the plan was made from with --job.",
        )
    folder = Path(path).resolve().parent
    own = job.machine.name if isinstance(job.machine, Machine) else job.machine
    machine = None if own is not None and _names(job, plan.machine, folder) else plan.machine
    request = make_request(job, folder=folder, on=machine, assume=assume)
    if request.model.name != plan.model:
        raise InputError(f"the plan is of model {plan.model!r}, and the job's is {request.model.name!r}.")
    return _checked(Subject(plan, request.model, request.formation, job, settings, {**job.assume, **assume}))


def _names(job: Job, machine: str, folder: Path) -> bool:
    """Return whether the job's own machine is the one of that name."""
    if isinstance(job.machine, Machine):
        return job.machine.name == machine
    return job.machine == machine or find_machine(str(job.machine), folder).name == machine


def _found(name: str, kind: str) -> Model:
    try:
        return find_model(name)
    except InputError as problem:
        hint = f"pass the job that names the {kind}'s file with --job."
        raise type(problem)(problem.message, hint=hint) if isinstance(problem, DocumentError) else problem from None


def _found_machine(name: str) -> Machine:
    known = catalog.machines()
    if name in known:
        return catalog.machine(name)
    try:
        return find_machine(name)
    except InputError as problem:
        near = near_misses(name, known, 1)
        way_out = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            problem.message, hint=f"{way_out}a machine of one's own is found through the job: add --job JOB."
        ) from None


def _checked(subject: Subject) -> Subject:
    """Refuse a plan that names pools or layers which its machine or model does not have."""
    known = [pool.name for pool in subject.formation.pools]
    for name, cards in subject.cards_by_pool().items():
        if name not in known:
            near = near_misses(name, known, 1)
            raise InputError(
                f"the plan places work on pool {name!r}; {subject.formation.name} has {', '.join(known)}.",
                hint=f"did you mean {near[0]}?" if near else None,
            )
        has = subject.formation.pool(name).count
        if cards > has:
            raise InputError(f"the plan uses {cards:,} cards of pool {name!r}, which has {has:,}.")
    plan = subject.plan
    if isinstance(plan, Plan) and plan.layers != subject.model.layer_count:
        raise InputError(f"the plan splits {plan.layers} layers; {subject.model.name} has {subject.model.layer_count}.")
    return subject
