"""Turn a machine document into what the laws and the planner work on."""

from __future__ import annotations

from collections.abc import Mapping

from zhenfa.catalog import assume as assumptions
from zhenfa.catalog.draft import Draft, DraftPool, draft
from zhenfa.errors import InputError
from zhenfa.spec.fact import Fact, undisclosed, weakest
from zhenfa.spec.machine import CardPool, Claim, Formation, Machine
from zhenfa.spec.upkeep import zero_in


def resolve(machine: Machine, assume: Mapping[str, str | float] | None = None) -> Formation:
    """Look up every name in a machine and put the user's assumptions in.

    ``assume`` maps dotted names to values: ``<name>.<path>``, where the name is an accelerator's id or alias, a
    system's, a pool's or the machine's own, and the path leads to one value: ``scalex-card.peak.bf16``,
    ``scalex640.tiers.cabinet.latency``, ``cloudmatrix384.pue``, ``mixed-demo.network.bandwidth``. Such a value has
    the source "your --assume" and the confidence "assumed". One about something in the catalog that is not in this
    machine is checked and left out of :attr:`Formation.assumed`.

    A pool's tiers end with the first that joins all its cards. Power per card is the pool's own, else the system's
    divided by its count. PUE is the machine's own, else that of its systems where they agree.

    Raises :class:`zhenfa.errors.InputError`: an unknown name or path, a value that cannot be read, a pool whose cards
    no tier joins; :class:`zhenfa.errors.MissingFactError`: a system whose card nobody has named.
    """
    work = draft(machine)
    _check(work)
    assumed = {name: str(value) for name, value in (assume or {}).items() if assumptions.apply(work, name, value)}
    return Formation(
        name=machine.name,
        title=machine.title or machine.name,
        pools=tuple(_card_pool(pool) for pool in work.pools),
        network=work.network,
        pue=_pue(work),
        claims=_claims(machine, work),
        assumed=assumed,
        storage=work.storage,
        failures=work.failures,
        facility=work.facility,
        grid=machine.grid,
    )


def _check(work: Draft) -> None:
    """Refuse what no store, part or building is. Raises :class:`InputError`."""
    name = zero_in(work.storage)
    if name is not None:
        raise InputError(
            f"machine {work.name!r}: storage.{name} is zero, and such a store keeps nothing.",
            hint="leave it out where it is not known; one is assumed then.",
        )
    for where, failures in [("", work.failures), *((f"pool {pool.name!r}: ", pool.failures) for pool in work.pools)]:
        whole = (f"domains.{one.name}.mtbf" for one in failures.domains if zero_in(one, "mtbf") or not one.mtbf.known)
        bad = zero_in(failures) or next(whole, None)
        if bad is not None:
            raise InputError(
                f"machine {work.name!r}: {where}failures.{bad} is no mean time between failures.",
                hint="write a time such as 3300 d, or leave it out for the default.",
            )
    building = work.facility
    given = [building.fixed.known, building.proportional.known, building.design_power.known]
    if (any(given) and not all(given)) or building.design_power.value == 0:
        raise InputError(
            f"machine {work.name!r}: facility needs fixed, proportional and a design_power above zero together.",
            hint="give all three, or pue as one number.",
        )


def _card_pool(pool: DraftPool) -> CardPool:
    system = pool.system.id if pool.system else None
    return CardPool(
        pool.name,
        pool.accelerator,
        pool.count,
        pool.tiers,
        _power_per_card(pool),
        system,
        pool.failures,
        pool.learned,
        pool.hosts,
    )


def _power_per_card(pool: DraftPool) -> Fact:
    """Return the pool's own, else the system's power over its count, as sure as the system's figure at best."""
    if pool.power_per_card.known:
        return pool.power_per_card
    if pool.system is None:
        return undisclosed("power")
    power, count = pool.system.power, pool.system.count
    if power.value is None:
        return undisclosed("power", f"power of {pool.system.id}: {power.note}" if power.note else None)
    confidence = "derived" if weakest(power.tag, "derived") == "derived" else power.confidence
    note = f"{power.show()} of one {pool.system.id} / {count:,} cards"
    return power.model_copy(update={"value": power.value / count, "confidence": confidence, "note": note})


def _pue(work: Draft) -> Fact:
    if work.pue.known:
        return work.pue
    given = [(pool.name, pool.system.pue if pool.system else undisclosed("ratio")) for pool in work.pools]
    values = {fact.value for _, fact in given}
    if len(values) == 1:
        return given[0][1]
    each = ", ".join(f"{name} {'undisclosed' if fact.value is None else f'{fact.value:g}'}" for name, fact in given)
    return undisclosed("ratio", f"the pools differ: {each}")


def _claims(machine: Machine, work: Draft) -> tuple[Claim, ...]:
    claims = [*machine.claims]
    for pool in work.pools:
        claims += pool.system.claims if pool.system else ()
    return tuple({(claim.what, claim.claimed, claim.source): claim for claim in claims}.values())
