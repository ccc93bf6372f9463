"""A shelf holds all entries of one kind: found by id or alias, in any case, and checked when first taken."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from zhenfa.catalog import files
from zhenfa.errors import UnknownNameError
from zhenfa.spec.document import Part

P = TypeVar("P", bound=Part)


class Shelf(Generic[P]):
    """All entries of one kind. ``key`` is the list's name in the files; ``folder`` or ``file`` says which they are."""

    def __init__(self, kind: str, model: type[P], key: str, *, folder: str | None = None, file: str = "") -> None:
        self.kind, self.model, self.key = kind, model, key
        self._folder, self._file = folder, file
        self._taken: dict[str, P] = {}

    @cached_property
    def _raw(self) -> dict[str, Any]:
        files.sources()
        places = files.paths(self._folder) if self._folder else [files.ROOT / self._file]
        return {item["id"]: item for path in places for item in files.read(path)[self.key]}

    @cached_property
    def _by_name(self) -> dict[str, str]:
        names = {alias.casefold(): key for key, item in self._raw.items() for alias in item.get("aliases", ())}
        return names | {key.casefold(): key for key in self._raw}

    @property
    def names(self) -> list[str]:
        """Return every id and alias."""
        return [*self._raw, *(alias for item in self._raw.values() for alias in item.get("aliases", ()))]

    def find(self, name: str) -> str | None:
        """Return the id of the entry of that id or alias, in any case, or None."""
        return self._by_name.get(name.strip().casefold())

    def get(self, name: str) -> P:
        """Return the entry of that id or alias. Raises :class:`UnknownNameError` with near misses."""
        key = self.find(name)
        if key is None:
            hint = f"`zhenfa show {self.kind}s` lists all {len(self._raw)}."
            raise UnknownNameError(self.kind, name, self.names, hint=hint)
        if key not in self._taken:
            self._taken[key] = self.model.model_validate(self._raw[key])
        return self._taken[key]

    def all(self) -> Mapping[str, P]:
        """Return every entry by id, in the order of the files."""
        return _Entries(self, self._raw)


class _Entries(Mapping[str, P]):
    """The entries of a shelf by id: each is checked when it is first asked for, so that few cost little."""

    def __init__(self, shelf: Shelf[P], ids: Collection[str]) -> None:
        self._shelf, self._ids = shelf, ids

    def __getitem__(self, key: str) -> P:
        if key not in self._ids:
            raise KeyError(key)
        return self._shelf.get(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)
