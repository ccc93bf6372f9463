"""Checks of the host: interpreter, limits, memory, disk, loopback, control groups, clock."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from zhenfa import units
from zhenfa.live import cgroup, linux
from zhenfa.live.doctor.check import Check, judged
from zhenfa.live.host import processors
from zhenfa.live.makers import nvml
from zhenfa.live.makers.probe import torch_build

OLDEST_TORCH: Final = (2, 8)
LEAST_FILES: Final = 256
FILES_A_CARD: Final = 24
"""Descriptors that a card's process and the driver's end of it take, with a margin: sockets to every other card."""
LEAST_SHARED: Final = 64 * 2**20
MUCH_SHARED: Final = 2**30
LEAST_DISK: Final = 2**30
CHECKPOINT_BYTES: Final = 12
"""Bytes of a parameter in a checkpoint: itself and both moments of AdamW in fp32."""
GOOD_CLOCK_S: Final = 1e-3
EXTRAS: Final = {"ray": "ray", "matplotlib": "matplotlib", "perfetto": "perfetto", "pynvml": nvml.PACKAGE,
                 "gpustack-runtime": "gpustack-runtime", "transformers": "transformers"}  # fmt: skip
"""What some commands use where it is installed, by the package that brings it."""


def checks(cards: int = 8, parameters: int | None = None, folder: Path | None = None) -> list[Check]:
    """Return what is found of the host, for a run of ``cards`` cards and a model of ``parameters``.

    ``folder`` is where checkpoints would go.
    """
    return [
        _python(), _torch(), _system(), _processors(cards), _memory(parameters), _shared_memory(), _files(cards),
        _group(), _extras(), _temporary(), _disk(parameters, folder or Path()), _loopback(), _clock(),
    ]  # fmt: skip


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return judged("Python", found, fail=sys.version_info < (3, 11), way_out="use Python 3.11 or newer.")


def _torch() -> Check:
    built = torch_build()
    if built is None:
        return judged("torch", "not installed", fail=True, way_out="pip install 'zhenfa[live]'.")
    version = _version("torch") or built["torch"]
    kinds = [f"{name} {number}" for name, number in built.items() if name != "torch"] or ["the processor alone"]
    numbers = [int(part) if part.isdigit() else 0 for part in version.partition("+")[0].split(".")[:2]]
    old = tuple(numbers) < OLDEST_TORCH
    wanted = ".".join(map(str, OLDEST_TORCH))
    return judged("torch", f"{version}, built for {', '.join(kinds)}", fail=old, way_out=f"install torch {wanted}.")


def _extras() -> Check:
    versions = {name: _version(package) for name, package in EXTRAS.items()}
    here = [f"{name} {version}" for name, version in versions.items() if version]
    absent = [name for name, version in versions.items() if not version]
    return judged(
        "extras", "; ".join([", ".join(here) or "none", *([f"not installed: {', '.join(absent)}"] * bool(absent))])
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _system() -> Check:
    here = sys.platform == "linux" and linux.start_time(os.getpid()) is not None
    found = f"{os.uname().sysname} {os.uname().release}"
    way_out = "run on Linux with /proc: cards are processes that the kernel ends with their parent."
    return judged("kernel", found, fail=not here, way_out=way_out)


def _processors(cards: int) -> Check:
    count = processors()
    found = f"{count} for this process"
    return judged("processors", found, warn=count < 2, way_out="give the process two: the driver needs one of its own.")


def _memory(parameters: int | None) -> Check:
    free = _kernel_bytes("MemAvailable")
    if free is None:
        return judged("memory", "the kernel does not tell", warn=True, way_out="mount /proc.")
    limit = _group_limit()
    room = min(free, limit) if limit is not None else free
    found = f"{units.show(room, 'data')} available" + ("" if room == free else ", bound by the control group")
    needed = 0 if parameters is None else 16 * parameters
    way_out = f"training holds 16 bytes a parameter, {units.show(needed, 'data')}: use cards with memory of their own."
    return judged("memory", found, warn=room < needed or room < LEAST_DISK, way_out=way_out)


def _kernel_bytes(name: str) -> int | None:
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(rows[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _group_limit() -> int | None:
    """Return the bytes of memory that the control group allows this process, None where it sets no limit."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < 2**60 else None
    return None


