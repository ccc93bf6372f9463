"""Pieces of HTML. Text from a document comes in as ``str``, is escaped here, and goes out as :class:`Html`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zhenfa.errors import printable


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """A column of a table; ``right`` aligns numbers."""

    head: str
    right: bool = False


def safe(text: str) -> Html:
    """Return the text with nothing in it that a browser obeys; markup stays as it is.

    >>> safe("<b>")
    '&lt;b&gt;'
    """
    return text if isinstance(text, Html) else Html(html.escape(printable(text)))


def join(parts: Iterable[str], between: str = "") -> Html:
    """Return the pieces as one."""
    return Html(between.join(safe(part) for part in parts))


def element(name: str, *inside: str, **attributes: str) -> Html:
    """Return an element. ``style_`` and ``class_`` name the attributes of those names.

    >>> element("p", "a < b", class_="muted")
    '<p class="muted">a &lt; b</p>'
    """
    said = "".join(f' {key.rstrip("_").replace("_", "-")}="{safe(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{said}>{join(inside)}</{name}>")


def section(title: str, *inside: str, aside: str = "") -> Html:
    """Return a section under a heading; ``aside`` stands small beside it. Nothing where there is nothing in it."""
    if not any(inside):
        return Html()
    beside = (Html(" "), element("small", aside)) if aside else ()
    return Html(f"{element('section', element('h2', title, *beside), *inside)}\n")


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Html:
    """Return a table; on a narrow screen each row becomes a block in which every cell names its column."""
    head = join(element("th", one.head, scope="col", **_side(one)) for one in columns)
    body = Html("\n").join(
        element(
            "tr",
            *(
                element("td", element("div", cell), data_label=column.head, **_side(column))
                for column, cell in zip(columns, row, strict=True)
            ),
        )
        for row in rows
    )
    return element("table", element("thead", element("tr", head)), element("tbody", Html(body)))


def _side(column: Column) -> dict[str, str]:
    return {"class_": "right"} if column.right else {}


def listed(items: Iterable[str]) -> Html:
    """Return a list with a point before each item; nothing where there is none."""
    points = join(element("li", item) for item in items)
    return element("ul", points) if points else Html()


def folded(title: str, *inside: str) -> Html:
    """Return what is shown when its title is clicked, and in print."""
    return element("details", element("summary", title), *inside)


def muted(text: str) -> Html:
    """Return text in a lighter tone."""
    return element("span", text, class_="muted")


def bar(share: float, kind: str = "") -> Html:
    """Return a bar that is filled up to a share of its width."""
    width = f"width:{100 * min(max(share, 0.0), 1.0):.2f}%"
    return element("div", element("i", style_=width, **({"class_": kind} if kind else {})), class_="bar")
