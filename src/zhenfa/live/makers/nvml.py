"""NVML through the module ``pynvml`` (package nvidia-ml-py): the cards, their telemetry, and what is wrong with them.

Source: NVML API reference (docs.nvidia.com/deploy/nvml-api). A call that a card or driver does not support leaves its
field empty.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zhenfa.live.makers.maker import Heard
from zhenfa.live.makers.record import DeviceRecord, Health, pci_address, told

if TYPE_CHECKING:
    from zhenfa.live.makers.maker import Maker

Known = TypeVar("Known")
WAY: Final = "NVML"
PACKAGE: Final = "nvidia-ml-py"
SLOWED: Final[dict[str, str]] = {
    "nvmlClocksEventReasonHwSlowdown": "its clocks are halved or worse by the hardware (heat or power)",
    "nvmlClocksEventReasonHwThermalSlowdown": "its clocks are held down by heat",
    "nvmlClocksEventReasonSwThermalSlowdown": "its clocks are held down by the driver because of heat",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "its clocks are held down by the power supply",
}
"""Reasons for slow clocks that are faults. A power cap, an idle card and clocks set by a user are none."""


def library() -> Any | None:
    """Return the module ``pynvml``, None where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


@contextmanager
def opened() -> Iterator[Any | None]:
    """Open the library for a moment; None where it, the driver or a card is not there."""
    module = library()
    if module is None:
        yield None
        return
    try:
        module.nvmlInit()
    except module.NVMLError:
        yield None
        return
    try:
        yield module
    finally:
        module.nvmlShutdown()


def usable() -> bool:
    """Return whether the library and a driver are there."""
    with opened() as module:
        return module is not None


def cards(maker: Maker) -> list[DeviceRecord]:
    """Return the cards that NVML tells of, with telemetry and health."""
    with opened() as module:
        if module is None:
            return []
        driver = _ask(module, module.nvmlSystemGetDriverVersion)
        count = _ask(module, module.nvmlDeviceGetCount) or 0
        return [_card(module, maker, index, driver) for index in range(count)]


