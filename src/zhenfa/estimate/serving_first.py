"""The time to the first token: what every request takes, its wait, and the wave that a run starts with.

Where prefill is apart, the prompts of one instance step together (:class:`Supply`): those of its data-parallel groups,
whose experts are shared, and those that fit into one chunk. Data parallelism does not make a prompt quicker: with
``slots`` prompts an instance takes ``full`` seconds for a step that takes ``one`` with a single prompt. At a load ``u``
of what the instances give at most, let each slot be taken with the chance ``busy`` whatever the others are. The other
slots lengthen a prompt's step to ``one + (full - one) busy``, and all slots are taken for ``chunks`` such steps by each
prompt, so that ``busy = u one / (full - u (full - one))``. A prompt waits for the end of a step that runs, and for a
slot (:func:`zhenfa.laws.queueing.stepped_wait`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zhenfa.laws import queueing
from zhenfa.laws.arrays import Array, plain

if TYPE_CHECKING:
    from zhenfa.estimate.serving_curves import Cut


@dataclass(frozen=True)
class FirstToken:
    """Times to the first token of a run, in seconds.

    ``own``: what every request takes at least; ``wait``: mean beyond that of a request that comes while others run;
    ``wave``: until the last of those is served that come at once when the run starts; ``share`` of all that they are.
    """

    own: Array
    wait: Array
    wave: Array = 0.0
    share: float = 0.0

    @property
    def mean(self) -> Any:
        """Return the mean."""
        later = np.maximum(np.true_divide(self.wave, 2.0), self.wait)
        return plain(self.own + (1.0 - self.share) * np.asarray(self.wait) + self.share * later)

    def within(self, level: float) -> Any:
        """Return the seconds within which a share ``level`` of the requests have their first token."""
        most = np.maximum(self.wave, self.wait)
        return plain(self.own + np.asarray(queueing.wait_quantile(level, most, self.share, self.wait)))


@dataclass(frozen=True)
class Supply:
    """What instances of prefill give. Of one: ``slots`` prompts at once, each for ``chunks`` steps, which take ``one``
    second with a single prompt and ``full`` with as many as there are slots."""

    cut: Cut
    slots: Any
    one: Any
    full: Any
    chunks: Any

    @property
    def rate(self) -> Any:
        """Return the prompts/s of one instance at most."""
        return self.slots / self.held(self.full)

    @property
    def prompt(self) -> Any:
        """Return the seconds of one prompt alone, without those of the other stages."""
        return self.one * self.chunks

    @property
    def seconds(self) -> Any:
        """Return the seconds of one prompt alone through all chunks and stages."""
        return self.through(self.one)

    def held(self, step: Any) -> Any:
        """Return the seconds for which a prompt keeps its slot, at so many seconds a step."""
        return self.chunks * step / self.cut.layout.pipeline

    def through(self, step: Any) -> Any:
        """Return the seconds of a prompt through all chunks and stages, at so many seconds a step."""
        stages = self.cut.layout.pipeline
        return step * (self.chunks + stages - 1) / stages

    def busy(self, load: Any) -> Any:
        """Return the share of the slots that are taken at a share of the rate."""
        return load * self.one / (self.full - load * (self.full - self.one))

    def beside(self, rate: Any, *, requests: float | None, away: Any) -> tuple[Any, Any]:
        """Return by how many seconds the prompts of others lengthen one's own steps, and the mean wait for them.

        Arguments: ``rate`` prompts/s of all instances; ``requests`` of a closed loop, or None where they come at
        random; ``away`` seconds that a request of the loop decodes.
        """
        count = self.cut.count
        load = np.minimum(rate / (count * self.rate), SATURATED)
        busy = self.busy(load)
        step = self.one + (self.full - self.one) * busy
        longer, held = self.through(step) - self.seconds, self.held(step)
        if requests is None:
            return longer, queueing.stepped_wait(
                load, busy, held, self.held(self.full), slots=self.slots, servers=count, steps=self.chunks
            )
        # nobody waits for himself; in a line that never ends, the ends of steps are its own
        ends = queueing.boundary_wait(busy, held, slots=self.slots, servers=count, steps=self.chunks)
        line = prompt_wait(rate, held, count * self.slots, requests=requests, away=away)
        return longer, np.maximum(line, ends * max(1.0 - 1.0 / requests, 0.0))


def wave(requests: Array, rate: Array, front: float) -> Array:
    """Return the seconds until ``requests`` that come at once are prefilled, ``rate`` of them per second.

    ``front`` seconds of the front end's one process per request bound the rate.
    """
    slowest = np.minimum(rate, 1.0 / front) if front > 0 else rate
    return 2.0 * queueing.wave_wait(requests, slowest)


def prompt_wait(rate: Array, service: Array, servers: Array, *, requests: float | None, away: Array) -> Array:
    """Return the mean wait of a prompt for the others before it.

    Arguments: ``rate`` prompts/s; ``service`` seconds of one and ``servers`` that are served side by side; ``requests``
    of a closed loop, or None where they come at random; ``away`` seconds that a request of the loop decodes.
    Prompts of one length take equally long: half the wait of services of random length.
    """
    if requests is None:
        busy = np.minimum(np.multiply(rate, service) / servers, SATURATED)
        return queueing.open_wait(busy * servers / service, service, servers=servers)
    return np.divide(queueing.closed_wait(requests, away, service, servers=servers), 2.0)


SATURATED = 0.98
"""Share of the time beyond which a queue is as long as the steady state lets it be."""
