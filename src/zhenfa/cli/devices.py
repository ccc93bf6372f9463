"""``zhenfa devices``."""

from __future__ import annotations

from dataclasses import asdict

from zhenfa import units
from zhenfa.cli import console
from zhenfa.live.providers import devices


def list_devices(*, as_json: bool) -> None:
    """Print the cards of this machine that a run can use."""
    found = devices()
    if as_json:
        console.print_json({"schema": "zhenfa.devices/1", "devices": [asdict(device) for device in found]})
        return
    rows = [
        (str(number), device.provider, device.maker, device.name, units.show(device.memory_bytes, "data"), device.torch_device)
        for number, device in enumerate(found)
    ]
    console.data().print(console.table(("#", "provider", "maker", "name", "memory", "torch device"), rows, right=(0, 4)))
    console.talk().print(
        "Emulated cards need no device: `zhenfa show emulated-quartet` shows a machine of four.", style="dim", markup=False
    )
