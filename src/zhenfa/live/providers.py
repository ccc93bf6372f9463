"""What the runtime must know of a kind of card, and nothing else.

A provider answers for one way in which torch reaches cards: ``cpu``, ``cuda`` (the NVIDIA interface, which several
makers present), and ``emulated`` (a CPU process that is held to the speed of its machine document). Nothing here
imports torch before a card is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
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


class AcceleratorProvider(Provider):
    """Cards behind any other device of ``torch.accelerator``. They can be calibrated; runs do not take them yet."""

    def __init__(self, kind: str, module: str | None, visible_devices: str, maker: str) -> None:
        self.id = self.torch_device = kind
        self.module, self.visible_devices, self.maker = module, visible_devices, maker

    @property
    def installed(self) -> bool:
        """Return whether the maker's module, if torch needs one, is installed."""
        return self.module is None or importlib.util.find_spec(self.module.partition(".")[0]) is not None

    def open(self) -> Any:
        """Return the one visible device; raise :class:`CapabilityError` if there is none."""
        import torch

        if self.module is not None:
            importlib.import_module(self.module)
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if found is None or found.type != self.torch_device:
            words = f"torch sees no {self.torch_device} card in this process."
            raise CapabilityError(words, hint="`zhenfa devices` lists the cards.")
        torch.accelerator.set_device_index(0)
        return torch.device(self.torch_device, 0)

    def synchronize(self) -> None:
        """Wait for the card's queues."""
        import torch

        torch.accelerator.synchronize()

    def memory(self) -> tuple[int, int]:
        """Return the allocator's peak and the card's capacity, 0 where torch does not tell."""
        import torch

        return int(torch.accelerator.max_memory_allocated()), _capacity(torch, self.torch_device, 0)

    def devices(self) -> list[Device]:
        """Return the cards that torch sees. Imports the maker's module; one that cannot be imported has no cards."""
        import torch

        if not self.installed:
            return []
        try:
            if self.module is not None:
                importlib.import_module(self.module)
            found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        except Exception:
            return []
        if found is None or found.type != self.torch_device:
            return []
        kind, count = self.torch_device, torch.accelerator.device_count()
        return [
            Device(
                self.id, index, _device_name(torch, kind, index), self.maker, "torch device type",
                _capacity(torch, kind, index), f"{kind}:{index}",
            )
            for index in range(count)
        ]  # fmt: skip


def _device_name(torch: Any, kind: str, index: int) -> str:
    try:
        return str(getattr(torch, kind).get_device_name(index))
    except (AttributeError, RuntimeError):
        return f"{kind} device"


def _capacity(torch: Any, kind: str, index: int) -> int:
    try:
        return int(getattr(torch, kind).get_device_properties(index).total_memory)
    except (AttributeError, RuntimeError):
        return 0


OTHERS: Final = (
    AcceleratorProvider("npu", "torch_npu", "ASCEND_RT_VISIBLE_DEVICES", "Huawei"),
    AcceleratorProvider("mlu", "torch_mlu", "MLU_VISIBLE_DEVICES", "Cambricon"),
    AcceleratorProvider("musa", "torch_musa", "MUSA_VISIBLE_DEVICES", "Moore Threads"),
    AcceleratorProvider("hpu", "habana_frameworks.torch", "HABANA_VISIBLE_MODULES", "Intel"),
    AcceleratorProvider("xpu", None, "ZE_AFFINITY_MASK", "Intel"),
)

PROVIDERS: Final[dict[str, Provider]] = {
    item.id: item for item in (CpuProvider(), EmulatedProvider(), CudaProvider(), *OTHERS)
}


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
    """Return the cards of this host: the processor, and whatever torch shows beside it. Imports torch."""
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    found = [_processor()]
    try:
        import torch
    except ImportError:
        return found
    for other in OTHERS:
        found += other.devices()
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
