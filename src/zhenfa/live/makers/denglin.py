"""Denglin: little is public; what is not known here is left empty."""

from __future__ import annotations

from typing import Final

from zhenfa.live.makers.maker import AcceleratorMaker

UNPUBLISHED: Final = "Denglin has published neither it nor the form of dlsmi's output where we looked."


class Denglin(AcceleratorMaker):
    """Cards of Denglin. Machines of them can be planned; nothing is known by which they could be run."""

    id = "denglin"
    name = "Denglin"
    words = ("denglin", "goldwasser")
    sources = ("no public document of its torch was found",)
    missing = {
        "torch": "the device type under which torch knows the cards is not published where we looked.",
        "isolation": UNPUBLISHED,
        "training": "without a torch device nothing can be run on them.",
        "collectives": UNPUBLISHED,
        "bf16": UNPUBLISHED,
        "discovery": UNPUBLISHED,
        "memory": UNPUBLISHED,
        "telemetry": UNPUBLISHED,
        "health": UNPUBLISHED,
        "timeouts": UNPUBLISHED,
    }
