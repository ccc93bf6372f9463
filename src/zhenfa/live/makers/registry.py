"""All makers, built-in or not, found through the entry-point group ``zhenfa.makers``.

The list is read when it is first asked for. A plug-in that cannot be loaded is left out and named in
:func:`problems`; so are two that claim one id, unless one of them is built in, which then stays.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import pluggy

from zhenfa.errors import CapabilityError, UnknownNameError, printable
from zhenfa.live.makers.hooks import PROJECT, Hooks, hookimpl
from zhenfa.live.makers.maker import Maker
from zhenfa.spec.machine import Accelerator

__all__ = ["GROUP", "hookimpl", "known_by", "load", "maker", "maker_for", "makers", "problems"]

GROUP: Final = "zhenfa.makers"
OWN: Final = "zhenfa.live.makers."
BUILT_IN: Final[dict[str, str]] = {
    "cpu": f"{OWN}cpu:Cpu",
    "emulated": f"{OWN}emulated:Emulated",
    "nvidia": f"{OWN}nvidia:Nvidia",
    "ascend": f"{OWN}ascend:Ascend",
    "hygon": f"{OWN}hygon:Hygon",
    "cambricon": f"{OWN}cambricon:Cambricon",
    "biren": f"{OWN}biren:Biren",
    "denglin": f"{OWN}denglin:Denglin",
    "kunlunxin": f"{OWN}kunlunxin:Kunlunxin",
    "thead": f"{OWN}thead:THead",
    "metax": f"{OWN}metax:MetaX",
    "mthreads": f"{OWN}mthreads:MooreThreads",
    "iluvatar": f"{OWN}iluvatar:Iluvatar",
    "enflame": f"{OWN}enflame:Enflame",
    "amd": f"{OWN}amd:Amd",
    "intel": f"{OWN}intel:IntelGpu",
    "gaudi": f"{OWN}gaudi:Gaudi",
}
"""The entry points of this package's own pyproject.toml, for code that runs where they are not installed, or where
an older version's are."""


class Registry:
    """Makers by id, in the order in which they are listed, and what kept others out."""

    def __init__(self, found: Iterable[EntryPoint]) -> None:
        self.problems: list[str] = []
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._claims: dict[str, list[tuple[str, Maker]]] = {}
        for point in found:
            self._take(point)
        self.makers = {name: claims[0][1] for name, claims in self._claims.items() if self._agreed(name, claims)}

    def _take(self, point: EntryPoint) -> None:
        """Load one plug-in; whatever it raises keeps it, and nothing else, out."""
        label = f"{point.name} ({_package(point)})"
        try:
            loaded = point.load()
            plugin = loaded() if inspect.isclass(loaded) else loaded
            name = self._manager.register(plugin, name=f"{_package(point)}:{point.name}")
            mine = self._answer(plugin)
            fault = _fault(mine)
        except BaseException as problem:
            if isinstance(problem, KeyboardInterrupt):
                raise
            words = str(problem).strip().splitlines()[:1] or [""]
            self._leave_out(label, f"{type(problem).__name__}: {words[0]}".rstrip(": "))
            return
        if name is None or fault:
            self._leave_out(label, fault or "it is there already")
            return
        self._claims.setdefault(mine.id, []).append((_package(point), mine))

    def _answer(self, plugin: Any) -> Any:
        """Return what one plug-in answers to the hook."""
        others = [one for one in self._manager.get_plugins() if one is not plugin]
        answers = self._manager.subset_hook_caller("zhenfa_maker", remove_plugins=others)()
        return answers[0] if answers else None

    def _leave_out(self, label: str, why: str) -> None:
        self.problems.append(printable(f"the maker plug-in {label} is left out: {why.rstrip('.')}.", lines=False))

    def _agreed(self, name: str, claims: list[tuple[str, Maker]]) -> bool:
        """Return whether one plug-in alone claims an id, or a built-in one does."""
        if len(claims) == 1:
            return True
        packages = [package for package, _ in claims]
        own = [claim for claim in claims if claim[0] == PROJECT]
        stays = f"that of {PROJECT} stays" if own else "none of them is taken"
        if own:
            claims[:] = own
        words = f"{len(packages)} plug-ins claim the maker id {name!r}: {', '.join(packages)}; {stays}."
        self.problems.append(printable(words, lines=False))
        return bool(own)


