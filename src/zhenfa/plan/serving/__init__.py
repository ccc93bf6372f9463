"""Plan serving: enumerate, bound, rank and explain instances of prefill and decode under targets."""

from zhenfa.plan.serving.answer import ServingAnswer, ServingRanked, estimate_serving, find_serving
from zhenfa.plan.serving.front import FrontPoint

__all__ = ["FrontPoint", "ServingAnswer", "ServingRanked", "estimate_serving", "find_serving"]
