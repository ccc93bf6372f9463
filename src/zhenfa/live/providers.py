"""What the runtime must know of a kind of card, and nothing else.

A provider answers for one way in which torch reaches cards: ``cpu``, ``cuda`` (the NVIDIA interface, which several
makers present), and ``emulated`` (a CPU process that is held to the speed of its machine document). Nothing here
imports torch before a card is opened.
"""

from __future__ import annotations

import importlib
import os
import platform
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zhenfa.errors import CapabilityError
from zhenfa.spec.machine import Accelerator, Precision


class Provider(ABC):
    """One way in which torch reaches a card. One process holds one card of one maker.

    ``collective`` names the collective library between cards of the maker; between makers messages go through the
    hosts. ``module`` is imported in the card's process alone, ``visible_devices`` is the variable that shows the
    process its one card, and ``precisions`` are the number formats that a stage may compute in.
    """

    id: str
    torch_device: str
    module: str | None = None
    collective: str = "gloo"
    visible_devices: str | None = None
    precisions: frozenset[Precision] = frozenset({"fp32"})

    def environment(self, index: int) -> dict[str, str]:
        """Return the variables that the card's process needs before torch is used."""
        shown = {} if self.visible_devices is None else {self.visible_devices: str(index)}
        return {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "GLOO_SOCKET_IFNAME": "lo"} | shown

    def open(self) -> Any:
        """Import what the maker needs and return the ``torch.device``. Called once, in the card's process."""
        import torch

        if self.module is not None:
            importlib.import_module(self.module)
        return torch.device(self.torch_device)

    def to_host(self, tensor: Any) -> Any:
        """Return the tensor in host memory, contiguous; the tensor itself if it is there already."""
        return tensor.detach().to("cpu").contiguous()

    @abstractmethod
    def synchronize(self) -> None:
        """Return when the card has finished what it was given."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Return the bytes in use by this process at their peak, and the card's capacity."""


class CpuProvider(Provider):
    """The processor that the process runs on."""

    id = "cpu"
    torch_device = "cpu"

    def synchronize(self) -> None:
        """Return at once: the processor works in order."""

    def memory(self) -> tuple[int, int]:
        """Return the peak resident bytes of the process, and the host's memory."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024, host_memory()


class EmulatedProvider(CpuProvider):
    """A CPU process that computes for real and answers at the speed of its machine document."""

    id = "emulated"


class CudaProvider(Provider):
    """Cards behind torch's ``cuda`` device, whoever made them."""

    id = "cuda"
    torch_device = "cuda"
    visible_devices = "CUDA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32"})

    def open(self) -> Any:
        """Return the one visible device; raise :class:`CapabilityError` if there is none."""
        import torch

        if not torch.cuda.is_available():
            raise CapabilityError("torch sees no cuda card in this process.", hint="`zhenfa devices` lists the cards.")
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


PROVIDERS: Final[dict[str, Provider]] = {item.id: item for item in (CpuProvider(), EmulatedProvider(), CudaProvider())}


def provider_for(accelerator: Accelerator) -> Provider:
    """Return the provider of an accelerator; raise :class:`CapabilityError` if this version cannot run on it."""
    if accelerator.emulated:
        return PROVIDERS["emulated"]
    wanted = accelerator.software.torch_device if accelerator.software else None
    if wanted in {"cpu", "cuda"}:
        return PROVIDERS[wanted]
    device = f"the torch device {wanted!r}" if wanted else "no torch device that is known"
    raise CapabilityError(
        f"{accelerator.name} is reached through {device}; this version runs on cpu, cuda and emulated cards.",
        hint="plan on it with `zhenfa plan`, or run on a machine of emulated cards.",
    )


@dataclass(frozen=True)
class Device:
    """A card that is present on this host. ``maker_from`` says how the maker was told."""

    provider: str
    index: int
    name: str
    maker: str
    maker_from: str
    memory_bytes: int
    torch_device: str


MAKER_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "NVIDIA": ("nvidia", "geforce", "tesla", "quadro"),
    "AMD": ("amd", "radeon", "instinct"),
    "Hygon": ("hygon", "dcu", "k100", "z100", "bw1000"),
    "MetaX": ("metax", "mxc", "xiyun"),
    "Iluvatar CoreX": ("iluvatar", "bi-v", "mr-v"),
    "Kunlunxin": ("kunlun", "p800", "r480"),
    "T-Head": ("t-head", "ppu", "zw810"),
}


def maker_of(name: str) -> tuple[str, str]:
    """Return the maker behind torch's ``cuda`` device, told from the device's name, and how it was told."""
    folded = name.casefold()
    for maker, words in MAKER_WORDS.items():
        if any(word in folded for word in words):
            return maker, "device name"
    return "unknown", "device name not recognised"


def devices() -> list[Device]:
    """Return the cards of this host: the processor, and whatever torch's ``cuda`` device shows. Imports torch."""
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    found = [_processor()]
    try:
        import torch
    except ImportError:
        return found
    if not torch.cuda.is_available():
        return found
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        maker, told = maker_of(facts.name)
        found.append(Device("cuda", index, facts.name, maker, told, int(facts.total_memory), f"cuda:{index}"))
    return found


def host_memory() -> int:
    """Return the bytes of memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> Device:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    maker = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel", "HygonGenuine": "Hygon"}.get(
        facts.get("vendor_id", ""), "unknown"
    )
    name = facts.get("model name") or platform.processor() or platform.machine()
    return Device("cpu", 0, f"{name}, {processors()} cores", maker, "processor vendor id", host_memory(), "cpu")
