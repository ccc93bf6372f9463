"""What every card is told before it starts: plain data, the same for all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zhenfa.live.links import Link
from zhenfa.live.placement import CardPlace, Chunk
from zhenfa.live.recipe import Recipe
from zhenfa.live.sizes import Sizes
from zhenfa.spec.job import BridgeFormat
from zhenfa.spec.plan import Reshard


@dataclass(frozen=True)
class Orders:
    """The run as all cards see it.

    ``address`` and ``port`` are those of the driver's store and ``generation`` a name there that no other run uses;
    ``length`` counts tokens; ``threads`` is for torch in each card; ``timeout_s`` bounds every wait for another card;
    ``usual_norm`` is what gradients were like under plans before; ``activations`` and ``gradients`` cross the bridge
    between makers in these formats; with ``overlap`` gradients are summed while backward passes still run. ``reshard``
    and ``reduce_every`` are the plan's.
    """

    places: tuple[CardPlace, ...]
    links: dict[int, dict[int, Link]]
    sizes: Sizes
    schedule: str
    zero: int
    length: int
    global_batch: int
    seed: int
    recipe: Recipe
    data: str
    weights: str | None
    address: str
    port: int
    generation: str
    threads: int
    timeout_s: float
    usual_norm: float | None = None
    activations: BridgeFormat = "none"
    gradients: BridgeFormat = "none"
    overlap: bool = True
    reshard: Reshard | None = None
    reduce_every: str | None = None

    def to_data(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Orders:
        """Read plain data; keys of mappings may have become text on the way."""
        links = {
            int(one): {int(other): Link(**link) for other, link in row.items()} for one, row in data["links"].items()
        }
        places = tuple(
            CardPlace(
                **place
                | {
                    "chunks": tuple(Chunk(**chunk) for chunk in place["chunks"]),
                    "expert_ranks": tuple(place["expert_ranks"]),
                }
            )
            for place in data["places"]
        )
        sizes, recipe = Sizes(**data["sizes"]), Recipe(**data["recipe"])
        return cls(**data | {"places": places, "links": links, "sizes": sizes, "recipe": recipe})
