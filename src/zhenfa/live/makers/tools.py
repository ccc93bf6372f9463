"""Asking makers' tools: each is run with a limit, and one that is not there, fails or hangs tells of no cards."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from zhenfa.errors import printable
from zhenfa.live.makers.record import DeviceRecord, told

if TYPE_CHECKING:
    from zhenfa.live.makers.maker import Maker

TEXTS: Final = ("name", "uuid", "driver", "pci_address")
LIMIT_S: Final = 20.0
"""Seconds that a tool may take: some wake the card first."""


def output_of(command: tuple[str, ...], limit: float = LIMIT_S) -> str | None:
    """Return what a tool prints in plain English, None if it is not there, fails, or takes longer than ``limit``."""
    path = shutil.which(command[0])
    if path is None:
        return None
    plain = os.environ | {"LC_ALL": "C.UTF-8", "COLUMNS": "200"}
    try:
        done = subprocess.run(  # noqa: S603
            [path, *command[1:]], capture_output=True, text=True, errors="replace", timeout=limit, check=False,
            stdin=subprocess.DEVNULL, env=plain,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def cards_of(maker: Maker) -> list[DeviceRecord]:
    """Return the cards that a maker's tool tells of."""
    text = output_of(maker.smi) if maker.smi else None
    return read(maker, text) if text else []


def read(maker: Maker, text: str) -> list[DeviceRecord]:
    """Return the cards that an output tells of; an output of another form than expected tells of none."""
    tool = maker.smi[0] if maker.smi else maker.id
    try:
        found = maker.read_smi(text)
    except Exception:  # a stranger's plug-in may raise anything on what its tool never printed before
        return []
    return [told(_plain(replace(card, maker_from=tool)), tool) for card in found]


def _plain(card: DeviceRecord) -> DeviceRecord:
    """Return the card with what a terminal would obey escaped: what a tool prints is shown to people."""
    words: dict[str, Any] = {
        name: printable(text, lines=False) for name in TEXTS if (text := getattr(card, name)) is not None
    }
    return replace(card, **words, problems=tuple(printable(one, lines=False) for one in card.problems))
