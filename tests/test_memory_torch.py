"""What torch itself keeps for a backward pass, and holds at its peak, against the law: whole layers, by hooks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from plan_pools import attention, dense, sparse
from zhenfa.estimate.holding import holding, working_set
from zhenfa.estimate.shape import Shape
from zhenfa.estimate.traits import MEGATRON_LIKE, Traits
from zhenfa.spec.graph import Operator

torch = pytest.importorskip("torch")

HIDDEN, HEADS, INNER, SEQUENCE, BATCH = 256, 4, 640, 192, 2
FEW_PER_CENT = 0.03


def rms_norm(features: Any, scale: Any) -> Any:
    """As models are written: widened to 32 bits, normalised, brought back, scaled."""
    wide = features.float()
    return scale * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(features.dtype)


def dropped(features: Any, share: float) -> Any:
    """As accelerators drop out, with a mask of one byte; on processors the usual call keeps it as wide as the input."""
    return torch.native_dropout(features, share, True)[0] if share else features


class Layer(torch.nn.Module):
    """A decoder layer of plain torch operations."""

    def __init__(self, norm: str, inner: str, scores: str, drop: float, again: str) -> None:
        super().__init__()
        self.kinds, self.drop, self.again = (norm, inner, scores), drop, again
        self.scales = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(HIDDEN)) for _ in range(2)])
        self.qkv = torch.nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.output = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up = torch.nn.Linear(HIDDEN, INNER * (2 if inner == "gated" else 1), bias=False)
        self.down = torch.nn.Linear(INNER, HIDDEN, bias=False)

    def norm(self, features: Any, which: int) -> Any:
        if self.kinds[0] == "rms":
            return rms_norm(features, self.scales[which])
        return torch.nn.functional.layer_norm(features, (HIDDEN,), self.scales[which])

    def core(self, query: Any, key: Any, value: Any) -> Any:
        if self.kinds[2] == "flash":
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        weights = torch.softmax(query @ key.transpose(-1, -2), dim=-1)
        return dropped(weights, self.drop) @ value

    def attend(self, features: Any) -> Any:
        batch, length, _ = features.shape
        parts = self.qkv(features).view(batch, length, 3, HEADS, -1).transpose(1, 3).unbind(2)
        if self.again == "attention":
            mixed = torch.utils.checkpoint.checkpoint(self.core, *parts, use_reentrant=True)
        else:
            mixed = self.core(*parts)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, HIDDEN))

    def feed(self, features: Any) -> Any:
        grown = self.up(features)
        if self.kinds[1] == "gated":
            gate, value = grown.chunk(2, dim=-1)
            return self.down(torch.nn.functional.silu(gate) * value)
        return self.down(torch.nn.functional.gelu(grown))

    def block(self, features: Any) -> Any:
        middle = features + dropped(self.attend(self.norm(features, 0)), self.drop)
        return middle + dropped(self.feed(self.norm(middle, 1)), self.drop)

    def forward(self, features: Any) -> Any:
        if self.again == "full":
            return torch.utils.checkpoint.checkpoint(self.block, features, use_reentrant=True)
        return self.block(features)


class Experts(torch.nn.Module):
    """A layer of experts as wide as the model, every one on the tokens that its router chose."""

    def __init__(self, experts: int, active: int) -> None:
        super().__init__()
        self.active = active
        self.first = Layer("layer", "plain", "flash", 0.0, "none")
        self.router = torch.nn.Linear(HIDDEN, experts, bias=False)
        weights = [torch.nn.Parameter(torch.randn(experts, HIDDEN, HIDDEN) * 0.05) for _ in range(2)]
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, features: Any) -> Any:
        middle = features + self.first.attend(self.first.norm(features, 0))
        tokens = self.first.norm(middle, 1).reshape(-1, HIDDEN)
        logits = self.router(tokens)
        chosen = logits.topk(self.active, dim=-1).indices
        total = logits.sum() * 0.0
        for index, (up, down) in enumerate(zip(*self.weights, strict=True)):
            rows = (chosen == index).any(-1).nonzero()[:, 0]
            total = total + (torch.nn.functional.gelu(tokens[rows] @ up) @ down).sum()
        return middle * 1.0 + total


def kept(module: Any, features: Any) -> float:
    """Return the bytes that autograd keeps of a forward pass, each storage once, weights aside."""
    own = {one.untyped_storage().data_ptr() for one in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point() | (tensor.dtype == torch.bool):
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = module(features)
    assert result.requires_grad
    return float(sum(seen.values()))


def at(sequences: int = BATCH) -> Shape:
    return Shape(float(sequences), float(SEQUENCE), 1.0, 1.0, 1.0)


def gated() -> tuple[Operator, ...]:
    up = Operator("up", "matmul", HIDDEN * 2 * INNER, inputs=HIDDEN, outputs=2 * INNER, shard="column")
    return (
        *attention(HIDDEN, HEADS, HEADS),
        up,
        Operator("activation", "elementwise", inputs=2 * INNER, outputs=INNER, shard="column"),
        Operator("down", "matmul", INNER * HIDDEN, inputs=INNER, outputs=HIDDEN, shard="row"),
        Operator("residual", "elementwise", inputs=2 * HIDDEN, outputs=HIDDEN),
    )


def is_attention(operator: Operator) -> bool:
    return operator.kind == "attention"


def engine(norm: str, scores: str, drop: float) -> Traits:
    """Return the engine that plain torch is."""
    fused = {"norm"} if norm == "layer" else set()
    return MEGATRON_LIKE.but(
        fused=frozenset(fused), attention="flash" if scores == "flash" else "unfused", dropout=drop > 0
    )


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("again", ["none", "attention", "full"])
@pytest.mark.parametrize(("scores", "drop"), [("flash", 0.0), ("math", 0.0), ("math", 0.1)])
@pytest.mark.parametrize(("norm", "inner"), [("layer", "plain"), ("rms", "gated"), ("rms", "plain")])
def test_a_layer_keeps_what_torch_keeps(
    norm: str, inner: str, scores: str, drop: float, again: str, precision: str
) -> None:
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    module = Layer(norm, inner, scores, drop, again).to(kind)
    features = torch.randn(BATCH, SEQUENCE, HIDDEN, dtype=kind, requires_grad=True)
    layer = gated() if inner == "gated" else dense(HIDDEN, HEADS, HEADS, INNER)
    mode = {"none": 0, "attention": 1, "full": 2}[again]
    law = holding(
        layer, at(), precision, 0, mode, engine(norm, scores, drop), HIDDEN, is_attention if mode == 1 else None
    )  # type: ignore[arg-type]
    assert float(law.activation) == pytest.approx(kept(module, features), rel=FEW_PER_CENT)


@pytest.mark.parametrize("active", [1, 2, 4])
def test_experts_keep_what_torch_keeps(active: int) -> None:
    module = Experts(8, active).to(torch.bfloat16)
    features = torch.randn(BATCH, SEQUENCE, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    law = holding(
        sparse(HIDDEN, HEADS, 8, active), at(), "bf16", 0, 0, engine("layer", "flash", 0.0), HIDDEN
    )  # fmt: skip
    assert float(law.activation) == pytest.approx(kept(module, features), rel=FEW_PER_CENT)


class Live(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the bytes of all storages alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, kinds: Any, given: Any = (), named: Any = None) -> Any:
        result = function(*given, **(named or {}))
        for one in result if isinstance(result, list | tuple) else [result]:
            if torch.is_tensor(one):
                storage = one.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.alive.values()))
        return result


def peak(run: Callable[[], Any]) -> float:
    gc.collect()
    with Live() as live:
        run()
    return float(live.most)


def test_the_loss_holds_twelve_bytes_a_logit() -> None:
    """Logits in 16 bits widened to 32, their log-softmax, and its gradient, as scripts write it."""
    vocabulary, tokens = 4096, 256
    logits = torch.randn(tokens, vocabulary, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))

    def run() -> None:
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()

    table = vocabulary * HIDDEN
    head = (Operator("head", "matmul", table, HIDDEN, vocabulary, shard="vocabulary"),)
    plain = MEGATRON_LIKE.but(fused=frozenset())
    shape = Shape(1.0, float(tokens), 1.0, 1.0, 1.0)
    law = float(holding(head, shape, "bf16", 0, 0, plain, HIDDEN).activation)
    law += float(working_set(head, shape, "bf16", 0, plain))
    assert law == 12 * tokens * vocabulary
    assert law == pytest.approx(peak(run), rel=0.1)
