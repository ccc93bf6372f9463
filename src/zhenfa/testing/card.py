"""What a card does for the conformance suite, in a process of its own.

Run as ``python -m zhenfa.testing.card MODULE CLASS``. Prints what was done as JSON on the last line, or
``{"absent": why}`` where the maker's plug-in finds no card.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import sys
from typing import Any

from zhenfa.errors import CapabilityError
from zhenfa.live.makers import Maker

STEP = 1e-2


def model(torch: Any) -> Any:
    """Return a small model with an embedding, attention, a norm and a matmul, with the same weights each time."""
    torch.manual_seed(3)

    class Small(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(32, 16)
            self.mix = torch.nn.Linear(16, 48)
            self.norm = torch.nn.LayerNorm(16)
            self.head = torch.nn.Linear(16, 32)

        def forward(self, tokens: Any) -> Any:
            """Return logits."""
            features = self.embedding(tokens)
            query, key, value = self.mix(features).chunk(3, dim=-1)
            mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.head(self.norm(features + mixed))

    return Small()


def step(torch: Any, device: Any) -> tuple[float, Any]:
    """Take one AdamW step on a device; return the loss and the weights, on the host."""
    module = model(torch).to(device)
    tokens = (torch.arange(64).reshape(4, 16) * 7 % 32).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=STEP)
    logits = module(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    weights = torch.cat([one.detach().to("cpu").flatten() for one in module.parameters()])
    return float(loss.detach().to("cpu")), weights


def work(maker: Maker) -> dict[str, Any]:
    """Open a card and do what the suite looks at."""
    import torch

    torch.set_num_threads(1)
    try:
        device = maker.open()
    except CapabilityError as problem:
        return {"absent": problem.message}
    tensor = torch.tensor([[1.0, 3.0], [2.0, 4.0]], device=device).t()
    host = maker.to_host(tensor)
    total = float(maker.to_host(torch.ones(2, 3, device=device).sum()))
    loss, weights = step(torch, device)
    maker.synchronize()
    expected, reference = step(torch, torch.device("cpu"))
    return {
        "device": str(device), "sum": total, "host": host.tolist(), "host_device": str(host.device),
        "host_contiguous": host.is_contiguous(), "memory": list(maker.memory()), "loss": loss,
        "loss_on_processor": expected, "weights_apart": float((weights - reference).abs().max()) / STEP,
    }  # fmt: skip


def main() -> None:
    """Do the work of the class that the arguments name and print it."""
    module, name = sys.argv[1:3]
    maker = operator.attrgetter(name)(importlib.import_module(module))()
    os.environ.update(maker.environment(0))
    print(json.dumps(work(maker)))


if __name__ == "__main__":
    main()
