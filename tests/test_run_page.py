"""The report of a run as a page: what it says, that nothing in it runs or is fetched, and that it stays small."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_pools import formation, pipeline, plan, pool
from zhenfa.live.page import page_of, write_page
from zhenfa.live.page.lanes import CELLS, bars
from zhenfa.live.page.plot import BUCKETS, steps_shown, thinned, ticks
from zhenfa.spec.result import (
    Attribution,
    BridgeCompared,
    BridgeTraffic,
    Estimate,
    Evaluation,
    Event,
    Figure,
    Figures,
    Incident,
    LawRow,
    Routing,
    Run,
    StageFigures,
    Telemetry,
    Wall,
    Walls,
)

MACHINE = formation(pool("fast", 1, 2e9), pool("slow", 1, 1e9))
PLAN = plan(pipeline((5, 3), ("fast", "slow"), 4))
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """The text that is seen, every element with its attributes, and whether all of them are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " | ".join(self.words)


def stage(card: int, pool: str, layers: tuple[int, int], forward: float) -> StageFigures:
    return StageFigures(
        pipeline=0, stage=card, pool=pool, layers=layers, forward_s=forward, backward_s=2 * forward, transfer_s=0.0,
        memory_bytes=2e8, capacity_bytes=4e8, card=card,
    )  # fmt: skip


def event(card: int, kind: str, at: float, end: float, micro_batch: int = 0) -> Event:
    return Event(card=card, kind=kind, micro_batch=micro_batch, start_s=at, end_s=end)


DEATH = Incident(
    step=2, at_s=4.5, kind="death", card="card 1", words="signal SIGKILL", action="restart", steps_lost=1,
    noticed_s=0.016, down_s=0.9,
)  # fmt: skip


def run(**changes: object) -> Run:
    """A run with round numbers and with everything in it."""
    predicted = Figures(
        step_time_s=Figure(value=1.9, unit="s", tag="assumed", note="emulated cards", p10=1.8, p90=2.0),
        energy_j_per_token=Figure(unit="J", note="no power of their own"),
    )
    stages = (stage(0, "fast", (0, 5), 0.1), stage(1, "slow", (5, 8), 0.2))
    whole = Run(
        plan=PLAN, steps=4, step_times_s=(2.0, 2.0), losses=(5.5, 5.0, 4.5), gradient_norms=(1.0, 0.5, 0.75),
        evaluations=(Evaluation(step=4, loss=4.75),), stages=stages, emulated=True, effective_share=0.6,
        estimate=Estimate(
            plan=PLAN, figures=predicted, walls=Walls(), stages=stages[:1], assumptions=("links as declared",),
            sources=("a paper, https://example.org/paper",),
        ),
        figures=Figures(step_time_s=Figure(value=2.0, unit="s", tag="measured")),
        walls=Walls(
            compute=Wall(share=0.8, detail="forward 80.0%", advice="faster cards"),
            communication=Wall(share=0.2, detail="receive 20.0%"),
            energy=Wall(detail="emulated cards draw none of their own"),
            reliability=Wall(share=0.4, detail="1 incident; down 40.0%"),
        ),
        events=(
            event(0, "forward", 0.0, 0.5), event(0, "send", 0.5, 0.6), event(1, "receive", 0.0, 0.6),
            event(1, "backward", 0.6, 2.0, 1), event(0, "tune", 1.0, 1.5), event(0, "wait", 1.5, 2.0),
        ),
        fidelity={"valid": True, "verdict": "0 of 9 operations were late", "operations": 9.0, "missed": 0.0,
                  "missed_share": 0.0, "worst_overshoot_s": 0.002, "protection": "none"},
        share_of_sum_of_speeds=0.75, even_split={"step_time_s": 3.0, "speed_up": 1.5, "share_of_sum_of_speeds": 0.5},
        checkpoint="runs/test-1/checkpoint-000004", incidents=(DEATH,), notes=("one thing to know",),
    )  # fmt: skip
    return whole.model_copy(update=changes)