def _shared_memory() -> Check:
    folder = Path("/dev/shm")  # noqa: S108
    if not folder.is_dir():
        return judged("shared memory", "no /dev/shm", warn=True, way_out="mount a tmpfs on /dev/shm.")
    free = shutil.disk_usage(folder).free
    way_out = "in a container, start it with --shm-size=8g or --ipc=host: makers' collective libraries share there."
    found = f"{units.show(free, 'data')} free in /dev/shm"
    return judged("shared memory", found, warn=free < MUCH_SHARED, way_out=way_out)


def _files(cards: int) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = float("inf") if soft == resource.RLIM_INFINITY else soft
    needed = LEAST_FILES + FILES_A_CARD * cards
    most = "no limit" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    found = f"{soft:,} (at most {most})" if count != float("inf") else "no limit"
    way_out = f"ulimit -n {max(needed, 4096)}: {cards} cards take up to {needed:,}."
    return judged("open files", found, fail=count < LEAST_FILES, warn=count < needed, way_out=way_out)


def _group() -> Check:
    group = cgroup.create(f"{cgroup.PREFIX}doctor-{os.getpid()}")
    if group is None:
        way_out = "run as root, or with a delegated cpu controller; runs work without, emulated cards are less exact."
        return judged("control group", "none of one's own is allowed", warn=True, way_out=way_out)
    gone = cgroup.remove(group)
    return judged("control group", "one of its own keeps the cards' share", warn=not gone, way_out=f"rmdir {group}.")


def _temporary() -> Check:
    try:
        with tempfile.TemporaryDirectory(prefix="zhenfa-") as name:
            free = shutil.disk_usage(name).free
            found = f"{Path(name).parent}, {units.show(free, 'data')} free"
    except OSError as problem:
        words = os.strerror(problem.errno or 0)
        return judged("temporary folder", words, fail=True, way_out="set TMPDIR to a folder that can be written.")
    return judged("temporary folder", found, fail=free < LEAST_SHARED, way_out="free space there, or set TMPDIR.")


def _disk(parameters: int | None, folder: Path) -> Check:
    where = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free, needed = shutil.disk_usage(where).free, CHECKPOINT_BYTES * (parameters or 0)
    found = f"{units.show(free, 'data')} free in {where}"
    if parameters is not None:
        found += f", a checkpoint takes {units.show(needed, 'data')}"
    way_out = "free space there, or name another folder with `zhenfa run --out`."
    writable = os.access(where, os.W_OK)
    if not writable:
        found += ", which cannot be written"
    short = free < 2 * needed or free < LEAST_DISK  # the one that is kept, and the one that is being written
    return judged("disk for checkpoints", found, fail=free < needed, warn=short or not writable, way_out=way_out)


def _loopback() -> Check:
    way_out = "bring the interface lo up: the cards of one host find each other there."
    names = [name for _, name in socket.if_nameindex()]
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            found = "127.0.0.1 answers on lo" if "lo" in names else f"127.0.0.1 answers; interfaces: {', '.join(names)}"
    except OSError as problem:
        return judged("loopback", os.strerror(problem.errno or 0), fail=True, way_out=way_out)
    return judged("loopback", found, fail="lo" not in names, way_out=way_out)


def _clock() -> Check:
    info = time.get_clock_info("monotonic")
    early = time.gmtime().tm_year < 2025
    found = (
        f"monotonic to {units.show(info.resolution, 'time')}; the date is {time.strftime('%Y-%m-%d', time.gmtime())}"
    )
    way_out = "set the clock, as by NTP: checkpoints and reports bear its time."
    return judged(
        "clock", found, fail=not info.monotonic, warn=early or info.resolution > GOOD_CLOCK_S, way_out=way_out
    )
