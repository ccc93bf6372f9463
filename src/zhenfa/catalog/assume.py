"""Values that the user supplies for what makers have not published, by dotted name: ``scalex-card.memory.capacity``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, get_args

from zhenfa import units
from zhenfa.catalog import entries, facts
from zhenfa.catalog.draft import Draft, DraftPool, draft
from zhenfa.errors import InputError, UnknownNameError, near_misses
from zhenfa.spec.fact import Fact, read_fact
from zhenfa.spec.machine import Precision, System, Tier

SOURCE: Final = "your --assume"

Paths = dict[str, units.Dimension]

_UPKEEP: Final = ("storage", "failures", "facility")
"""Parts of a machine itself in which a value may be supplied."""

_NETWORK: Final[Paths] = {"network.bandwidth": "rate", "network.latency": "time"}


@dataclass(frozen=True)
class Place:
    """One thing that a name stands for: which facts it has, how to read and replace one.

    ``put`` returns whether the machine changed.
    """

    paths: Paths
    get: Callable[[str], Fact | None]
    put: Callable[[str, Fact], bool]


def apply(work: Draft, name: str, value: str | float) -> bool:
    """Put one assumption into the draft; return whether it was about something in this machine.

    Raises :class:`zhenfa.errors.InputError` when nothing in the catalog is called so, when it has no such value, or
    when the value cannot be read.
    """
    parts = name.split(".")
    splits = [(".".join(parts[:end]), ".".join(parts[end:])) for end in range(len(parts) - 1, 0, -1)]
    for find in (partial(_here, work), _elsewhere):
        for target, path in splits:
            places = find(target)
            if places:
                return _set(places, name, target, path, value)
    if not splits:
        raise InputError(
            f"the assumption {name!r} does not say which value it is about.",
            hint='write NAME.PATH=VALUE, such as scalex-card.memory.capacity="64 GB".',
        )
    known = {work.name, *(pool.name for pool in work.pools), *(pool.accelerator.id for pool in work.pools)}
    known |= {*entries.ACCELERATORS.names, *entries.SYSTEMS.names, *entries.machine_names()}
    raise UnknownNameError(
        "accelerator, system, pool or machine", parts[0], known,
        hint=f"the assumption {name!r} starts with the name of one of these, then a dot and a path.",
    )  # fmt: skip


def _set(places: list[Place], name: str, target: str, path: str, value: str | float) -> bool:
    fitting = [place for place in places if path in place.paths]
    if not fitting:
        raise _no_such_path(places, target, path)
    old = next((fact for place in fitting if (fact := place.get(path)) and fact.known), None)
    note = f"in place of {old.show()} ({old.confidence})" if old else None
    given = _read(name, value, fitting[0].paths[path], path).model_copy(update={"note": note})
    changes = [place.put(path, given) for place in fitting]
    return any(changes)


def _no_such_path(places: list[Place], target: str, path: str) -> InputError:
    known = list(dict.fromkeys(known for place in places for known in place.paths))
    near = near_misses(path, known)
    if not near:
        last = near_misses(path.rpartition(".")[2], [item.rpartition(".")[2] for item in known], limit=1)
        near = [item for item in known if item.rpartition(".")[2] in last][:3]
    guess = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
    short = dict.fromkeys(_short(item) for item in known)
    return InputError(f"{target!r} has no value {path!r}.{guess}", hint=f"known: {', '.join(short)}.")


def _short(path: str) -> str:
    """Write ``peak.bf16`` as ``peak.PRECISION``, so that a list of paths stays readable."""
    head, _, last = path.rpartition(".")
    return f"{head}.PRECISION" if last in get_args(Precision) else path


def _read(name: str, value: str | float, dimension: units.Dimension, path: str) -> Fact:
    try:
        given = read_fact(value, dimension)
    except InputError as problem:
        raise InputError(f"the assumption {name} is {value!r}: {problem.message}", hint=problem.hint) from None
    number = given.value
    if number is None:
        raise InputError(f"the assumption {name} has no value.", hint="leave it out, or give one.")
    if dimension in {"rate", "data", "speed", "power"} and number == 0:
        raise InputError(f"the assumption {name} is {value!r}: it must be more than zero.")
    if path.startswith("achievable.") and dimension == "ratio" and not 0 < number <= 1:
        raise InputError(f"the assumption {name} is {value!r}: a share of the peak lies above 0 and up to 1.")
    if path.startswith("failures.") and number == 0:
        raise InputError(f"the assumption {name} is {value!r}: it is the mean time between failures, more than zero.")
    if path.rpartition(".")[2] == "pue" and number < 1:
        raise InputError(f"the assumption {name} is {value!r}: a PUE is 1 or more.")
    return given.model_copy(update={"source": SOURCE, "confidence": "assumed"})


def _here(work: Draft, target: str) -> list[Place]:
    """Return what a name stands for in this machine: pools, accelerators, systems, the machine itself."""
    places: list[Place] = []
    for pool in work.pools:
        if _is(target, pool.name):
            places.append(_pool_place(pool))
        if _is(target, pool.accelerator.id, *pool.accelerator.aliases):
            places.append(_accelerator_place(pool))
        if pool.system is not None and _is(target, pool.system.id, *pool.system.aliases):
            places.append(_system_place(pool, pool.system))
    if _is(target, work.name):
        places.append(_machine_place(work))
    return places


def _elsewhere(target: str) -> list[Place]:
    """Return what a name stands for in the catalog at large, where putting a value changes nothing here."""
    paths: list[Paths] = []
    if entries.ACCELERATORS.find(target):
        paths.append(dict(facts.dimensions(entries.accelerator(target))))
    if entries.SYSTEMS.find(target):
        paths.append(_system_paths(entries.system(target)))
    if any(_is(target, name) for name in entries.machine_names()):
        paths.append(_machine_place(draft(entries.machine(target))).paths)
    return [Place(each, lambda path: None, lambda path, fact: False) for each in paths]


def _is(target: str, *names: str) -> bool:
    return target.casefold() in {name.casefold() for name in names}


def _tier_paths(tiers: tuple[Tier, ...]) -> Iterator[tuple[str, units.Dimension]]:
    for tier in tiers:
        yield from facts.dimensions(tier, f"tiers.{tier.name}.")


def _system_paths(system: System) -> Paths:
    return {"power": "power", "pue": "ratio", **dict(_tier_paths(system.tiers))}


def _accelerator_place(pool: DraftPool) -> Place:
    def put(path: str, fact: Fact) -> bool:
        pool.accelerator = facts.put(pool.accelerator, path, fact)
        return True

    return Place(dict(facts.dimensions(pool.accelerator)), lambda path: facts.take(pool.accelerator, path), put)


def _system_place(pool: DraftPool, system: System) -> Place:
    def put(path: str, fact: Fact) -> bool:
        if path.startswith("tiers."):
            return _put_tier(pool, path, fact)
        pool.system = facts.put(system if pool.system is None else pool.system, path, fact)
        return True

    def get(path: str) -> Fact | None:
        return _get_tier(pool, path) if path.startswith("tiers.") else facts.take(system, path)

    return Place(_system_paths(system), get, put)


def _pool_place(pool: DraftPool) -> Place:
    card = _accelerator_place(pool)
    own = dict(facts.dimensions(pool.failures, "failures."))
    paths: Paths = {"power_per_card": "power", **own, **dict(_tier_paths(pool.tiers)), **card.paths}

    def put(path: str, fact: Fact) -> bool:
        if path == "power_per_card":
            pool.power_per_card = fact
            return True
        if path in own:
            pool.failures = facts.put(pool.failures, path.removeprefix("failures."), fact)
            return True
        return _put_tier(pool, path, fact) if path.startswith("tiers.") else card.put(path, fact)

    def get(path: str) -> Fact | None:
        if path == "power_per_card":
            return pool.power_per_card
        if path in own:
            return facts.take(pool.failures, path.removeprefix("failures."))
        return _get_tier(pool, path) if path.startswith("tiers.") else card.get(path)

    return Place(paths, get, put)


def _machine_place(work: Draft) -> Place:
    """Return the machine itself: its PUE, its network, and all of its pool where it has only one."""
    pool = _pool_place(work.pools[0]) if len(work.pools) == 1 else None
    kept = {part: dict(facts.dimensions(getattr(work, part), f"{part}.")) for part in _UPKEEP}
    own: Paths = {"pue": "ratio", **(_NETWORK if work.network else {})}
    if work.network is not None and work.network.direct is not None:
        own = {**own, "network.direct.bandwidth": "rate", "network.direct.latency": "time"}
    for paths in kept.values():
        own |= paths

    def put(path: str, fact: Fact) -> bool:
        part, _, rest = path.partition(".")
        if path == "pue":
            work.pue = fact
        elif part in kept:
            setattr(work, part, facts.put(getattr(work, part), rest, fact))
        elif path in own and work.network is not None:
            work.network = facts.put(work.network, path.removeprefix("network."), fact)
        elif pool is not None:
            return pool.put(path, fact)
        return True

    def get(path: str) -> Fact | None:
        part, _, rest = path.partition(".")
        if path == "pue":
            return work.pue
        if part in kept:
            return facts.take(getattr(work, part), rest)
        if path in own and work.network is not None:
            return facts.take(work.network, path.removeprefix("network."))
        return pool.get(path) if pool else None

    return Place(own | (pool.paths if pool else {}), get, put)


def _put_tier(pool: DraftPool, path: str, fact: Fact) -> bool:
    """Replace one fact of a tier; a tier wider than the pool needs is not there to change."""
    _, name, field = _tier_step(path)
    changed = any(tier.name == name for tier in pool.tiers)
    pool.tiers = tuple(facts.put(tier, field, fact) if tier.name == name else tier for tier in pool.tiers)
    return changed


def _get_tier(pool: DraftPool, path: str) -> Fact | None:
    _, name, field = _tier_step(path)
    return next((facts.take(tier, field) for tier in pool.tiers if tier.name == name), None)


def _tier_step(path: str) -> tuple[str, str, str]:
    """Split ``tiers.NAME.FIELD``; a tier's name may hold dots."""
    head, _, field = path.rpartition(".")
    first, _, name = head.partition(".")
    return first, name, field
