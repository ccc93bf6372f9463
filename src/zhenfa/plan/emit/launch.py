"""What starts the processes of one maker: how many on how many nodes, with which variables and collective library."""

from __future__ import annotations

from dataclasses import dataclass

from zhenfa.errors import CapabilityError, InputError
from zhenfa.plan.emit.devices import devices_per_card
from zhenfa.plan.emit.recorded import makers
from zhenfa.plan.emit.subject import Subject
from zhenfa.spec.machine import CardPool

CARDS_PER_NODE = "cards in one host, where the machine does not say"


@dataclass(frozen=True)
class Group:
    """The cards of one pool that work: ``cards`` of them, ``devices`` as a framework counts, first rank ``first``."""

    pool: CardPool
    cards: int
    devices: int
    first: int
    cards_per_node: int | None

    @property
    def devices_per_node(self) -> int | None:
        """Return the devices of one full host, None where it is not known."""
        return None if self.cards_per_node is None else self.cards_per_node * devices_per_card(self.pool)

    @property
    def nodes(self) -> int | None:
        """Return the hosts, the last one full or not; None where it is not known how many cards one holds."""
        return None if self.cards_per_node is None else -(-self.cards // self.cards_per_node)

    @property
    def visible(self) -> str | None:
        """Return the variable that shows a process its cards."""
        return maker_facts(self.pool).get("visible_devices")

    @property
    def backend(self) -> str:
        """Return the collective backend of torch."""
        software = self.pool.accelerator.software
        return software.collective_backend.rstrip("?") if software else ""


def maker_facts(pool: CardPool) -> dict[str, str]:
    """Return how clusters name a pool's cards; nothing where it is not recorded."""
    return makers().get(pool.maker, {})


def groups(subject: Subject) -> list[Group]:
    """Return the groups of a plan in the order of its ranks."""
    found: list[Group] = []
    first = 0
    for name, cards in subject.cards_by_pool().items():
        pool = subject.formation.pool(name)
        devices = cards * devices_per_card(pool)
        found.append(Group(pool, cards, devices, first, host_cards(subject, pool, cards)))
        first += devices
    return found


def full_host(subject: Subject, pool: CardPool) -> int | None:
    """Return how many cards one host holds, as the user or the machine says; None where nobody does."""
    given = subject.setting("cards-per-node", pool.name)
    if given is not None:
        if not given.isdigit() or int(given) < 1:
            raise InputError(f"--set cards-per-node={given}: {given!r} is not a whole number above zero.")
        return int(given)
    return pool.host


def host_cards(subject: Subject, pool: CardPool, cards: int) -> int | None:
    """Return how many of so many cards one host holds; None where nobody says."""
    host = full_host(subject, pool)
    return None if host is None else min(host, cards)


def need_nodes(group: Group) -> tuple[int, int]:
    """Return the hosts and the cards of each. Raises :class:`ZhenfaError` where that is not known or not whole."""
    name = group.pool.name
    if group.nodes is None or group.cards_per_node is None:
        raise InputError(
            f"it is not known how many cards of pool {name!r} ({group.pool.accelerator.id}) one host holds.",
            hint=f"say so with --set cards-per-node.{name}=8 (your number).",
        )
    if group.cards % group.cards_per_node:
        raise CapabilityError(
            f"{group.cards:,} cards of pool {name!r} do not fill hosts of {group.cards_per_node}.",
            hint="limits: {max_cards: ...} in the job gives a plan of whole hosts.",
        )
    return group.nodes, group.cards_per_node
