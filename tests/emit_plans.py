"""Plans to write for other systems, and what their scripts hand to a launcher."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from zhenfa.plan.emit import Emission, Subject, emit, read_subject

PLANS = Path(__file__).parent.parent / "examples" / "plans"
CLUSTERS = ("k8s", "ray", "slurm")
TRAINERS = ("megatron", "mindspeed", "torchtitan")
ASSUME = ("scalex-card.memory.capacity=64 GB",)


@cache
def subject(plan: str, *settings: str) -> Subject:
    """Return a plan of examples/plans, looked up."""
    return read_subject(str(PLANS / f"{plan}.yaml"), assume=ASSUME, settings=settings)


@cache
def emitted(plan: str, target: str, *settings: str) -> Emission:
    """Return what a target writes of a plan, or of the nearest that it takes."""
    return emit(subject(plan, *settings), target, nearest=True)


def file_of(found: Emission, name: str) -> str:
    """Return the text of one file."""
    return next(one.text for one in found.files if one.name == name)


def handed(found: Emission, script: str, program: str, folder: Path, **variables: str) -> list[str]:
    """Run a script with a stand-in for its launcher, and return what the launcher was given."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    (place / program).write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    (place / program).chmod(0o755)
    (folder / script).write_text(file_of(found, script), encoding="utf-8")
    environment = {**os.environ, **variables, "PATH": f"{place}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(folder / script)], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def options(words: list[str]) -> dict[str, list[str]]:
    """Return the options of a command line with their values."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            found[name] = []
        elif name:
            found[name].append(word)
    return found