def _package(point: EntryPoint) -> str:
    """Return the name of the installed package that brings an entry point."""
    return point.dist.name if point.dist is not None else PROJECT


def _fault(mine: Any) -> str:
    """Return what of a plug-in's answer the runtime cannot use, or nothing."""
    if not isinstance(mine, Maker):
        return f"it gives {type(mine).__name__}, not a subclass of zhenfa.live.makers.Maker"
    if inspect.isabstract(type(mine)):
        return "it leaves abstract methods unwritten"
    for name in ("id", "name"):
        text = getattr(mine, name, None)
        if not (isinstance(text, str) and text.strip() and text.isprintable()):
            return f"its {name} is not a word"
    return ""


def load() -> Registry:
    """Read the entry points and load every maker: the built-in ones first, then those of other packages by name."""
    found = [EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()]
    others = [point for point in entry_points(group=GROUP) if BUILT_IN.get(point.name) != point.value]
    others = [point for point in others if _package(point) != PROJECT]
    return Registry([*found, *sorted(others, key=lambda point: (_package(point), point.name))])


@cache
def _registry() -> Registry:
    return load()


def makers() -> dict[str, Maker]:
    """Return every maker by id."""
    return _registry().makers


def problems() -> tuple[str, ...]:
    """Return a sentence for each plug-in that was left out."""
    return tuple(_registry().problems)


def maker(name: str) -> Maker:
    """Return a maker by id. Raises :class:`UnknownNameError`."""
    try:
        return makers()[name]
    except KeyError:
        raise UnknownNameError("maker", name, makers(), hint="`zhenfa doctor --makers` lists them.") from None


def known_by(device: str) -> Maker | None:
    """Return the maker of which a device's name has a word, the longest word if several makers have one."""
    folded = device.casefold()
    found = [(len(word), one) for one in makers().values() for word in one.words if word in folded]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def maker_for(accelerator: Accelerator) -> Maker:
    """Return the maker of an accelerator of a machine document.

    The torch device comes first, since the runtime works through it; where several makers share it, the document's
    maker and name decide. Raises :class:`CapabilityError` if no plug-in can run on it.
    """
    if accelerator.emulated:
        return maker("emulated")
    wanted = accelerator.software.torch_device if accelerator.software else None
    sharing = [one for one in makers().values() if one.torch_device == wanted and one.id != "emulated"]
    named = [one for one in sharing if _is_of(accelerator, one)]
    if wanted == "cpu" and not (named and named[0].id != "cpu"):
        return maker("cpu")  # whoever made the processor
    if len(sharing) > 1 and not named and accelerator.maker != "unknown":
        names = ", ".join(one.name for one in sharing)
        raise CapabilityError(
            f"{accelerator.name} is reached through the torch device {wanted!r}, which several makers share, and its "
            f"maker {accelerator.maker!r} is none of them.",
            hint=f"set maker: for the card in the machine file to one of: {names}.",
        )
    if wanted is None or not sharing:
        device = f"the torch device {wanted!r}" if wanted else "no torch device that is known"
        raise CapabilityError(
            f"{accelerator.name} is reached through {device}, for which no maker's plug-in is there.",
            hint="plan on it with `zhenfa plan`, run on a machine of emulated cards, or write a plug-in "
            "(docs/guide/makers.md).",
        )
    found = (named or sharing)[0]
    if not found.able("training"):
        raise CapabilityError(f"`zhenfa run` cannot train on {accelerator.name}. {found.missing['training']}")
    return found


def _is_of(accelerator: Accelerator, mine: Maker) -> bool:
    """Return whether a document's maker or name is this maker's."""
    return mine.name.casefold() in accelerator.maker.casefold() or mine.knows(
        f"{accelerator.maker} {accelerator.name} {accelerator.id}"
    )
