"""The class that a maker's plug-in derives from: what the runtime must know of a kind of card, and nothing else."""

from __future__ import annotations

import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from zhenfa.errors import CapabilityError
from zhenfa.live.makers.capability import CAPABILITIES, UNTRIED, Capability
from zhenfa.live.makers.hooks import hookimpl
from zhenfa.live.makers.record import DeviceRecord
from zhenfa.live.makers.timeouts import TimeOut, TimeOutInForce
from zhenfa.spec.machine import Precision

Known = TypeVar("Known")


@dataclass(frozen=True)
class Heard:
    """A fault that a driver told of: the card's UUID, whether the card is not to be used any more, and what it was."""

    uuid: str | None
    fatal: bool
    words: str


class Ear(Protocol):
    """What listens to a driver. ``heard``: the faults since the last call, without waiting."""

    def heard(self) -> Sequence[Heard]:
        """Return the faults since the last call."""

    def close(self) -> None:
        """Stop listening."""


class Maker(ABC):
    """One maker's cards, as torch reaches them. One process holds one card of one maker.

    * ``id`` and ``name``: the plug-in's id, unique, and the maker as people call it.
    * ``torch_device``: the device type that torch knows the cards by, None if that is not known. Several makers share
      ``cuda``.
    * ``module``: what must be imported for torch to see the cards; in the card's process alone.
    * ``collective``, ``collective_library``: the collective library between cards of the maker, as torch names it and
      as people do. Two makers may use one name for two libraries (``hccl``, MCCL): what tells them apart is ``id``.
    * ``visible_devices``: the variable that shows a process its one card.
    * ``precisions``: the number formats in which torch computes on the cards.
    * ``words``: parts of device names, in small letters, that no other maker's cards have.
    * ``pci_vendors``: ids of the maker on the PCI bus, such as ``0x10de``.
    * ``smi``: the maker's tool for its cards: the command, and what reads its output.
    * ``timeouts``: variables that set the time-outs of the collective library.
    * ``missing``: each capability (:data:`~zhenfa.live.makers.capability.CAPABILITIES`) that the plug-in does not
      have, with a sentence why.
    * ``tried``: on which silicon, and how, the plug-in has run; empty if nobody has.
    * ``sources``: where the facts of the class come from.
    """

    id: ClassVar[str]
    name: ClassVar[str]
    torch_device: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    collective: ClassVar[str | None] = None
    collective_library: ClassVar[str | None] = None
    visible_devices: ClassVar[str | None] = None
    precisions: ClassVar[frozenset[Precision]] = frozenset({"fp32"})
    words: ClassVar[tuple[str, ...]] = ()
    pci_vendors: ClassVar[tuple[str, ...]] = ()
    smi: ClassVar[tuple[str, ...] | None] = None
    timeouts: ClassVar[tuple[TimeOut, ...]] = ()
    missing: ClassVar[Mapping[str, str]] = {}
    tried: ClassVar[str] = ""
    sources: ClassVar[tuple[str, ...]] = ()

    @hookimpl
    def zhenfa_maker(self) -> Maker:
        """Answer the hook by which makers are collected: a plug-in is its own answer."""
        return self

    # What the plug-in is.

    def capabilities(self) -> tuple[Capability, ...]:
        """Return every capability with its answer, in the order of the table."""
        return tuple(Capability(name, name not in self.missing, self.missing.get(name, "")) for name in CAPABILITIES)

    def able(self, name: str) -> bool:
        """Return whether the plug-in has a capability."""
        return name not in self.missing

    @property
    def mark(self) -> str:
        """Return on which silicon the plug-in has run, or that nobody has run it."""
        return self.tried or UNTRIED

    @property
    def installed(self) -> bool:
        """Return whether the maker's module, if torch needs one, is installed. Imports nothing of it."""
        try:
            return self.module is None or importlib.util.find_spec(self.module.partition(".")[0]) is not None
        except (ImportError, ValueError):
            return False

    def knows(self, name: str) -> bool:
        """Return whether a device's name has one of the maker's words."""
        folded = name.casefold()
        return any(word in folded for word in self.words)

    def timeouts_in_force(self, environment: Mapping[str, str]) -> tuple[TimeOutInForce, ...]:
        """Return the time-outs of the collective library as they stand in an environment."""
        return tuple(one.in_force(environment) for one in self.timeouts)

    # What the card's process does.

    def environment(self, index: int) -> dict[str, str]:
        """Return the variables that the card's process needs before torch is used."""
        shown = {} if self.visible_devices is None else {self.visible_devices: self.shown_as(index)}
        return {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "GLOO_SOCKET_IFNAME": "lo"} | shown

    def shown_as(self, index: int) -> str:
        """Return how a card is named in ``visible_devices``: where this process is shown some cards alone, as a
        scheduler does, by the name that it has there.

        Raises :class:`CapabilityError` if the process is shown fewer cards.
        """
        given = os.environ.get(self.visible_devices or "", "").strip()
        listed = [one.strip() for one in given.split(",") if one.strip()]
        if not listed:
            return str(index)
        if index >= len(listed):
            raise CapabilityError(
                f"card {index} of {self.name} is wanted, and {self.visible_devices}={given} shows {len(listed)}.",
                hint=f"unset {self.visible_devices}, or use a machine of {len(listed)} cards.",
            )
        return listed[index]

    def open(self) -> Any:
        """Import what the maker needs and return the ``torch.device``. Called once, in the card's process.

        Raises :class:`CapabilityError` if torch sees no card of the maker.
        """
        import torch

        self.load()
        return torch.device(str(self.torch_device))

    def load(self) -> None:
        """Import the maker's module, in the card's process alone.

        Raises :class:`CapabilityError` if it is not installed or cannot be imported.
        """
        if self.torch_device is None:
            raise CapabilityError(f"how torch reaches cards of {self.name} is not known. {self.missing['torch']}")
        if self.module is None:
            return
        try:
            importlib.import_module(self.module)
        except ImportError as problem:
            words = str(problem).strip().splitlines()[:1] or [type(problem).__name__]
            raise CapabilityError(
                f"cards of {self.name} need the module {self.module}, which cannot be imported: {words[0]}.",
                hint=f"install {self.module} as {self.name} publishes it, for this version of torch.",
            ) from None

    def to_host(self, tensor: Any) -> Any:
        """Return the tensor in host memory, contiguous; the tensor itself if it is there already."""
        return tensor.detach().to("cpu").contiguous()

    @abstractmethod
    def synchronize(self) -> None:
        """Return when the card has finished what it was given."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Return the bytes in use by this process at their peak, and the card's capacity, 0 where torch does not
        tell.
        """

    # What is on the host.

    def read_smi(self, text: str) -> list[DeviceRecord]:
        """Return the cards that an output of the maker's tool tells of; none if it is not such an output."""
        return []

    def look(self) -> list[DeviceRecord]:
        """Return the maker's cards of this host with telemetry and health, as its tool tells, without torch."""
        from zhenfa.live.makers.tools import cards_of

        return cards_of(self)

    def listen(self) -> Ear | None:
        """Return what hears of the cards' faults as the driver tells them, None where it tells of none."""
        return None

    def record(self, index: int, name: str, **facts: Any) -> DeviceRecord:
        """Return a record of one of the maker's cards; ``maker_from`` says that its own tool told, if not given."""
        how = facts.pop("maker_from", self.smi[0] if self.smi else "plug-in")
        return DeviceRecord(self.id, index, name, self.name, how, **facts)