def test_the_page_says_all_of_the_run() -> None:
    page = Reader(page_of(run(), MACHINE))
    said, _, rest = page.text.partition(" | The plan as YAML | ")
    assert said == (
        "test: report of a run (EMULATED) | test | EMULATED"
        " | 4 steps of tiny on 2 cards of test-machine, engine local; 4 sequences of 16 tokens a step, fp32,"
        " schedule 1f1b."
        " | The cards are emulated: the time is that of the emulation, and says nothing of any maker's silicon."
        " | Predicted beside measured | predicted: estimated before the run"
        " | figure | predicted | measured | measured / predicted"
        " | step time | 1.9 s | assumed | p10 to p90: 1.8-2 | emulated cards | 2 s | measured | 1.053"
        " | throughput | - | - | - | throughput per card | - | - | - | MFU | - | - | -"
        " | memory, fullest card | - | - | -"
        " | What the run showed | loss | : 5.5000 to 4.5000 over 3 steps"
        " | share of the sum of speeds | : 75 %: the ideal step with every card busy all the time, over the measured"
        " one"
        " | the same cards with an even split | : 3 s a step, 50 % of the sum of speeds; the plan is 1.50 times as fast"
        " | checkpoint | : runs/test-1/checkpoint-000004"
        " | Loss | steps 2 to 4 | training loss | loss on held-out text | incident, by its number in the recovery log"
        " | 4.5 | 4.75 | 5 | 5.25 | 5.5 | 2 | 3 | 4 | 1"
        " | norm of all gradients before clipping | 0.4 | 0.6 | 0.8 | 1 | 2 | 3 | 4 | 1 | steps"
        " | Four walls | measured; compute binds"
        " | compute | 80 % | forward 80.0% To move it: faster cards | communication | 20 % | receive 20.0%"
        " | energy | not measured | emulated cards draw none of their own"
        " | reliability | 40 % | 1 incident; down 40.0%"
        " | Timeline of the last step | blank: waiting for another card; every other micro-batch in a weaker tone"
        " | forward | backward | held up by a message | something else"
        " | card 0: maker fast, pipeline 0 stage 0, layers: 0-4 | card 1: maker slow, pipeline 0 stage 1, layers: 5-7"
        " | 0 s | 500 ms | 1 s | 1.5 s | 2 s"
        " | Recovery log | 60 % of the time went into steps that stayed"
        " | no. | step | at | card | what happened | done about it | steps again | noticed after | down"
        " | 1 | 2 | 4.5 s | card 1 | death: signal SIGKILL | restart | 1 | 16 ms | 900 ms"
        " | Cards | seconds per micro-batch and bytes: predicted / measured"
        " | card | pool | stage | layers | forward | backward | memory of the card"
        " | 0 | fast (maker fast) | 0 of pipeline 0 | 0-4 | 100 ms / 100 ms | 200 ms / 200 ms"
        " | 200 MB / 200 MB of 400 MB"
        " | 1 | slow (maker slow) | 1 of pipeline 0 | 5-7 | - / 200 ms | - / 400 ms | - / 200 MB of 400 MB"
        " | Fidelity of the emulation | 0 of 9 operations were late | operations and messages | : 9 | late | : 0"
        " | share that was late | : 0 % | worst delay | : 2 ms | protection | : none"
        " | Notes | one thing to know | Plan and sources"
    )
    plan_said, *ground = rest.split(" | ")
    assert plan_said == " ".join(PLAN.to_yaml().split())
    assert ground == [
        "What the prediction assumes", "links as declared",
        "Sources of the prediction", "a paper, https://example.org/paper",
    ]  # fmt: skip


def test_the_page_says_what_crossed_the_bridge_who_was_where_and_what_cards_told() -> None:
    compared = BridgeCompared(
        steps=2, step_time_s=3.0, speed_up=1.5, bytes_sent=4e6, loss_difference=0.02, last_loss_difference=-0.01
    )
    bridge = BridgeTraffic(
        activations="bf16", gradients="int8", bytes_raw={"activations": 2e6, "gradients": 2e6},
        bytes_sent={"activations": 1e6, "gradients": 5e5}, link_s=0.2, held_s=0.1, uncompressed=compared,
    )  # fmt: skip
    routing = Routing(
        busiest_expert=Figure(value=1.5, tag="measured"), busiest_card=Figure(value=1.25, tag="measured"),
        unused_experts=1, experts=8,
    )  # fmt: skip
    telemetry = (Telemetry(pool="fast", index=0, samples=3, power_w=250.0, hottest_c=71.0),
                 Telemetry(pool="slow", index=0, samples=1, hottest_c=40.5))  # fmt: skip
    stages = (stage(0, "fast", (0, 5), 0.1).model_copy(update={"host": "node1"}), stage(1, "slow", (5, 8), 0.2))
    text = Reader(page_of(run(bridge=bridge, routing=routing, telemetry=telemetry, stages=stages), MACHINE)).text
    for said in (
        " | tokens over experts | : the busiest expert of a layer had 1.50 times the mean, the busiest of the cards"
        " that share them out 1.25 times, 1 of 8 had none (last step)",
        " | bridge between makers | : 1.5 MB a step (activations 1 MB, gradients 500 kB); 200 ms on the busiest card's"
        " links; cards were held up for 100 ms at most",
        " | compressed | : activations bf16, gradients int8: 2.67 times fewer bytes",
        " | the same steps uncompressed | : 3 s a step, and the run is 1.50 times as fast; over 2 steps the loss"
        " differs by 0.02 of it at most, and by -0.01 in the last of them",
        " | card | pool | host | stage | ",
        " | 0 | fast (maker fast) | node1 | ",
        " | 1 | slow (maker slow) | - | ",
        " | What cards told of themselves | card 0 of pool fast | : 250 W on the mean, 71 degrees C at most, asked 3"
        " times | card 0 of pool slow | : 40.5 degrees C at most, asked once",
    ):
        assert said in text


