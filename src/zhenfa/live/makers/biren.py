"""Biren: ``supa`` through torch_br."""

from __future__ import annotations

from zhenfa.live.makers.maker import AcceleratorMaker


class Biren(AcceleratorMaker):
    """Cards of Biren."""

    id = "biren"
    name = "Biren"
    torch_device = "supa"
    module = "torch_br"
    visible_devices = "SUPA_VISIBLE_DEVICES"
    precisions = frozenset({"fp32", "bf16"})
    words = ("biren", "br100", "br104", "br106", "br166")
    sources = ("Biren's code for Ray and for vLLM names the device supa and SUPA_VISIBLE_DEVICES",)
    missing = {
        "collectives": "the name under which torch_br registers its collective library is not published where we "
        "looked; messages go through the host.",
        "discovery": "the form of brsmi's output and the PCI vendor id are not known here; torch shows the cards.",
        "telemetry": "the form of brsmi's output is not known here.",
        "health": "the form of brsmi's output is not known here.",
        "timeouts": "no document of its collective library's variables was found.",
    }
