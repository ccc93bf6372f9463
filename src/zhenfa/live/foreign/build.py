"""Modules built: by a function of a Python file, or by transformers from a ``config.json``.

A Python file is executed, so whoever calls :func:`python_file` must have been told to on the command line. transformers
builds what it ships alone: code that a directory brings along is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zhenfa.errors import CapabilityError, InputError
from zhenfa.live.foreign.source import Source
from zhenfa.spec.huggingface import encoder_types

CALL: Final[dict[str, dict[str, Any]]] = {"python": {}, "transformers": {"use_cache": False, "return_dict": True}}
"""What each kind of module is called with besides its tokens."""
MADE: Final = ("aten::empty", "aten::randn", "aten::rand")
LARGE: Final = 1 << 24
"""Elements from which a tensor that a module makes is given no memory while it is only looked through."""
AUXILIARY: Final = ("output_router_logits", "output_hidden_states", "output_attentions")
"""Keys of a configuration that ask for more than logits."""

_files: dict[tuple[str, str], ModuleType] = {}


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file. Raises :class:`InputError` if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise InputError(f"{str(path)!r} cannot be read: {problem.strerror}.") from None


def build(source: Source, *, looking: bool = False) -> nn.Module:
    """Return the module of a source with random weights, on this host's processor, in eval mode.

    ``looking``: it is only looked through, so that experts are computed in a way whose shapes depend on no values.
    Raises :class:`InputError` if the file has changed since the run was planned, or fails.
    """
    path = Path(source.path)
    if digest_of(path) != source.digest:
        raise InputError(f"{source.path!r} is not the file that the run was planned with: it has changed.")
    if source.kind == "transformers":
        return from_config(path, "batched_mm" if looking else "eager")
    return from_function(path, source.function)


def from_function(path: Path, function: str) -> nn.Module:
    """Return what a function of a Python file returns. Raises :class:`InputError` if that is no module."""
    found = getattr(python_file(path), function, None)
    label = f"{path.name}:{function}"
    if not callable(found):
        raise InputError(
            f"{path.name} has no function {function!r}.", hint=f"define it: def {function}() -> nn.Module."
        )
    module = said(label, found)
    if not isinstance(module, nn.Module):
        raise InputError(f"{label} returns a {type(module).__name__}, not a torch.nn.Module.")
    return module.eval()


def python_file(path: Path) -> ModuleType:
    """Execute a Python file once and return it as a module; files beside it can be imported by it."""
    key = (str(path), digest_of(path))
    if key not in _files:
        name = f"zhenfa_user_{key[1][:16]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InputError(f"{str(path)!r} is no Python file.")
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        loader = spec.loader
        try:
            said(path.name, lambda: loader.exec_module(found))
        except InputError:
            del sys.modules[name]
            raise
        _files[key] = found
    return _files[key]


def from_config(path: Path, experts: str = "eager") -> nn.Module:
    """Return the causal language model that transformers builds from a ``config.json``, in 32 bits.

    ``experts``: how transformers computes those of a mixture.
    Raises :class:`CapabilityError` where transformers is not installed or does not ship the architecture.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise CapabilityError(
            "transformers is not installed, which builds this model.", hint="pip install 'zhenfa[huggingface]'."
        ) from None
    logging.set_verbosity_error()
    data = json.loads(path.read_text())
    kind = data.pop("model_type", None)
    label = f"{path.parent.name}/{path.name}"
    if "auto_map" in data:
        raise CapabilityError(
            f"{label} asks for code of its own (auto_map), which is not run.",
            hint="take an architecture that transformers ships, or a function of a Python file of yours.",
        )
    if data.get("quantization_config") is not None:
        raise CapabilityError(
            f"{label} has a quantization_config: its weights are in few bits, and training updates them in 32.",
            hint="take the directory of the model before it was quantized.",
        )
    try:
        config = AutoConfig.for_model(kind, **data)
    except ValueError:
        raise CapabilityError(
            f"transformers does not ship the model type {kind!r} of {label}.",
            hint="install a newer transformers, or give a function of a Python file of yours.",
        ) from None
    if kind in encoder_types.BUILDERS and not getattr(config, "is_decoder", False):
        raise CapabilityError(
            f"a {kind} reads its tokens in both directions ({label} does not say is_decoder: true), and would be "
            "trained on the next token with that token in sight.",
            hint="write is_decoder: true, or take a decoder.",
        )
    config.use_cache = False
    config._experts_implementation = experts
    for key in AUXILIARY:
        if getattr(config, key, False):
            setattr(config, key, False)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise CapabilityError(
            f"transformers has no causal language model of the type {kind!r} of {label}.",
            hint="take a decoder, or give a function of a Python file of yours.",
        )
    module = said(label, lambda: AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False))
    found: nn.Module = module.eval()
    return found


def said(label: str, work: Callable[[], Any]) -> Any:
    """Run code that is not ours; raise :class:`InputError` with its words and line for whatever it raises."""
    try:
        return work()
    except InputError:
        raise
    except Exception as problem:
        words = (str(problem).strip() or "no words").splitlines()[0]
        where = traceback.extract_tb(problem.__traceback__)[-1]
        raise InputError(
            f"{label} failed: {type(problem).__name__}: {words} ({Path(where.filename).name}, line {where.lineno})."
        ) from problem


class _Large(TorchDispatchMode):  # type: ignore[misc]
    """Gives large tensors no memory that are made to be filled or drawn: a model of any size is built in little."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func._schema.name in MADE and math.prod(args[0]) >= LARGE:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


@contextmanager
def weightless() -> Iterator[None]:
    """Build modules inside whose weights have shapes alone (torch's ``meta`` device); buffers are as they are."""
    register = nn.Module.register_parameter

    def instead(module: nn.Module, name: str, weight: Any) -> None:
        register(module, name, weight)
        if weight is not None and not weight.is_meta:
            shape = nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)
            shape.__dict__.update(weight.__dict__)
            module._parameters[name] = shape

    nn.Module.register_parameter = instead
    try:
        with _Large():
            yield
    finally:
        nn.Module.register_parameter = register


def blocks_of(module: nn.Module, wanted: str | None = None) -> str:
    """Return the global name of a module's list of blocks: the one wanted, else that which holds most weights.

    Raises :class:`CapabilityError` where there is none.
    """
    lists = {
        name: sum(weight.numel() for weight in one.parameters())
        for name, one in module.named_modules()
        if name and isinstance(one, nn.ModuleList | nn.Sequential) and len(one)
    }
    said = ", ".join(repr(name) for name in lists if name.count(".") < 3) or "none"
    if wanted is not None:
        if wanted not in lists:
            raise InputError(
                f"execution.blocks is {wanted!r}, which is no list of blocks of the module.", hint=f"its lists: {said}."
            )
        return wanted
    plain = {name: size for name, size in lists.items() if isinstance(module.get_submodule(name), nn.ModuleList)}
    found = plain or lists
    if not found:
        raise CapabilityError(
            f"the module {type(module).__name__} has no list of blocks that could be cut over cards.",
            hint="put its layers into a torch.nn.ModuleList that forward goes through.",
        )
    best: str = max(found, key=lambda name: (found[name], -name.count(".")))
    return best
