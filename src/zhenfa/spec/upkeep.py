"""What keeps a machine going: its checkpoint store, how often its parts fail, its building, and the recovery policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from zhenfa.spec import fact
from zhenfa.spec.document import Part
from zhenfa.spec.fact import Fact


class Storage(Part):
    """Where checkpoints are kept. ``write`` and ``read``: bytes/s of the whole store; ``per_card``: between the store
    and one card's host.
    """

    write: fact.Rate = fact.empty("rate")
    read: fact.Rate = fact.empty("rate")
    per_card: fact.Rate = fact.empty("rate")


class FailureDomain(Part):
    """Something that fails whole and takes its cards with it: a rack, a cooling unit, a power shelf, an optical switch.

    ``cards`` stand in one; ``mtbf`` is the mean time between failures of one, ``repair`` until its cards are back.
    """

    name: str
    cards: Annotated[int, Field(ge=1, le=10_000_000, strict=True)]
    mtbf: fact.Time
    repair: fact.Time = fact.empty("time")


class FailureTimes(Part):
    """Mean time between failures of one card; of one node's ``host``, of its switches and cables (``network``), of its
    unplanned ``maintenance``; and the ``domains`` that fail whole. What is empty takes the default rate.
    """

    card: fact.Time = fact.empty("time")
    host: fact.Time = fact.empty("time")
    network: fact.Time = fact.empty("time")
    maintenance: fact.Time = fact.empty("time")
    domains: tuple[FailureDomain, ...] = ()


class MachineFailures(FailureTimes):
    """Those of every pool that does not say its own, and of the ``software`` of one job."""

    software: fact.Time = fact.empty("time")


class Facility(Part):
    """The building at part load: PUE is ``1 + fixed / load + proportional``, the load being equipment power over
    ``design_power``. ``converters`` of the catalog stand between a node and the meter, the node's own first.
    """

    fixed: fact.Ratio = fact.empty("ratio")
    proportional: fact.Ratio = fact.empty("ratio")
    design_power: fact.Power = fact.empty("power")
    converters: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Return whether it says a PUE."""
        return self.design_power.known


class Grid(Part):
    """Carbon dioxide of an average kWh."""

    kg_per_kwh: Annotated[float, Field(ge=0, le=10)]


class Recovery(Part):
    """What is done about failures: how checkpoints are taken, how often, and how a job comes back.

    ``checkpoint``: ``asynchronous`` stops training for the copy to host memory, ``blocking`` for the write too.
    ``interval`` between checkpoints (empty: the best one); ``down``: from a failure until reloading starts;
    ``restart``: until it trains again, reading the checkpoint included (empty: from bytes, store and cards).
    ``elastic``: replicas go on without one that fails. ``refill``: until a standby node that was used is replaced.
    """

    checkpoint: Literal["asynchronous", "blocking"] = "asynchronous"
    interval: fact.Time = fact.empty("time")
    down: fact.Time = fact.empty("time")
    restart: fact.Time = fact.empty("time")
    elastic: bool = False
    refill: fact.Time = fact.empty("time")


def zero_in(part: Part, *names: str) -> str | None:
    """Return the first of these facts that is zero (of all facts, where none is named), or None."""
    for name in names or type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Fact) and value.value == 0:
            return name
    return None
