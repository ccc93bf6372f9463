"""The targets: every module of :mod:`zhenfa.plan.emit.targets` holds one as ``TARGET``."""

from __future__ import annotations

import importlib
import pkgutil

from zhenfa.errors import UnknownNameError
from zhenfa.plan.emit import targets as package
from zhenfa.plan.emit.target import Target


def targets() -> list[str]:
    """Return the names of the targets."""
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def target(name: str) -> Target:
    """Return a target by its name. Raises :class:`UnknownNameError`."""
    known = targets()
    if name not in known:
        raise UnknownNameError("target", name, known, hint=f"--to takes {', '.join(known)}.")
    found: Target = importlib.import_module(f"{package.__name__}.{name}").TARGET
    return found
