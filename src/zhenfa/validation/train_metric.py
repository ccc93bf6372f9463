"""What a published training row measured: step time, token rate, or FLOP/s under a convention; and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zhenfa.spec.graph import Graph
from zhenfa.validation.train_layout import Layout
from zhenfa.validation.train_words import number, part, positive, text


@dataclass(frozen=True)
class Measured:
    """One measured speed. ``seconds`` is the step time that it amounts to; ``note`` how it was reached."""

    metric: str
    unit: str
    value: float
    seconds: float
    note: str | None = None

    def predicted(self, seconds: float) -> float:
        """Return the metric at a step time: rates fall as it grows."""
        return seconds if self.metric == "iter_s" else self.value * self.seconds / seconds


def speed_of(record: Mapping[str, Any], layout: Layout, sequence: int, graph: Graph) -> Measured | None:
    """Return the speed that a row measured, the most direct one, or None.

    Step time comes first, then tokens per second and card, then of all cards, sequences per second, FLOP/s and MFU.
    """
    metrics, tokens = part(record, "metrics"), layout.sequences * sequence
    step = positive(metrics, "iter_s") or positive(metrics, "step_s")
    if step:
        return Measured("iter_s", "s", step, step)
    rates = (("tok_s_dev", "tok/s", layout.cards), ("tok_s_total", "tok/s", 1))
    for key, unit, cards in rates:
        rate = positive(metrics, key)
        if rate:
            return Measured(key, unit, rate, tokens / (rate * cards))
    sequences = positive(metrics, "samples_s_total")
    if sequences:
        return Measured("samples_s_total", "1/s", sequences, layout.sequences / sequences)
    return _from_flops(record, metrics, layout, tokens, sequence, graph)


def _from_flops(
    record: Mapping[str, Any], metrics: Mapping[str, Any], layout: Layout, tokens: int, sequence: int, graph: Graph
) -> Measured | None:
    check = part(record, "check")
    convention = text(record.get("flops_convention"))
    derived = positive(check, "tok_s_dev_from_tf") or positive(check, "tok_s_dev_derived")
    if derived:
        note = f"tokens/s and card from the row's FLOP/s ({convention or 'convention not stated'})"
        return Measured("tok_s_dev", "tok/s", derived, tokens / (derived * layout.cards), note)
    speed = positive(metrics, "tflops_dev")
    if speed is None:
        share = positive(metrics, "mfu_pct")
        peak = positive(part(record, "hardware"), "peak_bf16_tf")
        if share is None or peak is None:
            return None
        if "6n" not in convention and "hfu" not in convention and positive(metrics, "hfu_pct") is None:
            convention = convention or "model_full"
        speed = peak * share / 100
        convention = convention.replace("hfu", "")
    each = flops_per_token(convention, check, layout, sequence, graph)
    rate = speed * 1e12 / each
    note = f"tokens/s and card from FLOP/s at {each / 1e12:.4g} TFLOP a token ({convention or 'full attention taken'})"
    return Measured("tok_s_dev", "tok/s", rate, tokens / (rate * layout.cards), note)


def flops_per_token(convention: str, check: Mapping[str, Any], layout: Layout, sequence: int, graph: Graph) -> float:
    """Return the FLOPs that a token's training counts for under a convention.

    ``causal``: half of the scores; ``hardware``: full recomputation counted, the layers a third more; ``6n``: without
    attention; else full attention.
    """
    ends = sum(item.matmul_flops_per_token() for item in (*graph.head, *graph.extra))
    layers = sum(
        sum(item.matmul_flops_per_token() for item in graph.kinds[kind].operators) for kind in graph.layers
    )  # fmt: skip
    heads = [item for kind in graph.layers for item in graph.kinds[kind].operators if item.kind == "attention"]
    scores = sum(
        2.0 * min(sequence, item.window or sequence) * item.heads * (item.key_dim + item.value_dim) for item in heads
    )
    if "6n" in convention:
        return 3 * (layers + ends)
    if "hardware" in convention or "incl_full_recompute" in convention:
        return 4 * (layers + scores) + 3 * ends
    if "causal" in convention:
        given = number(check.get("mflop_causal_tf_per_tok"))
        return given * 1e12 if given else 3 * (layers + scores / 2 + ends)
    given = number(check.get("mflop_full_tf_per_tok"))
    return given * 1e12 if given else 3 * (layers + scores + ends)


def out_of_memory(record: Mapping[str, Any]) -> bool:
    """Return whether the row says that the run did not fit."""
    words = " ".join(str(value) for value in part(record, "metrics").values())
    return "OOM" in words or "out of memory" in f"{words} {text(record.get('notes'))[:60]}".casefold()
