"""``zhenfa devices``: the cards of this host."""

from __future__ import annotations

from zhenfa import units
from zhenfa.cli.console import Output
from zhenfa.cli.tables import Column, table
from zhenfa.live.providers import devices


def list_devices(output: Output) -> None:
    """Print the cards of this host that a run can use."""
    with output.working("asking torch for cards"):
        found = devices()
    if output.as_json:
        from zhenfa.cli.documents import Devices

        output.document(Devices(devices=tuple(found)))
        return
    columns = (
        Column("#", right=True), Column("provider", style="strong"), Column("maker"), Column("told from", drop=1),
        Column("name", wrap=20), Column("memory", right=True), Column("torch device"),
    )  # fmt: skip
    rows = [
        (
            str(number), device.provider, device.maker, device.maker_from, device.name,
            units.show(device.memory_bytes, "data"), device.torch_device,
        )
        for number, device in enumerate(found)
    ]  # fmt: skip
    output.left_out(output.data.table(table(columns, rows)))
    output.say("Emulated cards need no device: `zhenfa show emulated-quartet` shows a machine of four.")
