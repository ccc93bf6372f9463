"""The one hook of the entry-point group ``zhenfa.makers``, and the mark of those who answer it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from zhenfa.live.makers.maker import Maker

PROJECT: Final = "zhenfa"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """What is asked of a plug-in."""

    @hookspec
    def zhenfa_maker(self) -> Maker:  # type: ignore[empty-body]
        """Return the maker. A subclass of :class:`~zhenfa.live.makers.Maker` answers with itself."""
