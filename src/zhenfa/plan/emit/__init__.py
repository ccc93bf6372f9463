"""Files that another system takes, from a plan: one module of :mod:`zhenfa.plan.emit.targets` for each target."""

from zhenfa.plan.emit.door import emit
from zhenfa.plan.emit.registry import target, targets
from zhenfa.plan.emit.subject import Subject, read_subject
from zhenfa.plan.emit.target import Emission, File, Target

__all__ = ["Emission", "File", "Subject", "Target", "emit", "read_subject", "target", "targets"]
