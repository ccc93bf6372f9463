"""Copies of the state in host memory, from which cards come together again within moments.

They lie in a folder that the host keeps in memory, where they outlive the process that wrote them, though not the host.
Where there is no such folder or too little room in it, they lie in the engine's temporary folder, on disk. Over several
hosts they lie in the run's folder, which all of them see. A place for a copy (:mod:`zhenfa.live.copies`) is used again
as soon as its copy is no longer kept, until the cards come together anew.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from zhenfa.live import checkpoint, marks
from zhenfa.live.pending import Pending
from zhenfa.live.train import Driver, Measured

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
KEPT: Final = 2
ROOM: Final = 4
"""Copies that must fit into the memory folder: those kept, one being written, and one to spare."""
BYTES_PER_PARAMETER: Final = 12
"""A parameter and its two moments in fp32."""


@dataclass
class Copying(Pending):
    """A copy under way, in a folder of those that the engine remembers."""

    remembered: ClassVar[bool] = False

    @property
    def key(self) -> str:
        """Return what cards tell of it under: its place is used again."""
        return f"{self.path} {self.step}"

    def is_written(self) -> bool:
        """Return whether all cards have marked their share as whole."""
        return marks.is_told(self.path, self.step, self.cards)

    def finish(self) -> Path:
        """Return its place: there is no more to do."""
        return self.path

    def give_up(self) -> None:
        """Leave its place to the next copy."""


class Snapshots:
    """The copies of one run. ``disk`` is the folder of the run, None if it has none."""

    def __init__(self, driver: Driver, disk: Path | None = None) -> None:
        self._driver, self._disk = driver, disk
        self.folder: Path | None = None
        self._mapped = False
        self._places: dict[Path, int] = {}
        self._facts: dict[Path, Measured] = {}

    @property
    def possible(self) -> bool:
        """Return whether there is a place for copies: over several hosts that is the run's folder alone."""
        return self._driver.engine.one_host or self._disk is not None

    def begin(self, measured: Measured) -> None:
        """Have the cards copy their state; it counts once they have all told that the copy is whole."""
        if not self.possible:
            return
        if self.folder is None:
            self.folder = self._made()
            self._driver.engine.remember(self.folder)
        self._drop_oldest()
        path = self._place()
        self._facts[path] = measured
        pending = Copying(path, measured.done, len(measured.places))
        order = {"path": str(path), "step": measured.done, "key": pending.key, "mapped": self._mapped}
        self._driver.begin(pending, "copy", order)

    def keep(self, path: Path, target: Path) -> None:
        """Write a copy that has been verified as a checkpoint."""
        from zhenfa.live import copies
        from zhenfa.live.saving import share_of, write_share

        measured = self._facts[path]
        partial = target.with_name(target.name + checkpoint.PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums: dict[str, str] = {}
        step = 0
        for rank, mark, held in copies.shares(path):
            step = mark.step
            settings = {key: tuple(one) if isinstance(one, list) else one for key, one in mark.settings.items()}
            state, pieces = share_of(held, settings)
            sums |= write_share(partial, rank, state, pieces=pieces)
        checkpoint.finish(partial, self._driver.facts(measured) | {"step": step}, sums)

    def let_go(self) -> None:
        """Have the cards let go of the memory that copies are in: there will be no more of this plan."""
        if self.folder is not None:
            self._driver.call("let_copies_go", {})

    def close(self) -> None:
        """Remove them."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
            self._places.clear()
            self._facts.clear()

    def _drop_oldest(self) -> None:
        """Keep the newest copies alone."""
        written = self._driver.written
        own = sorted(one for one in written if one[1] in self._places)
        for one in own[: max(len(own) - KEPT, 0)]:
            written.remove(one)

    def _place(self) -> Path:
        """Return a place for a copy of the plan under way, one that is there and free if there is one."""
        busy = {path for _, path in self._driver.written} | self._driver.saving
        generation = self._driver.generation
        free = [path for path in self._places if path not in busy]
        for path in free:
            if self._places[path] != generation:
                del self._places[path], self._facts[path]
                shutil.rmtree(path, ignore_errors=True)
        mine = [path for path in free if path in self._places]
        if mine:
            return mine[0]
        number = sum(one == generation for one in self._places.values())
        path = (self.folder or self._made()) / f"generation-{generation}-{number}{marks.COPY}"
        path.mkdir(mode=0o700)
        self._places[path] = generation
        return path

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
                self._mapped = True
                return folder
        except OSError:
            pass
        folder = self._driver.engine.folder / "snapshots"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
