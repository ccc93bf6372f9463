"""The plan that a run goes by: the best that this runtime can take, or one of the user's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from zhenfa.errors import InfeasibleError
from zhenfa.plan import Answer, find_plans
from zhenfa.plan.request import Request

SHARED: Final = (0, 1, 2, 3)
"""ZeRO stages that the runtime's own decoder can take."""


def best_plans(request: Request) -> Answer:
    """Return the best plans of a job for this runtime.

    Gradients and weights are shared out (ZeRO-2, ZeRO-3) where nothing fits otherwise: their rows go through the host's
    memory, between cards of one maker too. Raises what :func:`~zhenfa.plan.find_plans` raises.
    """
    try:
        return find_plans(request)
    except InfeasibleError:
        traits = request.traits
        if traits is None or not traits.tensor_parallel:  # a module that stays whole
            raise
        try:
            return find_plans(replace(request, traits=traits.but(zero_stages=SHARED)))
        except InfeasibleError:
            pass
        raise
