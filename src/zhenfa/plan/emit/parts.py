"""A plan as parts that a cluster starts: the cards of a pool that train, or the instances of a serving role."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from zhenfa.errors import CapabilityError
from zhenfa.plan.emit.devices import devices_per_card
from zhenfa.plan.emit.launch import CARDS_PER_NODE, full_host, groups, maker_facts, need_nodes
from zhenfa.plan.emit.registry import target, targets
from zhenfa.plan.emit.serving_words import SETTINGS as SERVING_SETTINGS
from zhenfa.plan.emit.serving_words import roles
from zhenfa.plan.emit.subject import Subject
from zhenfa.plan.emit.target import File
from zhenfa.spec.machine import BETWEEN, CardPool, Precision
from zhenfa.spec.plan import Plan

RUN: Final = "what every host runs: a target such as megatron or vllm, whose scripts are written too, or a command"
SETTINGS: Final = {
    **SERVING_SETTINGS, "run": RUN, "kv-connector": "vLLM's connector between prefill and decode"
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Cards of one pool that are started alike.

    ``instances`` of ``cards`` cards each; one instance is ``hosts`` hosts, or shares a host with others, ``per_host``
    of them. ``first_host`` counts the hosts of the parts before it where all hosts are one job, as in training.
    """

    name: str
    pool: CardPool
    cards: int
    hosts: int
    command: str
    instances: int = 1
    per_host: int = 1
    first_host: int = 0
    precision: str = ""
    """In what they compute, where they train."""

    @property
    def all_hosts(self) -> int:
        """Return the hosts of all instances."""
        return -(-self.instances // self.per_host) * self.hosts

    @property
    def host_cards(self) -> int:
        """Return the cards of one host that work."""
        return self.cards * self.per_host // self.hosts

    @property
    def devices(self) -> int:
        """Return the devices of one instance on one host."""
        return self.cards * devices_per_card(self.pool) // self.hosts

    @property
    def host_devices(self) -> int:
        """Return the devices of one host that work."""
        return self.host_cards * devices_per_card(self.pool)

    @property
    def visible(self) -> str:
        """Return the variable that shows a process its cards; empty where it is not recorded."""
        return maker_facts(self.pool).get("visible_devices", "")

    @property
    def backend(self) -> str:
        """Return the collective backend of torch on these cards; empty where it is not known."""
        software = self.pool.accelerator.software
        return software.collective_backend.rstrip("?") if software else ""


@dataclass(frozen=True)
class Parts:
    """The parts of a plan, the scripts that they run as far as they are written too, and notes."""

    parts: tuple[Part, ...]
    files: tuple[File, ...]
    notes: tuple[str, ...]
    training: bool

    @property
    def hosts(self) -> int:
        """Return all hosts."""
        return sum(part.all_hosts for part in self.parts)

    @property
    def world(self) -> int:
        """Return all devices."""
        return sum(part.devices * part.hosts * part.instances for part in self.parts)


def parts_of(subject: Subject) -> Parts:
    """Return what a cluster starts. Raises :class:`InputError` where the cards of a host are not known."""
    files, commands, notes = _scripts(subject)
    if isinstance(subject.plan, Plan):
        found, first, ways = [], 0, subject.plan.precision_by_pool()
        for group in groups(subject):
            hosts, _ = need_nodes(group)
            name = group.pool.name
            found.append(
                Part(
                    slug(name), group.pool, group.cards, hosts, commands[name], first_host=first, precision=ways[name]
                )
            )  # fmt: skip
            first += hosts
        several = [*dict.fromkeys(part.pool.maker for part in found)]
        if len(several) > 1:
            notes = (*notes, _between(found, several))
        if len(set(ways.values())) > 1:
            notes = (*notes, _unlike(ways))
        return Parts(tuple(found), files, notes, True)
    return Parts(tuple(_serving(subject, commands)), files, notes, False)


def _serving(subject: Subject, commands: dict[str, str]) -> list[Part]:
    found = []
    for role in roles(subject):
        instance, command = role.instance, commands[role.name]
        host = full_host(subject, role.pool)
        if host is not None and instance.cards < host:
            if host % instance.cards:
                raise CapabilityError(f"instances of {instance.cards} cards do not fill a host of {host}.")
            fit = min(host // instance.cards, instance.count)
            found.append(Part(role.name, role.pool, instance.cards, 1, command, instance.count, fit))
        else:
            found.append(Part(role.name, role.pool, instance.cards, role.hosts, command, instance.count))
    return found


def _between(parts: Sequence[Part], makers: Sequence[str]) -> str:
    backends = ", ".join(f"{part.backend or 'not known'} on {part.name}" for part in parts)
    return (
        f"{' and '.join(makers)} work on one job, with the collective backends {backends}: what every host runs has to "
        "carry sums between makers through the hosts (gloo, or a library such as FlagCX)"
    )


def _unlike(ways: Mapping[str, Precision]) -> str:
    said = ", ".join(f"{one} on {pool}" for pool, one in ways.items())
    return (
        f"matmuls run in {said}: every host finds its own in PRECISION; what crosses between stages and the sums of "
        f"gradients are in {BETWEEN[next(iter(ways.values()))]} or wider on all"
    )


def _scripts(subject: Subject) -> tuple[tuple[File, ...], dict[str, str], tuple[str, ...]]:
    """Return scripts to write too, the command of every pool or role, and notes."""
    training = isinstance(subject.plan, Plan)
    keys = [pool.name for pool in subject.pools()] if training else [role.name for role in roles(subject)]
    chosen = subject.setting("run")
    if chosen is None and not training:
        chosen = next((name for name in ("vllm", "sglang") if subject.serving.engine.startswith(name)), None)
    if chosen in targets() and chosen not in ("ray", "slurm", "k8s"):
        return _of_target(subject, str(chosen), keys)
    commands = {key: subject.settings.get(f"run.{key}", chosen or f"./{'train' if training else key}.sh")
                for key in keys}  # fmt: skip
    named = chosen or any(f"run.{key}" in subject.settings for key in keys)
    way_out = "it is yours to write; --set run=megatron (or a command) says what else" if training else (
        "it is yours to write; --set run=vllm or run=sglang writes it"
    )  # fmt: skip
    first = commands[keys[0]]
    return (), commands, () if named else (f"every host runs {first}: {way_out}",)


def _of_target(
    subject: Subject, name: str, keys: Sequence[str]
) -> tuple[tuple[File, ...], dict[str, str], tuple[str, ...]]:
    """Return the scripts of another target. Raises what it raises for a plan that it cannot express."""
    from zhenfa.plan.emit.door import emit

    known = {key: value for key, value in subject.settings.items() if key.partition(".")[0] in target(name).settings}
    found = emit(Subject(subject.plan, subject.model, subject.formation, subject.job, known, subject.assume), name)
    first = found.files[0].name
    names = {one.name for one in found.files}
    commands = {key: f"./{key}.sh" if f"{key}.sh" in names else f"./{first}" for key in keys}
    return found.files, commands, found.notes


def slug(text: str) -> str:
    """Return a name that clusters take: small letters, digits and dashes."""
    found = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-")
    return found or "part"


__all__ = ["CARDS_PER_NODE", "Part", "Parts", "parts_of", "slug"]
