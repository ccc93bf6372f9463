"""The parts of the live runtime, each alone."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from live_pools import TINY, formation, pipeline, plan, pool
from zhenfa.errors import CapabilityError, InputError
from zhenfa.live import cgroup, data, wire
from zhenfa.live.board import ACTIVITIES, Board
from zhenfa.live.decoder import StageModule
from zhenfa.live.discovery import devices
from zhenfa.live.engine_ray import RayEngine
from zhenfa.live.flops import FlopCount
from zhenfa.live.fused import GatedSilu, RmsNorm
from zhenfa.live.hops import standing
from zhenfa.live.makers import maker_for
from zhenfa.live.model import sizes_of
from zhenfa.live.orders import Orders
from zhenfa.live.placement import links_of, place
from zhenfa.live.recipe import Recipe
from zhenfa.live.replicas import owners
from zhenfa.live.run import even_split, run_plan
from zhenfa.live.sizes import Sizes
from zhenfa.live.train import _interrupts_later
from zhenfa.spec.machine import Accelerator, Software
from zhenfa.spec.model import Model

MODEL = {
    "schema": "zhenfa.model/1",
    "name": "small",
    "hidden_size": 64,
    "vocabulary_size": 256,
    "layers": [
        {
            "repeat": 3,
            "mixer": {"kind": "attention", "heads": 4, "kv_heads": 2, "head_dim": 16},
            "feed_forward": {"kind": "dense", "size": 96},
        }
    ],
}


def test_importing_the_runtime_does_not_import_torch() -> None:
    code = "import sys, zhenfa.live.run, zhenfa.live.timeline, zhenfa.live.discovery; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_every_split_gives_the_same_model() -> None:
    whole = StageModule(TINY, 0, 8, stem=True, head=True, seed=5).state_dict()
    parts: dict[str, torch.Tensor] = {}
    for first, last in ((0, 3), (3, 4), (4, 8)):
        parts |= StageModule(TINY, first, last, stem=first == 0, head=last == 8, seed=5).state_dict()
    assert list(parts) == [name for name in whole if name in parts]
    assert set(parts) == set(whole)
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert sum(value.numel() for value in whole.values()) == TINY.parameters
    other = StageModule(TINY, 0, 8, stem=True, head=True, seed=6).state_dict()
    assert not torch.equal(other["layers.0.mlp.up.weight"], whole["layers.0.mlp.up.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_model_document(tied: bool) -> None:
    model = Model.from_data(MODEL | {"head": {"tied": tied}})
    sizes = sizes_of(model)
    assert sizes == Sizes(64, 3, 4, 2, 16, 96, 256, gated=True, tied=tied)
    module = StageModule(sizes, 0, 3, stem=True, head=True, seed=0)
    assert sum(parameter.numel() for parameter in module.parameters()) == model.graph().parameters == sizes.parameters


EXPERTS = {"kind": "experts", "count": 4, "active": 2, "size": 32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "layer"}, "layer norms"),
        ({"embedding": {"positions": 128}}, "an embedding with positions"),
        ({"head": {"bias": True}}, "a head with bias"),
        ({"layers": [MODEL["layers"][0] | {"feed_forward": EXPERTS | {"score": "sigmoid"}}]},
         "experts with score"),
        ({"layers": [MODEL["layers"][0] | {"mixer": {"kind": "attention", "heads": 4, "head_dim": 16, "window": 64}}]},
         "attention with window"),
        ({"layers": [MODEL["layers"][0], MODEL["layers"][0] | {"feed_forward": {"kind": "dense", "size": 32}}]},
         "layers of different sizes"),
        ({"layers": [MODEL["layers"][0] | {"norms": 4}]}, "layers with other norms"),
    ],
)  # fmt: skip
def test_models_that_cannot_run_are_refused_in_a_sentence(change: dict[str, object], words: str) -> None:
    with pytest.raises(CapabilityError, match=f"small has {words}.*cannot run in torch"):
        sizes_of(Model.from_data(MODEL | change))


def test_flops_are_those_of_the_shapes() -> None:
    module = StageModule(TINY, 0, 8, stem=True, head=True, seed=0)
    tokens = torch.zeros((2, 16), dtype=torch.int64)
    with FlopCount() as forward:
        logits = module(tokens)
    with FlopCount() as backward:
        logits.sum().backward()
    weights = sum(p.numel() for name, p in module.named_parameters() if p.dim() == 2 and "embedding" not in name)
    pairs = 8 * 2 * TINY.heads * (16 * 17 / 2)
    assert forward.total == 2 * 32 * weights + 2 * pairs * 2 * TINY.head_dim
    assert backward.total == 4 * 32 * weights + 2 * pairs * 5 * TINY.head_dim
    again = StageModule(TINY, 0, 8, stem=True, head=True, seed=0, full_recompute=True)
    logits = again(tokens)
    with FlopCount() as recomputed:
        logits.sum().backward()
    head = 2 * 32 * TINY.hidden * TINY.vocabulary
    last_product = 8 * 2 * 32 * TINY.intermediate * TINY.hidden  # of each layer: nothing behind it needs its result
    assert recomputed.total == backward.total + forward.total - head - last_product


def test_norm_and_gate_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    one, other, gradient = (torch.randn(3, 5, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    weight = torch.rand(8, generator=generator, dtype=torch.float64)

    def both(work: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        result = work(*leaves)
        result.backward(gradient)
        return [result, *(leaf.grad for leaf in leaves)]

    norms = (lambda x, w: RmsNorm.apply(x, w, 1e-5)), (lambda x, w: torch.nn.functional.rms_norm(x, (8,), w, 1e-5))
    gates = GatedSilu.apply, (lambda gate, up: torch.nn.functional.silu(gate) * up)
    for (own, plain), inputs in ((norms, (one, weight)), (gates, (one, other))):
        for ours, theirs in zip(both(own, *inputs), both(plain, *inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_data_depend_on_seed_and_step_alone() -> None:
    text = data.corpus("python-stdlib")
    assert 1_000_000 < text.size <= data.MOST_BYTES
    draw = {"seed": 3, "step": 9, "global_batch": 12, "length": 40}
    inputs, targets = data.batch(text, **draw)
    assert inputs.shape == targets.shape == (12, 40)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    for which in ([0, 1, 2, 3, 4], [5], [6, 8, 10], [11, 7]):
        assert (data.batch(text, which=which, **draw)[0] == inputs[which]).all()
    assert (data.batch(text, **draw | {"step": 10})[0] != inputs).any()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_corpus_reads_over_the_ends_of_files(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], draw: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    whole = bytes(np.random.default_rng(sum(sizes)).integers(0, 256, sum(sizes), dtype=np.uint8))
    ends = np.cumsum(sizes).tolist()
    paths = tuple(folder / str(index) for index in range(len(sizes)))
    for path, size, end in zip(paths, sizes, ends, strict=True):
        path.write_bytes(whole[end - size : end])
    text = data.Corpus("files", paths, tuple(ends))
    start = draw.draw(st.integers(0, len(whole) - 1))
    count = draw.draw(st.integers(0, len(whole) - start))
    assert bytes(text.read(start, count)) == whole[start : start + count]


def test_unknown_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data called 'wikipedia'"):
        data.corpus("wikipedia")
    (tmp_path / "own.txt").write_bytes(b"abcdefghij")
    own = data.corpus(str(tmp_path / "own.txt"))
    assert bytes(own.read(2, 3)) == b"cde"


def test_owners_follow_the_splits_of_every_replica() -> None:
    machine = formation(pool("a", 8))
    places = place(plan(pipeline([6, 2], "aa", 4), pipeline([3, 5], "aa", 2)), machine, TINY)
    assert [(shared.parts, shared.ranks) for shared in owners(places, TINY)] == [
        (("stem", "layer 0", "layer 1", "layer 2"), (0, 2)),
        (("layer 3", "layer 4", "layer 5"), (0, 3)),
        (("layer 6", "layer 7", "head"), (1, 3)),
    ]
    tied = owners(places, replace(TINY, tied=True))
    assert (("stem",), (0, 1, 2, 3)) in [(shared.parts, shared.ranks) for shared in tied]
    alone = place(plan(pipeline([6, 2], "aa", 4)), machine, TINY)
    assert owners(alone, TINY) == []


def test_cards_are_given_out_in_the_order_of_the_plan() -> None:
    machine = formation(pool("a", 3, speed=2e9), pool("b", 3, speed=1e9))
    chosen = plan(pipeline([5, 3], "ab", 4).model_copy(update={"count": 2}), pipeline([8], "a", 3, size=2))
    places = place(chosen, machine, TINY)
    assert [(item.pool, item.index, item.pipeline, item.stage) for item in places] == [
        ("a", 0, 0, 0), ("b", 0, 0, 1), ("a", 1, 1, 0), ("b", 1, 1, 1), ("a", 2, 2, 0),
    ]  # fmt: skip
    assert [item.first_sequence for item in places] == [0, 0, 4, 4, 8]
    assert [item.rate for item in places] == [2e9, 1e9, 2e9, 1e9, 2e9]
    assert places[1].label == "card 1 (b card, pool b, stage 1 of pipeline 0)"
    orders = Orders(
        places=places, links=links_of(places, machine), sizes=TINY, schedule="1f1b", zero=1, length=16,
        global_batch=14, seed=0, recipe=Recipe(6, 1e-3), data="python-stdlib", weights=None,
        address="127.0.0.1", port=1, generation="g", threads=1, timeout_s=1.0,
    )  # fmt: skip
    assert [standing(places, number) for number in range(3)] == [[[[0]], [[1]]], [[[2]], [[3]]], [[[4]]]]
    assert Orders.from_data(_over_the_wire(orders.to_data())) == orders


def _over_the_wire(message: dict[str, object]) -> dict[str, object]:
    one, other = socket.socketpair()
    with one, other:
        wire.send(one, message)
        one.close()
        reader = wire.Reader(other)
        found: list[dict[str, object]] = []
        while reader.open:
            found += reader.read()
    (only,) = found
    return only


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False)), max_size=5), st.integers(1, 50))
def test_messages_arrive_whole_in_whatever_pieces(messages: list[dict[str, object]], piece: int) -> None:
    stream = b"".join(wire.pack(message) for message in messages)
    one, other = socket.socketpair()
    with one, other:
        reader = wire.Reader(other)
        found: list[dict[str, object]] = []
        for start in range(0, len(stream), piece):
            one.sendall(stream[start : start + piece])
            found += reader.read()
    assert found == messages


def test_even_split_keeps_everything_else() -> None:
    chosen = plan(pipeline([4, 2, 1, 1], "abcc", 6), pipeline([5, 2, 1], "abc", 3))
    even = even_split(chosen)
    assert [[stage.layers for stage in row.stages] for row in even.pipelines] == [[2, 2, 2, 2], [3, 3, 2]]
    assert [row.micro_batches for row in even.pipelines] == [5, 4]
    assert even.global_batch == chosen.global_batch
    assert [stage.pool for stage in even.pipelines[0].stages] == list("abcc")
    assert even_split(even) == even
    replicas = plan(pipeline([8], "a", 9), pipeline([8], "b", 2).model_copy(update={"count": 2}))
    assert [(row.count, row.micro_batches) for row in even_split(replicas).pipelines] == [(1, 5), (1, 4), (1, 4)]
    unlike = plan(pipeline([8], "a", 9, size=2), pipeline([8], "b", 2))
    assert even_split(unlike) == unlike


def test_an_interrupt_while_torch_is_imported_comes_through_afterwards() -> None:
    done: list[int] = []

    def work() -> None:
        with _interrupts_later():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match="torch is not installed") as caught:
        run_plan(plan(pipeline([8], "a", 1)), formation(pool("a", 1)), TINY)
    assert "zhenfa[live]" in str(caught.value)
    with pytest.raises(CapabilityError, match="Ray is not installed"):
        RayEngine()


def test_without_a_control_group_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    assert cgroup.create("zhenfa-test") is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="does not start with 'zhenfa-'"):
        cgroup.create("system")
    (tmp_path / "system").mkdir()
    assert not cgroup.remove(tmp_path / "system"), "only groups of our own are removed"
    assert (tmp_path / "system").exists()


def test_board_tells_what_a_card_was_doing(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 3, create=True)
    other = Board(tmp_path / "board", 3)
    other.write(2, "backward", micro_batch=5, step=4)
    other.write(1, "receive", peer=2, step=4)
    assert board.read(2).words() == "in the backward of micro-batch 5 of step 4"
    assert board.read(1).words() == "waiting for card 2"
    assert all(board.read(0).activity == "idle" for _ in ACTIVITIES)


def test_this_host_has_a_processor() -> None:
    found = devices()
    assert found[0].provider == "cpu"
    assert found[0].memory_bytes > 100_000_000
    assert all(device.provider != "cpu" for device in found[1:])


def test_cards_without_a_provider_are_refused() -> None:
    tpu = Accelerator(id="x", maker="m", name="X card", software=Software(torch_device="xla", collective_backend="xla"))
    with pytest.raises(CapabilityError, match="X card is reached through the torch device 'xla'"):
        maker_for(tpu)
    with pytest.raises(CapabilityError, match="no torch device that is known"):
        maker_for(Accelerator(id="y", maker="m", name="Y card"))
    with pytest.raises(CapabilityError, match="computes in fp8"):
        place(plan(pipeline([8], "a", 1)).model_copy(update={"precision": "fp8"}), formation(pool("a", 1)), TINY)


def test_decoder_is_a_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=256, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    sizes = Sizes(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocabulary=256)
    ours = StageModule(sizes, 0, 2, stem=True, head=True, seed=3)
    names = {
        "embedding.": "model.embed_tokens.", "norm.": "model.norm.", "head.": "lm_head.", "layers.": "model.layers.",
        ".attention_norm.": ".input_layernorm.", ".mlp_norm.": ".post_attention_layernorm.", ".mlp.": ".mlp.",
        ".attention.query.": ".self_attn.q_proj.", ".attention.key.": ".self_attn.k_proj.",
        ".attention.value.": ".self_attn.v_proj.", ".attention.output.": ".self_attn.o_proj.",
        ".gate.": ".gate_proj.", ".up.": ".up_proj.", ".down.": ".down_proj.",
    }  # fmt: skip
    weights = {}
    for name, value in ours.state_dict().items():
        theirs_name = "." + name
        for own, other in names.items():
            theirs_name = theirs_name.replace("." + own.lstrip("."), "." + other.lstrip("."), 1)
        weights[theirs_name.lstrip(".")] = value
    theirs.load_state_dict(weights)
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_a_reader_does_not_wait_for_what_another_has_taken() -> None:
    here, there = socket.socketpair()
    with here, there:
        reader = wire.Reader(here)
        wire.send(there, {"ended": 1})
        assert reader.read() == [{"ended": 1}]
        assert reader.read() == []
        assert reader.open
        there.close()
        assert reader.read() == []
        assert not reader.open
