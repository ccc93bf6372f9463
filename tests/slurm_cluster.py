"""A real Slurm for the tests: a controller and node daemons on this host, with a key and a folder of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
READY_S = 60.0

CONF = """
ClusterName=zhenfa
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path, names: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Start Slurm with nodes of these names; give the environment in which its commands find it.

    Skips where Slurm is not installed (Debian: slurmctld slurmd slurm-client munge), or for want of root.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no Slurm here: {', '.join(missing) or 'its daemons need root'}")
    started: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    _write(folder, names)

    def start(*command: str) -> None:
        with (folder / "daemons.log").open("ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))

    munge = folder / "munge"
    try:
        start(
            "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        _until(folder, (munge / "socket").exists)
        start("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for name in names:
            start("slurmd", "-D", "-N", name, "-f", str(folder / "slurm.conf"))
        _until(folder, lambda: _idle(environment) == len(names))
        yield environment
    finally:
        subprocess.run(["scancel", "--state=RUNNING", "--me"], env=environment, capture_output=True, check=False)
        for one in reversed(started):
            one.terminate()
        for one in reversed(started):
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


def _write(folder: Path, names: tuple[str, ...]) -> None:
    for name in ("state", "munge", *(f"spool.{name}" for name in names)):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o711)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    ports = _free(len(names) + 1)
    rows = [
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={os.cpu_count()} State=UNKNOWN"
        for name, port in zip(names, ports[1:], strict=True)
    ]
    (folder / "slurm.conf").write_text(CONF.format(user="root", folder=folder, port=ports[0], nodes="\n".join(rows)))


def _free(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def _idle(environment: dict[str, str]) -> int:
    found = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return len(found.stdout.split())


def _until(folder: Path, ready: object) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():  # type: ignore[operator]
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-800:] for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"Slurm did not come up within {READY_S:g} s:\n{logs}")
        time.sleep(0.1)
