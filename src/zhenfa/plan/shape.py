"""In which shape a card is had: the catalog's systems that carry it, and how many cards of them can be counted out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zhenfa import catalog
from zhenfa.errors import InputError, UnknownNameError
from zhenfa.plan.compare import sized
from zhenfa.plan.request import find_machine
from zhenfa.spec.machine import Machine, Tier


@dataclass(frozen=True)
class Shape:
    """Cards of one kind, joined as one machine joins them.

    ``step`` is how many are added at a time: those of the innermost tier, such as a node. ``whole`` is how many one
    system has as it is sold, ``most`` how many its outermost tier joins.
    """

    name: str
    machine: Machine
    step: int
    whole: int
    most: int

    def of(self, cards: int) -> Machine:
        """Return a machine of so many of these cards."""
        return sized(self.machine, cards)

    def systems(self, cards: int) -> int:
        """Return the whole systems that hold so many cards."""
        return -(-cards // self.whole)


def find_shape(name: str, *, shape: str | None = None, step: int | None = None, like: str | None = None) -> Shape:
    """Return the shape that a machine, a system or a card comes in.

    A card that several systems carry needs ``shape``, the name of one of them, unless ``like``, the system of the cards
    that are replaced, is one of them. ``step`` cards at a time instead of a node's.
    Raises :class:`UnknownNameError` for a name that is none of these, :class:`InputError` where the shape is not clear.
    """
    machine = _machine(name, shape, like)
    if len(machine.pools) > 1:
        pools = ", ".join(pool.name for pool in machine.pools)
        raise InputError(
            f"{name!r} has several pools ({pools}), and cards are replaced by cards of one kind.",
            hint="name a machine of one pool, or a card.",
        )
    pool = machine.pools[0]
    system = catalog.system(pool.system) if pool.system else None
    tiers: Sequence[Tier] = pool.tiers or (system.tiers if system else ())
    whole = (system.count if system else pool.count) or 1
    inner = tiers[0].size if tiers and tiers[0].size < whole and whole % tiers[0].size == 0 else whole
    most = max([whole, *(tier.size for tier in tiers)])
    return Shape(system.id if system else machine.name, machine, step or inner, whole, most)


def _machine(name: str, shape: str | None, like: str | None) -> Machine:
    try:
        machine = find_machine(name)
    except UnknownNameError as problem:
        try:
            card = catalog.accelerator(name).id
        except UnknownNameError:
            known = {*catalog.machine_names(), *catalog.systems(), *catalog.accelerators()}
            hint = "`zhenfa show machines`, `show systems` and `show accelerators` list them."
            raise UnknownNameError("machine, system or accelerator", name, known, hint=hint) from problem
        return find_machine(_carrier(card, shape, like))
    if shape is not None:
        raise InputError(
            f"{name!r} is a machine and has a shape, so that --shape {shape} has nothing to say.",
            hint="leave --shape out, or name a card with --to.",
        )
    return machine


def _carrier(card: str, shape: str | None, like: str | None) -> str:
    """Return the system that carries a card."""
    carriers = [one.id for one in catalog.systems().values() if one.accelerator == card]
    if shape is not None:
        wanted = catalog.system(shape).id
        if wanted not in carriers:
            listed = f"it comes in {', '.join(carriers)}" if carriers else "no system of the catalog carries it"
            raise InputError(f"{wanted} does not carry {card}: {listed}.", hint="name one that does with --shape.")
        return wanted
    if like in carriers:
        return like
    if len(carriers) == 1:
        return carriers[0]
    if carriers:
        raise InputError(
            f"{card} comes in several systems: {', '.join(carriers)}.",
            hint=f"say which is meant, such as --shape {carriers[0]}.",
        )
    raise InputError(
        f"no system of the catalog carries {card}, so that nothing says how its cards are joined.",
        hint="write a machine file with one pool of them and its tiers, and name that.",
    )
