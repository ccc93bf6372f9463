"""Enumerate, bound, rank and explain layouts."""

from zhenfa.plan.answer import Answer, Ranked, estimate_plan, find_plans
from zhenfa.plan.request import Request, make_request, read_request

__all__ = ["Answer", "Ranked", "Request", "estimate_plan", "find_plans", "make_request", "read_request"]
