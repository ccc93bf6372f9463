"""Which sources a result rests on.

A source is declared once, with :func:`declare` for papers that a law implements, or in the catalog's ``sources.yaml``
for facts. While :func:`collect` is open, every law and every fact that is used notes its key, so that a run can list
its bibliography (``--cite``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_KNOWN: Final[dict[str, str]] = {}
_used: ContextVar[dict[str, None] | None] = ContextVar("zhenfa_sources_used", default=None)


def declare(key: str, text: str) -> str:
    """Make a source known under ``key`` and return the key."""
    _KNOWN[key] = text
    return key


def use(*keys: str) -> None:
    """Note that the result being computed rests on these sources."""
    seen = _used.get()
    if seen is not None:
        seen.update(dict.fromkeys(keys))


def text(key: str) -> str:
    """Return the bibliography line of a source; a key that nobody declared is its own text."""
    return _KNOWN.get(key, key)


@contextmanager
def collect() -> Iterator[dict[str, None]]:
    """Gather the keys used inside the block, in order of first use; a block around this one gathers them too."""
    seen: dict[str, None] = {}
    token = _used.set(seen)
    try:
        yield seen
    finally:
        _used.reset(token)
        use(*seen)
