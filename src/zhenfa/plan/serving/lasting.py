"""The most requests/s that are left when instances fail (``objective: throughput``).

Idle nodes let a large instance come back in minutes instead of hours, and small instances lose less with a node. What
failures leave follows from a plan's instances and its idle nodes, so that the search is asked for the most requests/s
with all cards and with a few nodes less, and the :data:`KEPT` best of each are ranked by what is left of them. No plan
leaves more than the best takes without failures, and none of one pool more than all of its cards that are not broken
would give, could they be shared out without a rest: the lesser bounds what may have been missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from zhenfa.catalog import operation
from zhenfa.estimate.failing import failing_on, node_rate, node_repair
from zhenfa.estimate.serving_failing import kept
from zhenfa.laws import redundancy
from zhenfa.plan.serving.best import Best
from zhenfa.plan.serving.fleet import Own
from zhenfa.plan.serving.parts import Part
from zhenfa.plan.serving.search import Space
from zhenfa.spec.serving import ServingPlan

KEPT: Final = 8
"""Choices of each search that are ranked by what failures leave of them."""

IDLE: Final = (0, 1, 2, 4, 8, 16)
"""Nodes of each pool that are left idle."""

Ask = Callable[[Space, Best], float]
Write = Callable[[tuple[Part, ...]], ServingPlan]


def lasting(space: Space, best: Best, ask: Ask, write: Write) -> float:
    """Offer what failures leave most of; return a score that none can exceed. ``ask`` searches a space for the most
    requests/s, ``write`` makes a choice a plan."""
    whole, most = space.cards, 0.0
    for cards in _rooms(space):
        found = Best(max(KEPT, best.keep), space.allows, best.last)  # failures leave no more than there is
        bound = ask(replace_cards(space, cards), found)
        if cards == whole:
            most = max(bound, found.first, best.last)
        for score, chosen in found.ranked():
            plan = write(chosen)
            left = kept(plan, space.request.formation, space.request.job.recovery, [one.rate for one in chosen])
            best.offer(chosen, (score[0] * (1.0 if left is None else left.share), *score[1:]))
    if len(whole) == 1 and not space.request.formation.emulated:
        most = min(most, _whole(space))
    return max(most, best.first)


def replace_cards(space: Space, cards: dict[str, int]) -> Space:
    """Return a space, its types as they are, of which fewer cards may be used."""
    return replace(space, cards=cards)


def _rooms(space: Space) -> Iterator[dict[str, int]]:
    each = int(operation.failures().cards_per_node)
    known = []
    for idle in IDLE if not space.request.formation.emulated else (0,):
        rooms = {
            name: count - idle * each if count >= 2 * idle * each else count for name, count in space.cards.items()
        }
        if rooms not in known:
            known.append(rooms)
            yield rooms


def _whole(space: Space) -> float:
    """Return requests/s that the cards of one pool that are up cannot exceed on average."""
    ((name, count),) = space.cards.items()
    found = failing_on({name: count}, space.request.formation)
    up = float(redundancy.availability(1.0 / max(float(node_rate(found, name)), 1e-30), node_repair()))
    return count * Own(space).per_card(name) * up
