"""What a run showed, in words that its page and its text share: each line a label and what is said of it."""

from __future__ import annotations

from zhenfa import units
from zhenfa.spec.result import BridgeTraffic, Routing, Telemetry


def of_routing(routing: Routing) -> str:
    """Say how evenly tokens fell on experts in the last step."""
    words = [f"the busiest expert of a layer had {routing.busiest_expert.value:.2f} times the mean"]
    if routing.busiest_card.value is not None:
        words.append(f"the busiest of the cards that share them out {routing.busiest_card.value:.2f} times")
    if routing.unused_experts:
        words.append(f"{routing.unused_experts} of {routing.experts} had none")
    return ", ".join(words) + " (last step)"


def of_bridge(bridge: BridgeTraffic) -> list[tuple[str, str]]:
    """Say what went between makers, what compression saved of it, and what it did to the loss."""
    raw, sent = sum(bridge.bytes_raw.values()), sum(bridge.bytes_sent.values())
    kinds = ", ".join(f"{what} {units.show(size, 'data')}" for what, size in bridge.bytes_sent.items() if size)
    link = "" if bridge.link_s is None else f"; {units.show(bridge.link_s, 'time')} on the busiest card's links"
    held = f"cards were held up for {units.show(bridge.held_s, 'time')} at most"
    said = [("bridge between makers", f"{units.show(sent, 'data')} a step ({kinds or 'nothing'}){link}; {held}")]
    if raw > sent > 0:
        words = f"activations {bridge.activations}, gradients {bridge.gradients}: {raw / sent:.2f} times fewer bytes"
        said.append(("compressed", words))
    if (plain := bridge.uncompressed) is not None:
        words = (
            f"{units.show(plain.step_time_s, 'time')} a step, and the run is {plain.speed_up:.2f} times as fast; "
            f"over {plain.steps} steps the loss differs by {plain.loss_difference:.2g} of it at most, and by "
            f"{plain.last_loss_difference:+.2g} in the last of them"
        )
        said.append(("the same steps uncompressed", words))
    return said


def of_telemetry(rows: tuple[Telemetry, ...]) -> list[tuple[str, str]]:
    """Say what cards told of themselves."""
    said = []
    for one in rows:
        power = [] if one.power_w is None else [f"{units.show(one.power_w, 'power')} on the mean"]
        heat = [] if one.hottest_c is None else [f"{one.hottest_c:g} degrees C at most"]
        asked = "asked once" if one.samples == 1 else f"asked {one.samples:,} times"
        said.append((f"card {one.index} of pool {one.pool}", ", ".join([*power, *heat, asked])))
    return said
