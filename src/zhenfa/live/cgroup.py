"""A private control group that keeps the cards' share of the processor when others want it too.

Optional: it needs a writable cpu controller (root, cgroup v2 or v1). Without it the cards run as any other process
and the emulation says so.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
PREFIX: Final = "zhenfa-"
WEIGHT_V2: Final = "10000"
SHARES_V1: Final = "262144"


def create(name: str) -> Path | None:
    """Create the group with the highest cpu weight and return it; None where that is not allowed.

    ``name`` starts with ``zhenfa-`` and is unique on the host.
    """
    if not name.startswith(PREFIX):
        raise ValueError(f"{name!r} does not start with {PREFIX!r}")
    try:
        return _create_v1(name) if (ROOT / "cpu").is_dir() else _create_v2(name)
    except OSError:
        return None


def join(group: Path, pid: int) -> bool:
    """Move a process into the group; return whether it worked."""
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        return False
    return True


def remove(group: Path, seconds: float = 5.0) -> bool:
    """Remove a group that :func:`create` made; return whether it is gone.

    Its processes may take a moment to die: wait up to ``seconds`` for that.
    """
    if not group.name.startswith(PREFIX):
        return False
    deadline = time.monotonic() + seconds
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


def _own(controller: str) -> str:
    """Return the path of this process's group for a v1 controller, or for v2 where ``controller`` is empty."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""


def _create_v1(name: str) -> Path | None:
    return _make(ROOT / "cpu" / _own("cpu") / name, "cpu.shares", SHARES_V1)


def _create_v2(name: str) -> Path | None:
    parent = ROOT / _own("")
    enabled = (parent / "cgroup.subtree_control").read_text().split()
    if "cpu" not in enabled:
        (parent / "cgroup.subtree_control").write_text("+cpu")
    return _make(parent / name, "cpu.weight", WEIGHT_V2)


def _make(group: Path, key: str, value: str) -> Path | None:
    group.mkdir()
    try:
        (group / key).write_text(value)
    except OSError:
        group.rmdir()
        return None
    return group if os.access(group / "cgroup.procs", os.W_OK) else None
