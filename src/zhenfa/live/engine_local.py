"""Cards as processes on this host, forked from a nursery that has torch loaded."""

from __future__ import annotations

from zhenfa.live import cgroup
from zhenfa.live.engine_processes import ProcessEngine
from zhenfa.live.hosts import Host, LocalHost
from zhenfa.live.placement import CardPlace


class LocalEngine(ProcessEngine):
    """Cards on this host. ``protect`` asks for a private control group, which is taken where it is allowed."""

    name = "local"

    def __init__(self, *, protect: bool = True) -> None:
        super().__init__()
        self._own = LocalHost(self.folder, preload=True)
        self._add_host(self._own)
        self._own.tell({"do": "board", "path": str(self.folder / "board")})
        self._group = cgroup.create(self.folder.name) if protect else None
        if self._group is not None:
            self._own.tell({"do": "remember", "groups": [str(self._group)]})

    @property
    def protection(self) -> str:
        """Return ``cgroup`` if the cards have one of their own."""
        return "none" if self._group is None else "cgroup"

    def _host_of(self, place: CardPlace) -> Host:
        del place
        return self._own

    def close(self) -> None:
        """End the cards and the nursery, and remove the folder and the control group."""
        super().close()
        if self._group is not None:
            cgroup.remove(self._group)
