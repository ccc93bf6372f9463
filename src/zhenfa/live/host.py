"""What this host has: processors and memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def host_memory() -> int:
    """Return the bytes of memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> tuple[str, str]:
    """Return the processor's name and its maker's id as the kernel tells them, empty where it does not."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name") or platform.processor() or platform.machine()
    return name, facts.get("vendor_id", "")
