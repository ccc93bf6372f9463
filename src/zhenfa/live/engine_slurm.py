"""Cards on the nodes of a Slurm allocation: one ``srun`` starts an outpost on each.

The driver runs where ``zhenfa run`` was called, inside ``sbatch`` or ``salloc``. Slurm owns the processes: when the
allocation ends, for whatever reason, they end with it. An allocation made with ``--no-kill`` outlives the loss of a
node, and the run with it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from zhenfa.errors import CapabilityError
from zhenfa.live.engine_spread import CommandEngine
from zhenfa.live.hosts import own_address

ASK_S: Final = 30.0
JOB: Final = "SLURM_JOB_ID"
HINT: Final = "for example: sbatch --nodes 3 --ntasks-per-node 1 --no-kill --wrap 'zhenfa run job.yaml --engine slurm'"


class SlurmEngine(CommandEngine):
    """Cards on the nodes of the allocation in which this process runs."""

    name = "slurm"

    def __init__(self, *, protect: bool = True) -> None:
        if JOB not in os.environ:
            raise CapabilityError("this is not inside a Slurm allocation.", hint=HINT)
        missing = [name for name in ("srun", "scontrol") if shutil.which(name) is None]
        if missing:
            raise CapabilityError(f"there is no command {missing[0]} on this host.", hint="add Slurm's to PATH.")
        names = nodes()
        super().__init__(own_address(addresses(names)), names, [step(len(names))], protect=protect)


def step(count: int) -> list[str]:
    """Return the command that starts an outpost on each of ``count`` nodes of the allocation.

    The step may use all that the allocation has on each node, beside other steps, is not bound to a processor, and
    outlives the loss of a task or a node.
    """
    options = ["--overlap", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--export=ALL", "--cpu-bind=none"]
    shape = [f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--job-name=zhenfa-cards"]
    return ["srun", *shape, *options, "--mem=0", "--mpi=none", sys.executable, "-m", "zhenfa.live.outpost"]


def nodes() -> list[str]:
    """Return the names of the allocation's nodes, in Slurm's order."""
    given = os.environ.get("SLURM_JOB_NODELIST", "")
    return _ask(["scontrol", "show", "hostnames", given]).split()


def addresses(names: Sequence[str]) -> list[str]:
    """Return the addresses of nodes as Slurm has them."""
    text = _ask(["scontrol", "show", "node", ",".join(names)])
    found = dict(re.findall(r"NodeName=(\S+).*?NodeAddr=(\S+)", text, flags=re.DOTALL))
    return [found.get(name, name) for name in names]


def _ask(command: list[str]) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CapabilityError(f"{' '.join(command)} did not answer: {problem}.") from None
    if found.returncode != 0:
        words = (found.stderr.strip() or f"exit code {found.returncode}").splitlines()[0]
        raise CapabilityError(f"{' '.join(command)} failed: {words}.", hint="is Slurm up?")
    return found.stdout
