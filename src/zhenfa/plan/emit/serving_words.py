"""What serving engines share: the model's name, the roles of instances, hosts of one instance, start scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zhenfa import __version__
from zhenfa.errors import CapabilityError, InputError
from zhenfa.plan.emit.devices import devices_per_card
from zhenfa.plan.emit.launch import CARDS_PER_NODE, Group, host_cards
from zhenfa.plan.emit.shape import heads_of
from zhenfa.plan.emit.shell import array, comments
from zhenfa.plan.emit.subject import Subject
from zhenfa.spec.machine import CardPool
from zhenfa.spec.serving import Instance

SETTINGS: Final = {
    "model": "name or folder of the checkpoint, instead of the published one",
    "draft-model": "the model that drafts, for speculation by eagle",
    "cards-per-node": CARDS_PER_NODE,
}


@dataclass(frozen=True)
class Role:
    """What instances of one kind do: ``serve`` both, or ``prefill`` or ``decode`` alone."""

    name: str
    instance: Instance
    pool: CardPool
    cards_per_node: int | None

    @property
    def devices(self) -> int:
        """Return the devices of one card."""
        return devices_per_card(self.pool)

    @property
    def tensor(self) -> int:
        """Return the devices that attention is cut over."""
        return self.instance.tensor_parallel * self.devices

    @property
    def group(self) -> Group:
        """Return the cards of one instance as a group."""
        cards = self.instance.cards
        return Group(self.pool, cards, cards * self.devices, 0, self.cards_per_node)

    @property
    def hosts(self) -> int:
        """Return the hosts of one instance. Raises :class:`InputError` where they are not known."""
        if self.cards_per_node is None:
            raise InputError(
                f"it is not known how many cards of pool {self.pool.name!r} one host holds, and an instance has "
                f"{self.instance.cards}.",
                hint=f"say so with --set cards-per-node.{self.pool.name}=8 (your number).",
            )
        if self.instance.cards % self.cards_per_node:
            raise CapabilityError(
                f"an instance of {self.instance.cards} cards does not fill hosts of {self.cards_per_node} "
                f"({self.pool.name}).",
                hint="plan with instances of whole hosts.",
            )
        return self.instance.cards // self.cards_per_node


def roles(subject: Subject) -> list[Role]:
    """Return the roles of a serving plan. Raises :class:`CapabilityError` for heads that its devices cannot share."""
    plan = subject.serving
    named = [("serve", plan.decode)] if plan.prefill is None else [("prefill", plan.prefill), ("decode", plan.decode)]
    found = []
    for name, instance in named:
        pool = subject.formation.pool(instance.pool)
        per_node = host_cards(subject, pool, instance.cards)
        role = Role(name, instance, pool, per_node)
        odd = [heads for heads in heads_of(subject.model) if heads % role.tensor]
        if odd:
            raise CapabilityError(f"{role.tensor} devices of {pool.name} cannot share {odd[0]} heads evenly.")
        found.append(role)
    return found


def model_id(subject: Subject, role: Role) -> str:
    """Return the name under which the engines of a role find the checkpoint (``model.prefill`` names one for prefill
    alone). Raises :class:`InputError` where it is not known."""
    given = subject.setting("model", role.name)
    if given:
        return given
    match = re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", subject.model.source or "")
    if match is None:
        raise InputError(
            f"it is not known where the checkpoint of {subject.model.name} lies.",
            hint="name it with --set model=FOLDER (or its name on a hub).",
        )
    return match[1]


def checkpoint_notes(subject: Subject) -> list[str]:
    """Return what the checkpoint has to be, where it is not what its maker publishes."""
    found = dict.fromkeys(note for role in roles(subject) for note in _checkpoint(subject, role))
    return list(found)


def _checkpoint(subject: Subject, role: Role) -> Iterator[str]:
    plan, weights = subject.serving, subject.serving.weights_of(role.name)
    published = subject.model.quantization.method if subject.model.quantization else "bf16"
    named = weights if plan.attention_weights is None else f"{weights}, attention {plan.attention_weights}"
    one = "model" if plan.prefill_weights is None else f"model.{role.name}"
    if subject.setting("model", role.name) or (weights == published and plan.attention_weights is None):
        return
    if weights == "fp8" and published == "bf16":
        yield "the published checkpoint is bf16: the engine casts it to fp8 as it loads"
    elif not {weights, published} <= {"bf16", "fp16"}:
        whose = "the plan holds" if plan.prefill_weights is None else f"{role.name} holds"
        yield (f"{whose} weights in {named}, the published checkpoint in {published}: name one that fits with "
               f"--set {one}=")  # fmt: skip


def batch_each(instance: Instance) -> int | None:
    """Return how many requests one data-parallel group runs at once."""
    return None if instance.max_batch is None else -(-instance.max_batch // instance.data_parallel)


def script(subject: Subject, role: Role, head: Sequence[str], command: Sequence[str], body: Sequence[str]) -> str:
    """Return the script that starts one host of one instance: ``command`` is a bash array, ``body`` ends it."""
    instance = role.instance
    counted = f"{instance.count} instance{'s' if instance.count > 1 else ''} of {instance.cards} cards"
    lines = [
        f"{subject.plan.model} on {subject.formation.name}: {role.name}, {counted} of pool {role.pool.name}. Written "
        f"by zhenfa {__version__}.",
        *head,
    ]
    return "\n".join(["#!/usr/bin/env bash", comments(lines), "set -euo pipefail", "", array("ARGS", command), "",
                      *body]) + "\n"  # fmt: skip
