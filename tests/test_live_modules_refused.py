"""What cannot be cut over cards, or must not run, is refused in words before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreign_modules import HAND_WRITTEN, configured, written
from live_pools import LENGTH
from zhenfa.errors import CapabilityError, InputError, ZhenfaError
from zhenfa.live.foreign.build import build
from zhenfa.live.foreign.look import look_through


def changed(old: str, new: str) -> str:
    assert HAND_WRITTEN.count(old) >= 1, old
    return HAND_WRITTEN.replace(old, new)


STEP = "            x = block(x, bias=bias)"
FORWARD = "        length = tokens.shape[1]\n"
END = "        return self.head(self.norm(x))"
TIE = "        self.head.weight = self.words.weight"

CANNOT_BE_CUT = {
    "no list of blocks": (
        changed(
            'nn.ModuleDict({"blocks": nn.ModuleList(Block(width) for _ in range(layers))})',
            'nn.ModuleDict({"blocks": Block(width)})',
        )
        .replace('in self.parts["blocks"]', 'in [self.parts["blocks"]]')
        .replace(
            "nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))",
            "nn.Linear(width, width)",
        ),
        "no list of blocks",
    ),
    "a block twice": (changed(STEP, f"{STEP}\n{STEP}"), "run in the order 0, 0"),
    "a block left out": (changed('in self.parts["blocks"]', 'in self.parts["blocks"][:-1]'), "runs 7 of the 8 blocks"),
    "blocks backwards": (changed('in self.parts["blocks"]', 'in self.parts["blocks"][::-1]'), "run in the order 7"),
    "features from before": (
        changed(STEP, "            x = block(x, bias=bias) + 0.1 * start").replace(
            "        bias = torch", "        start = x\n        bias = torch"
        ),
        "block 1 takes what .*words.weight.* has gone into since block 0",
    ),
    "features of an earlier block": (
        changed(
            STEP,
            "            x = block(x, bias=bias) + (0 if block is self.parts['blocks'][0] else first)\n"
            "            first = x if block is self.parts['blocks'][0] else first",
        ),
        "has gone into since block 1|block 2 takes",
    ),
    "two tensors of features": (
        changed(STEP, "            x = block(x, bias=bias + x.mean())"),
        "block 0 takes 2 tensors that depend on the tokens",
    ),
    "weights between blocks": (
        changed(TIE, f"{TIE}\n        self.scale = nn.Parameter(torch.ones(width))").replace(
            STEP, f"{STEP} * self.scale"
        ),
        "block 1 takes what scale has gone into",
    ),
    "a block's weights outside it": (
        changed(END, "        return self.head(self.norm(x)) * self.parts['blocks'][0].norm.weight.sum()"),
        r"its logits depend on parts.blocks.0.norm.weight",
    ),
    "tokens after the blocks": (
        changed(END, "        return self.head(self.norm(x)) + tokens[..., None]"),
        "its logits depend on tokens",
    ),
    "weights shared by blocks": (
        changed(TIE, f"{TIE}\n        self.parts['blocks'][3].out.weight = self.parts['blocks'][1].out.weight"),
        "parts.blocks.3.out.weight is shared by block 1 and block 3",
    ),
    "a weight that is not used": (
        changed(TIE, f"{TIE}\n        self.idle = nn.Linear(3, 4)"),
        "idle.bias takes no part in the logits",
    ),
    "a weight of a block that is not used": (
        changed("        self.drop = nn", "        self.idle = nn.Linear(3, 4)\n        self.drop = nn"),
        "parts.blocks.0.idle.bias takes no part in what block 0 gives",
    ),
    "a frozen weight": (
        changed(TIE, f"{TIE}\n        self.norm.weight.requires_grad = False"),
        "norm.weight is not trained",
    ),
    "weights in 16 bits": (changed("return Model()", "return Model().bfloat16()"), "is in bfloat16"),
    "running statistics": (
        changed(TIE, f"{TIE}\n        self.register_buffer('seen', torch.zeros(()))").replace(
            FORWARD, f"{FORWARD}        self.seen += 1\n"
        ),
        "its forward changes seen",
    ),
    "chance without training": (
        changed(END, "        return self.head(self.norm(x)) + torch.rand_like(x[..., :1])"),
        "draws random numbers in eval mode",
    ),
    "a way that depends on features": (
        changed(END, "        return self.head(self.norm(x) if x.sum() > 0 else x)"),
        "depends on the values of features or weights",
    ),
    "a way that depends on tokens": (
        changed(FORWARD, f"{FORWARD}        tokens = tokens * 2 if tokens.max() < 99 else tokens\n"),
        "depends on the values of tokens",
    ),
    "a name of the runtime's": (
        changed(TIE, f"{TIE}\n        self.crew = nn.Linear(width, width)"),
        "a part called 'crew'",
    ),
    "features of two dimensions": (
        changed("        bias = torch", "        x = x.flatten(0, 1)\n        bias = torch"),
        "block 0 takes features of shape",
    ),
}


@pytest.mark.parametrize("what", CANNOT_BE_CUT)
def test_a_module_that_several_cards_would_train_otherwise_is_refused(what: str, tmp_path: Path) -> None:
    source, words = CANNOT_BE_CUT[what]
    with pytest.raises(CapabilityError, match=words) as caught:
        look_through("python", written(tmp_path, source), "build", LENGTH)
    assert caught.value.hint
    assert "meta" not in caught.value.message


FAILS = {
    "no such function": (HAND_WRITTEN.replace("def build", "def make"), "has no function 'build'"),
    "no function": ("build = 3\n", "has no function 'build'"),
    "no module": ("def build():\n    return 3\n", "returns a int, not a torch.nn.Module"),
    "a file that fails": ("import nowhere_at_all\n", "own_model.py failed: ModuleNotFoundError.*line 1"),
    "a forward that fails": (
        changed(END, "        raise ValueError('out of ideas')"),
        r"failed: ValueError: out of ideas \(own_model.py, line",
    ),
    "a forward with other arguments": (
        changed("forward(self, tokens)", "forward(self, tokens, mask)"),
        "missing 1 required",
    ),
    "no logits": (changed(END, "        return x.mean(1)"), r"gives a Tensor of shape \[2, 32\]"),
    "a tuple": (changed(END, "        return self.head(self.norm(x)), None"), "gives a tuple for tokens"),
    "too few positions": (changed("longest=32", "longest=15"), r"knows 15 positions \(places.weight\).*16 tokens"),
    "no list of that name": (HAND_WRITTEN, "execution.blocks is 'h', which is no list"),
}


@pytest.mark.parametrize("what", FAILS)
def test_a_module_that_fails_is_told_of_in_words(what: str, tmp_path: Path) -> None:
    source, words = FAILS[what]
    blocks = "h" if what == "no list of that name" else None
    with pytest.raises(InputError, match=words):
        look_through("python", written(tmp_path, source), "build", LENGTH, blocks)


def test_the_list_of_blocks_is_the_one_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert look_through("python", path, "build", LENGTH, "parts.blocks").sizes.layers == 8
    with pytest.raises(CapabilityError, match="cannot be cut"):
        look_through("python", path, "build", LENGTH, "parts.blocks.0.mlp")


def test_a_file_that_has_changed_since_the_plan_does_not_run(tmp_path: Path) -> None:
    path = written(tmp_path)
    source = look_through("python", path, "build", LENGTH).sizes.source
    assert source is not None
    build(source)
    marker = tmp_path / "ran"
    path.write_text(f"open({str(marker)!r}, 'w').close()\n" + HAND_WRITTEN, encoding="utf-8")
    with pytest.raises(InputError, match="has changed"):
        build(source)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}, "asks for code of its own"),
        ("from-elsewhere", {}, "does not ship the model type 'from-elsewhere'"),
        ("gpt2", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "weights are in few bits"),
        ("bert", {}, "reads its tokens in both directions"),
        ("t5", {}, "no causal language model of the type 't5'"),
    ],
)
def test_a_configuration_that_is_not_built_is_refused(
    kind: str, changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CapabilityError, match=words) as caught:
        look_through("transformers", configured(tmp_path, kind, **changes), "", LENGTH)
    assert caught.value.hint


def test_code_that_a_directory_brings_along_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = configured(tmp_path, "mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})
    (tmp_path / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    with pytest.raises(ZhenfaError):
        look_through("transformers", path, "", LENGTH)
    assert not marker.exists()


def test_sequences_longer_than_the_table_of_positions_are_refused(tmp_path: Path) -> None:
    path = configured(tmp_path, "gpt2", n_positions=8)
    with pytest.raises(InputError, match=r"knows 8 positions \(transformer.wpe.weight\)"):
        look_through("transformers", path, "", LENGTH)


def test_no_document_is_counted_from_a_mixture_of_transformers(tmp_path: Path) -> None:
    found = look_through("transformers", configured(tmp_path, "qwen3_moe"), "", LENGTH)
    assert found.sizes.layers == 8
    with pytest.raises(CapabilityError, match="no document is counted from mixtures"):
        found.counted()


def test_a_directory_without_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from zhenfa.live.foreign.build import from_config

    found = look_through("transformers", configured(tmp_path, "qwen3"), "", LENGTH)
    with pytest.raises(InputError, match="cannot be read"):
        found.check_weights(tmp_path)
    module = from_config(tmp_path / "config.json")
    tensors = {name: weight.detach() for name, weight in module.named_parameters()}
    save_file(tensors, tmp_path / "model.safetensors")
    found.check_weights(tmp_path)
    del tensors["model.layers.5.self_attn.k_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'model.layers.5.self_attn.k_norm.weight'"):
        found.check_weights(tmp_path)
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match=r"k_norm.weight'"):
        found.check_weights(tmp_path)
