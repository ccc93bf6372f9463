"""What the makers tell of a run's cards between its steps: what is wrong with them, and what they draw.

A card whose maker says that it has failed is taken out before it fails in a step; what is a warning is told once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from zhenfa.live.makers import DeviceRecord, maker
from zhenfa.live.makers.emulated import Emulated
from zhenfa.live.makers.maker import Ear
from zhenfa.live.placement import Card, CardPlace
from zhenfa.spec.result import Telemetry

Ask = Callable[[str | None, str], None]
"""Has a host (None: the driver's own) tell of the cards of a maker, given by its id; nobody waits for it."""
Answers = Callable[[], Sequence[tuple[str | None, str, Sequence[DeviceRecord]]]]
"""Returns what has come since the last call: the host, the maker's id, its cards there with telemetry and health."""
SeatOf = Callable[[Card], tuple[str | None, int]]
"""Given a card of a machine, returns its host and its number among its maker's cards there."""


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
    """Asks the makers of a run's cards, each on its own host, at most every ``every_s`` seconds (0: never).

    Drivers are listened to on the driver's own host alone. ``clock`` returns seconds.
    """

    every_s: float
    ask: Ask
    answers: Answers
    seat: SeatOf
    clock: Callable[[], float] = time.monotonic
    _asked: float | None = None
    _known: set[tuple[Card, str]] = field(default_factory=set)
    _seen: dict[Card, _Seen] = field(default_factory=dict)
    _ears: dict[str, Ear | None] = field(default_factory=dict)

    def findings(self, places: Sequence[CardPlace]) -> list[Finding]:
        """Ask if it is time to, and return what answers newly tell of the cards of a plan; the fatal first."""
        if not self.every_s:
            return []
        seats = {place.card: self.seat(place.card) for place in places}
        now = self.clock()
        if self._asked is None or now - self._asked >= self.every_s:
            self._asked = now
            for one in dict.fromkeys((seats[place.card][0], place.provider) for place in places):
                if maker(one[1]).able("health") or maker(one[1]).able("telemetry"):
                    self.ask(*one)
        found: list[Finding] = []
        for host, provider, records in self.answers():
            mine = [one for one in places if (seats[one.card][0], one.provider) == (host, provider)]
            told = {place.card: next((one for one in records if _is(one, place, seats)), None) for place in mine}
            for place in mine:
                if (record := told[place.card]) is not None:
                    self._measure(place.card, record)
                    found += self._judge(place, record.health == "failed", record.problems)
            if host is None:
                found += self._heard(provider, mine, told)
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
        self, provider: str, places: Sequence[CardPlace], told: Mapping[Card, DeviceRecord | None]
    ) -> list[Finding]:  # fmt: skip
        """Return the faults since the last call, where the cards' driver tells of them as they come."""
        if provider not in self._ears:
            self._ears[provider] = maker(provider).listen()
        ear = self._ears[provider]
        found = []
        for fault in ear.heard() if ear is not None else ():
            found += [
                Finding(place, fault.fatal, fault.words)
                for place in places
                if (record := told[place.card]) is not None and record.uuid is not None and record.uuid == fault.uuid
            ]
        return found


def _is(record: DeviceRecord, place: CardPlace, seats: Mapping[Card, tuple[str | None, int]]) -> bool:
    """Return whether a record is of the card at a place; emulated cards are known by their pool and number there."""
    if record.provider == Emulated.id:
        return (record.name, record.index) == place.card
    return record.index == seats[place.card][1]
