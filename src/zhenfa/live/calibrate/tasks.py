"""Which tasks identify the coefficients of the laws on a device: few, of the sizes that its jobs use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from zhenfa.live.calibrate.samples import Task
from zhenfa.spec.machine import Precision

T = TypeVar("T")

PRECISIONS: Final[dict[str, tuple[Precision, ...]]] = {"cpu": ("fp32",)}
"""Precisions by torch device type; other devices: :data:`CARD_PRECISIONS`. A run on processors computes in fp32."""
CARD_PRECISIONS: Final[tuple[Precision, ...]] = ("bf16", "fp32")

# rows, inputs, outputs: large ones show the peak, uneven ones the tiles, thin inner dimensions the ramp, few rows the
# reading of weights, tiny ones the launch
CPU_MATMULS: Final = (
    (2048, 512, 512), (2048, 384, 1024), (2048, 1024, 384), (1024, 256, 256), (1024, 256, 768), (512, 512, 1536),
    (512, 1536, 512), (2048, 128, 384), (2048, 64, 512), (256, 2048, 256), (256, 512, 2048), (777, 333, 555),
    (128, 768, 768), (64, 512, 2048), (16, 1024, 2048), (4, 1024, 2048), (1, 1024, 2048), (1, 2048, 4096),
    (4, 384, 384), (4, 384, 1024), (8, 768, 768), (2, 512, 512), (32, 64, 64),
)  # fmt: skip
CARD_MATMULS: Final = (
    (8192, 8192, 8192), (16384, 4096, 4096), (8192, 4096, 14336), (8192, 14336, 4096), (4096, 4096, 4096),
    (4096, 2048, 8192), (4096, 1024, 4096), (8192, 512, 4096), (8192, 256, 8192), (4096, 128, 4096), (2048, 2048, 2048),
    (1024, 4096, 4096), (1100, 3000, 5000), (512, 4096, 4096), (256, 8192, 1024), (128, 4096, 14336), (64, 8192, 8192),
    (16, 8192, 8192), (4, 4096, 14336), (1, 8192, 8192), (1, 4096, 4096), (64, 64, 64),
)  # fmt: skip
LAYOUTS: Final = 3
HEADS: Final = ("sequences", "length", "heads", "dim")

# sequences, length, heads, dim
CPU_ATTENTIONS: Final = ((4, 128, 8, 64), (2, 256, 8, 64), (4, 256, 4, 64), (1, 512, 8, 64), (1, 1024, 4, 64))
CARD_ATTENTIONS: Final = ((1, 4096, 32, 128), (4, 2048, 32, 128), (1, 8192, 16, 128), (8, 1024, 16, 64))

CPU_DECODES: Final = ((1, 1024, 8, 64), (4, 512, 8, 64), (8, 1024, 6, 64))
CARD_DECODES: Final = ((8, 4096, 16, 128), (32, 4096, 32, 128), (64, 1024, 32, 128))

CPU_STREAMS: Final = (2**14, 2**16, 2**17, 2**18, 2**19, 2**20)
CARD_STREAMS: Final = (2**16, 2**20, 2**22, 2**24, 2**26, 2**28)

# tokens, features, which of the chains
CPU_CHAINS: Final = (
    (1024, 384, 0), (512, 768, 0), (1024, 1024, 1), (512, 512, 1), (1024, 384, 2), (512, 512, 2), (1024, 256, 3),
    (512, 2048, 3),
)  # fmt: skip
EAGER: Final = ((4, 16), (8, 16))
"""Layers and tokens of models that have next to no work."""

CPU_OPTIMIZERS: Final = ((4 * 2**20, 40), (12 * 2**20, 60))
CARD_OPTIMIZERS: Final = ((64 * 2**20, 64), (256 * 2**20, 128))


def tasks_for(device: str, *, quick: bool = False) -> list[Task]:
    """Return the tasks for a torch device type; ``quick`` leaves out two of three."""
    cpu = device == "cpu"
    found: list[Task] = []
    for precision in PRECISIONS.get(device, CARD_PRECISIONS):
        for index, sizes in enumerate(_few(CPU_MATMULS if cpu else CARD_MATMULS, quick)):
            layouts = range(LAYOUTS) if sizes[0] >= 256 and not quick else (index % LAYOUTS,)
            names = ("rows", "inputs", "outputs", "layout")
            found += [_task("matmul", precision, names, (*sizes, layout)) for layout in layouts]
        for shape in _few(CPU_ATTENTIONS if cpu else CARD_ATTENTIONS, quick):
            found.append(_task("attention", precision, HEADS, shape))
            found.append(_task("attention backward", precision, HEADS, shape))
        found += [
            _task("decode", precision, HEADS, shape) for shape in _few(CPU_DECODES if cpu else CARD_DECODES, quick)
        ]
        found += [_task("launch", precision, (), ()), _task("host", precision, (), ())]
        for layers in EAGER:
            found += [_task(kind, precision, ("layers", "length"), layers) for kind in ("eager decode", "eager step")]
    wide: Precision = "fp32"
    for count in _few(CPU_STREAMS if cpu else CARD_STREAMS, quick):
        found.append(_task("stream", wide, ("elements", "tensors", "cold"), (count, 3, 2)))
    for chain in _few(CPU_CHAINS, quick) if cpu else ():
        found += [_task(kind, wide, ("tokens", "features", "what"), chain) for kind in ("chain", "chain backward")]
    for pieces in _few(CPU_OPTIMIZERS if cpu else CARD_OPTIMIZERS, quick):
        found.append(_task("optimizer", wide, ("parameters", "tensors"), pieces))
    return [*found, yardstick(device)]


def yardstick(device: str) -> Task:
    """Return the fixed piece of work that shows whether the device was left alone."""
    return Task("yardstick", "fp32", {"side": 384 if device == "cpu" else 4096})


def _task(kind: str, precision: Precision, names: Iterable[str], sizes: Iterable[int]) -> Task:
    return Task.from_data({"kind": kind, "precision": precision, "sizes": dict(zip(names, sizes, strict=True))})


def _few(items: tuple[T, ...], quick: bool) -> tuple[T, ...]:
    """Return every third item, the first and the last among them, if time is short."""
    if not quick or len(items) < 3:
        return items
    return tuple(dict.fromkeys((*items[::3], items[-1])))
