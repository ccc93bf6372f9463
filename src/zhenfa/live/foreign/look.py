"""A module looked through on shapes alone, before anything starts: what a plan and the cards need to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.foreign.build import build, digest_of, weightless
from zhenfa.live.foreign.counted import document
from zhenfa.live.foreign.fill import spelt
from zhenfa.live.foreign.source import Kind, Source
from zhenfa.live.foreign.trace import Traced, trace
from zhenfa.live.sizes import Sizes
from zhenfa.live.weights import Directory
from zhenfa.spec.model import Model


@dataclass(frozen=True)
class Looked:
    """A ``module`` of shapes alone, where it comes from (``draft``), and what its forward did at ``length`` tokens."""

    draft: Source
    module: nn.Module
    traced: Traced
    length: int

    @property
    def what(self) -> str:
        """Return what the module is, in words."""
        name = type(self.module).__name__
        if self.draft.kind == "python":
            return f"{name} of {Path(self.draft.path).name}:{self.draft.function}"
        import transformers

        return f"{name} of transformers {transformers.__version__}"

    @cached_property
    def weights(self) -> dict[str, int]:
        """Return the number of elements of every weight by its global name."""
        return {name: weight.numel() for name, weight in self.module.named_parameters()}

    @cached_property
    def sizes(self) -> Sizes:
        """Return what the cards are told."""
        found, draft, weights = self.traced, self.draft, self.weights
        stem, ends, head = (sum(weights[name] for name in names) for names in (found.stem, found.ends, found.head))
        each = [0] * len(found.inside)
        for name, count in weights.items():
            if name.startswith(f"{found.blocks}."):
                each[int(name.removeprefix(f"{found.blocks}.").split(".")[0])] += count
        source = Source(
            draft.kind, draft.path, draft.function, draft.digest, found.blocks, found.stem, found.ends, found.head,
            (stem, ends, head), tuple(each), found.argument, found.result,
        )  # fmt: skip
        return Sizes(
            hidden=found.hidden, layers=len(each), heads=1, kv_heads=1, head_dim=1, intermediate=0,
            vocabulary=found.vocabulary, tied=bool(found.ends), source=source,
        )  # fmt: skip

    def counted(self) -> Model:
        """Return a model document counted from the module. Raises :class:`CapabilityError` for a mixture of experts of
        transformers: what is looked through there computes them otherwise than the cards do."""
        if self.draft.kind == "transformers" and any("Experts" in type(one).__name__ for one in self.module.modules()):
            raise CapabilityError(
                f"{self.what} is a mixture of experts of a type that the import of config.json does not know, and no "
                "document is counted from mixtures.",
                hint="take a type that `zhenfa plan` knows, or a torch module of your own.",
            )
        path = Path(self.draft.path)
        python = self.draft.kind == "python"
        block = self.module.get_submodule(self.traced.blocks)[0]
        return document(
            self.traced, self.weights, name=path.stem if python else path.parent.name,
            label=f"{path.name}:{self.draft.function}" if python else "the module that transformers builds",
            length=self.length, family=type(block).__name__,
        )  # fmt: skip

    def check_weights(self, folder: Path) -> None:
        """Raise :class:`InputError` if a directory lacks a weight of the module."""
        directory = Directory(folder)
        prefix = getattr(self.module, "base_model_prefix", "")
        names: dict[int, list[str]] = {}
        for name, weight in self.module.named_parameters(remove_duplicate=False):
            names.setdefault(id(weight), []).append(name)
        for known in names.values():
            if not any(one in directory for own in known for one in spelt(own, prefix)):
                raise InputError(
                    f"{str(folder)!r} has no tensor {known[0]!r}, which the model needs.",
                    hint="write model: the config.json of that directory in the job.",
                )


def look_through(kind: Kind, path: Path, function: str, length: int, blocks: str | None = None) -> Looked:
    """Build a module without weights and look through its forward at ``length`` tokens.

    Raises :class:`CapabilityError` for a module that cannot be cut over cards, :class:`InputError` for one that fails.
    """
    draft = Source(kind, str(path), function, digest_of(path), "", (), (), (), (0, 0, 0), (), 0, None)
    with weightless():
        module = build(draft, looking=True)
    label = f"{path.name}:{function}" if kind == "python" else f"{type(module).__name__} of {path.parent.name}"
    return Looked(draft, module, trace(module, kind, label, length, blocks), length)
