"""Zhenfa: many cards, many makers, one machine.

The public names, each imported when it is first asked for::

    import zhenfa

    answer = zhenfa.plan("job.yaml", "cloudmatrix384")
    answer.best.estimate.figures.step_time_s.value
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as typing has it, without the time that importing typing takes
if TYPE_CHECKING:
    from zhenfa.errors import CapabilityError as CapabilityError
    from zhenfa.errors import DocumentError as DocumentError
    from zhenfa.errors import InfeasibleError as InfeasibleError
    from zhenfa.errors import InputError as InputError
    from zhenfa.errors import InternalError as InternalError
    from zhenfa.errors import MissingFactError as MissingFactError
    from zhenfa.errors import RunError as RunError
    from zhenfa.errors import UnitError as UnitError
    from zhenfa.errors import UnknownNameError as UnknownNameError
    from zhenfa.errors import ZhenfaError as ZhenfaError
    from zhenfa.plan.answer import Answer as Answer
    from zhenfa.plan.door import Planner
    from zhenfa.plan.serving.answer import ServingAnswer as ServingAnswer
    from zhenfa.spec.job import Job as Job
    from zhenfa.spec.machine import Machine as Machine
    from zhenfa.spec.model import Model as Model
    from zhenfa.spec.plan import Plan as Plan

    plan: Planner

__version__ = "0.1.0"

_ERRORS = (
    "CapabilityError", "DocumentError", "InfeasibleError", "InputError", "InternalError", "MissingFactError",
    "RunError", "UnitError", "UnknownNameError", "ZhenfaError",
)  # fmt: skip
_HOMES = {
    "Answer": "zhenfa.plan.answer", "Job": "zhenfa.spec.job", "Machine": "zhenfa.spec.machine",
    "Model": "zhenfa.spec.model", "Plan": "zhenfa.spec.plan", "ServingAnswer": "zhenfa.plan.serving.answer",
    **dict.fromkeys(_ERRORS, "zhenfa.errors"),
}  # fmt: skip

__all__ = ["__version__", "plan", *_HOMES]  # noqa: PLE0604 - names of the table

if not TYPE_CHECKING:  # a type checker reads the imports above

    def __getattr__(name: str) -> object:
        if name == "plan":
            return importlib.import_module("zhenfa.plan")
        if name not in _HOMES:
            raise AttributeError(f"module 'zhenfa' has no attribute {name!r}")
        found = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