def test_a_run_on_real_cards_with_nothing_in_it_says_so() -> None:
    empty = run(stages=(stage(0, "gone", (0, 1), 0.1), stage(1, "slow", (8, 8), 0.2)))
    text = Reader(page_of(empty, MACHINE)).text
    assert "card 0: gone, pipeline 0 stage 0, layers: 0 | card 1: maker slow, pipeline 0 stage 1, layers: none" in text
    assert "| 0 | gone | 0 of pipeline 0 | 0 |" in text
    bare = Run(plan=PLAN, steps=0, figures=Figures(), walls=Walls())
    text = Reader(page_of(bare, MACHINE)).text
    assert "EMULATED" not in text
    assert text.count("not measured | a run does not measure it") == 4
    assert "No events were recorded." in text
    assert "Nothing happened to any card." in text
    left_alone = run(emulated=False, fidelity={"valid": False, "verdict": "others took part", "protection": "none"})
    page = Reader(page_of(left_alone, MACHINE))
    assert "Left alone | others took part" in page.text
    assert ("p", {"class": "warn"}) in page.elements


def test_nothing_in_the_page_runs_or_is_fetched(tmp_path: Path) -> None:
    page = Reader(write_page(run(), MACHINE, tmp_path / "report.html").read_text(encoding="utf-8"))
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "a", "form", "base", "use", "image"}
    keys = {key for _, attributes in page.elements for key in attributes}
    assert not [key for key in keys if key in {"src", "href", "xlink:href", "srcset", "action"} or key.startswith("on")]
    values = [value for name, attributes in page.elements for value in attributes.values() if name != "meta"]
    assert not [value for value in values if value and ("http" in value or "url(" in value)]
    policy = next(one["content"] for _, one in page.elements if one.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@given(st.text(max_size=40).map("<script>alert(1)</script>\"' &amp; </style>{}".__add__))
@settings(max_examples=40, deadline=None)
def test_names_cannot_leave_their_place(name: str) -> None:
    death = DEATH.model_copy(update={"card": name, "words": name})
    hostile = run(
        plan=PLAN.model_copy(update={"job": name, "model": name, "machine": name}), incidents=(death,), notes=(name,),
        events=(event(0, name, 0.0, 1.0),), fidelity={"verdict": name, "protection": name}, checkpoint=name,
        figures=Figures(step_time_s=Figure(value=1.0, unit=name, note=name)),
    )  # fmt: skip
    page, plain = page_of(hostile, MACHINE), Reader(page_of(run(), MACHINE))
    page.encode("utf-8")
    found = Reader(page)
    assert {name for name, _ in found.elements} <= {name for name, _ in plain.elements}
    assert {key for _, one in found.elements for key in one} <= {key for _, one in plain.elements for key in one}
    assert found.text.count("<script>alert(1)</script>") >= 9


KINDS = st.sampled_from(("death", "hang", "error", "poison", "slow", "back"))


@given(
    st.lists(st.tuples(st.integers(1, 10**6), KINDS, st.integers(0, 10**6)), max_size=30),
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)), min_size=1, max_size=30),
    st.integers(0, 40),
)
@settings(max_examples=40, deadline=None)
def test_every_incident_and_every_card_appears(
    happened: list[tuple[int, str, int]], cuts: list[tuple[int, int]], steps: int
) -> None:
    incidents = tuple(
        DEATH.model_copy(update={"step": step, "kind": kind, "words": f"word-{number}-{size}"})
        for number, (step, kind, size) in enumerate(happened)
    )
    stages = tuple(stage(card, "fast", (first, first + count), 0.1) for card, (first, count) in enumerate(cuts))
    changed = run(incidents=incidents, stages=stages, steps=steps, losses=tuple(map(float, range(steps))))
    words = Reader(page_of(changed, MACHINE)).words
    for number, (step, kind, size) in enumerate(happened):
        at = words.index(f"{kind}: word-{number}-{size}")
        assert (words[at - 4], words[at - 3]) == (str(number + 1), f"{step:,}")
    labels = [word for word in words if word.startswith("card ") and ": maker fast" in word]
    assert [label.split(":")[0] for label in labels] == [f"card {card}" for card in range(len(stages))]


