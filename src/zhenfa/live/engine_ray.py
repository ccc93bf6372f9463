"""Cards as Ray actors: one actor for each card, with a resource of its own for every pool.

Ray's own accelerator detection is left out (it knows one kind of card per node): Ray is told of zero GPUs, and a
resource named after the pool says where a card may go. Ray is started here, on the loopback interface, without
dashboard and usage statistics, in the engine's temporary folder; a nursery watches over it, so that nothing is left
behind even if the driver is killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from zhenfa.errors import CapabilityError, RunError
from zhenfa.live import cgroup, linux
from zhenfa.live.engine import Engine, Reply
from zhenfa.live.engine_local import Nursed
from zhenfa.live.makers import maker
from zhenfa.live.placement import Card

PLACE_S: Final = 60.0
START_S: Final = 120.0
ENVIRONMENT: Final = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the switch that binds Ray's ports to the loopback interface alone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}
OBJECT_STORE_BYTES: Final = 100_000_000


class RayEngine(Engine):
    """Cards as actors of a Ray that this engine starts and stops."""

    name = "ray"

    def __init__(self, *, protect: bool = True) -> None:
        if importlib.util.find_spec("ray") is None:
            raise CapabilityError("Ray is not installed.", hint="pip install 'zhenfa[ray]', or run with engine: local.")
        import ray

        if ray.is_initialized():
            raise CapabilityError(
                "this process has started Ray already; the engine needs one of its own.", hint="run with engine: local."
            )
        super().__init__()
        self._nursery = Nursed(self.folder, preload=False)
        self._group = cgroup.create(self.folder.name) if protect else None
        if self._group is not None:
            self._nursery.tell({"do": "remember", "groups": [str(self._group)]})
        self._ray: Any = None
        self._actors: dict[Card, Any] = {}
        self._pids: dict[Card, int] = {}
        self._pending: dict[Any, tuple[Card, int]] = {}
        self._bundles: dict[Card, tuple[Any, int]] = {}
        self._started = 0

    @property
    def protection(self) -> str:
        """Return ``cgroup`` if the cards have one of their own."""
        return "none" if self._group is None else "cgroup"

    def start(self) -> None:
        """Start Ray and an actor for every card that has none; waits with a limit."""
        if self._ray is None:
            self._start_ray()
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        missing = [place for place in self.places if place.card not in self._actors]
        if not missing:
            return
        new = [place for place in missing if place.card not in self._bundles]
        if new:
            group = placement_group([{_resource(place.pool): 1.0} for place in new], strategy="PACK")
            if not group.wait(PLACE_S):
                raise RunError(f"Ray did not find room for {len(new)} cards within {PLACE_S:g} s.")
            self._bundles |= {place.card: (group, index) for index, place in enumerate(new)}
        actor = ray.remote(_actor_class())
        for place in missing:
            group, index = self._bundles[place.card]
            self._started += 1
            self._actors[place.card] = actor.options(
                num_cpus=0, num_gpus=0, resources={_resource(place.pool): 1.0}, max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
                name=f"card-{self._started}",
            ).remote(maker(place.provider).environment(place.index))  # fmt: skip
        found = ray.get([self._actors[place.card].obey.remote("hello", {}) for place in missing], timeout=START_S)
        for place, answer in zip(missing, found, strict=True):
            self._pids[place.card] = answer["value"]["pid"]
            if self._group is not None:
                cgroup.join(self._group, self._pids[place.card])
        self._watch_processes()

    def _has(self, card: Card) -> bool:
        return card in self._actors

    def _send(self, card: Card, order: int, method: str, arguments: dict[str, Any]) -> None:
        self._pending[self._actors[card].obey.remote(method, arguments)] = (card, order)

    def _receive(self, seconds: float) -> list[Reply]:
        import ray

        if not self._pending:
            time.sleep(min(seconds, 0.05))
            return []
        references = list(self._pending)
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
        if ready and len(references) > 1:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [self._reply(reference) for reference in ready]

    def kill(self, rank: int) -> None:
        """Kill one card."""
        import ray

        actor = self._actors.get(self.places[rank].card)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def _end(self, card: Card) -> None:
        import ray

        actor = self._actors.pop(card, None)
        self._pids.pop(card, None)
        self._pending = {reference: one for reference, one in self._pending.items() if one[0] != card}
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def _interrupt(self, card: Card) -> None:
        pid = self._pids.get(card)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, linux.ABANDON)

    def process(self, rank: int) -> int | None:
        """Return the actor's process id."""
        return self._pids.get(self.places[rank].card)

    def remember(self, folder: Path) -> None:
        """Have the nursery remove a folder should the driver die."""
        self._nursery.tell({"do": "remember", "folders": [str(folder)]})

    def forget(self, folder: Path) -> None:
        """Take it back."""
        self._nursery.tell({"do": "forget", "folders": [str(folder)]})

    def close(self) -> None:
        """Stop Ray, let the nursery end what is left of it, and remove the folder."""
        if self._ray is not None:
            for card in list(self._actors):
                self._end(card)
            self._pending.clear()
            self._ray.shutdown()
            self._ray = None
        self._nursery.close()
        if self.board is not None:
            self.board.close()
            self.board = None
        if self._group is not None:
            cgroup.remove(self._group)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_ray(self) -> None:
        used = Counter(place.pool for place in self.places)
        pools = {_resource(name): float(count) for name, count in (used | self.pools).items()}
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor")}  # importing torch creates it
        with _environment(ENVIRONMENT | cache), _loopback_and_quiet():
            import ray

            self._ray = ray
            ray.init(
                address="local", num_cpus=os.cpu_count(), num_gpus=0, resources=pools, include_dashboard=False,
                log_to_driver=False, logging_level=logging.ERROR, object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1", _temp_dir=str(self.folder / "ray"),
            )  # fmt: skip
        self._watch_processes()

    def _watch_processes(self) -> None:
        """Tell the nursery of every process that Ray has started, by id and start time."""
        nursery = {self._nursery.process.pid}
        found = [process.pid for process in psutil.Process().children(recursive=True) if process.pid not in nursery]
        started = [(pid, linux.start_time(pid)) for pid in found]
        self._nursery.tell({"do": "remember", "processes": [pair for pair in started if pair[1] is not None]})

    def _reply(self, reference: Any) -> Reply:
        import ray

        card, order = self._pending.pop(reference)
        rank = self._ranks.get(card, -1)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayActorError:
            self.discard(card)
            return Reply(rank, order, death="its actor died")
        reply = Reply(rank, order, **{key: answer.get(key) for key in ("value", "error", "hint", "trace")})
        if reply.trace:
            with (self.folder / "cards.log").open("a") as log:
                log.write(f"card {rank}:\n{reply.trace}\n")
        return reply


def _resource(pool: str) -> str:
    return f"zhenfa-{pool}"


def _actor_class() -> type:
    """Return the actor's class: the worker of every engine, behind one method."""

    class CardActor:
        def __init__(self, environment: dict[str, str]) -> None:
            os.environ.update(environment)
            from zhenfa.live import worker

            self._obey, self._worker = worker.obey, worker.CardWorker()
            signal.signal(linux.ABANDON, self._worker.abandon)

        def obey(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
            return self._obey(self._worker, {"id": 0, "method": method, "arguments": arguments})

    return CardActor


@contextmanager
def _loopback_and_quiet() -> Iterator[None]:
    """Have Ray bind to the loopback interface, and keep the driver's stdout free of what Ray says of dead workers.

    Ray reads the switch for the first when it is imported, which may have happened long ago, and has none for the
    second; a test holds both to it.
    """
    from ray._private import ray_constants, worker

    before = ray_constants.ENABLE_RAY_CLUSTER, worker.listen_error_messages
    ray_constants.ENABLE_RAY_CLUSTER, worker.listen_error_messages = False, lambda *_: None
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, worker.listen_error_messages = before


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that Ray's processes inherit, and put back what was there."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