def _card(module: Any, maker: Maker, index: int, driver: str | None) -> DeviceRecord:
    handle = _ask(module, module.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        lost = "NVML cannot reach it: it has fallen off the bus, or another user holds it"
        return maker.record(index, maker.name, maker_from=WAY, health="failed", problems=(lost,))
    memory = _ask(module, module.nvmlDeviceGetMemoryInfo, handle)
    address = _ask(module, module.nvmlDeviceGetPciInfo, handle)
    power, limit = (
        _ask(module, call, handle) for call in (module.nvmlDeviceGetPowerUsage, module.nvmlDeviceGetEnforcedPowerLimit)
    )
    load = _ask(module, module.nvmlDeviceGetUtilizationRates, handle)
    health, problems = condition(module, handle)
    record = maker.record(
        index, _text(_ask(module, module.nvmlDeviceGetName, handle)) or f"{maker.name} card", maker_from=WAY,
        uuid=_text(_ask(module, module.nvmlDeviceGetUUID, handle)), driver=_text(driver),
        pci_address=None if address is None else pci_address(_text(address.busId)),
        memory_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
        temperature_c=_ask(module, module.nvmlDeviceGetTemperature, handle, module.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000, power_limit_w=None if limit is None else limit / 1000,
        utilisation=None if load is None else load.gpu / 100, health=health, problems=problems,
    )  # fmt: skip
    return told(record, WAY)


def condition(module: Any, handle: Any) -> tuple[Health | None, tuple[str, ...]]:
    """Return what is wrong with a card: uncorrected memory errors, rows of memory that were or could not be replaced,
    and clocks that are held down. None where the card tells of none of these.
    """
    uncorrected = _ask(
        module, module.nvmlDeviceGetTotalEccErrors, handle, module.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        module.NVML_VOLATILE_ECC,
    )  # fmt: skip
    rows = _ask(module, module.nvmlDeviceGetRemappedRows, handle)
    slow = _ask(module, module.nvmlDeviceGetCurrentClocksEventReasons, handle)
    failed, warned = [], []
    if uncorrected:
        failed.append(f"{uncorrected} uncorrected memory errors since the driver was loaded")
    if rows is not None:
        _, _, pending, failure = rows
        if failure:
            failed.append("a bad row of memory could not be replaced: the card must be")
        if pending:
            warned.append("a bad row of memory is replaced when the card is reset")
    if slow is not None:
        warned += [words for name, words in SLOWED.items() if slow & getattr(module, name)]
    if uncorrected is None and rows is None and slow is None:
        return None, ()
    health: Health = "failed" if failed else "warning" if warned else "ok"
    return health, (*failed, *warned)


FATAL_XIDS: Final[Mapping[int, str]] = {
    46: "the card stopped processing", 48: "an uncorrectable memory error",
    64: "a bad row of memory could not be recorded for replacement", 79: "the card has fallen off the bus",
    95: "an uncontained memory error",
}  # fmt: skip
"""Xid errors after which a card is not to be used. Sources: NVIDIA, GPU memory error management, user-visible
statistics (48, 64, 95; 63 and 94 are a row that was recorded and an error that was contained: warnings); NVIDIA Health
Validation, Xid checks (46, 48: critical, drain); NVIDIA, GPU operational events (79)."""


@dataclass(frozen=True)
class Fault:
    """An Xid error that the driver told of: the card's UUID and the code."""

    uuid: str | None
    xid: int

    def words(self) -> str:
        """Return it in words."""
        return f"Xid {self.xid} on {self.uuid or 'a card'}"

    def heard(self) -> Heard:
        """Return it as a run takes it: fatal or not, with what it means where it is fatal."""
        why = FATAL_XIDS.get(self.xid)
        return Heard(self.uuid, why is not None, f"Xid {self.xid}" + (f": {why}" if why else ""))


class XidWatch:
    """Listens for Xid errors of all cards from when it is made. Close it, or use it as a context manager."""

    def __init__(self) -> None:
        self._module = library()
        self._events: Any = None
        if self._module is None:
            return
        try:
            self._module.nvmlInit()
        except self._module.NVMLError:
            return
        self._events = _ask(self._module, self._module.nvmlEventSetCreate)
        for index in range(_ask(self._module, self._module.nvmlDeviceGetCount) or 0):
            handle = _ask(self._module, self._module.nvmlDeviceGetHandleByIndex, index)
            if handle is not None and self._events is not None:
                kind = self._module.nvmlEventTypeXidCriticalError
                _ask(self._module, self._module.nvmlDeviceRegisterEvents, handle, kind, self._events)

    @property
    def listening(self) -> bool:
        """Return whether there is a driver that can tell of errors."""
        return self._events is not None

    def faults(self, seconds: float = 0.0) -> list[Fault]:
        """Return the errors since the last call, waiting up to ``seconds`` for the first."""
        found: list[Fault] = []
        limit = round(seconds * 1000)
        module = self._module
        while module is not None and self._events is not None:
            event = _ask(module, module.nvmlEventSetWait_v2, self._events, 0 if found else limit)
            if event is None:
                break
            uuid = _ask(module, module.nvmlDeviceGetUUID, event.device)
            found.append(Fault(_text(uuid), int(event.eventData)))
        return found

    def heard(self) -> list[Heard]:
        """Return the errors since the last call, without waiting."""
        return [fault.heard() for fault in self.faults()]

    def close(self) -> None:
        """Stop listening."""
        if self._events is not None and self._module is not None:
            _ask(self._module, self._module.nvmlEventSetFree, self._events)
            self._events = None
            self._module.nvmlShutdown()

    def __enter__(self) -> XidWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ask(module: Any, call: Callable[..., Known], *arguments: Any) -> Known | None:
    try:
        return call(*arguments)
    except module.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
