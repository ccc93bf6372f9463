"""Makers of accelerators, each a plug-in: one small class in a file of its own, found through entry points.

Built-ins and strangers come through the same door, the entry-point group ``zhenfa.makers`` (see
:mod:`~zhenfa.live.makers.registry`). A plug-in is a subclass of :class:`Maker`; :mod:`zhenfa.testing` has the tests
that it must pass. Nothing here imports torch before a card is opened.
"""

from __future__ import annotations

from zhenfa.live.makers.capability import CAPABILITIES, Capability
from zhenfa.live.makers.maker import AcceleratorMaker, CudaMaker, Maker
from zhenfa.live.makers.record import DeviceRecord
from zhenfa.live.makers.registry import GROUP, hookimpl, maker, maker_for, makers, problems
from zhenfa.live.makers.timeouts import TimeOut, TimeOutInForce

__all__ = [
    "CAPABILITIES",
    "GROUP",
    "AcceleratorMaker",
    "Capability",
    "CudaMaker",
    "DeviceRecord",
    "Maker",
    "TimeOut",
    "TimeOutInForce",
    "hookimpl",
    "maker",
    "maker_for",
    "makers",
    "problems",
]
