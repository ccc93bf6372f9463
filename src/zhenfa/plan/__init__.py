"""Enumerate, bound, rank and explain layouts. The package can be called: ``zhenfa.plan(job, machine)``."""

import sys
from types import ModuleType
from typing import Any

from zhenfa.plan.answer import Answer, Ranked, answer_with, estimate_plan, find_plans
from zhenfa.plan.request import Request, make_request, read_request

__all__ = ["Answer", "Ranked", "Request", "answer_with", "estimate_plan", "find_plans", "make_request", "read_request"]


class _Callable(ModuleType):
    """This package, with a call (see :class:`zhenfa.plan.door.Planner`)."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from zhenfa.plan.door import planner

        return planner(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
