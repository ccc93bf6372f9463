"""Copies of the state in host memory, from which cards come together again within moments.

They have the form of checkpoints on disk and lie in a folder that the host keeps in memory, where they outlive the
process that wrote them, though not the host. Where there is no such folder or too little room in it, they lie in the
engine's temporary folder, on disk. Over several hosts they lie in the run's folder, which all of them see.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from zhenfa.live import checkpoint
from zhenfa.live.train import Driver, Measured

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
KEPT: Final = 2
ROOM: Final = 4
"""Copies that must fit into the memory folder: those kept, one being written, and one to spare."""
BYTES_PER_PARAMETER: Final = 12
"""A parameter and its two moments in fp32."""


class Snapshots:
    """The copies of one run. ``disk`` is the folder of the run, None if it has none."""

    def __init__(self, driver: Driver, disk: Path | None = None) -> None:
        self._driver, self._disk = driver, disk
        self.folder: Path | None = None

    @property
    def possible(self) -> bool:
        """Return whether there is a place for copies: over several hosts that is the run's folder alone."""
        return self._driver.engine.one_host or self._disk is not None

    def begin(self, measured: Measured) -> None:
        """Have the cards copy their state; it counts once they have all told that it is written."""
        if not self.possible:
            return
        if self.folder is None:
            self.folder = self._made()
            self._driver.engine.remember(self.folder)
        self._driver.prune(self.folder, KEPT)
        self._driver.begin_save(measured, self.folder, to_disk=False)

    def close(self) -> None:
        """Remove them."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

    def _made(self) -> Path:
        if not self._driver.engine.one_host and self._disk is not None:
            folder = self._disk / f".copies-{self._driver.engine.folder.name}{checkpoint.PARTIAL}"
            folder.mkdir(parents=True, mode=0o700)
            return folder
        needed = ROOM * BYTES_PER_PARAMETER * self._driver.sizes.parameters
        try:
            if shutil.disk_usage(SHARED_MEMORY).free > needed:
                folder = SHARED_MEMORY / self._driver.engine.folder.name  # a name that nobody could guess
                folder.mkdir(mode=0o700)
                return folder
        except OSError:
            pass
        folder = self._driver.engine.folder / "snapshots"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