class AcceleratorMaker(Maker):
    """Cards behind a device type of ``torch.accelerator`` that no other maker shares."""

    def open(self) -> Any:
        """Return the one visible device; raise :class:`CapabilityError` if there is none."""
        import torch

        self.load()
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if found is None or found.type != self.torch_device:
            raise no_card(self)
        torch.accelerator.set_device_index(0)
        return torch.device(str(self.torch_device), 0)

    def synchronize(self) -> None:
        """Wait for the card's queues."""
        import torch

        torch.accelerator.synchronize()

    def memory(self) -> tuple[int, int]:
        """Return the allocator's peak and the card's capacity, 0 where torch does not tell."""
        import torch

        return int(torch.accelerator.max_memory_allocated()), capacity(str(self.torch_device), 0) or 0


class CudaMaker(Maker):
    """Cards that torch presents as ``cuda``, as the torch of several makers does."""

    torch_device: ClassVar[str | None] = "cuda"

    def open(self) -> Any:
        """Return the one visible device; raise :class:`CapabilityError` if there is none, or it is another maker's."""
        import torch

        self.load()
        if not torch.cuda.is_available():
            raise no_card(self)
        from zhenfa.live.makers.registry import known_by

        shown = torch.cuda.get_device_name(0)
        other = known_by(shown)
        if other is not None and other.id != self.id:
            raise CapabilityError(
                f"the card that torch shows is {shown!r} of {other.name}, not one of {self.name}.",
                hint=f"set maker: {other.name} for the card in the machine file, or install the torch of {self.name}.",
            )
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)

    def synchronize(self) -> None:
        """Wait for the card's queues."""
        import torch

        torch.cuda.synchronize()

    def memory(self) -> tuple[int, int]:
        """Return the allocator's peak and the card's capacity."""
        import torch

        return int(torch.cuda.max_memory_allocated()), int(torch.cuda.get_device_properties(0).total_memory)


def no_card(maker: Maker) -> CapabilityError:
    """Return the error for a maker of which torch sees no card."""
    return CapabilityError(
        f"torch sees no {maker.torch_device} card in this process.",
        hint="`zhenfa devices` lists the cards, `zhenfa doctor` says what is missing.",
    )


def capacity(kind: str, index: int) -> int | None:
    """Return the bytes of memory of a card as torch tells, None where it does not."""
    import torch

    return _asked(lambda: int(getattr(torch, kind).get_device_properties(index).total_memory))


def device_name(kind: str, index: int) -> str | None:
    """Return the name of a card as torch tells, None where it does not."""
    import torch

    return _asked(lambda: str(getattr(torch, kind).get_device_name(index)))


def _asked(ask: Callable[[], Known]) -> Known | None:
    try:
        return ask()
    except (AttributeError, RuntimeError, TypeError):
        return None