def test_twenty_thousand_events_and_steps_stay_small() -> None:
    kinds = ("forward", "backward", "receive", "reduce")
    events = tuple(
        event(number % 2, kinds[number % 7 % 4], number * 1e-4, number * 1e-4 + 1e-4 * (1 + number % 3), number)
        for number in range(20_000)
    )
    numbers = tuple(5.0 + number % 13 / 7 for number in range(20_000))
    long = run(events=events, losses=numbers, gradient_norms=numbers, steps=20_000)
    assert len(page_of(long, MACHINE).encode()) < 400_000
    wide = run(events=tuple(one.model_copy(update={"end_s": one.start_s + 1e-3}) for one in events))
    assert len(page_of(wide, MACHINE).encode()) < 1_000_000


SPANS = st.lists(st.tuples(st.floats(0, 9.9), st.floats(1e-9, 3), st.sampled_from(("forward", "reduce"))), min_size=1)


@given(SPANS)
def test_a_lane_shows_every_event_where_it_was(spans: list[tuple[float, float, str]]) -> None:
    events = [event(0, kind, start, min(start + length, 10.0)) for start, length, kind in spans]
    drawn = bars(events, 10.0)
    assert all(0 <= first < last <= CELLS for first, last, _ in drawn)
    for one in events:
        middle = CELLS * (one.start_s + one.end_s) / 20
        assert any(first - 1 <= middle <= last + 1 for first, last, _ in drawn)


@pytest.mark.parametrize("count", [1, 2, 2 * BUCKETS, 2 * BUCKETS + 1, 40_000])
def test_a_long_curve_keeps_its_ends_and_its_peaks(count: int) -> None:
    points = [(float(step), float(step * 7919 % 1009)) for step in range(count)]
    kept = thinned(points)
    assert len(kept) <= 2 * BUCKETS
    assert set(kept) <= set(points)
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    for pick in (min, max):
        assert pick(value for _, value in kept) == pick(value for _, value in points)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_ticks_enclose_what_is_shown(one: float, other: float) -> None:
    low, high = sorted((one, other))
    levels = ticks(low, high)
    slack = 1e-9 * max(abs(low), abs(high))
    assert levels[0] <= low + slack
    assert levels[-1] >= high - slack
    assert 2 <= len(levels) <= 8
    assert levels == sorted(set(levels))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_steps_under_a_plot_are_steps_of_the_run(start: int, more: int) -> None:
    shown = steps_shown(start, start + more)
    assert shown == sorted(set(shown))
    assert (shown[0], shown[-1]) == (start, start + more)
    assert len(shown) <= 10


def test_the_page_says_which_law_was_off() -> None:
    rows = (
        LawRow(law="host", where="between operations", predicted_s=0.0, measured_s=0.01, effect_s=0.01),
        LawRow(
            law="messages", where="network", predicted_s=0.1, measured_s=0.4, ratio=4.0, within=False, effect_s=0.28,
            named=True,
        ),
    )  # fmt: skip
    found = Attribution(
        predicted_step_s=2.0, measured_step_s=2.3, low=0.9, high=1.1, band="declared", steps=3, off=True, judged=True,
        rows=rows, remainder_s=0.01, verdict="the step took 1.15 times as long as predicted",
        wrong=("messages, network: four times as long",),
    )  # fmt: skip
    text = Reader(page_of(run(attribution=found), MACHINE)).text
    assert (
        "Law by law | seconds of a step, mean of 3 timed; what being off adds to the step"
        " | the step took 1.15 times as long as predicted | messages, network: four times as long"
        " | law | where | predicted | measured | ratio | adds to the step"
        " | messages | network | 100 ms | 400 ms | 4 | +280 ms"
        " | host | between operations | 0 s | 10 ms | - | +10 ms"
        " | no law | remainder | +10 ms"
    ) in text
    assert "Law by law" not in page_of(run(), MACHINE)
