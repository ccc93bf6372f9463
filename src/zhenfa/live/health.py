"""What the makers tell of a run's cards between its steps: what is wrong with them, and what they draw.

A card whose maker says that it has failed is taken out before it fails in a step; what is a warning is told once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zhenfa.live.makers import DeviceRecord, maker
from zhenfa.live.makers.emulated import Emulated
from zhenfa.live.makers.maker import Ear
from zhenfa.live.placement import Card, CardPlace
from zhenfa.spec.result import Telemetry

Look = Callable[[str], Sequence[DeviceRecord]]
"""Given a maker's id, returns its cards of this host with telemetry and health."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with a card: ``fatal`` if it is not to be used any more."""

    place: CardPlace
    fatal: bool
    words: str


@dataclass
class _Seen:
    samples: int = 0
    watts: float = 0.0
    told: int = 0
    hottest: float | None = None


@dataclass
class HealthWatch:
    """Asks the makers of a run's cards at most every ``every_s`` seconds (0: never); ``look`` is how.

    ``clock`` returns seconds; it is asked and never waited for.
    """

    every_s: float
    look: Look = lambda provider: maker(provider).look()
    clock: Callable[[], float] = time.monotonic
    _asked: float | None = None
    _known: set[tuple[Card, str]] = field(default_factory=set)
    _seen: dict[Card, _Seen] = field(default_factory=dict)
    _ears: dict[str, Ear | None] = field(default_factory=dict)

    def findings(self, places: Sequence[CardPlace]) -> list[Finding]:
        """Return what is newly wrong with the cards of a plan, if it is time to ask; the fatal first."""
        now = self.clock()
        if not self.every_s or (self._asked is not None and now - self._asked < self.every_s):
            return []
        self._asked = now
        found: list[Finding] = []
        for provider in sorted({place.provider for place in places}):
            mine = [place for place in places if place.provider == provider]
            if not maker(provider).able("health") and not maker(provider).able("telemetry"):
                continue
            records = list(self.look(provider))
            for place in mine:
                record = next((one for one in records if _is(one, place)), None)
                if record is not None:
                    self._measure(place.card, record)
                    found += self._judge(place, record.health == "failed", record.problems)
            found += self._heard(provider, mine, records)
        return sorted(found, key=lambda one: not one.fatal)

    def telemetry(self) -> tuple[Telemetry, ...]:
        """Return what the cards told of themselves, those that told anything."""
        return tuple(
            Telemetry(
                pool=card[0], index=card[1], samples=one.samples, hottest_c=one.hottest,
                power_w=one.watts / one.told if one.told else None,
            )
            for card, one in sorted(self._seen.items())
            if one.told or one.hottest is not None
        )  # fmt: skip

    def close(self) -> None:
        """Stop listening to drivers."""
        for ear in self._ears.values():
            if ear is not None:
                ear.close()
        self._ears.clear()

    def _measure(self, card: Card, record: DeviceRecord) -> None:
        seen = self._seen.setdefault(card, _Seen())
        seen.samples += 1
        if record.power_w is not None:
            seen.watts, seen.told = seen.watts + record.power_w, seen.told + 1
        if record.temperature_c is not None:
            seen.hottest = max(record.temperature_c, seen.hottest or record.temperature_c)

    def _judge(self, place: CardPlace, fatal: bool, problems: Sequence[str]) -> list[Finding]:
        """Return the problems of a card that were not told before: the first of a card that failed is the reason."""
        new = [words for words in problems if (place.card, words) not in self._known]
        self._known |= {(place.card, words) for words in new}
        if fatal and (new or not problems):
            return [Finding(place, True, new[0] if new else "its maker says that it has failed")]
        return [Finding(place, False, words) for words in new]

    def _heard(
        self, provider: str, places: Sequence[CardPlace], records: Sequence[DeviceRecord]
    ) -> list[Finding]:  # fmt: skip
        """Return the faults since the last call, where the cards' driver tells of them as they come."""
        if provider not in self._ears:
            self._ears[provider] = maker(provider).listen()
        ear = self._ears[provider]
        found = []
        for fault in ear.heard() if ear is not None else ():
            record = next((one for one in records if one.uuid is not None and one.uuid == fault.uuid), None)
            place = next((one for one in places if record is not None and _is(record, one)), None)
            if place is not None:
                found.append(Finding(place, fault.fatal, fault.words))
        return found


def _is(record: DeviceRecord, place: CardPlace) -> bool:
    """Return whether a record is of the card at a place; emulated cards are told apart by their pool's name too."""
    same = (record.provider, record.index) == (place.provider, place.index)
    return same and (record.provider != Emulated.id or record.name == place.pool)
